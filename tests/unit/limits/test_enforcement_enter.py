"""All that a call asks before it is served, in one exchange; and without Redis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.clock import FrozenClock
from router.config.settings import Settings
from router.errors import BudgetUnavailable, LimitsUnavailable
from router.limits.admission import Request
from router.limits.budgets.gate import Admitted
from router.limits.budgets.windows import NOTHING, Amounts, Denied, WindowSpec
from router.limits.configured import RateSpecs
from router.limits.enforcement import Enforcement, build_enforcement
from router.limits.idempotency.entries import Entry
from router.limits.rates.decision import BucketSpec, RateDecision
from tests.fakes.frozen_redis import FrozenRedis, frozen_redis

CALLS = WindowSpec("calls", "requests", "total", 2)
SPECS = RateSpecs((BucketSpec("org-requests", (), 1.0, 2),), ())
LEASE_MS = 60_000


class RefusedError(Exception):
    """What the caller makes of a decision that refuses."""


class Desk:
    """A worker's limits, and how often its Redis was asked."""

    def __init__(self, redis: FrozenRedis, enforcement: Enforcement) -> None:
        self.redis, self.enforcement = redis, enforcement
        self.decisions: list[RateDecision] = []
        self._number = 0

    def enter(self, *, windows: tuple[WindowSpec, ...] = (CALLS,), id: str | None = None) -> Any:
        self._number += 1
        lease = f"lease-{self._number}"
        request = Request("acme", lease, windows, Amounts(0, 0), LEASE_MS)
        entry = None if id is None else Entry("acme", id, b"body", lease)
        return self.enforcement.enter("acme", SPECS, request, entry, decided=self._decided)

    def held(self) -> tuple[int, int]:
        [state] = self.enforcement.read("acme", (CALLS,), "")
        return state.settled, state.reserved

    @property
    def waiting(self) -> int:
        return self.enforcement.figures().deferred

    def _decided(self, decision: RateDecision) -> None:
        self.decisions.append(decision)
        if not decision.allowed:
            raise RefusedError


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrozenRedis]:
    with frozen_redis(tmp_path_factory.mktemp("redis"), FrozenClock(1_800_000_000.0)) as made:
        yield made


@pytest.fixture
def desk(redis: FrozenRedis, tmp_path: Path) -> Desk:
    return desk_of(redis, tmp_path)


def desk_of(redis: FrozenRedis, directory: Path, **settings: Any) -> Desk:
    redis.reset()
    changed = replace(Settings(), data_dir=directory, workers=1, **settings)
    enforcement = build_enforcement(
        changed, lambda _organization_id, _lost: 0, clock=redis.clock, runner=redis
    )
    made = Desk(redis, enforcement)
    made.held()  # opens the window, which nobody knows of yet
    redis.asked = 0
    return made


def test_a_call_asks_once(desk: Desk) -> None:
    """Rates, id and budgets: one exchange, and all of them are charged."""
    outcome = desk.enter(id="order")
    assert isinstance(outcome, Admitted)
    assert desk.redis.asked == 1
    assert (desk.decisions[0].source, desk.decisions[0].statuses[0].remaining) == ("redis", 1)
    assert desk.held() == (0, 1)
    desk.enforcement.settle(outcome, Amounts(0, 0), b"reply")
    assert desk.held() == (1, 0)
    assert desk.enforcement.figures().decisions == {"redis": 1}


def test_rates_that_refuse_are_heard_before_anything_else(desk: Desk) -> None:
    """The third call in a moment: no budget was asked, and nothing has to be taken back."""
    unlimited = replace(CALLS, limit=None)
    for _ in range(2):
        desk.enter(windows=(unlimited,))
    with pytest.raises(RefusedError):
        desk.enter(windows=(unlimited,))
    assert desk.held() == (0, 2)
    assert desk.waiting == 0


def test_budgets_that_refuse_come_after_the_rates(desk: Desk) -> None:
    """What counts for a rate is that a call was made."""
    small = replace(CALLS, limit=0)
    assert isinstance(desk.enter(windows=(small,)), Denied)
    assert desk.decisions[0].allowed
    assert isinstance(desk.enter(windows=(small,)), Denied)
    with pytest.raises(RefusedError):
        desk.enter(windows=(small,))


@pytest.mark.parametrize(("reason", "waiting"), [("timeout", 1), ("breaker_open", 0)])
def test_without_redis_rates_are_decided_here_and_budgets_refuse(
    desk: Desk, reason: Any, waiting: int
) -> None:
    """P9, B3: what may have been done all the same is undone later; what was never sent is not."""
    desk.redis.away = reason
    with pytest.raises(BudgetUnavailable):
        desk.enter(id="order")
    assert desk.decisions[0].source == "local"
    assert desk.redis.asked == 1
    assert desk.waiting == waiting


@pytest.mark.parametrize(("reason", "waiting"), [("timeout", 1), ("breaker_open", 0)])
def test_a_refusal_without_redis_takes_back_what_may_be_held(
    desk: Desk, reason: Any, waiting: int
) -> None:
    """Redis last said that nothing is left: 429; its budget, if it is held, must not stay so."""
    wide = replace(CALLS, limit=None)
    for _ in range(2):
        desk.enter(windows=(wide,))
    desk.redis.away = reason
    with pytest.raises(RefusedError):
        desk.enter(windows=(wide,), id="order")
    assert [decision.source for decision in desk.decisions] == ["redis", "redis", "local"]
    assert desk.waiting == waiting
    desk.redis.away = None
    desk.enforcement._retry_queue.run()
    assert desk.waiting == 0
    assert desk.held() == (0, 2)


@pytest.mark.parametrize(("reason", "waiting"), [("timeout", 1), ("breaker_open", 0)])
def test_closed_rates_admit_nothing(
    redis: FrozenRedis, tmp_path: Path, reason: Any, waiting: int
) -> None:
    """`ROUTER_RATE_LIMIT_FALLBACK=closed`: 503, and what may be held is given back."""
    desk = desk_of(redis, tmp_path, rate_limit_fallback="closed")
    redis.away = reason
    with pytest.raises(LimitsUnavailable):
        desk.enter()
    assert desk.decisions == []
    assert desk.waiting == waiting


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
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5: the worker ends; what Redis did for the call is undone, its id is free."""
    with monkeypatch.context() as patched:
        killing(desk.redis, patched)
        with pytest.raises(Killed):
            desk.enter(id="order")
    desk.enforcement._retry_queue.run()
    assert desk.held() == (0, 0)
    assert isinstance(desk.enter(id="order"), Admitted)


def test_a_call_killed_while_it_is_settled_is_charged(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D5: it was served; told once more it is charged once."""
    outcome = desk.enter()
    with monkeypatch.context() as patched:
        killing(desk.redis, patched)
        with pytest.raises(Killed):
            desk.enforcement.settle(outcome, Amounts(0, 0))
    assert desk.waiting == 1
    desk.enforcement._retry_queue.run()
    assert desk.held() == (1, 0)


def test_after_an_outage_redis_is_told_first(desk: Desk) -> None:
    """What was decided here is charged before anything is asked, and then it is one exchange."""
    desk.redis.away = "breaker_open"
    with pytest.raises(BudgetUnavailable):
        desk.enter()
    desk.redis.away, desk.redis.asked = None, 0
    assert isinstance(desk.enter(), Admitted)
    assert desk.redis.asked == 3  # the correction, the rates, the budgets
    assert desk.decisions[-1].source == "redis"
    assert desk.decisions[-1].statuses[0].remaining == 0
    desk.redis.clock.wall_s += 2  # type: ignore[attr-defined]
    desk.redis.asked = 0
    desk.enter()
    assert desk.redis.asked == 1


def test_a_call_without_budgets_and_id_has_its_rates(desk: Desk) -> None:
    """Nothing to hold, and still one exchange."""
    outcome = desk.enter(windows=())
    assert isinstance(outcome, Admitted)
    assert desk.redis.asked == 1
    desk.enforcement.settle(outcome, NOTHING)
    assert desk.redis.asked == 1
