"""Calls that run tell a Redis which was emptied meanwhile what they hold.

Whoever rebuilds a window finds the calls of its own host on the disk; of other hosts it knows only
what they say themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from router.breaker import Unavailable
from router.limits.budgets.lease_notation import reservation_of
from router.limits.budgets.maintenance import LedgerMaintenance
from router.records.dispatches import Dispatch


class HeldLeases:
    """Keeps the reservations of one worker in Redis, whatever is lost there."""

    def __init__(self, maintenance: LedgerMaintenance) -> None:
        self._maintenance = maintenance
        self._is_running = False

    def hold_again(self, calls: Iterable[Dispatch]) -> None:
        """To be called about once a second with the calls that run. One question for each of their
        organizations, and one more for each of their calls where Redis was emptied. Raises
        nothing."""
        if self._is_running:
            return
        self._is_running = True
        try:
            self._hold_again(calls)
        except Unavailable:
            pass  # again in a second
        finally:
            self._is_running = False

    def _hold_again(self, calls: Iterable[Dispatch]) -> None:
        unharmed = set()
        for call in calls:
            if call.lease is None or call.organization_id in unharmed:
                continue
            reservation = reservation_of(call.record_id, call.organization_id, call.lease)
            # One that was never answered may not be there at all.
            if reservation.epoch and not self._maintenance.hold_again(
                reservation, ttl_ms=call.lease[2]
            ):
                unharmed.add(call.organization_id)
