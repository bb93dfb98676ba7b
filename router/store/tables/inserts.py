"""Records into tables, each once however often it is delivered.

Rows go to the driver as they are: the layers of the database library above it would cost more for
each row than the database itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import Connection, Table, func, select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from router.store.failures import RecordKind, UnstorableRecord
from router.store.tables.rows import AUDIT_COLUMNS, Row, audit_row, usage_row
from router.store.tables.sql_tables import audit, usage, usage_documents, usage_ids
from router.store.trail import pruned_up_to

_UNLESS_KNOWN: Final = {
    usage.name: "ON CONFLICT (record_id) DO NOTHING",
    audit.name: "ON CONFLICT (event_id) DO NOTHING",
    usage_documents.name: "",
}
_LOOKUP: Final = 500
"""Ids in one statement."""
_REFUSALS: Final = (DataError, IntegrityError)
"""How a database refuses data. A table that is missing is no such refusal."""
_LIMIT_EXCEEDED: Final = "54000"
"""PostgreSQL's word for data that is beyond what it can hold or index."""
_NOT_UNIQUE: Final = "23505"
_USAGE_IDS: Final = "SELECT record_id, id FROM usage_records WHERE record_id"
USAGE_DOCUMENTS: Final = (
    "SELECT u.record_id, d.document FROM usage_records u"
    " JOIN usage_documents d ON d.id = u.id WHERE u.record_id"
)
_AUDIT_DOCUMENTS: Final = "SELECT event_id, document FROM audit_events WHERE event_id"
_WRITER: Final = list(AUDIT_COLUMNS).index("writer_id")
_SEQUENCE: Final = list(AUDIT_COLUMNS).index("sequence")


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


class Inserted(NamedTuple):
    """What became of the rows of one kind; the fields are those of :class:`Written`."""

    new: int
    repeated: int
    conflicts: tuple[str, ...]


def rows_of(kind: RecordKind, records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """All records as rows; raises :class:`UnstorableRecord` for the first that cannot be one."""
    row_of = usage_row if kind == "usage" else audit_row
    rows: list[Row] = []
    try:
        for record in records:
            rows.append(row_of(record))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise UnstorableRecord(kind, len(rows), reason) from None
    return rows


def insert_usage(connection: Connection, rows: Sequence[Row]) -> Inserted:
    """Store usage records that are not there yet; :func:`is_unstorable` recognizes a refusal."""
    if not rows:
        return Inserted(0, 0, ())
    numbered = list(zip(_take_ids(connection, len(rows)), rows, strict=True))
    count = _insert(connection, usage, [(number, *row[:-1]) for number, row in numbered])
    new = numbered
    if count < len(rows):
        stored = stored_by_id(connection, _USAGE_IDS, [row[0] for row in rows])
        new = [(number, row) for number, row in numbered if stored.get(row[0]) == number]
    if new:
        _insert(connection, usage_documents, [(number, row[-1]) for number, row in new])
    return _compare(connection, USAGE_DOCUMENTS, rows, count)


def insert_audit(connection: Connection, rows: Sequence[Row]) -> Inserted:
    """Store audit events that are not there yet, like :func:`insert_usage`.

    An event that was pruned and is delivered again was there already: it must not come back.
    """
    pruned = pruned_up_to(connection, {row[_WRITER] for row in rows}) if rows else {}
    kept = [row for row in rows if row[_SEQUENCE] > pruned.get(row[_WRITER], 0)]
    count = _insert(connection, audit, kept) if kept else 0
    found = _compare(connection, _AUDIT_DOCUMENTS, kept, count)
    return found._replace(repeated=found.repeated + len(rows) - len(kept))


def find_unstorable(
    connection: Connection,
    kind: RecordKind,
    rows: Sequence[Row],
    insert: Callable[[Connection, Sequence[Row]], Inserted],
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
    """Tell whether the database refused the data, as opposed to being unavailable."""
    cause = getattr(error, "orig", None)
    state = getattr(cause, "sqlstate", None)
    if state == _NOT_UNIQUE or str(cause).startswith("UNIQUE constraint failed"):
        # Conflicts of record ids are handled. Other unique values are numbered by the store itself.
        return False
    return isinstance(error, _REFUSALS) or state == _LIMIT_EXCEEDED


def stored_by_id(connection: Connection, values: str, ids: Sequence[str]) -> dict[str, Any]:
    """What is stored under these ids; ``values`` selects id and value, up to the ids."""
    if _is_postgresql(connection):
        rows = connection.exec_driver_sql(f"{values} = ANY(%s)", (list(ids),))
        return {row[0]: row[1] for row in rows}
    found: dict[str, Any] = {}
    for start in range(0, len(ids), _LOOKUP):
        part = tuple(ids[start : start + _LOOKUP])
        rows = connection.exec_driver_sql(f"{values} IN ({_parameters(len(part))})", part)
        found.update((row[0], row[1]) for row in rows)
    return found


def _compare(connection: Connection, documents: str, rows: Sequence[Row], new: int) -> Inserted:
    """How many rows were there already, and the ids under which something else is."""
    if new == len(rows):
        return Inserted(new, 0, ())
    stored = stored_by_id(connection, documents, [row[0] for row in rows])
    conflicts = tuple(row[0] for row in rows if stored[row[0]] != row[-1])
    return Inserted(new, len(rows) - new - len(conflicts), conflicts)


def _take_ids(connection: Connection, count: int) -> Sequence[int]:
    if _is_postgresql(connection):
        series = func.generate_series(1, count).table_valued("number")
        return connection.scalars(select(usage_ids.next_value()).select_from(series)).all()
    first = (connection.scalar(select(func.max(usage.c.id))) or 0) + 1
    return range(first, first + count)


def _insert(connection: Connection, table: Table, rows: Sequence[Row]) -> int:
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
        source, values = f"VALUES ({_parameters(len(names))})", list(rows)
    # Inserting first and comparing afterwards is cheap, because records seldom come twice, and it
    # is right when another host delivers the same ones at this moment.
    statement = f"INSERT INTO {table.name} ({columns}) {source} {_UNLESS_KNOWN[table.name]}"
    return connection.exec_driver_sql(statement, values).rowcount


def _parameters(count: int) -> str:
    return ", ".join("?" * count)


def _is_postgresql(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"
