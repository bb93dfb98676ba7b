"""Decoded records as rows: what stands in columns, and what can stand there at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from router.accounting.audit import encode_event
from router.accounting.records import parse_timestamp_us

_INT64: Final = 2**63 - 1
_INT32: Final = 2**31 - 1

Row = dict[str, Any]
RowOf = Callable[[Mapping[str, Any]], Row]


def usage_row(record: Mapping[str, Any]) -> Row:
    """A usage record as a row, its JSON under ``document``; raises ``ValueError`` or ``KeyError``.

    A degraded record has no figures: they are unknown, not 0.
    """
    latency_ms = record.get("latency_ms")
    return {
        "record_id": _required(record, "record_id"),
        "request_id": _required(record, "request_id"),
        "timestamp_us": _timestamp(record),
        "organization_id": _text(record, "organization_id"),
        "api_key_id": _text(record, "api_key_id"),
        "model": _text(record, "model"),
        "backend_id": _text(record, "backend_id"),
        "status": _number(record, "status", _INT32) or 0,
        "outcome": _text(record, "outcome"),
        "limit_state": _text(record, "limit_state"),
        "decision_reason": _text(record, "decision_reason"),
        "usage_source": _text(record, "usage_source"),
        "tokens_input": _number(record, "tokens_input"),
        "tokens_output": _number(record, "tokens_output"),
        "tokens_cached": _number(record, "tokens_cached"),
        "cost_nanos": _number(record, "cost_nanos"),
        "latency_us": None if latency_ms is None else _micros(latency_ms),
        "retry_count": _number(record, "retry_count"),
        "document": orjson.dumps(record).decode(),
    }


def audit_row(event: Mapping[str, Any]) -> Row:
    """An audit event as a row, the line that its hash covers under ``document``; raises like
    :func:`usage_row`.
    """
    context = event.get("context") or {}
    key_id = _text(context, "api_key_id")
    if key_id is None and event.get("entity_type") == "api_key":
        key_id = _text(event, "entity_id")
    sequence = _number(event, "sequence")
    if sequence is None or sequence < 1:
        raise ValueError("sequence: not a place in a chain")
    if not isinstance(event["hash"], str) or not isinstance(event["previous_hash"], str):
        raise ValueError("hash: not a text")
    return {
        "event_id": _required(event, "event_id"),
        "writer_id": _required(event, "writer_id"),
        "sequence": sequence,
        "timestamp_us": _timestamp(event),
        "action": _required(event, "action"),
        "actor": _required(event, "actor"),
        "entity_type": _required(event, "entity_type"),
        "entity_id": _text(event, "entity_id") or "",
        "organization_id": _text(event, "organization_id"),
        "request_id": _text(event, "request_id"),
        "api_key_id": key_id,
        "model": _text(context, "model"),
        "document": encode_event(event).decode(),
    }


def storable(value: str) -> str:
    """The text as it stands in a column, and as it is looked for there."""
    # PostgreSQL stores no NUL; the document keeps it, as an escape.
    return value.replace("\0", "\ufffd") if "\0" in value else value


def _required(record: Mapping[str, Any], name: str) -> str:
    found = _text(record, name)
    if not found:
        raise ValueError(f"{name}: missing or empty")
    return found


def _text(record: Mapping[str, Any], name: str) -> str | None:
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name}: not a text")
    return storable(value)


def _number(record: Mapping[str, Any], name: str, limit: int = _INT64) -> int | None:
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or not -limit <= value <= limit:
        raise ValueError(f"{name}: not a whole number within ±{limit}")
    return value


def _timestamp(record: Mapping[str, Any]) -> int:
    value = record.get("timestamp")
    if not isinstance(value, str):
        raise ValueError("timestamp: not a text")
    return parse_timestamp_us(value)


def _micros(latency_ms: object) -> int:
    if not isinstance(latency_ms, (int, float)) or not 0 <= latency_ms < _INT32 * 1000:
        raise ValueError("latency_ms: not a duration")
    return round(latency_ms * 1000)
