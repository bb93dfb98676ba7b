"""What a call is let through without, by what the operator chose and where its budgets are kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from router.breaker import Reason, Unavailable
from router.limits.admission import OnUnavailable
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    NotReserved,
    Reservation,
    Settlement,
    WindowSpec,
)
from router.limits.idempotency.entries import Entry, Idempotency, NotProtected
from router.limits.idempotency.nonces import Nonces
from router.limits.outcome import Admitted, Request
from router.limits.rates.decision import decide
from router.limits.remote.service_exchange import ServiceExchange
from router.limits.retry_queue import RetryQueue
from tests.fakes.admitting import Budgets

SPEND = WindowSpec("spend", "usd", "daily", 1000)
ENTRY = Entry("acme", "order-1", b"body", "a")
PRESUMED = Reservation("a", "acme", ())


def not_answered(reason: Reason = "timeout") -> NotReserved:
    return NotReserved(Unavailable("redis", reason), PRESUMED)


class Failing:
    """An exchange that gets no answer."""

    def __init__(
        self,
        error: Unavailable,
        *,
        uses_budget_service: bool = False,
        presumed: Reservation | None = None,
    ) -> None:
        self._error = error
        self._presumed = presumed
        self.uses_budget_service = uses_budget_service

    def ask(self, rates: Any, request: Request, entry: Entry | None) -> Any:
        raise self._error

    def end(self, *_: Any) -> Settlement:
        return Settlement(True)

    def end_later(self, *_: Any) -> bool:
        return False

    def presume(self, request: Request) -> Reservation | None:
        return self._presumed


def outcome(
    error: Unavailable,
    *,
    windows: tuple[WindowSpec, ...] = (),
    entry: Entry | None = None,
    budgets: OnUnavailable = "closed",
    entries: OnUnavailable = "open",
    asks_always: bool = False,
) -> tuple[bool, int]:
    """Whether the call goes on, and how much was left to be undone."""
    deferred = RetryQueue()
    gate = Budgets(
        Failing(error, uses_budget_service=asks_always),
        None,
        deferred,
        sum_records=lambda _organization_id, _lost: 0,
        on_unavailable=budgets,
        entries_on_unavailable=entries,
    )
    try:
        found = gate.admit(Request("acme", "a", windows, NOTHING, 1000), entry)
    except Unavailable:
        return False, deferred.run()
    assert isinstance(found, Admitted)
    assert found.unprotected is bool(windows or entry or asks_always)
    return True, deferred.run()


@pytest.mark.parametrize(
    ("windows", "budgets", "asks_always", "goes_on"),
    [
        ((), "closed", False, True),
        ((SPEND,), "closed", False, False),
        ((SPEND,), "open", False, True),
        ((), "closed", True, False),
        ((), "open", True, True),
    ],
)
def test_a_service_may_have_budgets_of_its_own(
    windows: Any, budgets: OnUnavailable, asks_always: bool, goes_on: bool
) -> None:
    """D4, B3: `closed` also holds where only the service knows whether there is a budget."""
    found = outcome(not_answered(), windows=windows, budgets=budgets, asks_always=asks_always)
    assert found[0] is goes_on


@pytest.mark.parametrize(
    ("entry", "entries", "goes_on"),
    [(ENTRY, "open", True), (ENTRY, "closed", False), (None, "closed", True)],
)
def test_ids_have_a_policy_of_their_own(
    entry: Entry | None, entries: OnUnavailable, goes_on: bool
) -> None:
    """`closed`: a call whose id nobody can look up is not made, budget or not."""
    assert outcome(not_answered(), entry=entry, entries=entries)[0] is goes_on
    both = outcome(not_answered(), entry=entry, entries=entries, windows=(SPEND,), budgets="open")
    assert both[0] is goes_on


def test_a_service_that_is_away_says_nothing_about_ids() -> None:
    """The id was claimed in Redis, which is there: the policy for budgets decides alone."""
    facts: Any = {"entry": ENTRY, "entries": "closed", "asks_always": True, "budgets": "open"}
    assert outcome(not_answered(), **facts) == (True, 0)
    assert outcome(NotProtected("redis", "timeout"), **facts) == (False, 0)


@pytest.mark.parametrize(("reason", "undone"), [("timeout", 1), ("connect", 0)])
def test_what_may_have_been_reserved_is_undone(reason: Reason, undone: int) -> None:
    """B3: nothing stays held by a call that was refused."""
    assert outcome(not_answered(reason), windows=(SPEND,)) == (False, undone)


@pytest.mark.parametrize("reason", ["timeout", "breaker_open"])
def test_an_id_that_was_never_sent_needs_no_end(reason: Reason) -> None:
    """D5: in a long outage such ends would push settlements out of what waits for Redis."""
    gate = Budgets(
        Failing(not_answered(reason)),
        None,
        RetryQueue(),
        sum_records=lambda _organization_id, _lost: 0,
    )
    found = gate.admit(Request("acme", "a", (), NOTHING, 1000), ENTRY)
    assert isinstance(found, Admitted)
    assert found.entry == (ENTRY if reason == "timeout" else None)


@pytest.mark.parametrize("budgets", ["open", "closed"])
def test_who_has_waited_in_vain_does_not_wait_again(budgets: OnUnavailable) -> None:
    """P9: one timeout for a call; what it would have reserved is known all the same."""
    held = Reservation("a", "acme", (), epoch="presumed")
    deferred = RetryQueue()
    gate = Budgets(
        Failing(Unavailable("nobody", "lost"), presumed=held),
        None,
        deferred,
        sum_records=lambda _organization_id, _lost: 0,
        on_unavailable=budgets,
    )
    waited = decide((), "local")
    request = Request("acme", "a", (SPEND,), NOTHING, 1000)
    if budgets == "open":
        expected = Admitted(held, None, unprotected=True, waited_in_vain=True)
        assert gate.admit(request, ENTRY, rates=waited) == expected
    else:
        with pytest.raises(Unavailable, match="breaker_open"):
            gate.admit(request, ENTRY, rates=waited)
    assert len(deferred) == 0


@pytest.mark.parametrize("asks_always", [True, False])
def test_what_only_a_service_may_have_held_is_settled_there(asks_always: bool) -> None:
    """`open`: the router knows of no budget, and the service may know the lease; without a service
    there is nothing to tell."""
    ended: list[Any] = []
    admission = Failing(not_answered(), uses_budget_service=asks_always)
    deferred = RetryQueue()
    admission.end = lambda *told: ended.append(told) or Settlement(True)  # type: ignore[method-assign,func-returns-value]
    gate = Budgets(
        admission,
        None,
        deferred,
        sum_records=lambda _organization_id, _lost: 0,
        on_unavailable="open",
    )
    admitted = gate.admit(Request("acme", "a", (), NOTHING, 1000))
    assert isinstance(admitted, Admitted)
    gate.settle(admitted, NOTHING)
    deferred.run()
    assert [told[0].lease_id for told in ended] == (["a"] if asks_always else [])


class Away:
    """A Redis that gives no answer."""

    is_unavailable = False

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        self.asked = 0

    def run(self, call: Any) -> object:
        self.asked += 1
        raise Unavailable("redis", self.reason)

    def run_all(self, calls: Any) -> list[object]:
        return [self.run(call) for call in calls]


class Service:
    """A budget service that lets everything through."""

    def __init__(self) -> None:
        self.asked = 0

    def reserve(self, *_: Any, **__: Any) -> Reservation:
        self.asked += 1
        return Reservation("a", "acme", (), 1)


@pytest.mark.parametrize(("reason", "left"), [("timeout", 1), ("breaker_open", 0)])
def test_a_service_is_not_asked_for_a_call_without_protection(reason: Reason, left: int) -> None:
    """With `closed` for ids; an id that may have been claimed is freed as soon as Redis is back."""
    redis, service, deferred = Away(reason), Service(), RetryQueue()
    admission = ServiceExchange(
        service,  # type: ignore[arg-type]
        Idempotency(redis),
        Nonces(redis),
        deferred,
        SimpleNamespace(is_full=False),  # type: ignore[arg-type]
        entries_on_unavailable="closed",
    )
    request = Request("acme", "a", (), Amounts(1, 1), 1000)
    with pytest.raises(NotProtected):
        admission.ask(None, request, ENTRY)
    assert (service.asked, len(deferred)) == (0, left)
    assert isinstance(admission.ask(None, request, None)[1], Reservation)
