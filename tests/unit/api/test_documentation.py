"""docs/api.md says what the code does: endpoints, fields, events, errors, headers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from router import errors
from router.api.bodies import MAX_DEPTH
from router.api.dialects.native import (
    CONTENT_TYPES,
    MAX_METADATA_BYTES,
    MAX_METADATA_CHARS,
    MAX_METADATA_ENTRIES,
    MAX_PAYLOAD_BYTES,
    RESERVED_PARAMETERS,
)
from router.api.endpoints import ENDPOINTS
from router.api.error_specs import ERROR_SPECS, INTERNAL
from router.api.openapi.contract_files import openapi
from router.api.openapi.error_responses import meaning_of
from router.config.settings import Settings
from tests.contract.checker import Contract
from tests.fakes.router_stand import RouterStand

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "api.md").read_text("utf-8")


@pytest.fixture(scope="module")
def contract() -> dict[str, Any]:
    return openapi()


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1]
    lines = re.split(r"^#+ ", section, flags=re.MULTILINE)[0].splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_endpoints_are_those_of_the_contract(contract: dict[str, Any]) -> None:
    """With the scope that each asks for."""
    listed = {}
    for endpoint, scope, meaning in table("Endpoints"):
        listed[endpoint.strip("`")] = scope.strip("`")
        for other in re.findall(r"also `([^`]+)`", meaning):
            listed[other] = scope
    served = {
        f"{method.upper()} {path}"
        for path, item in contract["paths"].items()
        for method in item
        if method in ("get", "post")
    }
    assert set(listed) == served
    scopes = {endpoint: scope for endpoint, scope in listed.items() if scope != "none"}
    declared = [endpoint.scope or "any key" for endpoint in ENDPOINTS.values()]
    assert sorted(scopes.values()) == sorted(declared)


def test_the_fields_are_those_of_the_reader(contract: dict[str, Any]) -> None:
    """In the same order, needed or not."""
    schema = contract["components"]["schemas"]["InferenceRequest"]
    fields = [
        (name, "yes" if name in schema["required"] else "no") for name in schema["properties"]
    ]
    rows = table("The native dialect")
    assert [(name.strip("`"), needed) for name, needed, _ in rows] == fields
    told = {name.strip("`"): meaning for name, _, meaning in rows}
    assert f"{MAX_PAYLOAD_BYTES // 1024} KiB" in told["payload"]
    assert re.findall(r"`(\w+/\w+)`", told["content_type"]) == list(CONTENT_TYPES)
    assert told["parameters"].endswith(
        "not " + ", ".join(f"`{name}`" for name in RESERVED_PARAMETERS)
    )
    assert f"{MAX_METADATA_ENTRIES} strings of at most {MAX_METADATA_CHARS} " in told["metadata"]
    assert f"at most {MAX_METADATA_BYTES // 1024} KiB" in told["metadata"]


def test_the_events_are_those_of_the_contract(contract: dict[str, Any]) -> None:
    """In the order in which they come."""
    success = contract["paths"]["/v1/inference"]["post"]["responses"]["200"]
    events = success["content"]["text/event-stream"]["x-events"]
    assert [row[0].strip("`") for row in table("Streams")] == list(events)


def test_the_errors_are_those_of_the_table() -> None:
    """Every kind, by status and code, with the meaning that its class gives."""
    expected = []
    for kind, face in [*ERROR_SPECS.items(), (None, INTERNAL)]:
        status = "4xx" if kind is errors.BackendRejected else str(face.status)
        code = "`null`" if face.openai_code is None else f"`{face.openai_code}`"
        retry = "yes" if face.retryable else "no"
        expected.append(
            [status, f"`{face.code}`", f"`{face.openai_type}`", code, retry, meaning_of(kind)]
        )
    assert sorted(table("Errors")) == sorted(expected)


def test_the_headers_are_those_of_the_contract(contract: dict[str, Any]) -> None:
    """In the same order."""
    section = PAGE.split("In replies:")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE) == list(
        contract["components"]["headers"]
    )


def test_the_limits_are_those_of_the_code() -> None:
    """Figures in the text."""
    settings = Settings()
    assert f"({settings.max_body_bytes // 2**20} MiB)" in PAGE
    assert f"({settings.body_timeout_s:g} s)" in PAGE
    assert f"more than {MAX_DEPTH} levels" in PAGE


def test_the_example_is_a_call(stand: RouterStand) -> None:
    """Its body is accepted, and the reply has the fields of the one that is shown."""
    body = re.search(r"-d '(\{.*?\})'", PAGE, re.DOTALL)
    shown = re.search(r"^The reply:\n\n(.*?\}\n)\n", PAGE, re.DOTALL | re.MULTILINE)
    assert body is not None
    assert shown is not None
    reply = stand.call("POST", "/v1/inference", body=body[1].encode()).json
    expected = json.loads(shown[1])
    assert reply.keys() == expected.keys()
    assert reply["usage"].keys() == expected["usage"].keys()
    for name in ("request_id", "output"):
        assert reply[name] == expected[name]
    assert reply["usage"]["cost_usd"] == expected["usage"]["cost_usd"]


def test_the_errors_that_are_shown_are_real(stand: RouterStand) -> None:
    """Both shapes of one and the same refusal."""
    native, openai = (
        json.loads(text)
        for text in re.findall(
            r"^    (\{\"error\".*?\}\}?)\n\n",
            PAGE.split("\n## Errors\n")[1],
            re.DOTALL | re.MULTILINE,
        )
    )
    found = stand.inference(parameters={"max_tokens": 0}).json
    assert {**found, "trace_id": native["trace_id"]} == native
    assert stand.chat(max_tokens=0).json == openai


def test_the_refusal_that_is_shown_is_one() -> None:
    """The example of a limit fits the contract."""
    text = re.search(r"^    (\{\"error\".*?\}\})\n\n", PAGE, re.DOTALL | re.MULTILINE)
    assert text is not None
    shown = {**json.loads(text[1]), "trace_id": "0" * 32}
    pointer = "#/components/schemas/LimitErrorResponse"
    assert Contract.published().errors_of(pointer, shown) == []


def test_the_limits_that_are_shown_are_those_of_the_contract() -> None:
    """The example of `GET /v1/limits`, its dots left out."""
    text = re.search(r"^    (\{\"organization_id\".*?\]\})\n\n", PAGE, re.DOTALL | re.MULTILINE)
    assert text is not None
    shown = json.loads(text[1].replace(", …", ""))
    assert Contract.published().errors_of("#/components/schemas/Limits", shown) == []
