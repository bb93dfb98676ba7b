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

from router.call import INPUT_CLASSES, OUTPUT_CLASSES, Usage, UsageClass
from router.providers.token_counts import (
    MAX_TOKENS,
    Json,
    count,
    first_count,
    inner,
    note_tier,
)
from router.providers.usage_names import (
    INPUT,
    INPUT_BESIDE,
    OUTPUT,
    PERPLEXITY,
    PLACES,
    PLAIN,
    ROLES,
    TOTAL,
    Roles,
)

_CUT_ORDER: Final = (*INPUT_CLASSES, *OUTPUT_CLASSES)


def usage_of(reply: Json, *, embeddings: bool = False) -> Usage | None:
    """Usage of a reply or of a chunk; ``None`` when it is absent or makes no sense."""
    usage = read_usage(reply.get("usage")) or _usage_elsewhere(reply)
    if embeddings:  # they have no output: whatever is in the total is input
        total = first_count(inner(reply, "usage"), TOTAL)
        if usage is not None:
            usage = replace(usage, tokens_input=usage.tokens_input + usage.tokens_output)
            usage.tokens_output = 0
        elif total is not None:
            usage = Usage(total, 0)
    if usage is not None:
        note_tier(usage, reply.get("service_tier"))
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
        if part not in PLAIN:
            return None
        if value and type(value) is not int and not _read_details(value, PLAIN[part], special):
            return None
    if special:
        usage.tokens_cached = special.pop("cache_read", 0)
        if len(special) > 1:  # which of them is cut, if they are too many, is not left to chance
            special = {name: special[name] for name in _CUT_ORDER if name in special}
        usage.special = special
    return usage


def _read_details(details: Any, classes: Roles, special: dict[UsageClass, int]) -> bool:
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
    tokens_input = first_count(reported, INPUT)
    tokens_output = first_count(reported, OUTPUT)
    total = first_count(reported, TOTAL)
    found: dict[str, int] = {}
    _collect(reported, ROLES, found)
    if tokens_input is None:
        if total is None or tokens_output is None or total < tokens_output:
            return None
        tokens_input = total - tokens_output
    else:
        if tokens_output is None:
            tokens_output = 0 if total is None else max(0, total - tokens_input)
        tokens_input += _cached_beside(reported, found, total == tokens_input + tokens_output)
    tokens_input += sum([count(reported.get(name)) or 0 for name in INPUT_BESIDE])
    tokens_output += count(reported.get("thoughtsTokenCount")) or 0
    if not reported.keys().isdisjoint(PERPLEXITY):
        tokens_output += count(reported.get("reasoning_tokens")) or 0
    usage = Usage(tokens_input, tokens_output, special=_classes(reported, found))
    _add_excess(usage, total)
    note_tier(usage, reported.get("service_tier"))
    return usage if max(usage.tokens_input, usage.tokens_output) <= MAX_TOKENS else None


def _collect(fields: Json, roles: Roles, found: dict[str, int]) -> None:
    """The largest count of each role: what has two names is one thing."""
    for name, value in fields.items():
        role = roles.get(name)
        if role is None or not value:
            continue
        if type(role) is str:
            number = count(value)
            if number and number > found.get(role, 0):
                found[role] = number
        elif type(value) is dict:
            _collect(value, role, found)


def _cached_beside(reported: Json, found: Mapping[str, int], total_fits: bool) -> int:
    """The tokens read from and written to a cache that are not in the input."""
    beside = found.get("cache_read_beside", 0) + found.get("cache_write_beside", 0)
    if not beside or count(reported.get("prompt_tokens")):
        return 0
    if total_fits and beside <= (count(reported.get("input_tokens")) or 0):
        return 0
    return beside


def _classes(reported: Json, found: dict[str, int]) -> dict[UsageClass, int]:
    """The classes that were told apart, what came from the cache among them."""
    if "cacheDetails" in reported:
        _collect(_bedrock_writes(reported), ROLES, found)
    most = found.get
    written = max(most("cache_write", 0), most("cache_write_beside", 0))
    written_1h = most("cache_write_1h", 0)
    classes: dict[UsageClass, int] = {
        "cache_read": max(most("cache_read", 0), most("cache_read_beside", 0)),
        "cache_write_1h": written_1h,
        "cache_write_5m": max(most("cache_write_5m", 0), written - written_1h),
        "input_audio": most("input_audio", 0) - most("cached_audio", 0),
        "input_image": most("input_image", 0) - most("cached_image", 0),
        "output_reasoning": most("output_reasoning", 0),
        "output_audio": most("output_audio", 0),
        "output_image": most("output_image", 0),
        "web_searches": most("web_searches", 0),
    }
    return {name: amount for name, amount in classes.items() if amount > 0}


def _add_excess(usage: Usage, total: int | None) -> None:
    """Add what is in no sum, as the total or a detail that is larger than its sum says."""
    special = dict(usage.special)
    usage.special, usage.tokens_cached = special, special.pop("cache_read", 0)
    reasoning = special.get("output_reasoning", 0)
    stored = usage.tokens_cached
    stored += special.get("cache_write_5m", 0) + special.get("cache_write_1h", 0)
    excess = 0 if total is None else total - usage.tokens_input - usage.tokens_output
    if excess > 0:
        if excess >= stored and (stored > usage.tokens_input or excess == stored != reasoning):
            usage.tokens_input += stored
            excess -= stored
        usage.tokens_output += excess
    elif total is None:
        usage.tokens_input += stored if stored > usage.tokens_input else 0
        usage.tokens_output += reasoning if reasoning > usage.tokens_output else 0


def _bedrock_writes(reported: Json) -> Json:
    """Bedrock's list of what was written for how long, as Anthropic's object."""
    details = reported.get("cacheDetails")
    if not isinstance(details, list):
        return {}
    writes = {
        f"ephemeral_{detail.get('ttl')}_input_tokens": detail.get("inputTokens")
        for detail in details
        if isinstance(detail, dict)
    }
    return {"cache_creation": writes}


# --- where it stands -------------------------------------------------------------------------


def _usage_elsewhere(reply: Json) -> Usage | None:
    choices = reply.get("choices")
    if isinstance(choices, list):
        usages = [read_usage(choice.get("usage")) for choice in choices if type(choice) is dict]
        of_choices = [usage for usage in usages if usage is not None]
        if of_choices:
            return joined(of_choices)
    for place in PLACES:
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
