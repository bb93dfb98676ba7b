"""Idempotency entry and budget reservation of one call, the budget at a budget service."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from router.breaker import NOT_SENT, Reason, Unavailable
from router.limits.admission import AdmitOutcome, Request
from router.limits.budgets.windows import NOTHING, Amounts, NotReserved, Reservation, Settlement
from router.limits.idempotency.entries import Entry, Idempotency, New, NotProtected, NotStored
from router.limits.rates.limiter import Runner
from router.limits.remote.client import BudgetClient
from router.limits.retry_queue import RetryQueue


class RemoteAdmission:
    """What :class:`router.limits.admission.Admission` is, in two exchanges instead of one.

    The id is claimed in Redis first, then the service is asked. Redis away: the call goes on
    without protection against duplicates, which its reservation tells (``unclaimed``), or with
    ``entries_on_unavailable`` ``closed`` it does not.
    """

    def __init__(
        self,
        client: BudgetClient,
        redis: Runner,
        idempotency: Idempotency,
        deferred: RetryQueue,
        *,
        entries_on_unavailable: Literal["closed", "open"] = "open",
    ) -> None:
        self._client = client
        self._redis = redis
        self._idempotency = idempotency
        self._retry_queue = deferred
        self._entries_on_unavailable = entries_on_unavailable

    def admit(self, request: Request, entry: Entry | None) -> AdmitOutcome:
        """The reservation, or what stands against it. ``entry.owner`` is the request's lease id.

        Raises :class:`NotReserved` when nobody knows what the service has done, the id free again,
        and :class:`NotProtected`.
        """
        unclaimed: Reason | None = None
        if entry is not None:
            try:
                claim = self._idempotency.begin(entry, lease_ms=request.ttl_ms)
            except Unavailable as error:
                if self._entries_on_unavailable == "closed":
                    if error.reason not in NOT_SENT:  # it may have been claimed all the same
                        self._retry_queue.later(lambda: self._tell(entry, None))
                    raise NotProtected(error.name, error.reason, error.detail) from error
                unclaimed = error.reason
            else:
                if not isinstance(claim, New):
                    return claim
        try:
            outcome = self._client.reserve(
                request.organization_id,
                request.lease_id,
                request.windows,
                request.amounts,
                ttl_ms=request.ttl_ms,
                key_id=request.key_id,
            )
        except NotReserved:
            self._free(entry, unclaimed)
            raise
        if isinstance(outcome, Reservation):
            return replace(outcome, unclaimed=unclaimed)
        self._free(entry, unclaimed)
        return outcome

    def end(
        self,
        reservation: Reservation,
        amounts: Amounts,
        entry: Entry | None,
        reply: bytes | NotStored | None,
    ) -> Settlement:
        """Book ``amounts``, and keep the reply or free the id. Twice is once.

        Raises :class:`Unavailable` while the service is away; the id is done with in any case, now
        or as soon as Redis is back.
        """
        self._finish(entry, reply)
        return self._client.settle(reservation, amounts)

    def undo(self, reservation: Reservation, entry: Entry | None) -> None:
        """As if the call had never asked."""
        self._finish(entry, None)
        self._client.settle(reservation, NOTHING)

    def _free(self, entry: Entry | None, unclaimed: Reason | None) -> None:
        if unclaimed not in NOT_SENT:  # else there is nothing that could be freed
            self._finish(entry, None)

    def _finish(self, entry: Entry | None, reply: bytes | NotStored | None) -> None:
        if entry is None:
            return
        try:
            self._tell(entry, reply)
        except Unavailable:
            # Not the reply itself: many of them would not fit into memory.
            kept = None if reply is None else NotStored()
            self._retry_queue.later(lambda: self._tell(entry, kept))

    def _tell(self, entry: Entry, reply: bytes | NotStored | None) -> None:
        self._redis.run(self._idempotency.plan_end(entry, reply))
