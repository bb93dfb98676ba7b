"""The frames of all writers as one stream, in the order in which the calls ended.

Each worker has a spool of its own, and the calls of one organization are spread over all of them.
Within a writer the order is that of the file; between writers the older record goes first. A record
that ended just now waits an instant, because one that ended before it may still be on its way into
the spool of another worker.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from router.agent.decoded_frames import DecodedFrame, decode_frame
from router.agent.read_ahead import ReadAhead, Reading
from router.clock import Clock
from router.spool.frames import Position
from router.spool.reader import Batch, WriterInfo

SETTLED_S: Final = 0.05
"""A worker appends a record within this time of the moment that the record gives as its end."""
HELD_S: Final = 0.5
"""Longer than this no record waits, whatever its clock says."""
LISTED_EVERY_S: Final = 0.5
"""So long a new writer may go unnoticed; asking costs more than all the rest of an idle round."""
READ_AHEAD_BYTES: Final = 1024 * 1024
"""Of all writers together; a frame that is larger than its writer's part is read all the same."""
_PART_BYTES: Final = (8 * 1024, 256 * 1024)

_logger = logging.getLogger("router.agent")


class Reader(Protocol):
    """What is asked of the spool."""

    def writers(self) -> list[WriterInfo]:
        """All writers that have left or leave segments."""

    def first_position(self, writer_id: str) -> Position:
        """Where a writer's oldest segment begins."""

    def read(self, position: Position, max_bytes: int) -> Batch:
        """Frames from a position on."""


class _Source:
    """What was read of one writer and not yet taken."""

    __slots__ = ("info", "queue", "read_at_s", "read_to")

    def __init__(self, info: WriterInfo, start: Position) -> None:
        self.info = info
        self.queue: deque[DecodedFrame] = deque()
        self.read_to = start
        self.read_at_s = 0.0

    @property
    def is_read(self) -> bool:
        """The writer is dead and nothing of it is left to read."""
        return not self.info.alive and self.read_to.segment > max(self.info.segments, default=0)


class MergedFrames:
    """Merges writers; remembers what was acknowledged. One thread uses it."""

    def __init__(
        self,
        reader: Reader,
        positions: Mapping[str, Position],
        *,
        clock: Clock | None = None,
        read_ahead: ReadAhead | None = None,
    ) -> None:
        """``positions``: how far each writer's records were delivered before.

        ``read_ahead`` is what all sinks of one reader share.
        """
        self._reader = reader
        self._read_ahead = read_ahead or ReadAhead()
        self._clock = clock or Clock()
        self._sources: dict[str, _Source] = {}
        self._list_at_s = self._clock.monotonic_s()
        self._unreadable: set[str] = set()
        self.positions: dict[str, Position] = dict(positions)
        """Everything before these was acknowledged."""

    def take(self, max_decoded: int, max_bytes: int) -> list[DecodedFrame]:
        """The next records, about ``max_bytes`` of them; none when all that may go has gone."""
        if self._clock.monotonic_s() >= self._list_at_s:
            self._list_writers()
            self._list_at_s = self._clock.monotonic_s() + LISTED_EVERY_S
        try:
            return self._merge(max_decoded, max_bytes)
        except BaseException:
            # What was taken is on nobody's way now: all that was not acknowledged is read again.
            self._sources.clear()
            self._list_at_s = self._clock.monotonic_s()
            raise

    def _merge(self, max_decoded: int, max_bytes: int) -> list[DecodedFrame]:
        settled_us = round((self._clock.now_s() - SETTLED_S) * 1_000_000)
        heads: list[tuple[int, str]] = []
        for writer_id, source in self._sources.items():
            self._push_head(heads, writer_id, source)
        taken: list[DecodedFrame] = []
        room = max_bytes
        while heads and len(taken) < max_decoded and room > 0:
            ended_us, writer_id = heapq.heappop(heads)
            source = self._sources[writer_id]
            if ended_us > settled_us and self._must_wait(source):
                continue
            taken.append(source.queue.popleft())
            room -= len(taken[-1].payload)
            self._push_head(heads, writer_id, source)
        return taken

    def acknowledge(self, decoded_frames: Sequence[DecodedFrame]) -> None:
        """All that was taken has arrived."""
        for decoded in decoded_frames:
            self.positions[decoded.writer_id] = decoded.position_after
        for writer_id, source in self._sources.items():
            # The end of a dead writer is passed by `finalize`, when the sink knows of it.
            if not source.queue and not source.is_read:
                self.positions[writer_id] = source.read_to

    def ended(self) -> list[str]:
        """Dead writers of which everything was acknowledged, and that were not retired yet."""
        return [
            writer_id
            for writer_id, source in self._sources.items()
            if source.is_read
            and not source.queue
            and self.positions.get(writer_id) != source.read_to
        ]

    def finalize(self, writer_id: str) -> None:
        """Pass the end of a dead writer, so that its last segment can be removed."""
        self.positions[writer_id] = self._sources[writer_id].read_to

    def _list_writers(self) -> None:
        found = {info.writer_id: info for info in self._reader.writers()}
        for writer_id in self._sources.keys() - found.keys():
            del self._sources[writer_id]
            self._read_ahead.forget(writer_id)
        for writer_id in self.positions.keys() - found.keys():
            del self.positions[writer_id]
        for writer_id, info in found.items():
            source = self._sources.get(writer_id)
            if source is None:
                self._begin(writer_id, info)
            elif info.trouble is None:
                source.info = info

    def _begin(self, writer_id: str, info: WriterInfo) -> None:
        try:
            start = self.positions.get(writer_id) or self._reader.first_position(writer_id)
        except OSError as error:
            if info.trouble is None:  # else the agent says it, for all sinks
                self._complain(writer_id, str(error))
        else:
            self._sources[writer_id] = _Source(info, start)

    def _push_head(self, heads: list[tuple[int, str]], writer_id: str, source: _Source) -> None:
        if not source.queue:
            self._refill(writer_id, source)
        if source.queue:
            heapq.heappush(heads, (source.queue[0].ended_us, writer_id))

    def _refill(self, writer_id: str, source: _Source) -> None:
        """Read on, over segment ends and damage, until there is a record or nothing is left."""
        smallest, largest = _PART_BYTES
        part_bytes = min(largest, max(smallest, READ_AHEAD_BYTES // len(self._sources)))
        while not source.queue and not source.is_read:
            reading = self._read_ahead.take(source.read_to)
            if reading is None:
                try:
                    reading = self._read(source.read_to, part_bytes)
                except OSError as error:
                    self._complain(writer_id, str(error))
                    return
            source.read_at_s = self._clock.monotonic_s()
            source.queue.extend(reading.decoded_frames)
            if reading.position_after == source.read_to:
                return
            source.read_to = reading.position_after

    def _read(self, position: Position, part_bytes: int) -> Reading:
        batch = self._reader.read(position, part_bytes)
        if batch.unreadable_format is not None:
            self._complain(position.writer_id, f"format {batch.unreadable_format} is too new")
        reading = Reading(list(map(decode_frame, batch.frames)), batch.position_after)
        self._read_ahead.put(position, reading)
        return reading

    def _must_wait(self, source: _Source) -> bool:
        return source.info.alive and self._clock.monotonic_s() < source.read_at_s + HELD_S

    def _complain(self, writer_id: str, reason: str) -> None:
        """Once for each writer: the others go on, and this one is tried again all the time."""
        if writer_id not in self._unreadable:
            self._unreadable.add(writer_id)
            _logger.error("spool unreadable", extra={"writer_id": writer_id, "reason": reason})
