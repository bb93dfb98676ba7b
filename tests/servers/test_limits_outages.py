"""Rate limiter, ledger and idempotency while a real redis-server refuses, sleeps or forgets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.breaker import Unavailable
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import Amounts, Denied, WindowSpec
from router.limits.idempotency.entries import Entry, Idempotency, InFlight, Replay
from router.limits.outcome import Admitted, Request
from router.limits.rates.decision import BucketSpec
from router.limits.rates.gate import RateGate
from router.limits.rates.limiter import RateLimiter
from router.limits.rates.local import LocalLimiter
from router.limits.redis_exchange import RedisExchange
from router.limits.retry_queue import RetryQueue
from router.redis.address import parse_address
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from tests.fakes.admitting import Budgets
from tests.fakes.redis_server import BINARY, Proxy, RedisServer, running

TIMEOUT_S = 0.05
SLACK_S = 0.1
"""For a machine that has other things to do as well."""

ORG = BucketSpec("org", (), 50.0, 20)
SPEND = WindowSpec("spend", "usd", "total", 1000)
EVER: Any = 60_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    if BINARY is None:
        pytest.skip("REDIS-SERVER IS NOT INSTALLED")
    with running(tmp_path) as started:
        yield started


class Stand:
    """Everything of one worker, over one address."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.redis = RedisClient(parse_address(url), ConnectionOptions(timeout_s=timeout_s))
        self.deferred = RetryQueue()
        self.ledger = Ledger(self.redis)
        local = LocalLimiter(1)
        self.rates = RateGate(RateLimiter(self.redis), local, self.deferred)
        self.budgets = Budgets(
            RedisExchange(self.redis, self.ledger, Idempotency(self.redis)),
            LedgerMaintenance(self.redis),
            self.deferred,
            sum_records=lambda _organization_id, _lost: 0,
        )

    def admit(self, lease: str, *, key: str = "", cost: int = 100) -> Any:
        entry = Entry("acme", key, b"body", lease) if key else None
        return self.budgets.admit(Request("acme", lease, [SPEND], Amounts(cost, 0), EVER), entry)

    def wait_until_back(self) -> float:
        begun_s = time.monotonic()
        while self.redis.is_unavailable:
            assert time.monotonic() - begun_s < 5
            time.sleep(0.01)
        return time.monotonic() - begun_s


def longest_s(subject: Stand, calls: int) -> float:
    longest = 0.0
    for number in range(calls):
        begun_s = time.perf_counter()
        assert subject.rates.take("acme", [ORG]).source == "local"
        with pytest.raises(Unavailable):
            subject.admit(f"away{number}")
        longest = max(longest, (time.perf_counter() - begun_s) / 2)
    return longest


@pytest.mark.parametrize("how", ["paused", "silent", "slow", "refused"])
def test_an_outage_is_short_for_callers(server: RedisServer, how: str) -> None:
    """P9, D1: each decision ends within Redis' timeout, at once when the breaker is open; budgets
    admit nothing, rates the share; normal within 2 s of the return."""
    proxy = Proxy(server.port)
    subject = Stand(proxy.url if how in ("silent", "slow") else server.url)
    try:
        assert subject.rates.take("acme", [ORG]).source == "redis"
        assert isinstance(subject.admit("before"), Admitted)
        _set(server, proxy, how, away=True)
        assert longest_s(subject, 3) < TIMEOUT_S + SLACK_S
        assert subject.redis.is_unavailable
        begun_s = time.perf_counter()
        longest_s(subject, 100)
        assert (time.perf_counter() - begun_s) / 200 < 0.002
        _set(server, proxy, how, away=False)
        assert subject.wait_until_back() < 2
        subject.deferred.run()
        if how != "refused":  # a server that was killed has lost its data
            [state] = subject.ledger.read("acme", [SPEND])
            assert (state.settled, state.reserved) == (0, 100)
        assert isinstance(subject.admit("after"), Admitted)
        assert subject.rates.take("acme", [ORG]).source == "redis"
    finally:
        subject.redis.close()
        proxy.close()


def _set(server: RedisServer, proxy: Proxy, how: str, *, away: bool) -> None:
    if how == "paused":
        server.pause() if away else server.resume()
    elif how == "silent":
        proxy.silent = away
    elif how == "slow":
        proxy.delay_s = 0.2 if away else 0.0
    elif away:
        server.kill()
    else:
        server.start()


def test_forgotten_scripts_cost_no_call(server: RedisServer) -> None:
    """R6: SCRIPT FLUSH between and during calls is not seen by anybody."""
    subject = Stand(server.url, timeout_s=1)
    try:
        for number in range(30):
            if number % 3 == 0:
                subject.redis.command("SCRIPT", "FLUSH")
            admitted = subject.admit(f"call{number}", key=f"order{number}", cost=10)
            assert subject.rates.take("acme", [ORG]).source == "redis"
            subject.budgets.settle(admitted, Amounts(1, 0), b"reply")
        [state] = subject.ledger.read("acme", [SPEND])
        assert (state.settled, state.reserved) == (30, 0)
    finally:
        subject.redis.close()


def _at_once(work: Any, count: int) -> list[Any]:
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda number=number: found.append(work(number)))
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_a_budget_for_ten_calls_admits_ten(server: RedisServer) -> None:
    """B1, P6: 100 callers at once over two workers' clients; nobody but ten passes, none is told
    503, also on the first call of a window that nobody knows yet."""
    workers = [Stand(server.url, timeout_s=5) for _ in range(2)]
    try:
        found = _at_once(lambda number: workers[number % 2].admit(f"call{number}"), 100)
        kinds = [type(outcome) for outcome in found]
        assert (kinds.count(Admitted), kinds.count(Denied)) == (10, 90)
    finally:
        for worker in workers:
            worker.redis.close()


def test_of_a_hundred_duplicates_one_is_served(server: RedisServer) -> None:
    """P19: one admitted and one reservation, the others in flight; afterwards the same reply."""
    workers = [Stand(server.url, timeout_s=5) for _ in range(2)]
    try:
        found = _at_once(
            lambda number: workers[number % 2].admit(f"call{number}", key="order"), 100
        )
        kinds = [type(outcome) for outcome in found]
        assert (kinds.count(Admitted), kinds.count(InFlight)) == (1, 99)
        [admitted] = [outcome for outcome in found if isinstance(outcome, Admitted)]
        workers[0].budgets.settle(admitted, Amounts(7, 0), b"reply")
        again = _at_once(
            lambda number: workers[number % 2].admit(f"again{number}", key="order"), 20
        )
        assert set(again) == {Replay(b"reply")}
        [state] = workers[0].ledger.read("acme", [SPEND])
        assert (state.settled, state.reserved) == (7, 0)
    finally:
        for worker in workers:
            worker.redis.close()
