"""The supervisor: starts an agent where there is none, never a second one, failing ones later."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from router.agent import supervisor as supervisor
from router.agent.lock import AgentLock
from router.agent.supervisor import LONGEST_PAUSE_S, AgentSupervisor
from router.clock import FrozenClock


@dataclass
class Process:
    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        return self.code


class Desk:
    """A supervisor whose agents are started on paper; they hold the lock when a test says so."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.clock = FrozenClock()
        self.started: list[Process] = []
        self.fault: OSError | None = None
        self.lock = AgentLock(data_dir)
        self.supervisor = self.new_supervisor()

    def new_supervisor(self) -> AgentSupervisor:
        return AgentSupervisor(self.data_dir, self._spawn, clock=self.clock)

    def tick(self, seconds: float = 1.0) -> int:
        """Let time pass, tick, and tell how many agents were started so far."""
        self.clock.advance(seconds)
        self.supervisor.tick()
        return len(self.started)

    def _spawn(self) -> Process:
        if self.fault is not None:
            raise self.fault
        self.started.append(Process(100 + len(self.started)))
        return self.started[-1]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_an_agent_is_started_where_there_is_none(desk: Desk) -> None:
    """At the first look, also while it is still on its way to its lock."""
    assert desk.tick() == 1
    assert desk.tick() == 1


def test_an_agent_that_somebody_else_started_will_do(desk: Desk) -> None:
    """An earlier worker's, or an operator's."""
    assert desk.lock.take()
    assert desk.tick() == 0
    desk.lock.release()
    assert desk.tick() == 1


def test_two_supervisors_make_no_second_agent(desk: Desk) -> None:
    """The lowest slot changes hands while the agent of the first supervisor runs."""
    desk.tick()
    assert desk.lock.take()
    desk.supervisor = desk.new_supervisor()
    assert desk.tick() == 1
    desk.lock.release()


def test_of_supervisors_that_begin_together_one_starts_an_agent(desk: Desk) -> None:
    """Each worker has a supervisor, and a start takes a core for half a second."""
    workers = [desk.new_supervisor() for _ in range(4)] * 2
    for worker in workers:
        worker.tick()
    assert len(desk.started) == 1
    desk.started[0].code = -signal.SIGKILL
    for worker in workers:
        worker.tick()
    assert len(desk.started) == 2


def test_a_start_that_fails_leaves_the_next_to_another_supervisor(desk: Desk) -> None:
    """It may have more luck."""
    desk.fault = OSError(12, "Cannot allocate memory")
    desk.tick()
    desk.fault = None
    desk.new_supervisor().tick()
    assert len(desk.started) == 1


def test_a_killed_agent_is_replaced_at_the_next_tick(desk: Desk) -> None:
    """P1: however often, within about two seconds each time."""
    for count in range(1, 6):
        assert desk.tick() == count
        desk.started[-1].code = -signal.SIGKILL


def test_an_agent_that_gives_up_is_started_again_after_a_growing_pause(desk: Desk) -> None:
    """A wrong setting must not keep a core busy; the pauses are in whole ticks here."""
    pauses = []
    for count in range(1, 9):
        waited = 0
        while desk.tick() < count:
            waited += 1
        desk.started[-1].code = 1
        pauses.append(waited)
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30]
    assert max(pauses) == LONGEST_PAUSE_S


def test_an_agent_that_ended_in_order_is_replaced(desk: Desk) -> None:
    """Somebody asked it to end; the records that come now need another."""
    desk.tick()
    desk.started[0].code = 0
    assert desk.tick() == 2


def test_a_start_that_fails_is_tried_again(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """No memory now may be memory later; the worker itself goes on."""
    desk.fault = OSError(12, "Cannot allocate memory")
    assert desk.tick() == 0
    desk.fault = None
    assert desk.tick(2.0) == 1
    assert "Cannot allocate memory" in vars(caplog.records[0])["reason"]


class TestTheEnd:
    """A gateway that ends has its agent ship what is left."""

    @pytest.fixture
    def signals(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
        sent: list[tuple[int, int]] = []
        monkeypatch.setattr(
            "router.agent.supervisor.os.kill", lambda pid, number: sent.append((pid, number))
        )
        return sent

    @pytest.fixture(autouse=True)
    def ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            supervisor, "_serves", lambda pid, master: (pid, master) == (os.getpid(), 7)
        )

    def test_the_agent_of_another_gateway(
        self, tmp_path: Path, signals: list[tuple[int, int]]
    ) -> None:
        """It goes on serving the one that started it."""
        lock = AgentLock(tmp_path)
        assert lock.take()
        assert supervisor.end_agent(tmp_path, 5.0, master_pid=8, pause=_never)
        assert signals == []
        lock.release()

    def test_without_an_agent(self, tmp_path: Path, signals: list[tuple[int, int]]) -> None:
        """There is nobody to tell, and nothing to wait for."""
        assert supervisor.end_agent(tmp_path, 5.0, master_pid=7, pause=_never)
        assert signals == []

    def test_it_is_told_once_and_waited_for(
        self, tmp_path: Path, signals: list[tuple[int, int]]
    ) -> None:
        """A second TERM would mean that it shall hurry."""
        lock = AgentLock(tmp_path)
        assert lock.take()
        pauses = iter([None, None, lock.release])

        def pause(_seconds: float) -> None:
            act = next(pauses)
            if act is not None:
                act()

        assert supervisor.end_agent(tmp_path, 5.0, master_pid=7, pause=pause)
        assert signals == [(os.getpid(), signal.SIGTERM)]

    def test_one_that_takes_too_long_is_left_alone(
        self, tmp_path: Path, signals: list[tuple[int, int]]
    ) -> None:
        """What it has not shipped stays on the disk, and it goes on by itself."""
        lock = AgentLock(tmp_path)
        assert lock.take()
        waited: list[float] = []
        assert not supervisor.end_agent(tmp_path, 2.0, master_pid=7, pause=waited.append)
        assert sum(waited) == pytest.approx(2.0)
        lock.release()

    def test_one_that_ended_just_then(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the look at its lock and the signal."""
        lock = AgentLock(tmp_path)
        assert lock.take()

        def gone(_pid: int, _number: int) -> None:
            lock.release()
            raise ProcessLookupError

        monkeypatch.setattr("router.agent.supervisor.os.kill", gone)
        assert supervisor.end_agent(tmp_path, 5.0, master_pid=7, pause=_never)


def _never(_seconds: float) -> None:
    raise AssertionError("there is nothing to wait for")
