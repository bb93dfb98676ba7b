"""What this process has reserved for calls that it has not sent yet, in a mapped file.

A call is on disk from the moment it is sent. Before, only this file knows of it, so that another
process can give back what it has reserved if this one is killed: the file is locked as long as this
process lives. To note a call is a few stores into memory and no system call; they survive the
process, not a power failure. Where the file cannot be used, or has no room, the reservation of a
killed call ends with its lease.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from router.clock import Clock
from router.limits.outcome import Request

log = logging.getLogger("router.limits")

_ENTRIES: Final = 1024
"""Calls at once that are not sent yet; gunicorn gives a worker about as many connections."""
_ENTRY_BYTES: Final = 512
_LENGTH: Final = struct.Struct("=H")
"""Stands before each entry, and is written last; 0: there is none."""
_MOST_BYTES: Final = _ENTRY_BYTES - _LENGTH.size


class UnsentCall(NamedTuple):
    """What a call wants to reserve, in the budgets that the document has for its key."""

    record_id: str
    organization_id: str
    key_id: str | None
    at_ms: int
    """When it was about to be asked for."""
    ttl_ms: int
    cost_nanos: int
    tokens: int
    requests: int


class UnsentCalls:
    """The calls of this process. For one thread; with ``path`` ``None`` it notes nothing."""

    def __init__(self, path: Path | None, clock: Clock | None = None) -> None:
        self._path = path
        self._now_s = (clock or Clock()).now_s
        self._places: dict[str, int] = {}
        self._free: list[int] = []
        self._map: mmap.mmap | None = None
        self._fd: int | None = None
        if path is None:
            return
        try:
            self._fd = _locked(path)
            self._map = mmap.mmap(self._fd, _ENTRIES * _ENTRY_BYTES)
        except OSError as error:
            facts = {"reason": error.strerror or str(error)}
            log.warning("reservations of killed calls will wait for their leases", extra=facts)
            return
        self._free = list(range(0, _ENTRIES * _ENTRY_BYTES, _ENTRY_BYTES))

    def __len__(self) -> int:
        return len(self._places)

    def begin(self, request: Request) -> None:
        """A call is about to ask for its reservation."""
        if self._map is None or not self._free:
            return
        amounts = request.amounts
        payload = orjson.dumps(
            (  # the fields of an UnsentCall
                request.lease_id,
                request.organization_id,
                request.key_id,
                int(self._now_s() * 1000),
                request.ttl_ms,
                amounts.cost_nanos,
                amounts.tokens,
                amounts.requests,
            )
        )
        if len(payload) > _MOST_BYTES:
            return
        place = self._places[request.lease_id] = self._free.pop()
        start = place + _LENGTH.size
        self._map[start : start + len(payload)] = payload
        _LENGTH.pack_into(self._map, place, len(payload))

    def end(self, record_id: str) -> None:
        """The call is sent, and its dispatch on disk; or it holds nothing any more."""
        place = self._places.pop(record_id, None)
        if place is not None and self._map is not None:
            _LENGTH.pack_into(self._map, place, 0)
            self._free.append(place)

    def close(self) -> None:
        """The process ends in good order, and all its calls have."""
        if self._map is not None and self._path is not None:
            self._map.close()
            self._map = None
            self._path.unlink(missing_ok=True)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_unsent(path: Path) -> list[UnsentCall]:
    """What is in the file of another process; raises ``OSError``."""
    data, found = path.read_bytes(), []
    for place in range(0, len(data) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
        (length,) = _LENGTH.unpack_from(data, place)
        start = place + _LENGTH.size
        try:
            if length:
                found.append(UnsentCall(*orjson.loads(data[start : start + length])))
        except (ValueError, TypeError):
            log.error("an unsent call is not understood", extra={"file": path.name})
    return found


def is_in_use(path: Path) -> bool:
    """Whether the process that writes there lives; raises ``OSError``."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return True
    return False


def _locked(path: Path) -> int:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A mapped page that turns out to have no room kills the process (SIGBUS).
        os.posix_fallocate(fd, 0, _ENTRIES * _ENTRY_BYTES)
    except BaseException:
        os.close(fd)
        raise
    return fd
