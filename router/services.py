"""Builds the objects of one worker from its settings; no other module of the worker wires."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import gevent
from gevent import get_hub
from gevent.monkey import is_module_patched
from gevent.threadpool import ThreadPool
from prometheus_client import CollectorRegistry

from router.auth.authenticator import Authenticator
from router.auth.nonces import NonceStore
from router.clock import Clock
from router.config.lease_rule import LeaseWarnings
from router.config.pepper import load_pepper, pepper_fingerprint
from router.config.settings import Settings, SettingsError, resolve_credential
from router.config.state.state_reader import StateReader
from router.errors import NotConfigured
from router.limits.admission import Admission, OnUnavailable
from router.limits.audit_outbox import AuditOutbox
from router.limits.budgets.ledger import Ledger, SinceMsOf, never_added
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.rebuilding import Rebuilder, RebuildingLedger, SumRecords
from router.limits.budgets.windows import WindowSpec, WindowState
from router.limits.configured import default_rate_limit, reservation_rule
from router.limits.idempotency.entries import Idempotency
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
from router.limits.unsettled_leases import UnsettledLeases
from router.limits.worker_limits import Limits, ReadWindows
from router.net.resolver import Resolve, Resolver, system_resolve
from router.readiness import components
from router.readiness.components import Component, StateHistory
from router.readiness.watch import Observation, Watch, watch_host
from router.records.recorder import Recorder
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from router.redis.embedded.embedded_redis import redis_address
from router.redis.scripts import Runner
from router.spool.writer import SpoolWriter
from router.store.query_pool import Queries
from router.store.record_store import RecordStore
from router.store.spend import open_rebuild_queries, sum_records_of
from router.telemetry.logs import CallLog
from router.telemetry.metrics import Figures, Metrics
from router.upstream.forwarder import Forwarder
from router.upstream.retry_budget import PER_SECOND, RetryBudget
from router.upstream.session import BackendSession


@dataclass(frozen=True, slots=True)
class Services:
    """What one worker holds. Built after fork, closed at exit."""

    settings: Settings
    clock: Clock
    state: StateReader
    authenticator: Authenticator
    forwarder: Forwarder
    session: BackendSession
    recorder: Recorder
    queries: Queries
    rebuild_queries: Queries
    """Apart from those of the API: neither keeps the other waiting."""
    watch: Watch
    history: StateHistory
    limits: Limits
    pepper_fingerprint: str
    """Tells whether the stored keys were made with the pepper that this worker checks them with."""
    metrics: Metrics
    call_log: CallLog
    lease_warnings: LeaseWarnings

    def heartbeat(self) -> None:
        """Once a second: show how the worker is, also while nobody calls."""
        try:
            document = self.state.document()
        except NotConfigured:
            revision = 0
        else:
            revision = document.revision
            self.lease_warnings.check(document)
        self.metrics.publish(revision)
        self.metrics.publish_figures(_record_figures(self.recorder))
        self.limits.tick(self.recorder)
        self.recorder.mark_settled()
        self.metrics.publish_figures(self.limits.figures())
        self.watch.tick()
        if self.watch.observed is not None:
            self.metrics.publish_figures(_shipping_figures(self.watch.observed))
        self.components()  # so that it is noted when a state began

    def components(self) -> dict[str, Component]:
        """How each thing is that a call needs, and since when."""
        seen = self.watch.observed
        return self.history.dated(
            {
                "configuration": components.configuration(self.state, self.pepper_fingerprint),
                "backends": components.backends(self.state, seen),
                "limits": components.limits(self.settings, self.limits.breaker_states()),
                "records": components.records(self.recorder.spool),
                "agent": components.agent(seen),
                "store": components.store(seen),
            }
        )

    def take_over(self, slot: int) -> None:
        """Go on with what the last worker of this slot has left in memory that is shared."""
        if self.settings.metrics_dir is not None:
            self.limits.rate_gate.take_over(self.settings.metrics_dir / f"slot{slot}.shares")

    def close(self) -> None:
        """Give back connections and files."""
        self.session.close()
        self.limits.close(self.recorder)
        self.recorder.close()
        self.metrics.publish_figures(_record_figures(self.recorder))
        self.queries.close()
        self.rebuild_queries.close()
        self.state.close()


def build_services(
    settings: Settings, *, clock: Clock | None = None, runner: Runner | None = None
) -> Services:
    """Wire a worker. Starts with nothing applied yet, and with everything else down.

    ``runner`` runs scripts in place of the Redis of ``settings``.
    """
    clock = clock or Clock()
    state = StateReader(settings.state_dir)
    session = BackendSession(pool_size=settings.backend_pool_size, idle_s=settings.backend_idle_s)
    forwarder = Forwarder(
        session,
        read_credential=resolve_credential,
        max_reply_bytes=settings.max_reply_bytes,
        drain_on_abort=settings.on_client_abort == "drain",
        # The promise is 10 retries a second for the router, so each worker gets its part.
        retry_budget=RetryBudget(per_second=PER_SECOND / settings.workers),
    )
    pepper = load_pepper(settings, create=True)
    authenticator = Authenticator(
        find_key=state.find_key,
        pepper=pepper,
        clock=clock,
        nonces=NonceStore(tolerance_s=settings.signature_tolerance_s),
        demo=settings.demo,
        tolerance_s=settings.signature_tolerance_s,
    )
    queries = Queries(
        RecordStore(settings.store_url, read_only=True, query_timeout_s=settings.query_timeout_s),
        timeout_s=settings.query_timeout_s,
    )
    rebuild_queries = open_rebuild_queries(settings)
    return Services(
        settings=settings,
        clock=clock,
        state=state,
        authenticator=authenticator,
        forwarder=forwarder,
        session=session,
        pepper_fingerprint=pepper_fingerprint(pepper),
        recorder=Recorder(open_spool(settings, clock)),
        queries=queries,
        rebuild_queries=rebuild_queries,
        watch=watch_host(settings, state, queries.check, clock),
        history=StateHistory(clock),
        limits=build_limits(
            settings,
            sum_records_of(rebuild_queries, settings),
            clock=clock,
            resolve=Resolver().resolve,
            runner=runner,
            since_ms_of=state.budgets_added_ms,
        ),
        metrics=Metrics(CollectorRegistry()),
        call_log=CallLog(),
        lease_warnings=LeaseWarnings(settings.lease_s),
    )


def build_limits(
    settings: Settings,
    sum_records: SumRecords,
    *,
    clock: Clock,
    resolve: Resolve = system_resolve,
    runner: Runner | None = None,
    since_ms_of: SinceMsOf = never_added,
) -> Limits:
    """Wire a worker's limits; connects when first used. ``runner`` is used in place of the Redis of
    ``settings``.

    Raises ``SettingsError`` when the address of Redis cannot be understood.
    """
    outbox, retry_queue = AuditOutbox(clock), RetryQueue()
    unsettled = UnsettledLeases(
        settings.unsettled_dir, settings.lease_s, offload=ThreadPool(1).apply, clock=clock
    )
    settlement_wait = SettlementWait(settings.budget_wait_s)
    redis = None
    if runner is None:
        runner = redis = _connect(settings, resolve, outbox)
    rates = _rate_gate(settings, runner, retry_queue, clock)
    ledger = Ledger(runner, clock=clock, since_ms_of=since_ms_of)
    maintenance = LedgerMaintenance(runner, clock=clock, since_ms_of=since_ms_of)
    rebuilder = Rebuilder(
        maintenance, sum_records, spawn=_spawn, on_threshold=outbox.threshold_reached
    )
    entries = Idempotency(
        runner, keep_s=settings.idempotency_keep_s, max_reply_bytes=settings.idempotency_max_bytes
    )
    entries_on_unavailable = cast(OnUnavailable, settings.idempotency_fallback)
    client = _budget_client(settings, clock, resolve, outbox)
    exchange: RedisExchange | ServiceExchange
    journal: ChargeJournal | None = None
    if client is None:
        exchange = RedisExchange(runner, ledger, entries)
        read_windows = _read_ledger(RebuildingLedger(ledger, rebuilder), outbox)
    else:
        journal = ChargeJournal(
            service_dir(settings.data_dir, client.endpoint),
            client.settle,
            on_threshold=outbox.threshold_reached,
            offload=lambda work: get_hub().threadpool.apply(work),
        )
        exchange = ServiceExchange(
            client,
            entries,
            retry_queue,
            journal,
            entries_on_unavailable=entries_on_unavailable,
        )
        read_windows = _read_service(client)
    return Limits(
        admission=Admission(
            rates,
            exchange,
            rebuilder,
            retry_queue,
            settlement_wait=settlement_wait,
            on_unavailable=cast(OnUnavailable, settings.budget_fallback),
            entries_on_unavailable=entries_on_unavailable,
            on_threshold=outbox.threshold_reached,
            on_unresolved=outbox.found_unresolved,
            # The journal has what is for a budget service.
            on_unsettled=unsettled.put if client is None else lambda _lease, _amounts: None,
        ),
        rate_gate=rates,
        settlement_wait=settlement_wait,
        read_windows=read_windows,
        retry_queue=retry_queue,
        audit_outbox=outbox,
        default_rate=default_rate_limit(settings),
        reservation_rule=reservation_rule(settings),
        lease_ms=int(settings.lease_s * 1000),
        redis=redis,
        budget_client=client,
        charge_journal=journal,
        unsettled=unsettled,
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


def open_spool(settings: Settings, clock: Clock) -> SpoolWriter:
    """The spool of this process, which runs on gevent."""
    return SpoolWriter(
        settings.spool_dir,
        max_bytes=settings.spool_max_bytes,
        mode="durable" if settings.spool_mode == "durable" else "fast",
        # One thread of its own, so that nothing else that runs on native threads delays a sync.
        offload=ThreadPool(1).apply,
        clock=clock,
    )


def _record_figures(recorder: Recorder) -> Figures:
    status = recorder.spool.status()
    return {
        "spool_bytes": status.total_bytes,
        "spool_limit_bytes": status.max_bytes,
        "spool_writable": status.refusal is None,
        "spool_unsynced_bytes": status.unsynced_bytes,
        "spool_write_errors": status.write_errors,
        "spool_sync_errors": status.sync_errors,
        "records": recorder.taken,
        "records_held_bytes": status.buffered_bytes,
        "records_lost": status.lost_frames,
        "records_degraded": recorder.degraded,
        "records_refused": recorder.refused,
    }


def _shipping_figures(seen: Observation) -> Figures:
    sinks = seen.shipping.sinks
    return {
        "agent_up": seen.shipping.is_running and seen.shipping.silent_s is None,
        "record_store_up": seen.store_error is None,
        "spool_quarantined_bytes": seen.shipping.quarantined_bytes,
        "agent_behind_bytes": {name: sink.behind_bytes for name, sink in sinks.items()},
        "agent_dead_lettered": {name: sink.dead_lettered for name, sink in sinks.items()},
        "agent_sink_failing": {name: sink.failing is not None for name, sink in sinks.items()},
    }
