"""The delivery loop of one sink: take records, deliver them, save how far. One for each sink."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from router.agent.dead_letters import DeadLetters
from router.agent.reading.decoded_frames import DecodedFrame
from router.agent.reading.merge import MergedFrames
from router.agent.sinks import Refused, Sink, SinkUnavailable
from router.clock import Clock
from router.records.record_types import format_timestamp
from router.spool.checkpoints import Checkpoints
from router.spool.frames import Position

MAX_RECORDS: Final = 2000
MAX_BATCH_BYTES: Final = 768 * 1024
POLL_S: Final = 0.2
"""Records gather for so long: a delivery costs the same syncs for one as for a thousand."""
SAVE_EVERY_S: Final = 0.5
SAVE_EVERY_BYTES: Final = 1024 * 1024
FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 2.0
REMIND_EVERY_S: Final = 60.0

_logger = logging.getLogger("router.agent")


@dataclass(slots=True)
class Progress:
    """What a sink has done since the agent began; read by other threads."""

    delivered: int = 0
    dead_lettered: int = 0
    last_delivery_s: float | None = None
    """Epoch."""
    failing: str | None = None
    """Why the last attempt failed; ``None`` when it did not."""
    failing_since_s: float | None = None
    """Epoch."""


def sink_report(progress: Progress, behind_bytes: int) -> dict[str, Any]:
    """The state of one sink as part of the agent's report."""
    return {
        "behind_bytes": behind_bytes,
        "delivered": progress.delivered,
        "dead_lettered": progress.dead_lettered,
        "last_delivery_at": _timestamp(progress.last_delivery_s),
        "failing": progress.failing,
        "failing_since": _timestamp(progress.failing_since_s),
    }


class Shipper:
    """Delivers everything to one sink, in order, for as long as it takes."""

    def __init__(
        self,
        sink: Sink,
        merged: MergedFrames,
        checkpoints: Checkpoints,
        dead_letters: DeadLetters,
        *,
        stop: threading.Event,
        clock: Clock | None = None,
        vary: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.sink = sink
        self.progress = Progress()
        self._merged = merged
        self._checkpoints = checkpoints
        self._dead_letters = dead_letters
        self._stop = stop
        self._clock = clock or Clock()
        self._vary = vary
        self._pending: list[DecodedFrame] | None = None
        # Of the pending batch, once the sink has it: the refused ones not yet dead-lettered.
        self._refused: list[Refused] | None = None
        self._failures = 0
        self._remind_at_s = 0.0
        self._saved_at_s = 0.0
        self._unsaved_bytes = 0
        self._saved = dict(merged.positions)
        self._saving_fails = False

    @property
    def saved(self) -> dict[str, Position]:
        """How far each writer was delivered, as the checkpoint on disk says."""
        return self._saved

    def run(self) -> None:
        """Deliver until ``stop`` is set; no failure ends it."""
        # Reserves room for the later ones, which a full disk would otherwise refuse.
        self.save(unmoved=True)
        while not self._stop.is_set():
            try:
                delay_s = 0.0 if _is_full(self.step()) else POLL_S
            except SinkUnavailable as error:
                delay_s = self.fail(str(error))
            except Exception as error:
                delay_s = self.fail(f"{type(error).__name__}: {error}", unexpected=True)
            if delay_s:
                self._stop.wait(delay_s)
        self.save()

    def step(self) -> list[DecodedFrame]:
        """Deliver one batch, all or nothing; the batch, empty when there was none.

        Raises :class:`SinkUnavailable`; the next step then tries the same batch again.
        """
        if self._pending is None:
            self._pending = self._merged.take(MAX_RECORDS, MAX_BATCH_BYTES)
        batch = self._pending
        if batch:
            self._deliver(batch)
        self._merged.acknowledge(batch)
        self._pending = None
        for writer_id in self._merged.ended():
            self.sink.finish_writer(writer_id)
            self._merged.finalize(writer_id)
        self.sink.maintain()
        self._note_recovery()
        self._save_if_due()
        return batch

    def fail(self, reason: str, *, unexpected: bool = False) -> float:
        """Note a failed attempt; the seconds to wait before the next one."""
        now_s = self._clock.monotonic_s()
        if self._failures == 0 or now_s >= self._remind_at_s:
            self._remind_at_s = now_s + REMIND_EVERY_S
            facts = {"sink": self.sink.name, "reason": reason}
            _logger.warning("sink unavailable", extra=facts, exc_info=unexpected)
        if self._failures == 0:
            self.progress.failing_since_s = self._clock.now_s()
        self.progress.failing = reason
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return delay_s * self._vary(0.8, 1.2)

    def save(self, *, unmoved: bool = False) -> None:
        """Write the checkpoint; when the disk refuses, the next attempt is early enough.

        An old checkpoint loses nothing: the records after it are delivered again. ``unmoved``: also
        when the positions are those that were saved last.
        """
        positions = dict(self._merged.positions)
        if positions == self._saved and not unmoved:
            return
        try:
            self._checkpoints.save(positions)
        except OSError as error:
            if not self._saving_fails:
                facts = {"sink": self.sink.name, "reason": str(error)}
                _logger.error("checkpoint not saved", extra=facts)
            self._saving_fails = True
            return
        self._saving_fails = False
        self._saved = positions
        self._unsaved_bytes = 0

    def _deliver(self, batch: list[DecodedFrame]) -> None:
        if self._refused is None:
            self._refused = list(self.sink.deliver(batch))
            self.progress.delivered += len(batch) - len(self._refused)
        # A file that cannot be written is tried again without sending the batch again.
        while self._refused:
            index, reason = self._refused[0]
            self._dead_letter(batch[index], reason)
            del self._refused[0]
            self.progress.dead_lettered += 1
        self._refused = None
        self.progress.last_delivery_s = self._clock.now_s()
        self._unsaved_bytes += sum(len(decoded.payload) for decoded in batch)

    def _dead_letter(self, decoded: DecodedFrame, reason: str) -> None:
        try:
            self._dead_letters.put(decoded, reason)
        except OSError as error:
            raise SinkUnavailable(f"dead letters cannot be written: {error}") from error
        facts = {"sink": self.sink.name, "record_id": decoded.id, "reason": reason}
        _logger.error("record dead-lettered", extra=facts)

    def _note_recovery(self) -> None:
        if self._failures:
            since_s = self.progress.failing_since_s or 0.0
            unavailable_s = round(self._clock.now_s() - since_s, 3)
            facts = {"sink": self.sink.name, "unavailable_s": unavailable_s}
            _logger.info("sink available", extra=facts)
        self._failures = 0
        self.progress.failing = None
        self.progress.failing_since_s = None

    def _save_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s >= self._saved_at_s + SAVE_EVERY_S or self._unsaved_bytes >= SAVE_EVERY_BYTES:
            self._saved_at_s = now_s
            self.save()


def _timestamp(epoch_s: float | None) -> str | None:
    return None if epoch_s is None else format_timestamp(epoch_s)


def _is_full(batch: list[DecodedFrame]) -> bool:
    """Tell whether more may be waiting than was taken."""
    return (
        len(batch) >= MAX_RECORDS
        or sum(len(decoded.payload) for decoded in batch) >= MAX_BATCH_BYTES
    )
