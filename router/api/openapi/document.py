"""The published contracts: OpenAPI documents, and JSON Schemas of configuration and records.

Generated, committed in ``contracts/`` and compared with the code by ``routerctl contracts check``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema, fields

from router.api.openapi import answer_schemas as reply_schemas
from router.api.openapi import record_operations as contract_records
from router.api.openapi import request_schemas as schemas
from router.api.openapi.error_answers import error_components
from router.api.openapi.operations import (
    HEADERS,
    PARAMETERS,
    SECURITY_SCHEMES,
    TAGS,
    paths,
    servers,
)
from router.api.openapi.schema_fields import OneOf
from router.config.schema.json_schema import document_json_schema
from router.limits.remote import contract as budget_contract
from router.records.record_schemas import audit_event_schema, usage_record_schema

API_VERSION: Final = "1.0.0"
"""Version of the contract, not of the router: a release alone changes nothing in ``contracts/``."""

OPENAPI_FILE: Final = "openapi.json"
DOCUMENT_FILE: Final = "document.schema.json"
USAGE_FILE: Final = "usage-record.schema.json"
AUDIT_FILE: Final = "audit-event.schema.json"
BUDGET_FILE: Final = "budget-service.openapi.json"

_MOST_LINES: Final = 20
_LONGEST_VALUE: Final = 60
_SCHEMAS: Final[tuple[type[Schema], ...]] = (
    schemas.InferenceRequest,
    schemas.ChatCompletionRequest,
    schemas.CompletionRequest,
    schemas.EmbeddingRequest,
    reply_schemas.InferenceReply,
    reply_schemas.InferenceDelta,
    reply_schemas.InferenceEnd,
    reply_schemas.Error,
    reply_schemas.LimitErrorResponse,
    reply_schemas.Limits,
    reply_schemas.OpenAIError,
    reply_schemas.ChatCompletion,
    reply_schemas.ChatCompletionChunk,
    reply_schemas.Completion,
    reply_schemas.Embeddings,
    reply_schemas.ModelCard,
    reply_schemas.ModelList,
    reply_schemas.Health,
    reply_schemas.Readiness,
)
_DESCRIPTION: Final = """\
Send an API key as `X-API-Key` or as a bearer token.

Requests and errors come in two dialects. `/v1/inference`, `/v1/limits`, `/v1/audit/…`,
`/v1/usage`, `/v1/status/…` and everything outside `/v1/` speak the native one, `{"error", "code",
"trace_id", "details"}`; all other paths below `/v1/` speak OpenAI's, `{"error": {"message", "type",
"param", "code"}}`. A limit that refuses tells its facts besides, see `LimitErrorResponse`. A path
that is not listed here is answered with 404, a method that is not listed with 405 and `Allow`, a
path with dot segments, empty segments, encoded slashes or the like with 400, each in the dialect of
its path.

In the OpenAI dialect, fields that are not listed pass through untouched, both ways.

What cannot be read as an HTTP request at all is refused by the server in front with 400, 414, 417
or 431, the native error body, the code `MALFORMED_REQUEST` and an empty `trace_id`.
"""


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    plugin = MarshmallowPlugin(schema_name_resolver=lambda schema: _class(schema).__name__)
    spec = APISpec("API Router", API_VERSION, openapi_version="3.1.0", plugins=[plugin])
    assert plugin.converter is not None
    for function in (_one_of, _own_words):
        plugin.converter.add_attribute_function(function)  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        spec.components.schema(schema.__name__, schema=schema)
    components = spec.to_dict()["components"]["schemas"]
    for schema in [key[0] for key in plugin.converter.refs]:
        components[schema.__name__] |= _of_the_whole(schema)
    components |= contract_records.schemas()
    return {
        "openapi": "3.1.0",
        "info": {"title": "API Router", "version": API_VERSION, "description": _DESCRIPTION},
        "servers": servers(),
        "tags": list(TAGS),
        "paths": paths(),
        "components": {
            "schemas": _ordered(components),
            "headers": dict(HEADERS),
            "parameters": dict(PARAMETERS),
            "responses": error_components(),
            "securitySchemes": dict(SECURITY_SCHEMES),
        },
    }


def files() -> dict[str, str]:
    """File name → contents of everything in ``contracts/``."""
    documents = {
        OPENAPI_FILE: openapi(),
        DOCUMENT_FILE: _ordered(document_json_schema()),
        USAGE_FILE: _ordered(usage_record_schema()),
        AUDIT_FILE: _ordered(audit_event_schema()),
        BUDGET_FILE: _ordered(budget_contract.openapi()),
    }
    return {
        name: json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        for name, document in documents.items()
    }


def write(directory: Path) -> list[Path]:
    """Write the contracts; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in files().items():
        path = directory / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def check(directory: Path) -> list[str]:
    """One line for each difference between the files and the code; empty when there is none."""
    return [line for name, text in files().items() for line in _drift(directory / name, text)]


def _drift(path: Path, expected: str) -> Iterator[str]:
    try:
        found = path.read_text(encoding="utf-8")
        if found == expected:
            return
        differences = list(_differences(json.loads(found), json.loads(expected)))
    except FileNotFoundError:
        yield f"{path} is missing: run 'routerctl contracts write'"
        return
    except (OSError, ValueError) as error:
        yield f"{path} cannot be read: {error}"
        return
    yield f"{path} differs from the code: run 'routerctl contracts write'"
    if not differences:
        yield f"{path}: only in its layout"
    for line in differences[:_MOST_LINES]:
        yield f"{path}: {line}"
    if len(differences) > _MOST_LINES:
        yield f"{path}: and {len(differences) - _MOST_LINES} more differences"


def _differences(found: Any, expected: Any, pointer: str = "") -> Iterator[str]:
    """Where two JSON values differ, by JSON Pointer (RFC 6901)."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in [*found, *(name for name in expected if name not in found)]:
            inner = f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
            if name not in expected:
                yield f"{inner} is in the file only"
            elif name not in found:
                yield f"{inner} is in the code only"
            else:
                yield from _differences(found[name], expected[name], inner)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from _differences(one, other, f"{pointer}/{index}")
    elif found != expected:
        yield f"{pointer or '/'} is {_shown(found)} in the file, {_shown(expected)} in the code"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"


def _class(schema: Any) -> type[Schema]:
    return schema if isinstance(schema, type) else type(schema)


def _one_of(self: Any, field: fields.Field[Any], **_: Any) -> dict[str, Any]:
    """What apispec does not know: a field that has several shapes."""
    if not isinstance(field, OneOf):
        return {}
    return {"oneOf": [self.field2property(choice) for choice in field.choices]}


def _own_words(_self: Any, field: fields.Field[Any], **_: Any) -> Mapping[str, Any]:
    """What a field says of itself in JSON Schema."""
    words: Mapping[str, Any] = getattr(field, "contract", {})
    return words


def _of_the_whole(schema: type[Schema]) -> dict[str, Any]:
    """What a schema says of the object as a whole: what it is for, and rules between fields."""
    words = " ".join((vars(schema).get("__doc__") or "").split()).replace("``", "`")
    return {**({"description": words} if words else {}), **getattr(schema, "contract", {})}


def _ordered(node: Any, *, is_named: bool = False) -> Any:
    """The same in an order that depends on nothing but the contents.

    Properties keep the order in which a schema declares them; keywords are sorted.
    """
    if isinstance(node, dict):
        names = list(node) if is_named else sorted(node)
        return {name: _ordered(node[name], is_named=name == "properties") for name in names}
    if isinstance(node, list):
        return [_ordered(item) for item in node]
    return node
