"""What a scrape shows: names, closed label sets, and one sample for each thing that is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from router.api.steps.settlement import _error_class
from router.call import OUTCOMES, Attempt, Outcome, UsageSource
from router.limits.rates.decision import Source
from router.telemetry.metrics import (
    ATTEMPT_ERRORS,
    DECISION_BUCKETS_S,
    LATENCY_BUCKETS_S,
    OVERHEAD_BUCKETS_S,
    RATE_SOURCES,
    Metrics,
)

FAMILIES = {
    "api_router_requests": ("counter", {"endpoint", "status", "outcome"}),
    "api_router_request_duration_seconds": ("histogram", {"endpoint"}),
    "api_router_overhead_seconds": ("histogram", set()),
    "api_router_tokens": ("counter", {"direction", "source"}),
    "api_router_cost_nanousd": ("counter", set()),
    "api_router_unpriced_usage": ("counter", {"class"}),
    "api_router_auth_failures": ("counter", {"reason"}),
    "api_router_log_lines_lost": ("counter", set()),
    "api_router_backend_requests": ("counter", {"backend", "error"}),
    "api_router_backend_request_duration_seconds": ("histogram", {"backend"}),
    "api_router_requests_in_flight": ("gauge", set()),
    "api_router_config_revision": ("gauge", set()),
    "api_router_records": ("counter", set()),
    "api_router_records_refused": ("counter", {"reason"}),
    "api_router_records_degraded": ("counter", set()),
    "api_router_records_lost": ("counter", set()),
    "api_router_records_held_bytes": ("gauge", set()),
    "api_router_spool_bytes": ("gauge", set()),
    "api_router_spool_limit_bytes": ("gauge", set()),
    "api_router_spool_writable": ("gauge", set()),
    "api_router_spool_unsynced_bytes": ("gauge", set()),
    "api_router_spool_quarantined_bytes": ("gauge", set()),
    "api_router_spool_write_errors": ("counter", set()),
    "api_router_spool_sync_errors": ("counter", set()),
    "api_router_agent_up": ("gauge", set()),
    "api_router_agent_behind_bytes": ("gauge", {"sink"}),
    "api_router_agent_dead_lettered": ("gauge", {"sink"}),
    "api_router_agent_sink_failing": ("gauge", {"sink"}),
    "api_router_record_store_up": ("gauge", set()),
    "api_router_rate_limit_denials": ("counter", {"limit"}),
    "api_router_budget_denials": ("counter", {"scope", "period"}),
    "api_router_quota_denials": ("counter", {"scope", "unit", "period"}),
    "api_router_shadow_denials": ("counter", {"limit_type"}),
    "api_router_idempotency": ("counter", {"outcome"}),
    "api_router_budget_settled_nanousd": ("counter", set()),
    "api_router_budget_reserved_nanousd": ("gauge", set()),
    "api_router_budget_waits": ("counter", {"outcome"}),
    "api_router_rate_decisions": ("counter", {"source"}),
    "api_router_limit_decision_seconds": ("histogram", {"kind"}),
    "api_router_limits_deferred": ("gauge", set()),
    "api_router_limits_deferred_dropped": ("counter", set()),
    "api_router_budget_charges_kept": ("counter", set()),
    "api_router_budget_charges_waiting": ("gauge", set()),
    "api_router_leases_unresolved": ("counter", set()),
    "api_router_loop_blocks": ("counter", set()),
    "api_router_redis_may_evict": ("gauge", set()),
    "api_router_redis_may_lose_writes": ("gauge", set()),
    "api_router_dependency_up": ("gauge", {"dependency"}),
    "api_router_dependency_away_seconds": ("counter", {"dependency"}),
}

RECORDS = {
    "spool_bytes": 1000,
    "spool_limit_bytes": 2000,
    "spool_unsynced_bytes": 300,
    "records_held_bytes": 40,
    "spool_writable": True,
    "records": 12,
    "records_lost": 1,
    "records_degraded": 2,
    "records_refused": {"disk_full": 5},
    "spool_write_errors": 3,
    "spool_sync_errors": 4,
}
SHIPPING = {
    "agent_up": True,
    "record_store_up": True,
    "spool_quarantined_bytes": 77,
    "agent_behind_bytes": {"store": 4096, "kafka": 0},
    "agent_dead_lettered": {"store": 0, "kafka": 6},
    "agent_sink_failing": {"store": False, "kafka": True},
}
LIMITS = {
    "budget_waits": {"admitted": 3, "full": 1},
    "rate_decisions": {"redis": 90, "local": 8},
    "budget_reserved_nanousd": 12_345,
    "limits_deferred": 6,
    "limits_deferred_dropped": 7,
    "budget_charges_kept": 8,
    "budget_charges_waiting": 3,
    "leases_unresolved": 2,
    "redis_may_evict": True,
    "redis_may_lose_writes": True,
    "dependency_up": {"redis": False, "budget_service": True},
    "dependency_away_seconds": {"redis": 1.5, "budget_service": 0.0},
}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def shown(registry: CollectorRegistry) -> list[str]:
    """The samples of a scrape that are not zero, without the times at which they were created."""
    lines = generate_latest(registry).decode().splitlines()
    return [
        line
        for line in lines
        if not line.startswith("#") and "_created" not in line and not line.endswith(" 0.0")
    ]


def count_everything(metrics: Metrics) -> None:
    metrics.count_request("native.inference", 200, "completed", 0.02)
    metrics.count_overhead(0.001)
    metrics.count_usage("reported", 3, 5)
    metrics.count_cost(7)
    metrics.count_unpriced("input_audio")
    metrics.count_auth_failure("unknown")
    metrics.count_lost_line()
    metrics.count_attempt("primary", "none", 0.01)
    metrics.publish(1)
    metrics.publish_figures(RECORDS)
    metrics.publish_figures(SHIPPING)
    metrics.publish_figures(LIMITS)
    metrics.count_rate_denial("org-requests")
    metrics.count_budget_denial("org", "daily")
    metrics.count_quota_denial("key", "tokens", "total")
    metrics.count_shadow_denial("budget")
    metrics.count_idempotency("replayed")
    metrics.count_settled(5)
    metrics.count_decision("rate", 0.0002)


# --- what there is --------------------------------------------------------------------------


def test_these_are_all_the_metrics(metrics: Metrics, registry: CollectorRegistry) -> None:
    """M5: each name begins with `api_router_`; no label is what a client could choose."""
    count_everything(metrics)
    found = {
        family.name: (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in registry.collect()
    }
    assert found == FAMILIES
    assert all(family.documentation.endswith(".") for family in registry.collect())


@pytest.mark.parametrize("buckets", [LATENCY_BUCKETS_S, OVERHEAD_BUCKETS_S, DECISION_BUCKETS_S])
def test_buckets_rise(buckets: tuple[float, ...]) -> None:
    """Each bound once, in order."""
    assert list(buckets) == sorted(set(buckets))


def test_buckets_are_those_declared(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Latency reaches to five minutes, overhead begins at half a millisecond, decisions lower."""
    count_everything(metrics)
    bounds: dict[str, list[float]] = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                bounds.setdefault(family.name, []).append(float(sample.labels["le"]))
    latency, overhead = [*LATENCY_BUCKETS_S, float("inf")], [*OVERHEAD_BUCKETS_S, float("inf")]
    assert bounds == {
        "api_router_request_duration_seconds": latency,
        "api_router_backend_request_duration_seconds": latency,
        "api_router_overhead_seconds": overhead,
        "api_router_limit_decision_seconds": [*DECISION_BUCKETS_S, float("inf")],
    }


# --- what is counted ------------------------------------------------------------------------

COUNTED: dict[str, tuple[Callable[[Metrics], None], list[str]]] = {
    "a request": (
        lambda metrics: metrics.count_request("openai.chat", 429, "rejected", 200.0),
        [
            'api_router_requests_total{endpoint="openai.chat",outcome="rejected",status="429"} 1.0',
            'api_router_request_duration_seconds_bucket{endpoint="openai.chat",le="300.0"} 1.0',
            'api_router_request_duration_seconds_bucket{endpoint="openai.chat",le="+Inf"} 1.0',
            'api_router_request_duration_seconds_count{endpoint="openai.chat"} 1.0',
            'api_router_request_duration_seconds_sum{endpoint="openai.chat"} 200.0',
        ],
    ),
    "overhead": (
        lambda metrics: metrics.count_overhead(0.75),
        [
            'api_router_overhead_seconds_bucket{le="1.0"} 1.0',
            'api_router_overhead_seconds_bucket{le="+Inf"} 1.0',
            "api_router_overhead_seconds_count 1.0",
            "api_router_overhead_seconds_sum 0.75",
        ],
    ),
    "usage": (
        lambda metrics: metrics.count_usage("estimated", 11, 22),
        [
            'api_router_tokens_total{direction="input",source="estimated"} 11.0',
            'api_router_tokens_total{direction="output",source="estimated"} 22.0',
        ],
    ),
    "cost": (
        lambda metrics: metrics.count_cost(123_456_789),
        ["api_router_cost_nanousd_total 1.23456789e+08"],
    ),
    "a class without a price": (
        lambda metrics: metrics.count_unpriced("cache_write_1h"),
        ['api_router_unpriced_usage_total{class="cache_write_1h"} 1.0'],
    ),
    "a refused credential": (
        lambda metrics: metrics.count_auth_failure("expired"),
        ['api_router_auth_failures_total{reason="expired"} 1.0'],
    ),
    "an attempt": (
        lambda metrics: metrics.count_attempt("b-1", "status_429", 301.0),
        [
            'api_router_backend_requests_total{backend="b-1",error="status_429"} 1.0',
            'api_router_backend_request_duration_seconds_bucket{backend="b-1",le="+Inf"} 1.0',
            'api_router_backend_request_duration_seconds_count{backend="b-1"} 1.0',
            'api_router_backend_request_duration_seconds_sum{backend="b-1"} 301.0',
        ],
    ),
    "what is true now": (
        lambda metrics: metrics.publish(17),
        ["api_router_config_revision 17.0"],
    ),
    "records": (
        lambda metrics: metrics.publish_figures(RECORDS),
        [
            "api_router_spool_bytes 1000.0",
            "api_router_spool_limit_bytes 2000.0",
            "api_router_spool_writable 1.0",
            "api_router_spool_unsynced_bytes 300.0",
            "api_router_records_held_bytes 40.0",
            "api_router_records_total 12.0",
            "api_router_records_lost_total 1.0",
            "api_router_records_degraded_total 2.0",
            'api_router_records_refused_total{reason="disk_full"} 5.0',
            "api_router_spool_write_errors_total 3.0",
            "api_router_spool_sync_errors_total 4.0",
        ],
    ),
    "shipping": (
        lambda metrics: metrics.publish_figures(SHIPPING),
        [
            "api_router_agent_up 1.0",
            "api_router_record_store_up 1.0",
            "api_router_spool_quarantined_bytes 77.0",
            'api_router_agent_behind_bytes{sink="store"} 4096.0',
            'api_router_agent_dead_lettered{sink="kafka"} 6.0',
            'api_router_agent_sink_failing{sink="kafka"} 1.0',
        ],
    ),
    "limits": (
        lambda metrics: metrics.publish_figures(LIMITS),
        [
            'api_router_budget_waits_total{outcome="admitted"} 3.0',
            'api_router_budget_waits_total{outcome="full"} 1.0',
            'api_router_rate_decisions_total{source="redis"} 90.0',
            'api_router_rate_decisions_total{source="local"} 8.0',
            "api_router_budget_reserved_nanousd 12345.0",
            "api_router_limits_deferred 6.0",
            "api_router_limits_deferred_dropped_total 7.0",
            "api_router_budget_charges_kept_total 8.0",
            "api_router_budget_charges_waiting 3.0",
            "api_router_leases_unresolved_total 2.0",
            "api_router_redis_may_evict 1.0",
            "api_router_redis_may_lose_writes 1.0",
            'api_router_dependency_up{dependency="budget_service"} 1.0',
            'api_router_dependency_away_seconds_total{dependency="redis"} 1.5',
        ],
    ),
    "a rate limit's denial": (
        lambda metrics: metrics.count_rate_denial("key-tokens"),
        ['api_router_rate_limit_denials_total{limit="key-tokens"} 1.0'],
    ),
    "a budget's denial": (
        lambda metrics: metrics.count_budget_denial("org", "monthly"),
        ['api_router_budget_denials_total{period="monthly",scope="org"} 1.0'],
    ),
    "a quota's denial": (
        lambda metrics: metrics.count_quota_denial("key", "requests", "total"),
        ['api_router_quota_denials_total{period="total",scope="key",unit="requests"} 1.0'],
    ),
    "a denial in shadow mode": (
        lambda metrics: metrics.count_shadow_denial("quota"),
        ['api_router_shadow_denials_total{limit_type="quota"} 1.0'],
    ),
    "a duplicate": (
        lambda metrics: metrics.count_idempotency("in_progress"),
        ['api_router_idempotency_total{outcome="in_progress"} 1.0'],
    ),
    "a settlement": (
        lambda metrics: metrics.count_settled(123_456_789),
        ["api_router_budget_settled_nanousd_total 1.23456789e+08"],
    ),
    "a decision": (
        lambda metrics: metrics.count_decision("budget", 1.5),
        [
            'api_router_limit_decision_seconds_bucket{kind="budget",le="2.0"} 1.0',
            'api_router_limit_decision_seconds_bucket{kind="budget",le="+Inf"} 1.0',
            'api_router_limit_decision_seconds_count{kind="budget"} 1.0',
            'api_router_limit_decision_seconds_sum{kind="budget"} 1.5',
        ],
    ),
}


@pytest.mark.parametrize(("count", "expected"), COUNTED.values(), ids=COUNTED)
def test_what_a_scrape_shows(
    metrics: Metrics,
    registry: CollectorRegistry,
    count: Callable[[Metrics], None],
    expected: list[str],
) -> None:
    """Each method makes these samples and no others."""
    count(metrics)
    assert sorted(shown(registry)) == sorted(expected)


@pytest.mark.parametrize(("count", "expected"), COUNTED.values(), ids=COUNTED)
def test_counting_the_same_again_adds_no_series(
    metrics: Metrics,
    registry: CollectorRegistry,
    count: Callable[[Metrics], None],
    expected: list[str],
) -> None:
    """M5: a sample grows; it does not get a neighbour."""
    for _ in range(3):
        count(metrics)
    names = [line.rpartition(" ")[0] for line in shown(registry)]
    assert sorted(names) == sorted(line.rpartition(" ")[0] for line in expected)


def test_running_requests_are_published_not_counted(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """M6: the number of the moment is shown at each publication, and falls again."""
    metrics.running += 2
    assert registry.get_sample_value("api_router_requests_in_flight") == 0
    metrics.publish(1)
    assert registry.get_sample_value("api_router_requests_in_flight") == 2
    metrics.running -= 2
    metrics.publish(1)
    assert registry.get_sample_value("api_router_requests_in_flight") == 0


def test_a_workers_own_counts_are_carried_on(metrics: Metrics, registry: CollectorRegistry) -> None:
    """M2: publishing the same totals again counts nothing, and growth counts once."""
    metrics.publish_figures(RECORDS)
    metrics.publish_figures(RECORDS)
    metrics.publish_figures(
        RECORDS | {"records": 20, "records_refused": {"disk_full": 6, "disk_slow": 1}}
    )
    assert registry.get_sample_value("api_router_records_total") == 20.0
    assert {
        reason: registry.get_sample_value("api_router_records_refused_total", {"reason": reason})
        for reason in ("disk_full", "disk_slow")
    } == {"disk_full": 6.0, "disk_slow": 1.0}


def test_series_of_like_names_are_kept_apart(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Metrics with the same labels are children of different families."""
    metrics.count_request("same", 200, "completed", 1.0)
    metrics.count_attempt("same", "none", 2.0)
    metrics.count_auth_failure("same")
    for name, labels in {
        "request_duration_seconds_sum": {"endpoint": "same"},
        "auth_failures_total": {"reason": "same"},
    }.items():
        assert registry.get_sample_value(f"api_router_{name}", labels) == 1.0
    assert (
        registry.get_sample_value(
            "api_router_backend_request_duration_seconds_sum", {"backend": "same"}
        )
        == 2.0
    )


def test_small_costs_add_up_exactly(metrics: Metrics, registry: CollectorRegistry) -> None:
    """B9: after much money, a nano-USD more is still a nano-USD more."""
    much = 9_000_000 * 10**9 - 100_000  # as much as any budget may hold
    metrics.count_cost(much)
    for _ in range(100_000):
        metrics.count_cost(1)
    assert registry.get_sample_value("api_router_cost_nanousd_total") == 9_000_000 * 10**9


# --- closed sets ----------------------------------------------------------------------------


@given(
    error=st.none()
    | st.text(max_size=20)
    | st.sampled_from(
        ["connect", "connect timeout", "credential missing", "BackendTimeout", "ClientGone"]
    ),
    status=st.none() | st.integers(0, 999),
)
def test_errors_of_attempts_are_a_closed_set(error: str | None, status: int | None) -> None:
    """M5: whatever went wrong at a backend, its label is one of the declared ones."""
    assert _error_class(Attempt("b-1", status=status, error=error)) in ATTEMPT_ERRORS


def test_outcomes_and_sources_are_closed_sets() -> None:
    """M5: the types that fill the labels list their values, each once."""
    assert set(OUTCOMES) == set(get_args(Outcome))
    assert len(OUTCOMES) == len(set(OUTCOMES))
    assert set(get_args(UsageSource)) == {"reported", "estimated", "none"}
    assert len(ATTEMPT_ERRORS) == len(set(ATTEMPT_ERRORS))
    assert get_args(Source) == RATE_SOURCES
