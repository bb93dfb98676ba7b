"""What calls come to, by group: sums and percentiles, as SQL that means the same everywhere.

Sums are exact: a column is added up in two halves, neither of which can overflow, and put together
in Python. A percentile is a value that occurred: the smallest one that at least so many percent of
the calls did not exceed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from sqlalchemy import ColumnElement, RowMapping, Select, and_, case, func, null, or_, select

from router.records.record_types import format_usd
from router.store.failures import BadQuery
from router.store.queries.sql_queries import MICROS_PER_S
from router.store.tables.rows import CLASS_COLUMNS, SERVED
from router.store.tables.sql_tables import usage
from router.store.tables.usage_sums import HALF, SUMMED

_HOUR_US: Final = 3600 * MICROS_PER_S
_DAY_US: Final = 24 * _HOUR_US
PERCENTILES: Final = {"latency_ms_p50": 0.5, "latency_ms_p95": 0.95, "latency_ms_p99": 0.99}
_SUMS: Final = {
    "retries": "retry_count",
    "tokens_input": "tokens_input",
    "tokens_output": "tokens_output",
    "tokens_cached": "tokens_cached",
    **{name: name for name in CLASS_COLUMNS},
    "cost_nanos": "cost_nanos",
}
"""Figures that are sums, and the column that each adds up."""
FAILED: Final = ("upstream_error", "upstream_aborted", "timeout")

GROUPS: Final[Mapping[str, ColumnElement[Any]]] = {
    "organization": usage.c.organization_id,
    "model": usage.c.model,
    "key": usage.c.api_key_id,
    "backend": usage.c.backend_id,
    "day": usage.c.timestamp_us // _DAY_US,
    "hour": usage.c.timestamp_us // _HOUR_US,
}


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """What the calls of one group come to."""

    group: Mapping[str, str | None]
    """The group's values by the names of ``GROUPS``; days and hours in UTC."""
    requests: int
    errors: int
    """Calls that the backends failed: upstream_error, upstream_aborted, timeout."""
    rejected: int
    client_aborted: int
    estimated: int
    """Calls whose tokens are estimated, because the backend did not report them."""
    degraded: int
    """Calls of which only the least is known; they are in no sum."""
    retries: int
    tokens_input: int
    tokens_output: int
    tokens_cached: int
    tokens_cache_write_5m: int
    tokens_cache_write_1h: int
    tokens_input_audio: int
    tokens_input_image: int
    tokens_output_reasoning: int
    tokens_output_audio: int
    tokens_output_image: int
    web_searches: int
    characters: int
    seconds: int
    cost_nanos: int
    latency_ms_p50: float | None
    """Over the calls that were not rejected, as are the other two."""
    latency_ms_p95: float | None
    latency_ms_p99: float | None

    def plain(self) -> dict[str, Any]:
        """The group's values and the figures side by side, the cost also in USD."""
        facts = {name: getattr(self, name) for name in _FIGURES}
        facts["cost_usd"] = format_usd(self.cost_nanos)
        return {name: facts.get(name, self.group.get(name)) for name in columns_of(self.group)}


_FIGURES: Final = tuple(UsageTotals.__dataclass_fields__)[1:]
ADDITIVE: Final = tuple(name for name in _FIGURES if name not in PERCENTILES)
"""Figures whose sum over some groups is the figure of all of them."""


def columns_of(group_by: Iterable[str]) -> list[str]:
    """The names that :meth:`UsageTotals.plain` gives, in order, also when there are no totals."""
    names = [*group_by, *_FIGURES]
    names.insert(names.index("cost_nanos") + 1, "cost_usd")
    return names


@dataclass(frozen=True, slots=True)
class Spend:
    """What an organization or a key has used in a period."""

    requests: int
    """Calls that a backend has, or may have, worked on; degraded records count as such."""
    tokens_input: int
    tokens_output: int
    cost_nanos: int


def was_served() -> ColumnElement[bool]:
    """The call counts against a quota of requests.

    :mod:`router.store.spend` says the same of a record that is not stored yet.
    """
    served = and_(usage.c.backend_id.is_not(None), usage.c.outcome.in_(SERVED))
    return or_(usage.c.outcome.is_(None), served)


def exact_sum(
    column: ColumnElement[int], name: str
) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """The two halves of a sum; :func:`whole_sum` puts them together."""
    return (
        func.sum(column // HALF).label(f"{name}_high"),
        func.sum(column % HALF).label(f"{name}_low"),
    )


def whole_sum(row: RowMapping, name: str) -> int:
    """The sum of which a row has the halves, 0 over nothing."""
    return int(row[f"{name}_high"] or 0) * HALF + int(row[f"{name}_low"] or 0)


def spend_of(conditions: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """One row, for :func:`read_spend`."""
    sums = [half for name in SUMMED for half in exact_sum(usage.c[name], name)]
    return select(_count(was_served()).label("requests"), *sums).where(*conditions)


def read_spend(row: RowMapping) -> Spend:
    """The row of :func:`spend_of`."""
    return Spend(int(row["requests"] or 0), *(whole_sum(row, name) for name in SUMMED))


def usage_totals(group_by: Sequence[str], conditions: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """One row for each group, sorted by it; raises :class:`BadQuery`."""
    for name in group_by:
        if name not in GROUPS:
            raise BadQuery("group_by", f"{name!r} is not one of {', '.join(GROUPS)}")
    keys = [GROUPS[name].label(f"group_{name}") for name in group_by]
    latency = case((usage.c.outcome != "rejected", usage.c.latency_us), else_=null())
    # cume_dist divides two counts. Below 10^14 calls no other fraction comes so near to 95/100 that
    # it has the same double, so comparing doubles is comparing whole numbers.
    share = func.cume_dist().over(partition_by=[*keys, latency.is_(None)], order_by=latency)
    columns = (usage.c.outcome, usage.c.usage_source, *(usage.c[name] for name in _SUMS.values()))
    calls = (
        select(*keys, *columns, latency.label("latency"), share.label("share"))
        .where(*conditions)
        .subquery()
    )
    groups = [calls.c[key.name] for key in keys]
    call = calls.c
    counts = {
        "errors": call.outcome.in_(FAILED),
        "rejected": call.outcome == "rejected",
        "client_aborted": call.outcome == "client_aborted",
        "estimated": call.usage_source == "estimated",
        "degraded": call.outcome.is_(None),
    }
    return (
        select(
            *groups,
            func.count().label("requests"),
            *(_count(condition).label(name) for name, condition in counts.items()),
            *(half for name, column in _SUMS.items() for half in exact_sum(call[column], name)),
            *(
                func.min(case((call.share >= percentile, call.latency))).label(name)
                for name, percentile in PERCENTILES.items()
            ),
        )
        .group_by(*groups)
        .order_by(*(group.nulls_first() for group in groups))
    )


def read_totals(group_by: Sequence[str], row: RowMapping) -> UsageTotals:
    """A row of :func:`usage_totals`."""
    figures: dict[str, Any] = {}
    for name in _FIGURES:
        if name in _SUMS:
            figures[name] = whole_sum(row, name)
        elif name in PERCENTILES:
            figures[name] = None if row[name] is None else int(row[name]) / 1000
        else:
            figures[name] = int(row[name] or 0)
    return UsageTotals(
        {name: _group_text(name, row[f"group_{name}"]) for name in group_by}, **figures
    )


def _count(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.sum(case((condition, 1), else_=0))


def _group_text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if name == "day":
        return f"{_datetime(int(value) * _DAY_US):%Y-%m-%d}"
    if name == "hour":
        return f"{_datetime(int(value) * _HOUR_US):%Y-%m-%dT%H:00:00Z}"
    return str(value)


def _datetime(timestamp_us: int) -> datetime:
    return datetime.fromtimestamp(timestamp_us // MICROS_PER_S, timezone.utc)
