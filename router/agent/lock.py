"""The lock that makes the agent of a data directory the only one, and who holds writers' locks."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from router.spool.frames import LOCK_NAME

AGENT_LOCK: Final = "run/agent.lock"
SUPERVISOR_LOCK: Final = "run/agent.keeper"
_ATTEMPTS: Final = 10
_PAUSE_S: Final = 0.05
_PROC_LOCKS: Final = Path("/proc/locks")
_PROC_LOCKS_FIELDS: Final = 8
"""``1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF``; lines of waiters have more."""


class AgentLock:
    """Held for as long as the process lives; the kernel releases it however the process ends."""

    def __init__(self, data_dir: Path, name: str = AGENT_LOCK) -> None:
        self._path = data_dir / name
        self._fd: int | None = None

    def take(self, pause: Callable[[float], None] = time.sleep) -> bool:
        """Take the lock and write our pid into the file; False when another agent holds it.

        A process that calls :meth:`is_held` holds the lock for an instant, so one refusal proves
        nothing: the lock is tried for half a second. Raises ``OSError``.
        """
        for _ in range(_ATTEMPTS):
            if self.take_at_once() and self._fd is not None:
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
                return True
            pause(_PAUSE_S)
        return False

    def take_at_once(self) -> bool:
        """Take the lock with one attempt and without our pid; raises ``OSError``."""
        if self._fd is not None:
            return True
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o660)
        if not _flock(fd, fcntl.LOCK_EX):
            os.close(fd)
            return False
        self._fd = fd
        return True

    def is_held(self) -> bool:
        """Tell whether an agent runs, this one included."""
        try:
            fd = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not _flock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def holder(self) -> int | None:
        """The process id of the running agent; ``None`` when there is none, or none known."""
        if not self.is_held():
            return None
        try:
            return int(self._path.read_bytes())
        except (OSError, ValueError):
            return None  # it has just begun, or just ended

    def release(self) -> None:
        """Release the lock, if it is ours."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def taken_over(data_dir: Path, spool_dir: Path, writer_ids: Iterable[str]) -> set[str]:
    """The dead writers among ``writer_ids``: those whose lock the agent holds to ship the rest.

    A process that tries their locks takes them for alive. Empty where the system does not tell who
    holds a lock.
    """
    holders = _lock_holders()
    agent = holders.get(_inode(data_dir / AGENT_LOCK))
    if agent is None:
        return set()
    return {
        writer_id
        for writer_id in writer_ids
        if holders.get(_inode(spool_dir / writer_id / LOCK_NAME)) == agent
    }


def _lock_holders() -> dict[str, int]:
    """Inode of a locked file → process id of the holder."""
    try:
        lines = [line.split() for line in _PROC_LOCKS.read_text().splitlines()]
        return {
            parts[5].rpartition(":")[2]: int(parts[4])
            for parts in lines
            if len(parts) == _PROC_LOCKS_FIELDS and parts[1] == "FLOCK" and int(parts[4]) > 0
        }
    except (OSError, ValueError):
        return {}


def _inode(path: Path) -> str:
    try:
        return str(path.stat().st_ino)
    except OSError:
        return ""


def _flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
