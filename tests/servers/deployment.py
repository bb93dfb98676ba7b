"""A router with its backends: what most tests of this folder talk to."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.backend.anthropic_api import AnthropicApi
from tests.fakes.backend.openai_api import OpenAIApi
from tests.servers.router_process import NewKey, RouterProcess, free_port

ORGANIZATION = "acme"
CHAT = "gpt-4o"
ALIAS = "openai/gpt-4o-latest"  # the SDK encodes the slash
EMBEDDING = "text-embedding-3-small"
CLAUDE = "claude-sonnet"
CLAUDE_VARIANT = "claude-sonnet-4-5"
DEAD = "gpt-dead"
"""A model whose only backend is a port on which nobody listens."""
SECOND = "gpt-second"
"""A model that the second backend serves, which is given little time."""
IMPATIENT = {"connect_s": 0.5, "first_byte_s": 0.9, "idle_s": 0.9, "total_s": 1.8}

HELLO = [{"role": "user", "content": "Tell me of the sea"}]


def _prices(given: str, generated: str) -> dict[str, str]:
    return {
        "input_usd_per_million_tokens": given,
        "output_usd_per_million_tokens": generated,
    }


def document(backend_url: str, *, claude_url: str, second_url: str, dead_url: str) -> Any:
    """One organization, four kinds of backend, a model for each."""

    def served(model: str, backend: str) -> Any:
        return {"organization": "*", "model": model, "backends": [{"id": backend}]}

    return {
        "version": 1,
        "organizations": [{"id": ORGANIZATION}],
        "models": [
            {"id": CHAT, "aliases": [ALIAS], "prices": _prices("2.50", "10.00")},
            {"id": EMBEDDING, "prices": _prices("0.02", "0")},
            {"id": CLAUDE, "prices": _prices("3.00", "15.00")},
            {"id": SECOND, "prices": _prices("1", "2")},
            {"id": DEAD},
        ],
        "backends": [
            {
                "id": "mock-a",
                "kind": "openai",
                "base_url": f"{backend_url}/v1",
                "credential": "env:MOCK_CREDENTIAL",
            },
            {
                "id": "mock-b",
                "kind": "openai",
                "base_url": f"{second_url}/v1",
                "timeouts": IMPATIENT,
            },
            {
                "id": "claude",
                "kind": "anthropic",
                "base_url": claude_url,
                "credential": "env:CLAUDE_CREDENTIAL",
                "models": {CLAUDE: CLAUDE_VARIANT},
            },
            {"id": "dead", "kind": "openai", "base_url": f"{dead_url}/v1"},
        ],
        "policies": [
            {"organization": "*", "model": "*", "backends": [{"id": "mock-a"}]},
            served(SECOND, "mock-b"),
            served(CLAUDE, "claude"),
            served(DEAD, "dead"),
        ],
    }


@dataclass(repr=False)
class Deployment:
    """A running router, its backends and two of its keys."""

    router: RouterProcess
    backend: OpenAIApi
    second: OpenAIApi
    claude: AnthropicApi
    document: Any
    credentials: dict[str, str]
    key: NewKey = field(init=False)
    """May do everything."""
    narrow_key: NewKey = field(init=False)
    """May use the embedding model and nothing else."""

    def reset(self) -> None:
        """The backends as they were at the start."""
        self.backend.reset()
        self.second.reset()
        self.claude.reset()


@contextmanager
def deploy(
    directory: Path, *, workers: int = 2, python_options: tuple[str, ...] = (), **settings: str
) -> Iterator[Deployment]:
    """A router with fake backends of its own, until the block ends."""
    credentials = {
        "MOCK_CREDENTIAL": f"sk-canary-{secrets.token_hex(12)}",
        "CLAUDE_CREDENTIAL": f"sk-ant-canary-{secrets.token_hex(12)}",
    }
    with (
        OpenAIApi(name="a", api_key=credentials["MOCK_CREDENTIAL"]) as backend,
        OpenAIApi(name="b") as second,
        AnthropicApi(api_key=credentials["CLAUDE_CREDENTIAL"]) as claude,
    ):
        router = RouterProcess(
            directory,
            workers=workers,
            environment={**credentials, **settings},
            python_options=python_options,
        )
        content = document(
            backend.url,
            claude_url=f"{claude.url}/v1",
            second_url=second.url,
            dead_url=f"http://127.0.0.1:{free_port()}",
        )
        deployment = Deployment(router, backend, second, claude, content, credentials)
        try:
            router.start(content)
            deployment.key = router.create_key(ORGANIZATION)
            deployment.narrow_key = router.create_key(ORGANIZATION, "--model", EMBEDDING)
            yield deployment
        finally:
            router.kill()
