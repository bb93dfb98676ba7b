"""Reading a spool: every whole frame of every writer, in order, also from damaged files."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from router.clock import Clock
from router.spool.directory import SpoolDirectory
from router.spool.disk import READ, SpoolIO
from router.spool.frames import (
    FORMAT,
    Frame,
    Position,
    Scan,
    confirmed,
    header_format,
    scan,
    segment_name,
)
from router.spool.quarantine import Quarantine, Quarantined
from router.spool.writer_locks import STARTING_PREFIX, WriterLocks

UNSTARTED_S: Final = 10.0
_READ_BYTES: Final = 1024 * 1024


class WriterInfo(NamedTuple):
    """A writer that left or leaves segments here."""

    writer_id: str
    alive: bool
    segments: tuple[int, ...]
    trouble: str | None = None
    """Why its lock or directory cannot be read. It counts as alive, so nothing is removed."""


class Missing(NamedTuple):
    """Segments that should be there, first to last, and are not."""

    writer_id: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read found. A moved position without frames is normal."""

    frames: list[Frame]
    position_after: Position
    skipped: list[Quarantined] = field(default_factory=list)
    missing: Missing | None = None
    unreadable_format: int | None = None
    """A newer router wrote this segment; the position stays before it."""


@dataclass(slots=True)
class DamageCounts:
    """What a reader could not deliver; each piece counts once however often it is read."""

    torn: int = 0
    damaged: int = 0
    bytes: int = 0
    missing_segments: int = 0


class SpoolReader(SpoolDirectory):
    """Reads what writers append. One for all threads of a process: it holds dead writers' locks.

    The caller keeps the :class:`Position`, and starts at ``first_position`` without one. Errors of
    the disk are raised as ``OSError``; an error of one writer's directory does not affect the
    others and is listed in ``troubles``.
    """

    def __init__(
        self,
        directory: Path,
        io: SpoolIO | None = None,
        *,
        observe: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """``observe``: read without taking over dead writers, removing or quarantining anything.

        An observer raises for every directory that it cannot read.
        """
        super().__init__(directory, io)
        self._observe = observe
        self._locks = WriterLocks(directory, self._io, keep=not observe)
        self._quarantine = Quarantine(directory, self._io)
        self._clock = clock or Clock()
        self._starting: dict[str, float] = {}
        self._missing: set[Missing] = set()
        self._lock = threading.Lock()
        self.damage = DamageCounts()
        self.troubles: dict[str, str] = {}
        """Directories that could not be read or removed when the writers were listed last."""

    def writers(self) -> list[WriterInfo]:
        """All writers, the oldest first. Dead ones are taken over; without segments, removed."""
        troubles = {} if self._observe else self._remove_unstarted()
        found = [self._inspect(writer_id) for writer_id in self.writer_ids()]
        troubles |= {info.writer_id: info.trouble for info in found if info and info.trouble}
        self.troubles = troubles
        return [info for info in found if info is not None]

    def first_position(self, writer_id: str) -> Position:
        """Where to start without a checkpoint: the oldest segment that is there."""
        segments = self.segments(writer_id)
        return Position(writer_id, segments[0] if segments else 1, 0)

    def read(self, position: Position, max_bytes: int) -> Batch:
        """About ``max_bytes`` of frames from ``position`` on, out of one segment.

        Without anything new the batch is empty and its position has not moved.
        """
        writer_id, number, _ = position
        # Checked before the file is read: of a closed segment nothing can then be missed.
        closed = self._is_closed(writer_id, number)
        try:
            with self._opened(self.path / writer_id / segment_name(number)) as fd:
                return self._read(fd, position, max_bytes, closed)
        except FileNotFoundError:
            return self._skip_missing(position)

    def backlog_bytes(self, positions: Mapping[str, Position]) -> int:
        """Bytes behind the positions, over all writers; all of a writer that has none."""
        total = 0
        for writer_id in self.writer_ids():
            try:
                total += self.bytes_of(writer_id, positions.get(writer_id))
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
            self._io.unlink(self.path / writer_id / segment_name(number))
        except FileNotFoundError:
            pass
        if not self._locks.is_alive(writer_id) and not self.segments(writer_id):
            self._remove_writer(writer_id)

    def close(self) -> None:
        """Release the locks of the writers that were taken over."""
        self._locks.close()

    def _read(self, fd: int, position: Position, max_bytes: int, closed: bool) -> Batch:
        rest = max(0, self._io.size(fd) - position.offset)
        found, data = self._scan(fd, position, min(rest, max_bytes), rest, max_bytes, closed)
        if found.stop == 0 and len(data) < rest:  # a frame that is larger than the reading
            found, data = self._scan(fd, position, rest, rest, max_bytes, closed)
        if found.gaps and not closed:
            again, data = self._scan(fd, position, rest, rest, max_bytes, closed)
            found = confirmed(found, again, position.offset)
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
        later = [found for found in self.segments(writer_id) if found >= number]
        # Listing and renaming at the same moment can hide a name; a second listing shows it.
        later += [found for found in self.segments(writer_id) if found >= number]
        if not later or min(later) == number:
            return Batch([], position)
        missing = Missing(writer_id, number, min(later) - 1)
        with self._lock:
            if missing not in self._missing:
                self._missing.add(missing)
                self.damage.missing_segments += missing.last - missing.first + 1
        return Batch([], Position(writer_id, min(later), 0), missing=missing)

    def _is_closed(self, writer_id: str, number: int) -> bool:
        if not self._locks.is_alive(writer_id):
            return True
        segments = self.segments(writer_id)
        return bool(segments) and segments[-1] > number

    def _inspect(self, writer_id: str) -> WriterInfo | None:
        """The state of a writer; ``None`` when it has no segments left and is removed."""
        alive = self._locks.is_alive(writer_id)
        try:
            segments = tuple(self.segments(writer_id))
            if not segments and not alive:
                if not self._observe:
                    self._remove_writer(writer_id)
                return None
        except OSError as error:
            if self._observe:
                raise
            return WriterInfo(writer_id, True, (), str(error))
        return WriterInfo(writer_id, alive, segments, self._locks.trouble(writer_id))

    def _remove_unstarted(self) -> dict[str, str]:
        """Remove directories of writers that died before they took their lock.

        A live writer takes it within an instant. Returns what cannot be removed, and why.
        """
        now_s = self._clock.monotonic_s()
        with self._lock:
            self._starting = {
                name: self._starting.get(name, now_s)
                for name in self._names(self.path)
                if name.startswith(STARTING_PREFIX)
            }
            old = [name for name, seen_s in self._starting.items() if now_s - seen_s >= UNSTARTED_S]
        troubles = {}
        for name in old:
            try:
                self._locks.remove_unstarted(name)
            except OSError as error:
                troubles[name] = str(error)
        return troubles

    def _remove_writer(self, writer_id: str) -> None:
        with self._lock:
            self._missing = {gap for gap in self._missing if gap.writer_id != writer_id}
        self._quarantine.forget(writer_id)
        self._locks.remove_writer(writer_id)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        fd = self._io.open(path, READ)
        try:
            yield fd
        finally:
            self._io.close(fd)


def read_batches(
    reader: SpoolReader, writer_id: str, start: Position | None = None
) -> Iterator[Batch]:
    """Everything of one writer from ``start`` or its beginning on, until nothing new is there.

    The last batch is the one whose position has not moved. Raises ``OSError``.
    """
    position = start or reader.first_position(writer_id)
    while True:
        batch = reader.read(position, _READ_BYTES)
        yield batch
        if batch.position_after == position:
            return
        position = batch.position_after
