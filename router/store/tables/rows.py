"""Decoded records as rows: which columns a table has, and what a record puts into each of them.

A row has the values of the columns in order, and last the record's JSON as ``document``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

import orjson

from router.call import INPUT_CLASSES, OUTPUT_CLASSES, UNITS, UsageClass
from router.records.audit_chain import encode_event
from router.records.record_types import parse_timestamp_us

Fields = Mapping[str, Any]
Row = tuple[Any, ...]

_INT64: Final = 2**63 - 1
_INT32: Final = 2**31 - 1
_SHORT: Final = 128
"""A text of so many characters fits, whatever they are."""
_LONGEST_BYTES: Final = 512
"""PostgreSQL indexes no more than 2 704 bytes a row; up to three texts share an index."""


SERVED: Final = ("completed", "client_aborted", "upstream_aborted", "timeout", "interrupted")
"""Outcomes of calls that count against a quota of requests. Kept sums have counted by it: another
outcome needs a migration that counts again."""


def storable(value: str) -> str:
    """The text as it is stored in a column, and as queries compare it."""
    if len(value) <= _SHORT and value.isascii() and "\0" not in value:
        return value
    # PostgreSQL stores no NUL, and no database half a surrogate pair; the document keeps the NUL.
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


def _integer(record: Fields, name: str, limit: int = _INT64) -> int | None:
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or not -limit <= value <= limit:
        raise ValueError(f"{name}: not a whole number within ±{limit}")
    return value


def _status(record: Fields, name: str) -> int:
    return _integer(record, name, _INT32) or 0


def _timestamp_us(record: Fields, _name: str) -> int:
    value = record.get("timestamp")
    if not isinstance(value, str):
        raise ValueError("timestamp: not a text")
    return parse_timestamp_us(value)


def _latency_us(record: Fields, _name: str) -> int | None:
    latency_ms = record.get("latency_ms")
    if latency_ms is None:
        return None
    if not isinstance(latency_ms, (int, float)) or not 0 <= latency_ms < _INT32 * 1000:
        raise ValueError("latency_ms: not a duration")
    return round(latency_ms * 1000)


def _class(record: Fields, name: str) -> int | None:
    classes = record.get("usage_classes")
    if classes is None:
        return None
    if not isinstance(classes, dict):
        raise ValueError("usage_classes: not an object")
    return _integer(classes, CLASS_COLUMNS[name])


def _sequence(event: Fields, name: str) -> int:
    sequence = _integer(event, name)
    if sequence is None or sequence < 1:
        raise ValueError("sequence: not a position in a chain")
    return sequence


def _entity_id(event: Fields, name: str) -> str:
    return _text(event, name) or ""


def _of_context(event: Fields, name: str) -> str | None:
    return _text(event.get("context") or {}, name)


def _key_of_event(event: Fields, name: str) -> str | None:
    key_id = _of_context(event, name)
    if key_id is None and event.get("entity_type") == "api_key":
        return _text(event, "entity_id")
    return key_id


class StoredField(NamedTuple):
    """A column: what a record, given the column's name, puts there, and its type in SQL."""

    read: Callable[[Fields, str], Any]
    type: Literal["text", "int64", "int32"] = "text"
    nullable: bool = True
    unique: bool = False


_OPTIONAL: Final = StoredField(_text)
_FIGURE: Final = StoredField(_integer, "int64")
_NEEDED: Final = StoredField(_required, nullable=False)
_TIMESTAMP: Final = StoredField(_timestamp_us, "int64", nullable=False)
_KEY: Final = StoredField(_id, nullable=False, unique=True)

CLASS_COLUMNS: Final[Mapping[str, UsageClass]] = {
    **{
        f"tokens_{name}": name
        for name in (*INPUT_CLASSES, *OUTPUT_CLASSES)
        if name not in ("input", "cache_read", "output")
    },
    **{name: name for name in UNITS if name != "requests"},
}
"""Columns of what was used, and the class that each holds. Those that are missing follow from the
totals: ``tokens_cached`` is ``cache_read``, plain input and output are what is left."""

USAGE_COLUMNS: Final[Mapping[str, StoredField]] = {
    "record_id": _KEY,
    "request_id": _NEEDED,
    "timestamp_us": _TIMESTAMP,
    "organization_id": _OPTIONAL,
    "api_key_id": _OPTIONAL,
    "model": _OPTIONAL,
    "backend_id": _OPTIONAL,
    "status": StoredField(_status, "int32", nullable=False),
    "outcome": _OPTIONAL,
    "limit_state": _OPTIONAL,
    "decision_reason": _OPTIONAL,
    "usage_source": _OPTIONAL,
    "tokens_input": _FIGURE,
    "tokens_output": _FIGURE,
    "tokens_cached": _FIGURE,
    "cost_nanos": _FIGURE,
    "latency_us": StoredField(_latency_us, "int64"),
    "retry_count": _FIGURE,
    **dict.fromkeys(CLASS_COLUMNS, StoredField(_class, "int64")),
}
"""A degraded record has no figures: they are unknown, not 0."""

AUDIT_COLUMNS: Final[Mapping[str, StoredField]] = {
    "event_id": _KEY,
    "writer_id": StoredField(_id, nullable=False),
    "sequence": StoredField(_sequence, "int64", nullable=False),
    "timestamp_us": _TIMESTAMP,
    "action": _NEEDED,
    "actor": _NEEDED,
    "entity_type": _NEEDED,
    "entity_id": StoredField(_entity_id, nullable=False),
    "organization_id": _OPTIONAL,
    "request_id": _OPTIONAL,
    "api_key_id": StoredField(_key_of_event),
    "model": StoredField(_of_context),
}
_USAGE_READERS: Final = tuple((name, column.read) for name, column in USAGE_COLUMNS.items())
_AUDIT_READERS: Final = tuple((name, column.read) for name, column in AUDIT_COLUMNS.items())


def usage_row(record: Fields) -> Row:
    """A usage record as a row; raises ``ValueError``, ``KeyError`` or ``TypeError``."""
    values = [read(record, name) for name, read in _USAGE_READERS]
    return (*values, orjson.dumps(record).decode())


def audit_row(event: Fields) -> Row:
    """An audit event as a row, whose document is the line that its hash covers.

    Raises like :func:`usage_row`.
    """
    if not isinstance(event["hash"], str) or not isinstance(event["previous_hash"], str):
        raise ValueError("hash: not a text")
    values = [read(event, name) for name, read in _AUDIT_READERS]
    return (*values, encode_event(event).decode())
