"""The providers there are, by the ``kind`` that a document gives its backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from router.providers.anthropic.messages_api import AnthropicProvider
from router.providers.openai_api import OpenAIProvider
from router.providers.provider import Provider

PROVIDERS: Final[Mapping[str, Provider]] = {
    "openai": OpenAIProvider(),
    "anthropic": AnthropicProvider(),
}
