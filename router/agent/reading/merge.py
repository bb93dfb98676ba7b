"""The k-way merge of all writers: their records as one stream, in the order of the calls' ends.

Each worker has a spool of its own, and the calls of one organization are spread over all of them.
Within a writer the order is that of the file; between writers the older record goes first. A record
of a call that ended just now waits an instant, because another worker may not have appended yet the
record of a call that ended before.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from router.agent.reading.decoded_frames import DecodedFrame, decode_frame
from router.agent.reading.read_ahead import ReadAhead, Reading
from router.clock import Clock
from router.spool.frames import AGENT_ONLY, Position
from router.spool.reader import SpoolReader, WriterInfo

SETTLED_S: Final = 0.05
"""A worker appends a record within this time of the moment that the record gives as its end."""
LONGEST_WAIT_S: Final = 0.5
"""No record waits longer than this, whatever its timestamp says."""
LISTED_EVERY_S: Final = 0.5
"""A new writer is found within this time; listing costs more than the rest of an idle round."""
READ_AHEAD_BYTES: Final = 1024 * 1024
"""Of all writers together; a frame that is larger than its writer's share is read all the same."""
_SHARE_BYTES: Final = (8 * 1024, 256 * 1024)

_logger = logging.getLogger("router.agent")


class _Source:
    """One writer: what was read of it and not yet taken."""

    __slots__ = ("info", "queue", "read_at_s", "read_to")

    def __init__(self, info: WriterInfo, start: Position) -> None:
        self.info = info
        self.queue: deque[DecodedFrame] = deque()
        self.read_to = start
        self.read_at_s = 0.0

    @property
    def is_exhausted(self) -> bool:
        """The writer is dead and nothing of it is left to read."""
        return not self.info.alive and self.read_to.segment > max(self.info.segments, default=0)


class MergedFrames:
    """Merges writers and remembers what was acknowledged. For one thread."""

    def __init__(
        self,
        reader: SpoolReader,
        positions: Mapping[str, Position],
        *,
        clock: Clock | None = None,
        read_ahead: ReadAhead | None = None,
    ) -> None:
        """``positions``: how far each writer's records were delivered before.

        All sinks of one reader share a ``read_ahead``.
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
        """The next records, about ``max_bytes`` of them; empty when no record is due."""
        if self._clock.monotonic_s() >= self._list_at_s:
            self._list_writers()
            self._list_at_s = self._clock.monotonic_s() + LISTED_EVERY_S
        try:
            return self._merge(max_decoded, max_bytes)
        except BaseException:
            # What this call took is lost: everything that was not acknowledged is read again.
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
        """Everything that was taken has been delivered."""
        for decoded in decoded_frames:
            self.positions[decoded.writer_id] = decoded.position_after
        for writer_id, source in self._sources.items():
            # The end of a dead writer is passed by `finalize`, when the sink knows of it.
            if not source.queue and not source.is_exhausted:
                self.positions[writer_id] = source.read_to

    def ended(self) -> list[str]:
        """Dead writers of which everything was acknowledged, and that are not finalized yet."""
        return [
            writer_id
            for writer_id, source in self._sources.items()
            if source.is_exhausted
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
            if info.trouble is None:  # else the agent logs it, once for all sinks
                self._log_unreadable(writer_id, str(error))
        else:
            self._sources[writer_id] = _Source(info, start)

    def _push_head(self, heads: list[tuple[int, str]], writer_id: str, source: _Source) -> None:
        if not source.queue:
            self._refill(writer_id, source)
        if source.queue:
            heapq.heappush(heads, (source.queue[0].ended_us, writer_id))

    def _refill(self, writer_id: str, source: _Source) -> None:
        """Read on, across segment ends and damage, until there is a record or nothing is left."""
        smallest, largest = _SHARE_BYTES
        share_bytes = min(largest, max(smallest, READ_AHEAD_BYTES // len(self._sources)))
        while not source.queue and not source.is_exhausted:
            reading = self._read_ahead.take(source.read_to)
            if reading is None:
                try:
                    reading = self._read(source.read_to, share_bytes)
                except OSError as error:
                    self._log_unreadable(writer_id, str(error))
                    return
            source.read_at_s = self._clock.monotonic_s()
            source.queue.extend(reading.decoded_frames)
            if reading.position_after == source.read_to:
                return
            source.read_to = reading.position_after

    def _read(self, position: Position, share_bytes: int) -> Reading:
        batch = self._reader.read(position, share_bytes)
        if batch.unreadable_format is not None:
            self._log_unreadable(position.writer_id, f"format {batch.unreadable_format} is too new")
        shipped = [frame for frame in batch.frames if frame.kind not in AGENT_ONLY]
        reading = Reading(list(map(decode_frame, shipped)), batch.position_after)
        self._read_ahead.put(position, reading)
        return reading

    def _must_wait(self, source: _Source) -> bool:
        return source.info.alive and self._clock.monotonic_s() < source.read_at_s + LONGEST_WAIT_S

    def _log_unreadable(self, writer_id: str, reason: str) -> None:
        """Log once for each writer: the others go on, and this one is tried again all the time."""
        if writer_id not in self._unreadable:
            self._unreadable.add(writer_id)
            _logger.error("spool unreadable", extra={"writer_id": writer_id, "reason": reason})
