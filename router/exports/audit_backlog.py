"""Up to when the record store has every audit event of this host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import orjson

from router.records.record_types import parse_timestamp_us
from router.spool.frames import AUDIT, Frame, Position
from router.spool.reader import Batch, WriterInfo

SETTLED_S: Final = 1.0
"""Much longer than it takes from the moment that an event names until it is in the spool."""
_READ_BYTES: Final = 256 * 1024


class Spool(Protocol):
    """What is asked of the spool."""

    def writers(self) -> list[WriterInfo]:
        """All writers that have left segments."""

    def first_position(self, writer_id: str) -> Position:
        """Where a writer's oldest segment begins."""

    def read(self, position: Position, max_bytes: int) -> Batch:
        """Frames from a position on."""


def complete_to(spool: Spool, stored: Mapping[str, Position], now_s: float) -> float | None:
    """The moment before which no event was missing in the store; ``None`` when nobody can tell.

    ``stored`` are the positions that the store has acknowledged, loaded before the call; ``now_s``
    is a moment before that. What workers hold in memory while their disk refuses writes is not
    seen. Raises ``OSError``.
    """
    earliest_s = now_s - SETTLED_S
    for info in spool.writers():
        position = stored.get(info.writer_id) or spool.first_position(info.writer_id)
        while True:
            batch = spool.read(position, _READ_BYTES)
            if batch.unreadable_format is not None:
                return None
            moment_s = _first_event_s(batch.frames)
            if moment_s is not None:
                earliest_s = min(earliest_s, moment_s)
                break
            if batch.position_after == position:
                break
            position = batch.position_after
    return earliest_s


def _first_event_s(frames: list[Frame]) -> float | None:
    for frame in frames:
        if frame.kind == AUDIT:
            try:
                return parse_timestamp_us(orjson.loads(frame.payload)["timestamp"]) / 1_000_000
            except (ValueError, KeyError, TypeError):
                continue  # the store will refuse it as well
    return None
