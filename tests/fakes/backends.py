"""The backends of a router in a test: two mocks, a fake, a scripted one; a document for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.mock_backend.server import MockBackend
from tests.fakes.anthropic_api import AnthropicApi
from tests.fakes.raw_server import Peer, RawServer

CLOSED_PORT = "http://127.0.0.1:1/v1"
_PRICES = {
    "input_usd_per_million_tokens": "2.50",
    "output_usd_per_million_tokens": "10.00",
    "cached_input_usd_per_million_tokens": "1.25",
}


class PlainBackend:
    """A backend that answers everything with the bytes it was given last."""

    def __init__(self) -> None:
        self.server = RawServer(self._play)
        self._answer = b""
        self._ends = False

    def reset(self) -> None:
        self._answer, self._ends = b"", False
        self.server.requests.clear()

    def will_answer(
        self, body: bytes, *, status: int = 200, content_type: str = "application/json"
    ) -> None:
        """A whole answer."""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\n"
        self._answer = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._ends = False

    def will_stream(self, *chunks: bytes, whole: bool = True) -> None:
        """A chunked event stream; one that is not ``whole`` breaks off after the last chunk."""
        head = b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n"
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        end = b"0\r\n\r\n" if whole else b""
        self._answer = head + b"Transfer-Encoding: chunked\r\n\r\n" + body + end
        self._ends = not whole

    def will_end_after(self, data: bytes) -> None:
        """These very bytes and the end of the connection."""
        self._answer, self._ends = data, True

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of what it has received."""
        return [request.partition(b"\r\n\r\n")[2] for request in self.server.requests]

    def _play(self, peer: Peer) -> None:
        ends = False
        while not ends:
            peer.read_request()
            ends = self._ends
            peer.send(self._answer)
        peer.end()


@dataclass(frozen=True)
class Backends:
    """The servers that the router forwards to; `second` is there for failover."""

    first: MockBackend
    second: MockBackend
    anthropic: AnthropicApi
    plain: PlainBackend

    def reset(self) -> None:
        """Back to good behaviour, with nothing received."""
        self.first.reset()
        self.second.reset()
        self.anthropic.requests.clear()
        self.plain.reset()

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
                    "base_url": self.anthropic.url,
                    "models": {"claude": "claude-test"},
                    "credential": f"file:{credential_file}",
                },
                {"id": "plain", "kind": "openai", "base_url": f"{self.plain.server.url}/v1"},
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
