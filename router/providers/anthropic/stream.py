"""From the event stream of the Messages API to the chunk stream of the OpenAI dialect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from router.call import Operation
from router.providers.anthropic.messages_usage import add_report, read_usage, usage_fields
from router.providers.anthropic.reply import (
    FINISH_REASONS,
    error_message,
    string,
    write_arguments,
)
from router.providers.generated_bytes import utf8_bytes
from router.providers.provider import StreamTranslator
from router.providers.sse import MAX_EVENT_BYTES, SseSplitter, data_of

Json = dict[str, Any]

_OPEN_CALLS_LIMIT: Final = 256
_DONE: Final = b"data: [DONE]\n\n"


@dataclass(slots=True)
class _OpenCall:
    """A tool_use block whose end has not come yet."""

    index: int
    """Its place among the tool calls of the reply; the block's own index counts texts, too."""
    written: bool = False
    """Some of its arguments went out."""
    whole: bool = False
    """All of its arguments came with its start."""


class MessagesStream(StreamTranslator):
    """Translates one streamed reply, byte chunk by byte chunk, in bounded memory.

    ``usage`` is there once the backend has reported the final figures. Once ``complete`` or
    ``error`` is set, everything else that arrives is ignored.
    """

    def __init__(self, operation: Operation, *, include_usage: bool, created: int) -> None:
        self._chat = operation != "completions"
        self._include_usage = include_usage
        self._created = created
        self._head: Json | None = None
        self._counts: Json = {}
        self._finished = False
        self._calls: dict[int, _OpenCall] = {}
        self._calls_seen = 0
        self._splitter = SseSplitter()

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the backend and return the bytes for the client."""
        if self._over():
            return b""
        out: list[bytes] = []
        for event in self._splitter.feed(chunk):
            if len(event) > MAX_EVENT_BYTES:
                raise ValueError("an event of the stream is too large")
            out += self._translate(event)
            if self._over():
                break
        return b"".join(out)

    def finish(self) -> bytes:
        """Take the end of the bytes; afterwards ``complete`` says whether the reply is whole."""
        if self._over():
            return b""
        try:
            return b"".join(self._translate(self._splitter.finish()))
        except orjson.JSONDecodeError:
            return b""  # cut in the middle of an event

    def _over(self) -> bool:
        return self.complete or self.error is not None

    def _translate(self, wire: bytes) -> Iterator[bytes]:
        data = data_of(wire)
        if data is None:  # a comment, such as a ping of a proxy
            return
        event = _object(orjson.loads(data))
        kind = event.get("type")
        if kind == "error":
            self.error = error_message(event)
        elif kind == "message_start":
            yield from self._start(_object(event.get("message")))
        elif kind == "content_block_start":
            yield from self._start_block(event)
        elif kind == "content_block_delta":
            yield from self._delta(event)
        elif kind == "content_block_stop":
            yield from self._stop_block(event)
        elif kind == "message_delta":
            yield from self._end(event)
        elif kind == "message_stop":
            yield from self._stop()

    # --- the message -------------------------------------------------------------------------

    def _start(self, message: Json) -> Iterator[bytes]:
        self._head = {
            "id": string(message.get("id")),
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": self._created,
            "model": string(message.get("model")),
        }
        add_report(self._counts, message.get("usage"))
        usage = read_usage(self._counts)
        if usage is not None and usage.tokens_input:  # 0: it is told at the end
            self.usage_at_start = usage
        self._counts.pop("output_tokens", None)  # those of the first token, not of the reply
        if self._chat:
            yield self._choice({"role": "assistant", "content": ""})

    def _end(self, event: Json) -> Iterator[bytes]:
        if event.get("usage"):
            add_report(self._counts, event["usage"])
            usage = read_usage(self._counts)
            if usage is not None:
                self.note_usage(usage)
        stop_reason = _object(event.get("delta")).get("stop_reason")
        if stop_reason is not None:
            yield from self._finish(FINISH_REASONS.get(str(stop_reason), "stop"))

    def _stop(self) -> Iterator[bytes]:
        yield from self._finish("stop")
        self.complete = True
        usage = self.usage
        if self._include_usage and usage is not None:
            yield self._chunk([], **usage_fields(usage))
        yield _DONE

    def _finish(self, reason: str) -> Iterator[bytes]:
        if not self._finished:
            self._finished = True
            yield self._choice({}, reason)

    # --- its blocks --------------------------------------------------------------------------

    def _start_block(self, event: Json) -> Iterator[bytes]:
        block = _object(event.get("content_block"))
        kind = block.get("type")
        if kind == "tool_use":
            yield from self._start_call(_index(event), block)
        elif kind == "text":
            yield from self._text("content", block.get("text"))
        elif kind == "thinking":
            yield from self._text("reasoning_content", block.get("thinking"))

    def _delta(self, event: Json) -> Iterator[bytes]:
        delta = _object(event.get("delta"))
        kind = delta.get("type")
        if kind == "text_delta":
            yield from self._text("content", delta.get("text"))
        elif kind == "thinking_delta":
            yield from self._text("reasoning_content", delta.get("thinking"))
        elif kind == "input_json_delta":
            call = self._calls.get(_index(event))
            if call is None:  # of a tool that the provider runs itself
                self.output_bytes += utf8_bytes(string(delta.get("partial_json")))
            elif not call.whole:
                yield from self._arguments(call, string(delta.get("partial_json")))

    def _text(self, field: str, text: Any) -> Iterator[bytes]:
        text = string(text)
        self.output_bytes += utf8_bytes(text)
        if text and (self._chat or field == "content"):
            yield self._choice({field: text})

    def _start_call(self, index: int, block: Json) -> Iterator[bytes]:
        if len(self._calls) >= _OPEN_CALLS_LIMIT:
            raise ValueError("too many tool calls are open at once")
        call = self._calls[index] = _OpenCall(self._calls_seen)
        self._calls_seen += 1
        function = {"name": string(block.get("name")), "arguments": ""}
        yield from self._call(call, id=string(block.get("id")), type="function", function=function)
        if tool_input := block.get("input"):
            yield from self._arguments(call, write_arguments(tool_input))
            call.whole = True

    def _stop_block(self, event: Json) -> Iterator[bytes]:
        call = self._calls.pop(_index(event), None)
        if call is not None and not call.written:
            # A call without arguments streams none, but clients parse the text that they collected.
            yield from self._arguments(call, "{}")

    def _arguments(self, call: _OpenCall, text: str) -> Iterator[bytes]:
        if text:
            call.written = True
            self.output_bytes += utf8_bytes(text)
            yield from self._call(call, function={"arguments": text})

    def _call(self, call: _OpenCall, **fields: Any) -> Iterator[bytes]:
        if self._chat:
            yield self._choice({"tool_calls": [{"index": call.index, **fields}]})

    # --- chunks ------------------------------------------------------------------------------

    def _choice(self, delta: Json, finish_reason: str | None = None) -> bytes:
        content = {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        return self._chunk([choice], usage=None) if self._include_usage else self._chunk([choice])

    def _chunk(self, choices: list[Json], **more: Any) -> bytes:
        if self._head is None:
            raise ValueError("the stream does not begin with message_start")
        chunk = {**self._head, "choices": choices, **more}
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _object(value: Any) -> Json:
    if not isinstance(value, dict):
        raise ValueError("an event of the stream is not an object")
    return value


def _index(event: Json) -> int:
    index = event.get("index")
    if not isinstance(index, int):
        raise ValueError("an event of the stream has no block index")
    return index
