"""What one sink has read and the other is about to need: read, checked and decoded once."""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

from router.agent.decoded_frames import DecodedFrame
from router.spool.frames import Position

SHELF_BYTES: Final = 2 * 1024 * 1024
"""Of payload; decoded it takes a few times that. A sink that is further behind reads for itself."""


class Reading(NamedTuple):
    """A stretch of one writer's records."""

    decoded_frames: list[DecodedFrame]
    position_after: Position


class ReadAhead:
    """Hands what a sink read to the sink that comes second. May be used by several threads.

    Sinks that keep up read the same stretches from the same positions on; this halves their work.
    """

    def __init__(self, sinks: int = 1) -> None:
        """For a single sink nothing is kept."""
        self._kept_by = sinks - 1
        self._readings: dict[Position, tuple[Reading, int]] = {}
        self._bytes = 0
        self._furthest: dict[str, Position] = {}
        self._lock = threading.Lock()

    def take(self, position: Position) -> Reading | None:
        """What stands behind a position, if another sink has read it."""
        with self._lock:
            return self._remove(position)

    def put(self, position: Position, reading: Reading) -> None:
        """Keep what was read behind a position, unless the other sink is ahead of it."""
        if not self._kept_by or not reading.decoded_frames:
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
            while self._bytes > SHELF_BYTES:
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
