"""No retry storm: extra attempts are a share of the calls plus some a second (P11)."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.clock import FrozenClock
from router.upstream.retry_budget import MOST_SAVED, RetryBudget


def budget(clock: FrozenClock, *, share: float = 0.2, per_second: float = 10.0) -> RetryBudget:
    return RetryBudget(share=share, per_second=per_second, monotonic_s=clock.monotonic_s)


def taken(retries: RetryBudget, tries: int) -> int:
    return sum(retries.take() for _ in range(tries))


def test_a_quiet_worker_may_retry_ten_times_at_once() -> None:
    """One second's worth is there from the start."""
    assert taken(budget(FrozenClock()), 100) == 10


def test_five_calls_pay_for_one_retry() -> None:
    """The share is 20 % exactly."""
    retries = budget(FrozenClock(), per_second=0.0)
    granted = []
    for _ in range(20):
        retries.count_call()
        granted.append(retries.take())
    assert granted == [False, False, False, False, True] * 4


def test_time_pays_for_retries() -> None:
    """Ten a second, at any fraction of one."""
    clock = FrozenClock()
    retries = budget(clock, share=0.0)
    taken(retries, 100)
    clock.advance(0.0625)
    assert taken(retries, 100) == 0
    clock.advance(0.0625)
    assert taken(retries, 100) == 1
    clock.advance(2.0)
    assert taken(retries, 100) == 20


@pytest.mark.parametrize("idle_s", [10.0, 3600.0])
def test_savings_are_bounded(idle_s: float) -> None:
    """A quiet night does not pay for a storm in the morning."""
    clock = FrozenClock()
    retries = budget(clock)
    for _ in range(10_000):
        retries.count_call()
    clock.advance(idle_s)
    assert taken(retries, 1000) == MOST_SAVED


def test_a_worker_s_part_is_its_share_of_the_ten() -> None:
    """Four workers together have what one would have."""
    clock = FrozenClock()
    workers = [budget(clock, per_second=2.5) for _ in range(4)]
    assert sum(taken(retries, 100) for retries in workers) == 8  # 2.5 each, in whole retries
    clock.advance(10.0)
    assert sum(taken(retries, 100) for retries in workers) == 4 * 25


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 50), st.integers(0, 40)), max_size=40))
def test_retries_never_exceed_their_share(rounds: list[tuple[int, int, int]]) -> None:
    """Whatever arrives when: retries ≤ 20 % of calls + 10 a second + the first second's ten."""
    clock = FrozenClock()
    retries = budget(clock)
    calls = granted = 0
    passed_s = Fraction(0)
    for quarters, made, wanted in rounds:
        clock.advance(quarters / 4)
        passed_s += Fraction(quarters, 4)
        for _ in range(made):
            retries.count_call()
        calls += made
        granted += taken(retries, wanted)
        assert granted <= Fraction(calls, 5) + 10 * passed_s + 10


def test_a_storm_is_held_to_the_promise() -> None:
    """A minute of 1 000 failing calls a second, each of which would like two retries."""
    clock = FrozenClock()
    retries = budget(clock)
    attempts = 0
    for _ in range(60_000):
        clock.advance(0.001)
        retries.count_call()
        attempts += 1 + taken(retries, 2)
    assert attempts <= 1.2 * 60_000 + 10 * 60 + 10
    assert attempts >= 1.2 * 60_000 + 10 * 60 - 1  # and the entitlement is used
