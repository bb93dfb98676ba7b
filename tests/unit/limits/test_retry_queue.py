"""Work that waits for Redis."""

from __future__ import annotations

import logging

import pytest

from router.breaker import Refused, Unavailable
from router.limits.retry_queue import MOST_FAILURES, RetryQueue, Work


class Log:
    """A Redis that can be away, and what it was told."""

    def __init__(self) -> None:
        self.away = True
        self.told: list[int] = []

    def work(self, number: int) -> Work:
        def tell() -> None:
            if self.away:
                raise Unavailable("redis", "timeout")
            self.told.append(number)

        return tell


def test_it_is_done_in_order_when_redis_is_back() -> None:
    """D5: nothing is done, and nothing lost, while it is away."""
    log, deferred = Log(), RetryQueue()
    for number in range(3):
        deferred.later(log.work(number))
    assert deferred.run() == 0
    assert len(deferred) == 3
    log.away = False
    assert deferred.run() == 3
    assert log.told == [0, 1, 2]
    assert len(deferred) == 0


def test_memory_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """P3: in a long outage the oldest goes first; it is counted, and said once."""
    caplog.set_level(logging.ERROR)
    log, deferred = Log(), RetryQueue(max_waiting=2)
    for number in range(5):
        deferred.later(log.work(number))
    assert (len(deferred), deferred.dropped) == (2, 3)
    assert len(caplog.records) == 1
    log.away = False
    deferred.run()
    assert log.told == [3, 4]


def test_what_fails_for_another_reason_does_not_block_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A defect in one is logged, and the next is done."""
    log, deferred = Log(), RetryQueue()
    log.away = False

    def broken() -> None:
        raise KeyError("no such window")

    deferred.later(broken)
    deferred.later(log.work(1))
    assert deferred.run() == 2
    assert log.told == [1]
    assert "deferred work failed" in caplog.text


def test_it_does_not_run_within_itself() -> None:
    """While one greenlet waits for Redis, another that comes by does nothing twice."""
    log, deferred = Log(), RetryQueue()
    log.away = False
    inner: list[int] = []

    def work() -> None:
        inner.append(deferred.run())

    deferred.later(work)
    deferred.later(log.work(1))
    assert deferred.run() == 2
    assert inner == [0]


def test_what_is_dropped_while_it_is_done_is_not_taken_for_the_next() -> None:
    """The oldest may make room in the very moment in which it is done."""
    log, deferred = Log(), RetryQueue(max_waiting=1)
    log.away = False
    deferred.later(lambda: deferred.later(log.work(2)))
    assert deferred.run() == 1
    assert deferred.run() == 1
    assert log.told == [2]


def test_one_dependency_does_not_wait_for_another() -> None:
    """What fails goes behind the rest; it used to hold up everything, for as long as it failed."""
    away, here, deferred = Log(), Log(), RetryQueue()
    here.away = False
    for number in range(2):
        deferred.later(away.work(number))
    for number in range(2, 5):
        deferred.later(here.work(number))
    assert deferred.run() == 3
    assert here.told == [2, 3, 4]
    away.away = False
    assert deferred.run() == 2
    assert away.told == [0, 1]


def test_an_outage_costs_no_more_than_it_takes_to_see_it() -> None:
    """However much waits: each failure may have taken a whole timeout."""
    log, deferred = Log(), RetryQueue()
    tried: list[int] = []

    def work(number: int) -> Work:
        def tell() -> None:
            tried.append(number)
            log.work(number)()

        return tell

    for number in range(10):
        deferred.later(work(number))
    assert deferred.run() == 0
    assert tried == list(range(MOST_FAILURES))
    assert len(deferred) == 10


def test_what_is_refused_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """A service that will never book it is not asked for ever; the log and a metric tell."""
    log, deferred = Log(), RetryQueue()
    log.away = False

    def refused() -> None:
        raise Refused("budget service", "lost", "answered 422")

    deferred.later(refused)
    deferred.later(log.work(1))
    assert deferred.run() == 2
    assert (log.told, len(deferred), deferred.dropped) == ([1], 0, 1)
    assert "answered 422" in caplog.text


def test_a_killed_greenlet_takes_nothing_along() -> None:
    """The worker ends while something is told: it is told once more at the very end."""
    deferred = RetryQueue()
    told: list[int] = []

    def killed() -> None:
        if not told:
            told.append(1)
            raise SystemExit

    deferred.later(killed)
    with pytest.raises(SystemExit):
        deferred.run()
    assert len(deferred) == 1
    assert deferred.run() == 1
