"""How much is held for a call before it is made."""

from __future__ import annotations

import pytest

from router.config.document import Prices
from router.limits.budgets.reservation_rule import PriceUnknown, ReservationRule
from router.limits.budgets.windows import MAX_AMOUNT

PRICES = Prices(input_nanos=2_500_000_000, output_nanos=10_000_000_000)
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
    """B7: 1 000 tokens in and 4 000 out, held whole, up to the cap, or the floor."""
    assert RULES[mode].cost_nanos(PRICES, 1_000, 4_000) == cost_nanos
    assert RULES[mode].tokens(1_000, 4_000) == tokens


def test_fractions_are_rounded_up() -> None:
    """P6: worst case is never a nano-USD too little."""
    rule = ReservationRule(mode="worst_case", floor_nanos=0)
    assert rule.cost_nanos(Prices(1, 0), 1, 0) == 1


@pytest.mark.parametrize("mode", list(RULES))
def test_every_call_that_is_not_free_holds_the_floor(mode: str) -> None:
    """B2: however short the prompt."""
    assert RULES[mode].cost_nanos(PRICES, 0, 0) >= RULES[mode].floor_nanos > 0
    assert RULES[mode].tokens(0, 0) == RULES[mode].floor_tokens


@pytest.mark.parametrize("mode", list(RULES))
def test_what_is_free_holds_no_money(mode: str) -> None:
    """B11: a model with price zero passes an exhausted budget; its tokens count."""
    assert RULES[mode].cost_nanos(Prices(0, 0), 1_000, 10) == 0
    assert RULES[mode].tokens(1_000, 10) > 0


def test_an_unknown_price_is_held_at_the_floor_or_refused() -> None:
    """B2: never silently free."""
    assert ReservationRule(floor_nanos=77).cost_nanos(None, 1_000, 1_000) == 77
    with pytest.raises(PriceUnknown):
        ReservationRule(refuse_unknown_price=True).cost_nanos(None, 1, 1)


def test_nothing_held_leaves_what_lua_can_count() -> None:
    """B9: absurd requests are held at the most that can be."""
    rule = ReservationRule(mode="worst_case")
    assert rule.cost_nanos(Prices(10**15, 10**15), 10**9, 10**18) == MAX_AMOUNT
    assert rule.tokens(10**9, 10**18) == MAX_AMOUNT
