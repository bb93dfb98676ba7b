"""All that one worker has of limits, and what is to be done about them besides calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import gevent

from router.breaker import Breaker, State, Unavailable
from router.config.document import RateLimit
from router.limits.admission import Admission
from router.limits.audit_outbox import AuditOutbox
from router.limits.budgets.reservation_rule import ReservationRule
from router.limits.budgets.windows import WindowSpec, WindowState
from router.limits.idempotency.nonces import Nonces
from router.limits.leases.held_leases import HeldLeases
from router.limits.leases.unsent_calls import UnsentCalls
from router.limits.leases.unsettled_leases import UnsettledLeases
from router.limits.rates.gate import RateGate
from router.limits.remote.budget_client import BudgetClient
from router.limits.remote.charge_journal import ChargeJournal
from router.limits.retry_queue import RetryQueue
from router.limits.settlement_wait import SettlementWait
from router.records.recorder import Recorder
from router.redis.client import RedisClient
from router.redis.topologies.durability import SAFE_POLICY
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
    nonces: Nonces
    settlement_wait: SettlementWait
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
    unsettled: UnsettledLeases
    """Leases that another process has to settle if this one cannot."""
    unsent: UnsentCalls
    """What calls have reserved that are not sent yet."""
    charge_journal: ChargeJournal | None = None
    """What the budget service has not taken; ``None`` without one."""
    held_leases: HeldLeases | None = None
    """``None`` where no other host has a part in the budgets."""
    _may_evict: bool = field(default=False, init=False)
    _may_lose_writes: bool = field(default=False, init=False)

    def tick(self, recorder: Recorder) -> None:
        """Once a second: retry what failed, report what has happened. Returns at once."""
        self.audit_outbox.flush(recorder)
        if len(self.retry_queue):
            gevent.spawn(self.retry_queue.run)
        if self.charge_journal is not None:
            gevent.spawn(self.charge_journal.run)
        if self.held_leases is not None:
            gevent.spawn(self.held_leases.hold_again, recorder.open_calls.running())
        redis = self.redis
        if redis is not None and redis.needs_refresh and not redis.is_unavailable:
            gevent.spawn(self._look_at, redis)

    def close(self, recorder: Recorder) -> None:
        """Do what was queued, if that is possible now, and close connections."""
        self.retry_queue.run()
        self.unsettled.close()
        self.unsent.close()
        if self.charge_journal is not None:
            self.charge_journal.close()
        self.audit_outbox.flush(recorder)
        if self.budget_client is not None:
            self.budget_client.close()
        if self.redis is not None:
            self.redis.close()

    def figures(self) -> Figures:
        """The state of the limits, by the names of the metrics that show it."""
        breakers, journal = self._breakers(), self.charge_journal
        return {
            "budget_charges_waiting": 0 if journal is None else len(journal),
            "budget_charges_kept": 0 if journal is None else journal.kept,
            "rate_decisions": dict(self.admission.decisions),
            "budget_reserved_nanousd": self.admission.reserved_nanos,
            "budget_waits": dict(self.settlement_wait.outcomes),
            "limits_deferred": len(self.retry_queue),
            "limits_deferred_dropped": self.retry_queue.dropped,
            "leases_unresolved": self.audit_outbox.unresolved,
            "redis_may_evict": self._may_evict,
            "redis_may_lose_writes": self._may_lose_writes,
            "dependency_up": {
                name: all(breaker.state == "closed" for breaker in found)
                for name, found in breakers.items()
            },
            "dependency_away_seconds": self._unavailable_s(),
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

    def _unavailable_s(self) -> dict[str, float]:
        found = {"redis": 0.0 if self.redis is None else self.redis.unavailable_s}
        if self.budget_client is not None:
            found["budget_service"] = self.budget_client.breaker.unavailable_s
        return found

    def _look_at(self, redis: RedisClient) -> None:
        try:
            redis.refresh()
        except Unavailable:
            return  # again in a second
        masters = redis.durability()
        may_evict = [master for master in masters if master.may_evict]
        if may_evict and not self._may_evict:
            log.warning(
                "redis may forget budgets when its memory is full: set maxmemory-policy to %s",
                SAFE_POLICY,
                extra={"maxmemory_policy": may_evict[0].eviction_policy},
            )
        may_lose_writes = any(master.may_lose_writes for master in masters)
        if may_lose_writes and not self._may_lose_writes:
            log.warning(
                "redis may lose decisions in a failover: set min-replicas-to-write to 1",
                extra={"replicas": max(master.replicas or 0 for master in masters)},
            )
        self._may_evict, self._may_lose_writes = bool(may_evict), may_lose_writes
