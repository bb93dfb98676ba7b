"""What one worker holds: built after fork, shown once a second, closed at exit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gevent.threadpool import ThreadPool
from itsdangerous import URLSafeSerializer
from prometheus_client import CollectorRegistry

from router.auth.authenticator import Authenticator
from router.clock import Clock
from router.config.lease_rule import LeaseWarnings
from router.config.pepper import load_pepper, pepper_fingerprint
from router.config.settings import Settings, resolve_credential
from router.config.state.state_reader import StateReader
from router.errors import NotConfigured
from router.limits.worker_limits import Limits
from router.net.resolver import Resolver
from router.pricing.token_counter import TokenCounter, load_token_counter
from router.readiness import components
from router.readiness.components import Component, StateHistory
from router.readiness.watch import Observation, Watch, watch_host
from router.records.recorder import Recorder
from router.redis.scripts import Runner
from router.services.limits_wiring import build_limits
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
    cursors: URLSafeSerializer
    """Signs where the next page of a list begins."""
    metrics: Metrics
    call_log: CallLog
    lease_warnings: LeaseWarnings
    token_counter: TokenCounter | None
    """``None`` without a vocabulary."""

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
    clock, vocabulary = clock or Clock(), settings.token_vocabulary
    state = StateReader(settings.state_dir)
    pepper = load_pepper(settings, create=True)
    session = BackendSession(pool_size=settings.backend_pool_size, idle_s=settings.backend_idle_s)
    queries = Queries(
        RecordStore(settings.store_url, read_only=True, query_timeout_s=settings.query_timeout_s),
        timeout_s=settings.query_timeout_s,
    )
    rebuild_queries = open_rebuild_queries(settings)
    recorder = Recorder(open_spool(settings, clock))
    return Services(
        settings=settings,
        clock=clock,
        state=state,
        authenticator=_authenticator(settings, state, pepper, clock),
        forwarder=_forwarder(settings, session),
        session=session,
        pepper_fingerprint=pepper_fingerprint(pepper),
        recorder=recorder,
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
            writer_id=recorder.spool.writer_id,
        ),
        cursors=URLSafeSerializer(pepper, signer_kwargs={"digest_method": hashlib.sha256}),
        metrics=Metrics(CollectorRegistry()),
        call_log=CallLog(),
        lease_warnings=LeaseWarnings(settings.lease_s),
        token_counter=None if vocabulary is None else load_token_counter(vocabulary),
    )


def _authenticator(
    settings: Settings, state: StateReader, pepper: bytes, clock: Clock
) -> Authenticator:
    return Authenticator(
        find_key=state.find_key,
        pepper=pepper,
        clock=clock,
        demo=settings.demo,
        tolerance_s=settings.signature_tolerance_s,
    )


def _forwarder(settings: Settings, session: BackendSession) -> Forwarder:
    return Forwarder(
        session,
        read_credential=resolve_credential,
        max_reply_bytes=settings.max_reply_bytes,
        drain_on_abort=settings.on_client_abort == "drain",
        # The promise is 10 retries a second for the router, so each worker gets its part.
        retry_budget=RetryBudget(per_second=PER_SECOND / settings.workers),
    )


def open_spool(settings: Settings, clock: Clock) -> SpoolWriter:
    """The spool of this process, which runs on gevent."""
    return SpoolWriter(
        settings.spool_dir,
        max_bytes=settings.spool_max_bytes,
        segment_bytes=settings.spool_segment_bytes,
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
