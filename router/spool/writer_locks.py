"""The locks of writers: a live writer holds its own, and a reader takes over those of dead ones."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from router.spool.disk import TAKE_LOCK, TRY_LOCK, SpoolIO
from router.spool.frames import LOCK_NAME

STARTING_PREFIX: Final = "."
"""The name of a writer's directory begins with this until the writer holds the lock in it."""


class WriterLocks:
    """The locks of the dead writers that this process has taken over.

    The kernel releases a writer's lock when its process ends, however it ends, so holding the lock
    proves that nobody appends any more. May be used by several threads.
    """

    def __init__(self, directory: Path, io: SpoolIO, *, keep: bool) -> None:
        """Without ``keep`` the process only observes: each lock is released at once."""
        self._directory = directory
        self._io = io
        self._keep = keep
        # With `keep`, a directory without its lock file is taken over too.
        self._flags = TAKE_LOCK if keep else TRY_LOCK
        self._fds: dict[str, int] = {}
        self._troubles: dict[str, str] = {}
        self._lock = threading.Lock()

    def is_alive(self, writer_id: str) -> bool:
        """Tell whether another process holds the writer's lock; if not, take it over.

        A writer whose lock cannot be tried counts as alive, and :meth:`trouble` tells why. Without
        ``keep`` it raises ``OSError``.
        """
        with self._lock:
            if writer_id in self._fds:
                return False
            try:
                taken = self._take(writer_id)
            except OSError as error:
                if not self._keep:
                    raise
                self._troubles[writer_id] = str(error)
                return True
            self._troubles.pop(writer_id, None)
            return not taken

    def trouble(self, writer_id: str) -> str | None:
        """Why the last :meth:`is_alive` could not try the writer's lock, if it could not."""
        return self._troubles.get(writer_id)

    def remove_writer(self, writer_id: str) -> None:
        """Remove the directory of a writer without segments, if we hold its lock."""
        with self._lock:
            if writer_id in self._fds:
                self._remove(self._directory / writer_id)
                self._io.close(self._fds.pop(writer_id))

    def remove_unstarted(self, name: str) -> None:
        """Remove the directory of a writer that died before it held its lock."""
        starting = self._directory / name
        # One thread at a time: another one would make the lock file again while this one removes
        # the directory.
        with self._lock:
            try:
                fd = self._io.open(starting / LOCK_NAME, TAKE_LOCK)
            except FileNotFoundError:
                return
            try:
                if self._io.lock(fd):
                    self._remove(starting)
            finally:
                self._io.close(fd)

    def close(self) -> None:
        """Release all locks, so that other processes can take them over."""
        with self._lock:
            while self._fds:
                self._io.close(self._fds.popitem()[1])

    def _take(self, writer_id: str) -> bool:
        try:
            fd = self._io.open(self._directory / writer_id / LOCK_NAME, self._flags)
        except FileNotFoundError:
            return True
        taken = kept = False
        try:
            taken = self._io.lock(fd)
            if taken and self._keep:
                self._fds[writer_id] = fd
                kept = True
        finally:
            if not kept:
                self._io.close(fd)
        return taken

    def _remove(self, directory: Path) -> None:
        """Remove the lock last, so that a half-removed directory can be removed later."""
        try:
            names = self._io.list_dir(directory)
        except FileNotFoundError:
            return
        for name in sorted(names, key=LOCK_NAME.__eq__):
            self._io.unlink(directory / name)
        self._io.remove_dir(directory)
