"""What a document says of limits becomes what is enforced, and no more than that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router.config.document import Budget, BudgetReservation, KeyRecord, Organization, RateLimit
from router.config.settings import Settings, load_settings
from router.limits.budgets.reservation_rule import PriceUnknown, ReservationRule
from router.limits.budgets.windows import Amounts, WindowSpec
from router.limits.configured import (
    by_identity,
    default_rate_limit,
    needs_bound,
    rate_specs,
    reservation_rule,
    reserved_amounts,
    window_specs,
)
from router.limits.rates.decision import BucketSpec, SlotSpec

DEFAULT = RateLimit(100.0, 200)
ACME = Organization("acme")
KEY = KeyRecord("k1", "acme", "00" * 32)
RULE = ReservationRule("capped", cap_nanos=5_000, cap_tokens=50)


def limited(limit: RateLimit | None, **models: RateLimit) -> Organization:
    return replace(ACME, rate_limit=limit, model_rate_limits=models)


def names(organization: Organization, key: KeyRecord = KEY, **options: Any) -> list[str]:
    specs = rate_specs(organization, key, "gpt", default=DEFAULT, **options)
    return [spec.name for spec in (*specs.buckets, *specs.slots)]


def test_defaults_come_from_the_environment() -> None:
    """RATE_LIMIT_DEFAULT_RPS and RATE_LIMIT_BURST_SIZE, for organization and key alike."""
    assert default_rate_limit(Settings()) == DEFAULT
    specs = rate_specs(ACME, KEY, None, default=DEFAULT)
    assert specs.buckets == (
        BucketSpec("org-requests", (), 100.0, 200),
        BucketSpec("key-requests", ("k1",), 100.0, 200),
    )
    assert specs.slots == ()


def test_every_kind_of_limit_becomes_one_that_is_enforced() -> None:
    """Of the organization, its key and its use of a model."""
    whole = RateLimit(5.0, 10, 600, 3)
    organization = limited(whole, gpt=RateLimit(None, tokens_per_minute=60, concurrent=0))
    specs = rate_specs(
        organization, replace(KEY, rate_limit=whole), "gpt", default=DEFAULT, tokens=40
    )
    assert specs.buckets == (
        BucketSpec("org-requests", (), 5.0, 10),
        BucketSpec("org-tokens", (), 10.0, 600, cost=40, leased=True),
        BucketSpec("key-requests", ("k1",), 5.0, 10),
        BucketSpec("key-tokens", ("k1",), 10.0, 600, cost=40, leased=True),
        BucketSpec("model-tokens", ("gpt",), 1.0, 60, cost=40, leased=True),
    )
    assert specs.slots == (
        SlotSpec("org-concurrent", (), 3),
        SlotSpec("key-concurrent", ("k1",), 3),
        SlotSpec("model-concurrent", ("gpt",), 0),
    )


@pytest.mark.parametrize(
    ("tokens", "limit", "shadow", "too_small"),
    [
        (600, 600, False, None),
        (601, 600, False, "org-tokens"),
        (601, 600, True, None),
        (601, 0, False, None),
        (10**9, 1000, False, "org-tokens"),
    ],
)
def test_a_call_may_be_larger_than_a_limit(
    tokens: int, limit: int, shadow: bool, too_small: str | None
) -> None:
    """One more than a minute's tokens never fits; a limit of 0 blocks all calls alike."""
    whole = RateLimit(None, tokens_per_minute=limit, concurrent=2, shadow=shadow)
    specs = rate_specs(limited(whole), KEY, "gpt", default=DEFAULT, tokens=tokens)
    found = specs.too_small()
    assert (None if found is None else found.name) == too_small
    refused = specs.of_no_call()
    assert [each.cost for each in refused.buckets] == [0, 1]
    assert refused.slots == ()


def test_no_two_limits_share_a_counter() -> None:
    """Also where ids are alike: each has a Redis key of its own."""
    whole = RateLimit(1.0, 1, 1, 1)
    specs = rate_specs(
        limited(whole, k1=whole), replace(KEY, rate_limit=whole), "k1", default=DEFAULT
    )
    suffixes = [spec.suffix for spec in (*specs.buckets, *specs.slots)]
    suffixes += [spec.estimates_suffix for spec in specs.buckets if spec.leased]
    assert len(suffixes) == len(set(suffixes)) == 12


def test_unlimited_asks_nothing() -> None:
    """B11: null is unlimited, and another model's limit is no business of this one."""
    unlimited = RateLimit(None)
    key = replace(KEY, rate_limit=unlimited)
    assert names(limited(unlimited, other=DEFAULT), key) == []
    assert names(limited(RateLimit(0.0, 0)), key) == ["org-requests"]


def test_shadow_limits_only_watch() -> None:
    """All of a limit, or none of it."""
    shadow = RateLimit(1.0, 1, 1, 1, shadow=True)
    specs = rate_specs(limited(shadow), KEY, None, default=DEFAULT)
    enforced = {spec.name: spec.enforced for spec in (*specs.buckets, *specs.slots)}
    assert enforced == {
        "org-requests": False,
        "org-tokens": False,
        "org-concurrent": False,
        "key-requests": True,
    }


def test_specs_that_do_not_change_are_built_once() -> None:
    """They are asked for on every call."""
    first, second = (rate_specs(ACME, KEY, None, default=DEFAULT).buckets for _ in range(2))
    assert all(one is other for one, other in zip(first, second, strict=True))
    owner = replace(ACME, budgets=(Budget("a", "usd", "daily"),))
    assert window_specs(owner, None)[0] is window_specs(owner, None)[0]


def test_budgets_become_windows() -> None:
    """Field by field, of the organization first, then of the key."""
    spend = Budget("spend", "usd", "monthly", 5, "Europe/Berlin", (50,), shadow=True)
    calls = Budget("spend", "requests", "daily", 0)
    organization = replace(ACME, budgets=(spend,))
    assert window_specs(organization, replace(KEY, budgets=(calls,))) == (
        WindowSpec("spend", "usd", "monthly", 5, "Europe/Berlin", "org", "", (50,), False),
        WindowSpec("spend", "requests", "daily", 0, "UTC", "key", "k1", (80, 95), True),
    )
    assert window_specs(ACME, KEY) == ()


# --- reservations ---------------------------------------------------------------------------


WORST = 10_250_000
"""The most that a call can cost which uses at most 1 100 tokens."""


def held(*budgets: Budget, key: tuple[Budget, ...] = (), most_nanos: int | None = WORST) -> Amounts:
    return reserved_amounts(
        replace(ACME, budgets=budgets),
        replace(KEY, budgets=key),
        RULE,
        most_nanos=[most_nanos],
        most_tokens=1_100,
    )


def budget(unit: Any, mode: Any = None, cap: int | None = None) -> Budget:
    return Budget(
        "b", unit, "daily", reservation=None if mode is None else BudgetReservation(mode, cap)
    )


SPEND = Budget("spend", "usd", "daily", 5)


def test_the_rule_comes_from_the_environment() -> None:
    """B7, B2: mode, cap, floor, and what becomes of unknown prices."""
    assert reservation_rule(Settings()) == ReservationRule()
    environ = {
        "ROUTER_RESERVATION": "floor",
        "ROUTER_RESERVATION_CAP_USD": "0.000000002",
        "ROUTER_RESERVATION_CAP_TOKENS": "3",
        "ROUTER_RESERVATION_FLOOR_USD": "0.000000004",
        "ROUTER_RESERVATION_FLOOR_TOKENS": "5",
        "ROUTER_UNKNOWN_PRICE": "refuse",
    }
    assert reservation_rule(load_settings(environ)) == ReservationRule("floor", 2, 3, 4, 5, True)


@pytest.mark.parametrize(
    ("budgets", "cost_nanos", "tokens"),
    [
        ((), 5_000, 50),
        ((budget("usd"),), 5_000, 50),
        ((budget("usd", "worst_case"),), WORST, 50),
        ((budget("usd", "floor"),), 1_000, 50),
        ((budget("usd", "capped", 7_000),), 7_000, 50),
        ((budget("tokens", "worst_case"),), 5_000, 1_100),
        ((budget("tokens", "capped", 60),), 5_000, 60),
        ((budget("usd", "floor"), budget("usd", "capped", 7_000)), 7_000, 50),
        ((budget("usd", "floor"), budget("usd")), 5_000, 50),
        ((budget("usd", "floor"), budget("tokens", "floor")), 1_000, 1),
    ],
)
def test_the_most_careful_budget_decides(
    budgets: tuple[Budget, ...], cost_nanos: int, tokens: int
) -> None:
    """B7: for its own unit only, whoever it belongs to."""
    assert held(*budgets) == Amounts(cost_nanos, tokens)
    assert held(*budgets[:1], key=budgets[1:]) == Amounts(cost_nanos, tokens)


def test_an_unknown_price_is_never_silently_free() -> None:
    """B2: the floor, or a refusal where that was chosen."""
    assert held(budget("usd", "worst_case"), most_nanos=None).cost_nanos == RULE.floor_nanos
    refusing, owner = replace(RULE, refuse_unknown_price=True), replace(ACME, budgets=(SPEND,))
    with pytest.raises(PriceUnknown):
        reserved_amounts(owner, None, refusing, most_nanos=[5, None], most_tokens=2)


def test_the_dearest_backend_counts() -> None:
    """Any of those that may serve the call may."""
    owner = replace(ACME, budgets=(budget("usd", "worst_case"),))
    amounts = reserved_amounts(owner, None, RULE, most_nanos=[70, None, 1_000_000], most_tokens=2)
    assert amounts.cost_nanos == 1_000_000


def test_without_a_budget_in_usd_no_price_is_needed() -> None:
    """A quota in tokens works for every model."""
    refusing = replace(RULE, refuse_unknown_price=True)
    organization = replace(ACME, budgets=(budget("tokens"),))
    amounts = reserved_amounts(organization, None, refusing, most_nanos=[None], most_tokens=10)
    assert amounts.tokens == 10


@pytest.mark.parametrize(
    ("budgets", "mode", "needed"),
    [
        ((), "worst_case", False),
        ((SPEND,), "worst_case", True),
        ((SPEND,), "capped", False),
        ((replace(SPEND, reservation=BudgetReservation("worst_case")),), "floor", True),
        ((replace(SPEND, reservation=BudgetReservation("floor")),), "worst_case", False),
        ((replace(SPEND, shadow=True),), "worst_case", False),
        ((replace(SPEND, limit=None),), "worst_case", False),
        ((replace(SPEND, unit="requests"),), "worst_case", False),
        ((replace(SPEND, unit="tokens"),), "worst_case", True),
    ],
)
def test_where_a_backend_has_to_be_held_to_the_bound(
    budgets: tuple[Budget, ...], mode: Any, needed: bool
) -> None:
    """P6: wherever a limit that is enforced relies on it, and nowhere else."""
    rule = replace(RULE, mode=mode)
    assert needs_bound(replace(ACME, budgets=budgets), KEY, rule) is needed
    assert needs_bound(ACME, replace(KEY, budgets=budgets), rule) is needed


def test_what_is_remembered_is_of_these_very_objects() -> None:
    """Equal ones in another document are other ones, and nothing of an old one is left behind."""
    made: list[object] = []

    @by_identity
    def make(owner: object, /) -> object:
        made.append(owner)
        return object()

    first, second = replace(ACME), replace(ACME)
    assert first == second
    assert make(first) is make(first)
    assert make(first) is not make(second)
    assert made == [first, second]
    for _ in range(20_000):  # each at an address where another was before, were it not kept
        assert make(replace(ACME)) is not make(first)
