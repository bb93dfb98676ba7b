"""Rebuilding lost windows from the records, and corrections by hand."""

from __future__ import annotations

from typing import Any

import pytest

from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import (
    Amounts,
    LostWindow,
    NeedsRebuild,
    Reservation,
    ThresholdEvent,
    WindowLost,
    WindowSpec,
)

SPEND = WindowSpec("spend", "usd", "daily", 1000, timezone="Europe/Berlin", thresholds=(50, 80))
CALLS = WindowSpec("calls", "requests", "total", 100, scope="key", subject="k1")
TTL_MS = 60_000


def reserve(stand: Any, lease: str, cost: int, *windows: WindowSpec) -> Any:
    specs = windows or (SPEND,)
    return stand.ledger().reserve("acme", lease, specs, Amounts(cost, 0), ttl_ms=TTL_MS)


def figures(stand: Any, window: WindowSpec = SPEND) -> tuple[int, int]:
    [state] = stand.ledger().read("acme", [window])
    assert not state.lost
    return state.settled, state.reserved


def test_a_lost_window_is_rebuilt_from_the_records(stand: Any) -> None:
    """Emptied Redis: what the records say counts again before anything is admitted."""
    assert isinstance(reserve(stand, "a", 1), NeedsRebuild)
    stand.maintenance().rebuild("acme", [SPEND], lambda _lost: 990)
    assert reserve(stand, "a", 11).binding.settled == 990
    assert isinstance(reserve(stand, "a", 10), Reservation)


def test_a_window_is_seeded_once(stand: Any) -> None:
    """Of many callers that found it lost, the first seeds; nobody counts anything twice."""
    maintenance = stand.maintenance()
    found = [maintenance.inspect("acme", SPEND) for _ in range(3)]
    outcomes = [maintenance.seed("acme", lost, 100).outcome for lost in found]
    assert outcomes == ["seeded", "open", "open"]
    assert figures(stand) == (100, 0)
    assert maintenance.inspect("acme", SPEND) is None


def test_calls_that_end_while_a_window_is_lost_are_not_lost(stand: Any) -> None:
    """Their cost is kept apart, named, and added to a sum of records that leaves them out."""
    maintenance = stand.maintenance()
    maintenance.rebuild("acme", [SPEND], lambda _lost: 0)
    held = [reserve(stand, lease, 100) for lease in "ab"]
    stand.client.execute_command("FLUSHALL")
    stand.ledger().settle(held[0], Amounts(70, 0))
    assert not stand.ledger().settle(held[0], Amounts(70, 0)).booked

    def sum_records(lost: LostWindow) -> int:
        assert (lost.window, lost.orphans, lost.generation) == (SPEND, ("a",), 1)
        return 500

    maintenance.rebuild("acme", [SPEND], sum_records)
    assert figures(stand) == (570, 0)
    stand.ledger().settle(held[1], Amounts(30, 0))
    assert figures(stand) == (600, 0)


def test_a_seed_that_an_orphan_overtook_is_refused(stand: Any) -> None:
    """Whether the sum has that call in it nobody knows, so the records are asked again."""
    maintenance = stand.maintenance()
    maintenance.rebuild("acme", [SPEND], lambda _lost: 0)
    held = reserve(stand, "a", 100)
    stand.client.execute_command("FLUSHALL")
    asked: list[tuple[str, ...]] = []

    def sum_records(lost: LostWindow) -> int:
        asked.append(lost.orphans)
        if len(asked) == 1:
            stand.ledger().settle(held, Amounts(70, 0))
        return 500

    maintenance.rebuild("acme", [SPEND], sum_records)
    assert asked == [(), ("a",)]
    assert figures(stand) == (570, 0)


def test_records_that_cannot_be_read_leave_the_window_lost(stand: Any) -> None:
    """No guess: it admits nothing until somebody knows."""

    def sum_records(_lost: LostWindow) -> int:
        raise OSError("no database")

    with pytest.raises(OSError, match="no database"):
        stand.maintenance().rebuild("acme", [SPEND], sum_records)
    assert isinstance(reserve(stand, "a", 1), NeedsRebuild)


def test_an_evicted_counter_is_not_a_free_budget(stand: Any) -> None:
    """D10: a counter that was there in this period and is gone is lost, not new; what is still
    reserved in it counts."""
    stand.maintenance().rebuild("acme", [SPEND], lambda _lost: 0)
    held = reserve(stand, "a", 600)
    [counter] = [key for key in stand.key_names() if "spend" in key and "leases" not in key]
    stand.client.execute_command("DEL", counter)
    assert isinstance(reserve(stand, "b", 1), NeedsRebuild)
    stand.maintenance().rebuild("acme", [SPEND], lambda _lost: 300)
    assert figures(stand) == (300, 600)
    stand.ledger().settle(held, Amounts(10, 0))
    assert figures(stand) == (310, 0)


def test_windows_of_a_new_period_are_not_lost(stand: Any) -> None:
    """B12: the record store is asked after a loss, not at every midnight."""
    stand.maintenance().rebuild("acme", [SPEND], lambda _lost: 900)
    stand.clock.advance(86_400)
    assert stand.maintenance().inspect("acme", SPEND) is None
    assert isinstance(reserve(stand, "a", 1000), Reservation)


def test_the_period_of_a_lost_window_is_that_of_redis(stand: Any) -> None:
    """A host whose clock is a day late rebuilds the day that Redis counts in."""
    stand.skew_s = 86_400.0
    lost = stand.maintenance().inspect("acme", SPEND)
    assert lost is not None
    assert lost.period.holds(int((stand.clock.wall_s + 86_400) * 1000))


def test_thresholds_that_a_seed_reaches_are_reported(stand: Any) -> None:
    """What was crossed while Redis was away is told by the rebuild, and not again."""
    maintenance = stand.maintenance()
    assert maintenance.rebuild("acme", [SPEND], lambda _lost: 600) == (ThresholdEvent(SPEND, 50),)
    held = reserve(stand, "a", 300)
    settled = stand.ledger().settle(held, Amounts(300, 0))
    assert settled.threshold_events == (ThresholdEvent(SPEND, 80),)


def test_an_adjustment_is_made_once(stand: Any) -> None:
    """B10: spend is corrected with a reason; the same correction twice is one."""
    maintenance = stand.maintenance()
    maintenance.rebuild("acme", [SPEND], lambda _lost: 600)
    first = maintenance.adjust("acme", SPEND, -150, correction_id="c1", reason="billed twice")
    again = maintenance.adjust("acme", SPEND, -150, correction_id="c1", reason="billed twice")
    assert (first.before, first.after, first.reason, first.done_before) == (
        600, 450, "billed twice", False,
    )  # fmt: skip
    assert again.done_before
    assert figures(stand) == (450, 0)


def test_an_adjustment_never_goes_below_zero(stand: Any) -> None:
    """A credit is no larger than what was spent in the period."""
    maintenance = stand.maintenance()
    maintenance.rebuild("acme", [SPEND], lambda _lost: 10)
    assert maintenance.adjust("acme", SPEND, -150, correction_id="c", reason="r").after == 0


def test_a_reset_begins_again_and_keeps_reservations(stand: Any) -> None:
    """B10: the calls that are running still count; other windows are left alone."""
    maintenance = stand.maintenance()
    maintenance.rebuild("acme", [SPEND, CALLS], lambda _lost: 60)
    reserve(stand, "a", 100, SPEND, CALLS)
    adjustment = maintenance.reset("acme", SPEND, correction_id="c", reason="goodwill")
    assert (adjustment.before, adjustment.after) == (60, 0)
    assert figures(stand) == (0, 100)
    assert figures(stand, CALLS) == (60, 1)


def test_an_adjustment_reports_the_thresholds_it_reaches(stand: Any) -> None:
    """B18: it counts like any other spend; a reset does not arm what was reported."""
    maintenance = stand.maintenance()
    maintenance.rebuild("acme", [SPEND], lambda _lost: 0)
    up = maintenance.adjust("acme", SPEND, 900, correction_id="c1", reason="late invoice")
    assert [threshold_event.percent for threshold_event in up.threshold_events] == [50, 80]
    maintenance.reset("acme", SPEND, correction_id="c2", reason="mistake")
    again = maintenance.adjust("acme", SPEND, 900, correction_id="c3", reason="no mistake")
    assert again.threshold_events == ()


def test_the_first_adjustment_of_a_period_opens_it(stand: Any) -> None:
    """B12: a correction just after midnight finds a window that begins at nothing."""
    maintenance = stand.maintenance()
    maintenance.rebuild("acme", [SPEND], lambda _lost: 900)
    stand.clock.advance(86_400)
    adjustment = maintenance.adjust("acme", SPEND, 5, correction_id="c", reason="r")
    assert (adjustment.before, adjustment.after) == (0, 5)
    assert figures(stand) == (5, 0)


def test_a_lost_window_is_not_corrected(stand: Any) -> None:
    """There is nothing yet to correct; and the correction may be tried again afterwards."""
    maintenance = stand.maintenance()
    with pytest.raises(WindowLost):
        maintenance.adjust("acme", SPEND, 5, correction_id="c", reason="r")
    maintenance.rebuild("acme", [SPEND], lambda _lost: 0)
    assert maintenance.adjust("acme", SPEND, 5, correction_id="c", reason="r").after == 5


def test_a_correction_follows_the_clock_of_redis(stand: Any) -> None:
    """It lands in the period in which Redis counts, however wrong the host's clock is."""
    stand.maintenance().rebuild("acme", [SPEND], lambda _lost: 0)
    stand.skew_s = 3 * 86_400.0
    stand.maintenance().adjust("acme", SPEND, 5, correction_id="c", reason="r")
    assert figures(stand) == (5, 0)


@pytest.mark.parametrize(("amount", "reason"), [(10**18, "r"), (1, " ")])
def test_corrections_that_make_no_sense_are_refused(amount: int, reason: str) -> None:
    """B10: no reason, no correction; nothing beyond exact counting."""
    with pytest.raises(ValueError, match=r"reason|no amount"):
        LedgerMaintenance(None).adjust("acme", SPEND, amount, correction_id="c", reason=reason)  # type: ignore[arg-type]


def test_more_orphans_than_lua_can_unpack(stand: Any) -> None:
    """Thousands of calls may end while the record store is away."""
    maintenance, ledger = stand.maintenance(), stand.ledger()
    maintenance.rebuild("acme", [SPEND], lambda _lost: 0)
    held = reserve(stand, "a", 0)
    stand.client.execute_command("FLUSHALL")
    ledger.settle(held, Amounts(1, 0))
    [counter] = [key for key in stand.key_names() if "spend" in key]
    fields = [part for number in range(20_000) for part in (f"o:x{number}", 1)]
    stand.client.execute_command("HSET", counter, *fields)
    lost = maintenance.inspect("acme", SPEND)
    assert lost is not None
    assert len(lost.orphans) == 20_001
    maintenance.seed("acme", lost, 5)
    assert figures(stand) == (20_006, 0)


def test_a_running_call_holds_again_what_was_lost(stand: Any) -> None:
    """P7: by hand, 300 of 1000 in both orders of seed and reservation, however often it is said."""
    for is_seeded_first in (True, False):
        stand.client.execute_command("FLUSHALL")
        maintenance = stand.maintenance()
        maintenance.rebuild("acme", [SPEND, CALLS], lambda _lost: 0)
        held = reserve(stand, "a", 300, SPEND, CALLS)
        assert not maintenance.hold_again(held, ttl_ms=TTL_MS), "nothing was lost"
        assert figures(stand) == (0, 300)
        stand.client.execute_command("FLUSHALL")
        if is_seeded_first:
            maintenance.rebuild("acme", [SPEND, CALLS], lambda _lost: 50)
        for _ in range(2):
            assert maintenance.hold_again(held, ttl_ms=TTL_MS)
        if not is_seeded_first:
            maintenance.rebuild("acme", [SPEND, CALLS], lambda _lost: 50)
        assert (figures(stand), figures(stand, CALLS)) == ((50, 300), (50, 1))
        assert reserve(stand, "b", 651).this_request == 651
        assert stand.ledger().settle(held, Amounts(200, 0)).booked
        assert maintenance.hold_again(held, ttl_ms=TTL_MS)
        assert (figures(stand), figures(stand, CALLS)) == ((250, 0), (51, 0))


def test_a_lease_that_has_ended_is_not_held_again(stand: Any) -> None:
    """P6: its amount has been free since, and would be held until nobody knows when."""
    maintenance = stand.maintenance()
    maintenance.rebuild("acme", [SPEND], lambda _lost: 0)
    held = reserve(stand, "a", 300)
    stand.client.execute_command("FLUSHALL")
    maintenance.rebuild("acme", [SPEND], lambda _lost: 0)
    stand.clock.advance(TTL_MS / 1000)
    assert maintenance.hold_again(held, ttl_ms=TTL_MS)
    assert figures(stand) == (0, 0)
