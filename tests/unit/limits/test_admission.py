"""All that a call asks before it is served, in one exchange; and without Redis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.breaker import Unavailable
from router.clock import FrozenClock
from router.config.settings import Settings
from router.errors import BudgetUnavailable, LimitsUnavailable
from router.limits.budgets.windows import NOTHING, Amounts, Denied, WindowSpec
from router.limits.configured import RateSpecs
from router.limits.idempotency.entries import Entry
from router.limits.outcome import Admitted, Request
from router.limits.rates.decision import BucketSpec, RateDecision
from router.limits.worker_limits import Limits
from router.services.limits_wiring import build_limits
from tests.fakes.frozen_redis import FrozenRedis, frozen_redis

CALLS = WindowSpec("calls", "requests", "total", 2)
SPECS = RateSpecs((BucketSpec("org-requests", (), 1.0, 2),), ())
LEASE_MS = 60_000


class RefusedError(Exception):
    """What the caller makes of a decision that refuses."""


class Worker:
    """A worker's limits, and how often its Redis was asked."""

    def __init__(self, redis: FrozenRedis, limits: Limits) -> None:
        self.redis, self.limits = redis, limits
        self.decisions: list[RateDecision] = []
        self._number = 0

    def enter(self, *, windows: tuple[WindowSpec, ...] = (CALLS,), id: str | None = None) -> Any:
        self._number += 1
        lease = f"lease-{self._number}"
        request = Request("acme", lease, windows, Amounts(0, 0), LEASE_MS)
        entry = None if id is None else Entry("acme", id, b"body", lease)
        outcome = self.limits.admission.admit(SPECS, request, entry)
        if outcome.rates is None:
            raise LimitsUnavailable
        self.decisions.append(outcome.rates)
        if not outcome.rates.allowed:
            raise RefusedError
        if isinstance(outcome.result, Unavailable):
            raise BudgetUnavailable
        return outcome.result

    def held(self) -> tuple[int, int]:
        [state] = self.limits.read_windows("acme", (CALLS,), "")
        return state.settled, state.reserved

    @property
    def waiting(self) -> int:
        return self.limits.figures()["limits_deferred"]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrozenRedis]:
    with frozen_redis(tmp_path_factory.mktemp("redis"), FrozenClock(1_800_000_000.0)) as made:
        yield made


@pytest.fixture
def worker(redis: FrozenRedis, tmp_path: Path) -> Worker:
    return worker_of(redis, tmp_path)


def worker_of(redis: FrozenRedis, directory: Path, **settings: Any) -> Worker:
    redis.reset()
    changed = replace(Settings(), data_dir=directory, workers=1, **settings)
    limits = build_limits(
        changed, lambda _organization_id, _lost: 0, clock=redis.clock, runner=redis
    )
    made = Worker(redis, limits)
    made.held()  # opens the window, which nobody knows of yet
    redis.asked = 0
    return made


def test_a_call_asks_once(worker: Worker) -> None:
    """Rates, id and budgets: one exchange, and all of them are charged."""
    outcome = worker.enter(id="order")
    assert isinstance(outcome, Admitted)
    assert worker.redis.asked == 1
    assert (worker.decisions[0].source, worker.decisions[0].statuses[0].remaining) == ("redis", 1)
    assert worker.held() == (0, 1)
    worker.limits.admission.settle(outcome, Amounts(0, 0), b"reply")
    assert worker.held() == (1, 0)
    assert worker.limits.figures()["rate_decisions"] == {"redis": 1}


def test_rates_that_refuse_are_heard_before_anything_else(worker: Worker) -> None:
    """The third call in a moment: no budget was asked, and nothing has to be taken back."""
    unlimited = replace(CALLS, limit=None)
    for _ in range(2):
        worker.enter(windows=(unlimited,))
    with pytest.raises(RefusedError):
        worker.enter(windows=(unlimited,))
    assert worker.held() == (0, 2)
    assert worker.waiting == 0


def test_budgets_that_refuse_come_after_the_rates(worker: Worker) -> None:
    """What counts for a rate is that a call was made."""
    small = replace(CALLS, limit=0)
    assert isinstance(worker.enter(windows=(small,)), Denied)
    assert worker.decisions[0].allowed
    assert isinstance(worker.enter(windows=(small,)), Denied)
    with pytest.raises(RefusedError):
        worker.enter(windows=(small,))


@pytest.mark.parametrize(("reason", "waiting"), [("timeout", 1), ("breaker_open", 0)])
def test_without_redis_rates_are_decided_here_and_budgets_refuse(
    worker: Worker, reason: Any, waiting: int
) -> None:
    """P9, B3: what may have been done all the same is undone later; what was never sent is not."""
    worker.redis.away = reason
    with pytest.raises(BudgetUnavailable):
        worker.enter(id="order")
    assert worker.decisions[0].source == "local"
    assert worker.redis.asked == 1
    assert worker.waiting == waiting


@pytest.mark.parametrize(("reason", "waiting"), [("timeout", 1), ("breaker_open", 0)])
def test_a_refusal_without_redis_takes_back_what_may_be_held(
    worker: Worker, reason: Any, waiting: int
) -> None:
    """Redis last said that nothing is left: 429; its budget, if it is held, must not stay so."""
    wide = replace(CALLS, limit=None)
    for _ in range(2):
        worker.enter(windows=(wide,))
    worker.redis.away = reason
    with pytest.raises(RefusedError):
        worker.enter(windows=(wide,), id="order")
    assert [decision.source for decision in worker.decisions] == ["redis", "redis", "local"]
    assert worker.waiting == waiting
    worker.redis.away = None
    worker.limits.retry_queue.run()
    assert worker.waiting == 0
    assert worker.held() == (0, 2)


@pytest.mark.parametrize(("reason", "waiting"), [("timeout", 1), ("breaker_open", 0)])
def test_closed_rates_admit_nothing(
    redis: FrozenRedis, tmp_path: Path, reason: Any, waiting: int
) -> None:
    """`ROUTER_RATE_LIMIT_FALLBACK=closed`: 503, and what may be held is given back."""
    worker = worker_of(redis, tmp_path, rate_limit_fallback="closed")
    redis.away = reason
    with pytest.raises(LimitsUnavailable):
        worker.enter()
    assert worker.decisions == []
    assert worker.waiting == waiting


class Killed(BaseException):
    """What the end of a worker throws at whatever runs."""


def killing(redis: FrozenRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis does as it is told, and whoever has told it is gone."""
    run_all = redis.run_all

    def run_and_die(calls: Any) -> Any:
        run_all(calls)
        raise Killed

    monkeypatch.setattr(redis, "run_all", run_and_die)


def test_a_call_killed_while_it_enters_leaves_nothing_held(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5: the worker ends; what Redis did for the call is undone, its id is free."""
    with monkeypatch.context() as patched:
        killing(worker.redis, patched)
        with pytest.raises(Killed):
            worker.enter(id="order")
    worker.limits.retry_queue.run()
    assert worker.held() == (0, 0)
    assert isinstance(worker.enter(id="order"), Admitted)


def test_a_call_killed_while_it_is_settled_is_charged(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D5: it was served; told once more it is charged once."""
    outcome = worker.enter()
    with monkeypatch.context() as patched:
        killing(worker.redis, patched)
        with pytest.raises(Killed):
            worker.limits.admission.settle(outcome, Amounts(0, 0))
    assert worker.waiting == 1
    worker.limits.retry_queue.run()
    assert worker.held() == (1, 0)


def test_after_an_outage_redis_is_told_first(worker: Worker) -> None:
    """What was decided here is charged before anything is asked, and then it is one exchange."""
    worker.redis.away = "breaker_open"
    with pytest.raises(BudgetUnavailable):
        worker.enter()
    worker.redis.away, worker.redis.asked = None, 0
    assert isinstance(worker.enter(), Admitted)
    assert worker.redis.asked == 3  # the correction, the rates, the budgets
    assert worker.decisions[-1].source == "redis"
    assert worker.decisions[-1].statuses[0].remaining == 0
    worker.redis.clock.wall_s += 2  # type: ignore[attr-defined]
    worker.redis.asked = 0
    worker.enter()
    assert worker.redis.asked == 1


def test_a_call_without_budgets_and_id_has_its_rates(worker: Worker) -> None:
    """Nothing to hold, and still one exchange."""
    outcome = worker.enter(windows=())
    assert isinstance(outcome, Admitted)
    assert worker.redis.asked == 1
    worker.limits.admission.settle(outcome, NOTHING)
    assert worker.redis.asked == 1
