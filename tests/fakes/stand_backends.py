"""The backends of a router in a test, and a document in which each model shows one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.backend.anthropic_api import AnthropicApi
from tests.fakes.backend.openai_api import OpenAIApi

CLOSED_PORT = "http://127.0.0.1:1/v1"
_PRICES = {
    "input_usd_per_million_tokens": "2.50",
    "output_usd_per_million_tokens": "10.00",
    "cached_input_usd_per_million_tokens": "1.25",
}


@dataclass(frozen=True)
class Backends:
    """The servers that the router forwards to."""

    first: OpenAIApi
    second: OpenAIApi
    """For failover."""
    plain: OpenAIApi
    """For answers that a test writes itself."""
    anthropic: AnthropicApi

    @property
    def each(self) -> tuple[OpenAIApi | AnthropicApi, ...]:
        return self.first, self.second, self.plain, self.anthropic

    def reset(self) -> None:
        """Back to good behaviour, with nothing received."""
        for backend in self.each:
            backend.reset()

    def document(
        self, keys: Mapping[str, Mapping[str, Any]], credential_file: Path
    ) -> dict[str, Any]:
        """A document in which each model shows one thing."""
        first = {
            "kind": "openai",
            "base_url": f"{self.first.url}/v1",
            "credential": f"file:{credential_file}",
        }
        return {
            "version": 1,
            "organizations": [
                {"id": "acme"},
                {"id": "closed", "active": False},
                {"id": "narrow"},
            ],
            "keys": [
                {"id": f"key-{name}", "organization": "acme", **facts}
                for name, facts in keys.items()
            ],
            "models": [
                {"id": "gpt-4o", "aliases": ["gpt", "vendor/gpt-4o"], "prices": _PRICES},
                {"id": "renamed", "aliases": ["other-name"], "prices": _PRICES},
                {"id": "unpriced"},
                {"id": "claude", "prices": _PRICES, "max_output_tokens": 512},
                {"id": "embedder", "prices": _PRICES},
                {"id": "dead"},
                {"id": "failover", "prices": _PRICES},
                {"id": "nowhere"},
                {"id": "no-credential"},
                {"id": "impatient"},
                {"id": "plain", "aliases": ["plain-alias"], "prices": _PRICES},
            ],
            "backends": [
                {"id": "first", **first, "models": {"renamed": "vendor-name-of-it"}},
                {"id": "second", "kind": "openai", "base_url": f"{self.second.url}/v1"},
                {"id": "closed", "kind": "openai", "base_url": CLOSED_PORT},
                {"id": "impatient", **first, "timeouts": {"first_byte_s": 0.3, "idle_s": 0.1}},
                {
                    "id": "anthropic",
                    "kind": "anthropic",
                    "base_url": f"{self.anthropic.url}/v1",
                    "models": {"claude": "claude-test"},
                    "credential": f"file:{credential_file}",
                },
                {
                    "id": "plain",
                    "kind": "openai",
                    "base_url": f"{self.plain.url}/v1",
                    "forward_headers": ["Baggage", "Accept"],
                },
                {"id": "locked", **first, "credential": "file:/nowhere/to/be/found"},
            ],
            "policies": [
                *(
                    {"organization": "acme", "model": model, "backends": [{"id": "first"}]}
                    for model in ("gpt-4o", "renamed", "unpriced", "embedder")
                ),
                {"organization": "acme", "model": "claude", "backends": [{"id": "anthropic"}]},
                {"organization": "acme", "model": "plain", "backends": [{"id": "plain"}]},
                {"organization": "acme", "model": "dead", "backends": [{"id": "closed"}]},
                {"organization": "acme", "model": "impatient", "backends": [{"id": "impatient"}]},
                {
                    "organization": "acme",
                    "model": "failover",
                    # So lopsided that the closed port is tried first in every run.
                    "backends": [
                        {"id": "closed", "weight": 1_000_000},
                        {"id": "second", "weight": 1},
                    ],
                },
                {"organization": "acme", "model": "no-credential", "backends": [{"id": "locked"}]},
                {"organization": "narrow", "model": "gpt-4o", "backends": [{"id": "first"}]},
            ],
        }
