"""What was spent in a period: kept sums, corrected at the edges by the records themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import ColumnElement, Connection, Select, func, inspect, select

from router.store.queries.usage_totals import Spend, read_spend, spend_of
from router.store.tables.rows import storable
from router.store.tables.sql_tables import usage, usage_sums
from router.store.tables.usage_sums import HALF, QUARTER_US, SUMMED

_BY_ID: Final = SimpleNamespace(
    organization_id=usage.c.organization_id.concat(""),
    api_key_id=usage.c.api_key_id.concat(""),
    timestamp_us=usage.c.timestamp_us + 0,
)
"""Columns without an index, so that records are found by their ids. SQLite would rather walk
through all records of the organization: half a second for two million."""
_NEWEST: Final = 2_000
_NEWEST_OF_ALL: Final = 20_000
"""So many records of all organizations are looked through for the newest ones of one."""
_LOOKED_AT: Final = ("record_id", "organization_id", "api_key_id", "timestamp_us")
_LOOKUP: Final = 500
"""Ids in one statement."""


class Span(NamedTuple):
    """Microseconds since the epoch, from the first up to and without the last; ``None``: no end."""

    from_us: int | None
    to_us: int | None

    def conditions(self, columns: Any = usage.c) -> list[ColumnElement[bool]]:
        """Records of this span."""
        found = []
        if self.from_us is not None:
            found.append(columns.timestamp_us >= self.from_us)
        if self.to_us is not None:
            found.append(columns.timestamp_us < self.to_us)
        return found


def spent(
    connection: Connection,
    organization_id: str,
    api_key_id: str | None,
    span: Span,
    without: Collection[str] = (),
) -> Spend:
    """Exact sums of an organization or of one of its keys; ``without``: ids of records to leave
    out. The connection must see one state of the database."""
    owner = _owned(usage.c, organization_id, api_key_id)
    first, last = _quarters(span)
    # The agent of the previous version may not have been replaced yet.
    if not inspect(connection).has_table(usage_sums.name) or (last is not None and first >= last):
        total = _scan(connection, [*owner, *span.conditions()])
    else:
        total = _kept(connection, organization_id, api_key_id, first, last)
        for edge in _edges(span, first, last):
            total = _add(total, _scan(connection, [*owner, *edge.conditions()]))
    if without:
        left_out = usage.c.record_id.in_([storable(one) for one in without])
        conditions = [
            *_owned(_BY_ID, organization_id, api_key_id),
            *span.conditions(_BY_ID),
            left_out,
        ]
        total = _add(total, _scan(connection, conditions), -1)
    return total


def settled_late(
    connection: Connection,
    organization_id: str,
    api_key_id: str | None,
    span: Span,
    among: Sequence[str],
) -> set[str]:
    """The ids of the newest records of a span, and of those ``among`` that are stored."""
    # Without the limit inside, SQLite would walk through the index of the organization.
    columns = (usage.c[name] for name in ("id", *_LOOKED_AT))
    newest = select(*columns).order_by(usage.c.id.desc()).limit(_NEWEST_OF_ALL).subquery()
    chosen = (
        select(newest.c.record_id)
        .where(*_owned(newest.c, organization_id, api_key_id), *span.conditions(newest.c))
        .order_by(newest.c.id.desc())
        .limit(_NEWEST)
    )
    found = _ids(connection, chosen)
    ids = select(usage.c.record_id).where(
        *_owned(_BY_ID, organization_id, api_key_id), *span.conditions(_BY_ID)
    )
    for start in range(0, len(among), _LOOKUP):
        part = [storable(one) for one in among[start : start + _LOOKUP]]
        found |= _ids(connection, ids.where(usage.c.record_id.in_(part)))
    return found


def _ids(connection: Connection, chosen: Select[tuple[str]]) -> set[str]:
    """What is chosen, in one row: for each, SQLite's driver would release Python's lock and get it
    back behind the calls of a busy worker."""
    if connection.dialect.name != "sqlite":
        return set(connection.scalars(chosen))
    listed = func.json_group_array(chosen.subquery().c.record_id)
    return set(orjson.loads(connection.scalar(select(listed)) or "[]"))


def _owned(columns: Any, organization_id: str, api_key_id: str | None) -> list[ColumnElement[bool]]:
    owner = [columns.organization_id == storable(organization_id)]
    if api_key_id is not None:
        owner.append(columns.api_key_id == storable(api_key_id))
    return owner


def _quarters(span: Span) -> tuple[int, int | None]:
    """The quarters that lie within the span wholly; sums begin at the epoch."""
    first = 0 if span.from_us is None else max(0, -(-span.from_us // QUARTER_US))
    return first, None if span.to_us is None else span.to_us // QUARTER_US


def _edges(span: Span, first: int, last: int | None) -> list[Span]:
    """What of the span lies before and after its whole quarters."""
    edges = []
    if span.from_us is None or span.from_us < first * QUARTER_US:
        edges.append(Span(span.from_us, first * QUARTER_US))
    if last is not None and span.to_us is not None and last * QUARTER_US < span.to_us:
        edges.append(Span(last * QUARTER_US, span.to_us))
    return edges


def _kept(
    connection: Connection,
    organization_id: str,
    api_key_id: str | None,
    first: int,
    last: int | None,
) -> Spend:
    sums = usage_sums.c
    key_id = "" if api_key_id is None else storable(api_key_id)
    chosen = select(
        func.sum(sums.requests),
        *(func.sum(sums[f"{name}_{half}"]) for name in SUMMED for half in ("high", "low")),
    ).where(
        sums.organization_id == storable(organization_id),
        sums.api_key_id == key_id,
        sums.quarter >= first,
    )
    if last is not None:
        chosen = chosen.where(sums.quarter < last)
    requests, *halves = [int(value or 0) for value in connection.execute(chosen).one()]
    return Spend(requests, *_whole(halves))


def _whole(halves: Sequence[int]) -> list[int]:
    pairs = zip(halves[::2], halves[1::2], strict=True)
    return [high * HALF + low for high, low in pairs]


def _scan(connection: Connection, conditions: Sequence[ColumnElement[bool]]) -> Spend:
    row: Any = connection.execute(spend_of(conditions)).mappings().one()
    return read_spend(row)


def _add(total: Spend, more: Spend, sign: int = 1) -> Spend:
    return Spend(
        total.requests + sign * more.requests,
        total.tokens_input + sign * more.tokens_input,
        total.tokens_output + sign * more.tokens_output,
        total.cost_nanos + sign * more.cost_nanos,
    )
