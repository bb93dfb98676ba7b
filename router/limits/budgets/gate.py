"""Budgets and idempotency as a call sees them, and what was chosen for when Redis is away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from router.breaker import NOT_SENT, Breaker, Unavailable
from router.limits.admission import AdmitOutcome, Request
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Closed,
    Denied,
    LostWindow,
    NeedsRebuild,
    NotReserved,
    Reservation,
    Settlement,
    ThresholdEvent,
    WindowSpec,
)
from router.limits.idempotency.entries import (
    Entry,
    InFlight,
    Mismatch,
    NotProtected,
    NotStored,
    Replay,
)
from router.limits.retry_queue import RetryQueue

OnUnavailable = Literal["closed", "open"]

PATIENCE_S: Final = 2.0
_TRIES: Final = 3

SumRecords = Callable[[str, LostWindow], int]
"""What the record store has of an organization's lost window; raises :class:`Unavailable` when it
cannot be asked, or is known to lack records."""


Presume = Callable[[Request], Reservation]
"""What a ledger that was not asked would have reserved."""


@dataclass(slots=True)
class Admitted:
    """A call that may go on. To be settled or released once, however it ends."""

    reservation: Reservation
    entry: Entry | None
    unprotected: bool = False
    """Redis gave no answer and the call was let through: without its budget, without replay
    protection, or without both."""
    is_late: bool = False
    """It has waited for Redis in vain: what there is to tell at its end is told later."""


class Admitting(Protocol):
    """Where calls are admitted: :class:`router.limits.admission.Admission` in Redis alone,
    :class:`router.limits.remote.admission.RemoteAdmission` at a budget service."""

    def admit(self, request: Request, entry: Entry | None) -> AdmitOutcome:
        """The reservation, or what stands against it; raises :class:`Unavailable`."""

    def end(
        self,
        reservation: Reservation,
        amounts: Amounts,
        entry: Entry | None,
        reply: bytes | NotStored | None,
    ) -> Settlement:
        """Book ``amounts``, and keep the reply or free the id. Twice is once."""

    def undo(self, reservation: Reservation, entry: Entry | None) -> None:
        """As if the call had never asked."""


GateOutcome = Admitted | Denied | InFlight | Replay | NotStored | Mismatch


class BudgetGate:
    """Admits calls and ends them. Redis away: ``closed`` admits nothing that has a budget,
    ``open`` admits all and charges later. A call without a budget, or with one that is in shadow or
    has no limit, is charged later too, and only loses replay protection,
    unless ``entries_on_unavailable`` is ``closed``: then a call with an id is not admitted either.

    With ``asks_always`` there may be budgets that the router does not know of, at a service.
    """

    def __init__(
        self,
        admission: Admitting,
        maintenance: LedgerMaintenance,
        deferred: RetryQueue,
        *,
        sum_records: SumRecords,
        on_unavailable: OnUnavailable = "closed",
        entries_on_unavailable: OnUnavailable = "open",
        asks_always: bool = False,
        presume: Presume | None = None,
        patience_s: float = PATIENCE_S,
        on_threshold: Callable[[str, ThresholdEvent], None] = lambda _organization_id, _crossing: (
            None
        ),
        on_unresolved: Callable[[str, tuple[str, ...]], None] = lambda _organization_id, _ids: None,
    ) -> None:
        self._admission = admission
        self._maintenance = maintenance
        self._retry_queue = deferred
        self._sum_records = sum_records
        self._on_unavailable = on_unavailable
        self._entries_on_unavailable = entries_on_unavailable
        self._asks_always = asks_always
        self._presume = presume
        self._on_threshold = on_threshold
        self._on_unresolved = on_unresolved
        self._patience_s = patience_s
        self._rebuilding: dict[str, threading.Event] = {}
        self._records = Breaker("record store", failures=1)

    def admit(
        self,
        request: Request,
        entry: Entry | None = None,
        *,
        is_unavailable: bool = False,
        asked: Callable[[], AdmitOutcome] | None = None,
    ) -> GateOutcome:
        """Whether the call may go on. Raises :class:`Unavailable`, with nothing held, when nobody
        knows and the policy is ``closed``.

        With ``is_unavailable`` the caller has just waited for Redis in vain, and does not again.
        ``asked`` tells, or raises, what came of it where the question has been put already.
        """
        if is_unavailable and self._presume is not None:
            unasked = NotReserved(Unavailable("redis", "breaker_open"), self._presume(request))
            return self._unanswered(request, entry, unasked, claimed=False)
        claimed = False
        for _ in range(_TRIES):
            try:
                outcome = asked() if asked else self._ask(request, entry)
                asked = None
                if isinstance(outcome, NeedsRebuild):
                    claimed = entry is not None
                    self._rebuild(request.organization_id, outcome.windows)
                    continue
            except Unavailable as error:
                return self._unanswered(request, entry, error, claimed=claimed)
            if isinstance(outcome, (Reservation, Denied)) and outcome.dropped:
                self._on_unresolved(request.organization_id, outcome.dropped)
            if isinstance(outcome, Reservation):
                unclaimed = outcome.unclaimed
                owned = None if unclaimed in NOT_SENT else entry
                return Admitted(outcome, owned, unprotected=unclaimed is not None)
            if not isinstance(outcome, Closed):
                return outcome
            break
        # Its lease was ended by somebody else, or its window is lost again and again.
        given_up = Unavailable("ledger", "lost")
        return self._unanswered(request, entry, given_up, claimed=claimed)

    def withdraw(self, request: Request, entry: Entry | None, error: Unavailable) -> None:
        """The call does not go on, for another reason, and nobody knows whether it was admitted."""
        self._undo(error, self._presumed(request, error), entry)

    def settle(
        self, admitted: Admitted, amounts: Amounts, reply: bytes | NotStored | None = None
    ) -> None:
        """Charge ``amounts`` and keep ``reply`` for duplicates; without one, the id is free again.
        Redis away: later, and then duplicates learn only that the call was done. A call that Redis
        gave no answer at its beginning does not wait for it once more."""
        reservation = admitted.reservation
        has_end = reservation.windows or admitted.entry is not None or self._asks_always
        if admitted.is_late and not has_end:
            return
        kept = None if reply is None else NotStored()
        told = False
        try:
            if not admitted.is_late:
                self._end(admitted, amounts, reply)
                told = True
        except Unavailable:
            pass
        finally:  # a killed greenlet, too, owes what its call has used
            if not told:
                self._retry_queue.later(lambda: self._end(admitted, amounts, kept))

    def release(self, admitted: Admitted) -> None:
        """Charge nothing and free the id."""
        self.settle(admitted, NOTHING)

    def _end(self, admitted: Admitted, amounts: Amounts, reply: bytes | NotStored | None) -> None:
        reservation = admitted.reservation
        settlement = self._admission.end(reservation, amounts, admitted.entry, reply)
        for threshold_event in settlement.threshold_events:
            self._on_threshold(reservation.organization_id, threshold_event)

    def _unanswered(
        self, request: Request, entry: Entry | None, error: Unavailable, *, claimed: bool
    ) -> Admitted:
        reservation = self._presumed(request, error)
        was_sent = claimed or error.reason not in NOT_SENT
        if self._may_pass(request, entry, error):
            # An id that cannot have been claimed needs no end. There may be a lot of them.
            owned = entry if was_sent else None
            return Admitted(reservation, owned, unprotected=True, is_late=True)
        if not isinstance(error, NotProtected):
            self._undo(error, reservation, entry, claimed=claimed)
        raise error

    def _ask(self, request: Request, entry: Entry | None) -> AdmitOutcome:
        try:
            return self._admission.admit(request, entry)
        except Exception:
            raise
        except BaseException:
            self.forget(request, entry)
            raise

    def forget(self, request: Request, entry: Entry | None) -> None:
        """Whoever asked was killed meanwhile: what it may hold is given back."""
        presumed = Reservation(request.lease_id, request.organization_id, ())
        if self._presume is not None and request.windows:
            presumed = self._presume(request)
        self._retry_queue.later(lambda: self._admission.undo(presumed, entry))

    def _presumed(self, request: Request, error: Unavailable) -> Reservation:
        if isinstance(error, NotReserved):
            return error.presumed
        return Reservation(request.lease_id, request.organization_id, ())

    def _undo(
        self,
        error: Unavailable,
        reservation: Reservation,
        entry: Entry | None,
        *,
        claimed: bool = False,
    ) -> None:
        if claimed or error.reason not in NOT_SENT:
            self._retry_queue.later(lambda: self._admission.undo(reservation, entry))

    def _may_pass(self, request: Request, entry: Entry | None, error: Unavailable) -> bool:
        """Whether the call goes on without what could not be asked."""
        if entry is not None and self._entries_on_unavailable == "closed":
            # Budgets elsewhere: then it is only Redis that knows of the id.
            if not self._asks_always or isinstance(error, NotProtected):
                return False
        has_budget = request.is_limited or self._asks_always
        return not has_budget or self._on_unavailable == "open"

    def _rebuild(self, organization_id: str, windows: tuple[WindowSpec, ...]) -> None:
        """One call asks the records; the others wait for it, and then ask Redis again."""
        going_on = self._rebuilding.get(organization_id)
        if going_on is not None:
            going_on.wait(self._patience_s)
            return
        if not self._records.allows():
            raise Unavailable("record store", "breaker_open")
        done = self._rebuilding[organization_id] = threading.Event()
        try:
            threshold_events = self._maintenance.rebuild(
                organization_id, windows, lambda lost: self._sum(organization_id, lost)
            )
        finally:
            del self._rebuilding[organization_id]
            done.set()
        for threshold_event in threshold_events:
            self._on_threshold(organization_id, threshold_event)

    def _sum(self, organization_id: str, lost: LostWindow) -> int:
        try:
            settled = self._sum_records(organization_id, lost)
        except Unavailable as error:
            self._records.failed(error.reason, error.detail)
            raise
        self._records.succeeded()
        return settled
