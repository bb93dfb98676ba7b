"""What calls of this host have reserved and not settled yet, as the spools on its disk tell it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router.breaker import Unavailable
from router.limits.budgets.lease_notation import reservation_of
from router.limits.budgets.windows import InFlight, LostWindow, WindowSpec
from router.records.dispatches import Dispatch, decode_dispatch, record_id_of
from router.spool.frames import DISPATCH, UNSETTLED, USAGE, Position
from router.spool.reader import Batch, SpoolReader, read_batches

_POSITIONS: Final = {"usd": 0, "tokens": 1, "requests": 2}
"""Where a dispatch has what it has reserved in windows of a unit."""


class RunningCalls:
    """The calls of one host that were sent to a backend and have no record yet.

    Of each worker the last segment is read: it begins with the calls that ran then. What was read
    once is remembered, because a rebuild asks for each window, and each time anew.
    """

    def __init__(self, spool_dir: Path) -> None:
        self._spool_dir = spool_dir
        self._workers: dict[str, _Worker] = {}
        self._lock = threading.Lock()

    def reserved(self, organization_id: str, lost: LostWindow) -> list[InFlight]:
        """What each call of an organization has reserved in a window. Raises
        :class:`Unavailable`."""
        needle = organization_id.encode()
        try:
            with self._lock:
                self._read_on()
                payloads = [
                    payload
                    for worker in self._workers.values()
                    for payload in worker.calls.values()
                    if needle in payload
                ]
        except OSError as error:
            raise Unavailable("record store", "lost", f"the spool: {error.strerror}") from None
        calls = [
            _reserved(dispatch, lost)
            for dispatch in _decoded(payloads)
            if dispatch.organization_id == organization_id and dispatch.lease is not None
        ]
        return [call for call in calls if call is not None]

    def _read_on(self) -> None:
        reader = SpoolReader(self._spool_dir, observe=True)
        workers: dict[str, _Worker] = {}
        recorded_elsewhere: set[str] = set()
        for info in reader.writers():
            if not info.segments:
                continue
            worker = self._workers.get(info.writer_id)
            if worker is None or worker.position.segment < info.segments[-1]:
                worker = _Worker(Position(info.writer_id, info.segments[-1], 0), {})
            for batch in read_batches(reader, info.writer_id, worker.position):
                recorded_elsewhere |= worker.take(batch)
            workers[info.writer_id] = worker
        # The agent writes the records of calls whose worker has died.
        for worker in workers.values():
            for record_id in recorded_elsewhere & worker.calls.keys():
                del worker.calls[record_id]
        self._workers = workers


@dataclass(slots=True)
class _Worker:
    """How far its last segment was read, and its calls that run, as they were dispatched."""

    position: Position
    calls: dict[str, bytes]

    def take(self, batch: Batch) -> set[str]:
        """Take in what is new; the ids of records that are not about its own calls."""
        others = set()
        for kind, payload, _ in batch.frames:
            if kind == DISPATCH:
                self.calls[record_id_of(payload)] = payload
            elif kind == USAGE:
                record_id = record_id_of(payload)
                if self.calls.pop(record_id, None) is None:
                    others.add(record_id)
        self.position = batch.position_after
        return others


def unsettled_calls(unsettled_dir: Path, organization_id: str) -> set[str]:
    """The ids of an organization's calls that have ended on this host and are to be settled later,
    some of which are settled by now. Raises :class:`Unavailable`."""
    reader, found = SpoolReader(unsettled_dir, observe=True), set()
    needle = organization_id.encode()
    try:
        for info in reader.writers():
            for batch in read_batches(reader, info.writer_id):
                for frame in batch.frames:
                    if frame.kind == UNSETTLED and needle in frame.payload:
                        found.add(record_id_of(frame.payload))
    except OSError as error:
        raise Unavailable("record store", "lost", f"the spool: {error.strerror}") from None
    return found


def _decoded(payloads: Iterable[bytes]) -> Iterator[Dispatch]:
    for payload in payloads:
        try:
            yield decode_dispatch(payload)
        except ValueError:
            continue  # written by another version


def _reserved(dispatch: Dispatch, lost: LostWindow) -> InFlight | None:
    """What the call has reserved in the window, or would have if it had been there."""
    assert dispatch.lease is not None
    reservation = reservation_of(dispatch.record_id, dispatch.organization_id, dispatch.lease)
    began_ms = reservation.reserved_at_ms or int(dispatch.timestamp * 1000)
    expires_at_ms = began_ms + int(dispatch.lease[2])
    for held in reservation.windows:
        if held.window.identity == lost.window.identity and held.period == lost.period:
            return InFlight(dispatch.record_id, held.amount, expires_at_ms)
    if not _counts(lost.window, dispatch) or not lost.period.holds(began_ms):
        return None
    reserved = dispatch.reserved
    amount = 0 if reserved is None else reserved[_POSITIONS[lost.window.unit]]
    return InFlight(dispatch.record_id, amount, expires_at_ms)


def _counts(window: WindowSpec, dispatch: Dispatch) -> bool:
    return window.scope == "org" or window.subject == dispatch.api_key_id
