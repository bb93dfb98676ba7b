"""The read-ahead cache: what one sink has read and decoded, for the sink that comes second."""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

from router.agent.reading.decoded_frames import DecodedFrame
from router.spool.frames import Position

CACHE_BYTES: Final = 2 * 1024 * 1024
"""Of payload; decoded it takes a few times that. A sink that is further behind reads itself."""


class Reading(NamedTuple):
    """Consecutive records of one writer."""

    decoded_frames: list[DecodedFrame]
    position_after: Position


class ReadAhead:
    """Passes what one sink read to the next. May be used by several threads.

    Sinks that keep up read the same records from the same positions; this halves their work.
    """

    def __init__(self, sinks: int = 1) -> None:
        """For a single sink nothing is kept."""
        self._is_shared = sinks > 1
        self._readings: dict[Position, tuple[Reading, int]] = {}
        self._bytes = 0
        self._furthest: dict[str, Position] = {}
        self._lock = threading.Lock()

    def take(self, position: Position) -> Reading | None:
        """Remove and return what another sink has read at ``position``, if it is cached."""
        with self._lock:
            return self._remove(position)

    def put(self, position: Position, reading: Reading) -> None:
        """Cache what was read at ``position``, unless the other sink is ahead of it."""
        if not self._is_shared or not reading.decoded_frames:
            return
        size = sum(len(decoded.payload) for decoded in reading.decoded_frames)
        with self._lock:
            writer_id = position.writer_id
            if reading.position_after <= self._furthest.get(writer_id, position):
                return
            self._furthest[writer_id] = reading.position_after
            self._remove(position)
            self._readings[position] = (reading, size)
            self._bytes += size
            while self._bytes > CACHE_BYTES:
                self._remove(next(iter(self._readings)))

    def forget(self, writer_id: str) -> None:
        """Everything of this writer was delivered."""
        with self._lock:
            self._furthest.pop(writer_id, None)
            for position in [one for one in self._readings if one.writer_id == writer_id]:
                self._remove(position)

    def _remove(self, position: Position) -> Reading | None:
        reading, size = self._readings.pop(position, (None, 0))
        self._bytes -= size
        return reading
