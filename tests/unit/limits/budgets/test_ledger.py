"""The ledger: reservations, settlements, and what the windows say of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from router.breaker import Unavailable
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.windows import (
    MAX_AMOUNT,
    NOTHING,
    Amounts,
    Closed,
    Denied,
    NeedsRebuild,
    NotReserved,
    Reservation,
    Settlement,
    ThresholdEvent,
    WindowSpec,
)
from router.redis.scripts import ScriptCall
from tests.unit.limits.conftest import frozen_script

SPEND = WindowSpec("spend", "usd", "monthly", 1000, thresholds=(80, 95))
CALLS = WindowSpec("calls", "requests", "daily", 3, scope="key", subject="k1")
TOKENS = WindowSpec("tokens", "tokens", "total", 500)
WINDOWS = (SPEND, CALLS, TOKENS)
TTL_MS = 60_000


@pytest.fixture
def ledger(stand: Any) -> Ledger:
    """A ledger whose windows are open and empty."""
    stand.maintenance().rebuild("acme", WINDOWS, lambda _lost: 0)
    opened: Ledger = stand.ledger()
    return opened


def reserve(ledger: Ledger, lease: str, cost: int = 100, tokens: int = 10, **options: Any) -> Any:
    windows = options.pop("windows", WINDOWS)
    return ledger.reserve("acme", lease, windows, Amounts(cost, tokens), ttl_ms=TTL_MS, **options)


def figures(ledger: Ledger, *windows: WindowSpec) -> list[tuple[int, int]]:
    states = ledger.read("acme", windows or WINDOWS)
    return [(state.settled, state.reserved) for state in states]


def test_a_reservation_holds_in_every_window(ledger: Ledger) -> None:
    """B16: one lease on money, calls and tokens at once."""
    held = reserve(ledger, "a")
    assert [window.amount for window in held.windows] == [100, 1, 10]
    assert figures(ledger) == [(0, 100), (0, 1), (0, 10)]


def test_settling_frees_the_reservation_and_books_what_was_used(ledger: Ledger) -> None:
    """What was reserved and what is charged are two amounts."""
    held = reserve(ledger, "a")
    assert ledger.settle(held, Amounts(30, 7)) == Settlement(True)
    assert figures(ledger) == [(30, 0), (1, 0), (7, 0)]


def test_releasing_frees_and_books_nothing(ledger: Ledger) -> None:
    """A call that never reached a backend costs nothing."""
    ledger.settle(reserve(ledger, "a"), NOTHING)
    assert figures(ledger) == [(0, 0), (0, 0), (0, 0)]


def test_the_end_of_a_lease_counts_once(ledger: Ledger) -> None:
    """B6: whichever of settle and release comes first wins, however often both are called."""
    held = reserve(ledger, "a")
    assert ledger.settle(held, Amounts(30, 7)).booked
    assert not ledger.settle(held, Amounts(30, 7)).booked
    assert not ledger.settle(held, NOTHING).booked
    other = reserve(ledger, "b")
    assert ledger.settle(other, NOTHING).booked
    assert not ledger.settle(other, Amounts(30, 7)).booked
    assert figures(ledger) == [(30, 0), (1, 0), (7, 0)]


def test_a_duplicate_is_ignored_also_when_the_lease_is_forgotten(
    stand: Any, ledger: Ledger
) -> None:
    """B6: a settlement that is sent again hours later changes nothing."""
    held = reserve(ledger, "a")
    ledger.settle(held, Amounts(30, 7))
    stand.client.execute_command("DEL", "router:{acme}:lease:a")
    stand.clock.advance(121)
    assert not ledger.settle(held, Amounts(30, 7)).booked
    assert figures(ledger, SPEND) == [(30, 0)]


def test_a_long_call_is_forgotten_at_once_and_still_settled_once(
    stand: Any, ledger: Ledger
) -> None:
    """B6: the memory of a lease ends, at the latest, with its settlement; the rule stays."""
    held = reserve(ledger, "a")
    stand.clock.advance(300)
    assert ledger.settle(held, Amounts(30, 7)).booked
    assert "router:{acme}:lease:a" not in stand.key_names()
    assert not ledger.settle(held, Amounts(30, 7)).booked


def test_reserving_twice_with_a_live_lease_holds_once(stand: Any, ledger: Ledger) -> None:
    """A reservation that is sent again answers like the first and changes nothing."""
    first = reserve(ledger, "a")
    stand.clock.advance(1)
    before = stand.dump()
    assert reserve(ledger, "a") == first
    assert stand.dump() == before


def test_a_refusal_touches_no_window(stand: Any, ledger: Ledger) -> None:
    """B16, R2: all windows or none; the store is byte-identical after a refusal."""
    reserve(ledger, "a", cost=900)
    before = stand.dump()
    assert isinstance(reserve(ledger, "b", cost=101), Denied)
    assert stand.dump() == before


def test_a_refusal_tells_why(ledger: Ledger) -> None:
    """B8: settled, reserved, limit, estimate and reset are told apart."""
    ledger.settle(reserve(ledger, "a"), Amounts(300, 7))
    reserve(ledger, "b", cost=650)
    denied = reserve(ledger, "c", cost=51)
    assert isinstance(denied, Denied)
    binding = denied.binding
    assert binding.window == SPEND
    assert (binding.settled, binding.reserved, binding.window.limit) == (300, 650, 1000)
    assert denied.this_request == 51
    assert binding.resets_at_s == datetime.fromisoformat("2033-06-01T00:00+00:00").timestamp()
    assert isinstance(reserve(ledger, "c", cost=50), Reservation)


@pytest.mark.parametrize(
    ("settled", "reserved", "this_request", "waits"),
    [
        (300, 650, 51, True),
        (949, 51, 51, True),
        (950, 50, 51, False),
        (950, 0, 51, False),
        (0, 1000, 1000, True),
        (0, 1000, 1001, False),
    ],
)
def test_a_refusal_tells_whether_only_running_calls_stand_in_the_way(
    ledger: Ledger, settled: int, reserved: int, this_request: int, waits: bool
) -> None:
    """Settled and this call within 1000, or not."""
    if settled:
        ledger.settle(reserve(ledger, "a", cost=settled), Amounts(settled, 0))
    if reserved:
        reserve(ledger, "b", cost=reserved)
    denied = reserve(ledger, "c", cost=this_request)
    assert (denied.binding.window, denied.is_by_reservations) == (SPEND, waits)


@pytest.mark.parametrize("windows", [WINDOWS, WINDOWS[::-1]])
def test_a_refusal_names_what_is_spent_before_what_is_reserved(
    ledger: Ledger, windows: tuple[WindowSpec, ...]
) -> None:
    """Waiting for running calls would not help: the calls of the day are used up, though the
    total of tokens, which running calls fill, never resets."""
    for lease in "abc":
        ledger.settle(reserve(ledger, lease, tokens=0), Amounts(0, 0))
    reserve(ledger, "d", tokens=500, windows=(TOKENS,))
    denied = reserve(ledger, "e", tokens=10, windows=windows)
    assert (denied.binding.window, denied.this_request) == (CALLS, 1)
    assert not denied.is_by_reservations


def test_a_refusal_is_dated_by_the_clock_of_the_counters(stand: Any, ledger: Ledger) -> None:
    """The clock of Redis is 90 s ahead: so the period ends 90 s sooner than this host believes."""
    stand.skew_s = 90.0
    denied = reserve(ledger, "a", cost=1001)
    assert denied.at_ms == (2_000_000_000 + 90) * 1000


def test_what_is_read_is_what_the_next_refusal_says(stand: Any, ledger: Ledger) -> None:
    """B17: both come from the enforcing counters, expired leases left out of both."""
    ledger.settle(reserve(ledger, "a"), Amounts(300, 7))
    reserve(ledger, "b", cost=400)
    stand.clock.advance(30)
    reserve(ledger, "c", cost=200)
    stand.clock.advance(31)
    read = ledger.read("acme", WINDOWS)
    denied = reserve(ledger, "d", cost=501)
    assert denied.states == read
    assert (read[0].settled, read[0].reserved) == (300, 200)


def test_of_several_refusals_the_one_that_lasts_longest_binds(ledger: Ledger) -> None:
    """R2: the answer names the window that keeps the caller waiting, a total before any other."""
    for lease in "abc":
        reserve(ledger, lease)
    assert reserve(ledger, "d", cost=701).binding.window == SPEND
    assert reserve(ledger, "d", cost=701, tokens=471).binding.window == TOKENS
    assert reserve(ledger, "d").binding.window == CALLS


@pytest.mark.parametrize("name", ["usd", "tokens", "requests"])
def test_zero_blocks_what_is_not_free(stand: Any, name: Any) -> None:
    """B11: limit 0 admits only what costs nothing in that unit."""
    window = WindowSpec("none", name, "daily", 0)
    stand.maintenance().rebuild("acme", [window], lambda _lost: 0)
    ledger = stand.ledger()
    free = Amounts(0, 0, 0)
    assert isinstance(ledger.reserve("acme", "a", [window], free, ttl_ms=TTL_MS), Reservation)
    denied = ledger.reserve("acme", "b", [window], Amounts(1, 1, 1), ttl_ms=TTL_MS)
    assert denied.binding.window.limit == 0


def test_what_is_free_passes_an_exhausted_budget(ledger: Ledger) -> None:
    """B11: a model with price zero is served to whoever has spent everything."""
    ledger.settle(reserve(ledger, "a", cost=1000), Amounts(1500, 1))
    assert isinstance(reserve(ledger, "b", cost=1, windows=[SPEND]), Denied)
    assert isinstance(reserve(ledger, "b", cost=0, windows=[SPEND]), Reservation)


def test_no_limit_counts_without_limiting(stand: Any) -> None:
    """B11: absent means unlimited, and the usage can still be read."""
    window = WindowSpec("all", "usd", "total", None)
    stand.maintenance().rebuild("acme", [window], lambda _lost: 0)
    ledger = stand.ledger()
    held = ledger.reserve("acme", "a", [window], Amounts(MAX_AMOUNT, 0), ttl_ms=TTL_MS)
    ledger.settle(held, Amounts(MAX_AMOUNT, 0))
    assert figures(ledger, window) == [(MAX_AMOUNT, 0)]


def test_no_windows_ask_nothing(stand: Any) -> None:
    """A key without budgets costs one look at nothing."""
    ledger = stand.ledger()
    held = ledger.reserve("acme", "a", [], Amounts(1, 1), ttl_ms=TTL_MS)
    assert ledger.settle(held, Amounts(1, 1)).booked
    assert stand.key_names() == []


@pytest.mark.parametrize("unit", ["usd", "tokens", "requests"])
def test_a_limit_beyond_exact_counting_is_refused(unit: Any) -> None:
    """B9: more than 9 000 000 USD in nano-USD leaves the 53 bits of a double."""
    assert WindowSpec("most", unit, "total", MAX_AMOUNT).limit == MAX_AMOUNT
    with pytest.raises(ValueError, match="cannot be counted exactly"):
        WindowSpec("more", unit, "total", MAX_AMOUNT + 1)


def test_the_smallest_unit_adds_up_at_the_largest_budget(stand: Any) -> None:
    """B9: one nano-USD is neither lost nor made at 9 000 000 USD."""
    window = WindowSpec("most", "usd", "total", MAX_AMOUNT, thresholds=(100,))
    stand.maintenance().rebuild("acme", [window], lambda _lost: MAX_AMOUNT - 3)
    ledger = stand.ledger()
    for lease in "abc":
        held = ledger.reserve("acme", lease, [window], Amounts(1, 0), ttl_ms=TTL_MS)
        settled = ledger.settle(held, Amounts(1, 0))
    assert settled.threshold_events == (ThresholdEvent(window, 100),)
    denied = ledger.reserve("acme", "d", [window], Amounts(1, 0), ttl_ms=TTL_MS)
    assert (denied.binding.settled, denied.binding.reserved) == (MAX_AMOUNT, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": -1},
        {"thresholds": (0,)},
        {"thresholds": (101,)},
        {"scope": "key"},
        {"subject": "k1"},
    ],
)
def test_windows_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    """B11: negative limits and the like are errors when they are written."""
    with pytest.raises(ValueError, match="spend"):
        replace(SPEND, **wrong)


@pytest.mark.parametrize("amounts", [(-1, 0, 0), (0, MAX_AMOUNT + 1, 0), (0, 0, -1)])
def test_amounts_that_cannot_be_counted_are_refused(amounts: tuple[int, int, int]) -> None:
    """B9: nothing negative and nothing beyond 53 bits ever reaches a script."""
    with pytest.raises(ValueError, match="no amount"):
        Amounts(*amounts)


def test_each_lease_expires_on_its_own(stand: Any, ledger: Ledger) -> None:
    """B4: traffic on the same key extends no other lease, and what a killed worker held is free
    again exactly at its end and no earlier."""
    reserve(ledger, "lost", cost=600)
    for second in range(59):
        stand.clock.advance(1)
        ledger.settle(reserve(ledger, f"other{second}", cost=1), NOTHING)
    stand.clock.advance(0.999)
    assert figures(ledger, SPEND) == [(0, 600)]
    stand.clock.advance(0.001)
    held = reserve(ledger, "next", cost=1000)
    assert isinstance(held, Reservation)
    assert held.dropped == ("lost",)


def test_a_lost_lease_is_reported_once(stand: Any, ledger: Ledger) -> None:
    """Unresolved calls are told of by whoever finds them first, also by a refusal."""
    reserve(ledger, "lost", cost=600)
    stand.clock.advance(61)
    denied = reserve(ledger, "a", cost=1001)
    assert denied.dropped == ("lost",)
    assert reserve(ledger, "a", cost=1001).dropped == ()


def test_settling_after_expiry_books_once(stand: Any, ledger: Ledger) -> None:
    """P7, B6: a late settlement counts, whether or not somebody dropped the lease before."""
    first, second = reserve(ledger, "a"), reserve(ledger, "b")
    stand.clock.advance(61)
    assert ledger.settle(first, Amounts(30, 7)).booked
    ledger.read("acme", WINDOWS)
    assert ledger.settle(second, Amounts(30, 7)).booked
    assert not ledger.settle(second, Amounts(30, 7)).booked
    assert figures(ledger) == [(60, 0), (2, 0), (14, 0)]


def test_an_expired_lease_can_be_reserved_anew(stand: Any, ledger: Ledger) -> None:
    """A second try after the lease has ended is admitted like any other call, or refused."""
    reserve(ledger, "a", cost=600)
    stand.clock.advance(61)
    reserve(ledger, "b", cost=600)
    assert isinstance(reserve(ledger, "a", cost=600), Denied)
    held = reserve(ledger, "a", cost=400)
    assert isinstance(held, Reservation)
    assert figures(ledger, SPEND) == [(0, 1000)]
    ledger.settle(held, Amounts(1, 1))
    assert figures(ledger, SPEND) == [(1, 600)]


def test_a_call_is_charged_to_the_period_of_its_admission(stand: Any, ledger: Ledger) -> None:
    """B13: admitted before midnight, settled after: the old period has it, the new one does not."""
    seconds_to_midnight = 86_400 - stand.clock.wall_s % 86_400
    stand.clock.advance(seconds_to_midnight - 1)
    held = reserve(ledger, "a")
    stand.clock.advance(2)
    assert figures(ledger, CALLS) == [(0, 0)]
    assert reserve(ledger, "a") == held
    ledger.settle(held, Amounts(30, 7))
    assert figures(ledger, CALLS) == [(0, 0)]
    stand.clock.advance(-2)
    assert figures(ledger, CALLS) == [(1, 0)]


def test_a_new_period_begins_empty_without_a_reset(stand: Any, ledger: Ledger) -> None:
    """B12: the period is part of the key; nobody has to ask the records at midnight."""
    for lease in "abc":
        ledger.settle(reserve(ledger, lease), Amounts(1, 1))
    assert isinstance(reserve(ledger, "d"), Denied)
    stand.clock.advance(86_400)
    assert isinstance(reserve(ledger, "d"), Reservation)
    assert figures(ledger, CALLS) == [(0, 1)]
    stand.clock.advance(40 * 86_400)
    assert isinstance(reserve(ledger, "e"), Reservation)


def test_hosts_whose_clocks_differ_agree_on_the_period(stand: Any, ledger: Ledger) -> None:
    """B12: with 5 s between two hosts nothing is reset twice and no old spend comes back."""
    fast = Ledger(stand, clock=type(stand.clock)(stand.clock.wall_s + 5), load=frozen_script)
    stand.clock.advance(86_400 - stand.clock.wall_s % 86_400 - 2)
    for lease, asked in (("a", ledger), ("b", fast), ("c", ledger)):
        reserve(asked, lease)
    assert isinstance(reserve(fast, "d"), Denied)
    assert isinstance(reserve(ledger, "d"), Denied)
    stand.clock.advance(3)
    assert isinstance(reserve(fast, "d"), Reservation)
    assert isinstance(reserve(ledger, "e"), Reservation)
    assert figures(ledger, CALLS) == figures(fast, CALLS) == [(0, 2)]


def test_a_wrong_local_clock_costs_one_more_round_trip_once(stand: Any, ledger: Ledger) -> None:
    """The periods are those of Redis' clock; the difference is learnt from its first objection."""
    stand.skew_s = 10 * 86_400.0
    calls = stand.calls
    reserve(ledger, "a")
    assert stand.calls == calls + 2
    reserve(ledger, "b")
    assert stand.calls == calls + 3


def test_thresholds_are_reported_once_a_period(stand: Any, ledger: Ledger) -> None:
    """B18: by the settlement that reaches them, however far it goes, and by no other."""

    def spend(lease: str, cost: int) -> tuple[int, ...]:
        held = reserve(ledger, lease, cost=1, windows=[SPEND])
        return tuple(
            threshold_event.percent
            for threshold_event in ledger.settle(held, Amounts(cost, 1)).threshold_events
        )

    assert [spend("a", 799), spend("b", 1), spend("c", 1), spend("d", 150)] == [
        (),
        (80,),
        (),
        (95,),
    ]
    assert spend("e", 1) == ()
    stand.clock.advance(31 * 86_400)
    assert spend("f", 999) == (80, 95)


def test_a_shadow_window_refuses_nothing_and_says_what_it_would_have_done(stand: Any) -> None:
    """Shadow mode: everything is counted, also beyond the limit, and nobody is turned away."""
    shadow = replace(SPEND, enforced=False)
    stand.maintenance().rebuild("acme", [shadow], lambda _lost: 0)
    ledger = stand.ledger()
    for lease, would in (("a", 0), ("b", 0), ("c", 1)):
        held = reserve(ledger, lease, cost=400, windows=[shadow])
        assert len(held.shadow_denied) == would
    assert held.shadow_denied[0].reserved == 800
    assert figures(ledger, shadow) == [(0, 1200)]


def test_an_unopened_window_admits_nothing(stand: Any) -> None:
    """A Redis that does not know the window says so; nothing is reserved meanwhile."""
    outcome = reserve(stand.ledger(), "a")
    assert outcome == NeedsRebuild(WINDOWS)
    assert stand.key_names() == []


def test_a_window_that_refuses_needs_no_other_rebuilt(stand: Any, ledger: Ledger) -> None:
    """An exhausted quota answers 402 also while the record store, for another window, is away."""
    for lease in "abc":
        reserve(ledger, lease)
    stand.client.execute_command("DEL", window_key(stand, "org::spend"))
    denied = reserve(ledger, "d")
    assert isinstance(denied, Denied)
    assert denied.binding.window == CALLS
    assert [state.lost for state in denied.states] == [True, False, False]


def window_key(stand: Any, part: str) -> str:
    [key] = [key for key in stand.key_names() if part in key and not key.endswith(":leases")]
    return str(key)


class Away:
    """A Redis that gives no answer, and may have done what it was told."""

    is_unavailable = False

    def __init__(self, stand: Any, *, executes: bool) -> None:
        self.stand = stand
        self.executes = executes

    def run(self, call: ScriptCall) -> object:
        if self.executes:
            self.stand.run(call)
        raise Unavailable("redis", "timeout")


@pytest.mark.parametrize("executes", [True, False])
def test_an_unanswered_reservation_can_be_released(
    stand: Any, ledger: Ledger, executes: bool
) -> None:
    """P7: `presumed` frees what Redis may hold, and a reservation that arrives later is void."""
    lost = Ledger(Away(stand, executes=executes), clock=stand.clock, load=frozen_script)
    with pytest.raises(NotReserved) as raised:
        reserve(lost, "a")
    ledger.settle(raised.value.presumed, NOTHING)
    assert figures(ledger, SPEND) == [(0, 0)]
    assert reserve(ledger, "a") == Closed("a")
    assert figures(ledger, SPEND) == [(0, 0)]


@pytest.mark.parametrize("executes", [True, False])
def test_an_unanswered_reservation_can_be_settled(
    stand: Any, ledger: Ledger, executes: bool
) -> None:
    """D5: a call let through while Redis was away is charged once when it is back."""
    lost = Ledger(Away(stand, executes=executes), clock=stand.clock, load=frozen_script)
    with pytest.raises(NotReserved) as raised:
        reserve(lost, "a")
    stand.clock.advance(300)
    assert ledger.settle(raised.value.presumed, Amounts(30, 7)).booked
    assert not ledger.settle(raised.value.presumed, Amounts(30, 7)).booked
    assert figures(ledger) == [(30, 0), (1, 0), (7, 0)]


def test_a_failover_that_forgets_a_reservation_does_not_forget_its_cost(
    stand: Any, ledger: Ledger
) -> None:
    """A replica that took over without the last write still books what the call has used."""
    held = reserve(ledger, "a")
    stand.client.execute_command("DEL", "router:{acme}:lease:a")
    assert ledger.settle(held, Amounts(30, 7)).booked
    assert not ledger.settle(held, Amounts(30, 7)).booked
    assert figures(ledger, SPEND) == [(30, 0)]


def test_counters_go_three_days_after_their_period(stand: Any, ledger: Ledger) -> None:
    """Redis does not fill up with periods that are over; a total stays."""
    reserve(ledger, "a")
    now_ms = stand.clock.wall_s * 1000

    def expires_ms(part: str) -> Any:
        return stand.client.execute_command("PEXPIRETIME", window_key(stand, part))

    midnight_ms = now_ms + (86_400 - stand.clock.wall_s % 86_400) * 1000
    assert expires_ms("key:k1:calls") == midnight_ms + 3 * 86_400_000
    assert expires_ms("org::tokens") == -1
