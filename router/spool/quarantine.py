"""The quarantine of a spool: bytes that are no frames, kept for inspection and counted once."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Final, NamedTuple

from router.spool.disk import REPLACE, SpoolIO
from router.spool.frames import QUARANTINE_NAME

MAX_BYTES: Final = 64 * 1024 * 1024
"""Further bytes are counted and discarded: damage must not fill the disk."""


class Quarantined(NamedTuple):
    """A stretch of a segment in which there is no frame."""

    writer_id: str
    segment: int
    offset: int
    length: int
    torn: bool
    """Cut off within a frame, as a killed writer leaves it; else damaged."""


class Quarantine:
    """The directory ``quarantine`` of a spool; one file for each stretch. Usable from threads.

    Several readers find the same stretch, and one reader finds it again after a lost checkpoint;
    the file's name tells that it was counted.
    """

    def __init__(self, spool: Path, io: SpoolIO, max_bytes: int = MAX_BYTES) -> None:
        self._directory = spool / QUARANTINE_NAME
        self._io = io
        self._max_bytes = max_bytes
        self._bytes: int | None = None
        self._seen: set[Quarantined] = set()
        self._lock = threading.Lock()

    def put(self, stretch: Quarantined, data: bytes) -> bool:
        """Store a stretch; False when it was counted before. A full disk is no error."""
        with self._lock:
            if stretch in self._seen:
                return False
            self._seen.add(stretch)
            try:
                return self._store(stretch, data)
            except OSError:
                return True

    def stored(self) -> tuple[int, int]:
        """Number and bytes of the stored stretches."""
        sizes = [self._io.file_size(self._directory / name) for name in self._names()]
        return len(sizes), sum(sizes)

    def forget(self, writer_id: str) -> None:
        """Drop what is remembered of a removed writer."""
        with self._lock:
            self._seen = {stretch for stretch in self._seen if stretch.writer_id != writer_id}

    def _store(self, stretch: Quarantined, data: bytes) -> bool:
        kind = "torn" if stretch.torn else "damaged"
        name = f"{stretch.writer_id}.{stretch.segment:012}.{stretch.offset}.{kind}"
        self._io.make_dir(self._directory)
        if name in self._names():
            return False
        if self._bytes is None:
            self._bytes = self.stored()[1]
        if self._bytes + len(data) > self._max_bytes:
            return True
        draft = self._directory / f"{name}.new"
        fd = self._io.open(draft, REPLACE)
        try:
            if self._io.write(fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            self._io.close(fd)
        self._io.rename(draft, self._directory / name)
        self._bytes += len(data)
        return True

    def _names(self) -> list[str]:
        try:
            names = self._io.list_dir(self._directory)
        except FileNotFoundError:
            return []
        return [name for name in names if not name.endswith(".new")]
