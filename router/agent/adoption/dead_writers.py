"""Dead writers are adopted: what their workers left open gets a record, its lease is handed on.

A worker notes on disk that it sends a call, before it does. A call whose worker is dead and that
has no record was interrupted: its record and its audit event are written here, in the agent's own
chain. Leases that nobody is known to have settled go to the log of unsettled leases. Only then may
the dead writer's files be removed. Doing it twice does no harm: the record has the id of the call,
and what an agent that died meanwhile has written is found in its own spool.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import orjson

from router.agent.adoption.unsent_reservations import UnsentReservations
from router.clock import Clock
from router.errors import RecordsUnavailable
from router.records.dispatches import (
    Dispatch,
    decode_dispatch,
    interrupted_event,
    interrupted_record,
)
from router.records.open_calls import Unsettled, decode_unsettled
from router.records.record_types import encode_usage
from router.records.recorder import Recorder
from router.spool.checkpoints import Checkpoints
from router.spool.frames import DISPATCH, SETTLED, UNSETTLED, USAGE, Frame, Position
from router.spool.reader import SpoolReader, WriterInfo, read_batches
from router.store.tables.rows import SERVED

NAME: Final = "adopted"
_LAST_SEGMENTS: Final = 2
"""Each segment begins with the calls that ran then. The one before it is read because a disk that
fails at that moment may refuse those frames."""

_logger = logging.getLogger("router.agent")


class LeftOpen:
    """What the last segments of a dead writer tell of calls."""

    def __init__(self) -> None:
        self.dispatches: dict[str, Dispatch] = {}
        self.recorded: dict[str, Mapping[str, Any]] = {}
        self.unsettled: dict[str, Unsettled] = {}

    def add(self, frames: Iterable[Frame]) -> None:
        """Take in frames, in order."""
        for frame in frames:
            try:
                self._add(frame)
            except (ValueError, KeyError, TypeError) as error:
                # A record that makes no sense is dead-lettered by the sinks.
                _logger.error("frame not understood", extra={"why": str(error)})

    def interrupted(self, recorded: Collection[str]) -> list[Dispatch]:
        """Calls that were sent and have no record; ``recorded`` have one elsewhere."""
        return [
            dispatch
            for record_id, dispatch in self.dispatches.items()
            if record_id not in recorded and record_id not in self.unsettled
        ]

    def sent(self) -> set[str]:
        """The records of calls that were sent to a backend."""
        return {*self.dispatches, *self.recorded, *self.unsettled}

    def leases(self) -> list[Unsettled]:
        """Leases that may be open, with what they are to be settled with."""
        found = dict(self.unsettled)
        for record_id, dispatch in self.dispatches.items():
            if dispatch.lease is not None and record_id not in found:
                found[record_id] = _unsettled(dispatch, self.recorded.get(record_id))
        return list(found.values())

    def _add(self, frame: Frame) -> None:
        if frame.kind == DISPATCH:
            dispatch = decode_dispatch(frame.payload)
            self.dispatches[dispatch.record_id] = dispatch
        elif frame.kind == USAGE:
            record = orjson.loads(frame.payload)
            self.recorded[record["record_id"]] = record
        elif frame.kind == UNSETTLED:
            unsettled = decode_unsettled(frame.payload)
            self.unsettled[unsettled.record_id] = unsettled
        elif frame.kind == SETTLED:
            for record_id in self.dispatches.keys() & self.recorded.keys():
                del self.dispatches[record_id]
            self.unsettled.clear()


class Adoption:
    """Adopts the writers of one spool. For one thread."""

    def __init__(
        self,
        reader: SpoolReader,
        checkpoints: Checkpoints,
        open_recorder: Callable[[], Recorder],
        hand_over: Callable[[list[Unsettled]], None],
        new_id: Callable[[], str],
        unsent: UnsentReservations,
        *,
        clock: Clock | None = None,
    ) -> None:
        """``hand_over`` returns when the leases are safe on disk."""
        self._reader = reader
        self._checkpoints = checkpoints
        self._open_recorder = open_recorder
        self._hand_over = hand_over
        self._new_id = new_id
        self._unsent = unsent
        self._clock = clock or Clock()
        self._adopted = checkpoints.load()
        self._written: set[str] = set()
        self._was_refused = False
        self.interrupted = 0
        """Calls that were found interrupted since the agent began."""

    def is_adopted(self, writer_id: str) -> bool:
        """Whether nothing of a dead writer is needed here any more."""
        return writer_id in self._adopted

    def step(self) -> int:
        """Adopt every writer that has died; how many. Raises ``OSError`` or ``RecordsUnavailable``:
        then the same writers are adopted by a later step."""
        ended = self._unsent.ended()
        infos = self._reader.writers()
        known = {info.writer_id for info in infos}
        dead = [info for info in infos if self._is_due(info)]
        if not dead and not ended:
            return 0
        found = [self._left_open(info) for info in dead]
        # By an agent, too, that wrote such records and died before it could say so.
        recorded = {record_id for one in found for record_id in one.recorded}
        interrupted = [dispatch for one in found for dispatch in one.interrupted(recorded)]
        leases = [lease for one in found for lease in one.leases()]
        for writer_id in ended:
            leases += self._unsent.leases(writer_id, self._sent(writer_id, infos))
        for dispatch in interrupted:
            self._record(dispatch)
        self._confirm()
        if leases:
            self._hand_over(leases)
        for writer_id in ended:
            self._unsent.forget(writer_id)
        self._adopted = {name: at for name, at in self._adopted.items() if name in known}
        for info in dead:
            after = Position(info.writer_id, max(info.segments, default=0) + 1, 0)
            self._adopted[info.writer_id] = after
        self._checkpoints.save(self._adopted)
        self._written.clear()
        if interrupted:
            facts = {"calls": len(interrupted), "writers": [info.writer_id for info in dead]}
            _logger.warning("calls were interrupted; their workers were killed", extra=facts)
        return len(dead)

    def _sent(self, writer_id: str, infos: Iterable[WriterInfo]) -> set[str]:
        """The calls that a dead writer has sent, as far as its files are there."""
        for info in infos:
            if info.writer_id == writer_id and info.segments:
                return self._left_open(info).sent()
        return set()

    def _is_due(self, info: WriterInfo) -> bool:
        return (
            not info.alive
            and info.trouble is None
            and bool(info.segments)
            and info.writer_id not in self._adopted
        )

    def _left_open(self, info: WriterInfo) -> LeftOpen:
        start = Position(info.writer_id, info.segments[-_LAST_SEGMENTS:][0], 0)
        left = LeftOpen()
        for batch in read_batches(self._reader, info.writer_id, start):
            left.add(batch.frames)
        return left

    def _record(self, dispatch: Dispatch) -> None:
        if dispatch.record_id in self._written:
            return
        try:
            line = encode_usage(interrupted_record(dispatch))
        except (TypeError, ValueError):  # it must not keep the others from having theirs
            _logger.exception("a record could not be built", extra={"id": dispatch.record_id})
            return
        event = interrupted_event(dispatch, self._new_id(), self._clock.now_s())
        unwritten = self._open_recorder().record(line, event)
        # Where it may be on the disk, it must not be recorded as another event by a later step.
        dropped = unwritten is not None and unwritten.may_change and unwritten.drop()
        if not dropped:
            self._written.add(dispatch.record_id)
            self.interrupted += 1
        if unwritten is not None:
            if not dropped:
                unwritten.buffer()
                self._was_refused = True
            raise RecordsUnavailable(unwritten.error.reason)

    def _confirm(self) -> None:
        """Raise ``RecordsUnavailable`` while a record that was refused is only in memory, or a
        power failure could take it."""
        if self._was_refused:
            status = self._open_recorder().spool.status()
            if status.buffered_bytes or status.unsynced_bytes:
                raise RecordsUnavailable(status.refusal or "disk_slow")
            self._was_refused = False


def _unsettled(dispatch: Dispatch, record: Mapping[str, Any] | None) -> Unsettled:
    """What a call is charged: by its record, or as work that was abandoned."""
    assert dispatch.lease is not None
    cost, tokens = dispatch.cost_nanos, dispatch.tokens_input + dispatch.tokens_output
    served = True
    if record is not None:
        cost = record.get("cost_nanos")
        tokens = (record.get("tokens_input") or 0) + (record.get("tokens_output") or 0)
        outcome = record.get("outcome")
        served = outcome is None or outcome in SERVED
    return Unsettled(
        dispatch.record_id,
        dispatch.organization_id,
        dispatch.lease,
        cost or 0,
        tokens,
        int(served),
    )
