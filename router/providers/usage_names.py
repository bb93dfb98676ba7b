"""The names under which speakers of the OpenAI dialect report what a call used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

INPUT: Final = (
    "prompt_tokens",
    "input_tokens",
    "inputTokens",  # Bedrock's Converse
    "inputTokenCount",  # Bedrock's metrics
    "promptTokenCount",  # Gemini
    "prompt_n",  # llama.cpp
)
OUTPUT: Final = (
    "completion_tokens",
    "output_tokens",
    "outputTokens",
    "outputTokenCount",
    "candidatesTokenCount",
    "predicted_n",
)
TOTAL: Final = ("total_tokens", "totalTokens", "totalTokenCount")

INPUT_BESIDE: Final = ("citation_tokens", "toolUsePromptTokenCount")
"""Input that is not in the input."""
PERPLEXITY: Final = frozenset({"citation_tokens", "num_search_queries"})
"""Where one of these stands, ``reasoning_tokens`` are not in the output."""

Roles = Mapping[str, Any]
"""Name of a field → what it counts, or the roles of the fields inside it."""

_WRITES: Final[Roles] = {
    "ephemeral_5m_input_tokens": "cache_write_5m",
    "ephemeral_1h_input_tokens": "cache_write_1h",
}
_CACHE: Final[Roles] = {
    "cached_tokens": "cache_read",
    "cache_read_tokens": "cache_read",
    "cache_read_input_tokens": "cache_read_beside",
    "cache_creation_input_tokens": "cache_write_beside",
    "cache_creation_tokens": "cache_write",
    "cache_write_tokens": "cache_write",
    "cache_creation": _WRITES,
    "cache_creation_token_details": _WRITES,
}
_OF_INPUT: Final[Roles] = {
    **_CACHE,
    "cache_read_input_tokens": "cache_read",
    "cache_creation_input_tokens": "cache_write",
    "audio_tokens": "input_audio",
    "image_tokens": "input_image",
    "cached_tokens_details": {"audio_tokens": "cached_audio", "image_tokens": "cached_image"},
}
_OF_OUTPUT: Final[Roles] = {
    "audio_tokens": "output_audio",
    "image_tokens": "output_image",
    "reasoning_tokens": "output_reasoning",
    "thinking_tokens": "output_reasoning",
}
ROLES: Final[Roles] = {
    **_CACHE,
    "prompt_cache_hit_tokens": "cache_read",  # DeepSeek
    "cached_prompt_text_tokens": "cache_read",  # Grok
    "cachedContentTokenCount": "cache_read",
    "cacheReadInputTokens": "cache_read_beside",
    "cacheReadInputTokenCount": "cache_read_beside",
    "cache_n": "cache_read_beside",
    "cacheWriteInputTokens": "cache_write_beside",
    "cacheWriteInputTokenCount": "cache_write_beside",
    "reasoning_tokens": "output_reasoning",
    "thoughtsTokenCount": "output_reasoning",
    "num_search_queries": "web_searches",
    "server_tool_use": {"web_search_requests": "web_searches"},
    "prompt_tokens_details": _OF_INPUT,
    "input_tokens_details": _OF_INPUT,
    "input_token_details": _OF_INPUT,
    "completion_tokens_details": _OF_OUTPUT,
    "output_tokens_details": _OF_OUTPUT,
    "output_token_details": _OF_OUTPUT,
}
"""Of all fields but the sums. What is ``…_beside`` is beside the input where the input is not
called ``prompt_tokens``."""

PLAIN: Final[Mapping[str, Roles]] = {
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

PLACES: Final = (
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
