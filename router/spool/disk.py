"""Every access of the spool to the file system, in one place where a test can make it fail."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from router.clock import Clock

T = TypeVar("T")
Offload = Callable[[Callable[[], Any]], Any]
"""Runs what waits for the disk, on a thread of its own, and returns its result."""

# Directories are for their owner alone; files follow the umask, so that a group can be let in.
_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o660
_KEEP_SIZE: Final = 0x01

APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND
REPLACE: Final = APPEND | os.O_TRUNC
OVERWRITE: Final = os.O_RDWR | os.O_CREAT
READ: Final = os.O_RDONLY
TRY_LOCK: Final = os.O_RDWR
TAKE_LOCK: Final = os.O_RDWR | os.O_CREAT

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
NOT_SUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class SpoolIO:
    """The real file system. Each method raises ``OSError`` when it fails."""

    __slots__ = ()

    def make_dir(self, path: Path) -> None:
        """Make a directory and its parents; an existing one is fine."""
        path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)

    def remove_dir(self, path: Path) -> None:
        """Remove an empty directory."""
        os.rmdir(path)

    def list_dir(self, path: Path) -> list[str]:
        """The names in a directory."""
        return os.listdir(path)

    def sync_dir(self, path: Path) -> None:
        """Make the names in a directory survive a power failure."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or directory, replacing a file of that name."""
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def file_size(self, path: Path) -> int:
        """The length of a file by name."""
        return os.stat(path).st_size

    def open(self, path: Path, flags: int) -> int:
        """A file descriptor that child processes do not inherit."""
        return os.open(path, flags, _FILE_MODE)

    def close(self, fd: int) -> None:
        """Close a file descriptor, which releases its lock."""
        os.close(fd)

    def lock(self, fd: int) -> bool:
        """Take the file's lock, which ends with this process; False when another holds it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def size(self, fd: int) -> int:
        """The length of an open file."""
        return os.fstat(fd).st_size

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Bytes from ``offset``; fewer only at the end of the file."""
        data = os.pread(fd, length, offset)
        while len(data) < length:
            more = os.pread(fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, fd: int, data: bytes) -> int:
        """Write at the end, or with ``OVERWRITE`` from the beginning on; the bytes written."""
        return os.write(fd, data)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Reserve room behind the end of a file for later writes, without lengthening the file."""
        allocate = _fallocate()
        if allocate is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if allocate(fd, _KEEP_SIZE, offset, length) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def truncate(self, fd: int, length: int) -> None:
        """Cut a file, and release the room reserved behind ``length``."""
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        """Make the file's content survive a power failure."""
        getattr(os, "fdatasync", os.fsync)(fd)


class DiskThread:
    """Runs what waits for the disk, and measures on the disk's own thread how long that takes.

    So what keeps the caller from looking at the result is not taken for a slow disk.
    """

    __slots__ = ("_clock", "_offload", "_running")

    def __init__(self, offload: Offload | None, clock: Clock) -> None:
        self._offload: Offload = offload or (lambda work: work())
        self._clock = clock
        # Seconds that ended work took, and since when other work runs: one object, because it is
        # written by the disk's thread and read by all.
        self._running: tuple[float, float | None] = (0.0, None)

    def attempt(self, work: Callable[[], T]) -> T | OSError:
        """Run ``work``; an ``OSError`` is returned, not raised."""

        def attempt() -> T | OSError:
            spent_s, began_s = self._running[0], self._clock.monotonic_s()
            self._running = (spent_s, began_s)
            try:
                return work()
            except OSError as error:  # gevent prints what a thread of its pool raises
                return error
            finally:
                self._running = (spent_s + self._clock.monotonic_s() - began_s, None)

        result: T | OSError = self._offload(attempt)
        return result

    def worked_s(self) -> float:
        """Seconds for which the disk has been worked with, what runs now included."""
        spent_s, began_s = self._running
        return spent_s if began_s is None else spent_s + self._clock.monotonic_s() - began_s


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """Linux's own call: ``posix_fallocate`` would lengthen the file, and writes zeros elsewhere."""
    library = ctypes.CDLL(None, use_errno=True)
    # Offsets of `fallocate64` have 64 bits everywhere; where it is missing, `fallocate`'s do too.
    function = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = function
    return found
