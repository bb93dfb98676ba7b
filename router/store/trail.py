"""The audit trail in the database: reading it in order, and removing its oldest part."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import orjson
from sqlalchemy import Connection, Row, RowMapping, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from router.exports.audit_export import ChainFault, WriterMarks
from router.records.audit_chain import ChainTip, PrunePoint, is_signed, unseal, with_signature
from router.store.rows import audit_row
from router.store.sql_queries import in_period, micros
from router.store.sql_tables import anchors, audit, heads

_FETCH: Final = 1000
PRUNE_SLICE: Final = 5000
"""Events removed in one transaction, so that nobody waits long for the next one."""


@dataclass(frozen=True, slots=True)
class StoredTrail:
    """A part of the trail as one connection sees it; usable while that connection is."""

    connection: Connection
    writers: Sequence[WriterMarks]
    ranges: dict[str, tuple[int, int]]
    """Of each writer that has events in the part: the first and the last place in its chain."""
    from_s: float | None
    to_s: float | None

    def lines(self) -> Iterator[bytes]:
        """The encoded events, sorted by writer and place in its chain, without newlines."""
        for writer_id in sorted(self.ranges):
            first, last = self.ranges[writer_id]
            chosen = (
                select(audit.c.document)
                .where(audit.c.writer_id == writer_id, audit.c.sequence.between(first, last))
                .order_by(audit.c.sequence, audit.c.event_id)
                .execution_options(yield_per=_FETCH)
            )
            # Closed also when nobody takes the rest: a server's cursor would stay open.
            with self.connection.scalars(chosen) as documents:
                for document in documents:
                    yield document.encode()


def read_trail(connection: Connection, from_s: float | None, to_s: float | None) -> StoredTrail:
    """The events of a period, filled up so that each chain has no hole; or all there are."""
    whole = from_s is None and to_s is None
    chosen = (
        select(audit.c.writer_id, func.min(audit.c.sequence), func.max(audit.c.sequence))
        .where(*in_period(None, from_s, to_s, audit))
        .group_by(audit.c.writer_id)
    )
    ranges = {row[0]: (row[1], row[2]) for row in connection.execute(chosen)}
    if to_s is None and not whole:
        _extend_to_heads(connection, ranges)
    marks = _read_marks(connection)
    names = sorted({*marks, *ranges} if whole else ranges)
    return StoredTrail(
        connection=connection,
        writers=[marks.get(name, WriterMarks(name, None, None)) for name in names],
        ranges=ranges,
        from_s=from_s,
        to_s=to_s,
    )


def close_heads(connection: Connection, writer_ids: Sequence[str], key: bytes) -> None:
    """Sign that these writers will link no more."""
    for writer_id in writer_ids:
        head = _read_marks(connection, writer_id)[writer_id].head
        if head is not None and not head.closed:
            closed = with_signature(
                ChainTip(writer_id=writer_id, sequence=head.sequence, hash=head.hash, closed=True),
                key,
            )
            connection.execute(
                heads.update()
                .where(heads.c.writer_id == writer_id)
                .values(closed=True, signature=closed.signature)
            )


def anchored(connection: Connection, writer_ids: Iterable[str]) -> dict[str, int]:
    """How far the chains of these writers were pruned."""
    chosen = select(anchors.c.writer_id, anchors.c.sequence).where(
        anchors.c.writer_id.in_(list(writer_ids))
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
    document = connection.scalars(
        select(audit.c.document).where(of_writer, audit.c.sequence == sequence)
    ).first()
    assert document is not None
    _, digest = unseal(document.encode())
    _move_anchor(
        connection,
        with_signature(PrunePoint(writer_id=writer_id, sequence=sequence, hash=digest), key),
    )
    removed = connection.execute(delete(audit).where(of_writer, audit.c.sequence <= sequence))
    return removed.rowcount


def forget_pruned(connection: Connection) -> None:
    """Drop the marks of writers that are closed and of which every event was pruned."""
    gone = select(heads.c.writer_id).where(
        heads.c.closed,
        heads.c.writer_id == anchors.c.writer_id,
        heads.c.sequence == anchors.c.sequence,
        ~select(audit.c.event_id).where(audit.c.writer_id == heads.c.writer_id).exists(),
    )
    names = list(connection.scalars(gone))
    for start in range(0, len(names), _FETCH):
        part = names[start : start + _FETCH]
        for table in (heads, anchors):
            connection.execute(delete(table).where(table.c.writer_id.in_(part)))


def _extend_to_heads(connection: Connection, ranges: dict[str, tuple[int, int]]) -> None:
    """Let each chain run to its newest event: a clock set back must not look like a cut end."""
    newest = select(audit.c.writer_id, func.max(audit.c.sequence)).group_by(audit.c.writer_id)
    for writer_id, last in connection.execute(newest):
        if writer_id in ranges:
            ranges[writer_id] = (ranges[writer_id][0], last)


def _read_marks(connection: Connection, writer_id: str | None = None) -> dict[str, WriterMarks]:
    of_heads, of_anchors = select(heads), select(anchors)
    if writer_id is not None:
        of_heads = of_heads.where(heads.c.writer_id == writer_id)
        of_anchors = of_anchors.where(anchors.c.writer_id == writer_id)
    found_heads = {row.writer_id: _head(row) for row in connection.execute(of_heads)}
    found_anchors = {row.writer_id: _anchor(row) for row in connection.execute(of_anchors)}
    names = {*found_heads, *found_anchors}
    if writer_id is not None:
        names.add(writer_id)
    return {
        name: WriterMarks(name, found_heads.get(name), found_anchors.get(name)) for name in names
    }


def _head(row: Row[Any]) -> ChainTip:
    return ChainTip(
        writer_id=row.writer_id,
        sequence=row.sequence,
        hash=row.hash,
        closed=bool(row.closed),
        signature=row.signature,
    )


def _anchor(row: Row[Any]) -> PrunePoint:
    return PrunePoint(
        writer_id=row.writer_id, sequence=row.sequence, hash=row.hash, signature=row.signature
    )


def _move_anchor(connection: Connection, anchor: PrunePoint) -> None:
    insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    insertion = insert(anchors).values(
        writer_id=anchor.writer_id,
        sequence=anchor.sequence,
        hash=anchor.hash,
        signature=anchor.signature,
    )
    names = ("sequence", "hash", "signature")
    connection.execute(
        insertion.on_conflict_do_update(
            index_elements=[anchors.c.writer_id],
            set_={name: insertion.excluded[name] for name in names},
            where=insertion.excluded.sequence > anchors.c.sequence,
        )
    )


def survey(connection: Connection, key: bytes) -> Iterator[ChainFault]:
    """Chains that lack a part by their numbers alone, which costs little; no event is read."""
    chosen = select(
        audit.c.writer_id,
        func.count(),
        func.min(audit.c.sequence),
        func.max(audit.c.sequence),
    ).group_by(audit.c.writer_id)
    held = {row[0]: (row[1], row[2], row[3]) for row in connection.execute(chosen)}
    marks = _read_marks(connection)
    for name in sorted({*held, *marks}):
        yield from _survey_chain(
            marks.get(name, WriterMarks(name, None, None)), held.get(name), key
        )


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


def _survey_chain(
    marks: WriterMarks, held: tuple[int, int, int] | None, key: bytes
) -> Iterator[ChainFault]:
    name, head, anchor = marks.writer_id, marks.head, marks.anchor
    start = 0 if anchor is None else anchor.sequence
    count, first, last = held or (0, start + 1, start)
    if anchor is not None and not is_signed(anchor, key):
        yield ChainFault(name, start, "the anchor is not what was signed")
    if first != start + 1:
        reason = f"the events begin with {first}, not with {start + 1}"
        yield ChainFault(name, min(first, start + 1), reason)
    if count != last - first + 1:
        reason = f"{count} events stand where {last - first + 1} belong"
        yield ChainFault(name, first, reason)
    if head is None:
        yield ChainFault(name, last, "the chain has no signed head")
    elif not is_signed(head, key):
        yield ChainFault(name, head.sequence, "the chain's head is not what was signed")
    elif head.sequence != last:
        reason = f"the chain ends with {last}, its signed head says {head.sequence}"
        yield ChainFault(name, min(last, head.sequence) + 1, reason)


def misplaced(connection: Connection) -> Generator[ChainFault, None, None]:
    """Events that are not found as what they are: a column says something else than the event."""
    chosen = (
        select(audit)
        .order_by(audit.c.writer_id, audit.c.sequence)
        .execution_options(yield_per=_FETCH)
    )
    with connection.execute(chosen) as rows:
        for row in rows.mappings():
            reason = _misfiling(row)
            if reason is not None:
                yield ChainFault(row["writer_id"], row["sequence"], reason)


def _misfiling(row: RowMapping) -> str | None:
    try:
        wanted = audit_row(orjson.loads(row["document"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"not an audit event: {error}"
    for name, value in wanted._asdict().items():
        if row[name] != value:
            return f"the column {name} is not what the event says"
    return None
