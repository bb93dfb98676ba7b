"""The log of one writer: its active segment, what is unsynced, and how it survives a failing disk.

The *quick* methods change the log's state, never wait for a sync, and are called under the writer's
lock. The *slow* methods wait for the disk, change no state that the quick ones use, and are called
by one thread at a time, without the lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from router.errors import RecordsUnavailable
from router.spool.disk import NO_ROOM
from router.spool.segments import Segment, SegmentFailed, SegmentFiles

_TOLERATED_SYNC_FAILURES: Final = 1
"""So many failed syncs in a row cost only a new segment; after more, calls are refused."""
CLOSED_AFTER_S: Final = 60.0


def reason_of(error: OSError) -> str:
    """The reason of refusal for an error of the disk."""
    return "disk_full" if error.errno in NO_ROOM else "disk_error"


@dataclass(frozen=True, slots=True)
class SyncRound:
    """The work of one sync: segments with the number of writes that it makes durable."""

    segments: list[tuple[Segment, int]]
    sealed: list[Segment]
    to_close: list[Segment]
    names: bool

    def is_empty(self) -> bool:
        """Tell whether there is nothing to do."""
        return not (self.segments or self.sealed or self.to_close)


class SegmentLog:
    """The segments of one writer. ``broken`` is the reason why none can be appended to."""

    def __init__(self, files: SegmentFiles, *, segment_bytes: int, reserve_bytes: int) -> None:
        self._files = files
        self._segment_bytes = segment_bytes
        self._reserve = reserve_bytes
        # Less stands in nobody's way, and an idle worker makes no files.
        self._early_bytes = min(segment_bytes // 8, reserve_bytes)
        self._active: Segment | None = None
        self._timed: tuple[Segment | None, float] = (None, 0.0)
        self._sealed: list[Segment] = []
        self._preallocated: Segment | None = None
        self._to_close: list[Segment] = []
        self._sync_failures = 0
        self.replay_buffer: list[bytes] = []
        """Accepted frames whose sync failed; the next segment begins with them."""
        self.broken: str | None = "disk_error"
        self.write_errors = 0
        self.sync_errors = 0

    @property
    def active(self) -> Segment | None:
        """The segment that is appended to."""
        return self._active

    # --- quick ------------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        """Append whole frames with one write; raises :class:`RecordsUnavailable`."""
        if self._active is None:
            raise RecordsUnavailable(self.broken or "closed", nothing_written=True)
        try:
            self._active.write(data)
        except SegmentFailed as failure:
            self.write_errors += 1
            try:
                self._switch_to_preallocated(failure.error, failure.rest)
            except RecordsUnavailable as refused:
                refused.nothing_written &= len(failure.rest) == len(data)
                raise

    def unsynced_bytes(self) -> int:
        """Bytes that a power failure would lose."""
        segments = [*self._sealed, *([self._active] if self._active else [])]
        return sum(segment.unsynced_bytes for segment in segments) + sum(
            map(len, self.replay_buffer)
        )

    def rotate(self, now_s: float = 0.0, *, room_is_needed: bool = False) -> None:
        """Go on in the preallocated segment when the active one is full, has been active for a
        minute, or has to become removable because there is no room."""
        active, preallocated = self._active, self._preallocated
        if active is None or preallocated is None:
            return
        if self._timed[0] is not active:
            self._timed = (active, now_s)
        is_early = room_is_needed or now_s - self._timed[1] >= CLOSED_AFTER_S
        if active.own_bytes < (self._early_bytes if is_early else self._segment_bytes):
            return
        self._preallocated = None
        try:
            self._files.publish(preallocated)
        except OSError:
            # Readers may see the new name, and then take the old segment for closed.
            self._to_close.append(preallocated)
            self._break("disk_error")
            return
        self._sealed.append(active)
        self._active = preallocated

    def begin_sync(self) -> SyncRound:
        """Everything that is unsynced now."""
        segments = [*self._sealed, *([self._active] if self._active else [])]
        to_close, self._to_close = self._to_close, []
        return SyncRound(
            [(segment, len(segment.unsynced)) for segment in segments if segment.dirty],
            list(self._sealed),
            to_close,
            any(not segment.named for segment in segments),
        )

    def end_sync(self, covered: SyncRound, error: OSError | None) -> bool:
        """Take a sync's result; True when the round is durable.

        After a failed sync the file system may have discarded the data, and the next sync may
        succeed without it. So no segment of the round is used again: its frames are written once
        more, to another segment.
        """
        if error is not None:
            self._replace_segments(error)
            return False
        self._sync_failures = 0
        for segment, writes in covered.segments:
            del segment.unsynced[:writes]
            segment.named = True
        self._sealed = [segment for segment in self._sealed if segment not in covered.sealed]
        self._to_close += covered.sealed
        return True

    def begin_recovery(self) -> list[bytes]:
        """The writes that the recovered segment must begin with."""
        self._discard_preallocated()  # the recovered segment uses its number and its draft
        return list(self.replay_buffer)

    def begin_again(self, segment: Segment, replayed: int) -> None:
        """Append to a recovered segment, which begins with ``replayed`` writes of the buffer."""
        del self.replay_buffer[:replayed]
        self._active = segment
        self.broken = None

    def carry(self, data: bytes) -> None:
        """Begin a new segment with frames of earlier ones; raises :class:`RecordsUnavailable`."""
        self.put(data)
        if self._active is not None:
            self._active.carried_bytes += len(data)

    def needs_room(self) -> bool:
        """Tell whether :meth:`make_room` has something to do."""
        return (
            self._preallocated is None
            or self._active is None
            or self._active.needs_room(self._reserve)
        )

    def set_preallocated(self, preallocated: Segment | None) -> None:
        """Keep a draft for the time when the active segment is full or fails."""
        if preallocated is not None:
            self._preallocated = preallocated
            if self.broken is not None:
                self._discard_preallocated()

    def abandon_files(self) -> None:
        """Somebody removed the directory: keep the unsynced frames, and begin in another one."""
        self._replay()
        self._discard_preallocated()
        self._files.move()
        self.broken = "disk_error"

    def _switch_to_preallocated(self, error: OSError, data: bytes) -> None:
        self._break(reason_of(error))
        preallocated, self._preallocated = self._preallocated, None
        if preallocated is None:
            raise RecordsUnavailable(self.broken or "disk_error", nothing_written=True)
        try:
            self._files.publish(preallocated)
        except OSError as failed:
            self._to_close.append(preallocated)
            self.broken = reason_of(failed)
            raise RecordsUnavailable(self.broken, nothing_written=True) from None
        try:
            preallocated.write(data)
        except SegmentFailed as failure:
            self._sealed.append(preallocated)
            self.broken = reason_of(failure.error)
            untouched = len(failure.rest) == len(data)
            raise RecordsUnavailable(self.broken, nothing_written=untouched) from None
        self._active, self.broken = preallocated, None

    def _replace_segments(self, error: OSError) -> None:
        self.sync_errors += 1
        self._sync_failures += 1
        self._replay()
        self.broken = reason_of(error)
        if self._sync_failures > _TOLERATED_SYNC_FAILURES:
            return
        try:
            self._switch_to_preallocated(error, b"".join(self.replay_buffer))
        except RecordsUnavailable:
            return
        self.replay_buffer.clear()

    def _replay(self) -> None:
        """Abandon all segments; their unsynced frames stay, in order across segments."""
        self._break("disk_error")
        for segment in self._sealed:
            self.replay_buffer += segment.unsynced
        self._to_close += self._sealed
        self._sealed = []

    def _break(self, reason: str) -> None:
        self.broken = reason
        if self._active is not None:
            self._sealed.append(self._active)
            self._active = None

    def _discard_preallocated(self) -> None:
        if self._preallocated is not None:
            self._to_close.append(self._preallocated)
            self._preallocated = None

    # --- slow -------------------------------------------------------------------------------

    def sync(self, covered: SyncRound) -> None:
        """Make a round durable; raises ``OSError``."""
        for segment in covered.to_close:
            segment.close()
        for segment in covered.sealed:
            segment.release_room()
        for segment, _ in covered.segments:
            segment.sync()
        if covered.names:
            self._files.sync_names()

    def recover(self, data: bytes) -> Segment:
        """A new segment that begins with ``data``, all durable; raises ``OSError``."""
        self._files.open()
        segment = self._files.draft(data)
        try:
            self._files.publish(segment)
            self._files.sync_names()
        except OSError:
            segment.close()
            raise
        segment.named = True
        return segment

    def make_room(self) -> tuple[Segment | None, OSError | None]:
        """Reserve room behind the active segment, and preallocate the next one.

        The error is that of the reservation, without which running calls could not be recorded.
        Without a preallocated segment only a second chance is missing. It is made first: without
        one, what has filled the disk could never be closed and removed.
        """
        active, error, preallocated = self._active, None, None
        try:
            if self._preallocated is None:
                preallocated = self._files.draft()
        except OSError:
            pass
        try:
            if active is not None:
                active.reserve_room(self._reserve)
        except OSError as failed:
            error = failed
        return preallocated, error

    def is_gone(self) -> bool:
        """Tell whether somebody removed the active segment or its lock."""
        return self._active is not None and self._files.is_gone(self._active)

    def close(self) -> None:
        """Close all files and let a reader take them over, without a sync."""
        self._break("closed")
        if self._preallocated is not None:
            self._files.discard(self._preallocated)
            self._preallocated = None
        for segment in self._sealed:
            segment.release_room()
        for segment in (*self._sealed, *self._to_close):
            segment.close()
        self._files.close()
