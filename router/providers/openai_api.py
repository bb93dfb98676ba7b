"""Any server that speaks the OpenAI dialect: vLLM, Ollama, OpenAI itself.

Bytes pass through as they are; usage is read from them on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from router.call import Call, Operation, Usage
from router.providers.generated_chars import generated_chars
from router.providers.openai_usage import joined, usage_of
from router.providers.provider import Provider, ReadReply, StreamTranslator
from router.providers.sse import SseSplitter, data_of
from router.providers.token_counts import named_tier

_MAX_CHOICES: Final = 128


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

    def read_reply(self, call: Call, body: bytes) -> ReadReply:
        """The body as it came."""
        reply = orjson.loads(body)
        if not isinstance(reply, dict):
            raise ValueError("the reply is not a JSON object")
        usage = usage_of(reply, embeddings=call.operation == "embeddings")
        if usage is not None and usage.tokens_output:
            return ReadReply(body, usage)
        chars = generated_chars(_choices(reply), "message")
        if usage is None or chars:
            return ReadReply(body, None, chars, usage if usage and usage.tokens_input else None)
        return ReadReply(body, usage)

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


class CompletionStream(StreamTranslator):
    """Forwards the events of a stream as they are and remembers what they say.

    With ``strip_usage`` the chunk that carries nothing but usage is left out.
    """

    def __init__(self, *, strip_usage: bool) -> None:
        self._finished_choices = False
        self._of_choices: dict[int, Usage] = {}
        self._service_tier: Any = None
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
        choices = _choices(chunk)
        ends = not choices
        self.output_chars += generated_chars(choices, "delta")
        for choice in choices:
            if choice.get("finish_reason"):
                self._finished_choices = ends = True
        if chunk.get("error"):
            self.error = "error event in stream"
        reported = chunk.get("usage")
        if "service_tier" in chunk:
            self._service_tier = chunk["service_tier"]
        is_usage = (reported or ends) and self._note_usage(chunk, choices)
        return not (self._strip_usage and is_usage and not choices)

    def _note_usage(self, chunk: dict[str, Any], choices: list[dict[str, Any]]) -> bool:
        """Remember the usage that a chunk reports; true if it has a report, be it of no use."""
        usage = usage_of(chunk)
        if usage is None:
            return isinstance(chunk.get("usage"), dict)
        if choices and choices[0].get("usage"):
            usage = self._add_choice(choices[0].get("index"), usage)
        if usage.service_tier is None:
            usage.service_tier = named_tier(self._service_tier)
        self.note_usage(usage)
        return True

    def _add_choice(self, index: Any, usage: Usage) -> Usage:
        """All that the choices have reported so far, each with its end."""
        if isinstance(index, int) and len(self._of_choices) < _MAX_CHOICES:
            self._of_choices[index] = usage
            return joined(list(self._of_choices.values()))
        return usage


def _choices(reply: Any) -> list[dict[str, Any]]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list):
        return []
    return [choice for choice in choices if isinstance(choice, dict)]
