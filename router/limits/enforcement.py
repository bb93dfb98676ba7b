"""Limits, budgets and replay protection of one worker, wired to Redis or to a budget service."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import gevent

from router.breaker import Breaker, State, Unavailable
from router.clock import Clock
from router.config.settings import Settings, SettingsError
from router.errors import BudgetUnavailable, LimitsUnavailable
from router.limits.admission import Admission, AdmitOutcome, Request
from router.limits.audit_outbox import AuditOutbox
from router.limits.budgets.gate import Admitted, BudgetGate, GateOutcome, Presume, SumRecords
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.rebuilding import RebuildingLedger
from router.limits.budgets.windows import Amounts, Reservation, WindowSpec, WindowState
from router.limits.configured import RateSpecs, default_rate_limit, reservation_rule
from router.limits.idempotency.entries import Entry, Idempotency, NotStored
from router.limits.rates.decision import Correction, RateDecision
from router.limits.rates.gate import OnUnavailable as RatesOnUnavailable
from router.limits.rates.gate import RateGate
from router.limits.rates.limiter import RateLimiter, Runner
from router.limits.rates.local import LocalLimiter
from router.limits.remote.admission import RemoteAdmission
from router.limits.remote.client import BudgetClient
from router.limits.remote.session import BudgetSession
from router.limits.retry_queue import RetryQueue
from router.net.resolver import Resolve, system_resolve
from router.records.recorder import Recorder
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from router.redis.embedded import redis_address

log = logging.getLogger("router.limits")

OnUnavailable = Literal["closed", "open"]
ReadWindows = Callable[[str, Sequence[WindowSpec], str], Sequence[WindowState]]
"""What the enforcing counters of an organization and one of its keys say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFigures:
    """The state of one worker's limits; what is counted, since the worker began."""

    decisions: Mapping[str, int]
    """Rate decisions by who took them: a closed set."""
    reserved_nanos: int
    deferred: int
    deferred_dropped: int
    unresolved: int
    may_evict: bool
    is_up: Mapping[str, bool]
    """By dependency: a closed set, as is the next one's."""
    unavailable_s: Mapping[str, float]


class Enforcement:
    """What stands between a caller and the backends. Raises our own errors while nobody knows."""

    def __init__(
        self,
        settings: Settings,
        rates: RateGate,
        budgets: BudgetGate,
        read_windows: ReadWindows,
        *,
        joint: Admission | None,
        deferred: RetryQueue,
        audit_outbox: AuditOutbox,
        redis: RedisClient | None,
        budget_client: BudgetClient | None,
    ) -> None:
        self._rates = rates
        self._joint = joint
        self._budgets = budgets
        self._read_windows = read_windows
        self._retry_queue = deferred
        self._redis = redis
        self._budget_client = budget_client
        self._sources: Counter[str] = Counter()
        self._reserved_nanos = 0
        self._may_evict: bool | None = None
        self.audit_outbox = audit_outbox
        self.default_rate = default_rate_limit(settings)
        self.rule = reservation_rule(settings)
        self.lease_ms = int(settings.lease_s * 1000)

    @property
    def asks_always(self) -> bool:
        """Whether there may be budgets that only a budget service knows of."""
        return self._budget_client is not None

    def take(self, organization_id: str, specs: RateSpecs, lease_id: str) -> RateDecision:
        """Charge every rate limit, or none when one refuses; raises ``LimitsUnavailable``."""
        try:
            decision = self._rates.take(
                organization_id, specs.buckets, specs.slots, lease_id=lease_id
            )
        except Unavailable:
            raise LimitsUnavailable from None
        self._sources[decision.source] += 1
        return decision

    def peek(self, organization_id: str, specs: RateSpecs) -> RateDecision:
        """How the rate limits stand, charging nothing."""
        return self._rates.peek(organization_id, specs.buckets, specs.slots)

    def finish(
        self,
        organization_id: str,
        corrections: Sequence[Correction],
        specs: RateSpecs,
        lease_id: str,
    ) -> None:
        """A call has ended: what it used is known, its slots are free."""
        self._rates.finish(organization_id, corrections, specs.slots, lease_id=lease_id)

    def admit(self, request: Request, entry: Entry | None, *, is_unavailable: bool) -> GateOutcome:
        """Whether budgets cover the call and its id is new; raises ``BudgetUnavailable`` or, where
        it has no budget, ``LimitsUnavailable``. With ``is_unavailable`` the call has just waited
        for Redis in vain."""
        return self._admit(request, entry, is_unavailable=is_unavailable)

    def _admit(
        self,
        request: Request,
        entry: Entry | None,
        *,
        is_unavailable: bool = False,
        asked: Callable[[], AdmitOutcome] | None = None,
    ) -> GateOutcome:
        try:
            outcome = self._budgets.admit(
                request, entry, is_unavailable=is_unavailable, asked=asked
            )
        except Unavailable:
            if request.is_limited or self.asks_always:
                raise BudgetUnavailable from None
            raise LimitsUnavailable from None
        if isinstance(outcome, Admitted):
            self._reserved_nanos += _reserved_nanos(outcome.reservation)
        return outcome

    def enter(
        self,
        organization_id: str,
        specs: RateSpecs,
        request: Request,
        entry: Entry | None,
        *,
        decided: Callable[[RateDecision], None],
    ) -> GateOutcome:
        """:meth:`take` and :meth:`admit`, in one exchange where the same Redis is asked for both.

        ``decided`` hears of the rates before anything is known of the budgets, and raises when they
        refuse the call.
        """
        if self._joint is None or not self._rates.may_be_joined:
            decision = self.take(organization_id, specs, request.lease_id)
            decided(decision)
            return self.admit(request, entry, is_unavailable=decision.source != "redis")
        plan = self._rates.plan(
            organization_id, specs.buckets, specs.slots, lease_id=request.lease_id
        )
        error = outcome = None
        try:
            reply, outcome = self._joint.enter(plan.call, request, entry)
            decision = self._rates.answered(organization_id, plan, reply)
        except Unavailable as caught:
            error = caught
            decision = self._without_redis(organization_id, specs, request, entry, error)
        except Exception:
            raise
        except BaseException:  # killed while it asked: what it may hold is nobody's
            self._rates.forget(organization_id, specs.slots, request.lease_id)
            self._budgets.forget(request, entry)
            raise
        self._sources[decision.source] += 1
        try:
            decided(decision)
        except BaseException:
            if error is not None:
                self._budgets.withdraw(request, entry, error)
            raise
        return self._admit(request, entry, asked=lambda: _told(outcome, error))

    def _without_redis(
        self,
        organization_id: str,
        specs: RateSpecs,
        request: Request,
        entry: Entry | None,
        error: Unavailable,
    ) -> RateDecision:
        try:
            return self._rates.unanswered(
                error, organization_id, specs.buckets, specs.slots, lease_id=request.lease_id
            )
        except Unavailable:
            self._budgets.withdraw(request, entry, error)
            raise LimitsUnavailable from None

    def settle(
        self, admitted: Admitted, amounts: Amounts, reply: bytes | NotStored | None = None
    ) -> None:
        """Charge what a call used, once it has ended, and keep its reply for duplicates."""
        self._reserved_nanos -= _reserved_nanos(admitted.reservation)
        self._budgets.settle(admitted, amounts, reply)

    def read(
        self, organization_id: str, windows: Sequence[WindowSpec], key_id: str
    ) -> Sequence[WindowState]:
        """What the enforcing counters say; raises ``BudgetUnavailable``."""
        try:
            return self._read_windows(organization_id, windows, key_id)
        except Unavailable:
            raise BudgetUnavailable from None

    def tick(self, recorder: Recorder) -> None:
        """Once a second: do what had to wait, tell what has happened. Returns at once."""
        self.audit_outbox.tell(recorder)
        if len(self._retry_queue):
            gevent.spawn(self._retry_queue.run)
        if self._redis is not None and self._may_evict is None and not self._redis.is_unavailable:
            gevent.spawn(self._look_at_eviction)

    def close(self, recorder: Recorder) -> None:
        """Tell Redis and the audit trail what they do not know yet, if they can be told."""
        self._retry_queue.run()
        self.audit_outbox.tell(recorder)
        if self._budget_client is not None:
            self._budget_client.close()
        if self._redis is not None:
            self._redis.close()

    def figures(self) -> LimitFigures:
        """How it is now."""
        return LimitFigures(
            decisions=dict(self._sources),
            reserved_nanos=self._reserved_nanos,
            deferred=len(self._retry_queue),
            deferred_dropped=self._retry_queue.dropped,
            unresolved=self.audit_outbox.unresolved,
            may_evict=bool(self._may_evict),
            is_up={name: _is_up(found) for name, found in self._breakers().items()},
            unavailable_s={
                name: sum([breaker.unavailable_s for breaker in found])
                for name, found in self._breakers().items()
            },
        )

    def breaker_states(self) -> dict[str, list[State]]:
        """Whether Redis, server by server, and the budget service, if any, are asked at present."""
        found = self._breakers().items()
        return {name: [breaker.state for breaker in breakers] for name, breakers in found}

    def _breakers(self) -> dict[str, list[Breaker]]:
        found = {"redis": [] if self._redis is None else self._redis.breakers()}
        if self._budget_client is not None:
            found["budget_service"] = [self._budget_client.breaker]
        return found

    def _look_at_eviction(self) -> None:
        assert self._redis is not None
        try:
            policy = self._redis.eviction_policy()
        except Unavailable:
            return
        self._may_evict = policy is not None and policy != "noeviction"
        if self._may_evict:
            log.warning("redis may forget budgets when its memory is full: set maxmemory-policy to"
                        " noeviction", extra={"maxmemory_policy": policy})  # fmt: skip


def build_enforcement(
    settings: Settings,
    sum_records: SumRecords,
    *,
    clock: Clock,
    resolve: Resolve = system_resolve,
    runner: Runner | None = None,
) -> Enforcement:
    """Wire it; connects when first used. ``runner`` is used in place of the Redis of ``settings``.

    Raises ``SettingsError`` when the address of Redis cannot be understood.
    """
    audit_outbox, deferred = AuditOutbox(clock), RetryQueue()
    redis = None
    if runner is None:
        runner = redis = _connect(settings, resolve, audit_outbox)
    rates = RateGate(
        RateLimiter(runner, slot_lease_s=settings.lease_s),
        LocalLimiter(
            settings.workers * settings.instances,
            slot_lease_s=settings.lease_s,
            monotonic_s=clock.monotonic_s,
        ),
        deferred,
        on_unavailable=cast(RatesOnUnavailable, settings.rate_limit_fallback),
    )
    ledger, maintenance = Ledger(runner, clock=clock), LedgerMaintenance(runner, clock=clock)
    entries = Idempotency(
        runner, keep_s=settings.idempotency_keep_s, max_reply_bytes=settings.idempotency_max_bytes
    )
    entries_on_unavailable = cast(OnUnavailable, settings.idempotency_fallback)
    client = _budget_client(settings, clock, resolve, audit_outbox)
    admission: Admission | RemoteAdmission
    if client is None:
        admission = Admission(runner, ledger, entries)
        read = _book_reader(
            RebuildingLedger(ledger, maintenance, sum_records=sum_records), audit_outbox
        )
    else:
        admission = RemoteAdmission(
            client, runner, entries, deferred, entries_on_unavailable=entries_on_unavailable
        )
        read = _client_reader(client)
    budgets = BudgetGate(
        admission,
        maintenance,
        deferred,
        sum_records=sum_records,
        on_unavailable=cast(OnUnavailable, settings.budget_fallback),
        entries_on_unavailable=entries_on_unavailable,
        asks_always=client is not None,
        presume=_presume(ledger) if client is None else None,
        on_threshold=audit_outbox.crossed,
        on_unresolved=audit_outbox.found_unresolved,
    )
    return Enforcement(
        settings,
        rates,
        budgets,
        read,
        joint=admission if isinstance(admission, Admission) else None,
        deferred=deferred,
        audit_outbox=audit_outbox,
        redis=redis,
        budget_client=client,
    )


def _told(outcome: AdmitOutcome | None, error: Unavailable | None) -> AdmitOutcome:
    if error is not None:
        raise error
    assert outcome is not None  # the rates have not refused the call
    return outcome


def _presume(ledger: Ledger) -> Presume:
    return lambda request: (
        ledger.plan_reserve(
            request.organization_id,
            request.lease_id,
            request.windows,
            request.amounts,
            ttl_ms=request.ttl_ms,
        ).presumed
    )


def _connect(settings: Settings, resolve: Resolve, audit_outbox: AuditOutbox) -> RedisClient:
    try:
        address = redis_address(settings)
    except ValueError as error:
        raise SettingsError([f"RATE_LIMIT_REDIS_ADDR: {error}"]) from None
    options = ConnectionOptions(
        timeout_s=settings.redis_timeout_s, pipeline_commands=True, resolve=resolve
    )
    return RedisClient(address, options, on_change=audit_outbox.changed)


def _budget_client(
    settings: Settings, clock: Clock, resolve: Resolve, audit_outbox: AuditOutbox
) -> BudgetClient | None:
    if settings.budget_service_endpoint is None:
        return None
    session = BudgetSession(
        timeout_s=settings.budget_service_timeout_s,
        token=settings.budget_service_token,
        resolve=resolve,
    )
    return BudgetClient(
        settings.budget_service_endpoint,
        session,
        clock=clock,
        on_threshold=audit_outbox.crossed,
        on_change=audit_outbox.changed,
    )


def _book_reader(book: RebuildingLedger, audit_outbox: AuditOutbox) -> ReadWindows:
    def read(
        organization_id: str, windows: Sequence[WindowSpec], _key_id: str
    ) -> Sequence[WindowState]:
        states, threshold_events = book.read(organization_id, windows)
        for threshold_event in threshold_events:
            audit_outbox.crossed(organization_id, threshold_event)
        return states

    return read


def _client_reader(client: BudgetClient) -> ReadWindows:
    return lambda organization_id, windows, key_id: client.read(
        organization_id, windows, key_id=key_id
    )


def _reserved_nanos(reservation: Reservation) -> int:
    """What one of its budgets in USD holds; they all hold the same."""
    return next((held.amount for held in reservation.windows if held.window.unit == "usd"), 0)


def _is_up(breakers: Sequence[Breaker]) -> bool:
    return all(breaker.state == "closed" for breaker in breakers)
