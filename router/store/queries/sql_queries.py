"""Conditions and positions of the queries of the record store."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, Table, select, tuple_

from router.store.failures import BadQuery, RecordKind
from router.store.tables.rows import storable
from router.store.tables.sql_tables import audit, usage, usage_documents

Keyset = tuple[int, int]
"""A position in the order of time: microseconds since the epoch, and the row's id."""
_KEYSET: Final = struct.Struct(">qq")

MICROS_PER_S: Final = 1_000_000
_FARTHEST_US: Final = 9e18
"""Later than every timestamp that can be written, and still a number for every database."""
TABLES: Final[Mapping[RecordKind, Table]] = {"usage": usage, "audit": audit}
FILTERS: Final[Mapping[str, ColumnElement[Any]]] = {
    "model": usage.c.model,
    "key": usage.c.api_key_id,
    "backend": usage.c.backend_id,
    "outcome": usage.c.outcome,
}
AUDIT_FILTERS: Final[Mapping[str, ColumnElement[Any]]] = {
    "action": audit.c.action,
    "model": audit.c.model,
    "key": audit.c.api_key_id,
    "request_id": audit.c.request_id,
    "actor": audit.c.actor,
    "entity_type": audit.c.entity_type,
    "entity_id": audit.c.entity_id,
}


def micros(seconds: float) -> int:
    """Seconds since the epoch as they are stored: microseconds, within what a database can hold."""
    return round(max(-_FARTHEST_US, min(seconds * MICROS_PER_S, _FARTHEST_US)))


def in_period(
    organization_id: str | None, from_s: float | None, to_s: float | None, table: Table = usage
) -> list[ColumnElement[bool]]:
    """Of one organization or all, from ``from_s`` on and before ``to_s``."""
    conditions = []
    if organization_id is not None:
        conditions.append(table.c.organization_id == storable(organization_id))
    if from_s is not None:
        conditions.append(table.c.timestamp_us >= micros(from_s))
    if to_s is not None:
        conditions.append(table.c.timestamp_us < micros(to_s))
    return conditions


def stored_up_to(row_id: int | None, table: Table = usage) -> list[ColumnElement[bool]]:
    """Stored no later than a row; no condition without one."""
    return [] if row_id is None else [table.c.id <= row_id]


def matching(
    filters: Mapping[str, str] | None, columns: Mapping[str, ColumnElement[Any]]
) -> list[ColumnElement[bool]]:
    """One condition for each filter; raises :class:`BadQuery` for one that does not exist."""
    conditions = []
    for name, value in (filters or {}).items():
        if name not in columns:
            raise BadQuery(name, f"not one of {', '.join(columns)}")
        conditions.append(columns[name] == storable(value))
    return conditions


def select_documents(
    kind: RecordKind,
    organization_id: str | None,
    from_s: float | None = None,
    to_s: float | None = None,
    filters: Mapping[str, str] | None = None,
) -> Select[Any]:
    """Time, row id and JSON of records of a kind, in no order; raises :class:`BadQuery`."""
    table = TABLES[kind]
    if kind == "audit":
        chosen, columns = select(table.c.timestamp_us, table.c.id, table.c.document), AUDIT_FILTERS
    else:
        documents, columns = usage_documents, FILTERS
        chosen = select(table.c.timestamp_us, table.c.id, documents.c.document).join(
            documents, documents.c.id == table.c.id
        )
    return chosen.where(
        *in_period(organization_id, from_s, to_s, table), *matching(filters, columns)
    )


def older_than(cursor: str) -> ColumnElement[bool]:
    """What comes after the page that ended at ``cursor``, newest first; raises ``BadQuery``."""
    try:
        packed = base64.b64decode(cursor, altchars=b"-_", validate=True)
        keyset = _KEYSET.unpack(packed)
    except (binascii.Error, ValueError, struct.error):
        raise BadQuery("cursor", "not one that this API gave out") from None
    return tuple_(audit.c.timestamp_us, audit.c.id) < keyset


def cursor_after(keyset: Keyset) -> str:
    """Where the next page begins."""
    return base64.urlsafe_b64encode(_KEYSET.pack(*keyset)).decode()


def newer_than(table: Table, keyset: Keyset) -> ColumnElement[bool]:
    """What comes behind a position in the order of time."""
    return tuple_(table.c.timestamp_us, table.c.id) > keyset
