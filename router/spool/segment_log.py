"""One writer's log as a state: which segment is appended to, what is unsynced, what must move on.

Two kinds of methods. The quick ones change the state, never wait for a sync, and are called under
the writer's lock. The slow ones wait for the disk, change no state that the quick ones use, and are
called by one thread at a time, without the lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from router.errors import RecordsUnavailable
from router.spool.disk import NO_ROOM
from router.spool.segments import Segment, SegmentFailed, SegmentFiles

_SYNC_FAILURES_BORNE: Final = 1
"""So many failed syncs in a row cost nothing but a new segment."""


def reason_of(error: OSError) -> str:
    """What clients are refused for when the disk answers like this."""
    return "disk_full" if error.errno in NO_ROOM else "disk_error"


@dataclass(frozen=True, slots=True)
class SyncRound:
    """What one sync makes durable: segments with the number of writes that it covers."""

    segments: list[tuple[Segment, int]]
    sealed: list[Segment]
    to_close: list[Segment]
    names: bool

    def is_empty(self) -> bool:
        """Tell whether there is nothing to do."""
        return not (self.segments or self.sealed or self.to_close)


class SpoolLog:
    """The segments of one writer. ``broken`` is the refusal while there is none to append to."""

    def __init__(self, files: SegmentFiles, *, segment_bytes: int, reserve_bytes: int) -> None:
        self._files = files
        self._segment_bytes = segment_bytes
        self._reserve = reserve_bytes
        self._active: Segment | None = None
        self._sealed: list[Segment] = []
        self._spare: Segment | None = None
        self._to_close: list[Segment] = []
        self._sync_failures = 0
        self.replayed: list[bytes] = []
        """Frames that were taken and whose sync failed; a new segment begins with them."""
        self.broken: str | None = "disk_error"
        self.write_errors = 0
        self.sync_errors = 0

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
                self._go_on_in_spare(failure.error, failure.rest)
            except RecordsUnavailable as refused:
                refused.nothing_written &= len(failure.rest) == len(data)
                raise

    def unsynced_bytes(self) -> int:
        """Bytes that a power failure would take."""
        segments = [*self._sealed, *([self._active] if self._active else [])]
        return sum(segment.unsynced_bytes for segment in segments) + sum(map(len, self.replayed))

    def rotate(self) -> None:
        """Go on in the spare when the active segment is full."""
        active, spare = self._active, self._spare
        if active is None or spare is None or active.size < self._segment_bytes:
            return
        self._spare = None
        try:
            self._files.publish(spare)
        except OSError:
            # Whether readers see the new name is unknown; if they do, the old one is closed.
            self._to_close.append(spare)
            self._break("disk_error")
            return
        self._sealed.append(active)
        self._active = spare

    def begin_sync(self) -> SyncRound:
        """What there is to sync now."""
        segments = [*self._sealed, *([self._active] if self._active else [])]
        to_close, self._to_close = self._to_close, []
        return SyncRound(
            [(segment, len(segment.unsynced)) for segment in segments if segment.dirty],
            list(self._sealed),
            to_close,
            any(not segment.named for segment in segments),
        )

    def end_sync(self, covered: SyncRound, error: OSError | None) -> bool:
        """Take a sync's result; True when what it covered is durable.

        After a failed sync the file system may have thrown the data away and call the next one a
        success. So no segment of the round is trusted again: the frames that it was to cover are
        written once more, to another segment.
        """
        if error is not None:
            self._move_on(error)
            return False
        self._sync_failures = 0
        for segment, writes in covered.segments:
            del segment.unsynced[:writes]
            segment.named = True
        self._sealed = [segment for segment in self._sealed if segment not in covered.sealed]
        self._to_close += covered.sealed
        return True

    def begin_recovery(self) -> list[bytes]:
        """The writes that a new segment has to begin with."""
        self._discard_spare()  # the new segment takes its number and its draft
        return list(self.replayed)

    def begin_again(self, segment: Segment, replayed: int) -> None:
        """Append to a recovered segment that begins with so many of the rescued writes."""
        del self.replayed[:replayed]
        self._active = segment
        self.broken = None

    def wants_room(self) -> bool:
        """Tell whether there is something to do for :meth:`make_room`."""
        return self._spare is None or self._active is None or self._active.wants(self._reserve)

    def give_spare(self, spare: Segment | None) -> None:
        """Keep a draft for when the active segment is full or fails."""
        if spare is not None:
            self._spare = spare
            if self.broken is not None:
                self._discard_spare()

    def lose_files(self) -> None:
        """Somebody removed the directory: save what is in memory, leave the rest."""
        self._replay()
        self._discard_spare()
        self._files.move()
        self.broken = "disk_error"

    def _go_on_in_spare(self, error: OSError, data: bytes) -> None:
        self._break(reason_of(error))
        spare, self._spare = self._spare, None
        if spare is None:
            raise RecordsUnavailable(self.broken or "disk_error", nothing_written=True)
        try:
            self._files.publish(spare)
        except OSError as failed:
            self._to_close.append(spare)
            self.broken = reason_of(failed)
            raise RecordsUnavailable(self.broken, nothing_written=True) from None
        try:
            spare.write(data)
        except SegmentFailed as failure:
            self._sealed.append(spare)
            self.broken = reason_of(failure.error)
            untouched = len(failure.rest) == len(data)
            raise RecordsUnavailable(self.broken, nothing_written=untouched) from None
        self._active, self.broken = spare, None

    def _move_on(self, error: OSError) -> None:
        self.sync_errors += 1
        self._sync_failures += 1
        self._replay()
        self.broken = reason_of(error)
        if self._sync_failures > _SYNC_FAILURES_BORNE:
            return
        try:
            self._go_on_in_spare(error, b"".join(self.replayed))
        except RecordsUnavailable:
            return
        self.replayed.clear()

    def _replay(self) -> None:
        """Leave all segments; their unsynced frames stay in order, also across segments."""
        self._break("disk_error")
        for segment in self._sealed:
            self.replayed += segment.unsynced
        self._to_close += self._sealed
        self._sealed = []

    def _break(self, reason: str) -> None:
        self.broken = reason
        if self._active is not None:
            self._sealed.append(self._active)
            self._active = None

    def _discard_spare(self) -> None:
        if self._spare is not None:
            self._to_close.append(self._spare)
            self._spare = None

    # --- slow -------------------------------------------------------------------------------

    def sync(self, covered: SyncRound) -> None:
        """Make a round durable; raises ``OSError``."""
        for segment in covered.to_close:
            segment.close()
        for segment in covered.sealed:
            segment.shed()
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
        """Set room aside behind the active segment, and draft a spare if there is none.

        The error is that of the room, without which calls in flight could not be recorded. A
        missing spare is no more than a missing second chance.
        """
        error = spare = None
        try:
            if self._active is not None:
                self._active.extend(self._reserve)
        except OSError as failed:
            error = failed
        try:
            if self._spare is None:
                spare = self._files.draft()
        except OSError:
            pass
        return spare, error

    def is_gone(self) -> bool:
        """Tell whether somebody removed what is being written."""
        return self._active is not None and self._files.is_gone(self._active)

    def close(self) -> None:
        """Close all files and let a reader finish them. What is unsynced stays so."""
        self._break("closed")
        if self._spare is not None:
            self._files.discard(self._spare)
            self._spare = None
        for segment in self._sealed:
            segment.shed()
        for segment in (*self._sealed, *self._to_close):
            segment.close()
        self._files.close()
