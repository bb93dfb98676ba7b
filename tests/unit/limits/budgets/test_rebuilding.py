"""A rebuild goes on without the calls that wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from router.breaker import Unavailable
from router.limits.budgets.rebuilding import Rebuilder
from router.limits.budgets.windows import ThresholdEvent, WindowSpec

SPEND = WindowSpec("spend", "usd", "daily", 1000, thresholds=(50,))


class Fixture:
    """A rebuilder whose tasks run when the test says so."""

    def __init__(self, stand: Any) -> None:
        self.tasks: list[Callable[[], None]] = []
        self.reported: list[ThresholdEvent] = []
        self.asked = 0
        self.answer: Callable[[], int] = lambda: 600
        self.stand = stand
        self.rebuilder = Rebuilder(
            stand.maintenance(),
            self.sum_records,
            wait_s=0.01,
            spawn=self.tasks.append,
            on_threshold=lambda _organization_id, event: self.reported.append(event),
        )

    def sum_records(self, _organization_id: str, _lost: Any) -> int:
        self.asked += 1
        return self.answer()

    def rebuild(self) -> tuple[ThresholdEvent, ...]:
        return self.rebuilder.rebuild("acme", [SPEND])

    def settled(self) -> int | None:
        [state] = self.stand.ledger().read("acme", [SPEND])
        return None if state.lost else state.settled


@pytest.fixture
def subject(stand: Any) -> Fixture:
    return Fixture(stand)


def test_a_rebuild_outlasts_the_calls_that_wait(subject: Fixture) -> None:
    """Years of records used to be read from the beginning by each call, and none was admitted."""
    for _ in range(3):
        with pytest.raises(Unavailable, match="being rebuilt"):
            subject.rebuild()
    [task] = subject.tasks
    task()
    assert (subject.asked, subject.settled()) == (1, 600)


def test_what_a_rebuild_reached_is_told_although_nobody_waits(subject: Fixture) -> None:
    """B18: the event is there once, by the report or by the call that waited."""
    with pytest.raises(Unavailable):
        subject.rebuild()
    subject.tasks.pop()()
    assert subject.reported == [ThresholdEvent(SPEND, 50)]


def test_who_waits_is_told_what_was_reached(subject: Fixture) -> None:
    """And then nobody else."""
    subject.rebuilder._spawn = lambda task: task()
    assert subject.rebuild() == (ThresholdEvent(SPEND, 50),)
    assert subject.reported == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Unavailable("record store", "timeout"), "timeout"), (ValueError("a bug"), "script")],
    ids=["unavailable", "bug"],
)
def test_whatever_stops_a_rebuild_is_unavailable(
    subject: Fixture, error: Exception, reason: str
) -> None:
    """A call gives back its id and its reservation for that, and for nothing else."""

    def fail() -> int:
        raise error

    subject.answer = fail
    subject.rebuilder._spawn = lambda task: task()
    with pytest.raises(Unavailable) as raised:
        subject.rebuild()
    assert raised.value.reason == reason
    subject.answer = lambda: 7
    subject.rebuilder._records._next_try_s = 0.0
    subject.rebuild()
    assert subject.settled() == 7


def test_a_call_that_is_killed_does_not_stop_the_rebuild(subject: Fixture) -> None:
    """It runs beside its callers, so the end of one of them is nothing to it."""
    release = threading.Event()
    threads: list[threading.Thread] = []

    def spawn(task: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=lambda: (release.wait(5), task())))
        threads[0].start()

    class Killed(BaseException):
        pass

    subject.rebuilder._spawn = spawn
    subject.rebuilder._wait_s = 5.0

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise Killed

    running: Any = None
    begin = subject.rebuilder._begin

    def begin_and_interrupt(given: Any, *facts: Any) -> None:
        nonlocal running
        running = given
        begin(given, *facts)
        given.done = Interrupted()

    subject.rebuilder._begin = begin_and_interrupt  # type: ignore[method-assign]
    with pytest.raises(Killed):
        subject.rebuild()
    release.set()
    threads[0].join(5)
    assert subject.settled() == 600
    assert subject.reported == [ThresholdEvent(SPEND, 50)]
