"""Every metric of the router, declared once. Labels come from closed sets only.

Never a key, an organization, a model or a path as the client wrote it: what a client can choose
freely must not create series. Backend ids come from the document, so they are closed too.

In a worker the values live in memory-mapped files named by the worker's *slot*, not by its pid
(``use_worker_slot``): a recycled worker goes on counting in the file of its predecessor, so
counters never fall and files do not pile up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import prometheus_client.values
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router.telemetry.slot_values import slot_value_class

LATENCY_BUCKETS_S: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
OVERHEAD_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
RATE_SOURCES: Final = ("redis", "local", "open")

DECISION_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 2.0)

IdempotencyOutcome = Literal["replayed", "in_progress", "mismatch", "not_kept", "unprotected"]
DecisionKind = Literal["rate", "budget", "joint"]

Add = Callable[[float], None]
"""Adds to a metric that has all its labels."""

ATTEMPT_ERRORS: Final = (
    "none", "connect", "transport", "timeout", "status_4xx", "status_429", "status_5xx",
    "credential", "client_gone", "invalid",
)  # fmt: skip


def use_worker_slot(slot: int, directory: Path) -> None:
    """Name this process's metric files by ``slot``. Must run before any metric is declared."""
    prometheus_client.values.ValueClass = slot_value_class(f"slot{slot}", directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFigures:
    """What one worker knows of the records that it writes; what is counted, since it began."""

    spool_bytes: int
    spool_max_bytes: int
    unsynced_bytes: int
    held_bytes: int
    is_writable: bool
    taken: int
    lost: int
    degraded: int
    refused: Mapping[str, int]
    """By reason: a closed set."""
    write_errors: int
    sync_errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippingFigures:
    """What every worker of a host sees alike; mappings are by sink, a closed set."""

    is_agent_running: bool
    is_store_answering: bool
    quarantined_bytes: int
    behind_bytes: Mapping[str, int]
    dead_lettered: Mapping[str, int]
    failing: Mapping[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFigures:
    """What one worker knows of its limits; what is counted, since it began."""

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


class Metrics:
    """The router's own metrics; children are looked up once and kept."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "api_router_requests_total",
            "Requests that ended, by endpoint, status and outcome.",
            ("endpoint", "status", "outcome"),
            registry=registry,
        )
        self._duration = Histogram(
            "api_router_request_duration_seconds",
            "From the request's first byte read to the last byte of its answer.",
            ("endpoint",),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._overhead = Histogram(
            "api_router_overhead_seconds",
            "Time a call spent in the router itself before its answer began.",
            (),
            buckets=OVERHEAD_BUCKETS_S,
            registry=registry,
        )
        self._tokens = Counter(
            "api_router_tokens_total",
            "Tokens of calls, by direction and by where the figure comes from.",
            ("direction", "source"),
            registry=registry,
        )
        self._cost = Counter(
            "api_router_cost_nanousd_total",
            "Cost of calls in nano-USD.",
            (),
            registry=registry,
        )
        self._lost_lines = Counter(
            "api_router_log_lines_lost_total",
            "Calls whose log line could not be written.",
            (),
            registry=registry,
        )
        self._auth_failures = Counter(
            "api_router_auth_failures_total",
            "Refused credentials by reason.",
            ("reason",),
            registry=registry,
        )
        self._backend_requests = Counter(
            "api_router_backend_requests_total",
            "Attempts at backends.",
            ("backend", "error"),
            registry=registry,
        )
        self._backend_duration = Histogram(
            "api_router_backend_request_duration_seconds",
            "Duration of attempts at backends.",
            ("backend",),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.running = 0
        """Requests being served by this worker now; changed on every call, hence a plain number."""
        self._in_flight = Gauge(
            "api_router_requests_in_flight",
            "Requests being served now.",
            (),
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._revision = Gauge(
            "api_router_config_revision",
            "Lowest configuration revision that a worker serves with.",
            (),
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._declare_records(registry)
        self._declare_shipping(registry)
        self._declare_limits(registry)
        self._declare_limit_health(registry)
        self._published: dict[str, float] = {}
        self._adds: dict[tuple[str, ...], Add] = {}

    def _declare_records(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, mode: Literal["livemax", "livesum", "livemin"]) -> Gauge:
            return Gauge(f"api_router_{name}", text, (), multiprocess_mode=mode, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"api_router_{name}_total", text, labels, registry=registry)

        self._spool_bytes = gauge("spool_bytes", "Size of the spool, all workers.", "livemax")
        self._spool_max = gauge("spool_limit_bytes", "Size that it may have.", "livemax")
        self._spool_writable = gauge(
            "spool_writable", "1 if no worker refuses calls that it could not record.", "livemin"
        )
        self._unsynced = gauge(
            "spool_unsynced_bytes", "What a power failure would take now.", "livesum"
        )
        self._held = gauge(
            "records_held_bytes", "Records kept in memory because the disk refused them.", "livesum"
        )
        self._taken = counter("records", "Usage records and audit events that were taken.")
        self._refused = counter(
            "records_refused",
            "Calls without a record, refused because the spool could not be written.",
            "reason",
        )
        self._degraded = counter("records_degraded", "Records that lack most of their facts.")
        self._lost = counter("records_lost", "Records that were taken and then lost.")
        self._write_errors = counter("spool_write_errors", "Writes that the disk refused.")
        self._sync_errors = counter("spool_sync_errors", "Syncs that the disk failed.")

    def _declare_shipping(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(
                f"api_router_{name}", text, labels, multiprocess_mode="livemax", registry=registry
            )

        self._agent_up = gauge("agent_up", "1 if an agent ships the records.")
        self._store_up = gauge("record_store_up", "1 if the record store answers.")
        self._quarantined = gauge(
            "spool_quarantined_bytes", "Bytes of the spool in which there was no record."
        )
        self._behind = gauge("agent_behind_bytes", "Bytes that a sink does not have yet.", "sink")
        self._dead_lettered = gauge(
            "agent_dead_lettered", "Records that a sink refused since the agent began.", "sink"
        )
        self._failing = gauge("agent_sink_failing", "1 if a sink takes no records.", "sink")

    def _declare_limits(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"api_router_{name}_total", text, labels, registry=registry)

        self._rate_denials = counter(
            "rate_limit_denials", "Calls refused by a rate limit, by limit.", "limit"
        )
        self._budget_denials = counter(
            "budget_denials", "Calls refused by a budget in USD.", "scope", "period"
        )
        self._quota_denials = counter(
            "quota_denials", "Calls refused by a quota.", "scope", "unit", "period"
        )
        self._shadow_denials = counter(
            "shadow_denials", "Calls that a limit in shadow mode would have refused.", "limit_type"
        )
        self._idempotency = counter(
            "idempotency",
            "Calls with an id that was used before, and calls without protection against that.",
            "outcome",
        )
        self._settled = counter("budget_settled_nanousd", "Charged to budgets, in nano-USD.")
        self._rate_decisions = counter(
            "rate_decisions", "Rate decisions, by who took them.", "source"
        )
        for source in RATE_SOURCES:  # so that an outage makes no series
            self._rate_decisions.labels(source)
        self._decision_duration = Histogram(
            "api_router_limit_decision_seconds",
            "What a decision about limits added to a call.",
            ("kind",),
            buckets=DECISION_BUCKETS_S,
            registry=registry,
        )

    def _declare_limit_health(self, registry: CollectorRegistry) -> None:
        def gauge(
            name: str, text: str, mode: Literal["livemax", "livesum", "livemin"], *labels: str
        ) -> Gauge:
            return Gauge(
                f"api_router_{name}", text, labels, multiprocess_mode=mode, registry=registry
            )

        self._budget_held = gauge(
            "budget_reserved_nanousd", "Held by calls that run, in nano-USD.", "livesum"
        )
        self._retry_queue = gauge(
            "limits_deferred", "What Redis or a budget service has to be told later.", "livesum"
        )
        self._deferred_dropped = Counter(
            "api_router_limits_deferred_dropped_total",
            "What it will never be told: too much waited, or it was refused.",
            (),
            registry=registry,
        )
        self._unresolved = Counter(
            "api_router_leases_unresolved_total",
            "Calls that never ended and whose lease has expired.",
            (),
            registry=registry,
        )
        self._may_evict = gauge(
            "redis_may_evict", "1 if Redis may forget budgets when its memory is full.", "livemax"
        )
        self._dependency_up = gauge(
            "dependency_up", "1 if no worker finds it away.", "livemin", "dependency"
        )
        self._dependency_away = Counter(
            "api_router_dependency_away_seconds_total",
            "Time for which workers found it away, added up.",
            ("dependency",),
            registry=registry,
        )

    def publish_limits(self, figures: LimitFigures) -> None:
        """Once a second: how this worker's limits are doing."""
        self._budget_held.set(figures.reserved_nanos)
        self._retry_queue.set(figures.deferred)
        self._may_evict.set(figures.may_evict)
        self._raise_to(self._deferred_dropped, figures.deferred_dropped)
        self._raise_to(self._unresolved, figures.unresolved)
        for source, count in figures.decisions.items():
            self._raise_to(self._rate_decisions, count, source)
        for dependency, is_up in figures.is_up.items():
            self._dependency_up.labels(dependency).set(is_up)
        for dependency, unavailable_s in figures.unavailable_s.items():
            self._raise_to(self._dependency_away, unavailable_s, dependency)

    def publish_records(self, figures: RecordFigures) -> None:
        """Once a second: how this worker's records are doing."""
        self._spool_bytes.set(figures.spool_bytes)
        self._spool_max.set(figures.spool_max_bytes)
        self._spool_writable.set(figures.is_writable)
        self._unsynced.set(figures.unsynced_bytes)
        self._held.set(figures.held_bytes)
        self._raise_to(self._taken, figures.taken)
        self._raise_to(self._degraded, figures.degraded)
        self._raise_to(self._lost, figures.lost)
        self._raise_to(self._write_errors, figures.write_errors)
        self._raise_to(self._sync_errors, figures.sync_errors)
        for reason, count in figures.refused.items():
            self._raise_to(self._refused, count, reason)

    def publish_shipping(self, figures: ShippingFigures) -> None:
        """Once a second: what becomes of the records of this host."""
        self._agent_up.set(figures.is_agent_running)
        self._store_up.set(figures.is_store_answering)
        self._quarantined.set(figures.quarantined_bytes)
        for sink, behind_bytes in figures.behind_bytes.items():
            self._behind.labels(sink).set(behind_bytes)
        for sink, count in figures.dead_lettered.items():
            self._dead_lettered.labels(sink).set(count)
        for sink, is_failing in figures.failing.items():
            self._failing.labels(sink).set(is_failing)

    def _raise_to(self, family: Counter, total: float, *labels: str) -> None:
        """Count on to a total that this worker has counted itself, where counting is cheaper."""
        key = " ".join((family._name, *labels))
        grown = total - self._published.get(key, 0)
        if grown:
            self._published[key] = total
            self._inc(family, *labels)(grown)

    def publish(self, revision: int) -> None:
        """Once a second: what is true now, rather than counted."""
        self._in_flight.set(self.running)
        self._revision.set(revision)

    def count_request(self, endpoint: str, status: int, outcome: str, duration_s: float) -> None:
        """One request has ended."""
        self._inc(self._requests, endpoint, str(status), outcome)(1)
        self._observe(self._duration, endpoint)(duration_s)

    def count_overhead(self, overhead_s: float) -> None:
        """One call spent ``overhead_s`` in the router."""
        self._observe(self._overhead)(overhead_s)

    def count_usage(self, source: str, tokens_input: int, tokens_output: int) -> None:
        """One call's tokens; a call without usage counts too, with its source."""
        self._inc(self._tokens, "input", source)(tokens_input)
        self._inc(self._tokens, "output", source)(tokens_output)

    def count_cost(self, cost_nanos: int) -> None:
        """One call's cost."""
        self._inc(self._cost)(cost_nanos)

    def count_lost_line(self) -> None:
        """One call has no line in the log."""
        self._inc(self._lost_lines)(1)

    def count_auth_failure(self, reason: str) -> None:
        """One refused credential."""
        self._inc(self._auth_failures, reason)(1)

    def count_rate_denial(self, limit: str) -> None:
        """One call refused by a rate limit; ``limit`` is its name, such as ``key-requests``."""
        self._inc(self._rate_denials, limit)(1)

    def count_budget_denial(self, scope: str, period: str) -> None:
        """One call refused by a budget in USD."""
        self._inc(self._budget_denials, scope, period)(1)

    def count_quota_denial(self, scope: str, unit: str, period: str) -> None:
        """One call refused by a quota."""
        self._inc(self._quota_denials, scope, unit, period)(1)

    def count_shadow_denial(self, limit_type: str) -> None:
        """One call that a limit in shadow mode would have refused."""
        self._inc(self._shadow_denials, limit_type)(1)

    def count_idempotency(self, outcome: IdempotencyOutcome) -> None:
        """One call that was not simply new."""
        self._inc(self._idempotency, outcome)(1)

    def count_settled(self, cost_nanos: int) -> None:
        """One call was charged to budgets."""
        self._inc(self._settled)(cost_nanos)

    def count_decision(self, kind: DecisionKind, duration_s: float) -> None:
        """One decision about the limits of a call."""
        self._observe(self._decision_duration, kind)(duration_s)

    def count_attempt(self, backend_id: str, error: str, duration_s: float) -> None:
        """One try at a backend; ``error`` is one of ``ATTEMPT_ERRORS``."""
        self._inc(self._backend_requests, backend_id, error)(1)
        self._observe(self._backend_duration, backend_id)(duration_s)

    # A call counts a dozen things. The library looks at each of them whether it may be counted at
    # all, which costs more than counting; so what counts is looked up once and kept.

    def _inc(self, family: Counter, *labels: str) -> Add:
        key = (family._name, *labels)
        add = self._adds.get(key)
        if add is None:
            child = family.labels(*labels) if labels else family
            add = self._adds[key] = child._value.inc
        return add

    def _observe(self, family: Histogram, *labels: str) -> Add:
        key = (family._name, *labels)
        add = self._adds.get(key)
        if add is None:
            child = family.labels(*labels) if labels else family
            add = self._adds[key] = _observer(child)
        return add


def _observer(child: Histogram) -> Add:
    """What :meth:`Histogram.observe` does: to the sum, and to the bucket that the amount is in."""
    bounds = child._upper_bounds
    add_to_sum, add_to = child._sum.inc, [bucket.inc for bucket in child._buckets]

    def observe(amount: float) -> None:
        add_to_sum(amount)
        add_to[bisect_left(bounds, amount)](1)

    return observe
