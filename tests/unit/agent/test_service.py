"""The agent as a whole, with a spool in which not everything is as it should be."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import orjson
import pytest

from router.agent.housekeeping import read_report
from router.agent.service import Agent, AgentConfig
from router.spool.frames import USAGE
from router.spool.writer import SpoolWriter
from router.store.record_store import RecordStore
from tests.unit.records import samples

STRANGER = "01a20b13a811-4141-23c9ccd0"


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
    (spool / STRANGER / "lock").mkdir(parents=True)
    writer = SpoolWriter(spool, max_bytes=1 << 30, background=False)
    writer.append([(USAGE, orjson.dumps(samples.usage()))])
    writer.close()
    with caplog.at_level(logging.INFO):
        assert run_agent(data_dir) < 4
    with RecordStore(f"sqlite:///{data_dir}/records.db", read_only=True) as store:
        assert store.count_usage() == 1
    assert not (spool / writer.writer_id).exists()
    (told,) = [one for one in caplog.records if one.message == "spool unreadable"]
    assert told.__dict__["writer_id"] == STRANGER
    (ended,) = [one for one in caplog.records if one.message == "agent ended"]
    assert ended.__dict__["left_bytes"] == 0
    report = read_report(data_dir)
    assert report is not None
    assert report["unreadable"] == [STRANGER]
    assert report["sinks"]["log"]["dropped"] == 0


def test_a_spool_that_cannot_be_listed_is_no_reason_not_to_end(
    data_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q5: the end takes the time that it has, and comes."""
    (data_dir / "spool").mkdir()

    def refuse(_self: object, path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("router.spool.disk.OsSpoolIO.list_dir", refuse)
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
