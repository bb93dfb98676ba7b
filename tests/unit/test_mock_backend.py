"""The mock backend, spoken to over real sockets: what it answers, how it fails, what it notes."""

from __future__ import annotations

import base64
import http.client
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from router.mock_backend.behaviour import RULES, Behaviour, BehaviourError, Dial
from router.mock_backend.delivery import GARBAGE
from router.mock_backend.server import MockBackend

CHAT = "/v1/chat/completions"
HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}]}
STREAMED = {**HELLO, "stream": True}
WITH_USAGE = {**STREAMED, "stream_options": {"include_usage": True}}
TIMEOUT_S = 5.0


class Reply:
    """A response read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """The data of each server-sent event."""
        lines = self.body.decode().splitlines()
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        assert self.events[-1] == "[DONE]"
        return [json.loads(event) for event in self.events[:-1]]


def call(
    backend: MockBackend, path: str = CHAT, body: Any = None, method: str = "", **headers: str
) -> Reply:
    """Send one request on a connection of its own: a POST where there is a body."""
    connection = http.client.HTTPConnection("127.0.0.1", backend.port, timeout=TIMEOUT_S)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body)
    with closing(connection):
        connection.request(method or ("GET" if body is None else "POST"), path, data, headers)
        return Reply(connection.getresponse())


def dial_in(backend: MockBackend) -> socket.socket:
    return socket.create_connection(("127.0.0.1", backend.port), timeout=TIMEOUT_S)


def raw_post(body: Any, path: str = CHAT, extra: str = "") -> bytes:
    data = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )


def read_to_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65_536), b""))


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        piece = sock.recv(65_536)
        assert piece, f"{mark!r} never came: {seen!r}"
        seen += piece
    return seen


def hang_up_with_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture
def backend() -> Iterator[MockBackend]:
    with MockBackend(name="a") as running:
        yield running


class TestAnswers:
    def test_chat_echoes_the_last_user_message(self, backend: MockBackend) -> None:
        """A buffered chat call gets an OpenAI-shaped echo whose tokens are its words."""
        messages = [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": None},
            {"role": "user", "content": [{"type": "text", "text": "grüße dich"}]},
        ]
        reply = call(backend, body={"model": "any", "messages": messages, "unknown_field": 1})
        assert reply.status == 200
        assert reply.headers["Content-Type"] == "application/json"
        assert reply.json["object"] == "chat.completion"
        assert reply.json["model"] == "any"
        assert reply.json["system_fingerprint"] == "fp_a"
        choice = reply.json["choices"][0]
        assert choice["message"]["content"] == "You said: grüße dich"
        assert choice["finish_reason"] == "stop"
        usage = reply.json["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 4)
        assert usage["total_tokens"] == 9

    def test_equal_calls_get_equal_bytes(self, backend: MockBackend) -> None:
        """Nothing in an answer depends on time or chance."""
        assert call(backend, body=HELLO).body == call(backend, body=HELLO).body

    @pytest.mark.parametrize("limit_field", ["max_tokens", "max_completion_tokens"])
    def test_max_tokens_cuts_the_text(self, backend: MockBackend, limit_field: str) -> None:
        """A limit below the text's length ends it there and says so."""
        reply = call(backend, body={**HELLO, limit_field: 3, "n": 2}).json
        assert [each["message"]["content"] for each in reply["choices"]] == ["You said: hello"] * 2
        assert {each["finish_reason"] for each in reply["choices"]} == {"length"}
        assert reply["usage"]["completion_tokens"] == 6

    def test_fixed_counts_win_over_the_call(self, backend: MockBackend) -> None:
        """Fixed token counts are reported and spoken, whatever limit the call sets."""
        backend.set(tokens_input=70, tokens_output=6)
        reply = call(backend, body={**HELLO, "max_tokens": 2}).json
        assert reply["choices"][0]["message"]["content"] == "You said: hello there You said:"
        assert reply["usage"]["prompt_tokens"] == 70
        assert reply["usage"]["completion_tokens"] == 6

    def test_huge_fixed_counts_cost_no_huge_text(self, backend: MockBackend) -> None:
        """A count in the millions is reported over a text of bounded length."""
        backend.set(tokens_output=1_000_000)
        reply = call(backend, body=HELLO)
        assert reply.json["usage"]["completion_tokens"] == 1_000_000
        assert len(reply.body) < 100_000

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            (CHAT, HELLO),
            (CHAT, {**HELLO, "max_tokens": 1}),
            (CHAT, {**HELLO, "n": 3}),
            ("/v1/completions", {"model": "m", "prompt": "tell me more"}),
            ("/v1/completions", {"model": "m", "prompt": ["one", "two words"], "n": 2}),
            ("/v1/completions", {"model": "m", "prompt": [[1, 2, 3]], "max_tokens": 4}),
        ],
    )
    @pytest.mark.parametrize("fixed", [{}, {"tokens_input": 9, "tokens_output": 5}])
    def test_streamed_equals_buffered(
        self, backend: MockBackend, path: str, body: dict[str, Any], fixed: dict[str, int]
    ) -> None:
        """U7: the same call streamed and buffered says the same and reports the same usage."""
        backend.set(**fixed)
        buffered = call(backend, path, body).json
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = call(backend, path, {**body, **options}).chunks
        assert chunks[-1]["usage"] == buffered["usage"]
        texts = [""] * len(buffered["choices"])
        endings: list[Any] = [None] * len(texts)
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            texts[choice["index"]] += choice.get("text") or choice.get("delta", {}).get(
                "content", ""
            )
            endings[choice["index"]] = choice["finish_reason"]
        assert texts == [
            each["text"] if "text" in each else each["message"]["content"]
            for each in buffered["choices"]
        ]
        assert endings == [each["finish_reason"] for each in buffered["choices"]]
        assert {chunk["id"] for chunk in chunks} == {buffered["id"]}

    def test_stream_with_usage_is_laid_out_as_openai_does(self, backend: MockBackend) -> None:
        """With include_usage each chunk has a null usage, then comes one without choices."""
        reply = call(backend, body=WITH_USAGE)
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        *spoken, last = reply.chunks
        assert spoken[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert spoken[-1]["choices"][0]["delta"] == {}
        assert spoken[-1]["choices"][0]["finish_reason"] == "stop"
        assert [chunk["usage"] for chunk in spoken] == [None] * 6
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == 6
        assert {chunk["object"] for chunk in reply.chunks} == {"chat.completion.chunk"}

    def test_stream_without_include_usage_has_none(self, backend: MockBackend) -> None:
        """Unless it is asked for, no chunk as much as mentions usage."""
        chunks = call(backend, body=STREAMED).chunks
        assert len(chunks) == 6
        assert not any("usage" in chunk for chunk in chunks)
        assert all(chunk["choices"] for chunk in chunks)

    @pytest.mark.parametrize(
        ("style", "totals"),
        [
            ("last_empty_choices", [None, None, None, None, None, None, 6]),
            ("with_last_choice", [None, None, None, None, None, 6]),
            ("every_chunk", [2, 3, 4, 5, 6, 6]),
            ("none", [None] * 6),
        ],
    )
    def test_usage_styles(self, backend: MockBackend, style: str, totals: list[int | None]) -> None:
        """U7: each style puts the total tokens where servers of its kind do."""
        backend.set(usage_style=style)
        chunks = call(backend, body=WITH_USAGE).chunks
        usages = [chunk.get("usage") for chunk in chunks]
        assert [usage and usage["total_tokens"] for usage in usages] == totals

    def test_comments_and_crlf(self, backend: MockBackend) -> None:
        """U7: events can end in CRLF and be preceded by comment lines."""
        backend.set(line_ending="crlf", comments=True)
        body = call(backend, body=STREAMED).body
        assert body.startswith(b": keep-alive\r\n\r\ndata: {")
        assert body.endswith(b"data: [DONE]\r\n\r\n")
        assert b"\n" not in body.replace(b"\r\n", b"")

    def test_split_writes(self, backend: MockBackend) -> None:
        """U7: an event can come in two HTTP chunks, neither of which holds it whole."""
        backend.set(split_writes=True)
        assert len(call(backend, body=STREAMED).chunks) == 6
        with dial_in(backend) as sock:
            sock.sendall(raw_post(STREAMED))
            wire = read_until(sock, b"0\r\n\r\n").partition(b"\r\n\r\n")[2]
        assert wire.count(b"data: ") == 7
        sizes = [line for line in wire.split(b"\r\n") if line and len(line) < 4]
        assert len(sizes) == 2 * 7 + 1

    def test_http_1_0_clients_get_no_chunks(self, backend: MockBackend) -> None:
        """A stream to an old client is framed by the end of the connection."""
        with dial_in(backend) as sock:
            sock.sendall(raw_post(STREAMED).replace(b"HTTP/1.1", b"HTTP/1.0"))
            head, _, body = read_to_end(sock).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")

    def test_embeddings_in_both_encodings(self, backend: MockBackend) -> None:
        """Base64 carries the same vector as plain numbers, of length one."""
        body = {"model": "e", "input": ["some text", "other"], "dimensions": 8}
        plain = call(backend, "/v1/embeddings", body).json
        packed = call(backend, "/v1/embeddings", {**body, "encoding_format": "base64"}).json
        for number, each in enumerate(plain["data"]):
            vector = each["embedding"]
            unpacked = struct.unpack("<8f", base64.b64decode(packed["data"][number]["embedding"]))
            assert unpacked == pytest.approx(vector)
            assert sum(component**2 for component in vector) == pytest.approx(1)
        assert plain["data"][0]["embedding"] != plain["data"][1]["embedding"]
        assert plain["usage"] == packed["usage"] == {"prompt_tokens": 3, "total_tokens": 3}

    def test_models_and_health(self, backend: MockBackend) -> None:
        """Models can be listed and looked up; health answers unless it is told to fail."""
        listed = call(backend, "/v1/models").json["data"]
        assert "gpt-4o" in [model["id"] for model in listed]
        assert call(backend, "/v1/models/gpt-4o").json in listed
        assert call(backend, "/v1/models/nothing").status == 404
        assert call(backend, "/health").json == {"status": "ok"}
        backend.set(health_status=503)
        assert call(backend, "/health").status == 503

    @pytest.mark.parametrize(
        ("path", "body", "status", "param"),
        [
            ("/v1/nowhere", None, 404, None),
            (CHAT, None, 405, None),
            ("/v1/models", b"", 405, None),
            (CHAT, b'{"model": ', 400, None),
            (CHAT, b"[" * 100_000, 400, None),
            (CHAT, b"\xff\xfe", 400, None),
            (CHAT, [], 400, None),
            (CHAT, {"messages": HELLO["messages"]}, 400, "model"),
            (CHAT, {"model": "m"}, 400, "messages"),
            (CHAT, {"model": "m", "messages": ["x"]}, 400, "messages[0]"),
            (CHAT, {**HELLO, "n": 0}, 400, "n"),
            (CHAT, {**HELLO, "max_tokens": True}, 400, "max_tokens"),
            ("/v1/completions", {"model": "m", "prompt": []}, 400, "prompt"),
            ("/v1/embeddings", {"model": "m", "input": {}}, 400, "input"),
            ("/v1/embeddings", {"model": "m", "input": "x", "dimensions": -1}, 400, "dimensions"),
        ],
    )
    def test_refusals_have_openais_shape(
        self, backend: MockBackend, path: str, body: Any, status: int, param: str | None
    ) -> None:
        """What is wrong with a call comes back as an OpenAI error naming the field."""
        reply = call(backend, path, body)
        assert reply.status == status
        assert set(reply.json["error"]) == {"message", "type", "param", "code"}
        assert reply.json["error"]["type"] == "invalid_request_error"
        assert reply.json["error"]["param"] == param

    def test_api_key(self) -> None:
        """With a key configured, /v1/ wants it as a bearer token and health does not."""
        with MockBackend(api_key="sk-right") as backend:
            assert call(backend, body=HELLO).status == 401
            wrong = call(backend, body=HELLO, Authorization="Bearer sk-wrong")
            assert (wrong.status, wrong.json["error"]["code"]) == (401, "invalid_api_key")
            assert call(backend, body=HELLO, Authorization="Bearer sk-right").status == 200
            assert call(backend, "/health").status == 200


class TestOpenAISdk:
    @pytest.fixture
    def client(self, backend: MockBackend) -> Iterator[openai.OpenAI]:
        url = f"{backend.url}/v1"
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=TIMEOUT_S) as made:
            yield made

    def test_chat(self, client: openai.OpenAI) -> None:
        """The SDK reads a chat completion."""
        reply = client.chat.completions.create(**HELLO)
        assert reply.choices[0].message.content == "You said: hello there"
        assert reply.usage.total_tokens == 6

    def test_streamed_chat(self, client: openai.OpenAI) -> None:
        """The SDK reads a stream with its usage, however the bytes are laid out."""
        chunks = list(client.chat.completions.create(**WITH_USAGE))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "You said: hello there"
        assert chunks[-1].usage.total_tokens == 6

    def test_completions(self, client: openai.OpenAI) -> None:
        """The SDK reads text completions, buffered and streamed."""
        reply = client.completions.create(model="m", prompt="hi")
        assert reply.choices[0].text == "You said: hi"
        stream = client.completions.create(model="m", prompt="hi", stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == "You said: hi"

    def test_embeddings(self, client: openai.OpenAI) -> None:
        """The SDK, which asks for base64, gets a vector of the wanted length."""
        reply = client.embeddings.create(model="e", input="hi", dimensions=32)
        assert len(reply.data[0].embedding) == 32

    def test_models(self, client: openai.OpenAI) -> None:
        """The SDK lists models and tells an unknown one."""
        assert "gpt-4o" in [model.id for model in client.models.list()]
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nothing")

    @pytest.mark.parametrize(
        ("status", "error"),
        [(429, openai.RateLimitError), (500, openai.InternalServerError)],
    )
    def test_drawn_errors(
        self, backend: MockBackend, client: openai.OpenAI, status: int, error: type[Exception]
    ) -> None:
        """A drawn error arrives as the SDK's exception for its status."""
        backend.set(error_rate=1, error_status=status)
        with pytest.raises(error):
            client.chat.completions.create(**HELLO)

    def test_abandoned_stream(self, backend: MockBackend, client: openai.OpenAI) -> None:
        """Closing the SDK's stream early is noticed; reading it to the end is no abort."""
        list(client.chat.completions.create(**STREAMED))
        backend.set(token_interval_ms=60_000)
        with client.chat.completions.create(**STREAMED) as stream:
            next(iter(stream))
        assert backend.wait_for(lambda stats: stats.aborted > 0).aborted == 1


class TestBehaviour:
    @pytest.mark.parametrize(
        ("settings", "fields"),
        [
            ({"latency_ms": -1}, {"latency_ms"}),
            ({"latency_ms": "5"}, {"latency_ms"}),
            ({"latency_ms": True}, {"latency_ms"}),
            ({"latency_ms": float("nan")}, {"latency_ms"}),
            ({"latency_ms": None}, {"latency_ms"}),
            ({"error_rate": 1.1}, {"error_rate"}),
            ({"error_status": 200}, {"error_status"}),
            ({"error_status": 500.0}, {"error_status"}),
            ({"failure": "explode"}, {"failure"}),
            ({"failure": []}, {"failure"}),
            ({"comments": 1}, {"comments"}),
            ({"latency": 1}, {"latency"}),
            ({"latency": 1, "seed": "x", "usage_style": None}, {"latency", "seed", "usage_style"}),
        ],
    )
    def test_wrong_settings_are_named(
        self, backend: MockBackend, settings: dict[str, Any], fields: set[str]
    ) -> None:
        """Every unknown or invalid field is named, in Python and over HTTP, and nothing changes."""
        with pytest.raises(BehaviourError) as refusal:
            Behaviour.of(settings)
        assert set(refusal.value.problems) == fields
        for method in ("PUT", "PATCH"):
            reply = call(backend, "/_mock/behaviour", settings, method)
            assert reply.status == 400
            assert reply.json["error"]["param"] in fields
            assert all(field in reply.json["error"]["message"] for field in fields)
        assert backend.behaviour == Behaviour()

    def test_patch_changes_and_put_replaces(self) -> None:
        """PATCH keeps what it leaves out, PUT sets it to the default, reset to the first."""
        with MockBackend(behaviour=Behaviour(tokens_input=3)) as backend:
            path = "/_mock/behaviour"
            patched = call(backend, path, {"retry_after_s": 2}, "PATCH")
            assert patched.json == Behaviour(tokens_input=3, retry_after_s=2).as_settings()
            put = call(backend, path, {"comments": True}, "PUT")
            assert put.json == call(backend, path).json == Behaviour(comments=True).as_settings()
            call(backend, body=HELLO)
            call(backend, "/_mock/reset", b"")
            assert backend.behaviour == Behaviour(tokens_input=3)
            assert backend.requests() == []
            assert backend.stats().requests == {}

    @pytest.mark.parametrize(("path", "method"), [("nothing", "GET"), ("reset", "GET")])
    def test_unknown_control_calls(self, backend: MockBackend, path: str, method: str) -> None:
        """A wrong control path or method is told apart from a wrong setting."""
        assert call(backend, f"/_mock/{path}", method=method).status in (404, 405)

    def test_control_wants_an_object(self, backend: MockBackend) -> None:
        """A body that is no JSON object changes nothing."""
        assert call(backend, "/_mock/behaviour", [1], "PUT").status == 400
        assert call(backend, "/_mock/behaviour", b"{", "PATCH").status == 400

    def test_seed_repeats_errors(self, backend: MockBackend) -> None:
        """The same seed gives the same sequence of errors, at about the rate."""

        def run(seed: int) -> list[int]:
            backend.set(error_rate=0.5, error_status=503, seed=seed)
            return [call(backend, body=HELLO).status for _ in range(40)]

        first = run(1)
        assert set(first) == {200, 503}
        assert run(1) == first
        assert run(2) != first

    def test_error_carries_retry_after(self, backend: MockBackend) -> None:
        """A drawn error has its status, its Retry-After and OpenAI's shape; health stays well."""
        backend.set(error_rate=1, error_status=429, retry_after_s=7)
        reply = call(backend, body=STREAMED)
        assert (reply.status, reply.headers["Retry-After"]) == (429, "7")
        assert reply.json["error"]["code"] == "rate_limit_exceeded"
        assert call(backend, "/health").status == 200

    def test_jitter_is_within_its_bounds(self) -> None:
        """Every delay lies between the latency and the latency plus the jitter."""
        dial = Dial(Behaviour(latency_ms=10, latency_jitter_ms=20, seed=5))
        delays = [dial.draw().delay_s for _ in range(200)]
        assert 0.010 <= min(delays) < 0.012
        assert 0.028 < max(delays) <= 0.030

    def test_error_rate_holds_over_many_draws(self) -> None:
        """A thousand draws at 0.3 fail about three hundred times, none at 0 and all at 1."""
        dial = Dial(Behaviour(error_rate=0.3, seed=1))
        assert 250 < sum(dial.draw().fails for _ in range(1000)) < 350
        for rate in (0, 1):
            dial.change({"error_rate": rate})
            assert {dial.draw().fails for _ in range(50)} == {bool(rate)}

    def test_latency_delays_inference_only(self, backend: MockBackend) -> None:
        """The latency lies before an inference answer, not before models, health or control."""
        backend.set(latency_ms=60_000)
        for path in ("/v1/models", "/health", "/_mock/stats"):
            assert call(backend, path).status == 200
        backend.set(latency_ms=30)
        began = time.monotonic()
        call(backend, body=HELLO)
        assert time.monotonic() - began >= 0.03

    def test_stream_head_comes_before_the_first_token(self, backend: MockBackend) -> None:
        """The head of a stream does not wait for the first event."""
        backend.set(first_token_ms=60_000)
        with dial_in(backend) as sock:
            sock.sendall(raw_post(STREAMED))
            assert read_until(sock, b"\r\n\r\n").endswith(b"\r\n\r\n")

    def test_stream_pace(self, backend: MockBackend) -> None:
        """Five intervals lie between the six events, after the wait for the first."""
        backend.set(first_token_ms=20, token_interval_ms=5)
        began = time.monotonic()
        call(backend, body=STREAMED)
        assert time.monotonic() - began >= 0.02 + 5 * 0.005

    def test_idle_connections_are_closed(self, backend: MockBackend) -> None:
        """X1: a connection idle for keepalive_ms is closed, without a request being lost."""
        backend.set(keepalive_ms=200)
        with closing(http.client.HTTPConnection("127.0.0.1", backend.port)) as connection:
            for _ in range(2):
                connection.request("GET", "/health")
                connection.getresponse().read()
            assert connection.sock.recv(1) == b""
        assert {request.connection for request in backend.requests()} == {1}


class TestFailures:
    def test_refuse(self, backend: MockBackend) -> None:
        """The connection is accepted and closed; the request is never received."""
        backend.set(failure="refuse")
        with dial_in(backend) as sock:
            assert read_to_end(sock) == b""
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            call(backend, body=HELLO)
        assert backend.requests() == []
        assert backend.stats().connections_accepted == 2

    def test_refuse_on_a_kept_connection(self, backend: MockBackend) -> None:
        """A connection opened in better times is closed at its next request."""
        with dial_in(backend) as sock:
            sock.sendall(raw_post(HELLO))
            read_until(sock, b"reasoning_tokens")
            backend.set(failure="refuse")
            sock.sendall(raw_post(HELLO))
            with suppress(ConnectionResetError):
                assert b"HTTP/1.1" not in read_to_end(sock)
        assert len(backend.requests()) == 1

    def test_reset(self, backend: MockBackend) -> None:
        """The request is received, then the connection ends in an RST."""
        backend.set(failure="reset")
        with dial_in(backend) as sock:
            sock.sendall(raw_post(HELLO))
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert len(backend.requests()) == 1
        assert backend.stats().aborted == 0

    def test_black_hole(self, backend: MockBackend) -> None:
        """The request is received and nothing ever comes back; leaving is noticed."""
        backend.set(failure="black_hole")
        with dial_in(backend) as sock:
            sock.sendall(raw_post(HELLO))
            backend.wait_for(lambda stats: stats.in_flight == 1)
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(1)
        backend.wait_for(lambda stats: stats.aborted == 1 and stats.in_flight == 0)

    def test_truncate_body(self, backend: MockBackend) -> None:
        """The body ends before its Content-Length does."""
        backend.set(failure="truncate_body")
        with pytest.raises(http.client.IncompleteRead) as short:
            call(backend, body=HELLO)
        assert short.value.partial
        assert abs(short.value.expected - len(short.value.partial)) <= 1

    @pytest.mark.parametrize("failure", ["truncate_body", "cut_stream"])
    def test_broken_streams_lack_their_end(self, backend: MockBackend, failure: str) -> None:
        """A truncated or cut stream closes without the last chunk of its transfer coding."""
        backend.set(failure=failure, cut_after_chunks=3)
        with dial_in(backend) as sock:
            sock.sendall(raw_post(STREAMED))
            wire = read_to_end(sock)
        assert wire.count(b"data: ") == 3
        assert not wire.endswith(b"0\r\n\r\n")

    @pytest.mark.parametrize(("allowed", "sent"), [(0, 0), (1, 1), (6, 6), (7, 7), (99, 7)])
    def test_cut_stream_at_every_boundary(
        self, backend: MockBackend, allowed: int, sent: int
    ) -> None:
        """F6: the cut falls after any event, `[DONE]` included."""
        backend.set(failure="cut_stream", cut_after_chunks=allowed)
        with pytest.raises(http.client.IncompleteRead) as short:
            call(backend, body=STREAMED)
        assert short.value.partial.count(b"data: ") == sent
        assert call(backend, body=HELLO).status == 200

    def test_garbage(self, backend: MockBackend) -> None:
        """What comes back is not HTTP."""
        backend.set(failure="garbage")
        with pytest.raises(http.client.BadStatusLine):
            call(backend, body=HELLO)
        with dial_in(backend) as sock:
            sock.sendall(raw_post(HELLO))
            assert read_to_end(sock) == GARBAGE

    @pytest.mark.parametrize("body", [HELLO, STREAMED], ids=["buffered", "streamed"])
    def test_tar_pit(self, backend: MockBackend, body: dict[str, Any]) -> None:
        """F7: the head comes byte by byte, and in the end the answer is whole."""
        backend.set(failure="tar_pit", tar_pit_interval_ms=60_000)
        with dial_in(backend) as sock:
            sock.sendall(raw_post(body))
            assert sock.recv(65_536) == b"H"
        backend.wait_for(lambda stats: stats.aborted == 1)
        backend.set(tar_pit_interval_ms=0)
        assert call(backend, body=body).status == 200

    @pytest.mark.parametrize("body", [HELLO, STREAMED], ids=["buffered", "streamed"])
    def test_slow_body(self, backend: MockBackend, body: dict[str, Any]) -> None:
        """F7: the head comes at once, the body byte by byte, whole in the end."""
        whole = call(backend, body=body).body
        backend.set(failure="slow_body", tar_pit_interval_ms=60_000)
        with dial_in(backend) as sock:
            sock.sendall(raw_post(body))
            wire = read_until(sock, b"\r\n\r\n")
            begun = wire.partition(b"\r\n\r\n")[2] or sock.recv(65_536)
            assert len(begun) == 1
        backend.set(tar_pit_interval_ms=0)
        assert call(backend, body=body).body == whole

    def test_bad_json(self, backend: MockBackend) -> None:
        """A body or an event is framed well but holds half a document."""
        backend.set(failure="bad_json")
        reply = call(backend, body=HELLO)
        assert reply.status == 200
        with pytest.raises(json.JSONDecodeError):
            _ = reply.json
        for event in call(backend, body=STREAMED).events[:-1]:
            with pytest.raises(json.JSONDecodeError):
                json.loads(event)

    def test_no_usage(self, backend: MockBackend) -> None:
        """U8: no answer reports usage, asked for or not."""
        backend.set(failure="no_usage")
        assert "usage" not in call(backend, body=HELLO).json
        embedded = call(backend, "/v1/embeddings", {"model": "e", "input": "x"}).json
        assert "usage" not in embedded
        assert not any("usage" in chunk for chunk in call(backend, body=WITH_USAGE).chunks)

    @pytest.mark.parametrize("failure", ["refuse", "reset", "black_hole", "garbage", "tar_pit"])
    def test_control_works_in_every_failure(self, backend: MockBackend, failure: str) -> None:
        """A backend that breaks everything else can still be mended over HTTP."""
        call(backend, "/_mock/behaviour", {"failure": failure, "health_status": 503}, "PATCH")
        assert call(backend, "/_mock/behaviour").json["failure"] == failure
        call(backend, "/_mock/behaviour", {}, "PUT")
        assert call(backend, "/health").status == 200


class TestAborts:
    @pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
    @pytest.mark.parametrize(
        "settings",
        [
            {"latency_ms": 60_000},
            {"first_token_ms": 60_000},
            {"token_interval_ms": 60_000},
        ],
        ids=lambda settings: next(iter(settings)),
    )
    def test_a_leaving_client_is_noticed_while_waiting(
        self, backend: MockBackend, settings: dict[str, Any], reset: bool
    ) -> None:
        """S3: the end of a client is seen at once in the midst of any wait, by FIN and by RST."""
        backend.set(**settings)
        sock = dial_in(backend)
        sock.sendall(raw_post(STREAMED))
        backend.wait_for(lambda stats: stats.in_flight == 1)
        began = time.monotonic()
        if reset:
            hang_up_with_reset(sock)
        else:
            sock.close()
        stats = backend.wait_for(lambda stats: stats.connections_open == 0)
        assert time.monotonic() - began < 1
        assert (stats.aborted, stats.in_flight) == (1, 0)

    def test_a_leaving_client_is_noticed_behind_unread_bytes(self, backend: MockBackend) -> None:
        """A client that sent more than one request and left is not taken for present."""
        if not hasattr(select, "POLLRDHUP"):
            pytest.skip("this system does not tell of a close behind unread bytes")
        backend.set(latency_ms=60_000)
        with dial_in(backend) as sock:
            sock.sendall(raw_post(HELLO) * 2)
        assert backend.wait_for(lambda stats: stats.aborted > 0).aborted == 1

    def test_a_client_that_does_not_read_can_leave(self, backend: MockBackend) -> None:
        """A write that blocks on a full socket ends when the client does."""
        backend.set(tokens_output=10_000)
        sock = dial_in(backend)
        sock.sendall(raw_post({**STREAMED, "n": 8}))
        backend.wait_for(lambda stats: stats.in_flight == 1)
        hang_up_with_reset(sock)
        assert backend.wait_for(lambda stats: stats.connections_open == 0).aborted == 1

    def test_complete_answers_are_no_aborts(self, backend: MockBackend) -> None:
        """Clients that had all they were due may leave."""
        for body in (HELLO, STREAMED, WITH_USAGE):
            call(backend, body=body)
        assert backend.wait_for(lambda stats: stats.connections_open == 0).aborted == 0


class TestJournal:
    def test_requests_are_kept_as_they_came(self, backend: MockBackend) -> None:
        """Headers keep their order, case and repetition, and the body its bytes."""
        body = b'{"odd" : 1}'
        head = (
            b"POST /v1/nowhere?q=%2F..%2f HTTP/1.1\r\nhOST: x\r\nX-Two: 1\r\n"
            b"Content-Length: 11\r\nX-Two: 2\r\nConnection: close\r\n\r\n"
        )
        with dial_in(backend) as sock:
            sock.sendall(head + body)
            read_to_end(sock)
        [record] = call(backend, "/_mock/requests").json["requests"]
        assert record["method"] == "POST"
        assert record["path"] == "/v1/nowhere?q=%2F..%2f"
        assert record["headers"] == [
            ["hOST", "x"],
            ["X-Two", "1"],
            ["Content-Length", "11"],
            ["X-Two", "2"],
            ["Connection", "close"],
        ]
        assert base64.b64decode(record["body_base64"]) == body
        assert record["framing"] == "content-length"
        [request] = backend.requests()
        assert request.body == body
        assert request.values("x-two") == ["1", "2"]
        assert request.header("absent") is None
        assert backend.stats().requests == {"other": 1}

    def test_framings_are_told_apart(self, backend: MockBackend) -> None:
        """P16: chunked, both framings at once and no body at all are recorded as such."""
        chunked = (
            b"Transfer-Encoding: chunked\r\n%b\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nT: 1\r\n\r\n"
        )
        with dial_in(backend) as sock:
            for extra in (b"", b"Content-Length: 3\r\n"):
                sock.sendall(b"POST /x HTTP/1.1\r\n" + chunked % extra)
            sock.sendall(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
            read_to_end(sock)
        seen = backend.requests()
        assert [request.framing for request in seen] == ["chunked", "both", "none"]
        assert [request.body for request in seen] == [b"hello!", b"hello!", b""]
        assert {request.connection for request in seen} == {1}

    def test_only_the_latest_are_kept(self, backend: MockBackend) -> None:
        """Two hundred requests are kept, all are counted, and DELETE forgets them."""
        with closing(http.client.HTTPConnection("127.0.0.1", backend.port)) as connection:
            for number in range(205):
                connection.request("GET", f"/health?{number}")
                connection.getresponse().read()
        targets = [request.target for request in backend.requests()]
        assert targets == [f"/health?{number}" for number in range(5, 205)]
        stats = call(backend, "/_mock/stats").json
        assert stats["requests"] == {"/health": 205}
        assert stats["connections_accepted"] == 2
        assert call(backend, "/_mock/requests", method="DELETE").json == {"forgotten": 200}
        assert backend.requests() == []

    @pytest.mark.parametrize(
        ("wire", "status"),
        [
            (b"nonsense\r\n\r\n", b"400"),
            (b"GET  / HTTP/1.1\r\n\r\n", b"400"),
            (b"GET / HTTP/2.0\r\n\r\n", b"505"),
            (b"GET / HTTP/1.1\r\nBad Name: 1\r\n\r\n", b"400"),
            (b"GET / HTTP/1.1\r\n folded\r\n\r\n", b"400"),
            (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", b"400"),
            (b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx", b"400"),
            (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"501"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n", b"400"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n", b"400"),
            (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"431"),
            (b"GET / HTTP/1.1\r\n" + b"A: 1\r\n" * 300 + b"\r\n", b"431"),
        ],
        ids=lambda value: value[:40] if isinstance(value, bytes) else value,
    )
    def test_malformed_requests(self, backend: MockBackend, wire: bytes, status: bytes) -> None:
        """P16: bytes that are no request are answered, counted, and never kept as one."""
        with dial_in(backend) as sock:
            sock.sendall(wire)
            assert read_to_end(sock).startswith(b"HTTP/1.1 " + status)
        assert backend.stats().malformed == 1
        assert backend.requests() == []

    def test_an_early_end_is_no_request(self, backend: MockBackend) -> None:
        """A body shorter than its Content-Length does not pass for a whole one."""
        with dial_in(backend) as sock:
            sock.sendall(raw_post(HELLO)[:-1])
            sock.shutdown(socket.SHUT_WR)
            assert b" 400 " in read_to_end(sock).splitlines()[0]
        assert backend.stats().malformed == 1
        assert backend.requests() == []

    def test_expect_continue(self, backend: MockBackend) -> None:
        """A client that waits for leave to send its body gets it."""
        with dial_in(backend) as sock:
            head, _, body = raw_post(HELLO, extra="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
            sock.sendall(head + b"\r\n\r\n")
            assert sock.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(body)
            assert read_until(sock, b"choices").startswith(b"HTTP/1.1 200 OK\r\n")

    def test_head_has_no_body(self, backend: MockBackend) -> None:
        """HEAD answers with the head alone, and the connection stays usable."""
        with closing(http.client.HTTPConnection("127.0.0.1", backend.port)) as connection:
            for method, body in (("HEAD", b""), ("GET", b'{"status": "ok"}')):
                connection.request(method, "/health")
                assert connection.getresponse().read() == body
        assert {request.connection for request in backend.requests()} == {1}

    def test_a_status_without_a_body(self, backend: MockBackend) -> None:
        """A 204 carries neither a body nor a length, and the connection stays usable."""
        backend.set(health_status=204)
        with closing(http.client.HTTPConnection("127.0.0.1", backend.port)) as connection:
            for _ in range(2):
                connection.request("GET", "/health")
                reply = Reply(connection.getresponse())
                assert (reply.status, reply.body) == (204, b"")
                assert reply.headers["Content-Length"] is None
        assert {request.connection for request in backend.requests()} == {1}

    def test_waiting_in_vain_says_what_there_is(self, backend: MockBackend) -> None:
        """A condition that is not met in time fails with the counts."""
        with pytest.raises(TimeoutError, match="aborted=0"):
            backend.wait_for(lambda stats: stats.aborted == 1, timeout_s=0.01)


class TestLifecycle:
    def test_stop_takes_every_thread_back(self) -> None:
        """Whatever connections do, stopping ends their threads and aborts none of them."""
        before = set(threading.enumerate())
        backend = MockBackend(behaviour=Behaviour(failure="black_hole"))
        backend.start()
        with dial_in(backend), dial_in(backend) as waiting, dial_in(backend) as half:
            waiting.sendall(raw_post(HELLO))
            half.sendall(b"POST / HTTP/1.1\r\nContent-")
            backend.wait_for(lambda stats: stats.in_flight == 1 and stats.connections_open == 3)
            began = time.monotonic()
            backend.stop()
            assert time.monotonic() - began < 1
        assert set(threading.enumerate()) == before
        stats = backend.stats()
        assert (stats.aborted, stats.malformed, stats.connections_open) == (0, 0, 0)

    def test_stop_ends_a_blocked_write(self) -> None:
        """A client that does not read cannot hold up the end."""
        before = set(threading.enumerate())
        with (
            MockBackend(behaviour=Behaviour(tokens_output=10_000)) as backend,
            dial_in(backend) as sock,
        ):
            sock.sendall(raw_post({**STREAMED, "n": 8}))
            backend.wait_for(lambda stats: stats.in_flight == 1)
        assert set(threading.enumerate()) == before

    def test_a_stopped_backend_refuses_and_returns_on_its_port(self) -> None:
        """F2: stop gives a refused connection; start serves again at the same address."""
        with MockBackend() as backend:
            url = backend.url
            assert call(backend, "/health").status == 200
            backend.stop()
            with pytest.raises(ConnectionRefusedError):
                dial_in(backend)
            backend.start()
            assert backend.url == url
            assert call(backend, "/health").status == 200
        backend.stop()

    def test_start_is_quick(self) -> None:
        """A backend is up in well under 50 ms; the best of three, for a busy machine's sake."""
        took_s = []
        for _ in range(3):
            began = time.monotonic()
            with MockBackend():
                took_s.append(time.monotonic() - began)
        assert min(took_s) < 0.05

    def test_many_clients_at_once(self, backend: MockBackend) -> None:
        """Simultaneous calls each get their own answer."""
        texts: dict[int, str] = {}

        def ask(number: int) -> None:
            body = {"model": "m", "messages": [{"role": "user", "content": str(number)}]}
            texts[number] = call(backend, body=body).json["choices"][0]["message"]["content"]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == {number: f"You said: {number}" for number in range(40)}
        assert backend.stats().total == 40

    def test_names_are_fit_for_a_fingerprint(self) -> None:
        """A name that could break a header or a log line is refused."""
        with pytest.raises(ValueError, match="name"):
            MockBackend(name="a\r\nb")


class TestCommand:
    PROGRAM = "from router.mock_backend.command import command; command()"

    def run(self, *flags: str, **kwargs: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", self.PROGRAM, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **kwargs,
        )

    @pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
    def test_listens_says_so_and_ends_well(self, ending: signal.Signals) -> None:
        """The program prints one JSON line, serves by its flags, and a signal ends it with 0."""
        flags = ("--port", "0", "--name", "b", "--tokens-input", "4", "--comments")
        env = {**os.environ, "MOCK_BACKEND_API_KEY": "sk-env"}
        with self.run(*flags, env=env) as process:
            assert process.stdout is not None
            event = json.loads(process.stdout.readline())
            assert (event["event"], event["name"]) == ("mock_backend_listening", "b")
            host, port = event["url"].removeprefix("http://").split(":")
            connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
            with closing(connection):
                connection.request("GET", "/_mock/behaviour")
                settings = Reply(connection.getresponse()).json
                connection.request("POST", CHAT, json.dumps(HELLO))
                refused = Reply(connection.getresponse())
            process.send_signal(ending)
            rest, errors = process.communicate(timeout=TIMEOUT_S)
        assert settings == Behaviour(tokens_input=4, comments=True).as_settings()
        assert refused.status == 401
        assert (process.returncode, rest, errors) == (0, "", "")

    @pytest.mark.parametrize(
        ("flags", "complaint"),
        [
            (("--error-rate", "2"), "--error-rate must be between 0 and 1"),
            (("--failure", "explode"), "--failure"),
            (("--name", "a b"), "name"),
        ],
    )
    def test_wrong_flags(self, flags: tuple[str, ...], complaint: str) -> None:
        """A wrong flag is named and nothing listens."""
        with self.run("--port", "0", *flags) as process:
            printed, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 2
        assert complaint in errors
        assert printed == ""

    def test_a_taken_port(self, backend: MockBackend) -> None:
        """A port that is taken is an error of one line."""
        with self.run("--port", str(backend.port)) as process:
            _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 1
        assert errors.startswith(f"Error: cannot listen on 127.0.0.1:{backend.port}")
        assert len(errors.splitlines()) == 1


def test_the_page_names_every_setting_and_failure() -> None:
    """docs/mock-backend.md has a row for each setting with its default and for each failure."""
    page = (Path(__file__).parents[2] / "docs" / "mock-backend.md").read_text()
    defaults = Behaviour().as_settings()
    for name in RULES:
        default = defaults[name] if isinstance(defaults[name], str) else json.dumps(defaults[name])
        assert f"| `{name}` | {default} |" in page
    for failure in RULES["failure"].choices:
        assert f"| `{failure}` |" in page
