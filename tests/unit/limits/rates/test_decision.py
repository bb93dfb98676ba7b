"""Rate limits as values: what is accepted, what a status says, which refusal binds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.limits.rates.decision import (
    MAX_TOKENS,
    MICRO,
    BucketSpec,
    LimitStatus,
    SlotSpec,
    bucket_status,
    decide,
    slot_status,
)

ORG = BucketSpec("org", (), 100.0, 200)


def status(name: str, *, passed: bool, retry: int | None, enforced: bool = True) -> LimitStatus:
    return LimitStatus(name, 10, 0, 1, retry, passed, False, enforced)


@pytest.mark.parametrize("wrong", [{"rate_per_s": -0.1}, {"burst": -1}, {"burst": MAX_TOKENS + 1}])
def test_what_cannot_be_counted_is_refused(wrong: dict[str, float]) -> None:
    """B11: nothing negative, and nothing whose millionths leave 53 bits."""
    with pytest.raises(ValueError, match="org"):
        replace(ORG, **wrong)  # type: ignore[arg-type]


def test_a_negative_number_of_slots_is_refused() -> None:
    """B11: the same for calls at once."""
    with pytest.raises(ValueError, match="calls"):
        SlotSpec("calls", (), -1)


def test_rates_are_rounded_down() -> None:
    """R1: a third of a token a second is never more than that."""
    assert BucketSpec("org", (), 1 / 3, 1).rate_micro == 333_333


@pytest.mark.parametrize(
    ("rate", "burst", "window_s"), [(100.0, 200, 2), (3.0, 10, 4), (0.0, 10, None), (5.0, 0, None)]
)
def test_the_window_is_the_time_to_fill(rate: float, burst: int, window_s: int | None) -> None:
    """R9: what `RateLimit-Policy` tells as `w`."""
    assert BucketSpec("org", (), rate, burst).window_s == window_s


def test_the_longest_wait_binds_and_for_ever_is_longest() -> None:
    """R2: a limit that no wait will help comes before any other."""
    short, long = status("a", passed=False, retry=1), status("b", passed=False, retry=9)
    never = status("c", passed=False, retry=None)
    assert decide((short, long)).binding == long
    assert decide((short, never, long)).binding == never
    assert decide((never,)).retry_after_s is None


def test_shadow_limits_never_bind() -> None:
    """They are told apart, so that they can be counted."""
    shadow = status("a", passed=False, retry=9, enforced=False)
    decision = decide((shadow, status("b", passed=True, retry=None)))
    assert decision.allowed
    assert decision.shadow_denied == (shadow,)


def test_nothing_asked_is_allowed() -> None:
    """A key without limits has none."""
    assert decide(()).allowed


@given(level=st.integers(-10 * MICRO, 10 * MICRO), late_us=st.integers(0, 10_000_000))
def test_what_is_told_is_enough(level: int, late_us: int) -> None:
    """R9: after the wait that is told the cost is there; it is whole seconds, from 1."""
    spec = BucketSpec("key", (), 3.0, 10, cost=2)
    found = bucket_status(spec, level_micro=level, passed=level >= 2 * MICRO, late_us=late_us)
    if found.passed:
        assert found.retry_after_s is None
        return
    assert found.retry_after_s is not None
    assert found.retry_after_s >= 1
    flows_us = found.retry_after_s * MICRO - late_us
    assert level + flows_us * 3 >= 2 * MICRO
    assert 0 <= found.remaining <= 10


def test_slots_tell_how_many_are_free() -> None:
    """R8: also when more are in use than allowed, because the limit was lowered."""
    spec = SlotSpec("calls", (), 2)
    assert slot_status(spec, in_use=1, passed=True).remaining == 1
    over = slot_status(spec, in_use=5, passed=False)
    assert (over.remaining, over.retry_after_s) == (0, 1)
    assert slot_status(SlotSpec("calls", (), 0), in_use=0, passed=False).retry_after_s is None
