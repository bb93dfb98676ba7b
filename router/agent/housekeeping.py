"""What the agent does beside shipping: free the spool of what has arrived, and say how it goes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from router.accounting.records import format_timestamp
from router.accounting.shipping import AGENT_REPORT
from router.accounting.spool_format import Position
from router.accounting.spool_reader import WriterInfo
from router.agent.shipper import Progress

REPORT_NAME: Final = AGENT_REPORT

Positions = Mapping[str, Position]


class Spool(Protocol):
    """What is asked of the spool."""

    def writers(self) -> list[WriterInfo]:
        """All writers that have left or leave segments."""

    def remove_segment(self, writer_id: str, number: int) -> None:
        """Remove a closed segment."""


def remove_acknowledged(spool: Spool, saved: Sequence[Positions]) -> int:
    """Remove the segments that every sink has passed for good; how many. Raises ``OSError``.

    ``saved`` are the checkpoints as they stand on the disk: one that exists in memory only would
    be older after a power failure than what was removed.
    """
    removed = 0
    for info in spool.writers():
        start = Position(info.writer_id, 0, 0)
        passed = min(positions.get(info.writer_id, start).segment for positions in saved)
        for number in info.segments:
            if number < passed:
                spool.remove_segment(info.writer_id, number)
                removed += 1
    return removed


def sink_report(progress: Progress, behind_bytes: int) -> dict[str, Any]:
    """How one sink is doing, for :func:`write_report`."""
    return {
        "behind_bytes": behind_bytes,
        "delivered": progress.delivered,
        "dead_lettered": progress.dead_lettered,
        "last_delivery_at": _moment(progress.last_delivery_s),
        "failing": progress.failing,
        "failing_since": _moment(progress.failing_since_s),
    }


def write_report(data_dir: Path, report: Mapping[str, Any]) -> None:
    """Replace ``run/agent.json``; raises ``OSError``. No sync: it is of no use after a crash."""
    path = data_dir / REPORT_NAME
    draft = path.with_suffix(".new")
    draft.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    os.replace(draft, path)


def read_report(data_dir: Path) -> dict[str, Any] | None:
    """What the agent wrote last, which may be long ago: see ``updated_at``."""
    try:
        found = orjson.loads((data_dir / REPORT_NAME).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _moment(epoch_s: float | None) -> str | None:
    return None if epoch_s is None else format_timestamp(epoch_s)
