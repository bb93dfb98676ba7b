"""What the forwarder needs to know of a backend's dialect, and who knows it."""

from __future__ import annotations

import time
from typing import Final, Protocol

from router.call import Call, Operation, Usage
from router.config.document import BackendKind
from router.errors import BackendFailed
from router.providers import openai
from router.providers.anthropic import messages_api as anthropic
from router.providers.anthropic.reply import MessagesOperation


class StreamTranslator(Protocol):
    """Turns the backend's stream into the OpenAI dialect and remembers what it says."""

    usage: Usage | None
    usage_at_start: Usage | None
    """What the backend says of the input before it generates, if it does."""
    output_chars: int
    complete: bool
    error: str | None

    def feed(self, chunk: bytes) -> bytes:
        """Bytes to forward now."""

    def finish(self) -> bytes:
        """Bytes left when the backend has closed the stream properly."""


class Provider(Protocol):
    """One backend dialect. Replies come out in the OpenAI dialect."""

    def supports(self, operation: Operation) -> bool:
        """Whether backends of this kind can serve the operation at all."""

    def path(self, operation: Operation) -> str:
        """Path below the backend's base URL."""

    def credential_headers(self, credential: str | None) -> list[tuple[str, str]]:
        """How the router proves itself, and which version of the dialect it speaks."""

    def write_request(self, call: Call, upstream_model: str, max_output_tokens: int) -> bytes:
        """The body for the backend; raises ``InvalidRequest`` for what it cannot express."""

    def read_reply(self, call: Call, body: bytes) -> tuple[bytes, Usage | None, int]:
        """Body, usage and output characters; raises ``BackendFailed`` for nonsense."""

    def read_error(self, status: int, body: bytes) -> str | None:
        """The message of an error reply, when it can be told to the client."""

    def open_stream(self, call: Call) -> StreamTranslator:
        """A tap for one stream."""


class OpenAIProvider:
    """Any server that speaks the OpenAI dialect: vLLM, Ollama, OpenAI itself."""

    supports = staticmethod(openai.supports)
    path = staticmethod(openai.path)
    credential_headers = staticmethod(openai.credential_headers)
    read_error = staticmethod(openai.read_error)

    def write_request(self, call: Call, upstream_model: str, max_output_tokens: int) -> bytes:
        """The client's bytes wherever possible; the backend's own bound on output applies."""
        return openai.write_request(call, upstream_model)

    def read_reply(self, call: Call, body: bytes) -> tuple[bytes, Usage | None, int]:
        """The body as it came."""
        try:
            usage = openai.read_reply(body)
        except ValueError as error:
            raise BackendFailed(f"reply is not JSON: {error}") from None
        return body, usage, openai.count_output(body) if usage is None else 0

    def open_stream(self, call: Call) -> StreamTranslator:
        """Strips the usage chunk that was injected for our own sake."""
        return openai.CompletionStream(strip_usage=not call.include_usage)


class AnthropicProvider:
    """The Messages API, translated both ways."""

    supports = staticmethod(anthropic.supports)
    path = staticmethod(anthropic.path)
    credential_headers = staticmethod(anthropic.headers)

    def write_request(self, call: Call, upstream_model: str, max_output_tokens: int) -> bytes:
        """The Messages API insists on a bound: the model's, when the client gave none."""
        operation = _translatable(call.operation)
        return anthropic.write_request(
            operation, call.fields, model=upstream_model, default_max_tokens=max_output_tokens
        )

    def read_reply(self, call: Call, body: bytes) -> tuple[bytes, Usage | None, int]:
        """A chat completion made of the message."""
        operation = _translatable(call.operation)
        try:
            reply, usage = anthropic.read_reply(operation, body, created=int(time.time()))
        except ValueError as error:
            raise BackendFailed(f"reply is not a message: {error}") from None
        if usage.source == "none":
            return reply, None, openai.count_output(reply)
        return reply, usage, 0

    def read_error(self, status: int, body: bytes) -> str | None:
        """The message inside Anthropic's error object."""
        return anthropic.read_error(status, body)

    def open_stream(self, call: Call) -> StreamTranslator:
        """Translates events as they arrive."""
        return anthropic.MessagesStream(
            _translatable(call.operation),
            include_usage=call.include_usage,
            created=int(time.time()),
        )


def _translatable(operation: Operation) -> MessagesOperation:
    assert operation != "embeddings"  # the plan leaves such backends out
    return operation


PROVIDERS: Final[dict[BackendKind, Provider]] = {
    "openai": OpenAIProvider(),
    "anthropic": AnthropicProvider(),
}
