"""The JSON Schema of the document, for editors and for programs that generate documents."""

from __future__ import annotations

from typing import Any, Final

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin

from router.config.schema.limits_schema import MAX_BUDGET_USD
from router.config.schema.parts import DocumentSchema

_COMPONENTS: Final = "#/components/schemas/"
_RATE_NEEDS_BURST: Final[dict[str, Any]] = {
    "if": {"properties": {"requests_per_second": {"type": "number"}}},
    "then": {"required": ["burst"]},
}
_AMOUNTS_BY_UNIT: Final[dict[str, Any]] = {
    "if": {"properties": {"unit": {"const": "usd"}}},
    "then": {"properties": {"limit": {"maximum": MAX_BUDGET_USD}}},
    "else": {"properties": {"limit": {"type": ["integer", "null"]}}},
}


def document_json_schema() -> dict[str, Any]:
    """The document's schema, JSON Schema draft 2020-12, one definition for each part.

    It describes shapes; that references lead somewhere is for ``routerctl config validate`` to say.
    """
    plugin = MarshmallowPlugin(schema_name_resolver=_name)
    spec = APISpec("document", "1", openapi_version="3.1.0", plugins=[plugin])
    spec.components.schema("Document", schema=DocumentSchema)
    definitions = _localized(spec.to_dict()["components"]["schemas"])
    definitions["Key"]["oneOf"] = [{"required": ["hash"]}, {"required": ["demo_secret"]}]
    definitions["RateLimit"] |= _RATE_NEEDS_BURST
    definitions["Budget"] |= _AMOUNTS_BY_UNIT
    definitions["PriceTier"] |= {"minProperties": 2}
    document = definitions.pop("Document")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "API Router document",
        "description": "Organizations, keys, models, backends and policies of an API Router.",
        **document,
        "$defs": dict(sorted(definitions.items())),
    }


def _name(schema: Any) -> str:
    owner = schema if isinstance(schema, type) else type(schema)
    return owner.__name__.removesuffix("Schema")


def _localized(node: Any) -> Any:
    """The same with every reference pointing into ``$defs``."""
    if isinstance(node, dict):
        return {
            name: _target(inner) if name == "$ref" else _localized(inner)
            for name, inner in node.items()
        }
    if isinstance(node, list):
        return [_localized(inner) for inner in node]
    return node


def _target(reference: str) -> str:
    return "#/$defs/" + reference.removeprefix(_COMPONENTS)
