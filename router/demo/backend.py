"""A model backend without a model: it repeats what it is told, in the OpenAI dialect.

Equal calls get equal replies. A token is a word. ``python -m router.demo.backend --port 0`` listens
on a free port of 127.0.0.1 and prints its base URL as its only line.
"""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import struct
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, cast

import click

MODELS: Final = ("gpt-4o", "gpt-4o-mini", "claude-sonnet", "text-embedding-3-small")
CREATED_S: Final = 1_767_225_600
DIMENSIONS: Final = 16

Json = dict[str, Any]


class DemoBackend(ThreadingHTTPServer):
    """Listens on ``host:port`` and waits ``latency_s`` before each reply."""

    request_queue_size = 256
    daemon_threads = True

    def __init__(
        self, name: str, *, host: str = "127.0.0.1", port: int = 0, latency_s: float = 0.0
    ) -> None:
        super().__init__((host, port), _Handler)
        self.name = name
        self.latency_s = latency_s

    @property
    def base_url(self) -> str:
        """What a configuration document names as ``base_url``."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True
    wbufsize = -1  # a reply's head and body leave together

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Nothing: the router's log has a line for each call."""

    def do_GET(self) -> None:
        """The models and the health of this backend."""
        if self.path == "/v1/models":
            cards = [{"id": model, "object": "model", "created": CREATED_S} for model in MODELS]
            self._reply(200, {"object": "list", "data": cards})
        elif self.path == "/health":
            self._reply(200, {"status": "ok"})
        else:
            self._refuse(404, "Unknown request URL.")

    def do_POST(self) -> None:
        """A call; what is wrong with it is refused with 400."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(cast(DemoBackend, self.server).latency_s)
        try:
            call = json.loads(body)
            if self.path == "/v1/embeddings":
                self._reply(200, _embeddings(call))
            elif self.path not in ("/v1/chat/completions", "/v1/completions"):
                self._refuse(404, "Unknown request URL.")
            elif call.get("stream"):
                self._stream(self._completion(call, body), call.get("stream_options") or {})
            else:
                self._reply(200, self._completion(call, body))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            self._refuse(400, f"The call cannot be read: {type(error).__name__} {error}")

    def _completion(self, call: Json, body: bytes) -> Json:
        """The whole reply to a chat or text completion."""
        is_chat = self.path == "/v1/chat/completions"
        if is_chat:
            texts = [_text(message["content"]) for message in call["messages"]]
        else:
            texts = _texts(call["prompt"])
        words = f"You said: {texts[-1]}".split()
        limit = call.get("max_completion_tokens") or call.get("max_tokens") or len(words)
        said = " ".join(words[:limit])
        shown = {"message": {"role": "assistant", "content": said}} if is_chat else {"text": said}
        finish = "length" if limit < len(words) else "stop"
        return {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{_digest(body).hex()[:24]}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": CREATED_S,
            "model": call["model"],
            "system_fingerprint": f"fp_{cast(DemoBackend, self.server).name}",
            "choices": [{"index": 0, **shown, "logprobs": None, "finish_reason": finish}],
            "usage": _usage(_count(texts), len(words[:limit])),
        }

    def _stream(self, reply: Json, options: Mapping[str, Any]) -> None:
        self._head(200, "text/event-stream", ("Transfer-Encoding", "chunked"))
        for chunk in _chunks(reply, with_usage=bool(options.get("include_usage"))):
            self._event(json.dumps(chunk))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.flush()

    def _reply(self, status: int, value: Json) -> None:
        body = json.dumps(value).encode()
        self._head(status, "application/json", ("Content-Length", str(len(body))))
        self.wfile.write(body)

    def _refuse(self, status: int, message: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self._reply(status, {"error": error})

    def _head(self, status: int, content_type: str, framing: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header(*framing)
        self.end_headers()


def _chunks(reply: Json, *, with_usage: bool) -> Iterator[Json]:
    """The reply as the chunks of a stream, a word in each."""
    usage, choice = reply.pop("usage"), reply.pop("choices")[0]
    is_chat = "message" in choice
    reply["object"] = "chat.completion.chunk" if is_chat else "text_completion"
    extra: Json = {"usage": None} if with_usage else {}

    def chunk(text: str, finish: str | None) -> Json:
        shown = {"delta": {"content": text} if text else {}} if is_chat else {"text": text}
        return {**reply, "choices": [{"index": 0, **shown, "finish_reason": finish}], **extra}

    said = choice["message"]["content"] if is_chat else choice["text"]
    for position, word in enumerate(said.split(" ")):
        yield chunk(f" {word}" if position else word, None)
    yield chunk("", choice["finish_reason"])
    if with_usage:
        yield {**reply, "choices": [], "usage": usage}


def _embeddings(call: Json) -> Json:
    """A vector for each input, from its digest; base64 where the call asks for it."""
    texts = _texts(call["input"])
    entries = []
    for index, text in enumerate(texts):
        vector: list[float] | str = [byte / 128 - 1 for byte in _digest(text.encode())[:DIMENSIONS]]
        if call.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *vector)).decode()
        entries.append({"object": "embedding", "index": index, "embedding": vector})
    return {
        "object": "list",
        "data": entries,
        "model": call["model"],
        "usage": _usage(_count(texts), 0),
    }


def _texts(value: Any) -> list[str]:
    """A prompt or input: one text or several."""
    return [_text(one) for one in value] if isinstance(value, list) else [_text(value)]


def _text(content: Any) -> str:
    """The text of a message's content, which may be a string or typed parts."""
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content)
    return "" if content is None else str(content)


def _count(texts: list[str]) -> int:
    return max(1, sum(len(text.split()) for text in texts))


def _usage(tokens_in: int, tokens_out: int) -> Json:
    return {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
    }


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


@click.command(
    "mock-backend", epilog="\b\nExample:\n  routerctl dev mock-backend --port 9001 --latency-ms 40"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=9001, show_default=True, help="0 takes a free one.")
@click.option("--name", default="mock", show_default=True, help="Shows in system_fingerprint.")
@click.option("--latency-ms", default=0, show_default=True, help="Wait before each reply.")
def command(host: str, port: int, name: str, latency_ms: int) -> None:
    """Run a backend that repeats what it is told, until TERM or INT."""
    backend = DemoBackend(name, host=host, port=port, latency_s=latency_ms / 1000)
    click.echo(backend.base_url)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        backend.serve_forever()
    except KeyboardInterrupt:
        backend.server_close()


if __name__ == "__main__":
    command()
