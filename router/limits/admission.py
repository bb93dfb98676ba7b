"""Rates, idempotency entry and budget reservation of one call, in one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from router.breaker import Unavailable
from router.limits.budgets.ledger import Ledger, ReservePlan
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Closed,
    Denied,
    NeedsRebuild,
    NotReserved,
    Reservation,
    ReserveOutcome,
    Settlement,
    WindowSpec,
)
from router.limits.idempotency.entries import (
    Entry,
    Idempotency,
    InFlight,
    Mismatch,
    New,
    NotStored,
    Replay,
)
from router.limits.rates.limiter import Runner
from router.redis.scripts import Argument, Loader, ScriptCall, load_script

AdmitOutcome = (
    Reservation | Denied | NeedsRebuild | Closed | InFlight | Replay | NotStored | Mismatch
)


@dataclass(slots=True)
class Request:
    """What a call asks of the ledger."""

    organization_id: str
    lease_id: str
    windows: Sequence[WindowSpec]
    amounts: Amounts
    ttl_ms: int
    key_id: str | None = None
    """Whose call it is: a budget service may know of budgets of this key."""

    @property
    def is_limited(self) -> bool:
        """Whether one of its windows can refuse it."""
        return any(window.enforced and window.limit is not None for window in self.windows)


class Admission:
    """Claims the id first; reserves only if that succeeded; frees the id if the budget refuses.

    A call without an idempotency id has no entry, one without budgets no windows.
    """

    def __init__(
        self,
        redis: Runner,
        ledger: Ledger,
        idempotency: Idempotency,
        *,
        load: Loader = load_script,
    ) -> None:
        self._redis = redis
        self._ledger = ledger
        self._idempotency = idempotency
        self._script = load(
            "admission.lua",
            rates=("rates/bucket.lua",),
            claim=("idempotency/claim.lua",),
            hold=("budgets/window.lua", "budgets/reserve.lua"),
        )

    def admit(self, request: Request, entry: Entry | None) -> AdmitOutcome:
        """The reservation, or what stands against it. ``entry.owner`` is the request's lease id.

        Raises :class:`NotReserved` when nobody knows what Redis has done.
        """
        if entry is None and not request.windows:
            return self._nothing(request)
        _, outcome = self.enter(None, request, entry)
        assert outcome is not None  # there was no rate to refuse it
        return outcome

    def enter(
        self, rates: ScriptCall | None, request: Request, entry: Entry | None
    ) -> tuple[list[int], AdmitOutcome | None]:
        """:meth:`admit` behind the rates of the call: what they answered, and the outcome, or
        ``None`` when they refuse the call and nothing else was asked."""
        claim = plan = None
        if entry is not None:
            claim = self._idempotency.plan_begin(entry, lease_ms=request.ttl_ms)
        if request.windows:
            plan = self._ledger.plan_reserve(
                request.organization_id,
                request.lease_id,
                request.windows,
                request.amounts,
                ttl_ms=request.ttl_ms,
            )
        call = self._joined(rates, claim, None if plan is None else plan.call)
        try:
            reply = self._redis.run(call)
        except Unavailable as cause:
            presumed = self._nothing(request) if plan is None else plan.presumed
            raise NotReserved(cause, presumed) from cause
        rated, claimed, held = reply
        if rated and not rated[0]:
            return rated, None
        return rated, self._outcome(request, entry, plan, claimed, held)

    def end(
        self,
        reservation: Reservation,
        amounts: Amounts,
        entry: Entry | None,
        reply: bytes | NotStored | None,
    ) -> Settlement:
        """Book ``amounts``, and keep the reply or free the id, in one round trip. Twice is once."""
        calls = []
        if reservation.windows:
            calls.append(self._ledger.plan_settle(reservation, amounts))
        if entry is not None:
            calls.append(self._idempotency.plan_end(entry, reply))
        replies = self._redis.run_all(calls) if calls else []
        if not reservation.windows:
            return Settlement(True)
        return self._ledger.read_settle(reservation, replies[0])

    def undo(self, reservation: Reservation, entry: Entry | None) -> None:
        """As if the call had never asked."""
        self.end(reservation, NOTHING, entry, None)

    def _joined(self, *parts: ScriptCall | None) -> ScriptCall:
        keys: list[str] = []
        counts: list[Argument] = [0 if part is None else len(part.keys) for part in parts]
        arguments: list[Argument] = []
        for part in parts:
            if part is None:
                counts.append(0)
                continue
            keys += part.keys
            counts.append(len(part.arguments))
            arguments += part.arguments
        return ScriptCall(self._script, keys, counts + arguments)

    def _outcome(
        self,
        request: Request,
        entry: Entry | None,
        plan: ReservePlan | None,
        claimed: list[Any],
        held: list[Any],
    ) -> AdmitOutcome:
        if entry is not None:
            claim = self._idempotency.read_begin(claimed)
            if not isinstance(claim, New):
                return claim
        if plan is None:
            return self._nothing(request)
        outcome = self._ledger.read_reserve(plan, held)
        if outcome is None:  # in another period; the id is won already
            outcome = self._reserve(request)
            if entry is not None and isinstance(outcome, (Denied, Closed)):
                self._free(entry)
        return outcome

    def _nothing(self, request: Request) -> Reservation:
        return Reservation(request.lease_id, request.organization_id, ())

    def _reserve(self, request: Request) -> ReserveOutcome:
        return self._ledger.reserve(
            request.organization_id,
            request.lease_id,
            request.windows,
            request.amounts,
            ttl_ms=request.ttl_ms,
        )

    def _free(self, entry: Entry) -> None:
        try:
            self._idempotency.abandon(entry)
        except Unavailable:
            pass  # the refusal stands; the id is free again when its lease ends
