"""The audit trail of a budget service, as a list."""

from __future__ import annotations

from typing import Any

from router.budget_service.audit import BudgetAudit
from router.clock import FrozenClock
from router.errors import RecordsUnavailable
from router.records.record_types import AuditEvent


class Trail:
    """Takes events as a recorder does, unless ``reason`` says why it cannot."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.reason: str | None = None

    def check(self) -> None:
        """Refuse as the spool does."""
        if self.reason is not None:
            raise RecordsUnavailable(self.reason)

    def record(self, _usage: None, event: AuditEvent) -> None:
        """Take one event."""
        self.events.append(event)

    def told(self) -> list[tuple[str, str, Any]]:
        """Action, entity and what stands behind it, of every event."""
        return [(event.action, event.entity_id, event.after) for event in self.events]


def audit_of(trail: Trail) -> BudgetAudit:
    """What the service writes to ``trail``."""
    recorder: Any = trail
    return BudgetAudit(recorder, FrozenClock(2_000_000_000.0))
