"""A file that grows page by page; an export that breaks off continues where it stopped.

Until ``FILE`` is complete there are ``FILE.partial`` with what has been written, and
``FILE.cursor``, which says how much of it counts, what was requested, and where the next page
begins. Bytes of the
partial file reach the disk before the cursor that counts them; bytes behind them are cut off when
the export continues. ``FILE`` itself appears whole or not at all.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

import orjson

FORMAT: Final = 1
_MODE: Final = 0o600
_DRAFT: Final = ".new"


class ExportRefused(Exception):
    """The export may not begin; the message says why and what helps."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What was requested of an export, and how far it has come."""

    request: Mapping[str, Any]
    """What was requested, as JSON can carry it; only the same request can continue."""
    bounds: Mapping[str, Any]
    """What was found when the export began, and holds until it is complete."""
    after: tuple[int, int] | None = None
    records: int = 0
    size: int = 0
    format: int = FORMAT


class ExportFile:
    """One export into one file. Errors of the disk are raised as ``OSError``."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._partial = target.with_name(f"{target.name}.partial")
        self._cursor = target.with_name(f"{target.name}.cursor")
        self._file: IO[bytes] | None = None
        self.progress = Progress({}, {})

    def __enter__(self) -> ExportFile:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._file is not None:
            self._file.close()

    def begin(
        self,
        request: Mapping[str, Any],
        bounds: Callable[[], Mapping[str, Any]],
        *,
        header: bytes = b"",
        restart: bool = False,
    ) -> Progress:
        """Continue what broke off, or else begin; ``bounds`` is called only in the latter case.

        Raises :class:`ExportRefused` when an export with other options broke off here, unless
        ``restart``, and when another process exports into the file.
        """
        file = self._lock()
        known = None if restart else self._load()
        if known is not None and known.request != request:
            raise ExportRefused(
                f"{self._partial} is what is left of an export with other options:"
                " repeat it with those, or begin anew with --restart"
            )
        if known is None or os.fstat(file.fileno()).st_size < known.size:
            known = Progress(dict(request), dict(bounds()))
        file.truncate(known.size)
        file.seek(known.size)
        self.progress = known
        if not known.size:
            self.append(header, None, 0)
        return self.progress

    def append(self, content: bytes, after: tuple[int, int] | None, records: int) -> None:
        """Add a page; when this returns, the page is on the disk and counted."""
        file = self._opened()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        known = self.progress
        self.progress = replace(
            known, after=after, records=known.records + records, size=known.size + len(content)
        )
        _replace(self._cursor, orjson.dumps(asdict(self.progress)))

    def finish(self, convert: Callable[[Path, Path], None] | None = None) -> None:
        """Give the complete file its name; ``convert`` makes it out of what was written."""
        done = self._partial
        if convert is not None:
            done = self._target.with_name(self._target.name + _DRAFT)
            done.touch(_MODE)
            convert(self._partial, done)
            _sync(done)
        os.replace(done, self._target)
        _sync(self._target.parent)
        self._cursor.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)

    def _lock(self) -> IO[bytes]:
        fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        self._file = os.fdopen(fd, "r+b")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportRefused(f"another process is exporting into {self._target}") from None
        return self._file

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            raise ValueError("the export was not begun")
        return self._file

    def _load(self) -> Progress | None:
        """The progress that the cursor tells; ``None`` when no cursor can be read."""
        try:
            found = orjson.loads(self._cursor.read_bytes())
            if found.pop("format") != FORMAT:
                return None
            after = found.pop("after")
            return Progress(**found, after=None if after is None else (after[0], after[1]))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(path.name + _DRAFT)
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
