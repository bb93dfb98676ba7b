"""The providers there are, by the ``kind`` that a document gives its backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from router.call import UsageClass
from router.providers.anthropic.messages_api import AnthropicProvider
from router.providers.openai_api import OpenAIProvider
from router.providers.provider import Provider

PROVIDERS: Final[Mapping[str, Provider]] = {
    "openai": OpenAIProvider(),
    "anthropic": AnthropicProvider(),
}

REPORTED_CLASSES: Final[Mapping[str, frozenset[UsageClass]]] = {
    "openai": frozenset({"cache_read"}),
    "anthropic": frozenset({"cache_read", "cache_write_5m", "cache_write_1h", "web_searches"}),
}
"""What any model at a backend of the kind may report besides plain input and output. Reasoning is
not among it, for it costs what other output does; sound and pictures are for few models."""
