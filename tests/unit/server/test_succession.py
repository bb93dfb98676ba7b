"""What the master does between the start of new workers and the end of old ones."""

from __future__ import annotations

import queue
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from router.server import succession
from router.server.succession import SUCCEEDED, await_successors

ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]


class Master:
    """gunicorn's, as far as it is asked: an old worker, and one that boots after some looks."""

    def __init__(self, boots_after: int | None) -> None:
        self.num_workers = 1
        self.SIG_QUEUE: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.WORKERS = {10: self._worker(10, 1, 5.0), 11: self._worker(11, 2, 7.0)}
        self.said: list[Any] = []
        self._boots_after = boots_after
        self._looks = 0

    def _worker(self, pid: int, age: int, beat: float) -> Any:
        tmp = SimpleNamespace(last_update=lambda: beat if age == 1 else self._beat())
        return SimpleNamespace(pid=pid, age=age, forked_s=1.0 if age == 1 else 7.0, tmp=tmp)

    def _beat(self) -> float:
        has_booted = self._boots_after is not None and self._looks >= self._boots_after
        return 9.0 if has_booted else 7.0

    def reap_workers(self) -> None:
        self._looks += 1

    def kill_worker(self, pid: int, sig: int) -> None:
        self.said.append((pid, sig))

    def manage_workers(self) -> None:
        self.said.append("ends the old ones")


def managed(master: Any) -> list[Any]:
    await_successors(master)
    master.manage_workers()
    found: list[Any] = master.said
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession, "_POLL_S", 0.0001)
    monkeypatch.setattr(succession, "BOOT_LIMIT_S", 0.02)


def test_old_workers_are_told_when_new_ones_serve() -> None:
    """And only then are they ended."""
    assert managed(Master(boots_after=3)) == [(10, SUCCEEDED), "ends the old ones"]


def test_workers_that_do_not_boot_are_not_waited_for_without_end() -> None:
    """The old ones have no successor then, and end as they do at a shutdown."""
    assert managed(Master(boots_after=None)) == ["ends the old ones"]


@pytest.mark.parametrize("ending", ENDING)
def test_a_shutdown_waits_for_nobody(ending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its signal, and those before it, are still there for the master."""
    monkeypatch.setattr(succession, "BOOT_LIMIT_S", 60.0)
    master = Master(boots_after=None)
    for each in (signal.SIGHUP, ending):
        master.SIG_QUEUE.put(each)
    assert managed(master) == ["ends the old ones"]
    assert [master.SIG_QUEUE.get_nowait() for _ in range(2)] == [signal.SIGHUP, ending]


def test_nobody_is_told_when_none_is_too_many() -> None:
    """As every second, without a reload."""
    master = Master(boots_after=None)
    del master.WORKERS[10]
    assert managed(master) == ["ends the old ones"]
