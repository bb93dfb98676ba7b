"""The rate limiter with and without Redis."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from router.breaker import Unavailable
from router.clock import FrozenClock
from router.limits.admission import Admission
from router.limits.configured import RateSpecs
from router.limits.rates.decision import BucketSpec, Correction, SlotSpec, corrections
from router.limits.rates.gate import OnUnavailable, RateGate
from router.limits.rates.limiter import RateLimiter
from router.limits.rates.local import LocalLimiter
from router.limits.retry_queue import RetryQueue
from tests.unit.limits.conftest import frozen_script

ORG = BucketSpec("org", (), 10.0, 20)
SLOTS = SlotSpec("calls", (), 4)


class Outage:
    """A Redis that can be switched off. ``executes``: it does as told, and its answer is lost."""

    def __init__(self, stand: Any) -> None:
        self.stand = stand
        self.is_unavailable = False
        self.failing = False
        self.executes = False

    def run(self, call: Any) -> object:
        if self.failing or self.is_unavailable:
            if self.executes:
                self.stand.run(call)
            raise Unavailable("redis", "timeout")
        return self.stand.run(call)

    def run_all(self, calls: Any) -> list[object]:
        return [self.run(call) for call in calls]


class Fixture:
    def __init__(
        self, stand: Any, on_unavailable: OnUnavailable = "local", workers: int = 2
    ) -> None:
        self.redis = Outage(stand)
        self.clock: FrozenClock = stand.clock
        self.deferred = RetryQueue()
        self.limiter = RateLimiter(self.redis, load=frozen_script)
        local = LocalLimiter(workers, monotonic_s=self.clock.monotonic_s)
        self.gate = RateGate(self.limiter, local, self.deferred, on_unavailable=on_unavailable)

    def admitted(self, calls: int) -> int:
        return sum(self.gate.take("acme", [ORG]).allowed for _ in range(calls))


@pytest.fixture
def subject(stand: Any) -> Fixture:
    return Fixture(stand)


def test_redis_decides_while_it_is_there(subject: Fixture) -> None:
    """The ordinary case."""
    assert subject.gate.take("acme", [ORG]).source == "redis"
    assert subject.admitted(30) == 19


def test_an_outage_is_decided_by_the_share(subject: Fixture) -> None:
    """P9: 10 of 20 tokens are left, 5 of them are this worker's."""
    subject.admitted(10)
    subject.redis.failing = True
    assert subject.gate.take("acme", [ORG]).source == "local"
    assert subject.admitted(20) == 4


def test_a_limit_that_was_exhausted_stays_so(subject: Fixture) -> None:
    """P9: the outage itself admits nothing."""
    subject.admitted(30)
    subject.redis.failing = True
    assert subject.admitted(20) == 0


def test_redis_is_told_what_it_did_not_see(subject: Fixture) -> None:
    """P9: in total the limit holds across the outage and its end."""
    total = subject.admitted(10)
    subject.redis.failing = True
    total += subject.admitted(20)
    subject.redis.failing = False
    total += subject.admitted(20)
    assert total == 20


def test_a_telling_that_fails_is_told_again(subject: Fixture) -> None:
    """The first call after an outage may meet the next one."""
    subject.admitted(10)
    subject.redis.failing = True
    assert subject.admitted(5) == 5
    subject.admitted(1)  # tries to tell, and cannot
    subject.redis.failing = False
    assert subject.gate.take("acme", [ORG]).statuses[0].remaining == 4


def test_nobody_is_told_while_the_breaker_is_open(subject: Fixture, stand: Any) -> None:
    """P9: then no call waits for Redis."""
    subject.redis.is_unavailable = True
    subject.admitted(3)
    assert stand.calls == 0


def test_open_lets_all_pass(stand: Any) -> None:
    """D4: `open` limits nothing during an outage."""
    subject = Fixture(stand, "open")
    subject.redis.failing = True
    decisions = [subject.gate.take("acme", [ORG]) for _ in range(50)]
    assert all(decision.allowed and decision.source == "open" for decision in decisions)
    assert decisions[0].statuses == ()


def test_closed_is_no_429(stand: Any) -> None:
    """D4, B19: `closed` says that nobody knows, which becomes a 503."""
    subject = Fixture(stand, "closed")
    subject.redis.failing = True
    with pytest.raises(Unavailable):
        subject.gate.take("acme", [ORG])


@pytest.mark.parametrize("on_unavailable", ["local", "open", "closed"])
def test_asking_never_fails(stand: Any, on_unavailable: OnUnavailable) -> None:
    """`GET /v1/limits` tells this worker's view during an outage."""
    subject = Fixture(stand, on_unavailable)
    assert subject.gate.peek("acme", [ORG]).source == "redis"
    subject.redis.failing = True
    assert subject.gate.peek("acme", [ORG]).source == "local"
    assert subject.gate.peek("acme", [ORG]).statuses[0].remaining == 20


@pytest.mark.parametrize("executes", [True, False])
def test_slots_are_given_back_after_the_outage(subject: Fixture, executes: bool) -> None:
    """R8, B5: a slot taken in Redis is free once Redis can be told, not when its lease ends."""
    subject.gate.take("acme", [ORG], [SLOTS], lease_id="a")
    subject.redis.failing, subject.redis.executes = True, executes
    subject.gate.finish("acme", [], [SLOTS], lease_id="a")
    assert subject.deferred.run() == 0
    subject.redis.failing = False
    assert subject.deferred.run() == 1
    assert subject.limiter.peek("acme", [], [SLOTS]).statuses[0].remaining == 4


def test_estimates_are_corrected_here_or_there(subject: Fixture) -> None:
    """A correction that Redis does not hear counts in this worker's share."""
    subject.gate.take("acme", [ORG])
    subject.gate.finish("acme", [Correction(ORG, 9)])
    assert subject.gate.peek("acme", [ORG]).statuses[0].remaining == 10
    subject.redis.failing = True
    subject.gate.finish("acme", [Correction(ORG, 3)])
    # Half of the 19 that Redis named when it last decided, less the correction.
    assert subject.admitted(20) == 6
    assert len(subject.deferred) == 0


TOKENS = BucketSpec("org-tokens", (), 10.0, 600, cost=200, leased=True)


def tokens_left(subject: Fixture) -> int:
    [status] = subject.limiter.peek("acme", [replace(TOKENS, cost=0)]).statuses
    return status.remaining


@pytest.mark.parametrize("executes", [True, False])
def test_what_redis_estimated_is_corrected_after_the_outage(
    subject: Fixture, executes: bool
) -> None:
    """Once, whether the first try was executed or not: the correction used to be lost with Redis,
    or made again."""
    decision = subject.gate.take("acme", [TOKENS], lease_id="a")
    subject.redis.failing, subject.redis.executes = True, executes
    subject.gate.finish("acme", corrections([TOKENS], decision, 350), lease_id="a")
    subject.redis.failing = False
    assert subject.deferred.run() == 1
    assert tokens_left(subject) == 250


def test_a_correction_that_is_killed_is_made_later(stand: Any) -> None:
    """The end of a worker interrupts it anywhere."""
    subject = Fixture(stand)
    decision = subject.gate.take("acme", [TOKENS], [SLOTS], lease_id="a")

    class Killed(BaseException):
        pass

    def killed(_call: Any) -> object:
        raise Killed

    run, subject.redis.run = subject.redis.run, killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        subject.gate.finish("acme", corrections([TOKENS], decision, 50), [SLOTS], lease_id="a")
    subject.redis.run = run  # type: ignore[method-assign]
    assert subject.deferred.run() == 1
    assert tokens_left(subject) == 550
    assert subject.limiter.peek("acme", [], [SLOTS]).statuses[0].remaining == 4


@pytest.mark.parametrize("on_unavailable", ["open", "closed", "local"])
def test_tokens_that_redis_took_unheard_are_given_back(
    stand: Any, on_unavailable: OnUnavailable
) -> None:
    """It was late, and has charged the estimate all the same."""
    subject = Fixture(stand, on_unavailable)
    subject.redis.failing = subject.redis.executes = True
    with suppress(Unavailable):
        subject.gate.take("acme", [TOKENS], lease_id="a")
    subject.redis.failing = False
    assert tokens_left(subject) == 400
    subject.deferred.run()
    assert tokens_left(subject) == 600


UNASKED: Any = SimpleNamespace(uses_budget_service=False)
HELD = [SlotSpec("org-concurrent", (), 8)]


@pytest.mark.parametrize("on_unavailable", ["open", "closed", "local"])
def test_slots_that_redis_gave_unheard_are_given_back(
    stand: Any, on_unavailable: OnUnavailable
) -> None:
    """R8: it was late, and has done it all the same. They used to be held for a whole lease."""
    subject = Fixture(stand, on_unavailable)
    if on_unavailable == "local":  # nothing is left, so the share refuses
        subject.admitted(20)
    subject.redis.failing = subject.redis.executes = True
    try:
        decision = subject.gate.take("acme", [ORG], HELD, lease_id="a")
        assert decision.source == on_unavailable
        assert decision.allowed is (on_unavailable == "open")
    except Unavailable:
        assert on_unavailable == "closed"
    subject.redis.failing = False
    subject.deferred.run()
    [status] = subject.limiter.peek("acme", [], HELD).statuses
    assert status.remaining == 8
    assert len(subject.deferred) == 0


def test_a_call_killed_while_it_asks_gives_its_slots_back(stand: Any) -> None:
    """The end of a worker interrupts it anywhere."""
    subject = Fixture(stand)

    class Killed(BaseException):
        pass

    def killed(call: Any) -> object:
        stand.run(call)
        raise Killed

    anything: Any = None
    admission = Admission(subject.gate, UNASKED, anything, subject.deferred)
    run, subject.redis.run = subject.redis.run, killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        admission.take_rates("acme", RateSpecs((ORG,), tuple(HELD)), "a")
    subject.redis.run = run  # type: ignore[method-assign]
    subject.deferred.run()
    [status] = subject.limiter.peek("acme", [], HELD).statuses
    assert status.remaining == 8


def test_a_slot_held_here_is_free_here_too_when_redis_is_back(stand: Any) -> None:
    """The call began without Redis and ends with it; the next outage finds nothing held."""
    subject = Fixture(stand, workers=8)
    subject.redis.failing = True
    assert subject.gate.take("acme", [], HELD, lease_id="a").allowed
    assert not subject.gate.take("acme", [], HELD, lease_id="b").allowed
    subject.redis.failing = False
    subject.gate.finish("acme", [], HELD, lease_id="a")
    subject.redis.failing = True
    assert subject.gate.take("acme", [], HELD, lease_id="b").allowed
