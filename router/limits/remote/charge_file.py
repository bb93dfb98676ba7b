"""A file of charges: one line for each, and one for each that was taken.

    {"reservation": {...}, "amounts": {...}}     a charge, as the service is told it
    {"done": 0}                                  the charge that begins at this byte was taken

A charge is written before the service is asked, so it is there whenever its worker dies. The worker
holds a lock on the file, which the kernel gives back however the worker ends; then another one
takes the file over. A file without charges is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import orjson
from marshmallow import ValidationError

from router.limits.budgets.windows import Amounts, Reservation
from router.limits.remote import messages
from router.limits.remote.messages import SettleCommand

log = logging.getLogger(__name__)

_DRAFT: Final = ".new"
_DRAFT_S: Final = 60.0
"""After that nobody is about to name it."""
_EMPTY_BYTES: Final = 64 * 1024
"""From this size on a file in which nothing is left is emptied."""
_SETTLE: Final = messages.SettleRequest()


class ChargeFile:
    """One file, locked by this process. Every method raises ``OSError`` when the disk does."""

    def __init__(self, path: Path, fd: int) -> None:
        """``fd`` holds the lock of the file."""
        self._path = path
        self._fd = fd
        self.size = 0
        self.left: dict[int, int] = {}
        """The charges that were not taken yet: offset → length."""
        self.left_bytes = 0
        self.is_unsynced = False

    @classmethod
    def create(cls, path: Path) -> ChargeFile:
        """A new file, empty."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(_DRAFT)  # it gets its name when nobody can take it over any more
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o660)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.rename(path)
        return cls(path, fd)

    @classmethod
    def adopt(cls, path: Path) -> ChargeFile | None:
        """The file of a worker that has ended; ``None`` while its worker lives."""
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink == 0:  # its last owner removed it just now
                raise BlockingIOError
        except BlockingIOError:
            os.close(fd)
            return None
        file = cls(path, fd)
        file._scan()
        return file

    def append(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """Add a charge, the body of a request to settle; its offset and its length."""
        line = orjson.dumps(body) + b"\n"
        offset = self.size
        self._write(line)
        self._add(offset, len(line))
        return offset, len(line)

    def read(self, offset: int, length: int) -> tuple[Reservation, Amounts]:
        """A charge; raises ``ValueError`` for one that cannot be read."""
        try:
            command = cast(SettleCommand, _SETTLE.load(self.body(offset, length)))
        except ValidationError as error:
            raise ValueError(str(error)) from None
        return command.reservation, command.amounts

    def body(self, offset: int, length: int) -> dict[str, Any]:
        """A charge as it was added; raises ``ValueError`` for one that cannot be read."""
        found: dict[str, Any] = orjson.loads(os.pread(self._fd, length, offset))
        return found

    def note_done(self, offset: int) -> None:
        """The charge was taken."""
        self._remove(offset)
        if self.left or self.size < _EMPTY_BYTES:
            self._write(b'{"done":%d}\n' % offset)
        else:
            os.ftruncate(self._fd, 0)
            self.size = 0

    def sync(self) -> None:
        """Make what was added survive a power failure."""
        self.is_unsynced = False
        if self._fd >= 0:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Give up the lock, and the file if nothing in it waits."""
        if self._fd < 0:
            return
        if not self.left:
            self._path.unlink(missing_ok=True)
        elif self.is_unsynced:
            self.sync()
        os.close(self._fd)
        self._fd = -1

    def _add(self, offset: int, length: int) -> None:
        self.left[offset] = length
        self.left_bytes += length

    def _remove(self, offset: int) -> None:
        self.left_bytes -= self.left.pop(offset, 0)

    def _write(self, line: bytes) -> None:
        written = os.write(self._fd, line)
        if written < len(line):
            os.ftruncate(self._fd, self.size)
            raise OSError("the disk took a part of it only")
        self.size += len(line)
        self.is_unsynced = True

    def _scan(self) -> None:
        data = b""
        while chunk := os.pread(self._fd, 1 << 20, len(data)):
            data += chunk
        *lines, cut_off = data.split(b"\n")
        for line in lines:
            self._note(line, len(line) + 1)
        if cut_off:
            os.ftruncate(self._fd, self.size)

    def _note(self, line: bytes, length: int) -> None:
        offset = self.size
        self.size += length
        try:
            found = orjson.loads(line)
            if "done" in found:
                self._remove(found["done"])
            else:
                self._add(offset, length)
        except (orjson.JSONDecodeError, TypeError):
            log.error("a charge on disk is damaged", extra={"file": self._path.name})


def leave_charges(directory: Path, charges: Iterable[tuple[Reservation, Amounts]]) -> None:
    """Put charges on disk for whichever worker finds them; they are safe when this returns."""
    file = ChargeFile.create(directory / f"{uuid.uuid4()}.charges")
    try:
        for reservation, amounts in charges:
            file.append(_SETTLE.dump(SettleCommand(reservation, amounts)))
    finally:
        file.close()


def adopt_files(directory: Path) -> Iterator[ChargeFile]:
    """The files of workers that have ended, with what waits in them."""
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            if not name.endswith((".charges", _DRAFT)):
                continue
            with contextlib.suppress(FileNotFoundError):
                path = directory / name
                if name.endswith(_DRAFT) and time.time() - path.stat().st_mtime < _DRAFT_S:
                    continue  # it may be without its lock yet
                file = ChargeFile.adopt(path)
                if file is None:
                    continue
                if file.left:
                    yield file
                else:
                    file.close()
