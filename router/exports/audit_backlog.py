"""Up to when the record store has every audit event of this host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from router.records.record_types import parse_timestamp_us
from router.spool.frames import AUDIT, Frame, Position
from router.spool.reader import SpoolReader, read_batches

SETTLED_S: Final = 1.0
"""Much longer than it takes from the time that an event names until it is in the spool."""


def complete_to(spool: SpoolReader, stored: Mapping[str, Position], now_s: float) -> float | None:
    """The time before which no event was missing in the store; ``None`` when that is unknown.

    ``stored`` are the positions that the store has acknowledged, loaded before the call; ``now_s``
    is a time before that. What workers keep in memory while their disk refuses writes is not seen.
    Raises ``OSError``.
    """
    earliest_s = now_s - SETTLED_S
    for info in spool.writers():
        for batch in read_batches(spool, info.writer_id, stored.get(info.writer_id)):
            if batch.unreadable_format is not None:
                return None
            event_s = _first_event_s(batch.frames)
            if event_s is not None:
                earliest_s = min(earliest_s, event_s)
                break
    return earliest_s


def _first_event_s(frames: list[Frame]) -> float | None:
    for frame in frames:
        if frame.kind == AUDIT:
            try:
                return parse_timestamp_us(orjson.loads(frame.payload)["timestamp"]) / 1_000_000
            except (ValueError, KeyError, TypeError):
                continue  # the store will refuse it as well
    return None
