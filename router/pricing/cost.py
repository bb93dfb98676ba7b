"""What a call used and what that costs."""

from __future__ import annotations

from typing import Any, Final

from router.call import NO_CLASSES, Usage
from router.config.document import Prices
from router.pricing.price_tables import RATES_PER_NANO, has_price, price_table

CHARS_PER_TOKEN: Final = 4
"""Rule of thumb for English text that OpenAI publishes; used only where nothing was reported."""


def cost_nanos(usage: Usage, prices: Prices | None) -> int | None:
    """Nano-USD for ``usage``, rounded up to a whole nano-USD; ``None`` without a price.

    A class without a price of its own costs as much as the dearest one of its side: never nothing.
    """
    if prices is None:
        return None
    rates = price_table(prices, usage.tokens_input, usage.service_tier).rates
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
