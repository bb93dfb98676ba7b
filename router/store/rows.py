"""Decoded records as rows: what stands in columns, and what can stand there at all.

The fields of a row are the columns of its table, in order, with the record's JSON as ``document``.
A row is made for every record there is, so the making is kept short.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from router.records.audit_chain import encode_event
from router.records.record_types import parse_timestamp_us

_INT64: Final = 2**63 - 1
_INT32: Final = 2**31 - 1
_SHORT: Final = 128
"""A text of so many characters fits, whatever they are."""
_LONGEST_BYTES: Final = 512
"""PostgreSQL indexes no more than 2 704 bytes a row; up to three texts share an index."""


class UsageRow(NamedTuple):
    """A usage record. A degraded one has no figures: they are unknown, not 0."""

    record_id: str
    request_id: str
    timestamp_us: int
    organization_id: str | None
    api_key_id: str | None
    model: str | None
    backend_id: str | None
    status: int
    outcome: str | None
    limit_state: str | None
    decision_reason: str | None
    usage_source: str | None
    tokens_input: int | None
    tokens_output: int | None
    tokens_cached: int | None
    cost_nanos: int | None
    latency_us: int | None
    retry_count: int | None
    document: str


class AuditRow(NamedTuple):
    """An audit event; its document is the line that its hash covers."""

    event_id: str
    writer_id: str
    sequence: int
    timestamp_us: int
    action: str
    actor: str
    entity_type: str
    entity_id: str
    organization_id: str | None
    request_id: str | None
    api_key_id: str | None
    model: str | None
    document: str


Fields = Mapping[str, Any]


def usage_row(record: Fields) -> UsageRow:
    """A usage record as a row; raises ``ValueError``, ``KeyError`` or ``TypeError``."""
    latency_ms = record.get("latency_ms")
    return UsageRow(
        _id(record, "record_id"),
        _required(record, "request_id"),
        _timestamp(record),
        _text(record, "organization_id"),
        _text(record, "api_key_id"),
        _text(record, "model"),
        _text(record, "backend_id"),
        _number(record, "status", _INT32) or 0,
        _text(record, "outcome"),
        _text(record, "limit_state"),
        _text(record, "decision_reason"),
        _text(record, "usage_source"),
        _number(record, "tokens_input"),
        _number(record, "tokens_output"),
        _number(record, "tokens_cached"),
        _number(record, "cost_nanos"),
        None if latency_ms is None else _micros(latency_ms),
        _number(record, "retry_count"),
        orjson.dumps(record).decode(),
    )


def audit_row(event: Fields) -> AuditRow:
    """An audit event as a row; raises like :func:`usage_row`."""
    context = event.get("context") or {}
    key_id = _text(context, "api_key_id")
    if key_id is None and event.get("entity_type") == "api_key":
        key_id = _text(event, "entity_id")
    sequence = _number(event, "sequence")
    if sequence is None or sequence < 1:
        raise ValueError("sequence: not a place in a chain")
    if not isinstance(event["hash"], str) or not isinstance(event["previous_hash"], str):
        raise ValueError("hash: not a text")
    return AuditRow(
        _id(event, "event_id"),
        _id(event, "writer_id"),
        sequence,
        _timestamp(event),
        _required(event, "action"),
        _required(event, "actor"),
        _required(event, "entity_type"),
        _text(event, "entity_id") or "",
        _text(event, "organization_id"),
        _text(event, "request_id"),
        key_id,
        _text(context, "model"),
        encode_event(event).decode(),
    )


def storable(value: str) -> str:
    """The text as it stands in a column, and as it is looked for there."""
    if len(value) <= _SHORT and value.isascii() and "\0" not in value:
        return value
    # PostgreSQL stores no NUL, and nobody a half of a surrogate pair; the document keeps the NUL.
    cleaned = value.replace("\0", "\ufffd").encode("utf-8", "replace")
    if len(cleaned) <= _LONGEST_BYTES:
        return cleaned.decode()
    digest = hashlib.sha256(cleaned).hexdigest()
    return f"{cleaned[:_SHORT].decode('utf-8', 'ignore')}…{digest}"


def _id(record: Fields, name: str) -> str:
    """An id, which is never shortened: two of them must not become one."""
    value = _required(record, name)
    if value != record[name]:
        raise ValueError(f"{name}: not an id")
    return value


def _required(record: Fields, name: str) -> str:
    found = _text(record, name)
    if not found:
        raise ValueError(f"{name}: missing or empty")
    return found


def _text(record: Fields, name: str) -> str | None:
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name}: not a text")
    return storable(value)


def _number(record: Fields, name: str, limit: int = _INT64) -> int | None:
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or not -limit <= value <= limit:
        raise ValueError(f"{name}: not a whole number within ±{limit}")
    return value


def _timestamp(record: Fields) -> int:
    value = record.get("timestamp")
    if not isinstance(value, str):
        raise ValueError("timestamp: not a text")
    return parse_timestamp_us(value)


def _micros(latency_ms: object) -> int:
    if not isinstance(latency_ms, (int, float)) or not 0 <= latency_ms < _INT32 * 1000:
        raise ValueError("latency_ms: not a duration")
    return round(latency_ms * 1000)
