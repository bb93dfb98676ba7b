"""The audit trail in the database: reading it in order, and removing its oldest part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import takewhile
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, Connection, RowMapping, Select, Table, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from router.exports.audit_export import ChainFault, Trail, WriterMarks
from router.records.audit_chain import ChainTip, PrunePoint, is_signed, unseal, with_signature
from router.store.corrections import keep_pruned
from router.store.queries.sql_queries import in_period, micros
from router.store.tables.rows import AUDIT_COLUMNS, audit_row
from router.store.tables.sql_tables import audit, chain_tips, prune_points

_FETCH: Final = 1000
PRUNE_SLICE: Final = 5000
"""Events removed in one transaction, so that nobody waits long for the next one."""


def read_trail(
    connection: Connection,
    from_s: float | None,
    to_s: float | None,
    organization_id: str | None = None,
) -> Trail:
    """The events of a period, filled up so that each chain has no hole; or all there are.

    Of one organization only its own events, in the order of time. The trail is usable while the
    connection is open.
    """
    if organization_id is not None:
        chosen = (
            select(audit.c.document)
            .where(*in_period(organization_id, from_s, to_s, audit))
            .order_by(audit.c.timestamp_us, audit.c.id)
        )
        return Trail((), partial(_documents, connection, chosen), from_s, to_s, organization_id)
    is_whole = from_s is None and to_s is None
    ranges = _ranges(connection, in_period(None, from_s, to_s, audit))
    if to_s is None and not is_whole:
        # Each chain runs to its newest event: a clock set back must not look like a cut end.
        newest = _ranges(connection, [])
        ranges = {name: (first, newest[name][1]) for name, (first, _) in ranges.items()}
    marks = read_marks(connection)
    names = sorted({*marks, *ranges} if is_whole else ranges)
    return Trail(
        [marks.get(name, WriterMarks(name, None, None)) for name in names],
        partial(_chains, connection, ranges),
        from_s,
        to_s,
    )


def read_marks(connection: Connection, writer_id: str | None = None) -> dict[str, WriterMarks]:
    """What was signed of each writer, or of one, by writer."""

    def rows_of(table: Table) -> dict[str, RowMapping]:
        chosen = select(table)
        if writer_id is not None:
            chosen = chosen.where(table.c.writer_id == writer_id)
        return {row["writer_id"]: row for row in connection.execute(chosen).mappings()}

    tips = {name: ChainTip(**row) for name, row in rows_of(chain_tips).items()}
    points = {name: PrunePoint(**row) for name, row in rows_of(prune_points).items()}
    return {name: WriterMarks(name, tips.get(name), points.get(name)) for name in {*tips, *points}}


def advance_tips(connection: Connection, newest: Iterable[ChainTip]) -> None:
    """Move each writer's chain tip forward; an older one, delivered again, changes nothing."""
    rows = [asdict(tip) for tip in newest]
    stored = chain_tips.c
    _upsert(
        connection,
        chain_tips,
        rows,
        lambda offered: (
            (offered.sequence > stored.sequence)
            | ((offered.sequence == stored.sequence) & offered.closed & ~stored.closed)
        ),
    )


def close_tips(connection: Connection, writer_ids: Sequence[str], key: bytes) -> None:
    """Sign that these writers will link no more."""
    for writer_id in writer_ids:
        marks = read_marks(connection, writer_id).get(writer_id)
        if marks is not None and marks.tip is not None and not marks.tip.closed:
            facts = {**asdict(marks.tip), "closed": True}
            advance_tips(connection, [with_signature(ChainTip(**facts), key)])


def pruned_up_to(connection: Connection, writer_ids: Iterable[str]) -> dict[str, int]:
    """How far the chains of these writers were pruned."""
    chosen = select(prune_points.c.writer_id, prune_points.c.sequence).where(
        prune_points.c.writer_id.in_(list(writer_ids))
    )
    return {row.writer_id: row.sequence for row in connection.execute(chosen)}


def old_writers(connection: Connection, before_s: float) -> list[str]:
    """The writers of which something can be pruned."""
    # Of the bare column SQLite reads the whole index by writer, to find each writer once.
    name = audit.c.writer_id.concat("")
    chosen = select(name).where(audit.c.timestamp_us < micros(before_s)).distinct()
    return list(connection.scalars(chosen))


def prune_slice(connection: Connection, writer_id: str, before_s: float, key: bytes) -> int:
    """Remove the oldest events of a writer, at most ``PRUNE_SLICE``, and sign where they ended.

    Only a beginning is removed: what follows a newer event stays, however old its clock says it is.
    """
    of_writer = audit.c.writer_id == writer_id
    oldest = connection.execute(
        select(audit.c.sequence, audit.c.timestamp_us)
        .where(of_writer)
        .order_by(audit.c.sequence)
        .limit(PRUNE_SLICE)
    )
    bound_us = micros(before_s)
    old = [row.sequence for row in takewhile(lambda row: row.timestamp_us < bound_us, oldest)]
    if not old:
        return 0
    sequence = old[-1]
    chosen = select(audit.c.document).where(of_writer, audit.c.sequence == sequence)
    _, digest = unseal(connection.scalars(chosen.limit(1)).one().encode())
    point = with_signature(PrunePoint(writer_id=writer_id, sequence=sequence, hash=digest), key)
    stored = prune_points.c.sequence
    _upsert(connection, prune_points, [asdict(point)], lambda offered: offered.sequence > stored)
    keep_pruned(connection, writer_id, sequence)
    removed = connection.execute(delete(audit).where(of_writer, audit.c.sequence <= sequence))
    return removed.rowcount


def forget_pruned(connection: Connection) -> None:
    """Drop the marks of writers that are closed and of which every event was pruned."""
    tip, point = chain_tips.c, prune_points.c
    gone = select(tip.writer_id).where(
        tip.closed,
        tip.writer_id == point.writer_id,
        tip.sequence == point.sequence,
        ~select(audit.c.event_id).where(audit.c.writer_id == tip.writer_id).exists(),
    )
    names = list(connection.scalars(gone))
    for start in range(0, len(names), _FETCH):
        for table in (chain_tips, prune_points):
            part = table.c.writer_id.in_(names[start : start + _FETCH])
            connection.execute(delete(table).where(part))


def prunable(connection: Connection, before_s: float) -> dict[str, int]:
    """Of each writer of which :func:`prune_slice` would remove something: how many events."""
    young = (
        select(audit.c.writer_id, func.min(audit.c.sequence).label("sequence"))
        .where(audit.c.timestamp_us >= micros(before_s))
        .group_by(audit.c.writer_id)
        .subquery()
    )
    chosen = (
        select(audit.c.writer_id, func.count())
        .outerjoin(young, young.c.writer_id == audit.c.writer_id)
        .where(young.c.sequence.is_(None) | (audit.c.sequence < young.c.sequence))
        .group_by(audit.c.writer_id)
        .order_by(audit.c.writer_id)
    )
    return {row[0]: row[1] for row in connection.execute(chosen)}


def survey(connection: Connection, key: bytes) -> Iterator[ChainFault]:
    """Chains that lack a part by their numbers alone, which costs little; no event is read."""
    chosen = select(
        audit.c.writer_id, func.count(), func.min(audit.c.sequence), func.max(audit.c.sequence)
    ).group_by(audit.c.writer_id)
    stored = {row[0]: (row[1], row[2], row[3]) for row in connection.execute(chosen)}
    marks = read_marks(connection)
    for name in sorted({*stored, *marks}):
        of_writer = marks.get(name, WriterMarks(name, None, None))
        for sequence, reason in _survey_chain(of_writer, stored.get(name), key):
            yield ChainFault(name, sequence, reason)


def _survey_chain(
    marks: WriterMarks, stored: tuple[int, int, int] | None, key: bytes
) -> Iterator[tuple[int, str]]:
    tip, point = marks.tip, marks.prune_point
    start = 0 if point is None else point.sequence
    count, first, last = stored or (0, start + 1, start)
    if point is not None and not is_signed(point, key):
        yield start, "the prune point is not what was signed"
    if first != start + 1:
        yield min(first, start + 1), f"the events begin with {first}, not with {start + 1}"
    if count != last - first + 1:
        yield first, f"{count} events stand where {last - first + 1} belong"
    if tip is None:
        yield last, "the chain has no signed tip"
    elif not is_signed(tip, key):
        yield tip.sequence, "the chain tip is not what was signed"
    elif tip.sequence != last:
        reason = f"the chain ends with {last}, its signed tip says {tip.sequence}"
        yield min(last, tip.sequence) + 1, reason


def first_misplaced(connection: Connection) -> ChainFault | None:
    """The first event that cannot be found as what it is: a column differs from the event."""
    chosen = (
        select(audit)
        .order_by(audit.c.writer_id, audit.c.sequence)
        .execution_options(yield_per=_FETCH)
    )
    with connection.execute(chosen) as rows:
        for row in rows.mappings():
            reason = _misplacement(row)
            if reason is not None:
                return ChainFault(row["writer_id"], row["sequence"], reason)
    return None


def _misplacement(row: RowMapping) -> str | None:
    try:
        wanted = audit_row(orjson.loads(row["document"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"not an audit event: {error}"
    for name, value in zip((*AUDIT_COLUMNS, "document"), wanted, strict=True):
        if row[name] != value:
            return f"the column {name} is not what the event says"
    return None


def _ranges(
    connection: Connection, conditions: Sequence[ColumnElement[bool]]
) -> dict[str, tuple[int, int]]:
    """First and last sequence of each writer."""
    sequence = audit.c.sequence
    chosen = select(audit.c.writer_id, func.min(sequence), func.max(sequence))
    rows = connection.execute(chosen.where(*conditions).group_by(audit.c.writer_id))
    return {writer_id: (first, last) for writer_id, first, last in rows}


def _chains(connection: Connection, ranges: Mapping[str, tuple[int, int]]) -> Iterator[bytes]:
    for writer_id in sorted(ranges):
        chosen = (
            select(audit.c.document)
            .where(audit.c.writer_id == writer_id, audit.c.sequence.between(*ranges[writer_id]))
            .order_by(audit.c.sequence, audit.c.event_id)
        )
        yield from _documents(connection, chosen)


def _documents(connection: Connection, chosen: Select[Any]) -> Iterator[bytes]:
    # Closed also when nobody takes the rest: a server's cursor would stay open.
    with connection.scalars(chosen.execution_options(yield_per=_FETCH)) as documents:
        for document in documents:
            yield document.encode()


def _upsert(connection: Connection, table: Table, rows: Sequence[Any], is_newer: Any) -> None:
    """Insert rows by writer, or replace those that are older; ``is_newer`` makes the condition."""
    if not rows:
        return
    insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    insertion = insert(table)
    offered = insertion.excluded
    statement = insertion.on_conflict_do_update(
        index_elements=[table.c.writer_id],
        set_={name: offered[name] for name in rows[0] if name != "writer_id"},
        where=is_newer(offered),
    )
    connection.execute(statement, rows)
