"""One agent for each data directory."""

from __future__ import annotations

import os
from pathlib import Path

from router.agent.lock import AgentLock


def test_one_takes_it_and_nobody_else(tmp_path: Path) -> None:
    """The file tells who has it."""
    first, second = AgentLock(tmp_path), AgentLock(tmp_path)
    assert not second.is_held()
    assert first.take()
    assert not second.take(pause=lambda _seconds: None)
    assert second.is_held()
    assert int((tmp_path / "run" / "agent.lock").read_text()) == os.getpid()
    first.release()
    assert not second.is_held()
    assert second.take()
    second.release()


def test_asking_whether_it_is_held_does_not_stop_who_takes_it(tmp_path: Path) -> None:
    """A supervisor asks every second, and holds the lock itself while it asks."""
    lock, supervisor = AgentLock(tmp_path), AgentLock(tmp_path)
    assert supervisor.take()
    assert lock.take(pause=lambda _seconds: supervisor.release())
    lock.release()


def test_giving_it_back_twice_is_harmless(tmp_path: Path) -> None:
    """Also when it was never taken."""
    lock = AgentLock(tmp_path)
    lock.release()
    assert lock.take()
    lock.release()
    lock.release()
    assert not lock.is_held()
