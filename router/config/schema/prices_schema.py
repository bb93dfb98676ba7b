"""The document's prices: their fields, and the rules between them."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from itertools import pairwise
from typing import Any, ClassVar, Final

from marshmallow import ValidationError, post_dump, post_load, validates_schema

from router.call import UsageClass
from router.config.document import PPM, Prices, PriceTier, ServiceTier
from router.config.schema.fields import (
    DecimalNumber,
    Integer,
    ListOf,
    MapOf,
    Nested,
    Price,
    Text,
)
from router.config.schema.mapping import Mapping

MAX_TIERS: Final = 16
MAX_INPUT_TOKENS: Final = 100_000_000
MAX_MULTIPLIER: Final = 100
_DAY: Final = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_NO_DAY: Final = "must be a day such as 2026-11-09"
_CLASS_FIELDS: Final[dict[UsageClass, str]] = {
    "input": "input_usd_per_million_tokens",
    "output": "output_usd_per_million_tokens",
    "cache_read": "cached_input_usd_per_million_tokens",
    "cache_write_5m": "cache_write_5m_usd_per_million_tokens",
    "cache_write_1h": "cache_write_1h_usd_per_million_tokens",
    "input_audio": "input_audio_usd_per_million_tokens",
    "input_image": "input_image_usd_per_million_tokens",
    "output_reasoning": "output_reasoning_usd_per_million_tokens",
    "output_audio": "output_audio_usd_per_million_tokens",
    "output_image": "output_image_usd_per_million_tokens",
    "requests": "requests_usd_per_thousand",
    "web_searches": "web_searches_usd_per_thousand",
    "characters": "characters_usd_per_million",
    "seconds": "seconds_usd_per_hour",
}
_ORDER: Final = (
    "above_input_tokens",
    "multiplier",
    *_CLASS_FIELDS.values(),
    "tiers",
    "service_tiers",
    "as_of",
)


def _class_price(name: UsageClass, about: str) -> Price:
    field = _CLASS_FIELDS[name]
    per = {"thousand": 1_000, "hour": 3_600}.get(field.rsplit("_", 1)[1], PPM)
    unit = field.partition("_usd_per_")[2].replace("_", " ")
    about = f"USD per {unit}{f' {name}' if per == 1_000 else ''}: {about}"
    return Price(per=per, unit=f"USD per {unit}", data_key=field, about=about)


class _ClassPrices(Mapping):
    """Prices by class; those that are not given are not dumped."""

    makes: ClassVar[type]

    cache_write_5m = _class_price("cache_write_5m", "input written to a cache for five minutes.")
    cache_write_1h = _class_price("cache_write_1h", "input written to a cache for an hour.")
    input_audio = _class_price("input_audio", "sound that the model hears.")
    input_image = _class_price("input_image", "pictures that the model sees.")
    output_reasoning = _class_price(
        "output_reasoning", "reasoning, where it does not cost what other output costs."
    )
    output_audio = _class_price("output_audio", "sound that the model makes.")
    output_image = _class_price("output_image", "pictures that the model makes.")
    requests = _class_price("requests", "one for each call, besides its tokens.")
    web_searches = _class_price("web_searches", "searches that the provider made for a call.")
    characters = _class_price("characters", "of text, where it is not counted in tokens.")
    seconds = _class_price("seconds", "of sound, where it is not counted in tokens.")

    def get_attribute(self, obj: Any, attr: str, default: Any) -> Any:
        """A class is looked up by its name."""
        if attr in _CLASS_FIELDS:
            return obj.classes.get(attr, default)
        return super().get_attribute(obj, attr, default)

    @post_load
    def make_classes(self, data: dict[str, Any], **_: Any) -> Any:
        """The prices by class become one mapping, lists become tuples."""
        classes = {name: data.pop(name) for name in _CLASS_FIELDS if name in data}
        facts = {n: tuple(value) if isinstance(value, list) else value for n, value in data.items()}
        return self.makes(**facts, classes=classes)

    @post_dump
    def order(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        """What says nothing is left out, so that an older router can read the rest."""
        dumped = {name: data[name] for name in _ORDER if name in data}
        if dumped.get("as_of", "") is None:
            del dumped["as_of"]
        return {name: value for name, value in dumped.items() if value not in ({}, [])}


class PriceTierSchema(_ClassPrices):
    """→ :class:`~router.config.document.PriceTier`."""

    makes = PriceTier

    above_input_tokens = Integer(
        1,
        MAX_INPUT_TOKENS,
        required=True,
        about="Calls with more input tokens than these have the prices, for all their tokens.",
    )
    input = _class_price("input", "input that is not cached.")
    output = _class_price("output", "output.")
    cache_read = _class_price("cache_read", "input read from a cache.")

    @validates_schema
    def check_prices(self, data: dict[str, Any], **_: Any) -> None:
        """A tier that changes no price is a mistake."""
        if data.keys() == {"above_input_tokens"}:
            raise ValidationError("has no price")


def _tiers() -> ListOf:
    return ListOf(
        Nested(PriceTierSchema),
        load_default=list,
        most=MAX_TIERS,
        validate=_check_order,
        about="Prices of calls with more input, smallest first; what a tier does not name stays.",
    )


def _check_order(tiers: list[PriceTier]) -> None:
    sizes = [tier.above_input_tokens for tier in tiers]
    if any(low >= high for low, high in pairwise(sizes)):
        raise ValidationError("must have growing 'above_input_tokens'")


class Multiplier(DecimalNumber):
    """A positive factor → millionths."""

    JSON_SCHEMA: ClassVar[dict[str, Any]] = {
        **DecimalNumber.JSON_SCHEMA,
        "minimum": 0.000001,
        "maximum": MAX_MULTIPLIER,
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        factor = super()._deserialize(value, attr, data, **kwargs)
        ppm = factor * PPM
        if not 0 < factor <= MAX_MULTIPLIER or ppm != ppm.to_integral_value():
            raise ValidationError(
                f"must be above 0, at most {MAX_MULTIPLIER}, with at most six decimals"
            )
        return int(ppm)

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str:
        return f"{(Decimal(value) / PPM).normalize():f}"


class ServiceTierSchema(_ClassPrices):
    """→ :class:`~router.config.document.ServiceTier`."""

    makes = ServiceTier

    multiplier_ppm = Multiplier(
        load_default=PPM,
        data_key="multiplier",
        about="Of the standard prices of tokens, a decimal string; units are not multiplied.",
        metadata={"default": "1"},
    )
    input = _class_price("input", "input that is not cached.")
    output = _class_price("output", "output.")
    cache_read = _class_price("cache_read", "input read from a cache.")
    tiers = _tiers()


def _check_day(day: str | None) -> None:
    try:
        date.fromisoformat(day or "2000-01-01")
    except ValueError:
        raise ValidationError(_NO_DAY) from None


class PricesSchema(_ClassPrices):
    """→ :class:`~router.config.document.Prices`."""

    makes = Prices

    input_nanos = Price(
        required=True,
        data_key="input_usd_per_million_tokens",
        about="USD per million input tokens, a decimal string.",
    )
    output_nanos = Price(
        required=True,
        data_key="output_usd_per_million_tokens",
        about="USD per million output tokens, a decimal string.",
    )
    cached_input_nanos = Price(
        load_default=None,
        allow_none=True,
        data_key="cached_input_usd_per_million_tokens",
        about="USD per million cached input tokens; null means the input price.",
    )
    tiers = _tiers()
    service_tiers = MapOf(
        Nested(ServiceTierSchema),
        about="Service tier → what differs for calls that the provider says it served there.",
    )
    as_of = Text(
        shape=_DAY,
        message=_NO_DAY,
        validate=_check_day,
        load_default=None,
        allow_none=True,
        about="The day of the price list; 'config validate' warns when a newer one is known.",
        metadata={"format": "date"},
    )
