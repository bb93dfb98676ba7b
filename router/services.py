"""The only place that wires: settings in, one set of clients out."""

from __future__ import annotations

from dataclasses import dataclass

from gevent.threadpool import ThreadPool
from prometheus_client import CollectorRegistry

from router.auth.authenticator import Authenticator
from router.auth.nonces import NonceStore
from router.clock import Clock
from router.config.pepper import load_pepper, pepper_fingerprint
from router.config.settings import Settings, resolve_credential
from router.config.state.access import StateReader
from router.errors import NotConfigured
from router.limits.enforcement import Enforcement, LimitFigures, build_enforcement
from router.limits.rates.limiter import Runner
from router.net.resolver import Resolver
from router.readiness import components
from router.readiness.components import Component, StateHistory
from router.readiness.watch import Surroundings, Watch, watch_host
from router.records.recorder import Recorder
from router.routing.engine import RoutingEngine
from router.routing.models import Gateway
from router.spool.writer import SpoolWriter
from router.store.query_pool import Queries
from router.store.record_store import RecordStore
from router.store.spend import sum_records_of
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
    gateway: Gateway
    session: BackendSession
    recorder: Recorder
    queries: Queries
    watch: Watch
    history: StateHistory
    enforcement: Enforcement
    pepper_fingerprint: str
    """Tells whether the stored keys were made with the pepper that this worker checks them with."""
    metrics: Metrics
    call_log: CallLog

    def heartbeat(self) -> None:
        """Once a second: show how the worker is, also while nobody calls."""
        try:
            revision = self.state.document().revision
        except NotConfigured:
            revision = 0
        self.metrics.publish(revision)
        self.metrics.publish_figures(_record_figures(self.recorder))
        self.enforcement.tick(self.recorder)
        self.metrics.publish_figures(limit_figures(self.enforcement.figures()))
        self.watch.tick()
        if self.watch.seen is not None:
            self.metrics.publish_figures(_shipping_figures(self.watch.seen))
        self.components()  # so that it is noted when a state began

    def components(self) -> dict[str, Component]:
        """How each thing is that a call needs, and since when."""
        seen = self.watch.seen
        return self.history.dated(
            {
                "configuration": components.configuration(self.state, self.pepper_fingerprint),
                "backends": components.backends(self.state, seen),
                "limits": components.limits(self.settings, self.enforcement.breaker_states()),
                "records": components.records(self.recorder.spool),
                "agent": components.agent(seen),
                "store": components.store(seen),
            }
        )

    def close(self) -> None:
        """Give back connections and files."""
        self.session.close()
        self.enforcement.close(self.recorder)
        self.recorder.close()
        self.metrics.publish_figures(_record_figures(self.recorder))
        self.queries.close()
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
    return Services(
        settings=settings,
        clock=clock,
        state=state,
        authenticator=authenticator,
        gateway=Gateway(RoutingEngine(), forwarder),
        session=session,
        pepper_fingerprint=pepper_fingerprint(pepper),
        recorder=Recorder(_open_spool(settings, clock)),
        queries=queries,
        watch=watch_host(settings, state, queries.check, clock),
        history=StateHistory(clock),
        enforcement=build_enforcement(
            settings,
            sum_records_of(queries, settings),
            clock=clock,
            resolve=Resolver().resolve,
            runner=runner,
        ),
        metrics=Metrics(CollectorRegistry()),
        call_log=CallLog(),
    )


def _open_spool(settings: Settings, clock: Clock) -> SpoolWriter:
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
        "records_held_bytes": status.held_bytes,
        "records_lost": status.lost_frames,
        "records_degraded": recorder.degraded,
        "records_refused": recorder.refused,
    }


def limit_figures(found: LimitFigures) -> Figures:
    """The state of a worker's limits by the names of its metrics."""
    return {
        "rate_decisions": found.decisions,
        "budget_reserved_nanousd": found.reserved_nanos,
        "limits_deferred": found.deferred,
        "limits_deferred_dropped": found.deferred_dropped,
        "leases_unresolved": found.unresolved,
        "redis_may_evict": found.may_evict,
        "dependency_up": found.is_up,
        "dependency_away_seconds": found.unavailable_s,
    }


def _shipping_figures(seen: Surroundings) -> Figures:
    sinks = seen.shipping.sinks
    return {
        "agent_up": seen.shipping.is_running and seen.shipping.silent_s is None,
        "record_store_up": seen.store_fault is None,
        "spool_quarantined_bytes": seen.shipping.quarantined_bytes,
        "agent_behind_bytes": {name: sink.behind_bytes for name, sink in sinks.items()},
        "agent_dead_lettered": {name: sink.dead_lettered for name, sink in sinks.items()},
        "agent_sink_failing": {name: sink.failing is not None for name, sink in sinks.items()},
    }
