"""How much is held for a call before it is made."""

from __future__ import annotations

import pytest

from router.limits.budgets.reservation_rule import PriceUnknown, ReservationRule
from router.limits.budgets.windows import MAX_AMOUNT

RULES = {
    "worst_case": ReservationRule(mode="worst_case"),
    "capped": ReservationRule(cap_nanos=1_000_000, cap_tokens=500),
    "floor": ReservationRule(mode="floor", floor_nanos=5_000, floor_tokens=7),
}


@pytest.mark.parametrize(
    ("mode", "cost_nanos", "tokens"),
    [("worst_case", 42_500_000, 5_000), ("capped", 1_000_000, 500), ("floor", 5_000, 7)],
)
def test_modes(mode: str, cost_nanos: int, tokens: int) -> None:
    """B7: what a call can use at most is reserved whole, up to the cap, or not looked at."""
    assert RULES[mode].cost_nanos(42_500_000) == cost_nanos
    assert RULES[mode].tokens(5_000) == tokens


@pytest.mark.parametrize("mode", list(RULES))
def test_every_call_that_is_not_free_holds_the_floor(mode: str) -> None:
    """B2: however short the prompt."""
    assert RULES[mode].cost_nanos(1) >= RULES[mode].floor_nanos > 0
    assert RULES[mode].tokens(0) == RULES[mode].floor_tokens


@pytest.mark.parametrize("mode", list(RULES))
def test_what_is_free_holds_no_money(mode: str) -> None:
    """B11: a model with price zero passes an exhausted budget; its tokens count."""
    assert RULES[mode].cost_nanos(0) == 0
    assert RULES[mode].tokens(1_010) > 0


def test_an_unknown_price_is_held_at_the_floor_or_refused() -> None:
    """B2: never silently free."""
    assert ReservationRule(floor_nanos=77).cost_nanos(None) == 77
    with pytest.raises(PriceUnknown):
        ReservationRule(refuse_unknown_price=True).cost_nanos(None)


def test_nothing_held_leaves_what_lua_can_count() -> None:
    """B9: absurd requests are held at the most that can be."""
    rule = ReservationRule(mode="worst_case")
    assert rule.cost_nanos(10**33) == MAX_AMOUNT
    assert rule.tokens(10**18) == MAX_AMOUNT
