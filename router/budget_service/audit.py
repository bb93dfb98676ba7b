"""The audit events of what the service changes."""

from __future__ import annotations

import uuid
from typing import Any

from router.breaker import Unavailable
from router.clock import Clock
from router.errors import RecordsUnavailable
from router.limits.budgets.windows import NOTHING, Amounts, Reservation, ThresholdEvent
from router.records.record_types import AuditAction, AuditEvent
from router.records.recorder import Recorder

ACTOR = "budget-service"


class BudgetAudit:
    """Writes one event for each change, into the spool like every other event.

    While the spool takes nothing, nothing is changed: :meth:`check` comes first.
    """

    def __init__(self, recorder: Recorder, clock: Clock | None = None) -> None:
        self._recorder = recorder
        self._clock = clock or Clock()

    def check(self) -> None:
        """Raise :class:`Unavailable` if a change could not be written now."""
        try:
            self._recorder.check()
        except RecordsUnavailable as error:
            raise Unavailable("audit trail", "lost", error.reason) from None

    def reserved(self, reservation: Reservation, key_id: str | None, amounts: Amounts) -> None:
        """A lease has reserved ``amounts`` in its windows."""
        if reservation.windows:
            self._note_lease("BUDGET_RESERVED", reservation, key_id, amounts)

    def ended(self, reservation: Reservation, key_id: str | None, amounts: Amounts) -> None:
        """``amounts`` were booked, and what the lease had reserved is free."""
        if reservation.windows:
            action: AuditAction = "BUDGET_RELEASED" if amounts == NOTHING else "BUDGET_SETTLED"
            self._note_lease(action, reservation, key_id, amounts)

    def threshold_reached(self, organization_id: str, event: ThresholdEvent) -> None:
        """A rebuild has found a threshold reached, and the answer has no field for it."""
        self._note(
            "BUDGET_THRESHOLD",
            "budget",
            event.window.id,
            organization_id,
            context={**event.window.audit_context, "percent": event.percent},
        )

    def close(self) -> None:
        """Sync what was written."""
        self._recorder.close()

    def _note_lease(
        self,
        action: AuditAction,
        reservation: Reservation,
        key_id: str | None,
        amounts: Amounts,
    ) -> None:
        self._note(
            action,
            "lease",
            reservation.lease_id,
            reservation.organization_id,
            context={
                "api_key_id": key_id,
                "cost_nanos": amounts.cost_nanos,
                "tokens": amounts.tokens,
                "requests": amounts.requests,
            },
            after={
                "windows": {
                    entry.window.id: amounts.of(entry.window.unit) for entry in reservation.windows
                }
            },
        )

    def _note(
        self,
        action: AuditAction,
        entity_type: str,
        entity_id: str,
        organization_id: str,
        **facts: Any,
    ) -> None:
        event = AuditEvent(
            event_id=str(uuid.uuid4()),
            action=action,
            actor=ACTOR,
            entity_type=entity_type,
            entity_id=entity_id,
            timestamp=self._clock.now_s(),
            organization_id=organization_id,
            **facts,
        )
        unwritten = self._recorder.record(None, event)
        if unwritten is not None:  # the change is made already
            unwritten.buffer()
