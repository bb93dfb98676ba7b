"""Which window is which, and when one that Redis has may not be believed."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Denied,
    InFlight,
    NeedsRebuild,
    Past,
    Reservation,
    ThresholdEvent,
    WindowSpec,
)
from tests.unit.limits.conftest import frozen_script

SPEND = WindowSpec("spend", "usd", "monthly", 1000, timezone="Europe/Berlin", thresholds=(50,))
TTL_MS = 60_000
ADDED_MS = 1_999_999_999_000


class Host:
    """A router that knows when a budget was last added to its document."""

    def __init__(self, stand: Any, since_ms: int = 0) -> None:
        self.since_ms = since_ms
        options: dict[str, Any] = {
            "clock": stand.clock,
            "since_ms_of": lambda _organization_id: self.since_ms,
            "load": frozen_script,
        }
        self.ledger = Ledger(stand, **options)
        self.maintenance = LedgerMaintenance(stand, **options)

    def reserve(self, lease: str, cost: int, *windows: WindowSpec) -> Any:
        amounts = Amounts(cost, 1)
        return self.ledger.reserve("acme", lease, windows or (SPEND,), amounts, ttl_ms=TTL_MS)

    def spend(self, lease: str, cost: int, *windows: WindowSpec) -> None:
        held = self.reserve(lease, cost, *windows)
        assert isinstance(held, Reservation)
        self.ledger.settle(held, Amounts(cost, 1))

    def seed(self, past: Past | int, *windows: WindowSpec) -> tuple[ThresholdEvent, ...]:
        return self.maintenance.rebuild("acme", windows or (SPEND,), lambda _lost: past)

    def figures(self, window: WindowSpec = SPEND) -> tuple[int, int]:
        [state] = self.ledger.read("acme", [window])
        assert not state.lost
        return state.settled, state.reserved


@pytest.fixture
def host(stand: Any) -> Host:
    made = Host(stand)
    made.seed(0)
    return made


@pytest.mark.parametrize(
    "change",
    [
        {"name": "spending"},
        {"unit": "tokens"},
        {"period": "daily"},
        {"period": "total"},
        {"timezone": "Europe/Paris"},
        {"timezone": "America/New_York"},
        {"timezone": "UTC"},
        {"scope": "key", "subject": "k1"},
    ],
    ids=str,
)
def test_whatever_makes_another_window_must_be_seeded(host: Host, change: dict[str, Any]) -> None:
    """B12: 950 of 1000 are used. Renamed, moved or counted otherwise, the budget opened at 0."""
    host.spend("a", 950)
    changed = replace(SPEND, **change)
    assert isinstance(host.reserve("b", 51, changed), NeedsRebuild)
    host.seed(950, changed)
    assert isinstance(host.reserve("b", 51, changed), Denied) == (changed.unit == "usd")
    assert host.figures(changed)[0] == 950


@pytest.mark.parametrize(
    "change", [{"limit": 900}, {"limit": None}, {"thresholds": (10,)}, {"enforced": False}], ids=str
)
def test_other_terms_for_the_same_window_keep_what_is_counted(
    host: Host, change: dict[str, Any]
) -> None:
    """Its sum does not depend on its limit."""
    host.spend("a", 300)
    assert host.figures(replace(SPEND, **change)) == (300, 0)


def test_a_total_has_no_time_zone(host: Host) -> None:
    """It has no midnight that could lie elsewhere."""
    zones = ("UTC", "Asia/Tokyo")
    utc, tokyo = (WindowSpec("all", "usd", "total", 9, timezone=zone) for zone in zones)
    assert utc.identity == tokyo.identity


def test_a_budget_that_was_put_back_has_missed_calls(stand: Any, host: Host) -> None:
    """Removed, five calls, put back: those five were never counted."""
    host.spend("a", 100)
    host.since_ms = ADDED_MS
    assert isinstance(host.reserve("b", 1), NeedsRebuild)
    assert host.ledger.read("acme", [SPEND])[0].lost
    host.seed(600)
    assert host.figures() == (600, 0)
    assert isinstance(host.reserve("c", 401), Denied)


def test_a_call_that_ends_while_a_window_catches_up_counts_once(stand: Any, host: Host) -> None:
    """It is settled between the question to the records and the seed, and is in neither sum."""
    held = host.reserve("a", 100)
    host.since_ms = ADDED_MS
    asked = []

    def sum_records(lost: Any) -> int:
        asked.append(lost.orphans)
        if len(asked) == 1:
            host.ledger.settle(held, Amounts(70, 1))
        return 500

    host.maintenance.rebuild("acme", [SPEND], sum_records)
    assert asked == [(), ("a",)]
    assert host.figures() == (570, 0)


def test_what_is_reserved_stays_while_a_window_catches_up(stand: Any, host: Host) -> None:
    """Running calls go on, and are settled in it."""
    held = host.reserve("a", 100)
    host.since_ms = ADDED_MS
    host.seed(500)
    assert host.figures() == (500, 100)
    host.ledger.settle(held, Amounts(70, 1))
    assert host.figures() == (570, 0)


def test_each_host_that_adds_a_budget_has_it_seeded(stand: Any, host: Host) -> None:
    """A document reaches one host after the other; the last one has missed calls, too."""
    first, second, third = Host(stand, ADDED_MS), Host(stand, ADDED_MS + 3000), Host(stand)
    first.seed(100)
    assert isinstance(first.reserve("a", 1), Reservation)
    assert isinstance(second.reserve("b", 1), NeedsRebuild)
    second.seed(103)
    for at, one in enumerate((first, second, third, host)):
        assert isinstance(one.reserve(f"c{at}", 1), Reservation)


def test_a_seed_for_an_earlier_addition_is_refused(stand: Any, host: Host) -> None:
    """Two hosts rebuild at once; what the first one seeds is too old for the second."""
    first, second = Host(stand, ADDED_MS), Host(stand, ADDED_MS + 3000)
    for_first = first.maintenance.inspect("acme", SPEND)
    for_second = second.maintenance.inspect("acme", SPEND)
    assert for_first is not None
    assert for_second is not None
    assert first.maintenance.seed("acme", for_first, 100).outcome == "seeded"
    assert second.maintenance.seed("acme", for_second, 100).outcome == "stale"
    second.seed(103)
    assert second.figures() == (103, 0)


def test_a_budget_put_back_in_a_later_period_is_not_new(stand: Any, host: Host) -> None:
    """A new period opens at 0 only where the window has been there since before it."""
    stand.clock.advance(40 * 86_400)
    host.since_ms = int(stand.clock.wall_s * 1000) - 1000
    assert isinstance(host.reserve("a", 1), NeedsRebuild)
    host.seed(40)
    stand.clock.advance(40 * 86_400)
    host.spend("b", 1)
    assert host.figures() == (1, 0)


def test_a_threshold_is_not_reached_again_by_a_seed(stand: Any, host: Host) -> None:
    """B18: one event a period, although the window is seeded once more."""
    assert host.seed(0) == ()
    held = host.reserve("a", 600)
    assert host.ledger.settle(held, Amounts(600, 1)).threshold_events
    host.since_ms = ADDED_MS
    assert host.seed(700) == ()


def test_a_settlement_that_the_records_were_ahead_of_counts_once(stand: Any) -> None:
    """P6: the record comes first. Redis was emptied; the sum has a call that is settled later."""
    host = Host(stand)
    host.seed(0)
    held = host.reserve("a", 100)
    stand.client.execute_command("FLUSHALL")
    host.seed(Past(70, unsettled=frozenset({"a", "x"})))
    for _ in range(2):
        host.ledger.settle(held, Amounts(70, 1))
    assert host.figures() == (70, 0)


def test_calls_in_flight_keep_what_they_have_reserved(stand: Any) -> None:
    """P9: Redis was emptied; 900 of 1000 are with running calls, so 101 do not fit."""
    host = Host(stand)
    host.seed(0)
    held = [host.reserve(lease, 300) for lease in "abc"]
    stand.client.execute_command("FLUSHALL")
    now_ms = int(stand.clock.wall_s * 1000)
    calls = tuple(InFlight(one.lease_id, 300, now_ms + TTL_MS) for one in held)
    gone = InFlight("killed", 50, now_ms - 1)
    host.seed(Past(0, in_flight=(*calls, gone, InFlight("free", 0, now_ms + TTL_MS))))
    assert host.figures() == (0, 900)
    assert isinstance(host.reserve("d", 101), Denied)
    for one in held:
        host.ledger.settle(one, Amounts(10, 1))
    assert host.figures() == (30, 0)


@pytest.mark.parametrize("used", [NOTHING, Amounts(5, 1)])
def test_a_call_that_ends_during_a_rebuild_is_not_in_flight(stand: Any, used: Amounts) -> None:
    """Who counted it as running must look again, also when it has used nothing."""
    host = Host(stand)
    host.seed(0)
    held = host.reserve("a", 300)
    stand.client.execute_command("FLUSHALL")
    lost = host.maintenance.inspect("acme", SPEND)
    assert lost is not None
    host.ledger.settle(held, used)
    running = InFlight("a", 300, int(stand.clock.wall_s * 1000) + TTL_MS)
    assert host.maintenance.seed("acme", lost, Past(0, in_flight=(running,))).outcome == "stale"
    host.seed(0)
    assert host.figures() == (used.cost_nanos, 0)


def test_a_correction_that_a_seed_contains_is_not_made_again(stand: Any) -> None:
    """B10: Redis has forgotten that it was made; the audit trail has not."""
    host = Host(stand)
    host.seed(Past(95, correction_ids=("c1",)))
    correction = {"correction_id": "c1", "reason": "refund"}
    assert host.maintenance.adjust("acme", SPEND, -5, **correction).done_before
    assert host.figures() == (95, 0)


def test_a_look_drops_no_lease_that_nobody_would_report(stand: Any, host: Host) -> None:
    """P7: a read or an unanswered question leaves expired leases to the next reservation."""
    host.reserve("killed", 300)
    stand.clock.advance(TTL_MS / 1000)
    assert host.figures() == (0, 0)
    other = replace(SPEND, name="other")
    assert isinstance(host.reserve("a", 1, SPEND, other), NeedsRebuild)
    assert host.reserve("b", 1).dropped == ("killed",)


# --- periods, by the calendar -----------------------------------------------------------------

DAYS = [
    # the month's last half hour in New York is the next month's in UTC
    ("monthly", "America/New_York", "2034-02-01T04:30", "2034-01-01T05:00", "2034-02-01T05:00"),
    # 23 and 25 hours
    ("daily", "Europe/Berlin", "2034-03-26T12:00", "2034-03-25T23:00", "2034-03-26T22:00"),
    ("daily", "Europe/Berlin", "2034-10-29T12:00", "2034-10-28T22:00", "2034-10-29T23:00"),
    # a month that loses an hour
    ("monthly", "Europe/Berlin", "2034-03-26T12:00", "2034-02-28T23:00", "2034-03-31T22:00"),
    # leap years have the 29th
    ("daily", "UTC", "2036-02-29T12:00", "2036-02-29T00:00", "2036-03-01T00:00"),
    ("monthly", "UTC", "2036-02-29T12:00", "2036-02-01T00:00", "2036-03-01T00:00"),
    ("monthly", "UTC", "2034-02-28T23:59", "2034-02-01T00:00", "2034-03-01T00:00"),
    # quarters of an hour: 5:45 ahead, and 3:30 behind with 2:30 in summer
    ("daily", "Asia/Kathmandu", "2034-05-10T18:14", "2034-05-09T18:15", "2034-05-10T18:15"),
    ("daily", "America/St_Johns", "2034-03-12T12:00", "2034-03-12T03:30", "2034-03-13T02:30"),
]


def utc_ms(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}+00:00").timestamp() * 1000)


@pytest.mark.parametrize(("kind", "zone", "now", "begins", "ends"), DAYS, ids=str)
def test_a_window_is_seeded_for_its_calendar_period(
    stand: Any, kind: Any, zone: str, now: str, begins: str, ends: str
) -> None:
    """B12: begins and ends were worked out by hand. The last millisecond belongs to the period, the
    next one to a new one, which needs no records."""
    host, window = Host(stand), WindowSpec("spend", "usd", kind, 1000, timezone=zone)
    stand.clock.wall_s = utc_ms(now) / 1000
    lost = host.maintenance.inspect("acme", window)
    assert lost is not None
    assert lost.period == (utc_ms(begins), utc_ms(ends))
    assert all(at_ms % 900_000 == 0 for at_ms in lost.period if at_ms is not None)
    assert host.maintenance.seed("acme", lost, 900).outcome == "seeded"
    stand.clock.wall_s = (utc_ms(ends) - 1) / 1000
    assert isinstance(host.reserve("a", 101, window), Denied)
    held = host.reserve("b", 100, window)
    stand.clock.wall_s = utc_ms(ends) / 1000
    assert isinstance(host.reserve("c", 1000, window), Reservation)
    host.ledger.settle(held, Amounts(100, 1))
    assert host.figures(window) == (0, 1000)
