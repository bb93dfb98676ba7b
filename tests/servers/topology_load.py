"""Calls of organizations over a Redis of any topology, for tests of what becomes of them."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable

from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import Amounts, Reservation, WindowSpec
from router.limits.rates.decision import BucketSpec
from router.limits.rates.limiter import RateLimiter
from router.redis.address import HostPort, parse_address
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions

TIMEOUT_S = 1.0
RATE = BucketSpec("calls", (), 0.001, 1_000_000)
SPEND = WindowSpec("spend", "usd", "total", 1_000_000_000)


class Limits:
    """Rates and budgets of organizations, over one address."""

    def __init__(self, url: str) -> None:
        self.redis = RedisClient(parse_address(url), ConnectionOptions(timeout_s=TIMEOUT_S))
        self.rates = RateLimiter(self.redis)
        self.ledger = Ledger(self.redis)
        self._calls = itertools.count(1)

    def open_budgets(self, *organizations: str) -> None:
        for organization in organizations:
            LedgerMaintenance(self.redis).rebuild(organization, [SPEND], lambda _lost: 0)

    def decide(self, organization: str) -> None:
        """Admit one call; raises ``Unavailable``."""
        assert self.rates.take(organization, [RATE]).allowed
        lease = f"lease-{next(self._calls)}"
        outcome = self.ledger.reserve(organization, lease, [SPEND], Amounts(10, 0), ttl_ms=60_000)
        assert isinstance(outcome, Reservation)
        assert self.ledger.settle(outcome, Amounts(3, 0)).booked

    def settled(self, organization: str) -> int:
        [state] = self.ledger.read(organization, [SPEND])
        return state.settled

    def addresses(self) -> set[HostPort]:
        """Of the masters that are known."""
        return {node.address for node in self.redis._topology.nodes() if node.address}

    def close(self) -> None:
        self.redis.close()


class Load:
    """Calls of one organization, one after another in each of some threads, until ended."""

    def __init__(self, limits: Limits, organizations: list[list[str]]) -> None:
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self._limits = limits
        self._ended = threading.Event()
        self._callers = [
            threading.Thread(target=self._call, args=(names,)) for names in organizations
        ]

    def __enter__(self) -> Load:
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        for caller in self._callers:
            caller.join(10)

    def _call(self, organizations: list[str]) -> None:
        for organization in itertools.cycle(organizations):
            if self._ended.is_set():
                return
            try:
                self._limits.decide(organization)
                self.done[organization] += 1
            except Exception as error:
                self.failures.append(f"{organization}: {error!r}")
                time.sleep(0.01)


def does(work: Callable[[], None]) -> Callable[[], bool]:
    return lambda: work() is None
