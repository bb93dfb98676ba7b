"""All that one worker has of limits, and what is to be done about them besides calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import gevent

from router.breaker import Breaker, State, Unavailable
from router.config.document import RateLimit
from router.limits.admission import Admission
from router.limits.audit_outbox import AuditOutbox
from router.limits.budgets.reservation_rule import ReservationRule
from router.limits.budgets.windows import WindowSpec, WindowState
from router.limits.rates.gate import RateGate
from router.limits.remote.budget_client import BudgetClient
from router.limits.retry_queue import RetryQueue
from router.records.recorder import Recorder
from router.redis.client import RedisClient
from router.telemetry.metrics import Figures

log = logging.getLogger("router.limits")

ReadWindows = Callable[[str, Sequence[WindowSpec], str], Sequence[WindowState]]
"""Reads the enforcing counters of an organization and one of its keys; raises
:class:`Unavailable`."""


@dataclass(slots=True)
class Limits:
    """One worker's limits, wired by ``services``."""

    admission: Admission
    rate_gate: RateGate
    read_windows: ReadWindows
    retry_queue: RetryQueue
    audit_outbox: AuditOutbox
    default_rate: RateLimit
    """Of an organization or key without a rate limit of its own."""
    reservation_rule: ReservationRule
    """Of budgets that say nothing else."""
    lease_ms: int
    """For how long a call may hold what it has reserved."""
    redis: RedisClient | None
    """``None`` in tests that run scripts in another way."""
    budget_client: BudgetClient | None
    """``None`` without a budget service."""
    _may_evict: bool | None = field(default=None, init=False)

    def tick(self, recorder: Recorder) -> None:
        """Once a second: retry what failed, report what has happened. Returns at once."""
        self.audit_outbox.flush(recorder)
        if len(self.retry_queue):
            gevent.spawn(self.retry_queue.run)
        if self.redis is not None and self._may_evict is None and not self.redis.is_unavailable:
            gevent.spawn(self._check_eviction)

    def close(self, recorder: Recorder) -> None:
        """Do what was queued, if that is possible now, and close connections."""
        self.retry_queue.run()
        self.audit_outbox.flush(recorder)
        if self.budget_client is not None:
            self.budget_client.close()
        if self.redis is not None:
            self.redis.close()

    def figures(self) -> Figures:
        """The state of the limits, by the names of the metrics that show it."""
        breakers = self._breakers()
        return {
            "rate_decisions": dict(self.admission.decisions),
            "budget_reserved_nanousd": self.admission.reserved_nanos,
            "limits_deferred": len(self.retry_queue),
            "limits_deferred_dropped": self.retry_queue.dropped,
            "leases_unresolved": self.audit_outbox.unresolved,
            "redis_may_evict": bool(self._may_evict),
            "dependency_up": {
                name: all(breaker.state == "closed" for breaker in found)
                for name, found in breakers.items()
            },
            "dependency_away_seconds": {
                name: sum([breaker.unavailable_s for breaker in found])
                for name, found in breakers.items()
            },
        }

    def breaker_states(self) -> dict[str, list[State]]:
        """The breakers' states, of each Redis server and of the budget service, if any."""
        found = self._breakers().items()
        return {name: [breaker.state for breaker in breakers] for name, breakers in found}

    def _breakers(self) -> dict[str, list[Breaker]]:
        found = {"redis": [] if self.redis is None else self.redis.breakers()}
        if self.budget_client is not None:
            found["budget_service"] = [self.budget_client.breaker]
        return found

    def _check_eviction(self) -> None:
        assert self.redis is not None
        try:
            policy = self.redis.eviction_policy()
        except Unavailable:
            return
        self._may_evict = policy is not None and policy != _SAFE_POLICY
        if self._may_evict:
            log.warning(
                "redis may forget budgets when its memory is full: set maxmemory-policy to %s",
                _SAFE_POLICY,
                extra={"maxmemory_policy": policy},
            )


_SAFE_POLICY: Final = "noeviction"
