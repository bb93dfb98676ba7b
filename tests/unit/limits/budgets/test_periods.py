"""Where budget periods begin and end: zones, changes of the clock, leap days, ends of months."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Literal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.clock import FrozenClock
from router.limits.budgets.periods import TOTAL, Calendar, Period, period_at

HOUR_MS = 3_600_000

# Berlin: days of 23 and 25 hours. Havana: 0:00 comes twice. Cairo, Beirut: no 0:00. Newfoundland:
# the clock went back across midnight until 2011. Apia: 30 December 2011 never was. Niue: far end.
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "America/Havana", "Africa/Cairo", "Asia/Beirut",
    "America/St_Johns", "Pacific/Apia", "Pacific/Niue", "Asia/Kathmandu", "Australia/Lord_Howe",
)  # fmt: skip
KINDS: tuple[Literal["daily", "monthly"], ...] = ("daily", "monthly")


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    ("kind", "zone", "at", "start", "end"),
    [
        (
            "daily",
            "UTC",
            "2028-02-29T12:00+00:00",
            "2028-02-29T00:00+00:00",
            "2028-03-01T00:00+00:00",
        ),
        (
            "monthly",
            "UTC",
            "2028-02-29T23:59+00:00",
            "2028-02-01T00:00+00:00",
            "2028-03-01T00:00+00:00",
        ),
        (
            "monthly",
            "UTC",
            "2027-12-31T23:59+00:00",
            "2027-12-01T00:00+00:00",
            "2028-01-01T00:00+00:00",
        ),
        (
            "daily",
            "Europe/Berlin",
            "2027-03-28T12:00+02:00",
            "2027-03-28T00:00+01:00",
            "2027-03-29T00:00+02:00",
        ),
        (
            "daily",
            "Europe/Berlin",
            "2027-10-31T12:00+01:00",
            "2027-10-31T00:00+02:00",
            "2027-11-01T00:00+01:00",
        ),
        (
            "monthly",
            "Europe/Berlin",
            "2027-03-31T23:30+02:00",
            "2027-03-01T00:00+01:00",
            "2027-04-01T00:00+02:00",
        ),
        (
            "daily",
            "Africa/Cairo",
            "2027-04-30T12:00+03:00",
            "2027-04-30T01:00+03:00",
            "2027-05-01T00:00+03:00",
        ),
        (
            "daily",
            "America/Havana",
            "2027-11-07T12:00-05:00",
            "2027-11-07T00:00-04:00",
            "2027-11-08T00:00-05:00",
        ),
        (
            "daily",
            "America/St_Johns",
            "2010-11-06T23:30-03:30",
            "2010-11-07T00:00-02:30",
            "2010-11-08T00:00-03:30",
        ),
        (
            "daily",
            "Pacific/Apia",
            "2011-12-31T12:00+14:00",
            "2011-12-31T00:00+14:00",
            "2012-01-01T00:00+14:00",
        ),
    ],
)
def test_known_boundaries(
    kind: Literal["daily", "monthly"], zone: str, at: str, start: str, end: str
) -> None:
    """B12: month end, leap day, both changes of the clock, and midnights that are not there."""
    assert period_at(kind, zone, ms(at)) == Period(ms(start), ms(end))


@given(
    kind=st.sampled_from(KINDS),
    zone=st.sampled_from(ZONES),
    at_ms=st.integers(ms("2005-01-01T00:00+00:00"), ms("2037-12-31T00:00+00:00")),
)
def test_periods_follow_one_another_without_a_gap(
    kind: Literal["daily", "monthly"], zone: str, at_ms: int
) -> None:
    """B12: every instant is in exactly one period, which is the same for all its instants."""
    period = period_at(kind, zone, at_ms)
    assert period.end_ms is not None
    assert period.holds(at_ms)
    assert period_at(kind, zone, period.start_ms) == period
    assert period_at(kind, zone, period.end_ms - 1) == period
    following = period_at(kind, zone, period.end_ms)
    before = period_at(kind, zone, period.start_ms - 1)
    assert following.start_ms == period.end_ms
    assert before.end_ms == period.start_ms


@given(
    zone=st.sampled_from(ZONES),
    day=st.dates(date(2012, 1, 2), date(2037, 12, 30)),
    second=st.integers(0, 86_399),
)
def test_a_day_is_what_the_wall_clock_says(zone: str, day: date, second: int) -> None:
    """B12: outside the hour in which a clock is changed, the period's date is the local date."""
    instant = datetime(day.year, day.month, day.day, tzinfo=timezone.utc) + timedelta(
        seconds=second
    )
    period = period_at("daily", zone, int(instant.timestamp()) * 1000)
    first = datetime.fromtimestamp(period.start_ms / 1000, ZoneInfo(zone))
    assert first.date() == instant.astimezone(ZoneInfo(zone)).date()
    assert first.hour <= 1
    assert period.end_ms is not None
    assert 22 * HOUR_MS < period.end_ms - period.start_ms < 26 * HOUR_MS


def test_a_total_has_no_end() -> None:
    """What never resets has one period for ever."""
    assert period_at("total", "Europe/Berlin", ms("2027-01-01T00:00+00:00")) == TOTAL
    assert TOTAL.end_ms is None
    assert TOTAL.holds(0)
    assert TOTAL.holds(10**15)


def test_the_calendar_follows_the_clock_of_redis() -> None:
    """B12: hosts whose clocks differ agree on the period, once Redis has told them its time."""
    clock = FrozenClock(ms("2028-01-31T23:59:58+00:00") / 1000)
    calendar = Calendar(clock)
    assert calendar.now("monthly", "UTC").start_ms == ms("2028-01-01T00:00+00:00")
    calendar.learn(ms("2028-02-01T00:00:03+00:00"))
    assert calendar.now("monthly", "UTC").start_ms == ms("2028-02-01T00:00+00:00")
    assert calendar.now("daily", "Europe/Berlin").start_ms == ms("2028-02-01T00:00+01:00")
    clock.advance(86_400)
    assert calendar.now("daily", "UTC").start_ms == ms("2028-02-02T00:00+00:00")
