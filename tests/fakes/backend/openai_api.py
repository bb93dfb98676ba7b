"""A live fake of an OpenAI-compatible backend: predictable answers, and misbehaviour on request."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from tests.fakes.backend.openai_texts import CallError, Generation, embed, generate
from tests.fakes.backend.received import Request
from tests.fakes.backend.scripts import chunk, chunked, reply, serving
from tests.fakes.backend.server import FakeServer, Peer, RawEnd

GARBAGE = b"\x00\x01 this is not HTTP \xff\xfe\r\n\r\n"
# Long enough for the first half of an event to leave, and to be read, on its own.
_SPLIT_PAUSE_S = 0.002
_FOREVER_S = 3600.0
_CHAT_OF = {"/v1/chat/completions": True, "/v1/completions": False}


@dataclass(frozen=True)
class Behaviour:
    """How answers are given; ``set`` replaces single settings."""

    latency_ms: float = 0
    """Wait before the head of an answer."""
    first_token_ms: float = 0
    """Wait between the head of a stream and its first event."""
    token_interval_ms: float = 0
    """Wait between two events of a stream; ``[DONE]`` follows at once."""
    tokens_output: int | None = None
    """Output tokens of every choice, whatever the call asks for."""
    error_status: int | None = None
    """Answer every call with this error."""
    retry_after_s: int | None = None
    """``Retry-After`` of those errors."""
    failure: Literal[
        None,
        "close",  # the request is received, then the connection ends
        "reset",  # the request is received, then an RST
        "black_hole",  # the request is received, then silence until the client leaves
        "garbage",  # bytes that are not HTTP, then the end
        "truncate_body",  # half of what Content-Length promised; half of a stream's events
        "cut_stream",  # a stream ends after `cut_after_chunks` events, its transfer coding does not
        "tar_pit",  # the head byte by byte, then the body
        "slow_body",  # the head at once, then the body byte by byte
        "bad_json",  # half of a JSON document, framed as if it were whole; in each event
        "no_usage",  # no usage, buffered or streamed, asked for or not
    ] = None
    cut_after_chunks: int = 1
    tar_pit_interval_ms: float = 1000
    """Wait between two bytes of ``tar_pit`` and ``slow_body``."""
    usage_style: Literal["last_empty_choices", "with_last_choice", "every_chunk"] = (
        "last_empty_choices"
    )
    """Where a stream reports usage: the first is OpenAI's way, if asked; the others always do."""
    line_ending: Literal["lf", "crlf"] = "lf"
    comments: bool = False
    """A comment line before every event."""
    split_writes: bool = False
    """Every event in two TCP writes, each an HTTP chunk of its own."""
    raw: bytes | None = None
    """These very bytes in place of an answer."""
    raw_ends: RawEnd = None
    """What becomes of the connection after them."""


class OpenAIApi(FakeServer):
    """The API on a port of its own; its behaviour may be changed while it serves.

    With an API key, every call has to bring it as a bearer token. The name shows in
    ``system_fingerprint`` as ``fp_<name>``.
    """

    def __init__(self, name: str = "fake", *, api_key: str | None = None) -> None:
        self._fingerprint = f"fp_{name}"
        self._credential = None if api_key is None else f"Bearer {api_key}"
        self._behaviour = Behaviour()
        super().__init__(serving(self._answer))

    def set(self, **changes: Any) -> None:
        """Change settings of :class:`Behaviour` for the requests that come from now on."""
        self._behaviour = dataclasses.replace(self._behaviour, **changes)

    def reset(self) -> None:
        """Back to good behaviour, with nothing received."""
        self._behaviour = Behaviour()
        super().reset()

    def will_answer(
        self, body: bytes, *, status: int = 200, content_type: str = "application/json"
    ) -> None:
        """Answer everything with this body."""
        self.set(raw=reply(body, status, headers=(f"Content-Type: {content_type}",)))

    def will_stream(self, *chunks: bytes, whole: bool = True) -> None:
        """Answer with this event stream; one that is not ``whole`` lacks its end."""
        raw = chunked(*chunks, headers=("Content-Type: text/event-stream",))
        self.set(
            raw=raw if whole else raw.removesuffix(chunk(b"")), raw_ends=None if whole else "ends"
        )

    def will_end_after(self, data: bytes) -> None:
        """Answer with these very bytes and the end of the connection."""
        self.set(raw=data, raw_ends="ends")

    def _answer(self, peer: Peer, request: Request) -> bool:
        how = self._behaviour
        peer.pause(how.latency_ms / 1000)
        if how.raw is not None:
            return peer.say(how.raw, how.raw_ends)
        if how.failure == "close":
            return False
        if how.failure == "reset":
            peer.reset()
            return False
        if how.failure == "garbage":
            peer.send(GARBAGE)
            return False
        if how.failure == "black_hole":
            peer.pause(_FOREVER_S)
        try:
            answer = self._reply_to(request, how)
        except CallError as refusal:
            return _send_whole(peer, how, _error(400, str(refusal), refusal.param))
        if isinstance(answer, bytes):
            return _send_whole(peer, how, answer)
        return _send_stream(peer, how, list(answer))

    def _reply_to(self, request: Request, how: Behaviour) -> bytes | Iterator[bytes]:
        """A whole reply, or the events of a stream."""
        if self._credential not in (None, request.header("authorization")):
            return _error(401, "Incorrect API key provided.")
        if how.error_status is not None:
            headers = () if how.retry_after_s is None else (f"Retry-After: {how.retry_after_s}",)
            return _error(how.error_status, "The fake was told to fail.", headers=headers)
        try:
            call = request.fields
        except (ValueError, RecursionError):
            call = None
        if not isinstance(call, dict):
            return _error(400, "We could not parse the JSON body of your request.")
        if request.target == "/v1/embeddings":
            whole = embed(call)
        elif request.target in _CHAT_OF:
            chat = _CHAT_OF[request.target]
            generation = generate(call, self._fingerprint, how.tokens_output, chat=chat)
            if call.get("stream") is True:
                return _events(generation, call, how)
            whole = generation.whole()
        else:
            return _error(404, "Unknown request URL.")
        if how.failure == "no_usage":
            del whole["usage"]
        body = _json(whole)
        return _whole(200, body[: len(body) // 2] if how.failure == "bad_json" else body)


def _json(value: Any) -> bytes:
    """JSON in UTF-8; lone surrogates, which UTF-8 cannot carry, become ``?``."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _whole(status: int, body: bytes, headers: tuple[str, ...] = ()) -> bytes:
    return reply(body, status, headers=("Content-Type: application/json", *headers))


def _error(
    status: int, message: str, param: str | None = None, headers: tuple[str, ...] = ()
) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": None}
    return _whole(status, _json({"error": error}), headers)


def _events(generation: Generation, call: dict[str, Any], how: Behaviour) -> Iterator[bytes]:
    """The events of a stream as bytes, ``[DONE]`` at the end."""
    options = call.get("stream_options")
    asked = isinstance(options, dict) and options.get("include_usage") is True
    silent = how.failure == "no_usage" or (how.usage_style == "last_empty_choices" and not asked)
    newline = b"\r\n" if how.line_ending == "crlf" else b"\n"
    opening = b": keep-alive" + newline * 2 if how.comments else b""
    for each in generation.chunks(None if silent else how.usage_style):
        data = _json(each)
        if how.failure == "bad_json":
            data = data[: len(data) // 2]
        yield opening + b"data: " + data + newline * 2
    yield opening + b"data: [DONE]" + newline * 2


def _send_whole(peer: Peer, how: Behaviour, whole: bytes) -> bool:
    head = whole.index(b"\r\n\r\n") + 4
    if how.failure == "truncate_body":
        peer.send(whole[: (head + len(whole)) // 2])
        return False
    if how.failure in ("tar_pit", "slow_body"):
        send_head, send_body = _senders(peer, how)
        send_head(whole[:head])
        send_body(whole[head:])
    else:
        peer.send(whole)
    return True


def _send_stream(peer: Peer, how: Behaviour, events: list[bytes]) -> bool:
    sent = len(events)
    if how.failure == "truncate_body":
        sent //= 2
    if how.failure == "cut_stream":
        sent = how.cut_after_chunks
    cut = how.failure in ("truncate_body", "cut_stream")
    send_head, send_body = _senders(peer, how)
    kind = "Content-Type: text/event-stream; charset=utf-8"
    send_head(reply(b"", headers=(kind, "Transfer-Encoding: chunked"), length=False))
    for position, event in enumerate(events[:sent]):
        last = position == len(events) - 1
        if not last:
            peer.pause((how.token_interval_ms if position else how.first_token_ms) / 1000)
        middle = len(event) // 2 if how.split_writes else 0
        if middle:
            send_body(chunk(event[:middle]))
            peer.pause(_SPLIT_PAUSE_S)
        # The end rides on `[DONE]`: a client may leave right after it, without aborting.
        send_body(chunk(event[middle:]) + (chunk(b"") if last and not cut else b""))
    return not cut


def _senders(peer: Peer, how: Behaviour) -> tuple[Callable[[bytes], None], Callable[[bytes], None]]:
    """How heads and how bodies are written."""
    trickle = partial(peer.trickle, every_s=how.tar_pit_interval_ms / 1000)
    if how.failure == "tar_pit":
        return trickle, peer.send
    if how.failure == "slow_body":
        return peer.send, trickle
    return peer.send, peer.send
