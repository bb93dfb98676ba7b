"""Every metric of the router, declared once. Labels come from closed sets only.

A label is never a key, an organization, a model or a path as the client wrote it: a client must not
be able to create series. Backend ids come from the document, so they are closed too.

In a worker the values live in memory-mapped files named by the worker's *slot*, not by its pid
(``use_worker_slot``): a recycled worker goes on counting in the file of its predecessor, so
counters never fall and files do not pile up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

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

Figures = Mapping[str, float | Mapping[str, float]]
"""Values by metric, named without ``api_router_`` and ``_total``; by label where there is one."""

Add = Callable[[float], None]
"""Adds to a metric that has all its labels."""

ATTEMPT_ERRORS: Final = (
    "none", "connect", "transport", "timeout", "status_4xx", "status_429", "status_5xx",
    "credential", "client_gone", "invalid",
)  # fmt: skip

_PREFIX: Final = "api_router_"


def use_worker_slot(slot: int, directory: Path) -> None:
    """Name this process's metric files by ``slot``. Must run before any metric is declared."""
    prometheus_client.values.ValueClass = slot_value_class(f"slot{slot}", directory)


_COUNTERS: Final[dict[str, tuple[str, ...]]] = {
    "requests": (
        "Requests that ended, by endpoint, status and outcome.",
        "endpoint",
        "status",
        "outcome",
    ),
    "tokens": (
        "Tokens of calls, by direction and by where the figure comes from.",
        "direction",
        "source",
    ),
    "cost_nanousd": ("Cost of calls in nano-USD.",),
    "unpriced_usage": (
        "Calls of a priced model that used a class, or had a service tier, without a price.",
        "class",
    ),
    "log_lines_lost": ("Calls whose log line could not be written.",),
    "auth_failures": ("Refused credentials by reason.", "reason"),
    "backend_requests": ("Attempts at backends.", "backend", "error"),
    "records": ("Usage records and audit events that were taken.",),
    "records_refused": (
        "Calls without a record, refused because the spool could not be written.",
        "reason",
    ),
    "records_degraded": ("Records that lack most of their facts.",),
    "records_lost": ("Records that were taken and then lost.",),
    "spool_write_errors": ("Writes that the disk refused.",),
    "spool_sync_errors": ("Syncs that the disk failed.",),
    "rate_limit_denials": ("Calls refused by a rate limit, by limit.", "limit"),
    "budget_denials": ("Calls refused by a budget in USD.", "scope", "period"),
    "quota_denials": ("Calls refused by a quota.", "scope", "unit", "period"),
    "shadow_denials": ("Calls that a limit in shadow mode would have refused.", "limit_type"),
    "idempotency": (
        "Calls with an id that was used before, and calls without protection against that.",
        "outcome",
    ),
    "budget_settled_nanousd": ("Charged to budgets, in nano-USD.",),
    "budget_waits": (
        "Calls that only running calls kept out of a budget, by what a short wait brought.",
        "outcome",
    ),
    "rate_decisions": ("Rate decisions, by who took them.", "source"),
    "limits_deferred_dropped": (
        "What Redis or a budget service will never be told: the queue was full, or it was refused.",
    ),
    "budget_charges_kept": (
        "Charges that the budget service did not take when their call ended, and were put on disk.",
    ),
    "loop_blocks": ("How often one call kept a worker's event loop for more than 100 ms.",),
    "leases_unresolved": ("Calls that never ended and whose lease has expired.",),
    "dependency_away_seconds": (
        "Time for which workers found a dependency unavailable, added up.",
        "dependency",
    ),
}
"""Help text and labels."""

_GAUGES: Final[dict[str, tuple[Any, ...]]] = {
    "requests_in_flight": ("livesum", "Requests being served now."),
    "config_revision": ("livemin", "Lowest configuration revision that a worker serves with."),
    "spool_bytes": ("livemax", "Size of the spool, all workers."),
    "spool_limit_bytes": ("livemax", "Size that it may have."),
    "spool_writable": ("livemin", "1 if no worker refuses calls that it could not record."),
    "spool_unsynced_bytes": ("livesum", "Bytes that a power failure would lose now."),
    "records_held_bytes": ("livesum", "Records buffered in memory because the disk refused them."),
    "agent_up": ("livemax", "1 if an agent ships the records."),
    "record_store_up": ("livemax", "1 if the record store answers."),
    "spool_quarantined_bytes": ("livemax", "Bytes of the spool in which there was no record."),
    "agent_behind_bytes": ("livemax", "Bytes that a sink does not have yet.", "sink"),
    "agent_dead_lettered": (
        "livemax",
        "Records that a sink refused since the agent began.",
        "sink",
    ),
    "agent_sink_failing": ("livemax", "1 if a sink takes no records.", "sink"),
    "budget_reserved_nanousd": ("livesum", "Reserved by running calls, in nano-USD."),
    "budget_charges_waiting": (
        "livesum",
        "Charges on disk that the budget service has not taken yet.",
    ),
    "limits_deferred": ("livesum", "What Redis or a budget service has to be told later."),
    "redis_may_evict": ("livemax", "1 if Redis may forget budgets when its memory is full."),
    "redis_may_lose_writes": ("livemax", "1 if Redis may lose decisions in a failover."),
    "dependency_up": ("livemin", "1 if no worker finds the dependency unavailable.", "dependency"),
}
"""How the values of several workers become one, help text and labels."""

_HISTOGRAMS: Final[dict[str, tuple[Any, ...]]] = {
    "request_duration_seconds": (
        LATENCY_BUCKETS_S,
        "From the request's first byte read to the last byte of its answer.",
        "endpoint",
    ),
    "overhead_seconds": (
        OVERHEAD_BUCKETS_S,
        "Time a call spent in the router itself before its answer began.",
    ),
    "backend_request_duration_seconds": (
        LATENCY_BUCKETS_S,
        "Duration of attempts at backends.",
        "backend",
    ),
    "limit_decision_seconds": (
        DECISION_BUCKETS_S,
        "What a decision about limits added to a call.",
        "kind",
    ),
}
"""Buckets in seconds, help text and labels."""


class Metrics:
    """The router's own metrics; each child is looked up once and kept."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._families: dict[str, Any] = {}
        for name, (text, *labels) in _COUNTERS.items():
            self._families[name] = Counter(
                f"{_PREFIX}{name}_total", text, labels, registry=registry
            )
        for name, (mode, text, *labels) in _GAUGES.items():
            self._families[name] = Gauge(
                f"{_PREFIX}{name}", text, labels, multiprocess_mode=mode, registry=registry
            )
        for name, (buckets, text, *labels) in _HISTOGRAMS.items():
            self._families[name] = Histogram(
                f"{_PREFIX}{name}", text, labels, buckets=buckets, registry=registry
            )
        for source in RATE_SOURCES:  # so that an outage creates no series
            self._child("rate_decisions", source)
        self.running = 0
        """Requests being served by this worker now; changed on every call, hence a plain number."""
        self._published: dict[tuple[str, ...], float] = {}
        self._adds: dict[tuple[str, ...], Add] = {}

    def publish(self, revision: int) -> None:
        """Once a second: the state of this moment, which is not counted."""
        self.publish_figures({"requests_in_flight": self.running, "config_revision": revision})

    def publish_figures(self, figures: Figures) -> None:
        """Once a second: set gauges, and raise counters to what this worker has counted itself.

        Counting there is cheaper: on the path of a call, or in code that knows no metrics.
        """
        for name, found in figures.items():
            by_label = found.items() if isinstance(found, Mapping) else [("", found)]
            for label, value in by_label:
                key = (name, label) if label else (name,)
                if name in _GAUGES:
                    self._child(*key).set(value)
                else:
                    self._raise_to(value, *key)

    def _raise_to(self, total: float, *key: str) -> None:
        grown = total - self._published.get(key, 0)
        if grown:
            self._published[key] = total
            self._inc(*key)(grown)

    def count_request(self, endpoint: str, status: int, outcome: str, duration_s: float) -> None:
        """One request has ended."""
        self._inc("requests", endpoint, str(status), outcome)(1)
        self._observe("request_duration_seconds", endpoint)(duration_s)

    def count_overhead(self, overhead_s: float) -> None:
        """One call spent ``overhead_s`` in the router."""
        self._observe("overhead_seconds")(overhead_s)

    def count_usage(self, source: str, tokens_input: int, tokens_output: int) -> None:
        """One call's tokens; a call without usage counts too, with its source."""
        self._inc("tokens", "input", source)(tokens_input)
        self._inc("tokens", "output", source)(tokens_output)

    def count_cost(self, cost_nanos: int) -> None:
        """One call's cost."""
        self._inc("cost_nanousd")(cost_nanos)

    def count_unpriced(self, name: str) -> None:
        """One call used a class that its model has no price for; ``name`` may be service_tier."""
        self._inc("unpriced_usage", name)(1)

    def count_lost_line(self) -> None:
        """One call has no line in the log."""
        self._inc("log_lines_lost")(1)

    def count_auth_failure(self, reason: str) -> None:
        """One refused credential."""
        self._inc("auth_failures", reason)(1)

    def count_rate_denial(self, limit: str) -> None:
        """One call refused by a rate limit; ``limit`` is its name, such as ``key-requests``."""
        self._inc("rate_limit_denials", limit)(1)

    def count_budget_denial(self, scope: str, period: str) -> None:
        """One call refused by a budget in USD."""
        self._inc("budget_denials", scope, period)(1)

    def count_quota_denial(self, scope: str, unit: str, period: str) -> None:
        """One call refused by a quota."""
        self._inc("quota_denials", scope, unit, period)(1)

    def count_shadow_denial(self, limit_type: str) -> None:
        """One call that a limit in shadow mode would have refused."""
        self._inc("shadow_denials", limit_type)(1)

    def count_idempotency(self, outcome: IdempotencyOutcome) -> None:
        """One call that was not simply new."""
        self._inc("idempotency", outcome)(1)

    def count_settled(self, cost_nanos: int) -> None:
        """One call was charged to budgets."""
        self._inc("budget_settled_nanousd")(cost_nanos)

    def count_decision(self, kind: DecisionKind, duration_s: float) -> None:
        """One decision about the limits of a call."""
        self._observe("limit_decision_seconds", kind)(duration_s)

    def count_attempt(self, backend_id: str, error: str, duration_s: float) -> None:
        """One try at a backend; ``error`` is one of ``ATTEMPT_ERRORS``."""
        self._inc("backend_requests", backend_id, error)(1)
        self._observe("backend_request_duration_seconds", backend_id)(duration_s)

    # A call counts a dozen things. The library checks each time whether a metric may be counted at
    # all, which costs more than counting; so the method that counts is looked up once and kept.

    def _inc(self, *key: str) -> Add:
        """Adds to a counter, by its name and labels."""
        add = self._adds.get(key)
        if add is None:
            add = self._adds[key] = self._child(*key)._value.inc
        return add

    def _observe(self, *key: str) -> Add:
        """Adds to a histogram, by its name and labels."""
        add = self._adds.get(key)
        if add is None:
            add = self._adds[key] = _observer(self._child(*key))
        return add

    def _child(self, name: str, *labels: str) -> Any:
        family = self._families[name]
        return family.labels(*labels) if labels else family


def _observer(child: Histogram) -> Add:
    """What :meth:`Histogram.observe` does: add to the sum and to the bucket of the amount."""
    bounds = child._upper_bounds
    add_to_sum, add_to = child._sum.inc, [bucket.inc for bucket in child._buckets]

    def observe(amount: float) -> None:
        add_to_sum(amount)
        add_to[bisect_left(bounds, amount)](1)

    return observe
