"""Who holds a writer's lock: the writer itself, or the agent that ships what it left."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from router.agent.status import AGENT_LOCK
from router.spool.frames import LOCK_NAME

_LOCKS: Final = Path("/proc/locks")
_FIELDS: Final = 8
"""``1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF``; of who waits there are more."""


def taken_over(data_dir: Path, spool_dir: Path, writer_ids: Iterable[str]) -> set[str]:
    """Those of the writers that are dead and whose lock the agent holds, to ship what they left.

    To whoever asks for the lock they look alive. None where the system does not tell who holds it.
    """
    holders = _holders()
    agent = holders.get(_inode(data_dir / AGENT_LOCK))
    if agent is None:
        return set()
    return {
        writer_id
        for writer_id in writer_ids
        if holders.get(_inode(spool_dir / writer_id / LOCK_NAME)) == agent
    }


def _holders() -> dict[str, int]:
    """The process that holds a lock, by the number of the locked file."""
    try:
        lines = [line.split() for line in _LOCKS.read_text().splitlines()]
        return {
            parts[5].rpartition(":")[2]: int(parts[4])
            for parts in lines
            if len(parts) == _FIELDS and parts[1] == "FLOCK" and int(parts[4]) > 0
        }
    except (OSError, ValueError):
        return {}


def _inode(path: Path) -> str:
    try:
        return str(path.stat().st_ino)
    except OSError:
        return ""
