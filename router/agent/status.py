"""The agent's report, and the state of shipping as other processes see it: by lock and report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson

from router.agent.lock import AGENT_LOCK, AgentLock
from router.clock import Clock
from router.records.record_types import parse_timestamp_us
from router.spool.disk import SpoolIO
from router.spool.quarantine import Quarantine

AGENT_REPORT: Final = "run/agent.json"
SILENT_S: Final = 5.0
"""An agent reports once a second; one that has not reported for this long does not work."""
_BLOCK_BYTES: Final = 4096
_READ_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class SinkState:
    """How far one sink is, as the agent reports it."""

    behind_bytes: int
    dead_lettered: int
    """Since the agent began."""
    failing: str | None
    """Why the sink takes no records; ``None`` when it takes them."""


@dataclass(frozen=True, slots=True)
class Shipping:
    """Whether and how far spooled records are shipped."""

    is_running: bool
    """An agent holds the lock of this data directory."""
    quarantined_bytes: int = 0
    sinks: Mapping[str, SinkState] = field(default_factory=dict)
    """From the last report, also when the agent no longer runs."""
    silent_s: float | None = None
    """How long a running agent has not reported, once that is too long."""


def observe_shipping(data_dir: Path, spool_dir: Path, clock: Clock | None = None) -> Shipping:
    """Read two small files and a directory; raises ``OSError``."""
    is_running = AgentLock(data_dir).is_held()
    try:
        _, quarantined_bytes = Quarantine(spool_dir, SpoolIO()).stored()
    except FileNotFoundError:  # somebody is cleaning up just now
        quarantined_bytes = 0
    report = read_report(data_dir) or {}
    sinks = _sinks(report)
    silent_s = _silent_s(data_dir, report, (clock or Clock()).now_s()) if is_running else None
    if silent_s is not None:  # the report is outdated
        why = f"the agent has not reported for {silent_s:.0f} s"
        sinks = {name: replace(sink, failing=sink.failing or why) for name, sink in sinks.items()}
    return Shipping(is_running, quarantined_bytes, sinks, silent_s)


def write_report(data_dir: Path, report: Mapping[str, Any]) -> None:
    """Replace ``run/agent.json``; raises ``OSError``. Without sync: it is useless after a crash.

    On a disk without room for a second file it is overwritten in place: its blocks exist.
    """
    path = data_dir / AGENT_REPORT
    draft = path.with_suffix(".new")
    text = orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    try:
        draft.write_bytes(_padded(text, _BLOCK_BYTES))
        os.replace(draft, path)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        if not path.exists():
            raise
        with path.open("r+b", buffering=0) as file:
            file.write(_padded(text, os.fstat(file.fileno()).st_size))


def read_report(data_dir: Path) -> dict[str, Any] | None:
    """The agent's last report, which may be old (``updated_at``); ``None`` if unreadable."""
    for _ in range(_READ_ATTEMPTS):  # on a full disk it is overwritten in place, perhaps just now
        try:
            found = orjson.loads((data_dir / AGENT_REPORT).read_bytes())
        except OSError:
            return None
        except orjson.JSONDecodeError:
            continue
        return found if isinstance(found, dict) else None
    return None


def _padded(text: bytes, size_bytes: int) -> bytes:
    """JSON may end with spaces; with files of one length nothing of an earlier text remains."""
    return text.ljust(max(size_bytes, -len(text) // _BLOCK_BYTES * -_BLOCK_BYTES))


def _silent_s(data_dir: Path, report: Mapping[str, Any], now_s: float) -> float | None:
    """Since the last report or, when that is older, since the agent took its lock."""
    began_s = os.stat(data_dir / AGENT_LOCK).st_mtime
    try:
        began_s = max(began_s, parse_timestamp_us(report["updated_at"]) / 1e6)
    except (ValueError, LookupError, TypeError):
        pass  # it has not reported yet
    silent_s = now_s - began_s
    return silent_s if silent_s > SILENT_S else None


def _sinks(report: Mapping[str, Any]) -> dict[str, SinkState]:
    try:
        return {
            str(name): SinkState(
                int(sink["behind_bytes"]), int(sink["dead_lettered"]), sink["failing"]
            )
            for name, sink in report["sinks"].items()
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}  # there is none yet, or another version wrote it
