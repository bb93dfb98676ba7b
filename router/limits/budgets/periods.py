"""Where a budget period begins and ends, in the time zone of whoever pays."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

from router.clock import Clock

PeriodKind = Literal["daily", "monthly", "total"]

_DAY: Final = timedelta(days=1)


class Period(NamedTuple):
    """From ``start_ms`` up to, and without, ``end_ms``: milliseconds since the Unix epoch."""

    start_ms: int
    end_ms: int | None
    """``None`` for a period that does not end."""

    def holds(self, at_ms: int) -> bool:
        """Whether ``at_ms`` is in this period."""
        return self.start_ms <= at_ms and (self.end_ms is None or at_ms < self.end_ms)


TOTAL: Final = Period(0, None)


def period_at(kind: PeriodKind, timezone: str, at_ms: int) -> Period:
    """The period that holds ``at_ms``. Periods of a kind and zone follow one another without a gap.

    A day begins at the first instant that carries its date. That is midnight, or where clocks skip
    midnight the instant of the change, or where midnight comes twice the first one.
    """
    if kind == "total":
        return TOTAL
    zone = ZoneInfo(timezone)
    first = datetime.fromtimestamp(at_ms // 1000, zone).date()
    if kind == "monthly":
        first = first.replace(day=1)
    start_ms, end_ms = _begin_ms(first, zone), _begin_ms(_next(kind, first), zone)
    # Where clocks go back across midnight, the old date comes once more after the new day began.
    while at_ms >= end_ms:
        first = _next(kind, first)
        start_ms, end_ms = end_ms, _begin_ms(_next(kind, first), zone)
    return Period(start_ms, end_ms)


class Calendar:
    """The current periods by the clock of Redis, as near as this host knows it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._skew_ms = 0
        self._current: dict[tuple[str, str], Period] = {}

    def now(self, kind: PeriodKind, timezone: str) -> Period:
        """The period that is going on."""
        return self.period_at(kind, timezone, self.now_ms())

    def now_ms(self) -> int:
        """The time, in milliseconds since the Unix epoch."""
        return int(self._clock.now_s() * 1000) + self._skew_ms

    def learn(self, redis_ms: int) -> None:
        """Redis' clock says something else."""
        self._skew_ms = redis_ms - int(self._clock.now_s() * 1000)

    def period_at(self, kind: PeriodKind, timezone: str, at_ms: int) -> Period:
        """:func:`period_at`, remembering the last answer for each kind and zone."""
        if kind == "total":
            return TOTAL
        known = self._current.get((kind, timezone))
        if known is None or not known.holds(at_ms):
            known = self._current[kind, timezone] = period_at(kind, timezone, at_ms)
        return known


def _next(kind: PeriodKind, first: date) -> date:
    if kind == "daily":
        return first + _DAY
    return (first.replace(day=28) + 4 * _DAY).replace(day=1)


def _begin_ms(day: date, zone: ZoneInfo) -> int:
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return int(midnight.timestamp()) * 1000
