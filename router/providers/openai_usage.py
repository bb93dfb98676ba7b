"""What a reply in the OpenAI dialect says was used, in the spellings of those who speak it.

The numbers are checked against each other; a number that makes no sense counts as not given.

* A total larger than its parts is output that was not itemised: Grok and Gemini report reasoning
  outside ``completion_tokens``. Where it is larger by exactly what was cached, it is input.
* A detail is a part of its sum. One that is larger than its sum stands beside it, unless the total
  says otherwise.
* ``input_tokens`` beside ``cache_read_input_tokens`` is Anthropic's or Bedrock's way: what is
  cached is not in it.
* ``citation_tokens`` and ``num_search_queries`` are Perplexity's: its reasoning, and the citations
  that the model read, are in no sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from router.call import OUTPUT_CLASSES, Usage, UsageClass
from router.providers.token_counts import (
    MAX_TOKENS,
    Json,
    count,
    first_count,
    inner,
    largest_count,
    named_tier,
    split_writes,
)

_INPUT: Final = (
    "prompt_tokens",
    "input_tokens",
    "inputTokens",  # Bedrock's Converse
    "inputTokenCount",  # Bedrock's metrics
    "promptTokenCount",  # Gemini
    "prompt_n",  # llama.cpp
)
_OUTPUT: Final = (
    "completion_tokens",
    "output_tokens",
    "outputTokens",
    "outputTokenCount",
    "candidatesTokenCount",
    "predicted_n",
)
_TOTAL: Final = ("total_tokens", "totalTokens", "totalTokenCount")
_INPUT_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OUTPUT_DETAILS: Final = (
    "completion_tokens_details",
    "output_tokens_details",
    "output_token_details",
)
_CACHED_BESIDE: Final = frozenset(
    {"cache_read_input_tokens", "cacheReadInputTokens", "cacheReadInputTokenCount", "cache_n"}
)
_WRITTEN_BESIDE: Final = frozenset(
    {"cache_creation_input_tokens", "cacheWriteInputTokens", "cacheWriteInputTokenCount"}
)
_CACHED: Final = _CACHED_BESIDE | {
    "cached_tokens",
    "prompt_cache_hit_tokens",  # DeepSeek
    "cached_prompt_text_tokens",  # Grok
    "cache_read_tokens",
    "cachedContentTokenCount",
}
_WRITTEN: Final = _WRITTEN_BESIDE | {"cache_write_tokens", "cache_creation_tokens"}
_WRITTEN_DETAILS: Final = ("cache_creation", "cache_creation_token_details")
_INPUT_BESIDE: Final = ("citation_tokens", "toolUsePromptTokenCount")
_REASONING: Final = frozenset({"reasoning_tokens", "thinking_tokens", "thoughtsTokenCount"})
_AUDIO: Final = frozenset({"audio_tokens"})
_IMAGE: Final = frozenset({"image_tokens"})
_SEARCHES: Final = frozenset({"web_search_requests", "num_search_queries"})
_PERPLEXITY: Final = frozenset({"citation_tokens", "num_search_queries"})

_PLAIN: Final[Mapping[str, Mapping[str, UsageClass | None]]] = {
    "prompt_tokens": {},
    "completion_tokens": {},
    "total_tokens": {},
    "prompt_tokens_details": {
        "cached_tokens": "cache_read",
        "cache_write_tokens": "cache_write_5m",
        "audio_tokens": "input_audio",
        "image_tokens": "input_image",
        "text_tokens": None,
    },
    "completion_tokens_details": {
        "reasoning_tokens": "output_reasoning",
        "audio_tokens": "output_audio",
        "image_tokens": "output_image",
        "text_tokens": None,
        "accepted_prediction_tokens": None,
        "rejected_prediction_tokens": None,
    },
}
"""The fields of OpenAI itself, and the classes that their details are."""
_PLACES: Final = (
    ("x_groq", "usage"),
    ("usage", "billed_units"),  # Cohere
    ("meta", "billed_units"),
    ("usage", "tokens"),
    ("usageMetadata",),
    ("result", "usage"),  # Cloudflare
    ("response", "usage"),
    ("amazon-bedrock-invocationMetrics",),
    ("timings",),  # llama.cpp
)
"""Where usage stands that is not in ``usage``."""


def usage_of(reply: Json, *, embeddings: bool = False) -> Usage | None:
    """Usage of a reply or of a chunk; ``None`` when it is absent or makes no sense."""
    usage = read_usage(reply.get("usage")) or _usage_elsewhere(reply)
    if embeddings:  # they have no output: whatever is in the total is input
        total = first_count(inner(reply, "usage"), _TOTAL)
        if usage is not None:
            usage = replace(usage, tokens_input=usage.tokens_input + usage.tokens_output)
            usage.tokens_output = 0
        elif total is not None:
            usage = Usage(total, 0)
    if usage is not None and usage.service_tier is None:
        usage.service_tier = named_tier(reply.get("service_tier"))
    return usage


def read_usage(reported: Any) -> Usage | None:
    """Usage as one object reports it; ``None`` when it is absent or makes no sense."""
    if not isinstance(reported, dict) or not reported:
        return None
    return _read_plain(reported) or _read_any(reported)


def _read_plain(reported: Json) -> Usage | None:
    """The usage of the shape that most replies have, read fast; ``None`` for any other."""
    tokens_input = reported.get("prompt_tokens")
    tokens_output = reported.get("completion_tokens")
    if type(tokens_input) is not int or type(tokens_output) is not int:
        return None
    if not 0 <= tokens_input <= MAX_TOKENS or not 0 <= tokens_output <= MAX_TOKENS:
        return None
    if tokens_input + tokens_output != reported.get("total_tokens"):
        return None
    usage = Usage(tokens_input, tokens_output)
    if len(reported) == 3:
        return usage
    special: dict[UsageClass, int] = {}
    for part, value in reported.items():
        if part not in _PLAIN:
            return None
        if value and type(value) is not int and not _read_details(value, _PLAIN[part], special):
            return None
    if special:
        usage.tokens_cached = special.pop("cache_read", 0)
        usage.special = special
    return usage


def _read_details(
    details: Any, classes: Mapping[str, UsageClass | None], special: dict[UsageClass, int]
) -> bool:
    """Take over the details that are not 0; false for any that are not plain."""
    if type(details) is not dict:
        return False
    for name, value in details.items():
        if value:
            if name not in classes or type(value) is not int or not 0 < value <= MAX_TOKENS:
                return False
            special_class = classes[name]
            if special_class is not None:
                special[special_class] = value
    return True


def _read_any(reported: Json) -> Usage | None:
    sums = _sums(reported)
    if sums is None:
        return None
    tokens_input, tokens_output, total = sums
    special = _special(reported)
    reasoning = special.get("output_reasoning", 0)
    cached = special.pop("cache_read", 0)
    stored = cached + special.get("cache_write_5m", 0) + special.get("cache_write_1h", 0)
    excess = 0 if total is None else total - tokens_input - tokens_output
    if excess > 0:
        if excess >= stored and (stored > tokens_input or excess == stored != reasoning):
            tokens_input += stored
            excess -= stored
        tokens_output += excess
    elif total is None:
        tokens_input += stored if stored > tokens_input else 0
        tokens_output += reasoning if reasoning > tokens_output else 0
    if tokens_input > MAX_TOKENS or tokens_output > MAX_TOKENS:
        return None
    tier = named_tier(reported.get("service_tier"))
    return Usage(tokens_input, tokens_output, cached, special=special, service_tier=tier)


def _sums(reported: Json) -> tuple[int, int, int | None] | None:
    """All input, all output that has a name, and the total; ``None`` without input."""
    tokens_input = first_count(reported, _INPUT)
    tokens_output = first_count(reported, _OUTPUT)
    total = first_count(reported, _TOTAL)
    if tokens_input is None:
        if total is None or tokens_output is None or total < tokens_output:
            return None
        tokens_input = total - tokens_output
    if tokens_output is None:
        tokens_output = 0 if total is None else max(0, total - tokens_input)
    tokens_input += _cached_beside(reported, tokens_input, total == tokens_input + tokens_output)
    tokens_input += sum([count(reported.get(name)) or 0 for name in _INPUT_BESIDE])
    tokens_output += count(reported.get("thoughtsTokenCount")) or 0
    if not reported.keys().isdisjoint(_PERPLEXITY):
        tokens_output += count(reported.get("reasoning_tokens")) or 0
    return tokens_input, tokens_output, total


def _cached_beside(reported: Json, tokens_input: int, total_fits: bool) -> int:
    """The tokens read from and written to a cache that are not in the input."""
    if count(reported.get("prompt_tokens")):
        return 0
    beside = largest_count([reported], _CACHED_BESIDE) + largest_count([reported], _WRITTEN_BESIDE)
    if total_fits and beside <= tokens_input and "input_tokens" in reported:
        return 0
    return beside


def _special(reported: Json) -> dict[UsageClass, int]:
    """The classes that were told apart, what came from the cache among them."""
    of_input = [inner(reported, name) for name in _INPUT_DETAILS if name in reported]
    of_output = [inner(reported, name) for name in _OUTPUT_DETAILS if name in reported]
    of_cached = [inner(details, "cached_tokens_details") for details in of_input]
    of_written = [
        inner(fields, name) for fields in (reported, *of_input) for name in _WRITTEN_DETAILS
    ]
    written_5m, written_1h = split_writes(
        largest_count([reported, *of_input], _WRITTEN), [*of_written, _bedrock_writes(reported)]
    )
    found: dict[UsageClass, int] = {
        "cache_read": largest_count([reported, *of_input], _CACHED),
        "cache_write_1h": written_1h,
        "cache_write_5m": written_5m,
        "input_audio": largest_count(of_input, _AUDIO) - largest_count(of_cached, _AUDIO),
        "input_image": largest_count(of_input, _IMAGE) - largest_count(of_cached, _IMAGE),
        "output_audio": largest_count(of_output, _AUDIO),
        "output_image": largest_count(of_output, _IMAGE),
        "output_reasoning": largest_count([reported, *of_output], _REASONING),
        "web_searches": largest_count([reported, inner(reported, "server_tool_use")], _SEARCHES),
    }
    return {name: amount for name, amount in found.items() if amount > 0}


def _bedrock_writes(reported: Json) -> Json:
    """Bedrock's list of what was written for how long, as Anthropic's object."""
    details = reported.get("cacheDetails")
    if not isinstance(details, list):
        return {}
    return {
        f"ephemeral_{detail.get('ttl')}_input_tokens": detail.get("inputTokens")
        for detail in details
        if isinstance(detail, dict)
    }


# --- where it stands -------------------------------------------------------------------------


def _usage_elsewhere(reply: Json) -> Usage | None:
    choices = reply.get("choices")
    if isinstance(choices, list):
        usages = [read_usage(choice.get("usage")) for choice in choices if type(choice) is dict]
        of_choices = [usage for usage in usages if usage is not None]
        if of_choices:
            return joined(of_choices)
    for place in _PLACES:
        if place[0] in reply and (usage := read_usage(inner(reply, *place))) is not None:
            return usage
    return None


def joined(of_choices: Sequence[Usage]) -> Usage:
    """The usage of choices that report each its own, and share one prompt."""
    first, *others = of_choices
    if not others:
        return first
    special = dict(first.special)
    for other in others:
        for name in OUTPUT_CLASSES:
            if name in other.special:
                special[name] = special.get(name, 0) + other.special[name]
    tokens_output = sum([usage.tokens_output for usage in of_choices])
    return replace(first, tokens_output=tokens_output, special=special)
