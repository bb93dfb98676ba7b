"""Waiting for running calls: bounded in time, in number and in questions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from router.limits.settlement_wait import SettlementWait


class Time:
    """A clock that goes on only while somebody waits; events wait on it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.waits: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def monotonic_s(self) -> float:
        return self.now_s

    def event(self) -> TimedEvent:
        return TimedEvent(self)


class TimedEvent:
    def __init__(self, time: Time) -> None:
        self._time = time
        self._is_set = False

    def wait(self, timeout: float) -> bool:
        self._time.meanwhile()
        if not self._is_set:
            self._time.waits.append(timeout)
            self._time.now_s += timeout
        return self._is_set

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False


@pytest.fixture
def time() -> Time:
    return Time()


def wait(time: Time, wait_s: float = 0.05, **bounds: int) -> SettlementWait:
    return SettlementWait(wait_s, monotonic_s=time.monotonic_s, event=time.event, **bounds)


def test_the_pauses_double_until_the_time_is_up(time: Time) -> None:
    """5, 10, 20 and the 15 ms that are left of 50: four questions, the last one at the end."""
    turns = list(wait(time).turns("acme"))
    assert len(turns) == 4
    assert time.waits == pytest.approx([0.005, 0.010, 0.020, 0.015])


def test_nobody_waits_where_that_is_switched_off(time: Time) -> None:
    """``ROUTER_BUDGET_WAIT=0``: refused at once."""
    assert list(wait(time, 0.0).turns("acme")) == []
    assert time.waits == []


def test_a_settlement_wakes_a_call_of_its_organization(time: Time) -> None:
    """At once, and the pause does not grow; that of another organization wakes nobody."""
    subject = wait(time)
    turns = subject.turns("acme")
    time.meanwhile = lambda: subject.settled("acme")
    next(turns)
    assert time.waits == []
    time.meanwhile = lambda: subject.settled("globex")
    next(turns)
    assert time.waits == [0.005]


def test_each_settlement_wakes_one_in_turn(time: Time) -> None:
    """Two wait: two settlements ask the counters twice, not four times."""
    subject = wait(time)
    first, second = subject.turns("acme"), subject.turns("acme")
    next(first), next(second)
    time.waits.clear()
    subject.settled("acme")
    subject.settled("acme")
    next(first), next(second)
    assert time.waits == []


@pytest.mark.parametrize(
    ("bounds", "organizations", "places"),
    [
        ({"most_of_one": 2}, ["acme"] * 4, 2),
        ({"most_of_one": 2}, ["acme", "globex"] * 3, 4),
        ({"most_waiting": 3}, ["a", "b", "c", "d", "e"], 3),
    ],
)
def test_only_so_many_wait(
    time: Time, bounds: dict[str, int], organizations: list[str], places: int
) -> None:
    """One organization cannot take every place, all together not more than there are."""
    subject = wait(time, **bounds)
    waiting = [subject.turns(organization) for organization in organizations]
    began = [turns for turns in waiting if next(turns, "full") != "full"]
    assert len(began) == places
    assert subject.outcomes == {"full": len(organizations) - places}
    for turns in began:
        turns.close()
    assert next(subject.turns(organizations[-1]), "full") is None, "a place that was left is free"
