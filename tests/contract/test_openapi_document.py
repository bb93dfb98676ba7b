"""The published document: fresh, sound, and about exactly what the application serves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from flask import Flask
from gunicorn.http.errors import InvalidHTTPVersion, LimitRequestHeaders, LimitRequestLine
from jsonschema import Draft202012Validator

from router.api.dialects.native import MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES
from router.api.error_specs import ERROR_SPECS
from router.api.openapi.contract_files import WRITTEN, check
from router.api.openapi.error_responses import GROUPS as ERROR_GROUPS
from router.api.openapi.error_responses import NOBODY_LISTENS, meaning_of
from router.api.views import own_records
from router.app import expose_metrics
from router.auth.signatures import NONCE_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from router.config.settings import Settings
from router.errors import RouterError
from router.records.record_types import AUDIT_ACTIONS
from router.server.worker import RouterWorker
from router.store.queries.record_queries import HISTORY_BYTES, HISTORY_LENGTH
from router.store.queries.usage_totals import GROUPS
from tests.contract.checker import CONTRACTS, Contract
from tests.fakes.router_stand import World

METHODS = ("get", "post")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONTRACTS / "openapi.json").read_text("utf-8"))
    return found


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every object within, the outermost included."""
    if isinstance(node, dict):
        yield node
        for inner in node.values():
            yield from nodes(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from nodes(inner)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def routes(app: Flask) -> set[tuple[str, str]]:
    """Path template and method of everything that the application serves."""
    return {
        (re.sub(r"<(?:\w+:)?(\w+)>", "{}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }


def test_the_committed_files_are_what_the_code_says() -> None:
    """`routerctl dev contracts check` has nothing to report."""
    assert check(CONTRACTS) == []


def test_nothing_else_is_in_the_folder() -> None:
    """A file that nobody generates is a file that nobody keeps up to date."""
    assert sorted(path.name for path in CONTRACTS.iterdir()) == [
        "audit-event.schema.json",
        "budget-service.openapi.json",
        "document.schema.json",
        "openapi.json",
        "usage-record.schema.json",
    ]


def test_every_route_is_documented_and_nothing_else(
    world: World, document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new route without its contract fails here."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    app = world.stand().app
    expose_metrics(app)
    documented = {
        (re.sub(r"\{\w+\}", "{}", path), method) for path, method, _ in operations(document)
    }
    assert routes(app) == documented


def names(parameters: list[dict[str, Any]]) -> set[str]:
    return {found["name"] for found in parameters if "name" in found}


def test_the_queries_are_those_of_the_views(document: dict[str, Any]) -> None:
    """Their names, choices and bounds."""
    audit = document["paths"]["/v1/audit/requests"]["get"]["parameters"]
    usage = document["paths"]["/v1/usage"]["get"]["parameters"]
    assert names(audit) == own_records._AUDIT_PARAMETERS
    assert names(usage) == own_records._USAGE_PARAMETERS
    schemas = {found["name"]: found["schema"] for found in audit + usage if "name" in found}
    assert schemas["action"]["enum"] == list(AUDIT_ACTIONS)
    assert schemas["format"]["enum"] == list(own_records.FORMATS)
    assert schemas["limit"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": own_records.MAX_PAGE,
        "default": own_records.DEFAULT_PAGE,
    }
    totals = document["components"]["schemas"]["UsageReport"]["properties"]
    assert totals["group_by"]["items"]["enum"] == list(GROUPS)
    [group_by] = [found for found in usage if found.get("name") == "group_by"]
    assert f"any of {', '.join(GROUPS)};" in group_by["description"]


def test_the_figures_in_words_are_those_of_the_code(document: dict[str, Any]) -> None:
    """What JSON Schema has no keyword for."""
    schemas = document["components"]["schemas"]
    request = schemas["InferenceRequest"]["properties"]
    assert f"At most {MAX_PAYLOAD_BYTES} bytes" in request["payload"]["description"]
    assert f"at most {MAX_METADATA_BYTES} bytes" in request["metadata"]["description"]
    truncated = schemas["RequestStory"]["properties"]["truncated"]["description"]
    assert f"at most {HISTORY_LENGTH}, and at most {HISTORY_BYTES // 2**20} MiB" in truncated


def test_the_servers_are_the_defaults(document: dict[str, Any]) -> None:
    """Of the two listeners."""
    [public], [ops] = document["servers"], document["paths"]["/metrics"]["servers"]
    settings = Settings()
    assert public["url"] == f"http://{settings.bind}"
    assert ops["url"] == f"http://{settings.ops_bind}"


def test_the_headers_of_a_signature_are_those_that_are_read(document: dict[str, Any]) -> None:
    """Three, and no key needs one more."""
    parameters = document["components"]["parameters"]
    found = [parameters[name]["name"] for name in ("Timestamp", "Nonce", "Signature")]
    assert found == [TIMESTAMP_HEADER, NONCE_HEADER, SIGNATURE_HEADER]


def test_every_group_of_errors_is_an_operation_s() -> None:
    """Or what a request meets that fits no operation."""
    written = yaml.safe_load(WRITTEN.read_text("utf-8"))
    used = {operation["x-errors"] for _, _, operation in operations(written)}
    assert used | {"NativePath", "OpenAIPath"} == set(ERROR_GROUPS)


def test_every_error_is_documented() -> None:
    """A new error without its contract fails here."""
    grouped = {kind for _, kinds in ERROR_GROUPS.values() for kind in kinds}
    assert grouped - {None} | set(NOBODY_LISTENS) == set(ERROR_SPECS)


@pytest.mark.parametrize("kind", [*ERROR_SPECS, None])
def test_every_error_is_explained_in_one_sentence(kind: type[RouterError] | None) -> None:
    """The contract and the documentation take it from the error itself."""
    meaning = meaning_of(kind)
    assert meaning.endswith(".")
    assert "``" not in meaning
    assert "\n" not in meaning


def test_every_code_is_one_of_the_enumeration(document: dict[str, Any]) -> None:
    """And the enumeration holds no code that no error has."""
    schemas = document["components"]["schemas"]
    codes = schemas["Error"]["properties"]["code"]["enum"]
    codes += schemas["LimitErrorResponse"]["properties"]["code"]["enum"]
    assert set(codes) == {face.code for face in ERROR_SPECS.values()} | {"INTERNAL"}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """Nothing dangles, and no component is there for nobody."""
    used = {node["$ref"] for node in nodes(document) if "$ref" in node}
    for reference in used:
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    named = {
        f"#/components/{section}/{name}"
        for section, components in document["components"].items()
        if section not in ("securitySchemes", "responses")
        for name in components
    }
    assert named - used == set()


def test_every_schema_is_one(document: dict[str, Any]) -> None:
    """JSON Schema 2020-12, on which OpenAPI 3.1 stands."""
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_operation_is_named_once(document: dict[str, Any]) -> None:
    """Client generators make functions of these."""
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)


def test_calls_need_a_key_and_probes_do_not(document: dict[str, Any]) -> None:
    """Both ways to send a key, on each operation that asks for one."""
    schemes = [{"ApiKey": []}, {"BearerKey": []}]
    for path, _, operation in operations(document):
        needs = path.startswith("/v1/") and not path.startswith("/v1/status")
        assert operation.get("security") == (schemes if needs else None)


def test_only_metrics_are_on_another_listener(document: dict[str, Any]) -> None:
    """The public server serves all the rest."""
    elsewhere = [path for path, item in document["paths"].items() if "servers" in item]
    assert elsewhere == ["/metrics"]
    assert document["paths"]["/metrics"]["servers"] != document["servers"]


def test_limits_refuse_as_the_hand_over_says(document: dict[str, Any]) -> None:
    """T024: `LimitErrorResponse` with its fields, and what other native errors have besides."""
    found = document["components"]["schemas"]["LimitErrorResponse"]
    assert list(found["properties"]) == [
        "error",
        "code",
        "limit_type",
        "current_usage",
        "limit",
        "retry_after",
        "trace_id",
        "details",
    ]
    assert found["properties"]["code"]["enum"] == [
        "BUDGET_EXCEEDED",
        "QUOTA_EXCEEDED",
        "RATE_LIMIT_EXCEEDED",
        "TOKENS_ABOVE_LIMIT",
    ]
    assert found["properties"]["limit_type"]["enum"] == ["budget", "quota", "rate_limit"]
    assert found["properties"]["retry_after"] | {"description": ""} == {
        "type": "integer",
        "minimum": 1,
        "description": "",
    }
    assert "retry_after" not in found["required"]


class _Client:
    """Takes what the server says instead of an answer."""

    def __init__(self) -> None:
        self.said = b""

    def sendall(self, data: bytes) -> None:
        self.said += data


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidHTTPVersion("x"), 400),
        (LimitRequestLine(9, 8), 414),
        (LimitRequestHeaders("x"), 431),
    ],
)
def test_what_never_becomes_a_request_is_refused_in_the_native_shape(
    document: dict[str, Any], error: Exception, status: int
) -> None:
    """The document says so in words: no operation answers like this."""
    client = _Client()
    log = SimpleNamespace(info=lambda *_: None)
    RouterWorker.handle_error(SimpleNamespace(log=log), None, client, None, error)  # type: ignore[arg-type]
    head, _, body = client.said.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    fields = json.loads(body)
    assert (fields["code"], fields["trace_id"]) == ("MALFORMED_REQUEST", "")
    words = document["info"]["description"]
    assert "MALFORMED_REQUEST" in words
    assert str(status) in words
    pointer = "#/components/schemas/Error"
    known = {**fields, "code": "INVALID_REQUEST", "trace_id": "0" * 32}
    assert Contract.published().errors_of(pointer, known) == []
