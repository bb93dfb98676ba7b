"""The id of a call claimed in Redis, its budgets reserved at a budget service."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from router.breaker import NOT_SENT, Reason, Unavailable
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    NotReserved,
    Reservation,
    Settlement,
)
from router.limits.idempotency.entries import Entry, Idempotency, New, NotProtected, NotStored
from router.limits.idempotency.nonces import Nonces
from router.limits.outcome import ExchangeReply, Request
from router.limits.remote.budget_client import BudgetClient
from router.limits.remote.budget_session import NAME
from router.limits.remote.charge_journal import ChargeJournal
from router.limits.remote.message_parts import NothingReserved
from router.limits.retry_queue import RetryQueue
from router.redis.scripts import ScriptCall


class ServiceExchange:
    """What :class:`router.limits.redis_exchange.RedisExchange` is, in two exchanges instead of one.

    The id is claimed in Redis first, then the service is asked. While Redis is unavailable the call
    goes on without protection against duplicates, as its reservation says (``unclaimed``), or
    does not go on when ``entries_on_unavailable`` is ``closed``.
    """

    uses_budget_service = True

    def __init__(
        self,
        client: BudgetClient,
        idempotency: Idempotency,
        nonces: Nonces,
        retry_queue: RetryQueue,
        journal: ChargeJournal,
        *,
        entries_on_unavailable: Literal["closed", "open"] = "open",
    ) -> None:
        self._client = client
        self._idempotency = idempotency
        self._nonces = nonces
        self._retry_queue = retry_queue
        self._journal = journal
        self._entries_on_unavailable = entries_on_unavailable

    def ask(
        self, rates: ScriptCall | None, request: Request, entry: Entry | None
    ) -> tuple[list[int], ExchangeReply]:
        """The reservation, or what stands against it. ``entry.owner`` is the request's lease id.

        Raises :class:`NotReserved` when nobody knows what the service has done, the id free again,
        and :class:`NotProtected`. The service knows no rates, so the first part is empty.
        """
        assert rates is None
        if self._journal.is_full:
            return [], Unavailable(NAME, "breaker_open", "too many charges wait for it")
        if request.nonce is not None:
            try:
                refused = self._nonces.take(request.nonce)
            except Unavailable as error:
                raise NotProtected(error.name, error.reason, error.detail) from error
            if refused is not None:
                return [], refused
        unclaimed: Reason | None = None
        if entry is not None:
            try:
                claim = self._idempotency.begin(entry, lease_ms=request.ttl_ms)
            except Unavailable as error:
                if self._entries_on_unavailable == "closed":
                    if error.reason not in NOT_SENT:  # it may have been claimed all the same
                        self._retry_queue.later(lambda: self._end_entry(entry, None))
                    raise NotProtected(error.name, error.reason, error.detail) from error
                unclaimed = error.reason
            else:
                if not isinstance(claim, New):
                    return [], claim
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
            return [], replace(outcome, unclaimed=unclaimed)
        self._free(entry, unclaimed)
        return [], outcome

    def end(
        self,
        reservation: Reservation,
        amounts: Amounts,
        entry: Entry | None,
        reply: bytes | NotStored | None,
    ) -> Settlement:
        """Book ``amounts``, and store the reply or free the id. Twice is once.

        What the service does not take, whatever it says, waits on disk. Raises
        :class:`Unavailable` for what is not even there, and for what charges nothing. The entry is
        ended in any case, now or as soon as Redis is back.
        """
        self._end_entry_or_later(entry, reply)
        if not _charges(reservation, amounts):
            return self._client.settle(reservation, amounts)
        body = self._client.charge(reservation, amounts)
        charge, is_taken = self._journal.write(body), False
        try:
            settlement = self._client.settle(reservation, amounts, body)
            is_taken = True
            return settlement
        except Unavailable:
            if charge is None:
                raise
            return Settlement(False)
        finally:
            if charge is not None:
                (self._journal.taken if is_taken else self._journal.keep)(charge)

    def end_later(
        self,
        reservation: Reservation,
        amounts: Amounts,
        entry: Entry | None,
        reply: bytes | NotStored | None,
    ) -> bool:
        """Put the charge on disk without asking the service; whether it is there now."""
        if not _charges(reservation, amounts):
            return False
        charge = self._journal.write(self._client.charge(reservation, amounts))
        if charge is None:
            return False
        self._journal.keep(charge)
        if entry is not None:
            self._retry_queue.later(lambda: self._end_entry(entry, reply))
        return True

    def presume(self, request: Request) -> Reservation | None:
        """``None``: what the service would reserve is not known here."""
        return None

    def _free(self, entry: Entry | None, unclaimed: Reason | None) -> None:
        if unclaimed not in NOT_SENT:  # else there is nothing that could be freed
            self._end_entry_or_later(entry, None)

    def _end_entry_or_later(self, entry: Entry | None, reply: bytes | NotStored | None) -> None:
        if entry is None:
            return
        try:
            self._end_entry(entry, reply)
        except Unavailable:
            # Not the reply itself: many of them would not fit into memory.
            stored = None if reply is None else NotStored()
            self._retry_queue.later(lambda: self._end_entry(entry, stored))

    def _end_entry(self, entry: Entry, reply: bytes | NotStored | None) -> None:
        self._idempotency.end(entry, reply)


def _charges(reservation: Reservation, amounts: Amounts) -> bool:
    """Whether something would be lost if the service never heard of it."""
    return amounts != NOTHING and not isinstance(reservation, NothingReserved)
