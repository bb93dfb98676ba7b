"""The ledger as a budget service keeps it: it rebuilds what is lost, and answers plain checks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from router.breaker import Unavailable
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import (
    Amounts,
    Closed,
    Denied,
    LostWindow,
    NeedsRebuild,
    Reservation,
    Settlement,
    ThresholdEvent,
    WindowSpec,
    WindowState,
)
from router.limits.remote.wire import Check

SumRecords = Callable[[str, LostWindow], int]
"""What the records have of an organization's lost window; raises :class:`Unavailable`."""

_TRIES = 3


class RebuildingLedger:
    """Answers for a ledger. Every method raises :class:`Unavailable` while nobody can know."""

    def __init__(
        self, ledger: Ledger, maintenance: LedgerMaintenance, *, sum_records: SumRecords
    ) -> None:
        self._ledger = ledger
        self._maintenance = maintenance
        self._sum_records = sum_records
        self._rebuilding: dict[str, threading.Lock] = {}

    def check(
        self, organization_id: str, windows: Sequence[WindowSpec], amounts: Amounts
    ) -> tuple[Check, list[ThresholdEvent]]:
        """Whether ``amounts`` would fit now. Nothing is held, so two callers may both hear yes."""
        states, threshold_events = self.read(organization_id, windows)
        refusing = [
            state for state in states if state.window.enforced and not _fits(state, amounts)
        ]
        if not refusing:
            return Check(True, None, 0, states), threshold_events
        binding = max(refusing, key=_ends_ms)
        return Check(False, binding, amounts.of(binding.window.unit), states), threshold_events

    def reserve(
        self,
        organization_id: str,
        lease_id: str,
        windows: Sequence[WindowSpec],
        amounts: Amounts,
        *,
        ttl_ms: int,
    ) -> tuple[Reservation | Denied | Closed, list[ThresholdEvent]]:
        """What the ledger says, and the thresholds that a rebuild found to be reached."""
        threshold_events: list[ThresholdEvent] = []
        for _ in range(_TRIES):
            outcome = self._ledger.reserve(
                organization_id, lease_id, windows, amounts, ttl_ms=ttl_ms
            )
            if isinstance(outcome, (Reservation, Denied, Closed)):
                return outcome, threshold_events
            if isinstance(outcome, NeedsRebuild):
                threshold_events += self._rebuild(organization_id, outcome.windows)
        raise Unavailable("ledger", "lost")

    def settle(self, reservation: Reservation, amounts: Amounts) -> Settlement:
        """Book ``amounts`` and free what was held, once."""
        return self._ledger.settle(reservation, amounts)

    def read(
        self, organization_id: str, windows: Sequence[WindowSpec]
    ) -> tuple[tuple[WindowState, ...], list[ThresholdEvent]]:
        """What the counters say, lost ones after their rebuild."""
        threshold_events: list[ThresholdEvent] = []
        for _ in range(_TRIES if windows else 0):
            states = self._ledger.read(organization_id, windows)
            lost = tuple([state.window for state in states if state.lost])
            if not lost:
                return states, threshold_events
            threshold_events += self._rebuild(organization_id, lost)
        if windows:
            raise Unavailable("ledger", "lost")
        return (), threshold_events

    def _rebuild(
        self, organization_id: str, windows: tuple[WindowSpec, ...]
    ) -> tuple[ThresholdEvent, ...]:
        """The first that comes asks the records; for the others nothing is lost any more."""
        with self._rebuilding.setdefault(organization_id, threading.Lock()):
            return self._maintenance.rebuild(
                organization_id, windows, lambda lost: self._sum_records(organization_id, lost)
            )


def _fits(state: WindowState, amounts: Amounts) -> bool:
    """The rule of ledger.lua."""
    limit, amount = state.window.limit, amounts.of(state.window.unit)
    return limit is None or amount == 0 or amount <= limit - state.settled - state.reserved


def _ends_ms(state: WindowState) -> float:
    return state.period.end_ms or float("inf")
