"""Whether a call may be served: its rates, its id and its budgets, as one decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Final, Literal

from router.breaker import NOT_SENT, Unavailable
from router.limits.asking import Asking
from router.limits.budgets.rebuilding import Rebuilder
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Closed,
    Denied,
    NeedsRebuild,
    NotReserved,
    Reservation,
    ReservedWindow,
    ThresholdEvent,
)
from router.limits.configured import RateSpecs
from router.limits.idempotency.entries import Entry, NotProtected, NotStored
from router.limits.leases.unsent_calls import UnsentCalls
from router.limits.outcome import Admitted, Outcome, Request
from router.limits.rates.decision import RateDecision
from router.limits.rates.gate import RateGate
from router.limits.rates.limiter import RatePlan
from router.limits.redis_exchange import RedisExchange
from router.limits.remote.service_exchange import ServiceExchange
from router.limits.retry_queue import RetryQueue
from router.limits.settlement_wait import SettlementWait

OnUnavailable = Literal["closed", "open"]

_TRIES: Final = 3


class Admission:
    """Admits calls and ends them, over Redis alone or over Redis and a budget service.

    What becomes of a call while nobody answers:

    * Its rates: by the policy of :class:`RateGate`.
    * A budget can refuse it (it is enforced and has a limit, or a budget service may know of
      one): ``on_unavailable`` decides. ``closed`` refuses the call, ``open`` admits it and charges
      later.
    * No budget can refuse it: it is admitted and charged later.
    * It is signed: it is refused, because nobody knows whether its nonce was used.
    * It has an id: ``entries_on_unavailable`` decides as well. ``closed`` refuses the call,
      ``open`` lets it go on without replay protection.

    A call that only running calls keep out of a budget waits for them as ``settlement_wait`` says.
    """

    def __init__(
        self,
        rates: RateGate,
        exchange: RedisExchange | ServiceExchange,
        rebuilder: Rebuilder,
        retry_queue: RetryQueue,
        *,
        settlement_wait: SettlementWait | None = None,
        on_unavailable: OnUnavailable = "closed",
        entries_on_unavailable: OnUnavailable = "open",
        on_threshold: Callable[[str, ThresholdEvent], None] = lambda _organization_id, _event: None,
        on_unresolved: Callable[[str, tuple[str, ...]], None] = lambda _organization_id, _ids: None,
        on_unsettled: Callable[[Reservation, Amounts], None] = lambda _reservation, _amounts: None,
        unsent: UnsentCalls | None = None,
    ) -> None:
        """``on_unsettled`` hears of each lease that has to be settled later, so that it can be even
        if this process dies before; ``unsent`` of each call until it is sent or given up."""
        self._rates = rates
        self._exchange = exchange
        self._rebuilder = rebuilder
        self._retry_queue = retry_queue
        self._settlement_wait = settlement_wait or SettlementWait(0.0)
        self._on_unavailable = on_unavailable
        self._entries_on_unavailable = entries_on_unavailable
        self._on_threshold = on_threshold
        self._on_unresolved = on_unresolved
        self._on_unsettled = on_unsettled
        self._unsent = UnsentCalls(None) if unsent is None else unsent
        self.uses_budget_service: Final = exchange.uses_budget_service
        """Whether there may be budgets that the document does not know of."""
        self.decisions: Final[Counter[str]] = Counter()
        """Decisions about rates, by who made them."""
        self.reserved_nanos = 0
        """What the running calls of this worker have reserved of budgets in USD."""

    def take_rates(self, organization_id: str, specs: RateSpecs, lease_id: str) -> RateDecision:
        """Charge every rate limit, or none when one refuses; raises :class:`Unavailable`."""
        asking = Asking(
            self._give_back, specs, Request(organization_id, lease_id, (), NOTHING, 0), None
        )
        with asking:
            return self._take(asking, specs)

    def admit(
        self, rates: RateSpecs | RateDecision, request: Request, entry: Entry | None
    ) -> Outcome:
        """Whether the call may be served. ``rates`` are its limits, or the decision if they were
        taken already.

        Rates are taken together with all else in one exchange where that is possible. Whatever ends
        this method, a killed greenlet included, nothing stays reserved that the outcome does not
        tell of.
        """
        asking = Asking(self._give_back, rates, request, entry)
        admitted = False
        if request.windows and not self.uses_budget_service:
            self._unsent.begin(request)
        try:
            with asking:
                outcome = self._admit(asking)
                admitted = isinstance(outcome.result, Admitted)
                return outcome
        finally:
            if not admitted:
                self._unsent.end(request.lease_id)

    def sent(self, lease_id: str) -> None:
        """The call is being sent, and the disk knows what it has reserved."""
        self._unsent.end(lease_id)

    def settle(
        self,
        admitted: Admitted,
        amounts: Amounts,
        reply: bytes | NotStored | None = None,
        *,
        new_windows: Sequence[ReservedWindow] = (),
    ) -> None:
        """Charge ``amounts`` and store ``reply`` for duplicates; without one, the id is free again.
        ``new_windows`` came into being while the call ran, and are charged as well.

        While nobody answers: later, and then duplicates learn only that the call was done. A call
        that has waited in vain at its beginning does not wait again.
        """
        reservation = admitted.reservation
        self.reserved_nanos -= _reserved_nanos(reservation)
        if new_windows:
            reservation = replace(reservation, windows=(*reservation.windows, *new_windows))
            admitted = replace(admitted, reservation=reservation)
        if not (reservation.windows or admitted.entry or self.uses_budget_service):
            return
        stored = None if reply is None else NotStored()
        is_settled = False
        try:
            if not admitted.waited_in_vain:
                self._end(admitted, amounts, reply)
                is_settled = True
        except Unavailable:
            pass
        finally:  # a killed greenlet, too, owes what its call has used
            if not (
                is_settled or self._exchange.end_later(reservation, amounts, admitted.entry, stored)
            ):
                self._retry_queue.later(lambda: self._end(admitted, amounts, stored))
                self._on_unsettled(reservation, amounts)
            self._unsent.end(reservation.lease_id)

    def _take(self, asking: Asking, specs: RateSpecs) -> RateDecision:
        request = asking.request
        asking.decision = self._rates.take(
            request.organization_id, specs.buckets, specs.slots, lease_id=request.lease_id
        )
        self.decisions[asking.decision.source] += 1
        return asking.decision

    def _admit(self, asking: Asking) -> Outcome:
        request, entry = asking.request, asking.entry
        asks_nothing = not (request.windows or entry or request.nonce or self.uses_budget_service)
        plan: RatePlan | None = None
        if asking.specs is not None:
            if asks_nothing or self.uses_budget_service or not self._rates.can_be_joined:
                try:
                    self._take(asking, asking.specs)
                except Unavailable:
                    return Outcome(None)
            else:
                plan = self._rates.plan(
                    request.organization_id,
                    asking.specs.buckets,
                    asking.specs.slots,
                    lease_id=request.lease_id,
                )
        decision = asking.decision
        if decision is not None and not decision.allowed:
            return Outcome(decision)
        if asks_nothing:
            nothing = Reservation(request.lease_id, request.organization_id, ())
            return Outcome(decision, Admitted(nothing, None))
        outcome = self._ask(asking, plan)
        return self._ask_again(asking, outcome) if _may_fit_soon(outcome) else outcome

    def _ask_again(self, asking: Asking, outcome: Outcome) -> Outcome:
        """Ask while only running calls stand in the way, for as long as a call may wait for them.
        The rates are taken already, and the refusal has freed the id."""
        with closing(self._settlement_wait.turns(asking.request.organization_id)) as turns:
            waited = False
            for _ in turns:
                waited = True
                outcome = self._ask(asking, None)
                if not _may_fit_soon(outcome):
                    break
        if waited:
            admitted = isinstance(outcome.result, Admitted)
            self._settlement_wait.outcomes["admitted" if admitted else "refused"] += 1
        return outcome

    def _ask(self, asking: Asking, plan: RatePlan | None) -> Outcome:
        """Ask until there is an answer, however often a period ends or a window has to be rebuilt;
        ``plan`` takes the rates in the first exchange."""
        request, entry = asking.request, asking.entry
        organization_id = request.organization_id
        if asking.decision is not None and asking.decision.source != "redis":
            presumed = self._exchange.presume(request)
            if presumed is not None:  # the call has just waited for Redis, and does not again
                never_sent = NotReserved(Unavailable("redis", "breaker_open"), presumed)
                return Outcome(asking.decision, self._without_answer(asking, never_sent))
        asking.sent = True
        for _ in range(_TRIES):
            try:
                rated, reply = self._exchange.ask(
                    None if plan is None else plan.call, request, entry
                )
                if plan is not None:
                    asking.decision = self._rates.read(organization_id, plan, rated)
                    plan = None
                    self.decisions["redis"] += 1
                    if not asking.decision.allowed:
                        return Outcome(asking.decision)
                if reply is None:  # in another period
                    asking.claimed = entry is not None
                    continue
                if isinstance(reply, NeedsRebuild):
                    asking.claimed = entry is not None
                    for event in self._rebuilder.rebuild(
                        organization_id, reply.windows, request.windows
                    ):
                        self._on_threshold(organization_id, event)
                    continue
            except Unavailable as error:
                if plan is not None and not self._decide_without_redis(asking, error):
                    self._undo(asking, error)
                    return Outcome(asking.decision)
                return Outcome(asking.decision, self._without_answer(asking, error))
            if isinstance(reply, (Reservation, Denied)) and reply.dropped:
                self._on_unresolved(organization_id, reply.dropped)
            if isinstance(reply, Reservation):
                return Outcome(asking.decision, self._admitted(reply, entry))
            if not isinstance(reply, Closed):
                return Outcome(asking.decision, reply)
            break
        # Its lease was ended by somebody else, or its window is lost again and again.
        return Outcome(asking.decision, self._without_answer(asking, Unavailable("ledger", "lost")))

    def _decide_without_redis(self, asking: Asking, error: Unavailable) -> bool:
        """Whether the rates let the call pass by the policy for the time without Redis."""
        assert asking.specs is not None
        request = asking.request
        try:
            asking.decision = self._rates.decide_without_redis(
                error,
                request.organization_id,
                asking.specs.buckets,
                asking.specs.slots,
                lease_id=request.lease_id,
            )
        except Unavailable:
            return False
        self.decisions[asking.decision.source] += 1
        return asking.decision.allowed

    def _admitted(self, reservation: Reservation, entry: Entry | None) -> Admitted:
        self.reserved_nanos += _reserved_nanos(reservation)
        unclaimed = reservation.unclaimed
        owned = None if unclaimed in NOT_SENT else entry
        return Admitted(reservation, owned, unprotected=unclaimed is not None)

    def _without_answer(self, asking: Asking, error: Unavailable) -> Admitted | Unavailable:
        """Let the call pass unprotected where the policy allows it, else take back what may be
        reserved."""
        if not self._may_pass(asking.request, asking.entry, error):
            if not isinstance(error, NotProtected):
                self._undo(asking, error)
            return error
        # An id that cannot have been claimed needs no end. There may be a lot of them.
        owned = asking.entry if asking.claimed or error.reason not in NOT_SENT else None
        reservation = _presumed(asking.request, error)
        self.reserved_nanos += _reserved_nanos(reservation)
        return Admitted(reservation, owned, unprotected=True, waited_in_vain=True)

    def _may_pass(self, request: Request, entry: Entry | None, error: Unavailable) -> bool:
        """Whether the call goes on without what could not be asked."""
        if request.nonce is not None:
            return False
        if entry is not None and self._entries_on_unavailable == "closed":
            # Where a service holds the budgets, it is only Redis that knows of the id.
            if not self.uses_budget_service or isinstance(error, NotProtected):
                return False
        has_budget = request.is_limited or self.uses_budget_service
        return not has_budget or self._on_unavailable == "open"

    def _undo(self, asking: Asking, error: Unavailable) -> None:
        """Take back, later, what may have been reserved without an answer."""
        if asking.claimed or error.reason not in NOT_SENT:
            self._end_later(_presumed(asking.request, error), asking.entry)

    def _give_back(self, asking: Asking) -> None:
        """The call was killed while it asked: give back its rates, its id and its budgets."""
        request, specs = asking.request, asking.specs
        if specs is not None:
            self._rates.give_back(
                request.organization_id,
                specs.buckets,
                specs.slots,
                asking.decision,
                lease_id=request.lease_id,
            )
        if asking.sent:
            presumed = self._exchange.presume(request)
            if presumed is None:
                presumed = Reservation(request.lease_id, request.organization_id, ())
            self._end_later(presumed, asking.entry)

    def _end_later(self, reservation: Reservation, entry: Entry | None) -> None:
        self._retry_queue.later(lambda: self._end(Admitted(reservation, entry), NOTHING, None))
        self._on_unsettled(reservation, NOTHING)

    def _end(self, admitted: Admitted, amounts: Amounts, reply: bytes | NotStored | None) -> None:
        reservation = admitted.reservation
        settlement = self._exchange.end(reservation, amounts, admitted.entry, reply)
        self._settlement_wait.settled(reservation.organization_id)
        for event in settlement.threshold_events:
            self._on_threshold(reservation.organization_id, event)


def _may_fit_soon(outcome: Outcome) -> bool:
    return isinstance(outcome.result, Denied) and outcome.result.is_by_reservations


def _presumed(request: Request, error: Unavailable) -> Reservation:
    if isinstance(error, NotReserved):
        return error.presumed
    return Reservation(request.lease_id, request.organization_id, ())


def _reserved_nanos(reservation: Reservation) -> int:
    """What is reserved in one of its budgets in USD; all of them reserve the same."""
    return next((held.amount for held in reservation.windows if held.window.unit == "usd"), 0)
