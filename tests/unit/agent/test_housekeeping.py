"""What is removed from the spool, and what the agent says of itself."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from router.agent.housekeeping import (
    read_report,
    remove_acknowledged,
    sink_report,
    write_report,
)
from router.agent.shipper import Progress
from router.spool.frames import Position
from router.spool.reader import WriterInfo


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


class TestAFullDisk:
    """It has no room for a second file; the first one is written over."""

    @pytest.fixture(autouse=True)
    def full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "run").mkdir()
        write_report(tmp_path, {"sinks": {}, "why": "x" * 200})
        self.size_bytes = (tmp_path / "run" / "agent.json").stat().st_size

        def refuse(path: Path, _data: bytes) -> None:
            path.touch()
            raise OSError(errno.ENOSPC, "no space left on device")

        monkeypatch.setattr(Path, "write_bytes", refuse)

    @pytest.mark.parametrize("why", ["", "y" * 3000])
    def test_the_report_is_written_all_the_same(self, tmp_path: Path, why: str) -> None:
        """Within the room that it has; nothing of the old text is left, nor a half-made file."""
        write_report(tmp_path, {"sinks": {"a": 1}, "why": why})
        assert read_report(tmp_path) == {"sinks": {"a": 1}, "why": why}
        assert (tmp_path / "run" / "agent.json").stat().st_size == self.size_bytes
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["agent.json"]

    def test_without_a_first_one_it_is_said_why(self, tmp_path: Path) -> None:
        """The disk's own error, for the log."""
        (tmp_path / "run" / "agent.json").unlink()
        with pytest.raises(OSError, match="no space left"):
            write_report(tmp_path, {})


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]"])
def test_a_report_that_is_not_there_or_no_report_is_none(
    tmp_path: Path, content: bytes | None
) -> None:
    """Readers need not know why."""
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "agent.json").write_bytes(content)
    assert read_report(tmp_path) is None


def test_a_writer_that_cannot_be_cleared_keeps_no_others_segments() -> None:
    """Q7: what went wrong is raised when the rest is done."""

    class Stubborn(Spool):
        def remove_segment(self, writer_id: str, number: int) -> None:
            if writer_id == "a":
                raise PermissionError(13, "Permission denied")
            super().remove_segment(writer_id, number)

    spool = Stubborn()
    with pytest.raises(PermissionError):
        remove_acknowledged(spool, [at(a=3, b=10)])
    assert spool.removed == [("b", 7), ("b", 8), ("b", 9)]
