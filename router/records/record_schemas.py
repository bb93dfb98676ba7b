"""The JSON Schemas (draft 2020-12) of usage records and audit events, for their consumers.

They are derived from the dataclasses in ``record_types``: the type of a field gives its schema,
its annotation the description. Fields that exist only in the JSON are added here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import orjson

from router.call import (
    INPUT_CLASSES,
    OUTCOMES,
    OUTPUT_CLASSES,
    UNITS,
    LimitState,
    Outcome,
    UsageClass,
    UsageSource,
)
from router.records.record_types import (
    AUDIT_ACTIONS,
    DECISION_REASONS,
    SCHEMA_VERSION,
    AttemptRecord,
    AuditAction,
    AuditEvent,
    DecisionReason,
    UsageRecord,
    degraded_usage,
)

Schema = dict[str, Any]

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_INT64: Final = 2**63 - 1

_COUNT: Final = {"type": "integer", "minimum": 0, "maximum": _INT64}
_DURATION: Final = {"type": "number", "minimum": 0}
_OPTIONAL_TEXT: Final = {"type": ["string", "null"]}
_STATUS: Final = {"type": "integer", "minimum": 0, "maximum": 599}
_HASH: Final = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_UUID: Final = {"type": "string", "format": "uuid"}
_ATTEMPT_STATUS: Final = {**_STATUS, "type": ["integer", "null"]}
_BY_TYPE: Final[dict[object, Schema]] = {
    Any: {},
    bool: {"type": "boolean"},
    int: _COUNT,
    int | None: {**_COUNT, "type": ["integer", "null"]},
    float: _DURATION,
    str: {"type": "string", "minLength": 1},
    str | None: _OPTIONAL_TEXT,
    Outcome: {"enum": list(OUTCOMES)},
    LimitState: {"enum": list(get_args(LimitState))},
    DecisionReason | None: {"enum": [*DECISION_REASONS, None]},
    UsageSource: {"enum": list(get_args(UsageSource))},
    AuditAction: {"enum": list(AUDIT_ACTIONS)},
    Mapping[UsageClass, int]: {
        "type": "object",
        "properties": dict.fromkeys((*INPUT_CLASSES, *OUTPUT_CLASSES, *UNITS), _COUNT),
        "additionalProperties": False,
    },
    Mapping[str, str]: {"type": "object", "additionalProperties": {"type": "string"}},
}


_ADDED: Final = frozenset(
    {"usage_classes", "service_tier", "reserved_nanos", "reserved_tokens", "over_reservation"}
)
"""Fields that records of earlier releases lack."""

_COMMON: Final[dict[str, Schema]] = {
    "schema_version": {"const": SCHEMA_VERSION},
    "timestamp": {
        "type": "string",
        "format": "date-time",
        "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$",
    },
}


def usage_record_schema() -> Schema:
    """The schema of what ``encode_usage`` and ``degraded_usage`` write."""
    attempt = _object(
        AttemptRecord,
        {"attempt": {"type": "integer", "minimum": 1}, "status": _ATTEMPT_STATUS},
    )
    least = list(orjson.loads(degraded_usage("", None, "", 0.0, 0)))
    full = _object(
        UsageRecord,
        {
            **_COMMON,
            "record_id": _UUID,
            "status": _STATUS,
            "cost_nanos": {"type": ["integer", "null"], "minimum": -_INT64, "maximum": _INT64},
            "cost_usd": {
                "type": ["string", "null"],
                "pattern": r"^-?\d+\.\d{2,9}$",
                "description": "The same as a decimal.",
            },
            "attempts": {"type": "array", "items": attempt},
        },
    )
    degraded = {
        "const": True,
        "description": "The full record could not be built; only the least is here.",
    }
    return _document(
        "UsageRecord",
        "One client call of an API Router.",
        {
            "type": "object",
            "properties": {**full["properties"], "degraded": degraded},
            "additionalProperties": False,
            "if": {"required": ["degraded"]},
            "then": {"required": least, "maxProperties": len(least)},
            "else": {"required": [name for name in full["required"] if name not in _ADDED]},
        },
    )


def audit_event_schema() -> Schema:
    """The schema of what ``AuditChain.link`` writes."""
    context: Schema = {
        "type": "object",
        "properties": {"api_key_id": _OPTIONAL_TEXT, "model": _OPTIONAL_TEXT},
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
    }
    digest = "SHA-256 over the 32 bytes of previous_hash and the event without this field, names"
    chained: dict[str, Schema] = {
        "writer_id": {"type": "string", "pattern": "^[a-z0-9-]{1,64}$"},
        "sequence": {"type": "integer", "minimum": 1, "maximum": _INT64},
        "previous_hash": _HASH,
        "hash": {**_HASH, "description": f"{digest} sorted, no spaces."},
    }
    return _document(
        "AuditEvent",
        "One decision or change, chained to the one before it.",
        _object(
            AuditEvent,
            {
                **_COMMON,
                "event_id": _UUID,
                "entity_id": {"type": "string"},
                "context": context,
                **chained,
            },
        ),
    )


def _document(title: str, description: str, schema: Schema) -> Schema:
    return copy.deepcopy({"$schema": _DRAFT, "title": title, "description": description, **schema})


def _object(record_type: type, more: dict[str, Schema]) -> Schema:
    """The schema of a dataclass, every field required; ``more`` replaces and adds fields."""
    properties: dict[str, Schema] = {}
    for name, hint in get_type_hints(record_type, include_extras=True).items():
        description = {}
        if get_origin(hint) is Annotated:
            hint, text = get_args(hint)
            description = {"description": text}
        properties[name] = {**(more[name] if name in more else _BY_TYPE[hint]), **description}
    for name in more:
        properties.setdefault(name, more[name])
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
