"""The part of the contract that is about records: what an organization can ask about its calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from router.api.openapi.error_answers import error_responses
from router.records.record_schemas import audit_event_schema, usage_record_schema
from router.records.record_types import AUDIT_ACTIONS
from router.store.record_store import HISTORY_BYTES, HISTORY_LENGTH
from router.store.sql_queries import GROUPS

MAX_PAGE: Final = 500
DEFAULT_PAGE: Final = 100
FORMATS: Final = ("json", "csv")

_CURSOR: Final = "^[A-Za-z0-9_=-]+$"
_COUNT: Final = {"type": "integer", "minimum": 0}
_LATENCY: Final = {"type": ["number", "null"], "minimum": 0}
_FIGURES: Final[Mapping[str, Any]] = {
    "requests": {**_COUNT, "description": "Calls, one for each request of a client."},
    "errors": {
        **_COUNT,
        "description": "Calls that the backends failed: outcome upstream_error, upstream_aborted"
        " or timeout.",
    },
    "rejected": {**_COUNT, "description": "Calls that the router or a backend refused."},
    "client_aborted": {**_COUNT, "description": "Calls whose client left before the end."},
    "estimated": {**_COUNT, "description": "Calls whose tokens no backend reported."},
    "degraded": {
        **_COUNT,
        "description": "Calls of which only the least is known; they are in no sum.",
    },
    "retries": {**_COUNT, "description": "Tries at backends beyond the first of each call."},
    "tokens_input": _COUNT,
    "tokens_output": _COUNT,
    "tokens_cached": {**_COUNT, "description": "The part of the input billed as cached."},
    "cost_nanos": {"type": "integer", "description": "Nano-USD, exact."},
    "cost_usd": {
        "type": "string",
        "pattern": r"^-?[0-9]+\.[0-9]{2,9}$",
        "description": "The same as a decimal.",
    },
    "latency_ms_p50": {**_LATENCY, "description": "Percentiles are of calls not rejected."},
    "latency_ms_p95": _LATENCY,
    "latency_ms_p99": _LATENCY,
}
_GROUP_VALUE: Final = {"type": ["string", "null"]}


def schemas() -> dict[str, Any]:
    """Component name → JSON Schema of records and of the answers that hold them."""
    return {
        "UsageRecord": _component(usage_record_schema()),
        "AuditEvent": _component(audit_event_schema()),
        "RequestStory": _object(
            "All that is recorded of one call. Records and events are newest first.",
            {
                "request_id": {"type": "string"},
                "truncated": {
                    "type": "boolean",
                    "description": "The id was used so often that older records or events are"
                    f" left out: of each there are at most {HISTORY_LENGTH}, and at most"
                    f" {HISTORY_BYTES // 2**20} MiB.",
                },
                "records": _list("UsageRecord"),
                "events": _list("AuditEvent"),
            },
        ),
        "AuditPage": _object(
            "Audit events, newest first.",
            {
                "events": _list("AuditEvent"),
                "next_cursor": {
                    "type": ["string", "null"],
                    "description": "Ask again with it for what is older; null at the end.",
                },
            },
        ),
        "UsageReport": _object(
            "What calls come to, one row for each group.",
            {
                "group_by": {"type": "array", "items": {"enum": list(GROUPS)}},
                "data": {"type": "array", "items": _reference("UsageTotals")},
            },
        ),
        "UsageTotals": {
            "type": "object",
            "description": "The values of the group and its figures. Days and hours are in UTC.",
            "properties": {**dict.fromkeys(GROUPS, _GROUP_VALUE), **_FIGURES},
            "required": list(_FIGURES),
            "additionalProperties": False,
        },
    }


def paths(
    security: Sequence[Mapping[str, Any]],
    signed: Sequence[Mapping[str, str]],
    answer: Callable[[str, Mapping[str, Any]], Mapping[str, Any]],
) -> dict[str, Any]:
    """Path → path item; the arguments are what all operations that need a key have in common."""

    def get(name: str, summary: str, group: str, own: list[Any], content: Any) -> dict[str, Any]:
        return {
            "get": {
                "operationId": name,
                "summary": summary,
                "tags": ["records"],
                "security": security,
                "parameters": [*signed, *own],
                "responses": {"200": answer("Found.", content), **error_responses(group)},
            }
        }

    csv_text = {"text/csv": {"schema": {"type": "string"}}}
    return {
        "/v1/audit/requests/{request_id}": {
            "parameters": [_REQUEST_ID],
            **get(
                "getRequestStory", "The full story of one call of the caller's organization.",
                "RequestStory", [], _json("RequestStory"),
            ),
        },
        "/v1/audit/requests": get(
            "listAuditEvents", "Audit events of the caller's organization, newest first.",
            "Records", [*_PERIOD, _ACTION, *_named("model", "key"), *_PAGE], _json("AuditPage"),
        ),
        "/v1/usage": get(
            "getUsage", "What the calls of the caller's organization come to.",
            "Records", [_GROUP_BY, *_PERIOD, *_named("model", "key", "backend"), _FORMAT],
            {**_json("UsageReport"), **csv_text},
        ),
    }  # fmt: skip


def _query(name: str, text: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": text,
        "schema": {"type": "string", **schema},
    }


_REQUEST_ID: Final = {
    "name": "request_id",
    "in": "path",
    "required": True,
    "description": "What `X-Request-ID` of the answer said.",
    "schema": {"type": "string", "minLength": 1},
}
_MOMENT: Final = "an RFC 3339 moment, or a date, which begins at 00:00 UTC"
_PERIOD: Final = (
    _query("from", f"From then on: {_MOMENT}."),
    _query("to", f"Before then: {_MOMENT}."),
)
_ACTION: Final = _query("action", "Only events of this kind.", enum=list(AUDIT_ACTIONS))
_PAGE: Final = (
    _query("cursor", "`next_cursor` of the page before.", pattern=_CURSOR),
    {
        **_query("limit", "Events on a page."),
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    },
)
_GROUP_BY: Final = _query(
    "group_by", f"Comma-separated, any of {', '.join(GROUPS)}; without it there is one row."
)
_FORMAT: Final = _query("format", "How the answer is written.", enum=list(FORMATS), default="json")


def _named(*names: str) -> list[dict[str, Any]]:
    return [_query(name, f"Only what concerns the {name} of this id.") for name in names]


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(name)}}


def _list(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _reference(name)}


def _object(text: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": text,
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _component(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of its own as part of the document, which says its draft for all of them."""
    return {name: value for name, value in schema.items() if name not in ("$schema", "title")}
