"""Who may finish a writer's files: the writer while it lives, then whoever takes its lock first."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from router.spool.disk import TAKE_LOCK, TRY_LOCK, SpoolIO
from router.spool.frames import LOCK_NAME

STARTING_PREFIX: Final = "."
"""A writer's directory has this before its name until the writer holds the lock in it."""


class Claims:
    """The dead writers that this process has taken over. Each can be taken over once.

    A writer's lock dies with its process, however it ends, so holding the lock proves that nobody
    appends any more. May be used by several threads.
    """

    def __init__(self, directory: Path, io: SpoolIO, *, keep: bool) -> None:
        """``keep`` is false for a mere look: the lock is given back at once."""
        self._directory = directory
        self._io = io
        self._keep = keep
        # Without its lock file a directory is nobody's, and can still be taken over.
        self._flags = TAKE_LOCK if keep else TRY_LOCK
        self._held: dict[str, int] = {}
        self._troubles: dict[str, str] = {}
        self._lock = threading.Lock()

    def is_alive(self, writer_id: str) -> bool:
        """Tell whether somebody else holds the writer's lock; if not, it is ours from now on.

        A writer whose lock cannot be tried counts as alive, for :meth:`trouble` tells why; a mere
        look raises ``OSError``.
        """
        with self._lock:
            if writer_id in self._held:
                return False
            self._troubles.pop(writer_id, None)
            try:
                return not self._take(writer_id)
            except OSError as error:
                if not self._keep:
                    raise
                self._troubles[writer_id] = str(error)
                return True

    def trouble(self, writer_id: str) -> str | None:
        """Why nobody can tell whether the writer is alive; as :meth:`is_alive` found it last."""
        return self._troubles.get(writer_id)

    def bury(self, writer_id: str) -> None:
        """Remove what is left of a writer that has no segments any more, if it is ours."""
        with self._lock:
            if writer_id in self._held:
                self._remove(self._directory / writer_id)
                self._io.close(self._held.pop(writer_id))

    def clear_false_start(self, name: str) -> None:
        """Remove the directory of a writer that died before it held its lock."""
        place = self._directory / name
        try:
            fd = self._io.open(place / LOCK_NAME, TAKE_LOCK)
        except FileNotFoundError:
            return
        try:
            if self._io.lock(fd):
                self._remove(place)
        finally:
            self._io.close(fd)

    def close(self) -> None:
        """Let others take over what is left."""
        with self._lock:
            while self._held:
                self._io.close(self._held.popitem()[1])

    def _take(self, writer_id: str) -> bool:
        try:
            fd = self._io.open(self._directory / writer_id / LOCK_NAME, self._flags)
        except FileNotFoundError:
            return True
        taken = kept = False
        try:
            taken = self._io.lock(fd)
            if taken and self._keep:
                self._held[writer_id] = fd
                kept = True
        finally:
            if not kept:
                self._io.close(fd)
        return taken

    def _remove(self, place: Path) -> None:
        """Drafts first and the lock last, so that a half-removed directory can be removed later."""
        try:
            names = self._io.list_dir(place)
        except FileNotFoundError:
            return
        for name in sorted(names, key=LOCK_NAME.__eq__):
            self._io.unlink(place / name)
        self._io.remove_dir(place)
