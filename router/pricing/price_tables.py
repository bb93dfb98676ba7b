"""Prices of a model → what one of each class costs, and the most that it can cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from router.call import INPUT_CLASSES, OUTPUT_CLASSES, UNITS, UsageClass
from router.config.document import PPM, Prices, ServiceTier

RATES_PER_NANO: Final = 10**12
"""Rates are in 10⁻¹² nano-USD: prices are per million, multipliers in millionths."""

UNPRICED_UNITS: Final[Mapping[UsageClass, int]] = {
    "requests": 0,
    "web_searches": 35_000 * 10**9,
    "characters": 40 * 10**9,
    "seconds": 1_334 * 10**9,
}
"""Nano-USD per million of a unit for which a priced model has no price: the dearest of genai-prices
0.2.3 (35 USD per 1000 searches, 40 USD per million characters, 4.80 USD an hour). A request costs
nothing besides what is in it."""

_STANDARD: Final = ServiceTier()
_STANDARD_NAMES: Final = frozenset({"default", "standard", "auto", "on_demand"})
_DISCOUNTS: Final = frozenset({"flex", "batch"})
"""Service tiers that no provider sells above its standard price."""
_DEAREST: Final = ""
"""Stands for a service tier that has no price: for each class the dearest tier counts."""
_CACHED: Final = 4096


@dataclass(frozen=True, slots=True)
class PriceTable:
    """The rates of calls with more input tokens than ``above``."""

    above: int
    rates: Mapping[UsageClass, int]
    """Of every class."""
    unpriced: frozenset[UsageClass]
    """Those without a price of their own: they cost as much as the dearest of their side."""


@dataclass(frozen=True, slots=True)
class DearestPrices:
    """The most that a call can be charged, in nano-USD."""

    input_nanos: int
    """Per million input tokens."""
    output_nanos: int
    """Per million output tokens."""
    request_nanos: int
    """Once per call."""
    web_search_nanos: int
    """Per search."""

    def cost_nanos(self, tokens_input: int, tokens_output: int, web_searches: int = 0) -> int:
        """What a call that uses at most so much costs at most."""
        tokens = tokens_input * self.input_nanos + tokens_output * self.output_nanos
        return -(-tokens // PPM) + self.request_nanos + web_searches * self.web_search_nanos


def price_table(prices: Prices, tokens_input: int, service_tier: str | None) -> PriceTable:
    """The table that counts for a whole call with so much input, served at this tier."""
    tables = _tables(prices, None if service_tier is None else _priced_tier(prices, service_tier))
    for table in tables:
        if tokens_input > table.above:
            return table
    return tables[-1]


def has_price(prices: Prices, service_tier: str | None) -> bool:
    """Tell whether calls served at this tier have a price of their own."""
    return (
        service_tier is None
        or service_tier in prices.service_tiers
        or service_tier in _STANDARD_NAMES
    )


def dearest_prices(
    prices: Prices,
    tokens_input: int,
    service_tiers: Iterable[str] = (),
    *,
    without: frozenset[UsageClass] = frozenset(),
) -> DearestPrices:
    """The dearest prices that a call with at most ``tokens_input`` of input can meet.

    Over all its tiers of input size, the standard service tier and those given (``auto``: all), and
    all classes but those that the request cannot cause.
    """
    bounds = _dearest(prices, frozenset(service_tiers), without)
    for above, dearest in bounds:
        if tokens_input > above:
            return dearest
    return bounds[-1][1]


def _priced_tier(prices: Prices, name: str) -> str | None:
    """The tier whose prices count; what has none is never cheaper for it."""
    if name in prices.service_tiers:
        return name
    return None if name in _STANDARD_NAMES | _DISCOUNTS else _DEAREST


@lru_cache(maxsize=_CACHED)
def _tables(prices: Prices, service_tier: str | None) -> tuple[PriceTable, ...]:
    """The table for the largest input first; the last one is for any."""
    if service_tier == _DEAREST:
        tiers = [_STANDARD, *prices.service_tiers.values()]
    else:
        tiers = [_STANDARD if service_tier is None else prices.service_tiers[service_tier]]
    return tuple([_table(prices, tiers, above) for above in _starts(prices, tiers)])


def _starts(prices: Prices, tiers: Iterable[ServiceTier]) -> list[int]:
    sizes = [*prices.tiers, *[size for tier in tiers for size in tier.tiers]]
    return sorted({size.above_input_tokens for size in sizes} | {-1}, reverse=True)


def _table(prices: Prices, tiers: list[ServiceTier], above: int) -> PriceTable:
    known = [_known(prices, tier, above) for tier in tiers]
    whole = [_completed(rates) for rates in known]
    return PriceTable(
        above,
        {name: max([rates[name] for rates in whole]) for name in whole[0]},
        frozenset(whole[0].keys() - known[0].keys() - {"cache_read", "output_reasoning"}),
    )


def _known(prices: Prices, tier: ServiceTier, above: int) -> dict[UsageClass, int]:
    """The rates of the classes that have one, for calls with more input than ``above``."""
    listed: dict[UsageClass, int] = {
        "input": prices.input_nanos,
        "output": prices.output_nanos,
        **prices.classes,
    }
    if prices.cached_input_nanos is not None:
        listed["cache_read"] = prices.cached_input_nanos
    for size in prices.tiers:
        if size.above_input_tokens <= above:
            listed.update(size.classes)
    factors = {name: PPM if name in UNITS else tier.multiplier_ppm for name in listed}
    rates = {name: nanos * factors[name] for name, nanos in listed.items()}
    own = [tier.classes]
    own += [size.classes for size in tier.tiers if size.above_input_tokens <= above]
    for classes in own:
        rates.update({name: nanos * PPM for name, nanos in classes.items()})
    return rates


def _completed(known: Mapping[UsageClass, int]) -> dict[UsageClass, int]:
    """The same, and every other class at the dearest price that fits it: never at nothing."""
    rates: dict[UsageClass, int] = {
        **dict.fromkeys(INPUT_CLASSES, max([known.get(name, 0) for name in INPUT_CLASSES])),
        **dict.fromkeys(OUTPUT_CLASSES, max([known.get(name, 0) for name in OUTPUT_CLASSES])),
        "cache_read": known["input"],
        "output_reasoning": known["output"],
    }
    if any(known.values()):  # what costs nothing at all stays free
        rates.update({name: nanos * PPM for name, nanos in UNPRICED_UNITS.items()})
    else:
        rates.update(dict.fromkeys(UNITS, 0))
    return {**rates, **known}


@lru_cache(maxsize=_CACHED)
def _dearest(
    prices: Prices, service_tiers: frozenset[str], without: frozenset[UsageClass]
) -> tuple[tuple[int, DearestPrices], ...]:
    """By the input that is exceeded, largest first."""
    names: set[str | None] = {None, *[_priced_tier(prices, name) for name in service_tiers]}
    if "auto" in service_tiers:  # the provider chooses
        names |= prices.service_tiers.keys()
    tables = [table for name in names for table in _tables(prices, name)]
    return tuple(
        [
            (above, _dearest_of([table for table in tables if table.above <= above], without))
            for above in sorted({table.above for table in tables}, reverse=True)
        ]
    )


def _dearest_of(tables: list[PriceTable], without: frozenset[UsageClass]) -> DearestPrices:
    def most(classes: Iterable[UsageClass], scale: int) -> int:
        rates = [table.rates[name] for table in tables for name in classes if name not in without]
        return -(-max(rates, default=0) // scale)

    return DearestPrices(
        most(INPUT_CLASSES, PPM),
        most(OUTPUT_CLASSES, PPM),
        most(("requests",), RATES_PER_NANO),
        most(("web_searches",), RATES_PER_NANO),
    )
