"""Reading a spool: every whole frame of every writer, in order, whatever happened to the files."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from router.clock import Clock
from router.spool.claims import STARTING_PREFIX, Claims
from router.spool.disk import READ, SpoolIO
from router.spool.frames import (
    FORMAT,
    Frame,
    Position,
    Scan,
    header_format,
    is_writer_id,
    scan,
    segment_name,
    segment_numbers,
)
from router.spool.quarantine import Quarantine, Quarantined

if TYPE_CHECKING:
    from collections.abc import Iterator


FALSE_START_S: Final = 10.0


class WriterInfo(NamedTuple):
    """A writer that left or leaves segments here."""

    writer_id: str
    alive: bool
    segments: tuple[int, ...]
    trouble: str | None = None
    """Why its lock or its names cannot be read. It counts as alive, so nothing of it is ended."""


class Missing(NamedTuple):
    """Segments that should be there, first to last, and are not."""

    writer_id: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one reading gave. Empty frames with a position that moved on are normal."""

    frames: list[Frame]
    position_after: Position
    skipped: list[Quarantined] = field(default_factory=list)
    missing: Missing | None = None
    unreadable_format: int | None = None
    """A newer router wrote this segment; nothing is skipped, this reader stays before it."""


@dataclass(slots=True)
class DamageCounts:
    """What a reader could not deliver, each piece counted once however often it is met."""

    torn: int = 0
    damaged: int = 0
    bytes: int = 0
    missing_segments: int = 0


class SpoolReader:
    """Reads what writers append. One for all threads of a process: it holds dead writers' locks.

    Reading changes no position: who reads keeps the :class:`Position`, and starts at
    ``first_position`` where it has none. Errors of the disk are raised as ``OSError``; what one
    writer's directory refuses keeps nobody from the others, and stands in ``troubles``.
    """

    def __init__(
        self,
        directory: Path,
        io: SpoolIO | None = None,
        *,
        observe: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """``observe``: look without taking over dead writers, removing or quarantining anything.

        A mere look raises for every directory that it cannot read.
        """
        self._directory = directory
        self._io = io or SpoolIO()
        self._observe = observe
        self._claims = Claims(directory, self._io, keep=not observe)
        self._quarantine = Quarantine(directory, self._io)
        self._clock = clock or Clock()
        self._starting: dict[str, float] = {}
        self._missing: set[Missing] = set()
        self._lock = threading.Lock()
        self.damage = DamageCounts()
        self.troubles: dict[str, str] = {}
        """Directories that could not be read or cleared when the writers were listed last."""

    def writers(self) -> list[WriterInfo]:
        """All writers, the oldest first. Takes over dead ones and clears what they left empty."""
        names = self._names(self._directory)
        troubles = {} if self._observe else self._clear_false_starts(names)
        found = [self._look_at(name) for name in sorted(filter(is_writer_id, names))]
        troubles |= {info.writer_id: info.trouble for info in found if info and info.trouble}
        self.troubles = troubles
        return [info for info in found if info is not None]

    def first_position(self, writer_id: str) -> Position:
        """Where to start without a checkpoint: the oldest segment that is there."""
        segments = self._segments(writer_id)
        return Position(writer_id, segments[0] if segments else 1, 0)

    def read(self, position: Position, max_bytes: int) -> Batch:
        """Frames from ``position`` on, out of one segment, about ``max_bytes`` of them.

        Nothing new is an empty batch whose position has not moved.
        """
        writer_id, number, _ = position
        # Asked before the file is read: only then nothing can be appended after the answer.
        closed = self._is_closed(writer_id, number)
        try:
            with self._opened(self._directory / writer_id / segment_name(number)) as fd:
                return self._read(fd, position, max_bytes, closed)
        except FileNotFoundError:
            return self._skip_missing(position)

    def end_of(self, writer_id: str) -> Position:
        """Where a writer's files end at this moment."""
        segments = self._segments(writer_id)
        last = segments[-1] if segments else 0
        return Position(writer_id, last, self._size(writer_id, last))

    def bytes_of(
        self, writer_id: str, start: Position | None = None, end: Position | None = None
    ) -> int:
        """Bytes of one writer between two positions; by default from its beginning to its end."""
        total = 0
        for number in self._segments(writer_id):
            size = self._size(writer_id, number)
            first, last = 0, size
            if start is not None and number <= start.segment:
                first = start.offset if number == start.segment else size
            if end is not None and number >= end.segment:
                last = end.offset if number == end.segment else 0
            total += max(0, last - first)
        return total

    def backlog_bytes(self, positions: Mapping[str, Position]) -> int:
        """Bytes behind the positions, over all writers; all of a writer that has none."""
        total = 0
        for name in filter(is_writer_id, self._names(self._directory)):
            try:
                total += self.bytes_of(name, positions.get(name))
            except OSError:
                if self._observe:
                    raise
        return total

    def quarantined(self) -> tuple[int, int]:
        """Number and bytes of the stretches in quarantine."""
        return self._quarantine.stored()

    def remove_segment(self, writer_id: str, number: int) -> None:
        """Remove a closed segment; raises ``ValueError`` for one that may still be appended to.

        The last one of a dead writer takes the writer's directory with it.
        """
        if not self._is_closed(writer_id, number):
            raise ValueError(f"segment {number} of {writer_id} is still written")
        try:
            self._io.unlink(self._directory / writer_id / segment_name(number))
        except FileNotFoundError:
            pass
        if not self._claims.is_alive(writer_id) and not self._segments(writer_id):
            self._bury(writer_id)

    def close(self) -> None:
        """Give up the writers that were taken over."""
        self._claims.close()

    def _read(self, fd: int, position: Position, max_bytes: int, closed: bool) -> Batch:
        rest = max(0, self._io.size(fd) - position.offset)
        found, data = self._scan(fd, position, min(rest, max_bytes), rest, max_bytes, closed)
        if found.stop == 0 and len(data) < rest:  # a frame that is larger than the reading
            found, data = self._scan(fd, position, rest, rest, max_bytes, closed)
        if found.gaps and not closed:
            again, data = self._scan(fd, position, rest, rest, max_bytes, closed)
            found = _confirmed(found, again, position.offset)
        if position.offset == 0:
            written = header_format(data)
            if written is not None and written > FORMAT:
                return Batch([], position, unreadable_format=written)
        skipped = self._set_aside(position, data, found)
        after = position._replace(offset=position.offset + found.stop)
        if closed and found.stop >= rest:
            after = Position(position.writer_id, position.segment + 1, 0)
        return Batch(found.frames, after, skipped)

    def _scan(
        self, fd: int, start: Position, length: int, rest: int, limit: int, closed: bool
    ) -> tuple[Scan, bytes]:
        data = self._io.read(fd, length, start.offset)
        complete = length >= rest
        return scan(data, start, limit=max(1, limit), complete=complete, final=closed), data

    def _set_aside(self, start: Position, data: bytes, found: Scan) -> list[Quarantined]:
        skipped = []
        for first, end, torn in found.gaps:
            offset = start.offset + first
            stretch = Quarantined(start.writer_id, start.segment, offset, end - first, torn)
            skipped.append(stretch)
            if self._observe or self._quarantine.put(stretch, data[first:end]):
                with self._lock:
                    self.damage.torn += torn
                    self.damage.damaged += not torn
                    self.damage.bytes += end - first
        return skipped

    def _skip_missing(self, position: Position) -> Batch:
        writer_id, number, _ = position
        later = [found for found in self._segments(writer_id) if found >= number]
        # Listing and renaming at the same moment can hide a name; a second listing shows it.
        later += [found for found in self._segments(writer_id) if found >= number]
        if not later or min(later) == number:
            return Batch([], position)
        missing = Missing(writer_id, number, min(later) - 1)
        with self._lock:
            if missing not in self._missing:
                self._missing.add(missing)
                self.damage.missing_segments += missing.last - missing.first + 1
        return Batch([], Position(writer_id, min(later), 0), missing=missing)

    def _is_closed(self, writer_id: str, number: int) -> bool:
        if not self._claims.is_alive(writer_id):
            return True
        segments = self._segments(writer_id)
        return bool(segments) and segments[-1] > number

    def _look_at(self, writer_id: str) -> WriterInfo | None:
        """What there is of a writer; ``None`` when nothing is left, which is then removed."""
        alive = self._claims.is_alive(writer_id)
        try:
            segments = tuple(self._segments(writer_id))
            if not segments and not alive:
                if not self._observe:
                    self._bury(writer_id)
                return None
        except OSError as error:
            if self._observe:
                raise
            return WriterInfo(writer_id, True, (), str(error))
        return WriterInfo(writer_id, alive, segments, self._claims.trouble(writer_id))

    def _clear_false_starts(self, names: list[str]) -> dict[str, str]:
        """A writer takes its lock within an instant; one that has not for so long has died.

        Returns those that cannot be cleared, and why.
        """
        now_s = self._clock.monotonic_s()
        with self._lock:
            self._starting = {
                name: self._starting.get(name, now_s)
                for name in names
                if name.startswith(STARTING_PREFIX)
            }
            old = [
                name for name, seen_s in self._starting.items() if now_s - seen_s >= FALSE_START_S
            ]
        troubles = {}
        for name in old:
            try:
                self._claims.clear_false_start(name)
            except OSError as error:
                troubles[name] = str(error)
        return troubles

    def _bury(self, writer_id: str) -> None:
        with self._lock:
            self._missing = {gap for gap in self._missing if gap.writer_id != writer_id}
        self._quarantine.forget(writer_id)
        self._claims.bury(writer_id)

    def _segments(self, writer_id: str) -> list[int]:
        return segment_numbers(self._names(self._directory / writer_id))

    def _names(self, directory: Path) -> list[str]:
        try:
            return self._io.list_dir(directory)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _size(self, writer_id: str, number: int) -> int:
        try:
            return self._io.file_size(self._directory / writer_id / segment_name(number))
        except FileNotFoundError:
            return 0

    @contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        fd = self._io.open(path, READ)
        try:
            yield fd
        finally:
            self._io.close(fd)


def _confirmed(first: Scan, second: Scan, offset: int) -> Scan:
    """What the second of two readings of a growing segment found, up to damage that it found alone.

    A reading that overlaps a writing can miss some of a frame and see the one behind it. What was
    seen behind it was written by then, so damage that stays at its place is damage.
    """
    known = {(gap.start, gap.end) for gap in first.gaps}
    doubtful = [gap.start for gap in second.gaps if (gap.start, gap.end) not in known]
    if not doubtful:
        return second
    stop = doubtful[0]
    return Scan(
        [frame for frame in second.frames if frame.position_after.offset <= offset + stop],
        [gap for gap in second.gaps if gap.end <= stop],
        stop,
    )
