"""The catalogue in a document's terms costs what the package that brings it calculates."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import date, datetime, timezone
from decimal import Decimal
from importlib import metadata

import pytest

from router.call import Usage, UsageClass
from router.cli.prices.catalogue import Catalogue, Listed
from router.config.document import Prices, PriceTier, ServiceTier
from router.config.loader import load_serialized
from router.config.schema.prices_schema import PricesSchema
from router.config.serialized import serialize
from router.pricing.cost import cost_nanos
from router.pricing.price_tables import UNPRICED_UNITS

genai_prices = pytest.importorskip(
    "genai_prices", reason="THE PRICE CATALOGUE IS NOT INSTALLED (it needs Python 3.11)"
)

USD = 10**9
DAY = date(2026, 11, 30)
NOON = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)
PROVIDERS = ("openai", "anthropic", "google", "azure", "groq", "mistral", "x-ai", "perplexity",
             "minimax", "github-copilot")  # fmt: skip
SIZES = (0, 1, 999, 100_001, 128_000, 200_000, 200_001, 272_000, 272_001, 900_000)
THEIRS: dict[UsageClass, str] = {
    "cache_read": "cache_read_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "input_audio": "input_audio_tokens",
    "input_image": "input_image_tokens",
    "output_reasoning": "output_reasoning_tokens",
    "output_audio": "output_audio_tokens",
    "output_image": "output_image_tokens",
    "web_searches": "web_searches",
    "characters": "input_characters",
    "seconds": "audio_seconds",
}
"""Our classes that are the package's, too; its ``cache_write_tokens`` are all that is written."""
NOT_OURS = ("cache_audio_read_tokens", "cache_image_read_tokens", "input_video_tokens",
            "output_video_tokens", "output_citation_tokens")  # fmt: skip


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue(DAY)


def documented(found: list[Listed]) -> list[Prices]:
    """The prices after a document that has them was written and read."""
    dump = PricesSchema().dump
    models = [{"id": f"m{n}", "prices": dump(one.prices)} for n, one in enumerate(found)]
    loaded = load_serialized({"version": 1, "models": models})
    again = load_serialized(serialize(loaded)).models
    assert again == loaded.models
    return [model.prices for model in again if model.prices is not None]


def usage_of(prices: Prices, service_tier: str | None, chance: random.Random) -> Usage:
    """Some of each class that has a price; also what may be in any reply."""
    tokens_input, tokens_output = chance.choice(SIZES), chance.choice(SIZES)
    left = {"input": tokens_input, "output": tokens_output}
    special: dict[UsageClass, int] = {}
    for name in (*prices.classes, "output_reasoning"):
        side = name.partition("_")[0].replace("cache", "input")
        # Groq bills ten seconds at least; a provider's rule like that is in no price.
        most, least = (left[side] // 2, 0) if side in left else (99, 10)
        amount = chance.randint(least, most)
        if name != "requests":
            special[name] = amount
            left[side] = left.get(side, 0) - amount
    cached = chance.randint(0, left["input"])
    return Usage(tokens_input, tokens_output, cached, special=special, service_tier=service_tier)


def calculated(usage: Usage, listed: Listed, context: dict[str, str]) -> Decimal:
    """What the package itself says that the usage costs, in nano-USD."""
    used = {**usage.special, "cache_read": usage.tokens_cached}
    written = used.pop("cache_write_5m", 0) + used.get("cache_write_1h", 0)
    theirs = genai_prices.Usage(
        input_tokens=usage.tokens_input,
        output_tokens=usage.tokens_output,
        cache_write_tokens=written,
        **{THEIRS[name]: amount for name, amount in used.items()},
        **dict.fromkeys(NOT_OURS, 0),
    )
    found = genai_prices.calc_price(
        theirs,
        listed.model,
        provider_id=listed.provider,
        genai_request_timestamp=NOON,
        price_context=context,
    )
    return Decimal(found.total_price) * 10**9


def contexts(service_tier: str) -> dict[str, str]:
    """Each provider names its tiers in its own way; a name is in one of them only."""
    return {"service_tier": service_tier, "speed": service_tier, "processing": service_tier}


def pairs(catalogue: Catalogue) -> Iterator[tuple[Listed, Usage, Prices]]:
    chance = random.Random(9)
    found = [
        listed
        for provider in PROVIDERS
        for model in catalogue.models(provider)
        if (listed := catalogue.find(provider, [model])) and "time of day" not in str(listed.notes)
    ]
    for listed, prices in zip(found, documented(found), strict=True):
        for tier in (None, *prices.service_tiers):
            yield listed, usage_of(prices, tier, chance), prices


def test_calls_cost_what_the_package_calculates(catalogue: Catalogue) -> None:
    """For hundreds of models, with caches, sound, pictures, searches, tiers by input size and
    service tiers: the exact figure, rounded up to a whole nano-USD."""
    seen: dict[str, int] = dict.fromkeys(("calls", "size", "tier", "cached", "units"), 0)
    for listed, usage, prices in pairs(catalogue):
        exact = calculated(
            usage, listed, contexts(usage.service_tier) if usage.service_tier else {}
        )
        cost = cost_nanos(usage, prices)
        assert cost is not None
        by_the_hour = "seconds" in usage.special  # a second's price is rounded itself
        assert 0 <= cost - exact < 1 + by_the_hour, (listed.name, usage)
        seen["calls"] += 1
        seen["size"] += any(usage.tokens_input > size.above_input_tokens for size in prices.tiers)
        seen["tier"] += usage.service_tier is not None
        seen["cached"] += usage.tokens_cached > 0
        seen["units"] += "web_searches" in usage.special or "requests" in prices.classes
    assert seen["calls"] >= 500, seen
    assert min(seen.values()) >= 10, seen


def test_what_has_no_price_costs_the_dearest_of_the_catalogue(catalogue: Catalogue) -> None:
    """The router's own figures for such units are not below any that a provider lists."""
    dearest: dict[UsageClass, int] = dict.fromkeys(UNPRICED_UNITS, 0)
    for provider in (*PROVIDERS, "elevenlabs"):
        for model in catalogue.models(provider):
            listed = catalogue.find(provider, [model])
            for name in UNPRICED_UNITS if listed else ():
                assert listed is not None
                dearest[name] = max(dearest[name], listed.prices.classes.get(name, 0))
    del dearest["requests"]
    assert {
        name: UNPRICED_UNITS[name] >= nanos for name, nanos in dearest.items()
    } == dict.fromkeys(dearest, True)
    assert all(UNPRICED_UNITS[name] <= 1.001 * nanos for name, nanos in dearest.items())


def test_prices_read_from_a_price_list(catalogue: Catalogue) -> None:
    """As OpenAI, Anthropic and Google publish them; a tier that is a multiple is one number."""
    sonnet = catalogue.find("anthropic", ["no-such-name", "claude-sonnet-4-5-20250929"])
    assert sonnet == Listed(
        "anthropic",
        "claude-sonnet-4-5",
        Prices(
            3 * USD,
            15 * USD,
            USD * 3 // 10,
            classes={
                "cache_write_5m": USD * 375 // 100,
                "cache_write_1h": 6 * USD,
                "web_searches": 10_000 * USD,
            },
            tiers=(
                PriceTier(
                    200_000,
                    {
                        "input": 6 * USD,
                        "output": USD * 225 // 10,
                        "cache_read": USD * 6 // 10,
                        "cache_write_5m": USD * 75 // 10,
                        "cache_write_1h": 12 * USD,
                    },
                ),
            ),
            service_tiers={"batch": ServiceTier(500_000)},
            as_of="2026-11-09",
        ),
        (),
    )
    gpt_4o = catalogue.find("openai", ["gpt-4o"])
    assert gpt_4o is not None
    assert gpt_4o.prices.service_tiers == {
        "priority": ServiceTier(1_700_000),
        "fast": ServiceTier(1_700_000),
        "batch": ServiceTier(500_000, {"cache_read": USD * 125 // 100}),
    }
    assert gpt_4o.notes == ("not taken: storage_searches_kcount",)
    gemini = catalogue.find("google", ["gemini-2.5-pro"])
    assert gemini is not None
    assert [tier.above_input_tokens for tier in gemini.prices.tiers] == [200_000]


def test_prices_of_a_day_and_the_dearest_of_its_hours() -> None:
    """A change is taken from its day on and announced before; an hour's rebate is nobody's due."""
    before, after = (
        Catalogue(day).find("google", ["gemini-3.8-flash-tts"])
        for day in (date(2026, 12, 31), date(2027, 1, 1))
    )
    assert before is not None
    assert after is not None
    assert before.notes == ("changes on 2027-01-01",)
    assert after.notes == ()
    assert after.prices.input_nanos == 2 * before.prices.input_nanos
    deepseek = Catalogue(DAY).find("deepseek", ["deepseek-chat"])
    assert deepseek is not None
    assert (deepseek.prices.input_nanos, deepseek.prices.output_nanos) == (
        USD * 27 // 100,
        USD * 11 // 10,
    )
    assert deepseek.notes == ("varies with the time of day: the dearest is taken",)


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://api.anthropic.com", "anthropic"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "google"),
        ("https://me.openai.azure.com/openai/v1", "azure"),
        ("https://api.groq.com/openai/v1", "groq"),
        ("http://127.0.0.1:8000/v1", None),
        ("https://llm.example.com/v1", None),
    ],
)
def test_providers_are_known_by_their_address(
    catalogue: Catalogue, url: str, provider: str | None
) -> None:
    """An address that no provider has is nobody's."""
    assert catalogue.provider_at(url) == provider


def test_the_catalogue_says_what_it_is(catalogue: Catalogue) -> None:
    """Its version and the day of its newest price; an announcement dates nothing."""
    version = metadata.version("genai-prices")
    assert str(catalogue) == f"genai-prices {version}, whose newest prices are of 2026-11-09"
    assert str(Catalogue(date(2027, 6, 1)).as_of) == "2026-11-09"
    assert catalogue.find("openai", ["no-such-model"]) is None
    assert catalogue.find("no-such-provider", ["gpt-4o"]) is None


def test_no_price_of_the_catalogue_changes_in_a_document(catalogue: Catalogue) -> None:
    """What is read again is what was listed, to the nano-USD."""
    found = [
        one for name in catalogue.models("openai") if (one := catalogue.find("openai", [name]))
    ]
    assert len(found) > 100
    assert documented(found) == [one.prices for one in found]
