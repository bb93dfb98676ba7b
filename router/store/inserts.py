"""Records into tables, each once however often it is delivered.

Rows go to the driver as they are: the layers of the database library above it would cost more for
each row than the database itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from sqlalchemy import Connection, Table, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from router.records.audit_chain import ChainTip
from router.store.rows import AuditRow, UsageRow
from router.store.sql_tables import audit, heads, usage, usage_documents, usage_ids
from router.store.store_errors import RecordKind, UnstorableRecord
from router.store.trail import anchored

Row = TypeVar("Row", UsageRow, AuditRow)

_UNLESS_KNOWN: Final = {
    usage.name: "ON CONFLICT (record_id) DO NOTHING",
    audit.name: "ON CONFLICT (event_id) DO NOTHING",
    usage_documents.name: "",
}
_LOOKUP: Final = 500
"""Ids asked for in one statement."""
_REFUSALS: Final = (DataError, IntegrityError)
"""How a database refuses data. A table that is missing is no such refusal."""
_LIMIT_EXCEEDED: Final = "54000"
"""PostgreSQL's word for data that is beyond what it can hold or index."""
_NOT_UNIQUE: Final = "23505"
_USAGE_IDS: Final = "SELECT record_id, id FROM usage_records WHERE record_id"
_USAGE_DOCUMENTS: Final = (
    "SELECT u.record_id, d.document FROM usage_records u"
    " JOIN usage_documents d ON d.id = u.id WHERE u.record_id"
)
_AUDIT_DOCUMENTS: Final = "SELECT event_id, document FROM audit_events WHERE event_id"


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch."""

    usage: int
    """Usage records that are new."""
    audit: int
    """Audit events that are new."""
    repeated: int
    """Records that were there already, or stood twice in the batch."""
    conflicts: tuple[str, ...]
    """Ids under which something else is stored: what was stored first stays."""


def rows_of(
    kind: RecordKind,
    records: Sequence[Mapping[str, Any]],
    row_of: Callable[[Mapping[str, Any]], Row],
) -> list[Row]:
    """All records as rows; raises :class:`UnstorableRecord` for the first that cannot be one."""
    rows: list[Row] = []
    try:
        for record in records:
            rows.append(row_of(record))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise UnstorableRecord(kind, len(rows), reason) from None
    return rows


def insert_usage(connection: Connection, rows: Sequence[UsageRow]) -> Written:
    """Store usage records that are not there yet; a refusal is told by :func:`is_unstorable`."""
    if not rows:
        return Written(0, 0, 0, ())
    numbered = list(zip(_take_ids(connection, len(rows)), rows, strict=True))
    count = _insert(connection, usage, [(number, *row[:-1]) for number, row in numbered])
    new = numbered
    if count < len(rows):
        stored = _stored(connection, _USAGE_IDS, [row.record_id for row in rows])
        new = [pair for pair in numbered if stored.get(pair[1].record_id) == pair[0]]
    if new:
        _insert(connection, usage_documents, [(number, row.document) for number, row in new])
    repeated, conflicts = _compare(connection, _USAGE_DOCUMENTS, rows, count)
    return Written(count, 0, repeated, conflicts)


def insert_audit(connection: Connection, rows: Sequence[AuditRow]) -> Written:
    """Store audit events that are not there yet, like :func:`insert_usage`.

    An event that was pruned and is delivered again was there already: it must not come back.
    """
    pruned = anchored(connection, {row.writer_id for row in rows})
    kept = [row for row in rows if row.sequence > pruned.get(row.writer_id, 0)] if pruned else rows
    count = _insert(connection, audit, kept) if kept else 0
    repeated, conflicts = _compare(connection, _AUDIT_DOCUMENTS, kept, count)
    return Written(0, count, repeated + len(rows) - len(kept), conflicts)


def advance_heads(connection: Connection, newest: Iterable[ChainTip]) -> None:
    """Move each writer's head forward; an older head, delivered again, changes nothing."""
    rows = [
        {
            "writer_id": head.writer_id,
            "sequence": head.sequence,
            "hash": head.hash,
            "closed": head.closed,
            "signature": head.signature,
        }
        for head in newest
    ]
    if not rows:
        return
    insert: Any = postgresql.insert if _is_postgresql(connection) else sqlite.insert
    insertion = insert(heads)
    offered = insertion.excluded
    statement = insertion.on_conflict_do_update(
        index_elements=[heads.c.writer_id],
        set_={name: offered[name] for name in ("sequence", "hash", "closed", "signature")},
        where=(offered.sequence > heads.c.sequence)
        | ((offered.sequence == heads.c.sequence) & offered.closed & ~heads.c.closed),
    )
    connection.execute(statement, rows)


def find_unstorable(
    connection: Connection,
    kind: RecordKind,
    rows: Sequence[Row],
    insert: Callable[[Connection, Sequence[Row]], Written],
) -> UnstorableRecord | None:
    """Try each row alone and say which one the database refuses; nothing stays written."""
    for index, row in enumerate(rows):
        attempt = connection.begin_nested()
        try:
            insert(connection, [row])
        except DBAPIError as error:
            if not is_unstorable(error):
                raise
            return UnstorableRecord(kind, index, str(error.orig).partition("\n")[0])
        finally:
            attempt.rollback()
    return None


def is_unstorable(error: BaseException | None) -> bool:
    """Tell whether the database refused the data, as opposed to being away."""
    cause = getattr(error, "orig", None)
    state = getattr(cause, "sqlstate", None)
    if state == _NOT_UNIQUE or str(cause).startswith("UNIQUE constraint failed"):
        # Ids of records were looked after. What else must be unique, the store counts itself.
        return False
    return isinstance(error, _REFUSALS) or state == _LIMIT_EXCEEDED


def _compare(
    connection: Connection, documents: str, rows: Sequence[Row], new: int
) -> tuple[int, tuple[str, ...]]:
    """How many rows were there already, and the ids under which something else is."""
    if new == len(rows):
        return 0, ()
    stored = _stored(connection, documents, [row[0] for row in rows])
    conflicts = tuple(row[0] for row in rows if stored[row[0]] != row.document)
    return len(rows) - new - len(conflicts), conflicts


def _stored(connection: Connection, values: str, ids: Sequence[str]) -> dict[str, Any]:
    """What is stored under these ids."""
    if _is_postgresql(connection):
        return _pairs(connection.exec_driver_sql(f"{values} = ANY(%s)", (list(ids),)))
    found: dict[str, Any] = {}
    for start in range(0, len(ids), _LOOKUP):
        part = tuple(ids[start : start + _LOOKUP])
        found |= _pairs(connection.exec_driver_sql(f"{values} IN ({_marks(len(part))})", part))
    return found


def _pairs(rows: Iterable[Any]) -> dict[str, Any]:
    return {row[0]: row[1] for row in rows}


def _take_ids(connection: Connection, count: int) -> Sequence[int]:
    if _is_postgresql(connection):
        series = func.generate_series(1, count).table_valued("number")
        return connection.scalars(select(usage_ids.next_value()).select_from(series)).all()
    first = (connection.scalar(select(func.max(usage.c.id))) or 0) + 1
    return range(first, first + count)


def _insert(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> int:
    """Add those rows whose id is new, and say how many these are.

    The values of a row are in the order of the table's columns, of which they are the last.
    """
    names = [str(column.name) for column in table.columns][-len(rows[0]) :]
    columns = ", ".join(names)
    if _is_postgresql(connection):
        # One value for all rows: a value for each field would cost the client six times as much.
        objects = orjson.dumps([dict(zip(names, row, strict=True)) for row in rows]).decode()
        source = f"SELECT {columns} FROM json_populate_recordset(NULL::{table.name}, %s)"
        values: Any = (objects,)
    else:
        source, values = f"VALUES ({_marks(len(names))})", list(rows)
    # To insert first and look afterwards is cheap, for records seldom come twice, and right when
    # another host delivers the same ones at this moment.
    statement = f"INSERT INTO {table.name} ({columns}) {source} {_UNLESS_KNOWN[table.name]}"
    return connection.exec_driver_sql(statement, values).rowcount


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _is_postgresql(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"
