"""The price catalogue of genai-prices in a document's terms, from the snapshot in the package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timezone
from fractions import Fraction
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, Final

from router.call import UNITS, UsageClass
from router.cli.output import CannotFindOut
from router.config.document import PPM, Prices, PriceTier, ServiceTier
from router.config.schema.prices_schema import MAX_MULTIPLIER

MISSING: Final = (
    "the price catalogue needs the package genai-prices: install api-router[prices]"
    " (Python 3.11 or newer)"
)
_CLASSES: Final[Mapping[str, UsageClass]] = {
    "input_mtok": "input",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write_5m",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "input_audio",
    "input_image_mtok": "input_image",
    "output_mtok": "output",
    "output_reasoning_mtok": "output_reasoning",
    "output_audio_mtok": "output_audio",
    "output_image_mtok": "output_image",
    "requests_kcount": "requests",
    "web_searches_kcount": "web_searches",
    "input_mchars": "characters",
    "audio_hours": "seconds",
}
_SAME: Final = frozenset({"input_audio_hours"})
"""Names a price that stands under another name, too."""
_TIER_KEYS: Final = ("service_tier", "speed", "processing")
"""What a price of the catalogue may depend on that is a service tier to us."""
_RESELLER: Final = "openrouter"
"""Its prices are noted when they change, never before, so the last one dates the snapshot."""

Level = dict[UsageClass, int]
Levels = dict[int, Level]
"""Input tokens that are exceeded (-1: none) → prices in nano-USD per million."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model of the catalogue."""

    provider: str
    model: str
    prices: Prices
    notes: tuple[str, ...]
    """What the document's prices cannot say."""

    @property
    def name(self) -> str:
        """``provider/model``."""
        return f"{self.provider}/{self.model}"


class Catalogue:
    """What providers list, as it is in force on one day. Raises ``CannotFindOut`` without the
    package."""

    def __init__(self, on: date | None = None) -> None:
        if not is_installed():
            raise CannotFindOut(MISSING)
        self._on = on or datetime.now(timezone.utc).date()
        self._snapshot: Any = import_module("genai_prices.data_snapshot").get_snapshot()
        self._find_provider: Callable[..., Any] = import_module(
            "genai_prices.data_snapshot"
        ).find_provider_by_id
        units: dict[str, Any] = import_module("genai_prices.data_units").unit_data
        self._per = {unit.get("price_key", name): unit["per"] for name, unit in units.items()}
        self.version = metadata.version("genai-prices")
        self.as_of = self._day()

    def __str__(self) -> str:
        return f"genai-prices {self.version}, whose newest prices are of {self.as_of}"

    def providers(self) -> list[str]:
        """The ids of all providers."""
        return [provider.id for provider in self._snapshot.providers]

    def models(self, provider_id: str) -> list[str]:
        """The ids of a provider's models."""
        provider = self._find_provider(self._snapshot.providers, provider_id)
        return [] if provider is None else [model.id for model in provider.models]

    def provider_at(self, url: str) -> str | None:
        """The provider whose API has this address."""
        try:
            return str(self._snapshot.find_provider(None, None, url).id)
        except LookupError:
            return None

    def find(self, provider_id: str, names: Iterable[str]) -> Listed | None:
        """What the provider takes for the first of the names that it has."""
        provider = self._find_provider(self._snapshot.providers, provider_id)
        for name in names if provider is not None else ():
            model = provider.find_model(name, all_providers=self._snapshot.providers)
            if model is not None:
                return self._listed(provider, model)
        return None

    def _listed(self, provider: Any, model: Any) -> Listed | None:
        price, notes = self._in_force(model)
        standard = _levels(price, self._nanos)
        if not standard[-1]:
            return None
        own = any(model is one for one in provider.models)  # its service tiers are of no other
        tiers: dict[str, ServiceTier] = {}
        for name, context in _contexts(model) if own else ():
            levels = _levels(self._in_force(model, context)[0], self._nanos)
            if levels != standard:
                tiers.setdefault(name, _service_tier(standard, levels))
        prices = replace(_prices(standard, str(self.as_of)), service_tiers=tiers)
        return Listed(provider.id, model.id, prices, notes)

    def _in_force(
        self, model: Any, context: Mapping[str, str] | None = None
    ) -> tuple[Any, tuple[str, ...]]:
        """The prices of the day, the dearest of its hours, and what was left out of them."""
        constraints = [price.constraint for price in _conditional(model)]
        hours = {time(0), *[c.start_time for c in constraints if hasattr(c, "start_time")]}
        found = [
            model.get_prices(datetime.combine(self._on, hour.replace(tzinfo=timezone.utc)), context)
            for hour in sorted(hours, key=lambda hour: hour.replace(tzinfo=None))
        ]
        dearest = max(found, key=lambda price: sum(_levels(price, self._nanos)[-1].values()))
        notes = []
        if any(price != found[0] for price in found):
            notes.append("varies with the time of day: the dearest is taken")
        coming = [c.start_date for c in constraints if hasattr(c, "start_date")]
        notes += [f"changes on {day}" for day in sorted(set(coming)) if day > self._on]
        left = [name for name in _keys(dearest) if name not in _CLASSES and name not in _SAME]
        if left:
            notes.append(f"not taken: {', '.join(left)}")
        return dearest, tuple(notes)

    def _nanos(self, key: str, price: Any) -> int:
        return round(Fraction(price) * 10**9 * PPM / int(self._per[key]))

    def _day(self) -> date:
        noted: list[date] = []
        announced: list[date] = []
        for provider in self._snapshot.providers:
            dates = noted if provider.id == _RESELLER else announced
            for model in provider.models:
                found = [
                    getattr(price.constraint, "start_date", None) for price in _conditional(model)
                ]
                dates += [day for day in found if day is not None and day <= self._on]
        return max(noted or announced)


def is_installed() -> bool:
    """Tell whether there is a catalogue."""
    return find_spec("genai_prices") is not None


def _conditional(model: Any) -> list[Any]:
    return model.prices if isinstance(model.prices, list) else []


def _contexts(model: Any) -> list[tuple[str, dict[str, str]]]:
    """The service tiers for which a model has prices of their own, and how to ask for them."""
    contexts = [variant.when for variant in model.price_variants or ()]
    return [
        (name, context)
        for context in contexts
        for key, name in context.items()
        if len(context) == 1 and key in _TIER_KEYS
    ]


def _keys(price: Any) -> list[str]:
    return [name for name, value in vars(price).items() if value is not None]


def _levels(price: Any, nanos: Callable[[str, Any], int]) -> Levels:
    """The prices of each class, whole for each size of input."""
    keys = [name for name in _keys(price) if name in _CLASSES]
    tiered = {name: getattr(price, name) for name in keys}
    starts = {tier.start for value in tiered.values() for tier in getattr(value, "tiers", ())}
    return {
        above: {_CLASSES[name]: nanos(name, _at(value, above)) for name, value in tiered.items()}
        for above in (-1, *sorted(starts))
    }


def _at(price: Any, above: int) -> Any:
    """A price, or that of the tier for calls with more input than ``above``."""
    found = getattr(price, "base", price)
    for tier in getattr(price, "tiers", ()):
        if tier.start <= above:
            found = tier.price
    return found


def _prices(levels: Levels, as_of: str) -> Prices:
    base = dict(levels[-1])
    tiers = []
    before = levels[-1]
    for above, level in list(levels.items())[1:]:
        changed = {name: nanos for name, nanos in level.items() if before.get(name) != nanos}
        tiers += [PriceTier(above, changed)] if changed else []
        before = level
    # An embedding model has no output, and what is not counted in tokens has no price for them.
    given, generated = base.pop("input", 0), base.pop("output", 0)
    cached = base.pop("cache_read", None)
    return Prices(given, generated, cached, base, tuple(tiers), as_of=as_of)


def _service_tier(standard: Levels, levels: Levels) -> ServiceTier:
    """What differs from the standard prices, said as shortly as it can be."""
    base, before = levels[-1], standard[-1]
    factors = {Fraction(base[name], before[name]) for name in base if before.get(name)}
    factors = {f * PPM for f in factors if f <= MAX_MULTIPLIER and (f * PPM).denominator == 1}
    found = [_differing(standard, levels, int(ppm)) for ppm in {*factors, Fraction(PPM)} if ppm]
    return min(found, key=lambda tier: (_length(tier), abs(tier.multiplier_ppm - PPM)))


def _length(tier: ServiceTier) -> int:
    return len(tier.classes) + sum(1 + len(size.classes) for size in tier.tiers)


def _differing(standard: Levels, levels: Levels, ppm: int) -> ServiceTier:
    own: Level = {}
    sizes: dict[int, Level] = {}
    for above in sorted(standard.keys() | levels.keys()):
        given, wanted = _level(standard, above), _level(levels, above)
        multiplied = {
            name: Fraction(nanos * (PPM if name in UNITS else ppm), PPM)
            for name, nanos in given.items()
        }
        have = {**multiplied, **own}
        sizes[above] = {name: nanos for name, nanos in wanted.items() if have.get(name) != nanos}
        own.update(sizes[above])
    base = sizes.pop(-1)
    tiers = tuple(PriceTier(above, level) for above, level in sizes.items() if level)
    return ServiceTier(ppm, base, tiers)


def _level(levels: Levels, above: int) -> Level:
    return levels[max(start for start in levels if start <= above)]
