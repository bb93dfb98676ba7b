"""Prices in a document: exact, ordered, and refused with the place of each mistake."""

from __future__ import annotations

from typing import Any

import pytest

from router.config.config_errors import DocumentError
from router.config.diff import compare
from router.config.document import Prices, PriceTier, ServiceTier
from router.config.loader import load_serialized
from router.config.serialized import serialize

USD = 10**9
BASE = {"input_usd_per_million_tokens": "3", "output_usd_per_million_tokens": "15"}
FULL: dict[str, Any] = {
    **BASE,
    "cached_input_usd_per_million_tokens": "0.30",
    "cache_write_5m_usd_per_million_tokens": "3.75",
    "cache_write_1h_usd_per_million_tokens": "6",
    "web_searches_usd_per_thousand": "10",
    "requests_usd_per_thousand": "0.000000001",
    "characters_usd_per_million": 15,
    "seconds_usd_per_hour": "0.36",
    "tiers": [
        {"above_input_tokens": 200_000, "input_usd_per_million_tokens": "6"},
        {"above_input_tokens": 500_000, "cached_input_usd_per_million_tokens": "1"},
    ],
    "service_tiers": {
        "batch": {"multiplier": "0.5"},
        "priority": {
            "multiplier": 1.75,
            "output_usd_per_million_tokens": "30",
            "tiers": [{"above_input_tokens": 200_000, "output_usd_per_million_tokens": "45"}],
        },
    },
    "as_of": "2026-11-09",
}  # fmt: skip


def document(prices: Any, at_backend: Any = None) -> dict[str, Any]:
    backend = {"id": "b", "kind": "openai", "base_url": "http://127.0.0.1/v1"}
    if at_backend is not None:
        backend["prices"] = at_backend
    return {"version": 1, "models": [{"id": "m", "prices": prices}], "backends": [backend]}


def test_every_price_is_kept_exactly() -> None:
    """Nano-USD per million, whatever number an operator's price is for."""
    [model] = load_serialized(document(FULL)).models
    assert model.prices == Prices(
        3 * USD,
        15 * USD,
        300_000_000,
        classes={
            "cache_write_5m": 3_750_000_000,
            "cache_write_1h": 6 * USD,
            "web_searches": 10_000 * USD,
            "requests": 1_000,
            "characters": 15 * USD,
            "seconds": 100 * USD,
        },
        tiers=(PriceTier(200_000, {"input": 6 * USD}), PriceTier(500_000, {"cache_read": USD})),
        service_tiers={
            "batch": ServiceTier(500_000),
            "priority": ServiceTier(
                1_750_000, {"output": 30 * USD}, (PriceTier(200_000, {"output": 45 * USD}),)
            ),
        },
        as_of="2026-11-09",
    )


def test_what_is_exported_changes_nothing() -> None:
    """Export, then apply: no difference, at the model and at a backend."""
    loaded = load_serialized(document(FULL, {"m": FULL}))
    exported = serialize(loaded)
    assert load_serialized(exported) == loaded
    assert compare(exported, serialize(load_serialized(exported))) == []
    assert loaded.build(1).prices_of("m", "b") == loaded.models[0].prices


def test_plain_prices_are_exported_as_an_older_router_reads_them() -> None:
    """Nothing that is not set appears."""
    exported = serialize(load_serialized(document(BASE)))
    assert exported["models"][0]["prices"] == {
        "input_usd_per_million_tokens": "3.00",
        "output_usd_per_million_tokens": "15.00",
        "cached_input_usd_per_million_tokens": None,
    }
    assert "prices" not in exported["backends"][0]


def test_prices_at_a_backend_override_those_of_the_model() -> None:
    """The model's own count wherever a backend says nothing."""
    free = {"input_usd_per_million_tokens": "0", "output_usd_per_million_tokens": "0"}
    built = load_serialized(document(BASE, {"m": free})).build(1)
    assert built.prices_of("m", "b") == Prices(0, 0)
    assert (
        built.prices_of("m", "another") == built.prices_of("m", None) == Prices(3 * USD, 15 * USD)
    )


def tiers(*sizes: Any) -> dict[str, Any]:
    prices = {"input_usd_per_million_tokens": "1"}
    return {"tiers": [{"above_input_tokens": size, **prices} for size in sizes]}


def flex(**change: Any) -> dict[str, Any]:
    return {"service_tiers": {"flex": change}}


AUDIO = "output_audio_usd_per_million_tokens"
SEARCHES = "web_searches_usd_per_thousand"
HOUR = "seconds_usd_per_hour"
SIZE = "tiers[0].above_input_tokens: must be a whole number between 1 and 100000000"
ORDER = "tiers: must have growing 'above_input_tokens'"
MULTIPLIER = "multiplier: must be above 0, at most 100, with at most six decimals"
NO_DAY = "as_of: must be a day such as 2026-11-09"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"cache_write_usd_per_million_tokens": 1},
            "cache_write_usd_per_million_tokens: unknown field",
        ),
        ({"classes": {}}, "classes: unknown field"),
        ({AUDIO: None}, f"{AUDIO}: must not be null"),
        ({SEARCHES: "-1"}, f"{SEARCHES}: must not be negative"),
        (
            {SEARCHES: "100000.1"},
            f"{SEARCHES}: is out of a sane range: more than 100000 USD per thousand",
        ),
        ({HOUR: "0.0000000001"}, f"{HOUR}: must not be finer than 0.000000001 USD per hour"),
        (tiers(0), SIZE),
        (tiers("200k"), SIZE),
        (tiers(200_000, 200_000), ORDER),
        (tiers(3, 2), ORDER),
        (tiers(*range(1, 18)), "tiers: must have at most 16"),
        ({"tiers": [{"above_input_tokens": 5}]}, "tiers[0]: has no price"),
        ({"tiers": [{AUDIO: "5"}]}, "tiers[0].above_input_tokens: is missing"),
        (flex(multiplier="0"), f"service_tiers.flex.{MULTIPLIER}"),
        (flex(multiplier="100.1"), f"service_tiers.flex.{MULTIPLIER}"),
        (flex(multiplier="0.0000001"), f"service_tiers.flex.{MULTIPLIER}"),
        (
            flex(multiplier="half"),
            'service_tiers.flex.multiplier: must be a decimal number such as "2.50"',
        ),
        (flex(**tiers(2, 1)), f"service_tiers.flex.{ORDER}"),
        (flex(as_of="2026-11-09"), "service_tiers.flex.as_of: unknown field"),
        ({"as_of": "2026-02-30"}, NO_DAY),
        ({"as_of": "20261109"}, NO_DAY),
        ({"as_of": "yesterday"}, NO_DAY),
    ],
)
def test_a_mistake_is_refused_with_its_place(change: Any, problem: str) -> None:
    """The same at a model and at a backend, all mistakes at once."""
    with pytest.raises(DocumentError) as refusal:
        load_serialized(document({**BASE, **change}, {"m": {**BASE, **change}}))
    places = ("models[0].prices", "backends[0].prices.m")
    assert sorted(refusal.value.problems) == sorted(f"{place}.{problem}" for place in places)


def test_prices_of_an_unknown_model_are_refused() -> None:
    """A price that can never count is a mistake in a name."""
    with pytest.raises(DocumentError) as refusal:
        load_serialized(document(BASE, {"n": BASE}))
    assert refusal.value.problems == ["backends[0].prices.n: no model has the id 'n'"]
