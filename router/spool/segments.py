"""The files of one writer: its directory, its lock, and segments that are valid at every moment.

Only :meth:`Segment.write` is for the path of a call: the rest may wait for the disk.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from router.clock import Clock
from router.spool.disk import NOT_SUPPORTED, REPLACE, TAKE_LOCK, SpoolIO
from router.spool.frames import (
    LOCK_NAME,
    draft_name,
    header_frame,
    segment_name,
    whole_frames,
)
from router.spool.writer_locks import STARTING_PREFIX

UNLIMITED: Final = 1 << 62


class SegmentFailed(Exception):
    """A write was cut short. The segment must not be appended to any more."""

    def __init__(self, error: OSError, rest: bytes) -> None:
        super().__init__(str(error))
        self.error = error
        self.rest = rest
        """The frames that were not written."""


class Segment:
    """A file that frames are appended to, with copies of the unsynced frames."""

    __slots__ = (
        "_io",
        "carried_bytes",
        "fd",
        "named",
        "number",
        "path",
        "reserved_end",
        "size",
        "unsynced",
    )

    def __init__(self, io: SpoolIO, fd: int, path: Path, number: int, size: int) -> None:
        self._io = io
        self.fd = fd
        self.path = path
        self.number = number
        self.size = size
        self.carried_bytes = 0
        """Of the header and of frames that every later segment begins with as well."""
        self.reserved_end = size
        """The file system has reserved room up to this offset."""
        self.unsynced: list[bytes] = []
        self.named = False
        """The name survives a power failure."""

    @property
    def dirty(self) -> bool:
        """A power failure would lose frames or the name of the file."""
        return bool(self.unsynced) or not self.named

    @property
    def own_bytes(self) -> int:
        """Bytes by which the spool shrinks when this segment is removed."""
        return self.size - self.carried_bytes

    @property
    def unsynced_bytes(self) -> int:
        """Bytes that a power failure would lose."""
        return sum(map(len, self.unsynced))

    def write(self, data: bytes) -> None:
        """Append whole frames with one write; raises :class:`SegmentFailed`."""
        done = 0
        try:
            while done < len(data):
                done += self._io.write(self.fd, data[done:] if done else data)
        except OSError as error:
            # Whole frames stay, because a reader may have read them already.
            kept = whole_frames(data, self._appended_bytes(done))
            self._note_written(data[:kept])
            self._cut()
            raise SegmentFailed(error, data[kept:]) from None
        self._note_written(data)

    def needs_room(self, reserve_bytes: int) -> bool:
        """Tell whether less than ``reserve_bytes`` are reserved on the disk."""
        return self.reserved_end - self.size < reserve_bytes

    def reserve_room(self, reserve_bytes: int) -> None:
        """Reserve disk space for at least ``reserve_bytes`` more; raises ``OSError``."""
        if not self.needs_room(reserve_bytes):
            return
        start = self.size
        try:
            self._io.allocate(self.fd, start, 2 * reserve_bytes)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            self.reserved_end = UNLIMITED
        else:
            self.reserved_end = start + 2 * reserve_bytes

    def sync(self) -> None:
        """Make all that was written survive a power failure; raises ``OSError``."""
        self._io.sync(self.fd)

    def release_room(self) -> None:
        """Release the disk space that was reserved and not used."""
        try:
            self._io.truncate(self.fd, self.size)
        except OSError:
            pass  # it is released with the file

    def close(self) -> None:
        """Close the file."""
        try:
            self._io.close(self.fd)
        except OSError:
            pass  # nothing depends on it: the frames were synced

    def _note_written(self, data: bytes) -> None:
        if data:
            self.size += len(data)
            self.unsynced.append(data)

    def _appended_bytes(self, counted: int) -> int:
        """By how much the file has grown, which may be more than the writes returned."""
        try:
            return self._io.size(self.fd) - self.size
        except OSError:
            return counted

    def _cut(self) -> None:
        try:
            self._io.truncate(self.fd, self.size)
        except OSError:
            pass  # the torn frame stays, at the end of a file that is not appended to any more


class SegmentFiles:
    """Creates and names the segments of one writer, numbered from 1 without a gap."""

    def __init__(self, io: SpoolIO, spool: Path, writer_id: str, reserve_bytes: int) -> None:
        self._io = io
        self._spool = spool
        self._writer_id = writer_id
        self._reserve_bytes = reserve_bytes
        self._lock_fd: int | None = None
        self._next = 1
        self._moves = 0
        self.directory = spool / writer_id

    def open(self) -> None:
        """Create the directory, locked from the first moment that a reader can see it."""
        if self._lock_fd is None:
            self._lock_fd = self._make_directory()
        self._io.sync_dir(self._spool)

    def draft(self, data: bytes = b"") -> Segment:
        """A synced segment that readers cannot see, with ``data`` and room. Raises ``OSError``."""
        path = self.directory / draft_name(self._next)
        fd = self._io.open(path, REPLACE)
        segment = Segment(self._io, fd, path, self._next, 0)
        header = header_frame(self.directory.name, self._next)
        segment.carried_bytes = len(header)
        try:
            segment.write(header + data)
            segment.reserve_room(self._reserve_bytes)
            segment.sync()
        except SegmentFailed as failure:
            self._io.close(fd)
            raise failure.error from None
        except OSError:
            self._io.close(fd)
            raise
        segment.unsynced.clear()
        return segment

    def publish(self, segment: Segment) -> None:
        """Make a draft visible to readers, which closes earlier segments; raises ``OSError``."""
        path = self.directory / segment_name(segment.number)
        # Replacing a segment that a reader has begun would lose frames. So a name that may exist is
        # never used again; at worst the reader reports a segment as missing.
        self._next = segment.number + 1
        try:
            self._io.rename(segment.path, path)
        except OSError:
            if self._is_absent(path):
                self._next = segment.number
            raise
        segment.path = path

    def sync_names(self) -> None:
        """Make the segments' names survive a power failure; raises ``OSError``."""
        self._io.sync_dir(self.directory)

    def is_gone(self, segment: Segment) -> bool:
        """Tell whether somebody removed the segment, or the lock that protects it."""
        return self._is_absent(segment.path) or self._is_absent(self.directory / LOCK_NAME)

    def move(self) -> None:
        """Abandon a directory that is gone or no longer ours; ``open`` creates another."""
        self.close()
        self._moves += 1
        self._next = 1
        self.directory = self._spool / f"{self._writer_id}-{self._moves}"

    def discard(self, draft: Segment) -> None:
        """Remove a draft that was never used."""
        draft.close()
        try:
            self._io.unlink(draft.path)
        except OSError:
            pass  # it is removed with the directory

    def close(self) -> None:
        """Release the lock, so that a reader can take the directory over."""
        if self._lock_fd is not None:
            self._io.close(self._lock_fd)
            self._lock_fd = None

    def _is_absent(self, path: Path) -> bool:
        try:
            self._io.file_size(path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return False

    def _make_directory(self) -> int:
        self._io.make_dir(self._spool)
        self._io.sync_dir(self._spool.parent)
        starting = self._spool / f"{STARTING_PREFIX}{self.directory.name}"
        self._io.make_dir(starting)
        fd = self._io.open(starting / LOCK_NAME, TAKE_LOCK)
        try:
            if not self._io.lock(fd):
                raise BlockingIOError(f"{starting} is being removed")
            self._io.rename(starting, self.directory)
        except OSError:
            self._io.close(fd)
            if not self._is_absent(self.directory):
                self.move()  # it was renamed all the same, and readers may have taken it over
            raise
        return fd


def new_writer_id(clock: Clock) -> str:
    """A unique id; ids sort by time of creation."""
    return f"{int(clock.now_s() * 1000):012x}-{os.getpid()}-{secrets.token_hex(4)}"
