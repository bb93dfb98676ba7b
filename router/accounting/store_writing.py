"""Records into tables, each once however often it is delivered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Connection, Select, Table, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from router.accounting.audit import Head
from router.accounting.store_errors import RecordKind, UnstorableRecord
from router.accounting.store_rows import Row, RowOf
from router.accounting.store_tables import audit, heads, usage, usage_documents, usage_ids
from router.accounting.store_trail import anchored

_LOOKUP: Final = 500
"""Ids asked for in one statement."""
_UNSTORABLE: Final = (DataError, IntegrityError)
"""How a database refuses data. A table that is missing is no such refusal."""


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


def rows_of(kind: RecordKind, records: Sequence[Mapping[str, Any]], row_of: RowOf) -> list[Row]:
    """All records as rows; raises :class:`UnstorableRecord` for the first that cannot be one."""
    rows = []
    for index, record in enumerate(records):
        try:
            rows.append(row_of(record))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
            raise UnstorableRecord(kind, index, reason) from None
    return rows


def insert_usage(connection: Connection, rows: Sequence[Row]) -> Written:
    """Store usage records that are not there yet; raises ``_UNSTORABLE`` errors."""
    documents = select(usage.c.record_id, usage_documents.c.document).join(
        usage_documents, usage_documents.c.id == usage.c.id
    )
    fresh, repeated, conflicts = _sort_out(
        rows, "record_id", _stored(connection, documents, usage.c.record_id, rows)
    )
    if fresh:
        numbered = [
            {**row, "id": number}
            for row, number in zip(fresh, _take_ids(connection, len(fresh)), strict=True)
        ]
        for table in (usage, usage_documents):
            names = [column.name for column in table.columns]
            part = [{name: row[name] for name in names} for row in numbered]
            connection.execute(_insert(connection, table), part)
    return Written(len(fresh), 0, repeated, conflicts)


def insert_audit(connection: Connection, rows: Sequence[Row]) -> Written:
    """Store audit events that are not there yet; raises like :func:`insert_usage`.

    An event that was pruned and is delivered again was there already: it must not come back.
    """
    pruned = anchored(connection, {row["writer_id"] for row in rows})
    kept = [row for row in rows if row["sequence"] > pruned.get(row["writer_id"], 0)]
    documents = select(audit.c.event_id, audit.c.document)
    fresh, repeated, conflicts = _sort_out(
        kept, "event_id", _stored(connection, documents, audit.c.event_id, kept)
    )
    if fresh:
        connection.execute(_insert(connection, audit), fresh)
    return Written(0, len(fresh), repeated + len(rows) - len(kept), conflicts)


def advance_heads(connection: Connection, newest: Iterable[Head]) -> None:
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
    insertion = _insert_of(connection)(heads)
    offered = insertion.excluded
    statement = insertion.on_conflict_do_update(
        index_elements=[heads.c.writer_id],
        set_={name: offered[name] for name in ("sequence", "hash", "closed", "signature")},
        where=(offered.sequence > heads.c.sequence)
        | ((offered.sequence == heads.c.sequence) & offered.closed & ~heads.c.closed),
    )
    connection.execute(statement, rows)


def find_unstorable(
    connection: Connection, kind: RecordKind, rows: Sequence[Row]
) -> UnstorableRecord | None:
    """Try each row alone and say which one the database refuses; nothing stays written."""
    insertion = insert_usage if kind == "usage" else insert_audit
    for index, row in enumerate(rows):
        attempt = connection.begin_nested()
        try:
            insertion(connection, [row])
        except _UNSTORABLE as error:
            return UnstorableRecord(kind, index, str(error.orig).partition("\n")[0])
        finally:
            attempt.rollback()
    return None


def is_unstorable(error: BaseException | None) -> bool:
    """Tell whether the database refused the data, as opposed to being away."""
    return isinstance(error, _UNSTORABLE)


def _stored(
    connection: Connection,
    documents: Select[Any],
    id_column: Column[str],
    rows: Sequence[Row],
) -> dict[str, str]:
    """The documents that are stored under the ids of ``rows``."""
    found: dict[str, str] = {}
    ids = [row[id_column.name] for row in rows]
    for start in range(0, len(ids), _LOOKUP):
        part = documents.where(id_column.in_(ids[start : start + _LOOKUP]))
        found.update((row[0], row.document) for row in connection.execute(part))
    return found


def _take_ids(connection: Connection, count: int) -> Sequence[int]:
    if connection.dialect.name == "postgresql":
        series = func.generate_series(1, count).table_valued("number")
        return connection.scalars(select(usage_ids.next_value()).select_from(series)).all()
    first = (connection.scalar(select(func.max(usage.c.id))) or 0) + 1
    return range(first, first + count)


def _sort_out(
    rows: Sequence[Row], id_name: str, stored: dict[str, str]
) -> tuple[list[Row], int, tuple[str, ...]]:
    """The rows that are new, how many are not, and the ids that mean something else already."""
    fresh: list[Row] = []
    conflicts = []
    for row in rows:
        record_id = row[id_name]
        known = stored.get(record_id)
        if known is None:
            stored[record_id] = row["document"]
            fresh.append(row)
        elif known != row["document"]:
            conflicts.append(record_id)
    return fresh, len(rows) - len(fresh) - len(conflicts), tuple(conflicts)


def _insert_of(connection: Connection) -> Any:
    return postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert


def _insert(connection: Connection, table: Table) -> Any:
    # Another host may deliver the same record at the same moment.
    return _insert_of(connection)(table).on_conflict_do_nothing()
