"""How backends spell what a call used: one true split in classes, written as each of them does.

What a spelling cannot tell apart is 0 in the splits that are written in it. Where the package
``genai-prices`` knows the spelling, ``oracle`` is the provider and flavour under which it does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Split = Mapping[str, int]
"""Class of ``router.call.UsageClass`` → amount."""

PLAIN = frozenset({"input", "output"})
CACHED = PLAIN | {"cache_read"}
REASONING = CACHED | {"output_reasoning"}
WRITES = CACHED | {"cache_write_5m", "cache_write_1h"}

INPUT = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio", "input_image")
OUTPUT = ("output", "output_reasoning", "output_audio", "output_image")


@dataclass(frozen=True)
class Spelling:
    """One way to report usage."""

    name: str
    write: Callable[[Counter[str]], Json]
    """Split → the fields of a reply that report it."""
    classes: frozenset[str]
    """What it tells apart."""
    oracle: tuple[str, str] | None = None

    def fields(self, split: Split) -> Json:
        """The fields of a reply, or of the last chunk of a stream, that report this split."""
        return self.write(Counter(split))


def all_input(split: Split) -> int:
    """Tokens of all input classes."""
    return sum(split.get(name, 0) for name in INPUT)


def all_output(split: Split) -> int:
    """Tokens of all output classes."""
    return sum(split.get(name, 0) for name in OUTPUT)


def put(reply: Json, fields: Json) -> Json:
    """The reply with these fields; those of ``choice`` go into its first choice."""
    fields = dict(fields)
    if "choice" in fields:
        first, *others = reply["choices"]
        reply = {**reply, "choices": [{**first, **fields.pop("choice")}, *others]}
    return {**reply, **fields}


def respelled(value: Any, spell: Callable[[int], Any]) -> Any:
    """The same JSON, its numbers spelled otherwise."""
    if isinstance(value, dict):
        return {name: respelled(inner, spell) for name, inner in value.items()}
    if isinstance(value, list):
        return [respelled(inner, spell) for inner in value]
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return spell(int(value)) if is_whole else value


# --- OpenAI and those who write as it does ---------------------------------------------------


def _sums(split: Counter[str]) -> Json:
    tokens_input, tokens_output = all_input(split), all_output(split)
    return {
        "prompt_tokens": tokens_input,
        "completion_tokens": tokens_output,
        "total_tokens": tokens_input + tokens_output,
    }


def _openai(split: Counter[str]) -> Json:
    of_input = {
        "cached_tokens": split["cache_read"],
        "cache_write_tokens": split["cache_write_5m"],
        "audio_tokens": split["input_audio"],
        "image_tokens": split["input_image"],
        "text_tokens": split["input"],
    }
    of_output = {
        "reasoning_tokens": split["output_reasoning"],
        "audio_tokens": split["output_audio"],
        "image_tokens": split["output_image"],
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    }
    details = {"prompt_tokens_details": of_input, "completion_tokens_details": of_output}
    return {"usage": {**_sums(split), **details}}


def _without_total(split: Counter[str]) -> Json:
    usage = _openai(split)["usage"]
    return {"usage": {name: value for name, value in usage.items() if name != "total_tokens"}}


def _cached_audio(split: Counter[str]) -> Json:
    """Half of what came from the cache was audio, as OpenAI's audio models tell it."""
    usage = _openai(split)["usage"]
    of_input = usage["prompt_tokens_details"]
    in_cache = split["cache_read"] // 2
    of_input["audio_tokens"] += in_cache
    of_input["cached_tokens_details"] = {"text_tokens": 0, "audio_tokens": in_cache}
    return {"usage": usage}


def _nulls(split: Counter[str]) -> Json:
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    return {"usage": {**_sums(split), **details, "cost": None}, "service_tier": None}


def _total_of_output(split: Counter[str]) -> Json:
    sums = _sums(split)
    return {"usage": {**sums, "completion_tokens": None}}


def _openrouter(split: Counter[str]) -> Json:
    usage = _openai(split)["usage"]
    costs = {"cost": 0.00012, "is_byok": False, "cost_details": {"upstream_inference_cost": None}}
    return {"usage": {**usage, **costs}, "provider": "Somebody"}


def _litellm(split: Counter[str]) -> Json:
    written = split["cache_write_5m"] + split["cache_write_1h"]
    in_detail = {
        "ephemeral_5m_input_tokens": split["cache_write_5m"],
        "ephemeral_1h_input_tokens": split["cache_write_1h"],
    }
    of_input = {
        "cached_tokens": split["cache_read"],
        "cache_creation_tokens": written,
        "cache_creation_token_details": in_detail,
    }
    cache = {"cache_read_input_tokens": split["cache_read"], "cache_creation_input_tokens": written}
    return {"usage": {**_sums(split), "prompt_tokens_details": of_input, **cache}}


def _deepseek(split: Counter[str]) -> Json:
    hit = split["cache_read"]
    cache = {"prompt_cache_hit_tokens": hit, "prompt_cache_miss_tokens": all_input(split) - hit}
    reasoning = {"reasoning_tokens": split["output_reasoning"]}
    return {"usage": {**_sums(split), **cache, "completion_tokens_details": reasoning}}


def _kimi(split: Counter[str]) -> Json:
    return {"usage": {**_sums(split), "cached_tokens": split["cache_read"]}}


def _kimi_stream(split: Counter[str]) -> Json:
    return {"choice": _kimi(split)}


def _databricks(split: Counter[str]) -> Json:
    cache = {"cache_read_input_tokens": split["cache_read"]}
    return {"usage": {**_sums(split), **cache, "reasoning_tokens": split["output_reasoning"]}}


def _grok(split: Counter[str]) -> Json:
    """Reasoning stands beside the completion; only the total has it."""
    usage = _openai(split)["usage"]
    return {"usage": {**usage, "completion_tokens": split["output"] + split["output_audio"]}}


def _gemini(split: Counter[str]) -> Json:
    """Reasoning is in the total alone, and nowhere named."""
    return {"usage": {**_sums(split), "completion_tokens": split["output"] // 2}}


def _perplexity(split: Counter[str]) -> Json:
    usage = _sums(split)
    reasoning = split["output_reasoning"]
    searches = {"num_search_queries": split["web_searches"], "citation_tokens": 0}
    parts = {
        "completion_tokens": usage["completion_tokens"] - reasoning,
        "total_tokens": usage["total_tokens"] - reasoning,
        "reasoning_tokens": reasoning,
    }
    return {"usage": {**usage, **parts, **searches, "search_context_size": "low"}}


def _groq(split: Counter[str]) -> Json:
    return {"x_groq": {"id": "req_1", "usage": {**_sums(split), "queue_time": 0.2}}}


def _responses(split: Counter[str]) -> Json:
    usage = {
        "input_tokens": all_input(split),
        "input_tokens_details": {"cached_tokens": split["cache_read"]},
        "output_tokens": all_output(split),
        "output_tokens_details": {"reasoning_tokens": split["output_reasoning"]},
        "total_tokens": all_input(split) + all_output(split),
    }
    return {"usage": usage}


# --- those who write otherwise ---------------------------------------------------------------


def anthropic_usage(split: Split) -> Json:
    """The ``usage`` of Anthropic's Messages API."""
    split = Counter(split)
    return {
        "input_tokens": split["input"],
        "cache_read_input_tokens": split["cache_read"],
        "cache_creation_input_tokens": split["cache_write_5m"] + split["cache_write_1h"],
        "cache_creation": {
            "ephemeral_5m_input_tokens": split["cache_write_5m"],
            "ephemeral_1h_input_tokens": split["cache_write_1h"],
        },
        "output_tokens": all_output(split),
        "output_tokens_details": {"thinking_tokens": split["output_reasoning"]},
        "server_tool_use": {"web_search_requests": split["web_searches"], "web_fetch_requests": 0},
        "service_tier": "standard",
    }


def _anthropic(split: Counter[str]) -> Json:
    return {"usage": anthropic_usage(split)}


def _bedrock(split: Counter[str]) -> Json:
    for_5m, for_1h = split["cache_write_5m"], split["cache_write_1h"]
    usage = {
        "inputTokens": split["input"],
        "outputTokens": all_output(split),
        "totalTokens": all_input(split) + all_output(split),
        "cacheReadInputTokens": split["cache_read"],
        "cacheWriteInputTokens": for_5m + for_1h,
        "cacheDetails": [
            {"ttl": "5m", "inputTokens": for_5m},
            {"ttl": "1h", "inputTokens": for_1h},
        ],
    }
    return {"usage": usage}


def _bedrock_metrics(split: Counter[str]) -> Json:
    metrics = {
        "inputTokenCount": split["input"],
        "outputTokenCount": all_output(split),
        "cacheReadInputTokenCount": split["cache_read"],
        "cacheWriteInputTokenCount": split["cache_write_5m"],
        "invocationLatency": 1234,
    }
    return {"amazon-bedrock-invocationMetrics": metrics}


def _cohere(split: Counter[str]) -> Json:
    billed = {"input_tokens": float(all_input(split)), "output_tokens": float(all_output(split))}
    tokens = {name: amount + 7 for name, amount in billed.items()}  # some are not billed
    return {"usage": {"billed_units": billed, "tokens": tokens}}


def _cloudflare(split: Counter[str]) -> Json:
    return {"result": {"response": "text", "usage": _sums(split)}}


def _google(split: Counter[str]) -> Json:
    reasoning = split["output_reasoning"]
    usage = {
        "promptTokenCount": all_input(split),
        "cachedContentTokenCount": split["cache_read"],
        "candidatesTokenCount": all_output(split) - reasoning,
        "thoughtsTokenCount": reasoning,
        "totalTokenCount": all_input(split) + all_output(split),
    }
    return {"usageMetadata": usage}


def _llama_cpp(split: Counter[str]) -> Json:
    spent = {"prompt_n": split["input"], "predicted_n": all_output(split), "prompt_ms": 12.5}
    return {"timings": {**spent, "cache_n": split["cache_read"]}}


_ALL_OF_OPENAI = frozenset({*INPUT, *OUTPUT}) - {"cache_write_1h"}

SPELLINGS = (
    Spelling("openai", _openai, _ALL_OF_OPENAI, ("openai", "chat")),
    Spelling("without a total", _without_total, _ALL_OF_OPENAI, ("openai", "chat")),
    Spelling("cached audio", _cached_audio, CACHED | {"input_audio"}),
    Spelling("nulls", _nulls, PLAIN, ("openai", "chat")),
    Spelling("output in the total", _total_of_output, PLAIN),
    Spelling("openrouter", _openrouter, _ALL_OF_OPENAI, ("openrouter", "chat")),
    Spelling("litellm", _litellm, WRITES),
    Spelling("deepseek", _deepseek, REASONING),
    Spelling("kimi", _kimi, CACHED, ("anthropic", "chat")),
    Spelling("kimi stream", _kimi_stream, CACHED),
    Spelling("databricks", _databricks, REASONING, ("databricks", "chat")),
    Spelling("grok", _grok, REASONING | {"output_audio"}, ("x-ai", "chat")),
    Spelling("gemini", _gemini, PLAIN),
    Spelling(
        "perplexity",
        _perplexity,
        PLAIN | {"output_reasoning", "web_searches"},
        ("perplexity", "default"),
    ),
    Spelling("groq", _groq, PLAIN),
    Spelling("responses", _responses, REASONING, ("openai", "responses")),
    Spelling(
        "anthropic",
        _anthropic,
        WRITES | {"output_reasoning", "web_searches"},
        ("anthropic", "default"),
    ),
    Spelling("bedrock", _bedrock, WRITES, ("aws", "default")),
    Spelling("bedrock metrics", _bedrock_metrics, CACHED | {"cache_write_5m"}),
    Spelling("cohere", _cohere, PLAIN, ("cohere", "default")),
    Spelling("cloudflare", _cloudflare, PLAIN, ("cloudflare", "default")),
    Spelling("google", _google, REASONING, ("google", "default")),
    Spelling("llama.cpp", _llama_cpp, CACHED),
)
