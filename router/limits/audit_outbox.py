"""Events about limits that no call is about: logged at once, audited as soon as possible."""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Mapping
from typing import Final

from router.breaker import State
from router.clock import Clock
from router.errors import RecordsUnavailable
from router.limits.budgets.windows import ThresholdEvent
from router.records.record_types import AuditAction, AuditEvent
from router.records.recorder import Recorder

log = logging.getLogger("router.limits")

MAX_EVENTS: Final = 1000


class AuditOutbox:
    """Keeps events until the audit trail has them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._events: deque[AuditEvent] = deque(maxlen=MAX_EVENTS)
        self.unresolved = 0
        """Leases of calls that never ended, found expired."""

    def __len__(self) -> int:
        return len(self._events)

    def threshold_reached(self, organization_id: str, event: ThresholdEvent) -> None:
        """A budget has reached one of its thresholds."""
        window = event.window
        log.warning("budget threshold reached", extra={"budget": window.id, "organization_id":
                    organization_id, "percent": event.percent})  # fmt: skip
        self._add(
            "BUDGET_THRESHOLD",
            "budget",
            window.id,
            organization_id,
            {**window.audit_context, "percent": event.percent},
        )

    def dependency_changed(self, name: str, state: State) -> None:
        """A dependency became unavailable, or is back. Also called from threads of breakers."""
        action: AuditAction = "DEPENDENCY_RESTORED" if state == "closed" else "DEPENDENCY_LOST"
        self._add(action, "dependency", name, None, {})

    def found_unresolved(self, organization_id: str, lease_ids: tuple[str, ...]) -> None:
        """Calls never ended: their worker was killed. A lease has the id of its usage record."""
        self.unresolved += len(lease_ids)
        log.warning(
            "calls never ended; what they had reserved is free again",
            extra={"organization_id": organization_id, "leases": list(lease_ids)},
        )

    def flush(self, recorder: Recorder) -> None:
        """Append the events to the audit trail; those that it does not take now stay. What may be
        written already is buffered there, in its place of the chain."""
        if not self._events:
            return
        events = [self._events.popleft() for _ in range(len(self._events))]
        try:
            recorder.note(events)
        except RecordsUnavailable as refusal:
            if refusal.nothing_written:
                self._events.extendleft(reversed(events))

    def _add(
        self,
        action: AuditAction,
        entity_type: str,
        entity_id: str,
        organization_id: str | None,
        context: Mapping[str, str | int | None],
    ) -> None:
        self._events.append(
            AuditEvent(
                event_id=str(uuid.uuid4()),
                action=action,
                actor="router",
                entity_type=entity_type,
                entity_id=entity_id,
                timestamp=self._clock.now_s(),
                organization_id=organization_id,
                context=context,
            )
        )
