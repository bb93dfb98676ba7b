"""Lost windows are rebuilt from the records before they admit anything."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from router.breaker import Breaker, Unavailable
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import (
    Amounts,
    Check,
    Closed,
    Denied,
    LostWindow,
    NeedsRebuild,
    Past,
    Reservation,
    Settlement,
    ThresholdEvent,
    WindowSpec,
    WindowState,
)

log = logging.getLogger("router.limits")

SumRecords = Callable[[str, LostWindow], Past | int]
"""What is known of an organization's lost window, in the window's unit; raises
:class:`Unavailable` when they cannot be read, or are known to be incomplete."""

WAIT_S: Final = 2.0
"""How long a call waits for a rebuild. The rebuild goes on without it."""

_TRIES: Final = 3

Spawn = Callable[[Callable[[], None]], object]
"""Runs a task beside its caller, or before it returns."""
ReportThreshold = Callable[[str, ThresholdEvent], None]


@dataclass(slots=True)
class _Running:
    done: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0
    """Callers that will hear of the end."""
    reached: tuple[ThresholdEvent, ...] = ()
    error: Unavailable | None = None


class Rebuilder:
    """Rebuilds the windows of an organization once, however many calls meet them lost.

    A rebuild does not end with the call that began it: with ``spawn`` it runs beside its callers,
    and ``on_threshold`` hears of what it found after all of them have gone.
    """

    def __init__(
        self,
        maintenance: LedgerMaintenance,
        sum_records: SumRecords,
        *,
        wait_s: float = WAIT_S,
        spawn: Spawn = lambda task: task(),
        on_threshold: ReportThreshold = lambda _organization_id, _event: None,
    ) -> None:
        self._maintenance = maintenance
        self._sum_records = sum_records
        self._wait_s = wait_s
        self._spawn = spawn
        self._on_threshold = on_threshold
        self._running: dict[str, _Running] = {}
        self._records = Breaker("record store", failures=1)

    def rebuild(
        self,
        organization_id: str,
        windows: Sequence[WindowSpec],
        siblings: Sequence[WindowSpec] = (),
    ) -> tuple[ThresholdEvent, ...]:
        """Seed the windows, which are some of ``siblings``, and tell which thresholds they have
        reached already. A call that finds a rebuild going on waits for it instead. Raises
        :class:`Unavailable`, also when the rebuild takes longer than calls wait."""
        running = self._running.get(organization_id)
        is_first = running is None
        if running is None:
            if not self._records.allows():
                raise Unavailable("record store", "breaker_open")
            running = self._running[organization_id] = _Running()
        running.waiting += 1
        try:
            if is_first:
                self._begin(running, organization_id, windows, siblings)
            if not running.done.wait(self._wait_s):
                raise Unavailable("ledger", "lost", "it is being rebuilt", counts=False)
        finally:
            running.waiting -= 1
        if running.error is not None:
            raise running.error
        reached, running.reached = running.reached, ()
        return reached

    def _begin(
        self,
        running: _Running,
        organization_id: str,
        windows: Sequence[WindowSpec],
        siblings: Sequence[WindowSpec],
    ) -> None:
        def run() -> None:
            try:
                running.reached = self._maintenance.rebuild(
                    organization_id,
                    windows,
                    lambda lost: self._sum(organization_id, lost),
                    siblings=siblings,
                )
            except Unavailable as error:
                running.error = error
            except Exception as error:
                log.exception("a budget was not rebuilt")
                running.error = Unavailable("ledger", "script", str(error))
            finally:
                del self._running[organization_id]
                running.done.set()
                while running.reached and not running.waiting:
                    event, *others = running.reached
                    running.reached = tuple(others)
                    self._on_threshold(organization_id, event)

        self._spawn(run)

    def _sum(self, organization_id: str, lost: LostWindow) -> Past | int:
        try:
            past = self._sum_records(organization_id, lost)
        except Unavailable as error:
            self._records.failed(error.reason, error.detail)
            raise
        self._records.succeeded()
        return past


class RebuildingLedger:
    """A ledger that rebuilds what it finds lost, and answers plain checks.

    Every method raises :class:`Unavailable` while nobody can know.
    """

    def __init__(self, ledger: Ledger, rebuilder: Rebuilder) -> None:
        self._ledger = ledger
        self._rebuilder = rebuilder

    def check(
        self, organization_id: str, windows: Sequence[WindowSpec], amounts: Amounts
    ) -> tuple[Check, list[ThresholdEvent]]:
        """Whether ``amounts`` would fit now. Nothing is reserved: two callers may both hear yes."""
        states, events = self.read(organization_id, windows)
        refusing = [
            state for state in states if state.window.enforced and not _fits(state, amounts)
        ]
        if not refusing:
            return Check(True, None, 0, states), events
        binding = max(refusing, key=_ends_ms)
        return Check(False, binding, amounts.of(binding.window.unit), states), events

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
        events: list[ThresholdEvent] = []
        for _ in range(_TRIES):
            outcome = self._ledger.reserve(
                organization_id, lease_id, windows, amounts, ttl_ms=ttl_ms
            )
            if isinstance(outcome, (Reservation, Denied, Closed)):
                return outcome, events
            if isinstance(outcome, NeedsRebuild):
                events += self._rebuilder.rebuild(organization_id, outcome.windows, windows)
        raise Unavailable("ledger", "lost")

    def settle(self, reservation: Reservation, amounts: Amounts) -> Settlement:
        """Book ``amounts`` and free what was reserved, once."""
        return self._ledger.settle(reservation, amounts)

    def read(
        self, organization_id: str, windows: Sequence[WindowSpec]
    ) -> tuple[tuple[WindowState, ...], list[ThresholdEvent]]:
        """What the counters say, lost ones after their rebuild."""
        events: list[ThresholdEvent] = []
        if not windows:
            return (), events
        for _ in range(_TRIES):
            states = self._ledger.read(organization_id, windows)
            lost = tuple([state.window for state in states if state.lost])
            if not lost:
                return states, events
            events += self._rebuilder.rebuild(organization_id, lost, windows)
        raise Unavailable("ledger", "lost")


def _fits(state: WindowState, amounts: Amounts) -> bool:
    """The rule of reserve.lua."""
    limit, amount = state.window.limit, amounts.of(state.window.unit)
    return limit is None or amount == 0 or amount <= limit - state.settled - state.reserved


def _ends_ms(state: WindowState) -> float:
    return state.period.end_ms or float("inf")
