"""The lock that makes the agent of a data directory the only one."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from router.agent.status import AGENT_LOCK

FILE_NAME: Final = AGENT_LOCK
KEEPER_FILE_NAME: Final = "run/agent.keeper"
_PATIENCE_S: Final = 0.5
_PAUSE_S: Final = 0.05


class AgentLock:
    """Held for as long as the process lives; the kernel gives it back however the process ends."""

    def __init__(self, data_dir: Path, name: str = FILE_NAME) -> None:
        self._path = data_dir / name
        self._fd: int | None = None

    def take(self, pause: Callable[[float], None] = time.sleep) -> bool:
        """Take the lock and leave our pid in the file; False when another agent has it.

        Whoever asks :meth:`is_held` holds the lock for an instant, so one refusal proves nothing.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o660)
        for _ in range(round(_PATIENCE_S / _PAUSE_S)):
            if _flock(fd, fcntl.LOCK_EX):
                os.ftruncate(fd, 0)
                os.pwrite(fd, b"%d\n" % os.getpid(), 0)
                self._fd = fd
                return True
            pause(_PAUSE_S)
        os.close(fd)
        return False

    def take_at_once(self) -> bool:
        """Take the lock, or not; raises ``OSError``. For a lock of which nobody asks who has it."""
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
        """The process id of the agent that runs; ``None`` when there is none, or none known."""
        if not self.is_held():
            return None
        try:
            return int(self._path.read_bytes())
        except (OSError, ValueError):
            return None  # it has just begun, or just ended

    def release(self) -> None:
        """Give the lock back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
