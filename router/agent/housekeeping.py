"""What the agent does beside shipping: free the spool of what has arrived, and say how it goes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from router.agent.shipper import Progress
from router.agent.status import AGENT_REPORT
from router.records.record_types import format_timestamp
from router.spool.frames import Position
from router.spool.reader import WriterInfo

REPORT_NAME: Final = AGENT_REPORT
_BLOCK_BYTES: Final = 4096

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
    be older after a power failure than what was removed. A writer whose segments cannot be removed
    keeps no other's; what went wrong first is raised in the end.
    """
    removed = 0
    fault: OSError | None = None
    for info in spool.writers():
        start = Position(info.writer_id, 0, 0)
        passed = min(positions.get(info.writer_id, start).segment for positions in saved)
        try:
            for number in info.segments:
                if number < passed:
                    spool.remove_segment(info.writer_id, number)
                    removed += 1
        except OSError as error:
            fault = fault or error
    if fault is not None:
        raise fault
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
    """Replace ``run/agent.json``; raises ``OSError``. No sync: it is of no use after a crash.

    A disk without room for a second file gets it written over the first: its blocks are there.
    """
    path = data_dir / REPORT_NAME
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


def _padded(text: bytes, size_bytes: int) -> bytes:
    """JSON may end with spaces; files of one length leave nothing of an earlier text behind."""
    return text.ljust(max(size_bytes, -len(text) // _BLOCK_BYTES * -_BLOCK_BYTES))


def read_report(data_dir: Path) -> dict[str, Any] | None:
    """What the agent wrote last, which may be long ago: see ``updated_at``."""
    try:
        found = orjson.loads((data_dir / REPORT_NAME).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _moment(epoch_s: float | None) -> str | None:
    return None if epoch_s is None else format_timestamp(epoch_s)
