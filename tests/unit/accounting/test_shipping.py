"""What can be seen of an agent from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.accounting.shipping import AGENT_REPORT, Shipping, SinkState, look_at_shipping
from router.accounting.spool_format import QUARANTINE_NAME
from router.agent.housekeeping import sink_report, write_report
from router.agent.lock import AgentLock
from router.agent.shipper import Progress


def test_where_no_agent_ever_was(tmp_path: Path) -> None:
    """Nothing runs, nothing is known."""
    assert look_at_shipping(tmp_path, tmp_path / "spool") == Shipping(is_running=False)


def test_an_agent_is_known_by_its_lock(tmp_path: Path) -> None:
    """Looking does not take the lock, and a lock given back is no agent."""
    lock = AgentLock(tmp_path)
    assert lock.take()
    assert [look_at_shipping(tmp_path, tmp_path).is_running for _ in range(2)] == [True, True]
    lock.release()
    assert not look_at_shipping(tmp_path, tmp_path).is_running
    assert lock.take(), "a look leaves the lock free"
    lock.release()


def test_its_report_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Agent and reader agree on the place and on the fields."""
    (tmp_path / AGENT_REPORT).parent.mkdir()
    progress = Progress()
    progress.failing = "no broker"
    progress.dead_lettered = 3
    write_report(tmp_path, {"sinks": {"kafka": sink_report(progress, 512)}})
    seen = look_at_shipping(tmp_path, tmp_path)
    assert seen.sinks == {"kafka": SinkState(512, 3, "no broker")}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"sinks": []}', b'{"sinks": {"a": {}}}'])
def test_a_report_of_another_kind_says_nothing(tmp_path: Path, content: bytes) -> None:
    """Half a file or another version's is no reason to fail."""
    (tmp_path / AGENT_REPORT).parent.mkdir()
    (tmp_path / AGENT_REPORT).write_bytes(content)
    assert look_at_shipping(tmp_path, tmp_path).sinks == {}


def test_what_is_quarantined_is_measured(tmp_path: Path) -> None:
    """Whoever put it there, also before this agent began."""
    quarantine = tmp_path / QUARANTINE_NAME
    quarantine.mkdir()
    (quarantine / "w-1").write_bytes(b"12345")
    (quarantine / "w-2").write_bytes(b"678")
    assert look_at_shipping(tmp_path, tmp_path).quarantined_bytes == 8
