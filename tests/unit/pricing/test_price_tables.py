"""The dearest prices that a call can meet, and the classes that have none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.call import INPUT_CLASSES, OUTPUT_CLASSES, Usage, UsageClass
from router.config.document import Prices, PriceTier, ServiceTier
from router.pricing.cost import cost_nanos, unpriced
from router.pricing.price_tables import DearestPrices, dearest_prices

USD = 10**9
PLAIN = Prices(2 * USD, 8 * USD)
FULL = Prices(
    2 * USD,
    8 * USD,
    USD,
    classes={"cache_write_1h": 4 * USD, "requests": 5_000 * USD, "web_searches": 10_000 * USD},
    tiers=(PriceTier(1_000, {"input": 3 * USD}), PriceTier(2_000, {"output": 6 * USD})),
    service_tiers={"flex": ServiceTier(500_000), "priority": ServiceTier(1_750_000)},
)


@pytest.mark.parametrize(
    ("prices", "tokens_input", "service_tiers", "dearest"),
    [
        (PLAIN, 10**9, (), (2, 8, 0, 35_000_000)),
        (Prices(0, 0), 10**9, ("priority",), (0, 0, 0, 0)),
        # 4.00 for what is written to the cache for an hour
        (FULL, 1_000, (), (4, 8, 5_000_000, 10_000_000)),
        # the output price of the tier of more input is lower, but a shorter prompt has the other
        (FULL, 10_000, (), (4, 8, 5_000_000, 10_000_000)),
        (FULL, 1_000, ("flex",), (4, 8, 5_000_000, 10_000_000)),
        (FULL, 1_000, ("priority",), (7, 14, 5_000_000, 10_000_000)),
        (FULL, 1_000, ("auto",), (7, 14, 5_000_000, 10_000_000)),
        (FULL, 1_000, ("default",), (4, 8, 5_000_000, 10_000_000)),
        # a tier that has no price
        (FULL, 1_000, ("scale",), (7, 14, 5_000_000, 10_000_000)),
        (FULL, 1_000, ("batch",), (4, 8, 5_000_000, 10_000_000)),
    ],
)
def test_dearest_prices(
    prices: Prices, tokens_input: int, service_tiers: tuple[str, ...], dearest: tuple[int, ...]
) -> None:
    """Over the tiers that the input can reach, all classes and the service tiers allowed."""
    given_usd, generated_usd, request, search = dearest
    expected = DearestPrices(given_usd * USD, generated_usd * USD, request, search)
    assert dearest_prices(prices, tokens_input, service_tiers) == expected


def test_classes_that_cannot_occur() -> None:
    """What a request rules out makes its bound no dearer."""
    special = frozenset[UsageClass](INPUT_CLASSES) - {"input", "cache_read"}
    found = dearest_prices(FULL, 500, without=special)
    assert (found.input_nanos, found.output_nanos) == (2 * USD, 8 * USD)
    # an image without a price of its own costs as much as the dearest input
    found = dearest_prices(FULL, 500, without=special - {"input_image"})
    assert found.input_nanos == 4 * USD


NANOS = st.integers(0, 100 * USD)
CLASSES = st.dictionaries(st.sampled_from([*INPUT_CLASSES, *OUTPUT_CLASSES, "web_searches"]), NANOS)
TIERS = st.lists(st.builds(PriceTier, st.integers(1, 60), CLASSES), max_size=3).map(
    lambda tiers: tuple(sorted(tiers, key=lambda tier: tier.above_input_tokens))
)
NAMES = ["flex", "priority", "fast", "batch", "default", "auto", "unheard of"]
SERVICE_TIERS = st.dictionaries(
    st.sampled_from(NAMES[:4]),
    st.builds(ServiceTier, st.integers(10_000, 3 * 10**6), CLASSES, TIERS),
)
PRICES = st.builds(Prices, NANOS, NANOS, st.none() | NANOS, CLASSES, TIERS, SERVICE_TIERS)
AMOUNT = st.integers(0, 20)
USAGES = st.builds(
    Usage,
    st.integers(0, 80),
    st.integers(0, 80),
    AMOUNT,
    special=st.dictionaries(
        st.sampled_from([*INPUT_CLASSES[2:], *OUTPUT_CLASSES[1:], "web_searches"]), AMOUNT
    ),
    service_tier=st.none() | st.sampled_from(NAMES),
)


@given(prices=PRICES, usage=USAGES)
def test_no_call_costs_more_than_the_dearest(prices: Prices, usage: Usage) -> None:
    """Whatever is priced and used: what is held for a call is never less than its cost."""
    tiers = () if usage.service_tier is None else (usage.service_tier,)
    bound = dearest_prices(prices, 80, tiers)
    cost = cost_nanos(usage, prices)
    assert cost is not None
    assert cost <= bound.cost_nanos(80, 80, usage.special.get("web_searches", 0))


@pytest.mark.parametrize(
    ("usage", "nanos", "classes"),
    [
        (Usage(1000, 1), 2_008_000, ()),
        (Usage(1000, 0, 1000), 2_000_000, ()),
        (Usage(0, 9, special={"output_reasoning": 9}), 72_000, ()),
        (Usage(9, 0, special={"cache_write_5m": 9}), 18_000, ("cache_write_5m",)),
        (Usage(9, 0, special={"input_image": 4}), 18_000, ("input_image",)),
        (Usage(0, 9, special={"output_audio": 9}), 72_000, ("output_audio",)),
        (Usage(0, 0, special={"web_searches": 3}), 105_000_000, ("web_searches",)),
        (Usage(0, 0, special={"characters": 3}), 120_000, ("characters",)),
        (Usage(0, 0, special={"seconds": 3}), 4_002_000, ("seconds",)),
        (Usage(0, 0, special={"requests": 3}), 0, ("requests",)),
        (Usage(1, 0, service_tier="default"), 2_000, ()),
        (Usage(1, 0, service_tier="flex"), 2_000, ("service_tier",)),
        (Usage(1, 0, service_tier="priority"), 2_000, ("service_tier",)),
    ],
)  # fmt: skip
def test_what_has_no_price_is_not_free(usage: Usage, nanos: int, classes: tuple[str, ...]) -> None:
    """It costs as much as the dearest that fits, and its name can be counted."""
    assert cost_nanos(usage, PLAIN) == nanos
    assert unpriced(usage, PLAIN) == classes
    assert unpriced(usage, None) == ()


def test_a_free_model_stays_free() -> None:
    """A price of 0 for everything is meant."""
    usage = Usage(9, 9, special={"cache_write_5m": 4, "web_searches": 3}, service_tier="priority")
    assert cost_nanos(usage, Prices(0, 0)) == 0


@pytest.mark.parametrize(
    ("usage", "nanos"),
    [
        # per call, however little it uses
        (Usage(0, 0), 5_000_000),
        (Usage(0, 0, special={"requests": 2}), 10_000_000),
        # whole calls at the tier: 3.00 for plain input, the cache as before, output by the second
        (Usage(1_000, 1), 5_000_000 + 2_000_000 + 8_000),
        (Usage(1_001, 1), 5_000_000 + 3_003_000 + 8_000),
        (Usage(2_001, 1, 1), 5_000_000 + 6_000_000 + 1_000 + 6_000),
        # half and 1.75 times the price of tokens, searches and the request as before
        (Usage(4, 1, service_tier="flex"), 5_000_000 + 8_000),
        (Usage(4, 1, service_tier="priority"), 5_000_000 + 28_000),
        (Usage(4, 1, service_tier="scale"), 5_000_000 + 28_000),
        (
            Usage(4, 0, special={"web_searches": 1}, service_tier="flex"),
            5_000_000 + 4_000 + 10_000_000,
        ),
    ],
)
def test_tiers(usage: Usage, nanos: int) -> None:
    """Each figure is worked out by hand."""
    assert cost_nanos(usage, FULL) == nanos


def test_a_service_tier_with_prices_of_its_own() -> None:
    """They count instead of the multiplied ones, and a tier by input size instead of both."""
    fast = ServiceTier(
        2_000_000, {"output": 20 * USD}, (PriceTier(1_000, {"input": 7 * USD, "output": USD}),)
    )
    prices = Prices(2 * USD, 8 * USD, tiers=FULL.tiers, service_tiers={"fast": fast})
    costs = [cost_nanos(Usage(n, 1, service_tier="fast"), prices) for n in (1_000, 1_001)]
    assert costs == [1_000 * 4_000 + 20_000, 1_001 * 7_000 + 1_000]
    # cached input without a price costs what other input costs at the tier
    assert cost_nanos(Usage(2_000, 0, 2_000, service_tier="fast"), prices) == 2_000 * 7_000
    assert cost_nanos(Usage(2_000, 0, 2_000), prices) == 2_000 * 3_000
