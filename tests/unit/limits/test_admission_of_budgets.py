"""Admission as a call sees it: rebuilt windows, outages, endings that arrive late."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from router.breaker import Reason, Unavailable
from router.limits.admission import OnUnavailable
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import Amounts, Denied, LostWindow, ThresholdEvent, WindowSpec
from router.limits.idempotency.entries import Entry, Idempotency, InFlight, NotStored, Replay
from router.limits.outcome import Admitted, Request
from router.limits.redis_exchange import RedisExchange
from router.limits.retry_queue import RetryQueue
from router.limits.settlement_wait import SettlementWait
from tests.fakes.admitting import Budgets
from tests.unit.limits.conftest import frozen_script

SPEND = WindowSpec("spend", "usd", "daily", 1000, thresholds=(50,))
TTL_MS = 60_000


class Outage:
    """A Redis that can be switched off. ``executes``: it does as told, and its answer is lost."""

    def __init__(self, stand: Any) -> None:
        self.stand = stand
        self.reason: Reason | None = None
        self.executes = False
        self.is_unavailable = False

    def run(self, call: Any) -> object:
        return self.run_all([call])[0]

    def run_all(self, calls: Any) -> list[object]:
        if self.reason is not None:
            if self.executes:
                self.stand.run_all(calls)
            raise Unavailable("redis", self.reason)
        replies: list[object] = self.stand.run_all(calls)
        return replies


class Moment:
    """Passes without a wait; what happens in it is up to the test."""

    def __init__(self, fixture: Fixture) -> None:
        self._fixture = fixture

    def wait(self, timeout: float) -> bool:
        self._fixture.now_s += timeout
        self._fixture.meanwhile()
        return False

    def set(self) -> None:
        """Nobody sleeps."""

    def clear(self) -> None:
        """Nobody sleeps."""


class Fixture:
    """Admission over a Redis that can fail, and what it reported."""

    def __init__(self, stand: Any, on_unavailable: OnUnavailable = "closed") -> None:
        self.meanwhile: Callable[[], None] = lambda: None
        self.now_s = 0.0
        self.waits = SettlementWait(monotonic_s=lambda: self.now_s, event=lambda: Moment(self))
        self.stand = stand
        self.redis = Outage(stand)
        self.deferred = RetryQueue()
        self.threshold_events: list[ThresholdEvent] = []
        self.unresolved: list[str] = []
        self.sums: list[LostWindow] = []
        self.records: Callable[[], int] = lambda: 0
        self.ledger = Ledger(self.redis, clock=stand.clock, load=frozen_script)
        entries = Idempotency(self.redis, load=frozen_script)
        self.gate = Budgets(
            RedisExchange(self.redis, self.ledger, entries, stand.nonces(), load=frozen_script),
            LedgerMaintenance(self.redis, clock=stand.clock, load=frozen_script),
            self.deferred,
            sum_records=self.sum_records,
            settlement_wait=self.waits,
            on_unavailable=on_unavailable,
            on_threshold=lambda _organization_id, threshold_event: self.threshold_events.append(
                threshold_event
            ),
            on_unresolved=lambda _organization_id, ids: self.unresolved.extend(ids),
        )

    def sum_records(self, organization_id: str, lost: LostWindow) -> int:
        assert organization_id == "acme"
        self.sums.append(lost)
        return self.records()

    def admit(self, lease: str, *, cost: int = 100, windows: Any = (SPEND,), key: str = "") -> Any:
        request = Request("acme", lease, windows, Amounts(cost, 0), TTL_MS)
        entry = Entry("acme", key, b"body", lease) if key else None
        return self.gate.admit(request, entry)

    def figures(self) -> tuple[int, int]:
        [state] = self.ledger.read("acme", [SPEND])
        return state.settled, state.reserved


@pytest.fixture
def subject(stand: Any) -> Fixture:
    return Fixture(stand)


def test_a_call_is_admitted_and_settled(subject: Fixture) -> None:
    """The ordinary case, with replay: two round trips in all, the rebuild of the first aside."""
    subject.admit("first")
    calls = subject.stand.calls
    admitted = subject.admit("a", key="order-1")
    assert isinstance(admitted, Admitted)
    subject.gate.settle(admitted, Amounts(30, 0), b"reply")
    assert subject.figures() == (30, 100)
    assert subject.admit("b", key="order-1") == Replay(b"reply")
    # One script to admit and one for the replay; two, sent together, to settle; one to read.
    assert subject.stand.calls == calls + 5


def test_a_released_call_costs_nothing_and_frees_its_id(subject: Fixture) -> None:
    """A call that never reached a backend leaves no trace."""
    subject.gate.release(subject.admit("a", key="order-1"))
    assert subject.figures() == (0, 0)
    assert isinstance(subject.admit("b", key="order-1"), Admitted)


def test_a_refusal_is_passed_on(subject: Fixture) -> None:
    """402, with the id free for another try."""
    assert isinstance(subject.admit("a", cost=1001, key="order-1"), Denied)
    assert isinstance(subject.admit("b", key="order-1"), Admitted)
    assert isinstance(subject.admit("c", key="order-1"), InFlight)


def test_a_lost_window_is_rebuilt_before_it_admits(subject: Fixture) -> None:
    """P9: the records say that 950 are spent, so 100 do not fit; thresholds are told."""
    subject.records = lambda: 950
    assert isinstance(subject.admit("a"), Denied)
    assert len(subject.sums) == 1
    assert subject.threshold_events == [ThresholdEvent(SPEND, 50)]


def test_records_that_cannot_be_asked_refuse_for_a_while(subject: Fixture) -> None:
    """B3: no window, no call; the record store is not asked by every call; the id stays free."""

    def fail() -> int:
        raise Unavailable("record store", "timeout")

    subject.records = fail
    for lease in "abc":
        with pytest.raises(Unavailable):
            subject.admit(lease, key="order-1" if lease == "a" else "")
    assert len(subject.sums) == 1
    subject.deferred.run()
    subject.gate.rebuilder._records._next_try_s = 0.0
    subject.records = lambda: 0
    assert isinstance(subject.admit("d", key="order-1"), Admitted)


def test_callers_that_come_meanwhile_wait_for_the_rebuild(stand: Any) -> None:
    """B1: the first calls of a window that nobody knows yet are admitted, not refused, and the
    records are asked once."""
    subject = Fixture(stand)
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> int:
        begun.set()
        assert go_on.wait(5)
        return 0

    subject.records = wait
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(subject.admit("a")))
    first.start()
    assert begun.wait(5)
    second = threading.Thread(target=lambda: found.append(subject.admit("b")))
    second.start()
    go_on.set()
    first.join(5)
    second.join(5)
    assert [type(outcome) for outcome in found] == [Admitted, Admitted]
    assert len(subject.sums) == 1


@pytest.mark.parametrize("reason", ["timeout", "connect", "breaker_open"])
def test_closed_admits_nothing_and_holds_nothing(subject: Fixture, reason: Reason) -> None:
    """B3: the caller learns that nobody knows; what Redis may hold is given back, id included."""
    subject.admit("open the window")
    subject.redis.reason = reason
    subject.redis.executes = reason == "timeout"
    with pytest.raises(Unavailable):
        subject.admit("a", key="order-1")
    assert len(subject.deferred) == (1 if reason == "timeout" else 0)
    subject.redis.reason = None
    subject.deferred.run()
    assert subject.figures() == (0, 100)
    assert isinstance(subject.admit("b", key="order-1"), Admitted)


@pytest.mark.parametrize("executes", [True, False])
def test_open_admits_and_charges_later(stand: Any, executes: bool) -> None:
    """D4, D5: let through without an answer, charged once when Redis is back."""
    subject = Fixture(stand, "open")
    subject.admit("open the window")
    subject.redis.reason, subject.redis.executes = "timeout", executes
    admitted = subject.admit("a", key="order-1")
    assert admitted.unprotected
    subject.gate.settle(admitted, Amounts(30, 0), b"reply")
    assert subject.deferred.run() == 0
    subject.redis.reason = None
    subject.deferred.run()
    assert subject.figures() == (30, 100)


def test_without_a_budget_only_replay_protection_is_lost(subject: Fixture) -> None:
    """The idempotency store is away: proceed, and say so."""
    subject.redis.reason = "timeout"
    admitted = subject.admit("a", windows=(), key="order-1")
    assert admitted.unprotected
    subject.redis.reason = None
    subject.gate.settle(admitted, Amounts(1, 1), b"reply")


def test_without_budget_and_id_nobody_is_asked(subject: Fixture) -> None:
    """A key without limits costs no round trip."""
    subject.redis.reason = "timeout"
    admitted = subject.admit("a", windows=())
    assert not admitted.unprotected
    subject.gate.settle(admitted, Amounts(1, 1))
    assert subject.stand.calls == 0


@pytest.mark.parametrize("executes", [True, False])
def test_a_settlement_that_is_not_answered_is_made_later_once(
    subject: Fixture, executes: bool
) -> None:
    """D5, R7: after recovery the spend is exact, whether or not Redis had heard it."""
    admitted = subject.admit("a", key="order-1")
    subject.redis.reason, subject.redis.executes = "timeout", executes
    subject.gate.settle(admitted, Amounts(600, 0), b"reply")
    subject.redis.reason = None
    subject.deferred.run()
    assert subject.figures() == (600, 0)
    kept = Replay(b"reply") if executes else NotStored()
    assert subject.admit("b", key="order-1") == kept


def test_crossings_are_reported_also_by_a_late_settlement(subject: Fixture) -> None:
    """B18: whenever the spend is booked."""
    admitted = subject.admit("a")
    subject.redis.reason = "timeout"
    subject.gate.settle(admitted, Amounts(600, 0))
    assert subject.threshold_events == []
    subject.redis.reason = None
    subject.deferred.run()
    assert subject.threshold_events == [ThresholdEvent(SPEND, 50)]


def test_calls_that_never_ended_are_reported(subject: Fixture) -> None:
    """A killed worker's leases are told of, once."""
    subject.admit("lost")
    subject.stand.clock.advance(61)
    subject.admit("a")
    subject.admit("b", cost=5000)
    assert subject.unresolved == ["lost"]


# --- a short wait for running calls ---------------------------------------------------------


def test_a_call_waits_for_the_reservation_in_its_way(subject: Fixture) -> None:
    """900 of 1000 are reserved and 30 are used: 200 fit as soon as the other call has settled."""
    first = subject.admit("first", cost=900)
    subject.meanwhile = lambda: subject.gate.settle(first, Amounts(30, 0))
    assert isinstance(subject.admit("second", cost=200, key="order-1"), Admitted)
    assert subject.figures() == (30, 200)
    assert subject.waits.outcomes == {"admitted": 1}
    assert isinstance(subject.admit("third", cost=1, key="order-1"), InFlight)


def test_a_call_that_waited_in_vain_is_refused(subject: Fixture) -> None:
    """Nothing of it stays reserved, and its id is free."""
    subject.admit("first", cost=900)
    denied = subject.admit("second", cost=200, key="order-1")
    assert isinstance(denied, Denied)
    assert denied.is_by_reservations
    assert subject.figures() == (0, 900)
    assert subject.waits.outcomes == {"refused": 1}
    assert isinstance(subject.admit("third", cost=100, key="order-1"), Admitted)


def test_a_call_does_not_wait_for_what_is_spent(subject: Fixture) -> None:
    """900 are settled: 200 never fit, whatever is reserved beside them."""
    subject.gate.settle(subject.admit("first", cost=900), Amounts(900, 0))
    subject.admit("second", cost=50)
    asked = subject.stand.calls
    denied = subject.admit("third", cost=200)
    assert isinstance(denied, Denied)
    assert not denied.is_by_reservations
    assert subject.stand.calls == asked + 1
    assert subject.waits.outcomes == {}


def test_a_call_stops_waiting_when_the_budget_is_spent(subject: Fixture) -> None:
    """The other call used all that it had reserved."""
    first = subject.admit("first", cost=900)
    subject.meanwhile = lambda: subject.gate.settle(first, Amounts(900, 0))
    asked = subject.stand.calls
    assert isinstance(subject.admit("second", cost=200), Denied)
    # Refused, the settlement, refused for good.
    assert subject.stand.calls == asked + 3


def test_a_wait_ends_with_redis(subject: Fixture) -> None:
    """503 and no 402: nobody knows any more."""
    subject.admit("first", cost=900)

    def fails() -> None:
        subject.redis.reason = "timeout"

    subject.meanwhile = fails
    with pytest.raises(Unavailable):
        subject.admit("second", cost=200)
    subject.redis.reason = None
    subject.deferred.run()
    assert subject.figures() == (0, 900)
