"""What is removed from the spool, and what the agent says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from router.accounting.spool_format import Position
from router.accounting.spool_reader import WriterInfo
from router.agent.housekeeping import (
    read_report,
    remove_acknowledged,
    sink_report,
    write_report,
)
from router.agent.shipper import Progress


@dataclass
class Spool:
    """Two writers with three segments each."""

    removed: list[tuple[str, int]] = field(default_factory=list)

    def writers(self) -> list[WriterInfo]:
        return [WriterInfo("a", True, (1, 2, 3)), WriterInfo("b", False, (7, 8, 9))]

    def remove_segment(self, writer_id: str, number: int) -> None:
        self.removed.append((writer_id, number))


def at(**segments: int) -> dict[str, Position]:
    """A checkpoint: of each writer, in the middle of a segment."""
    return {name: Position(name, segment, 100) for name, segment in segments.items()}


@pytest.mark.parametrize(
    ("saved", "removed"),
    [
        ([at(a=1, b=7)], []),
        ([at(a=3, b=10)], [("a", 1), ("a", 2), ("b", 7), ("b", 8), ("b", 9)]),
        ([at(a=3, b=10), at(a=2, b=8)], [("a", 1), ("b", 7)]),
        ([at(a=3, b=10), at(a=3)], [("a", 1), ("a", 2)]),
        ([at(a=3, b=10), {}], []),
    ],
)
def test_a_segment_goes_when_every_sink_has_passed_it(
    saved: list[dict[str, Position]], removed: list[tuple[str, int]]
) -> None:
    """U3: the slowest sink decides, and one that has no position yet is at the beginning."""
    spool = Spool()
    assert remove_acknowledged(spool, saved) == len(removed)
    assert spool.removed == removed


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    """It is how workers and operators learn that a sink is behind."""
    (tmp_path / "run").mkdir()
    progress = Progress(delivered=3, dead_lettered=1, failing="refused", failing_since_s=0.0)
    write_report(tmp_path, {"sinks": {"kafka": sink_report(progress, 17)}})
    assert read_report(tmp_path) == {
        "sinks": {
            "kafka": {
                "behind_bytes": 17,
                "delivered": 3,
                "dead_lettered": 1,
                "last_delivery_at": None,
                "failing": "refused",
                "failing_since": "1970-01-01T00:00:00.000000Z",
            }
        }
    }
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["agent.json"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]"])
def test_a_report_that_is_not_there_or_no_report_is_none(
    tmp_path: Path, content: bytes | None
) -> None:
    """Readers need not know why."""
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "agent.json").write_bytes(content)
    assert read_report(tmp_path) is None
