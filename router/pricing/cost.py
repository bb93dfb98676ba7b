"""What a call used and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from router.call import INPUT_CLASSES, OUTPUT_CLASSES, Usage, UsageClass
from router.config.document import Prices

CHARS_PER_TOKEN: Final = 4
"""Rule of thumb for English text that OpenAI publishes; used only where nothing was reported."""

TOKENS_PER_PRICE: Final = 1_000_000
_TIER_PPM: Final = 1_000_000


def cost_nanos(usage: Usage, prices: Prices | None) -> int | None:
    """Nano-USD for ``usage``, rounded up to a whole nano-USD; ``None`` without a price.

    A class without a price of its own costs as much as the dearest one of its side: never nothing.
    """
    if prices is None:
        return None
    known = class_prices(prices, usage.tokens_input)
    parts = sum([amount * _price(name, known) for name, amount in usage.classes().items()])
    tier_ppm = _TIER_PPM
    if usage.service_tier is not None:
        tier_ppm = prices.service_tiers_ppm.get(usage.service_tier, _TIER_PPM)
    return -(-parts * tier_ppm // (TOKENS_PER_PRICE * _TIER_PPM))


def class_prices(prices: Prices, tokens_input: int) -> Mapping[UsageClass, int]:
    """The prices of a call with so much input, for the classes that have one."""
    cached = prices.cached_input_nanos
    known: dict[UsageClass, int] = {
        "input": prices.input_nanos,
        "output": prices.output_nanos,
        "cache_read": prices.input_nanos if cached is None else cached,
        **prices.classes,
    }
    for tier in prices.tiers:
        if tokens_input > tier.above_input_tokens:
            known.update(tier.classes)
    return known


def _price(name: UsageClass, known: Mapping[UsageClass, int]) -> int:
    price = known.get(name)
    if price is not None:
        return price
    if name in INPUT_CLASSES:
        return max([known[other] for other in INPUT_CLASSES if other in known])
    if name == "output_reasoning":
        return known["output"]
    if name in OUTPUT_CLASSES:
        return max([known[other] for other in OUTPUT_CLASSES if other in known])
    return 0


def estimate(fields: dict[str, Any], output_chars: int, at_start: Usage | None = None) -> Usage:
    """Usage of a call whose backend reported none, from its length in characters.

    ``at_start`` is what the backend said of the input before its reply broke off.
    """
    return Usage(
        tokens_input=_tokens(text_chars(fields)) if at_start is None else at_start.tokens_input,
        tokens_output=_tokens(output_chars),
        tokens_cached=0 if at_start is None else at_start.tokens_cached,
        source="estimated",
    )


def text_chars(fields: dict[str, Any]) -> int:
    """Characters of prompt text in an OpenAI-shaped body; token arrays count as text would."""
    total = 0
    pending: list[Any] = [fields.get(name) for name in ("messages", "prompt", "input", "tools")]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, dict):
            pending += [part for name, part in value.items() if name in _TEXT_FIELDS]
            properties = value.get("properties")
            if isinstance(properties, dict):  # of a tool's parameters, named as the tool likes
                pending.extend((*properties, *properties.values()))
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            total += CHARS_PER_TOKEN  # one token of a prompt given as token ids
    return total


_TEXT_FIELDS: Final = frozenset(
    {
        "content",
        "text",
        "name",
        "arguments",
        "function",
        "tool_calls",
        "description",
        "parameters",
        "items",
        "enum",
    }
)


def _tokens(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)
