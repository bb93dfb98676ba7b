"""Leases that wait to be settled, on the local disk: workers append them, the agent settles them.

A spool of its own (``unsettled/``), which only exists where something could not be settled at once:
Redis was unavailable, or a worker died.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from router.clock import Clock
from router.limits.budgets.lease_notation import lease_of
from router.limits.budgets.windows import Amounts, Reservation
from router.records.open_calls import Unsettled, encode_unsettled
from router.spool.disk import Offload
from router.spool.frames import UNSETTLED
from router.spool.writer import SpoolWriter

MAX_BYTES: Final = 1024**3
"""About two million leases. What does not fit stays in its worker's memory."""
SEGMENT_BYTES: Final = 1024 * 1024

log = logging.getLogger("router.limits")


class UnsettledLeases:
    """Appends leases; opens its files when there is one."""

    def __init__(
        self,
        directory: Path,
        lease_s: float,
        *,
        offload: Offload | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._directory = directory
        self._ttl_ms = int(lease_s * 1000)
        self._offload = offload
        self._clock = clock
        self._spool: SpoolWriter | None = None
        # To open it waits for the disk, and an outage leaves many calls unsettled at once.
        self._opening = threading.Lock()
        self.lost = 0
        """How many did not get to the disk."""

    def put(self, reservation: Reservation, amounts: Amounts) -> None:
        """Append a lease and what it is to be settled with. Never raises."""
        lease = lease_of(reservation, self._ttl_ms)
        if lease is None:
            return
        try:
            self.put_all(
                [
                    Unsettled(
                        reservation.lease_id,
                        reservation.organization_id,
                        lease,
                        amounts.cost_nanos,
                        amounts.tokens,
                        amounts.requests,
                    )
                ]
            )
        except Exception as error:  # it is still in the worker's memory
            self.lost += 1
            if self.lost == 1:
                log.error("unsettled leases cannot be written", extra={"reason": str(error)})

    def put_all(self, leases: Sequence[Unsettled], *, wait: bool = False) -> None:
        """Append leases; with ``wait`` they survive a power failure on return. Raises
        ``RecordsUnavailable``."""
        spool = self._opened()
        frames = [(UNSETTLED, encode_unsettled(lease)) for lease in leases]
        if wait:
            spool.append(frames)
            return
        for kind, payload in frames:
            spool.note(kind, payload)

    def close(self) -> None:
        """Close the files, so that the agent can remove them."""
        with self._opening:
            spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()

    def _opened(self) -> SpoolWriter:
        with self._opening:
            if self._spool is None:
                self._spool = SpoolWriter(
                    self._directory,
                    max_bytes=MAX_BYTES,
                    mode="durable",
                    segment_bytes=SEGMENT_BYTES,
                    reserve_bytes=SEGMENT_BYTES // 16,
                    offload=self._offload,
                    clock=self._clock,
                )
            return self._spool
