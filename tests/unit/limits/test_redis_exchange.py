"""Idempotency and budget together: one round trip, one charge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router.breaker import Unavailable
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Denied,
    NeedsRebuild,
    NotReserved,
    Reservation,
    WindowSpec,
)
from router.limits.idempotency.entries import Entry, InFlight, Mismatch, Replay
from router.limits.outcome import Request
from router.limits.rates.decision import BucketSpec
from router.limits.redis_exchange import RedisExchange
from tests.unit.limits.conftest import frozen_script

SPEND = WindowSpec("spend", "usd", "daily", 1000)
TTL_MS = 60_000


def request_of(
    lease: str, *, cost: int = 100, windows: tuple[WindowSpec, ...] = (SPEND,)
) -> Request:
    return Request("acme", lease, windows, Amounts(cost, 0), TTL_MS)


def entry_of(lease: str, *, body: bytes = b"body") -> Entry:
    return Entry("acme", "order-1", body, lease)


@pytest.fixture
def admission(stand: Any) -> RedisExchange:
    stand.maintenance().rebuild("acme", [SPEND], lambda _lost: 0)
    return RedisExchange(
        stand, stand.ledger(), stand.idempotency(), stand.nonces(), load=frozen_script
    )


def reserved(stand: Any) -> int:
    [state] = stand.ledger().read("acme", [SPEND])
    return int(state.reserved)


def test_a_new_id_is_reserved_for(stand: Any, admission: RedisExchange) -> None:
    """The ordinary call: claimed and reserved at once."""
    assert isinstance(admission.ask(None, request_of("a"), entry_of("a"))[1], Reservation)
    assert reserved(stand) == 100


@pytest.mark.parametrize("state", ["in flight", "completed", "mismatch"])
def test_a_duplicate_reserves_nothing(stand: Any, admission: RedisExchange, state: str) -> None:
    """P19: whatever the first call's state, its duplicate costs nothing."""
    admission.ask(None, request_of("a"), entry_of("a"))[1]
    if state == "completed":
        stand.idempotency().end(entry_of("a"), b"reply")
    body = b"other" if state == "mismatch" else b"body"
    outcome = admission.ask(None, request_of("b"), entry_of("b", body=body))[1]
    expected = {"in flight": InFlight, "completed": Replay, "mismatch": Mismatch}[state]
    assert isinstance(outcome, expected)
    assert reserved(stand) == 100


def test_a_refused_budget_frees_the_id(stand: Any, admission: RedisExchange) -> None:
    """A 402 is the router's own and is not stored: the same id may be tried again."""
    assert isinstance(admission.ask(None, request_of("a", cost=1001), entry_of("a"))[1], Denied)
    assert isinstance(admission.ask(None, request_of("b"), entry_of("b"))[1], Reservation)


def test_after_a_rebuild_the_same_call_goes_on(stand: Any, admission: RedisExchange) -> None:
    """The id stays claimed while the window is rebuilt, for this call only."""
    stand.client.execute_command("FLUSHALL")
    assert isinstance(admission.ask(None, request_of("a"), entry_of("a"))[1], NeedsRebuild)
    assert isinstance(admission.ask(None, request_of("b"), entry_of("b"))[1], InFlight)
    stand.maintenance().rebuild("acme", [SPEND], lambda _lost: 0)
    assert isinstance(admission.ask(None, request_of("a"), entry_of("a"))[1], Reservation)


def test_a_new_period_is_found_on_the_second_try(stand: Any, admission: RedisExchange) -> None:
    """A clock that differs from Redis' costs a round trip, and no id."""
    stand.skew_s = 86_400.0
    assert admission.ask(None, request_of("a"), entry_of("a"))[1] is None
    assert isinstance(admission.ask(None, request_of("a"), entry_of("a"))[1], Reservation)
    assert reserved(stand) == 100


def test_without_windows_only_the_id_is_claimed(stand: Any, admission: RedisExchange) -> None:
    """A key without budgets has idempotency all the same."""
    calls = stand.calls
    outcome = admission.ask(None, request_of("a", windows=()), entry_of("a"))[1]
    assert isinstance(outcome, Reservation)
    assert stand.calls == calls + 1
    second = admission.ask(None, request_of("b", windows=()), entry_of("b"))[1]
    assert isinstance(second, InFlight)


RATE = BucketSpec("org-requests", (), 1.0, 2)


def test_all_of_it_is_one_exchange(stand: Any, admission: RedisExchange) -> None:
    """Rates, id and budgets: the bucket is charged, the id claimed, the amount held."""
    rates = stand.limiter().plan("take", "acme", [RATE])
    calls = stand.calls
    rated, outcome = admission.ask(rates.call, request_of("a"), entry_of("a"))
    assert stand.calls == calls + 1
    decision = stand.limiter().read(rates, rated)
    assert (decision.allowed, decision.statuses[0].remaining) == (True, 1)
    assert isinstance(outcome, Reservation)
    assert isinstance(admission.ask(None, request_of("b"), entry_of("b"))[1], InFlight)
    assert reserved(stand) == 100


@pytest.mark.parametrize("with_entry", [True, False], ids=["with an id", "without"])
def test_what_the_rates_refuse_touches_nothing_else(
    stand: Any, admission: RedisExchange, with_entry: bool
) -> None:
    """P8, R2: neither an id nor a budget is asked once a bucket has refused."""
    rates = stand.limiter().plan("take", "acme", [replace(RATE, burst=0)])
    before = stand.dump()
    entry = entry_of("a") if with_entry else None
    rated, outcome = admission.ask(rates.call, request_of("a"), entry)
    assert not stand.limiter().read(rates, rated).allowed
    assert outcome is None
    assert stand.dump() == before


@pytest.mark.parametrize(
    ("windows", "with_entry"), [((), True), ((SPEND,), False), ((SPEND,), True)]
)
def test_what_comes_after_the_rates_decides_as_without_them(
    stand: Any, admission: RedisExchange, windows: tuple[WindowSpec, ...], with_entry: bool
) -> None:
    """Rates that pass change nothing of what the others answer."""
    rates = stand.limiter().plan("take", "acme", [RATE])
    entry = entry_of("a") if with_entry else None
    rated, outcome = admission.ask(rates.call, request_of("a", windows=windows), entry)
    assert stand.limiter().read(rates, rated).allowed
    assert isinstance(outcome, Reservation)
    assert len(outcome.windows) == len(windows)


def test_rates_that_pass_are_charged_also_when_the_budget_refuses(
    stand: Any, admission: RedisExchange
) -> None:
    """R3: what counts is that a call was made, not what became of it."""
    rates = stand.limiter().plan("take", "acme", [RATE])
    rated, outcome = admission.ask(rates.call, request_of("a", cost=1001), entry_of("a"))
    assert stand.limiter().read(rates, rated).statuses[0].remaining == 1
    assert isinstance(outcome, Denied)
    assert stand.limiter().peek("acme", [RATE]).statuses[0].remaining == 1
    assert isinstance(admission.ask(None, request_of("b"), entry_of("b"))[1], Reservation)


def test_no_answer_leaves_something_to_release(stand: Any, admission: RedisExchange) -> None:
    """B3: the caller gets what may be held, and no call goes out."""

    class Lossy:
        is_unavailable = False

        def run(self, call: Any) -> Any:
            stand.run(call)
            raise Unavailable("redis", "timeout")

    lossy = RedisExchange(  # type: ignore[arg-type]
        Lossy(), stand.ledger(), stand.idempotency(), stand.nonces(), load=frozen_script
    )
    with pytest.raises(NotReserved) as raised:
        lossy.ask(None, request_of("a"), entry_of("a"))[1]
    assert reserved(stand) == 100
    stand.ledger().settle(raised.value.presumed, NOTHING)
    assert reserved(stand) == 0
