"""The JSON Schemas (draft 2020-12) of usage records and audit events, for their consumers."""

from __future__ import annotations

import copy
from typing import Any, Final, get_args

from router.call import OUTCOMES, LimitState, UsageSource
from router.records.record_types import AUDIT_ACTIONS, DECISION_REASONS, SCHEMA_VERSION

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_INT64: Final = 2**63 - 1

_ID: Final = {"type": "string", "minLength": 1}
_OPTIONAL_TEXT: Final = {"type": ["string", "null"]}
_COUNT: Final = {"type": "integer", "minimum": 0, "maximum": _INT64}
_DURATION: Final = {"type": "number", "minimum": 0}
_STATUS: Final = {"type": "integer", "minimum": 0, "maximum": 599}
_HASH: Final = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_TIMESTAMP: Final = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$",
}
_VERSION: Final = {"const": SCHEMA_VERSION}

_ATTEMPT: Final = {
    "type": "object",
    "properties": {
        "attempt": {"type": "integer", "minimum": 1, "description": "From 1."},
        "backend_id": _ID,
        "status": {**_STATUS, "type": ["integer", "null"]},
        "error": _OPTIONAL_TEXT,
        "latency_ms": _DURATION,
        "billed": {
            "type": "boolean",
            "description": "The tokens and the cost of the record were spent here.",
        },
    },
    "required": ["attempt", "backend_id", "status", "error", "latency_ms", "billed"],
    "additionalProperties": False,
}

_USAGE: Final[dict[str, Any]] = {
    "schema_version": _VERSION,
    "record_id": {
        "type": "string",
        "format": "uuid",
        "description": "Equal ids are the same record, delivered again.",
    },
    "request_id": _ID,
    "timestamp": {**_TIMESTAMP, "description": "When the call began."},
    "organization_id": _OPTIONAL_TEXT,
    "api_key_id": {**_OPTIONAL_TEXT, "description": "The key's id, never the key."},
    "endpoint": _ID,
    "operation": _OPTIONAL_TEXT,
    "model": {**_OPTIONAL_TEXT, "description": "The canonical id."},
    "model_requested": {**_OPTIONAL_TEXT, "description": "What the client wrote."},
    "backend_id": {**_OPTIONAL_TEXT, "description": "The backend that served the call."},
    "stream": {"type": "boolean"},
    "status": {**_STATUS, "description": "The HTTP status; 0 when no answer was begun."},
    "outcome": {"enum": list(OUTCOMES)},
    "limit_state": {"enum": list(get_args(LimitState))},
    "decision_reason": {"enum": [*DECISION_REASONS, None]},
    "usage_source": {
        "enum": list(get_args(UsageSource)),
        "description": "Whether the tokens were reported by the backend, estimated, or not known.",
    },
    "tokens_input": _COUNT,
    "tokens_output": _COUNT,
    "tokens_cached": {**_COUNT, "description": "The part of the input billed as cached."},
    "cost_nanos": {
        "type": ["integer", "null"],
        "minimum": -_INT64,
        "maximum": _INT64,
        "description": "Nano-USD; null when the model has no price or nothing was delivered.",
    },
    "cost_usd": {
        "type": ["string", "null"],
        "pattern": r"^-?\d+\.\d{2,9}$",
        "description": "The same as a decimal.",
    },
    "latency_ms": {
        **_DURATION,
        "description": "From the request's head to the moment when the record was made.",
    },
    "bytes_sent": _COUNT,
    "attempts": {"type": "array", "items": _ATTEMPT},
    "retry_count": _COUNT,
    "trace_id": _OPTIONAL_TEXT,
    "span_id": _OPTIONAL_TEXT,
    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    "degraded": {
        "const": True,
        "description": "The full record could not be built; only the least is here.",
    },
}
_DEGRADED: Final = (
    "schema_version",
    "record_id",
    "request_id",
    "timestamp",
    "organization_id",
    "api_key_id",
    "endpoint",
    "status",
    "degraded",
)

_AUDIT: Final[dict[str, Any]] = {
    "schema_version": _VERSION,
    "event_id": {
        "type": "string",
        "format": "uuid",
        "description": "Equal ids are the same event, delivered again.",
    },
    "action": {"enum": list(AUDIT_ACTIONS)},
    "actor": {**_ID, "description": "Who did it: a key id, an operator, the router itself."},
    "entity_type": {**_ID, "description": "What it was done to: request, api_key, document, …"},
    "entity_id": {"type": "string"},
    "timestamp": _TIMESTAMP,
    "organization_id": _OPTIONAL_TEXT,
    "reason": _OPTIONAL_TEXT,
    "request_id": _OPTIONAL_TEXT,
    "context": {
        "type": "object",
        "description": "Facts of the decision, such as the limit, the usage and the tokens.",
        "properties": {"api_key_id": _OPTIONAL_TEXT, "model": _OPTIONAL_TEXT},
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
    },
    "before": {"description": "The entity before the change, without secrets."},
    "after": {"description": "The entity after the change, without secrets."},
    "trace_id": _OPTIONAL_TEXT,
    "writer_id": {"type": "string", "pattern": "^[a-z0-9-]{1,64}$"},
    "sequence": {"type": "integer", "minimum": 1, "maximum": _INT64},
    "previous_hash": _HASH,
    "hash": {
        **_HASH,
        "description": "SHA-256 over the 32 bytes of previous_hash and the event without this "
        "field, names sorted, no spaces.",
    },
}


def usage_record_schema() -> dict[str, Any]:
    """The schema of what ``encode_usage`` and ``degraded_usage`` write."""
    full = [name for name in _USAGE if name != "degraded"]
    return copy.deepcopy(
        {
            "$schema": _DRAFT,
            "title": "UsageRecord",
            "description": "One client call of an API Router.",
            "type": "object",
            "properties": _USAGE,
            "additionalProperties": False,
            "if": {"required": ["degraded"]},
            "then": {"required": list(_DEGRADED), "maxProperties": len(_DEGRADED)},
            "else": {"required": full},
        }
    )


def audit_event_schema() -> dict[str, Any]:
    """The schema of what ``AuditChain.link`` writes."""
    return copy.deepcopy(
        {
            "$schema": _DRAFT,
            "title": "AuditEvent",
            "description": "One decision or change, chained to the one before it.",
            "type": "object",
            "properties": _AUDIT,
            "required": list(_AUDIT),
            "additionalProperties": False,
        }
    )
