"""The agent as a whole, with a spool in which not everything is as it should be."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from router.agent.service import Agent, AgentConfig, remove_acknowledged
from router.agent.status import read_report
from router.spool.frames import USAGE, Position
from router.spool.reader import WriterInfo
from router.spool.writer import SpoolWriter
from router.store.record_store import RecordStore
from tests.unit.records import samples

OTHER_WRITER = "01a20b13a811-4141-23c9ccd0"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


def run_agent(data_dir: Path) -> float:
    """Ship what is there and end; the seconds that it took."""
    url = f"sqlite:///{data_dir}/records.db"
    agent = Agent(
        AgentConfig(data_dir=data_dir, record_store_url=url, audit_key=b"k" * 32, writers_wait_s=5)
    )
    agent.stop()
    began_s = time.monotonic()
    agent.run()
    return time.monotonic() - began_s


def test_a_lock_that_is_a_directory_stops_nobody(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Q5, Q7: it is told once; the rest is shipped and removed, and the end is in order."""
    spool = data_dir / "spool"
    (spool / OTHER_WRITER / "lock").mkdir(parents=True)
    writer = SpoolWriter(spool, max_bytes=1 << 30, background=False)
    writer.append([(USAGE, orjson.dumps(samples.usage()))])
    writer.close()
    with caplog.at_level(logging.INFO):
        assert run_agent(data_dir) < 4
    with RecordStore(f"sqlite:///{data_dir}/records.db", read_only=True) as store:
        assert store.count_usage() == 1
    assert not (spool / writer.writer_id).exists()
    (told,) = [one for one in caplog.records if one.message == "spool unreadable"]
    assert told.__dict__["writer_id"] == OTHER_WRITER
    (ended,) = [one for one in caplog.records if one.message == "agent ended"]
    assert ended.__dict__["left_bytes"] == 0
    report = read_report(data_dir)
    assert report is not None
    assert report["unreadable"] == [OTHER_WRITER]
    assert report["sinks"]["log"]["dropped"] == 0


def test_a_spool_that_cannot_be_listed_is_no_reason_not_to_end(
    data_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q5: the end takes the time that it has, and comes."""
    (data_dir / "spool").mkdir()

    def refuse(_self: object, path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("router.spool.disk.SpoolIO.list_dir", refuse)
    url = f"sqlite:///{data_dir}/records.db"
    config = AgentConfig(
        data_dir=data_dir,
        record_store_url=url,
        audit_key=b"k" * 32,
        writers_wait_s=0.1,
        drain_s=0.1,
    )
    agent = Agent(config)
    agent.stop()
    with caplog.at_level(logging.INFO):
        agent.run()
    (ended,) = [one for one in caplog.records if one.message == "agent ended"]
    assert ended.__dict__["left_bytes"] is None


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
