"""What a call used and what that costs."""

from __future__ import annotations

from router.call import NO_CLASSES, Usage
from router.config.document import Prices
from router.pricing.price_tables import RATES_PER_NANO, has_price, price_table


def cost_nanos(usage: Usage, prices: Prices | None) -> int | None:
    """Nano-USD for ``usage``, rounded up to a whole nano-USD; ``None`` without a price.

    A class without a price of its own costs as much as the dearest one of its side: never nothing.
    """
    if prices is None:
        return None
    rates = price_table(prices, usage.tokens_input, usage.service_tier).rates
    if usage.special is NO_CLASSES:  # what most calls report, without a detour
        cached = min(usage.tokens_cached, usage.tokens_input)
        parts = (
            (usage.tokens_input - cached) * rates["input"]
            + cached * rates["cache_read"]
            + usage.tokens_output * rates["output"]
            + rates["requests"]
        )
        return -(-parts // RATES_PER_NANO)
    used = usage.classes()
    parts = sum([amount * rates[name] for name, amount in used.items()])
    if "requests" not in used:  # a call is one, whether or not its provider counts it
        parts += rates["requests"]
    return -(-parts // RATES_PER_NANO)


def unpriced(usage: Usage, prices: Prices | None) -> tuple[str, ...]:
    """The classes used that have no price of their own, ``service_tier`` for such a tier."""
    if prices is None or (usage.special is NO_CLASSES and usage.service_tier is None):
        return ()
    table = price_table(prices, usage.tokens_input, usage.service_tier)
    found = [name for name in usage.special if name in table.unpriced and usage.special[name]]
    return (*found, *(() if has_price(prices, usage.service_tier) else ("service_tier",)))
