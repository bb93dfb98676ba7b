"""Leases that no worker could settle are settled from the disk: once each, when Redis is there.

Settling is idempotent by lease id. A lease that Redis has forgotten together with its counters is
booked unless its record was part of what they were rebuilt from: the seed has named those.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from router.breaker import Refused, Unavailable
from router.clock import Clock
from router.limits.audit_outbox import AuditOutbox
from router.limits.budgets.lease_notation import reservation_of
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.windows import Amounts, Reservation
from router.records.open_calls import Unsettled, decode_unsettled
from router.redis.scripts import Runner
from router.spool.checkpoints import Checkpoints
from router.spool.frames import UNSETTLED, Position
from router.spool.reader import SpoolReader, WriterInfo

NAME: Final = "leases"
POLL_S: Final = 0.2
PAUSE_S: Final = 0.5
_NOT_UNDERSTOOD: Final = (ValueError, KeyError, TypeError)
_READ_BYTES: Final = 64 * 1024

KeepCharges = Callable[[Iterable[tuple[Reservation, Amounts]]], None]
"""Puts leases, and what each is to be settled with, where workers find them; raises ``OSError``."""

_logger = logging.getLogger("router.agent")


class LeaseSettler:
    """Settles what is in a spool of unsettled leases, and removes it from there. For one thread."""

    def __init__(
        self,
        redis: Runner,
        reader: SpoolReader,
        checkpoints: Checkpoints,
        outbox: AuditOutbox,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._ledger = Ledger(redis, clock=clock)
        self._reader = reader
        self._checkpoints = checkpoints
        self._outbox = outbox
        self._positions = checkpoints.load()
        self.settled = 0
        """Leases that were open until they were settled here."""

    def run(self, stop: threading.Event) -> None:
        """Settle until ``stop`` is set; no failure ends it."""
        while not stop.is_set():
            pause_s = POLL_S
            try:
                self.step()
            except Unavailable:
                pause_s = PAUSE_S
            except Exception:
                _logger.exception("leases could not be settled")
                pause_s = PAUSE_S
            stop.wait(pause_s)

    def step(self) -> None:
        """Settle all that is there. Raises :class:`Unavailable` or ``OSError``; a later step then
        goes on from there."""
        for info in self._reader.writers():
            while self._read(info):
                pass
        known = {info.writer_id for info in self._reader.writers()}
        self._positions = {name: at for name, at in self._positions.items() if name in known}

    def _read(self, info: WriterInfo) -> bool:
        """Settle the next leases of a writer; false when there are none."""
        position = self._positions.get(info.writer_id)
        if position is None:
            position = self._reader.first_position(info.writer_id)
        batch = self._reader.read(position, _READ_BYTES)
        for frame in batch.frames:
            if frame.kind == UNSETTLED:
                self._settle(frame.payload)
        if batch.position_after == position:
            return False
        self._positions[info.writer_id] = batch.position_after
        self._checkpoints.save(self._positions)
        self._remove(batch.position_after)
        return True

    def _remove(self, position: Position) -> None:
        for number in self._reader.segments(position.writer_id):
            if number < position.segment:
                self._reader.remove_segment(position.writer_id, number)

    def _settle(self, payload: bytes) -> None:
        try:
            unsettled = decode_unsettled(payload)
            reservation, amounts = _charge(unsettled)
        except _NOT_UNDERSTOOD as error:
            _logger.error("lease not understood", extra={"why": str(error)})
            return
        try:
            settlement = self._ledger.settle(reservation, amounts)
        except Refused as error:  # it would be refused for ever
            facts = {"record_id": unsettled.record_id, "why": str(error)}
            _logger.error("lease could not be settled", extra=facts)
            return
        self.settled += settlement.booked
        for event in settlement.threshold_events:
            self._outbox.threshold_reached(reservation.organization_id, event)


def charges_of(leases: Iterable[Unsettled]) -> Iterator[tuple[Reservation, Amounts]]:
    """The leases and what they are to be settled with; one that makes no sense is logged."""
    for unsettled in leases:
        try:
            yield _charge(unsettled)
        except _NOT_UNDERSTOOD as error:
            facts = {"record_id": unsettled.record_id, "why": str(error)}
            _logger.error("lease not understood", extra=facts)


def _charge(unsettled: Unsettled) -> tuple[Reservation, Amounts]:
    reservation = reservation_of(unsettled.record_id, unsettled.organization_id, unsettled.lease)
    return reservation, Amounts(unsettled.cost_nanos, unsettled.tokens, unsettled.requests)
