"""The ledger and the reference service over it, asked the same: they answer the same.

Over real HTTP on loopback, with the service's own application behind it.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.breaker import Unavailable
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Denied,
    NotReserved,
    Reservation,
    ThresholdEvent,
    WindowSpec,
)
from router.limits.idempotency.entries import Entry, Idempotency, InFlight, Replay
from router.limits.outcome import Admitted, Request
from router.limits.redis_exchange import RedisExchange
from router.limits.remote.service_exchange import ServiceExchange
from router.limits.retry_queue import RetryQueue
from tests.fakes.admitting import Budgets
from tests.unit.limits.conftest import frozen_script
from tests.unit.limits.remote.conftest import Service

TTL_MS = 60_000
WINDOWS = (
    WindowSpec("spend", "usd", "daily", 1000, "Europe/Berlin", thresholds=(50, 90)),
    WindowSpec("calls", "requests", "monthly", 6, scope="key", subject="k1"),
    WindowSpec("tokens", "tokens", "total", None, thresholds=(10,)),
    WindowSpec("watched", "usd", "daily", 300, enforced=False),
)


class Play:
    """One sequence of calls against a ledger, or whatever answers like one."""

    def __init__(self, stand: Any, subject: Any) -> None:
        self.stand = stand
        self.subject = subject
        self.held: dict[int, Any] = {}
        self.answers: list[Any] = []

    def run(self, steps: list[tuple[Any, ...]]) -> list[Any]:
        stand = self.stand
        stand.client.execute_command("FLUSHALL")
        stand.clock.wall_s, stand.skew_s = 2_000_000_000.0, 0.0
        stand.maintenance().rebuild("acme", WINDOWS, lambda _lost: 0)
        for name, *facts in steps:
            self.answers.append(getattr(self, name)(*facts))
        return self.answers

    def reserve(self, number: int, cost: int, tokens: int) -> Any:
        outcome = self.subject.reserve(
            "acme", f"lease {number}", WINDOWS, Amounts(cost, tokens), ttl_ms=TTL_MS
        )
        if isinstance(outcome, Reservation):
            self.held[number] = outcome
        return outcome

    def settle(self, number: int, cost: int, tokens: int) -> Any:
        held = self.held.get(number)
        return held and self.subject.settle(held, Amounts(cost, tokens))

    def release(self, number: int) -> Any:
        held = self.held.get(number)
        return held and self.subject.settle(held, NOTHING)

    def settle_unanswered(self, number: int) -> Any:
        """Of a reservation whose answer never came, as far as the caller knows."""
        held = self.held.get(number)
        if held is None:
            return None
        presumed = Reservation(held.lease_id, held.organization_id, held.windows)
        return self.subject.settle(presumed, Amounts(10, 1))

    def read(self) -> Any:
        return self.subject.read("acme", WINDOWS)

    def wait(self, seconds: float) -> None:
        self.stand.clock.advance(seconds)


NUMBERS = st.integers(0, 5)
COSTS = st.sampled_from([0, 1, 100, 250, 400, 1001])
STEPS = st.one_of(
    st.tuples(st.just("reserve"), NUMBERS, COSTS, st.integers(0, 50)),
    st.tuples(st.just("settle"), NUMBERS, COSTS, st.integers(0, 50)),
    st.tuples(st.just("release"), NUMBERS),
    st.tuples(st.just("settle_unanswered"), NUMBERS),
    st.tuples(st.just("read")),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 61.0, 3600.0, 86_400.0, 40 * 86_400.0])),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, max_size=25))
def test_the_same_calls_get_the_same_answers(
    service: Service, stand: Any, steps: list[tuple[Any, ...]]
) -> None:
    """B1, B6, B12, B16, B18: every decision, figure, period, threshold and expired lease."""
    directly = Play(stand, stand.ledger()).run(steps)
    left = stand.dump()
    over_http = Play(stand, service.client).run(steps)
    assert over_http == directly
    assert stand.dump() == left


def test_the_sequences_see_every_kind_of_answer(service: Service, stand: Any) -> None:
    """What the comparison above rests on, once by hand."""
    steps = [
        ("reserve", 0, 400, 5), ("reserve", 0, 400, 5), ("reserve", 1, 700, 0),
        ("settle", 0, 500, 9), ("settle", 0, 500, 9), ("reserve", 0, 1, 0),
        ("reserve", 2, 100, 0), ("wait", 61.0),
        ("reserve", 3, 100, 0), ("settle", 2, 50, 0), ("read",), ("wait", 86_400.0), ("read",),
    ]  # fmt: skip
    answers = Play(stand, service.client).run(steps)
    assert answers == Play(stand, stand.ledger()).run(steps)
    kinds = [type(answer).__name__ for answer in answers]
    assert kinds == [
        "Reservation", "Reservation", "Denied", "Settlement", "Settlement", "Closed", "Reservation",
        "NoneType", "Reservation", "Settlement", "tuple", "NoneType", "tuple",
    ]  # fmt: skip
    assert answers[3].threshold_events == (ThresholdEvent(WINDOWS[0], 50),)
    assert answers[8].dropped == ("lease 2",)
    assert answers[0].shadow_denied[0].window == WINDOWS[3]


def test_a_check_says_what_a_reservation_would(service: Service, stand: Any) -> None:
    """B17: the same binding window and figures, and nothing is held by asking."""
    play = Play(stand, service.client)
    play.run([("reserve", 0, 400, 5), ("settle", 0, 950, 5)])
    before = stand.dump()
    check = service.client.check("acme", WINDOWS, Amounts(100, 5))
    assert stand.dump() == before
    denied = play.reserve(1, 100, 5)
    assert isinstance(denied, Denied)
    assert (check.allowed, check.binding, check.this_request) == (False, denied.binding, 100)
    assert check.states == denied.states
    assert service.client.check("acme", WINDOWS, Amounts(0, 5)).allowed


def test_an_emptied_ledger_is_rebuilt_by_the_service(service: Service, stand: Any) -> None:
    """P9: before it admits; the thresholds that are reached already are told to the router."""
    spend = WINDOWS[:1]
    service.records = lambda: 950
    denied = service.client.reserve("acme", "a", spend, Amounts(100, 1), ttl_ms=TTL_MS)
    assert isinstance(denied, Denied)
    assert (denied.binding.settled, denied.binding.reserved) == (950, 0)
    assert service.threshold_events == [
        ("acme", ThresholdEvent(WINDOWS[0], percent)) for percent in (50, 90)
    ]
    stand.client.execute_command("FLUSHALL")
    assert service.client.read("acme", spend)[0].settled == 950


def test_records_that_cannot_be_asked_admit_nothing(service: Service) -> None:
    """B3: an answer that nobody can give is none."""

    def fail() -> int:
        raise Unavailable("record store", "timeout")

    service.records = fail
    with pytest.raises(NotReserved) as raised:
        service.client.reserve("acme", "a", WINDOWS, Amounts(1, 1), ttl_ms=TTL_MS)
    assert raised.value.detail == "answered 503"


def test_exactly_as_many_as_fit_are_admitted_at_once(service: Service, stand: Any) -> None:
    """B1: 40 callers, room for 5."""
    window = WindowSpec("five", "usd", "total", 500)
    stand.maintenance().rebuild("acme", [window], lambda _lost: 0)
    outcomes: list[Any] = []

    def call(number: int) -> None:
        outcomes.append(
            service.client.reserve(
                "acme", f"at once {number}", [window], Amounts(100, 1), ttl_ms=TTL_MS
            )
        )

    threads = [threading.Thread(target=call, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [type(outcome) for outcome in outcomes].count(Reservation) == 5
    assert [type(outcome) for outcome in outcomes].count(Denied) == 35


# --- as the gate sees it --------------------------------------------------------------------


def gates(service: Service, stand: Any, **options: Any) -> tuple[Budgets, Budgets]:
    entries = stand.idempotency()
    local = RedisExchange(stand, stand.ledger(), entries, stand.nonces(), load=frozen_script)
    remote = ServiceExchange(service.client, entries, stand.nonces(), RetryQueue(), service.journal)
    return tuple(
        Budgets(
            exchange,
            stand.maintenance(),
            RetryQueue(),
            sum_records=lambda _organization_id, _lost: 0,
            **options,
        )
        for exchange in (local, remote)
    )  # type: ignore[return-value]


def a_day_of_calls(gate: Budgets, stand: Any) -> list[Any]:
    stand.client.execute_command("FLUSHALL")

    def admit(lease: str, key: str = "", *, cost: int = 100, body: bytes = b"body") -> Any:
        request = Request("acme", lease, WINDOWS, Amounts(cost, 5), TTL_MS)
        return gate.admit(request, Entry("acme", key, body, lease) if key else None)

    first = admit("a", "order-1")
    seen = [first, type(admit("b", "order-1")), admit("c", "order-1", body=b"other")]
    gate.settle(first, Amounts(600, 5), b"reply")
    seen += [admit("d", "order-1"), admit("e", "order-2", cost=401), admit("f", "order-2")]
    gate.release(seen[-1])
    return [*seen, admit("g", "order-2"), admit("h"), stand.dump()]


def test_a_gate_cannot_tell_them_apart(service: Service, stand: Any) -> None:
    """Replay, conflict and mismatch of ids, refusals and charges: all as with the ledger itself."""
    local, remote = gates(service, stand)
    seen = a_day_of_calls(local, stand)
    assert a_day_of_calls(remote, stand) == seen
    assert InFlight in seen
    assert Replay(b"reply") in seen
    assert [type(found) for found in seen].count(Denied) == 1


def test_a_lost_answer_is_taken_back(service: Service, stand: Any) -> None:
    """B3, B5: closed admits nothing; what the service held, and the id, are free again later."""
    stand.maintenance().rebuild("acme", WINDOWS, lambda _lost: 0)
    _, gate = gates(service, stand)
    request = Request("acme", "a", WINDOWS, Amounts(100, 5), TTL_MS)
    entry = Entry("acme", "order-1", b"body", "a")
    post = service.client._session.post

    def lose(url: str, body: Any) -> Any:
        post(url, body)
        raise Unavailable("budget service", "timeout")

    service.client._session.post = lose  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        gate.admit(request, entry)
    service.client._session.post = post  # type: ignore[method-assign]
    assert stand.ledger().read("acme", WINDOWS)[0].reserved == 100
    assert gate.retry_queue.run() == 1
    assert stand.ledger().read("acme", WINDOWS)[0].reserved == 0
    again = Request("acme", "b", WINDOWS, Amounts(100, 5), TTL_MS)
    assert isinstance(gate.admit(again, Entry("acme", "order-1", b"body", "b")), Admitted)


def test_a_service_that_was_never_reached_holds_no_id(service: Service, stand: Any) -> None:
    """Nothing is to be taken back, and the same id may be tried again at once."""
    stand.maintenance().rebuild("acme", WINDOWS, lambda _lost: 0)
    _, gate = gates(service, stand)
    post = service.client._session.post

    def refuse(url: str, body: Any) -> Any:
        raise Unavailable("budget service", "connect")

    service.client._session.post = refuse  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        gate.admit(
            Request("acme", "a", WINDOWS, Amounts(1, 5), TTL_MS), Entry("acme", "o", b"body", "a")
        )
    service.client._session.post = post  # type: ignore[method-assign]
    assert len(gate.retry_queue) == 0
    again = Request("acme", "b", WINDOWS, Amounts(1, 5), TTL_MS)
    assert isinstance(gate.admit(again, Entry("acme", "o", b"body", "b")), Admitted)


def test_a_lost_settlement_is_made_up_for_once(service: Service, stand: Any) -> None:
    """D5: the spend is exact, and the reply was kept for duplicates all the same."""
    _, gate = gates(service, stand, on_unavailable="open")
    stand.maintenance().rebuild("acme", WINDOWS, lambda _lost: 0)
    admitted: Any = gate.admit(
        Request("acme", "a", WINDOWS, Amounts(100, 5), TTL_MS), Entry("acme", "o", b"body", "a")
    )
    post = service.client._session.post

    def lose(url: str, body: Any) -> Any:
        post(url, body)
        raise Unavailable("budget service", "timeout")

    service.client._session.post = lose  # type: ignore[method-assign]
    gate.settle(admitted, Amounts(600, 5), b"reply")
    service.client._session.post = post  # type: ignore[method-assign]
    gate.retry_queue.run()
    assert stand.ledger().read("acme", WINDOWS)[0].settled == 600
    duplicate = Request("acme", "b", WINDOWS, Amounts(1, 5), TTL_MS)
    assert gate.admit(duplicate, Entry("acme", "o", b"body", "b")) == Replay(b"reply")


def test_without_redis_ids_are_not_protected_but_budgets_hold(service: Service, stand: Any) -> None:
    """The idempotency store is away and the service is not: its reservation tells, and an id that
    may have been claimed is done with later."""
    stand.maintenance().rebuild("acme", WINDOWS, lambda _lost: 0)

    class Away:
        is_unavailable = True
        works = False

        def run(self, call: Any) -> Any:
            if not self.works:
                raise Unavailable("redis", "connect")
            return stand.run(call)

    redis, deferred = Away(), RetryQueue()
    admission = ServiceExchange(
        service.client,
        Idempotency(redis),  # type: ignore[arg-type]
        stand.nonces(),
        deferred,
        service.journal,
    )
    entry = Entry("acme", "o", b"body", "a")
    request = Request("acme", "a", WINDOWS, Amounts(100, 5), TTL_MS)
    _, held = admission.ask(None, request, entry)
    assert isinstance(held, Reservation)
    assert held.unclaimed == "connect"
    assert admission.end(held, Amounts(30, 5), entry, b"reply").booked
    assert len(deferred) == 1
    redis.works = True
    assert deferred.run() == 1
