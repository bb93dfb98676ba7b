"""Whether an agent takes on what is spooled, seen from outside: by its lock and its report."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from router.accounting.spool_io import OsSpoolIO
from router.accounting.spool_quarantine import Quarantine

AGENT_LOCK: Final = "run/agent.lock"
AGENT_REPORT: Final = "run/agent.json"


@dataclass(frozen=True, slots=True)
class SinkState:
    """How far one sink is, by the agent's own account."""

    behind_bytes: int
    dead_lettered: int
    """Since the agent began."""
    failing: str | None
    """What is wrong with it; ``None`` when it takes records."""


@dataclass(frozen=True, slots=True)
class Shipping:
    """What becomes of the records after they were spooled."""

    is_running: bool
    """An agent holds the lock of this data directory."""
    quarantined_bytes: int = 0
    sinks: Mapping[str, SinkState] = field(default_factory=dict)
    """What the agent said last, also when it does not run any more."""


def look_at_shipping(data_dir: Path, spool_dir: Path) -> Shipping:
    """Reads two small files and a directory; raises ``OSError``."""
    is_running = _is_locked(data_dir / AGENT_LOCK)
    try:
        _, quarantined_bytes = Quarantine(spool_dir, OsSpoolIO()).stored()
    except FileNotFoundError:  # somebody is cleaning up just now
        quarantined_bytes = 0
    return Shipping(is_running, quarantined_bytes, _sinks(data_dir))


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _sinks(data_dir: Path) -> dict[str, SinkState]:
    try:
        report: Any = orjson.loads((data_dir / AGENT_REPORT).read_bytes())
        return {
            str(name): SinkState(
                int(said["behind_bytes"]), int(said["dead_lettered"]), said["failing"]
            )
            for name, said in report["sinks"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}  # there is none yet, or it is another version's
