"""How components stand under each policy and each outage, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from router.agent.status import Shipping
from router.clock import FrozenClock
from router.config.document import Backend, LoadedDocument, Policy, Share
from router.config.settings import Settings
from router.errors import NotConfigured
from router.readiness.components import Component, StateHistory, backends, limits
from router.readiness.watch import Observation

REDIS_UP = {"redis": ["closed"]}
REDIS_DOWN = {"redis": ["open"]}
SERVICE_UP = {"redis": ["closed"], "budget_service": ["closed"]}
SERVICE_DOWN = {"redis": ["closed"], "budget_service": ["open"]}
BOTH_DOWN = {"redis": ["half_open"], "budget_service": ["half_open"]}
CLUSTER = {"redis": ["closed", "open", "closed"]}

LOCAL = "each worker enforces its share of the rate limits"
OPEN = "rate limits are not enforced"
BUDGETS_REFUSED = "calls with budgets are refused"
BUDGETS_LATER = "calls with budgets are served and charged later"
DUPLICATES = "duplicate calls are not recognized"
IDS_REFUSED = "calls with an idempotency key or a request_id are refused"
SERVED_WITHOUT = "calls are served without asking for their budgets and charged later"


def policies(rates: str, budgets: str, ids: str = "open") -> Settings:
    return Settings(rate_limit_fallback=rates, budget_fallback=budgets, idempotency_fallback=ids)


@pytest.mark.parametrize("breakers", [{"redis": []}, REDIS_UP, SERVICE_UP])
@pytest.mark.parametrize("rates", ["local", "open", "closed"])
def test_limits_are_ok_while_what_they_need_is_there(rates: str, breakers: Any) -> None:
    """Whatever is configured for outages."""
    assert limits(policies(rates, "closed", "closed"), breakers) == Component()


@pytest.mark.parametrize(
    ("rates", "budgets", "ids", "said"),
    [
        ("local", "closed", "open", (BUDGETS_REFUSED, LOCAL, DUPLICATES)),
        ("local", "open", "open", (BUDGETS_LATER, LOCAL, DUPLICATES)),
        ("local", "closed", "closed", (BUDGETS_REFUSED, LOCAL, IDS_REFUSED)),
        ("open", "closed", "open", (BUDGETS_REFUSED, OPEN, DUPLICATES)),
        ("open", "open", "closed", (BUDGETS_LATER, OPEN, IDS_REFUSED)),
    ],
)
def test_without_redis_policies_decide(
    rates: str, budgets: str, ids: str, said: tuple[str, ...]
) -> None:
    """H2: degraded, and the detail is true to what is configured."""
    found = limits(policies(rates, budgets, ids), REDIS_DOWN)
    assert found.state == "degraded"
    assert found.detail == f"Redis is unavailable; {', '.join(said)}"


@pytest.mark.parametrize(("budgets", "ids"), [*product(("closed", "open"), repeat=2)])
def test_closed_rates_refuse_everything_without_redis(budgets: str, ids: str) -> None:
    """H2: the one policy about Redis under which the router is not ready."""
    found = limits(policies("closed", budgets, ids), REDIS_DOWN)
    assert found.state == "unavailable"
    assert found.detail == "Redis is unavailable; every call is refused"


@pytest.mark.parametrize("rates", ["local", "open", "closed"])
def test_part_of_a_cluster_does_not_refuse_everything(rates: str) -> None:
    """Organizations on the other servers are served as ever."""
    found = limits(policies(rates, "closed"), CLUSTER)
    assert found.state == "degraded"
    assert found.cause == "a part of Redis is unavailable"
    assert found.meanwhile.startswith(f"for organizations on that part {BUDGETS_REFUSED}, ")
    assert ("calls with rate limits are refused" in found.meanwhile) is (rates == "closed")


def test_without_the_budget_service_nobody_knows_who_has_budgets() -> None:
    """H2: so ``closed`` refuses all calls, and ``open`` serves them all."""
    cause = "the budget service is unavailable"
    closed = limits(policies("local", "closed"), SERVICE_DOWN)
    assert (closed.state, closed.detail) == ("unavailable", f"{cause}; every call is refused")
    opened = limits(policies("local", "open"), SERVICE_DOWN)
    assert (opened.state, opened.detail) == ("degraded", f"{cause}; {SERVED_WITHOUT}")


def test_with_a_budget_service_redis_is_not_about_budgets() -> None:
    """Budgets are asked elsewhere, so nothing is said of them."""
    found = limits(policies("local", "closed"), {"redis": ["open"], "budget_service": ["closed"]})
    assert (found.state, found.meanwhile) == ("degraded", f"{LOCAL}, {DUPLICATES}")


def test_two_outages_are_told_together() -> None:
    """One component, both causes."""
    found = limits(policies("open", "open"), BOTH_DOWN)
    assert found.state == "degraded"
    assert found.cause == "the budget service is unavailable and Redis is unavailable"
    assert found.meanwhile == f"{SERVED_WITHOUT}, {OPEN}, {DUPLICATES}"


# --- backends -------------------------------------------------------------------------------


def state(*policies: dict[str, int], known: tuple[str, ...] = ("a", "b", "c")) -> Any:
    """A stored document: each policy gives backends their weights; ``c`` needs no credential."""
    document = LoadedDocument(
        backends=tuple(
            Backend(id, "openai", "http://x/v1", None if id == "c" else f"env:{id}") for id in known
        ),
        policies=tuple(
            Policy(f"o{number}", "*", tuple(Share(*share) for share in shares.items()))
            for number, shares in enumerate(policies)
        ),
    ).build(1)
    return SimpleNamespace(document=lambda: document)


def seen(*missing: str) -> Observation:
    return Observation(Shipping(True), None, frozenset(f"env:{name}" for name in missing))


@pytest.mark.parametrize(
    ("stored", "missing", "expected"),
    [
        (state({"a": 1}), (), ("ok", "", "")),
        (state({"c": 1}), ("a", "b"), ("ok", "", "")),
        (
            state({"a": 1, "b": 1}),
            ("a",),
            ("degraded", "1 of 2 backends have no credential", "calls go to the other backends"),
        ),
        (
            state({"a": 1}, {"b": 1, "c": 1}),
            ("a",),
            (
                "degraded",
                "1 of 3 backends have no credential",
                "calls under 1 of 2 policies are refused, all others go to the other backends",
            ),
        ),
        (
            state({"a": 1, "b": 1}),
            ("a", "b"),
            ("unavailable", "2 of 2 backends have no credential", "every call is refused"),
        ),
        (
            state({"a": 1, "c": 0}),
            ("a",),
            ("unavailable", "1 of 2 backends have no credential", "every call is refused"),
        ),
        (state(), (), ("unavailable", "no policy names a backend", "every call is refused")),
    ],
)
def test_backends(stored: Any, missing: tuple[str, ...], expected: tuple[str, str, str]) -> None:
    """Not ready only when no policy leads to a backend that can be used."""
    found = backends(stored, seen(*missing))
    assert (found.state, found.cause, found.meanwhile) == expected


def test_backends_before_anything_was_seen() -> None:
    """Calls are served; nobody has looked at the credentials."""
    found = backends(state({"a": 1}), None)
    assert (found.state, found.detail) == ("degraded", "not looked at yet; calls are served")


def test_backends_before_anything_was_applied() -> None:
    """There is nothing to serve with."""

    def fail() -> None:
        raise NotConfigured

    assert backends(SimpleNamespace(document=fail), seen()).state == "unavailable"  # type: ignore[arg-type]


# --- since when -----------------------------------------------------------------------------


def test_a_state_is_dated_when_it_begins() -> None:
    """Another cause in the same state is no new state; each component has its own date."""
    clock = FrozenClock(wall_s=1000.0)
    history = StateHistory(clock)
    fine, bad = Component(), Component("degraded", "x", "y")

    def since(limits: Component) -> tuple[float, float]:
        dated = history.dated({"limits": limits, "store": fine})
        assert replace(dated["limits"], since_s=0.0) == limits
        clock.advance(1.0)
        return dated["limits"].since_s, dated["store"].since_s

    assert since(fine) == (1000.0, 1000.0)
    assert since(bad) == (1001.0, 1000.0)
    assert since(replace(bad, cause="z")) == (1001.0, 1000.0)
    assert since(replace(bad, state="unavailable")) == (1003.0, 1000.0)
    assert since(fine) == (1004.0, 1000.0)
