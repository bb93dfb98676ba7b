"""What a reply of the Messages API used, and how an OpenAI client reads it.

The API's ``input_tokens`` leaves out what was read from or written to the prompt cache; ours is all
of the input. Thinking is within ``output_tokens``.
"""

from __future__ import annotations

from typing import Any, Final

from router.call import Usage, UsageClass
from router.providers.token_counts import MAX_TOKENS, count, inner, note_tier

Json = dict[str, Any]

_COUNTS: Final = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "output_tokens",
)
_GROUPS: Final = ("cache_creation", "server_tool_use", "output_tokens_details")
_DETAILS: Final = frozenset({*_GROUPS, "service_tier"})


def read_usage(reported: Any) -> Usage | None:
    """What a ``usage`` object reports; ``None`` where it does not count the input.

    An output that it does not count is 0.
    """
    if not isinstance(reported, dict):
        return None
    fresh = count(reported.get("input_tokens"))
    if fresh is None:
        return None
    cached = count(reported.get("cache_read_input_tokens")) or 0
    written = count(reported.get("cache_creation_input_tokens")) or 0
    usage = Usage(fresh + cached + written, count(reported.get("output_tokens")) or 0, cached)
    if written or not reported.keys().isdisjoint(_DETAILS):
        _add_details(usage, reported, written)
    return usage if usage.tokens_input <= MAX_TOKENS else None


def _add_details(usage: Usage, reported: Json, written: int) -> None:
    split = inner(reported, "cache_creation")
    written_1h = count(split.get("ephemeral_1h_input_tokens")) or 0
    written_5m = count(split.get("ephemeral_5m_input_tokens")) or 0
    written_5m = max(written_5m, written - written_1h)  # the default, where nothing else is said
    usage.tokens_input += written_5m + written_1h - written
    special: dict[UsageClass, int | None] = {
        "cache_write_1h": written_1h,
        "cache_write_5m": written_5m,
        "output_reasoning": count(inner(reported, "output_tokens_details").get("thinking_tokens")),
        "web_searches": count(inner(reported, "server_tool_use").get("web_search_requests")),
    }
    usage.special = {name: amount for name, amount in special.items() if amount}
    note_tier(usage, reported.get("service_tier"))


def add_report(known: Json, reported: Any) -> None:
    """Take over what a stream reports: each count is a running total, and a 0 replaces none."""
    if not isinstance(reported, dict):
        return
    for name in _COUNTS:
        if count(reported.get(name)) or (name in reported and name not in known):
            known[name] = reported[name]
    for name in _GROUPS:
        if any(count(value) for value in inner(reported, name).values()):
            known[name] = reported[name]
    if reported.get("service_tier"):
        known["service_tier"] = reported["service_tier"]


def usage_fields(usage: Usage) -> Json:
    """The fields of a reply in the OpenAI dialect that say what was used."""
    special = usage.special
    written_1h = special.get("cache_write_1h", 0)
    written = special.get("cache_write_5m", 0) + written_1h
    of_input: Json = {"cached_tokens": usage.tokens_cached}
    if written:
        of_input["cache_write_tokens"] = of_input["cache_creation_tokens"] = written
        of_input["cache_creation_token_details"] = {
            "ephemeral_5m_input_tokens": written - written_1h,
            "ephemeral_1h_input_tokens": written_1h,
        }
    fields: Json = {
        "prompt_tokens": usage.tokens_input,
        "completion_tokens": usage.tokens_output,
        "total_tokens": usage.tokens_input + usage.tokens_output,
        "prompt_tokens_details": of_input,
    }
    if reasoning := special.get("output_reasoning"):
        fields["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    if searches := special.get("web_searches"):
        fields["server_tool_use"] = {"web_search_requests": searches}
    if usage.service_tier is None:
        return {"usage": fields}
    return {"usage": fields, "service_tier": usage.service_tier}
