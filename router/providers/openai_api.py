"""Any server that speaks the OpenAI dialect: vLLM, Ollama, OpenAI itself.

Bytes pass through as they are; usage is read from them on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from json.decoder import JSONDecoder
from typing import Any, Final

import orjson

from router.call import Call, Operation, Usage
from router.providers.generated_bytes import generated_bytes
from router.providers.json_elements import parse_error, parse_reply
from router.providers.openai_usage import joined, usage_of
from router.providers.provider import Provider, ReadReply, StreamTranslator
from router.providers.sse import SseSplitter, data_of
from router.providers.token_counts import note_tier

_MAX_CHOICES: Final = 128
_PARSED_EMBEDDINGS_BYTES: Final = 512 * 1024
_END_BYTES: Final = 4096
_DECODER: Final = JSONDecoder()


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

    def write_request(
        self,
        call: Call,
        upstream_model: str,
        max_output_tokens: int,
        *,
        output_limit_field: str = "max_tokens",
    ) -> bytes:
        """The client's own bytes where nothing has to change, else the same fields written anew.

        A bound on the output is sent only where a budget relies on it: elsewhere the backend's own
        bound applies.
        """
        changes = _output_limit(call, output_limit_field)
        if upstream_model != call.requested_model or call.body is None:
            changes["model"] = upstream_model
        if call.stream and not call.include_usage and call.operation != "embeddings":
            options = call.fields.get("stream_options") or {}
            changes["stream_options"] = {**options, "include_usage": True}
        if call.body is not None and not changes:
            return call.body
        return orjson.dumps({**call.fields, **changes})

    def read_reply(self, call: Call, body: bytes) -> ReadReply:
        """The body as it came."""
        if call.operation == "embeddings" and len(body) > _PARSED_EMBEDDINGS_BYTES:
            return ReadReply(body, _usage_at_an_end(body))
        reply = parse_reply(body)
        if not isinstance(reply, dict):
            raise ValueError("the reply is not a JSON object")
        usage = usage_of(reply, embeddings=call.operation == "embeddings")
        if usage is not None and usage.tokens_output:
            return ReadReply(body, usage)
        size_bytes = generated_bytes(_choices(reply), "message")
        if usage is None or size_bytes:
            return ReadReply(
                body, None, size_bytes, usage if usage and usage.tokens_input else None
            )
        return ReadReply(body, usage)

    def open_stream(self, call: Call) -> CompletionStream:
        """The usage chunk goes to the client only if the client asked for it."""
        return CompletionStream(strip_usage=not call.include_usage)

    def read_error(self, body: bytes) -> str | None:
        """The message inside an OpenAI error object."""
        try:
            error = parse_error(body)
        except ValueError:
            return None
        found = error.get("error", error) if isinstance(error, dict) else None
        message = found.get("message") if isinstance(found, dict) else found
        return message if isinstance(message, str) else None


def _usage_at_an_end(body: bytes) -> Usage | None:
    """The usage in a long embeddings reply, without the millions of numbers in it.

    Servers write it before or after the vectors. Raises ``ValueError`` for what is no object.
    """
    if not (body.lstrip()[:1] == b"{" and body.rstrip()[-1:] == b"}"):
        raise ValueError("the reply is not a JSON object")
    for part in (body[-_END_BYTES:], body[:_END_BYTES]):
        _, found, rest = part.rpartition(b'"usage"')
        if found:
            text = rest.decode("utf-8", "replace").lstrip(" \t\r\n:")
            try:
                usage, _ = _DECODER.raw_decode(text)
            except ValueError:
                continue
            return usage_of({"usage": usage}, embeddings=True)
    return None


def _output_limit(call: Call, name: str) -> dict[str, Any]:
    """The field that bounds the output, where it has to be added.

    OpenAI takes either name and not both; most servers take ``max_tokens``, and some of them do not
    know the other, so that a client's ``max_completion_tokens`` alone would bound nothing there.
    """
    if call.output_limit is None or call.operation == "embeddings":
        return {}
    given = call.client_limit()
    if call.operation == "completions":
        name = "max_tokens"
    if call.fields.get(name) is not None or (given is not None and name != "max_tokens"):
        return {}
    return {name: call.output_limit if given is None else given}


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
        self.output_bytes += generated_bytes(choices, "delta")
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
        note_tier(usage, self._service_tier)
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
