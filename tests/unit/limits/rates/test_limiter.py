"""The rate limiter's script through the limiter: token buckets and slots, all or none."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.limits.rates.decision import (
    MAX_TOKENS,
    BucketSpec,
    Correction,
    SlotSpec,
    corrections,
    unheard,
)

ORG = BucketSpec("org", (), 10.0, 20)
KEY = BucketSpec("key", ("k1",), 5.0, 5)
SLOTS = SlotSpec("calls", ("k1",), 2)

# The fixture empties Redis once for a test, so each example uses an organization of its own.
EACH_EXAMPLE_ITS_OWN = [HealthCheck.function_scoped_fixture]


def test_a_bucket_admits_its_burst_and_then_its_rate(stand: Any) -> None:
    """R1: burst at once, then one call for each token that flows in, exactly."""
    limiter = stand.limiter()
    admitted = [limiter.take("acme", [KEY]).allowed for _ in range(8)]
    assert admitted == [True] * 5 + [False] * 3
    stand.clock.advance(0.2)
    assert [limiter.take("acme", [KEY]).allowed for _ in range(2)] == [True, False]
    stand.clock.advance(3600)
    assert sum(limiter.take("acme", [KEY]).allowed for _ in range(20)) == 5


def test_a_refused_call_changes_nothing_anywhere(stand: Any) -> None:
    """R2: the org's bucket and the slots are byte-identical when the key's bucket refuses."""
    limiter = stand.limiter()
    for call in range(5):
        limiter.take("acme", [ORG, KEY], [SlotSpec("calls", (), 9)], lease_id=f"lease{call}")
    stand.clock.advance(0.05)
    before = stand.dump()
    decision = limiter.take("acme", [ORG, KEY], [SlotSpec("calls", (), 9)], lease_id="late")
    assert not decision.allowed
    assert stand.dump() == before


def test_the_binding_limit_is_the_one_with_the_longest_wait(stand: Any) -> None:
    """R2: of several limits that refuse, the answer names the one that keeps the caller longest."""
    limiter = stand.limiter()
    slow = BucketSpec("slow", (), 0.1, 1)
    fast = BucketSpec("fast", (), 0.5, 1)
    assert limiter.take("acme", [fast, slow]).allowed
    decision = limiter.take("acme", [fast, slow])
    assert decision.binding is not None
    assert (decision.binding.name, decision.retry_after_s) == ("slow", 10)
    assert [status.retry_after_s for status in decision.statuses] == [2, 10]


def test_a_limit_of_zero_blocks(stand: Any) -> None:
    """B11: rate or burst 0 refuses every call, and no wait is promised."""
    limiter = stand.limiter()
    for spec in (replace(KEY, rate_per_s=0.0), replace(KEY, burst=0)):
        decision = limiter.take("acme", [spec])
        assert not decision.allowed
        assert decision.binding is not None
        assert decision.binding.blocked
        assert decision.retry_after_s is None
    blocked = limiter.take("acme", [], [SlotSpec("calls", (), 0)], lease_id="a")
    assert not blocked.allowed
    assert stand.key_names() == []


def test_no_limit_asks_nothing(stand: Any) -> None:
    """B11: absent limits admit without a round trip."""
    limiter = stand.limiter()
    unlimited = [replace(ORG, rate_per_s=None)]
    assert limiter.take("acme", unlimited, [SlotSpec("calls", (), None)]).allowed
    assert stand.calls == 0


def test_statuses_tell_limit_remaining_and_reset(stand: Any) -> None:
    """R9: the figures for the headers, after the call was charged."""
    [status] = stand.limiter().take("acme", [ORG]).statuses
    assert (status.name, status.limit, status.remaining, status.reset_after_s) == ("org", 20, 19, 1)


def test_peek_answers_without_charging(stand: Any) -> None:
    """`GET /v1/limits` reads the enforcing buckets and leaves them as they are."""
    limiter = stand.limiter()
    limiter.take("acme", [ORG], [SLOTS], lease_id="a")
    before = stand.dump()
    decision = limiter.peek("acme", [ORG], [SLOTS])
    assert [status.remaining for status in decision.statuses] == [19, 1]
    assert stand.dump() == before


def test_a_shadow_limit_refuses_nothing_and_says_what_it_would_have_done(stand: Any) -> None:
    """T023: shadow mode counts, and is charged only as far as it would have admitted."""
    limiter = stand.limiter()
    shadow = replace(KEY, burst=1, enforced=False)
    decisions = [limiter.take("acme", [ORG, shadow]) for _ in range(3)]
    assert [decision.allowed for decision in decisions] == [True] * 3
    assert [len(decision.shadow_denied) for decision in decisions] == [0, 1, 1]
    assert limiter.peek("acme", [ORG]).statuses[0].remaining == 17
    stand.clock.advance(0.2)
    assert not limiter.take("acme", [ORG, shadow]).shadow_denied


def test_organizations_and_names_do_not_meet(stand: Any) -> None:
    """A part with the separator in it is not another list of parts."""
    limiter = stand.limiter()
    one = BucketSpec("key", ("a:b",), 1.0, 1)
    other = BucketSpec("key", ("a", "b"), 1.0, 1)
    assert limiter.take("acme", [one]).allowed
    assert limiter.take("acme", [other]).allowed
    assert limiter.take("globex", [one]).allowed
    assert not limiter.take("acme", [one]).allowed


@pytest.mark.parametrize("organization", ["", "a{b", "a}b"])
def test_an_organization_that_breaks_the_hash_tag_is_refused(stand: Any, organization: str) -> None:
    """R5: its keys would lie in slots of their own, or in everybody's."""
    with pytest.raises(ValueError, match="hash tag"):
        stand.limiter().take(organization, [ORG])


def test_tokens_are_settled_after_an_estimate(stand: Any) -> None:
    """Too little was estimated: the bucket owes, and refuses until the debt has flowed in."""
    limiter = stand.limiter()
    tokens = BucketSpec("tokens", ("k1",), 100.0, 1000, cost=300)
    assert limiter.take("acme", [tokens]).allowed
    limiter.finish("acme", [Correction(tokens, 900)])
    decision = limiter.take("acme", [replace(tokens, cost=100)])
    assert not decision.allowed
    assert decision.retry_after_s == 3
    stand.clock.advance(3)
    assert limiter.take("acme", [replace(tokens, cost=100)]).allowed


def test_what_was_estimated_too_high_is_given_back(stand: Any) -> None:
    """Nobody pays for tokens that were not used, and no bucket overflows."""
    limiter = stand.limiter()
    tokens = BucketSpec("tokens", ("k1",), 1.0, 1000, cost=800)
    limiter.take("acme", [tokens])
    limiter.finish("acme", [Correction(tokens, -700)])
    assert limiter.peek("acme", [tokens]).statuses[0].remaining == 900
    limiter.finish("acme", [Correction(tokens, -700)])
    assert limiter.peek("acme", [tokens]).statuses[0].remaining == 1000


def test_giving_back_to_a_full_bucket_makes_no_key(stand: Any) -> None:
    """A bucket that has filled up and expired needs no state to be full."""
    stand.limiter().finish("acme", [Correction(KEY, -3)])
    assert stand.key_names() == []


def test_a_correction_may_stop_at_zero(stand: Any) -> None:
    """What workers tell after an outage empties a bucket at most."""
    limiter = stand.limiter()
    limiter.finish("acme", [Correction(KEY, 50, may_owe=False)])
    stand.clock.advance(0.2)
    assert limiter.take("acme", [KEY]).allowed


@pytest.mark.parametrize("enforced", [True, False])
def test_a_cost_above_the_burst_is_refused_and_never_a_debt(stand: Any, enforced: bool) -> None:
    """A call of more tokens than a minute's used to empty the bucket far below zero, and others
    waited for years. In shadow it passes, told of, and takes nothing."""
    limiter = stand.limiter()
    large = BucketSpec("tokens", (), 10.0, 100, cost=10**9, enforced=enforced)
    decision = limiter.take("acme", [large])
    assert (decision.allowed, decision.retry_after_s) == (not enforced, None)
    assert [status.name for status in decision.shadow_denied] == ([] if enforced else ["tokens"])
    assert limiter.take("acme", [replace(large, cost=100)]).statuses[0].passed


def test_a_clock_that_goes_back_brings_nothing_and_takes_nothing(stand: Any) -> None:
    """R4: timestamps are monotone; the wait that is told covers the clock's delay too."""
    limiter = stand.limiter()
    for _ in range(5):
        limiter.take("acme", [KEY])
    stand.clock.advance(-10)
    decision = limiter.take("acme", [KEY])
    assert not decision.allowed
    assert decision.retry_after_s == 11
    stand.clock.advance(11)
    assert limiter.take("acme", [KEY]).allowed


def test_a_key_outlives_the_time_it_takes_to_fill(stand: Any) -> None:
    """R4: idle gaps around the lifetime make no difference, because an absent bucket is full."""
    limiter = stand.limiter()
    slow = BucketSpec("slow", (), 0.5, 100, cost=100)
    limiter.take("acme", [slow])
    [key] = stand.key_names()
    assert 200_000 <= stand.client.execute_command("PTTL", key) <= 201_001


def test_the_largest_bucket_keeps_its_microseconds(stand: Any) -> None:
    """Nine billion tokens are counted to the millionth: 2^53 is not left."""
    limiter = stand.limiter()
    huge = BucketSpec("huge", (), float(MAX_TOKENS), MAX_TOKENS, cost=MAX_TOKENS)
    assert limiter.take("acme", [huge]).allowed
    stand.clock.advance(0.000001)
    level = stand.client.execute_command("GET", "router:{acme}:rate:huge")
    assert level.startswith(b"0:")
    decision = limiter.take("acme", [replace(huge, cost=9000)])
    assert decision.allowed
    assert stand.client.execute_command("GET", "router:{acme}:rate:huge").startswith(b"0:")


@pytest.mark.parametrize("value", [-1, MAX_TOKENS + 1])
def test_limits_that_cannot_be_counted_are_refused(value: int) -> None:
    """Negative or beyond 2^53: an error where it is configured, not a wrong count later."""
    with pytest.raises(ValueError, match="not between"):
        BucketSpec("org", (), float(value), 1)
    with pytest.raises(ValueError, match="not between"):
        BucketSpec("org", (), 1.0, value)
    with pytest.raises(ValueError, match="not between"):
        SlotSpec("calls", (), value)


def test_slots_are_leases(stand: Any) -> None:
    """R8: taking or releasing twice is once, and the slot of a lost call comes back."""
    limiter = stand.limiter()
    take = [limiter.take("acme", [], [SLOTS], lease_id=lease).allowed for lease in "aabc"]
    assert take == [True, True, True, False]
    limiter.finish("acme", (), [SLOTS], lease_id="a")
    limiter.finish("acme", (), [SLOTS], lease_id="a")
    assert limiter.take("acme", [], [SLOTS], lease_id="c").allowed
    assert not limiter.take("acme", [], [SLOTS], lease_id="d").allowed
    stand.clock.advance(899.9)
    assert not limiter.take("acme", [], [SLOTS], lease_id="d").allowed
    stand.clock.advance(0.2)
    assert limiter.take("acme", [], [SLOTS], lease_id="d").allowed
    assert stand.client.execute_command("ZCARD", "router:{acme}:slots:calls:k1") == 1


def test_slots_and_buckets_are_all_or_none(stand: Any) -> None:
    """R2: without a slot no token is taken, without a token no slot."""
    limiter = stand.limiter()
    one = SlotSpec("calls", (), 1)
    assert limiter.take("acme", [KEY], [one], lease_id="a").allowed
    decision = limiter.take("acme", [KEY], [one], lease_id="b")
    assert decision.binding is not None
    assert (decision.binding.name, decision.retry_after_s) == ("calls", 1)
    assert limiter.peek("acme", [KEY]).statuses[0].remaining == 4


def test_finish_settles_and_releases_in_one_round_trip(stand: Any) -> None:
    """At the end of a call both are done together."""
    limiter = stand.limiter()
    limiter.take("acme", [KEY], [SLOTS], lease_id="a")
    calls = stand.calls
    limiter.finish("acme", [Correction(KEY, 2)], [SLOTS], lease_id="a")
    assert stand.calls == calls + 1
    decision = limiter.peek("acme", [KEY], [SLOTS])
    assert [status.remaining for status in decision.statuses] == [2, 2]


# --- estimates of tokens --------------------------------------------------------------------

TOKENS = BucketSpec("org-tokens", (), 10.0, 600, cost=200, leased=True)
ESTIMATES = "router:{acme}:estimates:org-tokens"


def used(limiter: Any, decision: Any, tokens: int, lease: str, spec: BucketSpec = TOKENS) -> None:
    limiter.finish("acme", corrections([spec], decision, tokens), lease_id=lease)


def left(limiter: Any, spec: BucketSpec = TOKENS) -> int:
    [status] = limiter.peek("acme", [replace(spec, cost=0)]).statuses
    return int(status.remaining)


@pytest.mark.parametrize("tokens", [0, 50, 200, 350])
def test_an_estimate_is_corrected_once(stand: Any, tokens: int) -> None:
    """Less, the same and more than the 200 that were estimated, told twice."""
    limiter = stand.limiter()
    decision = limiter.take("acme", [TOKENS], lease_id="a")
    assert left(limiter) == 400
    for _ in range(2):
        used(limiter, decision, tokens, "a")
    assert left(limiter) == 600 - tokens
    assert stand.client.execute_command("EXISTS", ESTIMATES) == 0


def test_an_estimate_that_redis_has_lost_is_not_corrected(stand: Any) -> None:
    """An emptied Redis begins with a full bucket, for the running calls too."""
    limiter = stand.limiter()
    decision = limiter.take("acme", [TOKENS], lease_id="a")
    stand.client.execute_command("FLUSHALL")
    used(limiter, decision, 350, "a")
    assert left(limiter) == 600


def test_the_estimate_of_a_lost_call_is_forgotten_with_its_lease(stand: Any) -> None:
    """Its worker was killed: the estimate stays charged, and leaves no trace after its lease."""
    limiter = stand.limiter()
    limiter.take("acme", [TOKENS], lease_id="a")
    stand.clock.advance(900.1)
    limiter.take("acme", [TOKENS], lease_id="b")
    assert stand.client.execute_command("ZRANGE", ESTIMATES, 0, -1) == [b"b|200000000"]
    assert 0 < stand.client.execute_command("PTTL", ESTIMATES) <= 901_000


def test_a_take_that_nobody_heard_of_is_given_back(stand: Any) -> None:
    """Once, and only if Redis has executed it."""
    limiter = stand.limiter()
    limiter.finish("acme", unheard([ORG, TOKENS]), lease_id="a")
    assert left(limiter) == 600
    limiter.take("acme", [ORG, TOKENS], lease_id="a")
    for _ in range(2):
        limiter.finish("acme", unheard([ORG, TOKENS]), lease_id="a")
    assert left(limiter) == 600
    assert left(limiter, ORG) == 19


def test_a_bucket_in_shadow_remembers_that_it_took_nothing(stand: Any) -> None:
    """The call was let through, so what it used is charged in the end."""
    limiter = stand.limiter()
    shadow = replace(TOKENS, enforced=False, cost=500)
    limiter.take("acme", [shadow], lease_id="a")
    decision = limiter.take("acme", [shadow], lease_id="b")
    assert len(decision.shadow_denied) == 1
    used(limiter, decision, 70, "b", shadow)
    assert left(limiter) == 30


@pytest.mark.parametrize("calls", [1, 5])
def test_a_debt_is_paid_off_in_the_time_in_which_the_bucket_fills(stand: Any, calls: int) -> None:
    """Calls whose output nobody bounded used a million tokens each: after the minute in which 600
    flow in, the next call passes."""
    limiter = stand.limiter()
    small = replace(TOKENS, cost=1)
    running = [limiter.take("acme", [small], lease_id=f"{call}") for call in range(calls)]
    for call, decision in enumerate(running):
        used(limiter, decision, 1_000_000, f"{call}", small)
    decision = limiter.take("acme", [small])
    assert decision.retry_after_s == 61, "600 of debt and its own one, at 10 a second"
    stand.clock.advance(60.1)
    assert limiter.take("acme", [small]).allowed


def test_a_deeper_debt_that_is_stored_is_not_believed(stand: Any) -> None:
    """Written before debts were bounded, or while the limit was higher."""
    level, now = -(10**15), int(stand.clock.wall_s * 1_000_000)
    stand.client.execute_command("SET", "router:{acme}:rate:org-tokens", f"{level}:{now}:0")
    assert stand.limiter().take("acme", [TOKENS]).retry_after_s == 80


class Reference:
    """A token bucket in exact fractions, without expiry. A refused call leaves it as it was (R2):
    neither its level nor the latest time it has seen."""

    def __init__(self, rate_micro: int, burst: int) -> None:
        self.rate = Fraction(rate_micro, 1_000_000)
        self.burst = burst
        self.level = Fraction(burst)
        self.at_us = 0

    def take(self, now_us: int, cost: int) -> bool:
        passed = max(0, now_us - self.at_us)
        level = min(Fraction(self.burst), self.level + self.rate * Fraction(passed, 1_000_000))
        if level < cost:
            return False
        self.level = level - cost
        self.at_us += passed
        return True


ARRIVALS = st.lists(
    st.tuples(
        # Microseconds since the last call: none, some, about the time to fill, long idle, back.
        st.one_of(
            st.just(0),
            st.integers(1, 300_000),
            st.integers(1_000_000, 30_000_000),
            st.integers(-10_000_000, -1),
        ),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=40,
)


@settings(suppress_health_check=EACH_EXAMPLE_ITS_OWN, max_examples=60)
@given(
    arrivals=ARRIVALS,
    rate=st.one_of(st.sampled_from([0.3, 1 / 3, 7.0, 16.6667, 1e6]), st.floats(0.01, 1000.0)),
    burst=st.integers(1, 30),
)
def test_the_bucket_is_the_reference(
    stand: Any, arrivals: list[tuple[int, int]], rate: float, burst: int
) -> None:
    """R4: with random arrivals, idle gaps and a clock that jumps, every single answer is that of
    exact arithmetic, so nothing above burst + rate * t is ever admitted and nothing is lost."""
    stand.client.execute_command("FLUSHALL")
    limiter = stand.limiter()
    reference = Reference(int(rate * 1_000_000), burst)
    for gap_us, cost in arrivals:
        stand.clock.advance(gap_us / 1_000_000)
        now_us = round(stand.clock.wall_s * 1_000_000)
        expected = reference.take(now_us, cost)
        decision = limiter.take("acme", [BucketSpec("key", (), rate, burst, cost=cost)])
        assert decision.allowed == expected


@settings(suppress_health_check=EACH_EXAMPLE_ITS_OWN, max_examples=40)
@given(
    gaps=st.lists(st.integers(0, 2_000_000), max_size=15),
    rate=st.floats(0.05, 50.0),
    burst=st.integers(1, 5),
)
def test_waiting_as_told_is_enough_and_not_too_much(
    stand: Any, gaps: list[int], rate: float, burst: int
) -> None:
    """R9: after `Retry-After` the same call passes; a second less would not have been enough."""
    stand.client.execute_command("FLUSHALL")
    limiter = stand.limiter()
    spec = BucketSpec("key", (), rate, burst)
    for gap_us in gaps:
        stand.clock.advance(gap_us / 1_000_000)
        limiter.take("acme", [spec])
    while (decision := limiter.take("acme", [spec])).allowed:
        pass
    wait_s = decision.retry_after_s
    assert wait_s is not None
    assert wait_s >= 1
    if wait_s > 1:
        stand.clock.advance(wait_s - 1)
        assert not limiter.peek("acme", [spec]).allowed
        stand.clock.advance(1)
    else:
        stand.clock.advance(wait_s)
    assert limiter.take("acme", [spec]).allowed


def test_a_client_that_polls_at_twice_the_rate_gets_its_rate(stand: Any) -> None:
    """R4: no starvation; asking early costs nothing."""
    limiter = stand.limiter()
    spec = BucketSpec("key", (), 100 / 3, 2)
    admitted = 0
    for _ in range(2000):
        admitted += limiter.take("acme", [spec]).allowed
        stand.clock.advance(0.015)
    assert 0.99 * 30 * 100 / 3 <= admitted <= 2 + 30 * 100 / 3
