"""Usage is split into disjoint classes, each priced on its own."""

from __future__ import annotations

import pytest

from router.call import Usage
from router.config.document import Prices, PriceTier, ServiceTier
from router.pricing.cost import cost_nanos

USD = 1_000_000_000
PRICES = Prices(
    3 * USD,
    15 * USD,
    300_000_000,
    classes={
        "cache_write_5m": 3_750_000_000,
        "cache_write_1h": 6 * USD,
        "web_searches": 10_000 * USD,
    },
    tiers=(PriceTier(200_000, {"input": 6 * USD, "output": 22_500_000_000}),),
    service_tiers={"batch": ServiceTier(500_000)},
)


@pytest.mark.parametrize(
    ("usage", "nanos"),
    [
        (Usage(1000, 0), 3_000_000),
        (Usage(1000, 0, 1000), 300_000),
        (Usage(800, 0, special={"cache_write_5m": 800}), 3_000_000),
        (Usage(800, 0, special={"cache_write_1h": 800}), 4_800_000),
        # 100 fresh + 200 read + 300 and 400 written; 10 of output
        (
            Usage(1000, 10, 200, special={"cache_write_5m": 300, "cache_write_1h": 400}),
            300_000 + 60_000 + 1_125_000 + 2_400_000 + 150_000,
        ),
        (Usage(0, 103, special={"output_reasoning": 94}), 103 * 15_000),
        # without a price of its own: the dearest of its side
        (Usage(10, 0, special={"input_audio": 10}), 10 * 6_000),
        (Usage(0, 10, special={"output_audio": 10}), 10 * 15_000),
        (Usage(0, 0, special={"web_searches": 2}), 20_000_000),
        (Usage(200_000, 0), 600_000_000),
        (Usage(200_001, 2), 200_001 * 6_000 + 2 * 22_500),
        (Usage(1000, 0, service_tier="batch"), 1_500_000),
        (Usage(1, 0, 1, service_tier="batch"), 150),
    ],
)  # fmt: skip
def test_each_class_has_its_price(usage: Usage, nanos: int) -> None:
    """Each figure is worked out by hand from prices per million tokens, tiers included."""
    assert cost_nanos(usage, PRICES) == nanos


def test_classes_sum_to_the_totals() -> None:
    """Whatever is reported, no token is in two classes and none is lost."""
    usage = Usage(10, 5, 8, special={"cache_write_5m": 5, "input_audio": 5, "output_reasoning": 9})
    assert usage.classes() == {"cache_read": 8, "cache_write_5m": 2, "output_reasoning": 5}
