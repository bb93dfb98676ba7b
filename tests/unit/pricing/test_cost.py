"""What a call costs, to the nano-USD."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.call import NO_USAGE, Usage
from router.config.document import Prices
from router.config.schema.fields import MAX_USD_PER_MILLION_TOKENS
from router.config.schema.notation import NANOS_PER_USD, format_price
from router.pricing.cost import cost_nanos

USD = NANOS_PER_USD
GPT_4O = Prices(input_nanos=2_500_000_000, output_nanos=10_000_000_000)
GPT_4O_CACHED = Prices(2_500_000_000, 10_000_000_000, cached_input_nanos=1_250_000_000)

MANY_TOKENS = st.integers(0, 10**9)
A_PRICE = st.integers(0, MAX_USD_PER_MILLION_TOKENS * USD)


def exact_nanos(usage: Usage, prices: Prices) -> Fraction:
    """The cost as the price list means it, with nothing rounded."""
    cached = min(usage.tokens_cached, usage.tokens_input)
    cached_price = prices.cached_input_nanos
    rated = [
        (usage.tokens_input - cached, prices.input_nanos),
        (cached, prices.input_nanos if cached_price is None else cached_price),
        (usage.tokens_output, prices.output_nanos),
    ]
    return sum((Fraction(tokens * price, 1_000_000) for tokens, price in rated), Fraction(0))


# --- cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "prices", "expected"),
    [
        pytest.param(Usage(1_000_000, 0), GPT_4O, 5 * USD // 2, id="a million in"),
        pytest.param(Usage(0, 1_000_000), GPT_4O, 10 * USD, id="a million out"),
        pytest.param(Usage(13, 9), GPT_4O, 13 * 2_500 + 9 * 10_000, id="a small call"),
        pytest.param(Usage(0, 0), GPT_4O, 0, id="nothing"),
        pytest.param(NO_USAGE, GPT_4O, 0, id="no usage"),
        pytest.param(Usage(100, 0, 40), GPT_4O_CACHED, 60 * 2_500 + 40 * 1_250, id="cached"),
        pytest.param(Usage(100, 0, 100), GPT_4O_CACHED, 100 * 1_250, id="all of it cached"),
        pytest.param(Usage(100, 0, 40), GPT_4O, 100 * 2_500, id="cached without a price for it"),
        pytest.param(Usage(100, 0, 40), Prices(1_000_000, 0, 0), 60, id="cached for nothing"),
        pytest.param(Usage(100, 7, 0), GPT_4O_CACHED, 320_000, id="nothing cached"),
        pytest.param(
            Usage(100, 0, 101), GPT_4O_CACHED, 100 * 1_250, id="more cached than there is"
        ),
        pytest.param(Usage(0, 0, 50), GPT_4O_CACHED, 0, id="cached of nothing"),
        pytest.param(Usage(10**9, 10**9, 10**9), Prices(0, 0, 0), 0, id="free"),
        pytest.param(Usage(5, 5), Prices(0, 1_000_000), 5, id="free input"),
        pytest.param(
            Usage(999_999_999, 0),
            Prices(10**14 - 1, 0),
            99_999_999_899_999_001,
            id="more than a float can tell apart",
        ),
    ],
)
def test_cost_of_a_call(usage: Usage, prices: Prices, expected: int) -> None:
    """B9: tokens by their prices per million, as a whole number of nano-USD."""
    cost = cost_nanos(usage, prices)
    assert (cost, type(cost)) == (expected, int)


@pytest.mark.parametrize("usage", [Usage(10, 10), Usage(0, 0), NO_USAGE])
def test_without_a_price_the_cost_is_unknown(usage: Usage) -> None:
    """B2: unknown is not zero; only a price of 0 makes a call free."""
    assert cost_nanos(usage, None) is None
    assert cost_nanos(usage, Prices(0, 0)) == 0


@pytest.mark.parametrize(
    ("usage", "prices", "expected"),
    [
        pytest.param(Usage(1, 0), Prices(1, 0), 1, id="a millionth counts as one"),
        pytest.param(Usage(1, 1), Prices(1, 1), 1, id="two parts of a nano are not two nanos"),
        pytest.param(Usage(2, 1, 1), Prices(1, 1, 1), 1, id="nor are three"),
        pytest.param(Usage(1, 1), Prices(500_000, 500_000), 1, id="two halves are a whole"),
        pytest.param(Usage(1, 1), Prices(500_000, 500_001), 2, id="a millionth above it"),
        pytest.param(Usage(999_999, 0), Prices(1, 0), 1, id="just below"),
        pytest.param(Usage(1_000_001, 0), Prices(1, 0), 2, id="just above"),
    ],
)
def test_rounding_is_up_and_once(usage: Usage, prices: Prices, expected: int) -> None:
    """B9: the sum is rounded, not its parts, so no call pays more than one nano-USD too much."""
    assert cost_nanos(usage, prices) == expected


@given(
    tokens=st.tuples(MANY_TOKENS, MANY_TOKENS, MANY_TOKENS),
    prices=st.builds(Prices, A_PRICE, A_PRICE, st.none() | A_PRICE),
)
def test_cost_is_the_exact_sum_rounded_up(tokens: tuple[int, int, int], prices: Prices) -> None:
    """B9: for any usage and any price that a document may hold, as rational numbers say it."""
    usage = Usage(*tokens)
    assert cost_nanos(usage, prices) == math.ceil(exact_nanos(usage, prices))


def test_a_million_of_the_smallest_unit_add_up_exactly() -> None:
    """B9: a million calls of one nano-USD are a thousandth of a dollar, not about that."""
    usage, prices = Usage(1, 0), Prices(1_000_000, 0)
    costs = itertools.starmap(cost_nanos, itertools.repeat((usage, prices), 1_000_000))
    total = sum(cost or 0 for cost in costs)
    assert total == 1_000_000
    assert format_price(total) == "0.001"
