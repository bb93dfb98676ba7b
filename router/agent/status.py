"""Whether an agent takes on what is spooled, seen from outside: by its lock and its report."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson

from router.clock import Clock
from router.records.record_types import parse_timestamp_us
from router.spool.disk import OsSpoolIO
from router.spool.quarantine import Quarantine

AGENT_LOCK: Final = "run/agent.lock"
AGENT_REPORT: Final = "run/agent.json"
SILENT_S: Final = 5.0
"""An agent reports once a second; one that has not for so long does not do its work."""
_READINGS: Final = 3


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
    silent_s: float | None = None
    """For how long an agent that runs has not reported, once that is too long."""


def look_at_shipping(data_dir: Path, spool_dir: Path, clock: Clock | None = None) -> Shipping:
    """Reads two small files and a directory; raises ``OSError``."""
    is_running = _is_locked(data_dir / AGENT_LOCK)
    try:
        _, quarantined_bytes = Quarantine(spool_dir, OsSpoolIO()).stored()
    except FileNotFoundError:  # somebody is cleaning up just now
        quarantined_bytes = 0
    report = _report(data_dir)
    sinks = _sinks(report)
    silent_s = _silent_s(data_dir, report, (clock or Clock()).now_s()) if is_running else None
    if silent_s is not None:  # what it said last is not true any more
        why = f"the agent has not reported for {silent_s:.0f} s"
        sinks = {name: replace(sink, failing=sink.failing or why) for name, sink in sinks.items()}
    return Shipping(is_running, quarantined_bytes, sinks, silent_s)


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


def _report(data_dir: Path) -> Any:
    """``None`` when there is none, or none that can be read."""
    for _ in range(_READINGS):  # on a full disk it is written over in place, perhaps just now
        try:
            return orjson.loads((data_dir / AGENT_REPORT).read_bytes())
        except OSError:
            return None
        except ValueError:
            continue
    return None


def _silent_s(data_dir: Path, report: Any, now_s: float) -> float | None:
    """Since the last report or, when that is older, since the agent took its lock."""
    began_s = os.stat(data_dir / AGENT_LOCK).st_mtime
    try:
        began_s = max(began_s, parse_timestamp_us(report["updated_at"]) / 1e6)
    except (ValueError, LookupError, TypeError):
        pass  # it has not reported yet
    silent_s = now_s - began_s
    return silent_s if silent_s > SILENT_S else None


def _sinks(report: Any) -> dict[str, SinkState]:
    try:
        return {
            str(name): SinkState(
                int(said["behind_bytes"]), int(said["dead_lettered"]), said["failing"]
            )
            for name, said in report["sinks"].items()
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}  # there is none yet, or it is another version's
