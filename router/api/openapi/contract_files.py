"""The published contracts: OpenAPI documents, and JSON Schemas of configuration and records.

``openapi.yaml`` beside this file is the API as it is written by hand. It is completed with what the
code says best itself, and committed in ``contracts/``; ``routerctl dev contracts check`` compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from router.api.openapi.error_responses import error_components, error_responses
from router.config.schema.json_schema import document_json_schema
from router.limits.remote import contract as budget_contract
from router.records.record_schemas import audit_event_schema, usage_record_schema

WRITTEN: Final = Path(__file__).with_name("openapi.yaml")

OPENAPI_FILE: Final = "openapi.json"
DOCUMENT_FILE: Final = "document.schema.json"
USAGE_FILE: Final = "usage-record.schema.json"
AUDIT_FILE: Final = "audit-event.schema.json"
BUDGET_FILE: Final = "budget-service.openapi.json"

_MOST_LINES: Final = 20
_LONGEST_VALUE: Final = 60


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document: the written one with the errors and the schemas of records."""
    document: dict[str, Any] = yaml.safe_load(WRITTEN.read_text("utf-8"))
    for item in document["paths"].values():
        for operation in item.values():
            if "x-errors" in operation:
                responses = operation["responses"] | error_responses(operation.pop("x-errors"))
                operation["responses"] = dict(sorted((responses | operation["responses"]).items()))
    components = document["components"]
    components["responses"] = error_components()
    records = {"UsageRecord": usage_record_schema(), "AuditEvent": audit_event_schema()}
    components["schemas"] = _ordered(components["schemas"] | _as_components(records))
    return document


def _as_components(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Without what stands once for the whole document."""
    return {
        name: {word: value for word, value in schema.items() if word not in ("$schema", "title")}
        for name, schema in schemas.items()
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
        yield f"{path} is missing: run 'routerctl dev contracts write'"
        return
    except (OSError, ValueError) as error:
        yield f"{path} cannot be read: {error}"
        return
    yield f"{path} differs from the code: run 'routerctl dev contracts write'"
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
