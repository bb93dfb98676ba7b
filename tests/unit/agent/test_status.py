"""What can be seen of an agent from outside."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.agent.lock import AGENT_LOCK, AgentLock
from router.agent.shipper import Progress, sink_report
from router.agent.status import (
    AGENT_REPORT,
    Shipping,
    SinkState,
    observe_shipping,
    read_report,
    write_report,
)
from router.clock import FrozenClock
from router.records.record_types import format_timestamp
from router.spool.frames import QUARANTINE_NAME


def test_where_no_agent_ever_was(tmp_path: Path) -> None:
    """Nothing runs, nothing is known."""
    assert observe_shipping(tmp_path, tmp_path / "spool") == Shipping(is_running=False)


def test_an_agent_is_known_by_its_lock(tmp_path: Path) -> None:
    """Looking does not take the lock, and a lock given back is no agent."""
    lock = AgentLock(tmp_path)
    assert lock.take()
    assert [observe_shipping(tmp_path, tmp_path).is_running for _ in range(2)] == [True, True]
    lock.release()
    assert not observe_shipping(tmp_path, tmp_path).is_running
    assert lock.take(), "a look leaves the lock free"
    lock.release()


def test_its_report_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Agent and reader agree on the place and on the fields."""
    (tmp_path / AGENT_REPORT).parent.mkdir()
    progress = Progress()
    progress.failing = "no broker"
    progress.dead_lettered = 3
    write_report(tmp_path, {"sinks": {"kafka": sink_report(progress, 512)}})
    seen = observe_shipping(tmp_path, tmp_path)
    assert seen.sinks == {"kafka": SinkState(512, 3, "no broker")}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"sinks": []}', b'{"sinks": {"a": {}}}'])
def test_a_report_of_another_kind_says_nothing(tmp_path: Path, content: bytes) -> None:
    """Half a file or another version's is no reason to fail."""
    (tmp_path / AGENT_REPORT).parent.mkdir()
    (tmp_path / AGENT_REPORT).write_bytes(content)
    assert observe_shipping(tmp_path, tmp_path).sinks == {}


def test_what_is_quarantined_is_measured(tmp_path: Path) -> None:
    """Whoever put it there, also before this agent began."""
    quarantine = tmp_path / QUARANTINE_NAME
    quarantine.mkdir()
    (quarantine / "w-1").write_bytes(b"12345")
    (quarantine / "w-2").write_bytes(b"678")
    assert observe_shipping(tmp_path, tmp_path).quarantined_bytes == 8


class TestAnAgentThatRuns:
    """Its report is looked at for its age: on a full disk it may be of long ago."""

    @pytest.fixture(autouse=True)
    def lock(self, tmp_path: Path) -> Iterator[None]:
        lock = AgentLock(tmp_path)
        assert lock.take()
        yield
        lock.release()

    def look(self, tmp_path: Path, later_s: float) -> Shipping:
        clock = FrozenClock(wall_s=(tmp_path / AGENT_LOCK).stat().st_mtime + later_s)
        return observe_shipping(tmp_path, tmp_path, clock)

    def report(self, tmp_path: Path, later_s: float, failing: str | None = None) -> None:
        said = sink_report(Progress(failing=failing), 0)
        at_s = (tmp_path / AGENT_LOCK).stat().st_mtime + later_s
        write_report(tmp_path, {"updated_at": format_timestamp(at_s), "sinks": {"store": said}})

    def test_it_says_how_it_is(self, tmp_path: Path) -> None:
        """A report of up to five seconds ago counts."""
        self.report(tmp_path, 100.0)
        seen = self.look(tmp_path, 104.9)
        assert (seen.silent_s, seen.sinks["store"].failing) == (None, None)

    def test_after_five_seconds_nothing_of_it_is_believed(self, tmp_path: Path) -> None:
        """It used to count as well for as long as its process lived."""
        self.report(tmp_path, 100.0)
        seen = self.look(tmp_path, 107.0)
        assert seen.silent_s == pytest.approx(7.0, abs=0.01)
        assert seen.sinks["store"].failing == "the agent has not reported for 7 s"

    def test_what_it_said_itself_is_kept(self, tmp_path: Path) -> None:
        """The reason that it gave is the better one."""
        self.report(tmp_path, 100.0, failing="no broker")
        assert self.look(tmp_path, 107.0).sinks["store"].failing == "no broker"

    def test_it_is_given_the_time_to_begin(self, tmp_path: Path) -> None:
        """The report of an agent that ended long ago is not held against it."""
        self.report(tmp_path, -1000.0)
        assert self.look(tmp_path, 4.9).silent_s is None
        assert self.look(tmp_path, 6.0).silent_s == pytest.approx(6.0, abs=0.01)

    def test_one_that_never_reports_is_silent_too(self, tmp_path: Path) -> None:
        """As on a disk that was full before it began."""
        assert self.look(tmp_path, 4.9).silent_s is None
        assert self.look(tmp_path, 6.0).silent_s == pytest.approx(6.0, abs=0.01)


def test_no_agent_is_not_called_silent(tmp_path: Path) -> None:
    """Where none runs, that is what is wrong."""
    (tmp_path / AGENT_REPORT).parent.mkdir()
    write_report(tmp_path, {"updated_at": "2020-01-01T00:00:00.000000Z", "sinks": {}})
    assert observe_shipping(tmp_path, tmp_path).silent_s is None


# --- the report's file ----------------------------------------------------------------------


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
