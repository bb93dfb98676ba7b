"""Idempotency entry and budget reservation of one call, in one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.limits.breaker import Unavailable
from router.limits.bucket import Runner
from router.limits.budgets import (
    NOTHING,
    Amounts,
    Closed,
    Denied,
    Foreign,
    NeedsRebuild,
    NotReserved,
    Reservation,
    ReserveOutcome,
    Settlement,
    WindowSpec,
)
from router.limits.idempotency import (
    Entry,
    Idempotency,
    InFlight,
    Mismatch,
    New,
    NotKept,
    Replay,
)
from router.limits.ledger import Ledger

AdmitOutcome = (
    Reservation | Denied | NeedsRebuild | Closed | Foreign | InFlight | Replay | NotKept | Mismatch
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a call asks of the ledger."""

    organization_id: str
    lease_id: str
    windows: Sequence[WindowSpec]
    amounts: Amounts
    ttl_ms: int


class Admission:
    """Claims the id first; reserves only if that succeeded; frees the id if the budget refuses.

    A call without an idempotency id has no entry, one without budgets no windows.
    """

    def __init__(self, redis: Runner, ledger: Ledger, idempotency: Idempotency) -> None:
        self._redis = redis
        self._ledger = ledger
        self._idempotency = idempotency

    def admit(self, request: Request, entry: Entry | None) -> AdmitOutcome:
        """The reservation, or what stands against it. ``entry.owner`` is the request's lease id.

        Both scripts go out together: the reservation looks on the server whether the id was won.
        Raises :class:`NotReserved` when nobody knows what Redis has done.
        """
        if entry is None:
            return self._reserve(request)
        if not request.windows:
            return self._claim(request, entry)
        plan = self._ledger.plan_reserve(
            request.organization_id,
            request.lease_id,
            request.windows,
            request.amounts,
            ttl_ms=request.ttl_ms,
            entry_key=entry.key,
            owner=entry.owner,
        )
        begin = self._idempotency.plan_begin(entry, lease_ms=request.ttl_ms)
        try:
            begun, reserved = self._redis.run_all((begin, plan.call))
        except Unavailable as cause:
            raise NotReserved(cause, plan.presumed) from cause
        claim = self._idempotency.read_begin(begun)
        if not isinstance(claim, New):
            return claim
        outcome = self._ledger.read_reserve(plan, reserved)
        if outcome is None:  # in another period; the id is won already
            outcome = self._reserve(request)
        if not isinstance(outcome, (Reservation, NeedsRebuild)):
            self._free(entry)
        return outcome

    def end(
        self,
        reservation: Reservation,
        amounts: Amounts,
        entry: Entry | None,
        reply: bytes | NotKept | None,
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

    def _claim(self, request: Request, entry: Entry) -> AdmitOutcome:
        nothing_held = self._reserve(request)
        try:
            claim = self._idempotency.begin(entry, lease_ms=request.ttl_ms)
        except Unavailable as cause:
            presumed = Reservation(request.lease_id, request.organization_id, ())
            raise NotReserved(cause, presumed) from cause
        return nothing_held if isinstance(claim, New) else claim

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
