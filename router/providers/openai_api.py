"""Any server that speaks the OpenAI dialect: vLLM, Ollama, OpenAI itself.

Bytes pass through as they are; usage is read from them on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from router.call import Call, Operation, Usage
from router.providers.provider import Provider, StreamTranslator
from router.providers.sse import SseSplitter, data_of

MAX_TOKENS: Final = 1_000_000_000
"""A count above this makes no sense, and its cost would not fit a 64-bit number."""


class OpenAIProvider(Provider):
    """The API of OpenAI: requests and replies need no translation."""

    paths: Mapping[Operation, str] = {
        "chat": "/chat/completions",
        "completions": "/completions",
        "embeddings": "/embeddings",
    }
    reserved_headers = frozenset({"openai-organization", "openai-project"})
    shows_error_bodies = True

    def credential_headers(self, credential: str | None) -> list[tuple[str, str]]:
        """A bearer token."""
        return [] if credential is None else [("Authorization", f"Bearer {credential}")]

    def write_request(self, call: Call, upstream_model: str, max_output_tokens: int) -> bytes:
        """The client's own bytes where nothing has to change, else the same fields written anew.

        ``max_output_tokens`` is not sent: the backend's own bound on output applies.
        """
        inject_usage = call.stream and not call.include_usage and call.operation != "embeddings"
        if call.body is not None and upstream_model == call.requested_model and not inject_usage:
            return call.body
        fields = dict(call.fields)
        fields["model"] = upstream_model
        if inject_usage:
            options = fields.get("stream_options") or {}
            fields["stream_options"] = {**options, "include_usage": True}
        return orjson.dumps(fields)

    def read_reply(self, call: Call, body: bytes) -> tuple[bytes, Usage | None, int]:
        """The body as it came."""
        reply = orjson.loads(body)
        if not isinstance(reply, dict):
            raise ValueError("the reply is not a JSON object")
        usage = read_usage(reply.get("usage"))
        return body, usage, output_chars(reply) if usage is None else 0

    def open_stream(self, call: Call) -> CompletionStream:
        """The usage chunk goes to the client only if the client asked for it."""
        return CompletionStream(strip_usage=not call.include_usage)

    def read_error(self, body: bytes) -> str | None:
        """The message inside an OpenAI error object."""
        try:
            error = orjson.loads(body)
        except ValueError:
            return None
        found = error.get("error", error) if isinstance(error, dict) else None
        message = found.get("message") if isinstance(found, dict) else found
        return message if isinstance(message, str) else None


def read_usage(reported: Any) -> Usage | None:
    """Usage as the OpenAI dialect reports it; ``None`` when it is absent or makes no sense."""
    if not isinstance(reported, dict):
        return None
    tokens_input = _count(reported.get("prompt_tokens"))
    tokens_output = _count(reported.get("completion_tokens", 0))
    if tokens_input is None or tokens_output is None:
        return None
    details = reported.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return Usage(tokens_input, tokens_output, cached or 0)


def output_chars(reply: Any) -> int:
    """Characters generated in a parsed reply, for an estimate."""
    return sum(_choice_chars(choice, "message") for choice in _choices(reply))


class CompletionStream(StreamTranslator):
    """Forwards the events of a stream as they are and remembers what they say.

    With ``strip_usage`` the chunk that carries nothing but usage is left out.
    """

    def __init__(self, *, strip_usage: bool) -> None:
        self._finished_choices = False
        self._strip_usage = strip_usage
        self._splitter = SseSplitter()

    def feed(self, chunk: bytes) -> bytes:
        """Bytes to forward now."""
        return b"".join([event for event in self._splitter.feed(chunk) if self._passes(event)])

    def finish(self) -> bytes:
        """Bytes left when the backend has closed the stream properly."""
        rest = self._splitter.finish()
        if rest and not self._passes(rest):
            rest = b""
        self.complete = self.complete or self._finished_choices
        return rest

    def _passes(self, event: bytes) -> bool:
        data = data_of(event)
        if data is None:
            return True
        if data == b"[DONE]":
            self.complete = True
            return True
        try:
            chunk = orjson.loads(data)
        except ValueError:
            return True
        return self._note(chunk) if isinstance(chunk, dict) else True

    def _note(self, chunk: dict[str, Any]) -> bool:
        """Remember what the chunk says; false when it is to be left out."""
        usage = read_usage(chunk.get("usage"))
        if usage is not None:
            self.usage = usage
        if chunk.get("error"):
            self.error = "error event in stream"
        choices = _choices(chunk)
        for choice in choices:
            self.output_chars += _choice_chars(choice, "delta")
            if choice.get("finish_reason"):
                self._finished_choices = True
        return not (self._strip_usage and usage is not None and not choices)


def _choices(reply: Any) -> list[dict[str, Any]]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list):
        return []
    return [choice for choice in choices if isinstance(choice, dict)]


def _choice_chars(choice: dict[str, Any], part: str) -> int:
    text = choice.get("text")
    total = len(text) if isinstance(text, str) else 0
    message = choice.get(part)
    if not isinstance(message, dict):
        return total
    for name in ("content", "reasoning_content", "refusal"):
        value = message.get(name)
        if isinstance(value, str):
            total += len(value)
    tool_calls = message.get("tool_calls")
    for tool_call in tool_calls if isinstance(tool_calls, list) else ():
        function = tool_call.get("function") if isinstance(tool_call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            total += len(function["arguments"])
    return total


def _count(value: Any) -> int | None:
    """A number of tokens, or ``None`` for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS:
        return value
    return None
