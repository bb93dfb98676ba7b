"""The limits of one worker: rates, budgets and request ids, in Redis or at a budget service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import gevent
from gevent import get_hub
from gevent.monkey import is_module_patched
from gevent.threadpool import ThreadPool

from router.clock import Clock
from router.config.settings import Settings, SettingsError
from router.limits.admission import Admission, OnUnavailable
from router.limits.audit_outbox import AuditOutbox
from router.limits.budgets.ledger import Ledger, SinceMsOf, never_added
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.rebuilding import Rebuilder, RebuildingLedger, SumRecords
from router.limits.budgets.windows import Amounts, Reservation, WindowSpec, WindowState
from router.limits.configured import default_rate_limit, reservation_rule
from router.limits.idempotency.entries import Idempotency
from router.limits.idempotency.nonces import Nonces
from router.limits.leases.held_leases import HeldLeases
from router.limits.leases.unsent_calls import UnsentCalls
from router.limits.leases.unsettled_leases import UnsettledLeases
from router.limits.rates.gate import OnUnavailable as RatesOnUnavailable
from router.limits.rates.gate import RateGate
from router.limits.rates.limiter import RateLimiter
from router.limits.rates.local import LocalLimiter
from router.limits.redis_exchange import RedisExchange
from router.limits.remote.budget_client import BudgetClient
from router.limits.remote.budget_session import BudgetSession
from router.limits.remote.charge_journal import ChargeJournal
from router.limits.remote.service_ability import Mode, ServiceAbility, service_dir
from router.limits.remote.service_exchange import ServiceExchange
from router.limits.retry_queue import RetryQueue
from router.limits.settlement_wait import SettlementWait
from router.limits.worker_limits import Limits, ReadWindows
from router.net.resolver import Resolve, system_resolve
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from router.redis.embedded.embedded_redis import redis_address
from router.redis.scripts import Runner


@dataclass(frozen=True, slots=True)
class _Budgets:
    """Where the windows of budgets are: in Redis, or at a budget service."""

    exchange: RedisExchange | ServiceExchange
    read_windows: ReadWindows
    on_unsettled: Callable[[Reservation, Amounts], None]
    journal: ChargeJournal | None = None


def build_limits(
    settings: Settings,
    sum_records: SumRecords,
    *,
    clock: Clock,
    resolve: Resolve = system_resolve,
    runner: Runner | None = None,
    since_ms_of: SinceMsOf = never_added,
    writer_id: str | None = None,
) -> Limits:
    """Wire a worker's limits; connects when first used. ``runner`` is used in place of the Redis of
    ``settings``. ``writer_id`` names the spool of this process, whose agent gives back what it
    leaves reserved if it is killed.

    Raises ``SettingsError`` when the address of Redis cannot be understood.
    """
    outbox, retry_queue = AuditOutbox(clock), RetryQueue()
    redis = None
    if runner is None:
        runner = redis = _connect(settings, resolve, outbox)
    unsettled = UnsettledLeases(
        settings.unsettled_dir, settings.lease_s, offload=ThreadPool(1).apply, clock=clock
    )
    maintenance = LedgerMaintenance(runner, clock=clock, since_ms_of=since_ms_of)
    rebuilder = Rebuilder(
        maintenance, sum_records, spawn=_spawn, on_threshold=outbox.threshold_reached
    )
    entries = Idempotency(
        runner, keep_s=settings.idempotency_keep_s, max_reply_bytes=settings.idempotency_max_bytes
    )
    nonces = Nonces(
        runner,
        clock=clock,
        tolerance_s=settings.signature_tolerance_s,
        quota=settings.nonces_per_key,
    )
    client = _budget_client(settings, clock, resolve, outbox)
    if client is None:
        ledger = Ledger(runner, clock=clock, since_ms_of=since_ms_of)
        budgets = _Budgets(
            RedisExchange(runner, ledger, entries, nonces),
            _read_ledger(RebuildingLedger(ledger, rebuilder), outbox),
            unsettled.put,
        )
    else:
        budgets = _budgets_of_service(settings, client, entries, nonces, retry_queue, outbox)
    rates = _rate_gate(settings, runner, retry_queue, clock)
    settlement_wait = SettlementWait(settings.budget_wait_s)
    unsent = UnsentCalls(None if writer_id is None else settings.unsent_dir / writer_id, clock)
    admission = Admission(
        rates,
        budgets.exchange,
        rebuilder,
        retry_queue,
        settlement_wait=settlement_wait,
        on_unavailable=cast(OnUnavailable, settings.budget_fallback),
        entries_on_unavailable=cast(OnUnavailable, settings.idempotency_fallback),
        on_threshold=outbox.threshold_reached,
        on_unresolved=outbox.found_unresolved,
        on_unsettled=budgets.on_unsettled,
        unsent=unsent,
    )
    return Limits(
        admission=admission,
        rate_gate=rates,
        nonces=nonces,
        settlement_wait=settlement_wait,
        read_windows=budgets.read_windows,
        retry_queue=retry_queue,
        audit_outbox=outbox,
        default_rate=default_rate_limit(settings),
        reservation_rule=reservation_rule(settings),
        lease_ms=int(settings.lease_s * 1000),
        redis=redis,
        budget_client=client,
        charge_journal=budgets.journal,
        unsettled=unsettled,
        held_leases=HeldLeases(maintenance) if client is None and settings.instances > 1 else None,
        unsent=unsent,
    )


def _spawn(task: Callable[[], None]) -> None:
    """Run a task beside the calls of a worker; where there are no greenlets, at once."""
    if is_module_patched("threading"):
        gevent.spawn(task)
    else:
        task()


def _rate_gate(
    settings: Settings, runner: Runner, retry_queue: RetryQueue, clock: Clock
) -> RateGate:
    return RateGate(
        RateLimiter(runner, slot_lease_s=settings.lease_s),
        LocalLimiter(
            settings.workers * settings.instances,
            slot_lease_s=settings.lease_s,
            monotonic_s=clock.monotonic_s,
        ),
        retry_queue,
        on_unavailable=cast(RatesOnUnavailable, settings.rate_limit_fallback),
    )


def _connect(settings: Settings, resolve: Resolve, outbox: AuditOutbox) -> RedisClient:
    try:
        address = redis_address(settings)
    except ValueError as error:
        raise SettingsError([f"RATE_LIMIT_REDIS_ADDR: {error}"]) from None
    options = ConnectionOptions(
        timeout_s=settings.redis_timeout_s, pipeline_commands=True, resolve=resolve
    )
    return RedisClient(address, options, on_change=outbox.dependency_changed)


def _budget_client(
    settings: Settings, clock: Clock, resolve: Resolve, outbox: AuditOutbox
) -> BudgetClient | None:
    if settings.budget_service_endpoint is None:
        return None
    session = BudgetSession(
        timeout_s=settings.budget_service_timeout_s,
        token=settings.budget_service_token,
        resolve=resolve,
    )
    ability = ServiceAbility(
        cast(Mode, settings.budget_service_mode),
        service_dir(settings.data_dir, settings.budget_service_endpoint),
        monotonic_s=clock.monotonic_s,
    )
    return BudgetClient(
        settings.budget_service_endpoint,
        session,
        ability=ability,
        clock=clock,
        on_threshold=outbox.threshold_reached,
        on_change=outbox.dependency_changed,
    )


def _budgets_of_service(
    settings: Settings,
    client: BudgetClient,
    entries: Idempotency,
    nonces: Nonces,
    retry_queue: RetryQueue,
    outbox: AuditOutbox,
) -> _Budgets:
    journal = ChargeJournal(
        service_dir(settings.data_dir, client.endpoint),
        client.settle,
        on_threshold=outbox.threshold_reached,
        offload=lambda work: get_hub().threadpool.apply(work),
    )
    exchange = ServiceExchange(
        client,
        entries,
        nonces,
        retry_queue,
        journal,
        entries_on_unavailable=cast(OnUnavailable, settings.idempotency_fallback),
    )
    # What the service has not taken is in its journal.
    return _Budgets(exchange, _read_service(client), lambda _lease, _amounts: None, journal)


def _read_ledger(ledger: RebuildingLedger, outbox: AuditOutbox) -> ReadWindows:
    def read(
        organization_id: str, windows: Sequence[WindowSpec], _key_id: str
    ) -> Sequence[WindowState]:
        states, events = ledger.read(organization_id, windows)
        for event in events:
            outbox.threshold_reached(organization_id, event)
        return states

    return read


def _read_service(client: BudgetClient) -> ReadWindows:
    return lambda organization_id, windows, key_id: client.read(
        organization_id, windows, key_id=key_id
    )
