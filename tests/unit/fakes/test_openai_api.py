"""The fake of OpenAI's API over real sockets: what it answers, and what each misbehaviour does."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import openai
import pytest

from tests.fakes.backend.openai_api import GARBAGE, OpenAIApi

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {
    "model": "gpt-4o",
    "messages": [{"role": "user", "content": "hello there"}],
}
STREAMED = {**HELLO, "stream": True}
WITH_USAGE = {**STREAMED, "stream_options": {"include_usage": True}}
TIMEOUT_S = 5.0


@pytest.fixture
def api() -> Iterator[OpenAIApi]:
    with OpenAIApi("a") as running:
        yield running


@pytest.fixture
def client(api: OpenAIApi) -> Iterator[openai.OpenAI]:
    url = f"{api.url}/v1"
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=TIMEOUT_S) as made:
        yield made


def call(api: OpenAIApi, body: Any = HELLO, path: str = CHAT, **headers: str) -> tuple[int, bytes]:
    """Status and body of one call on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=TIMEOUT_S)
    data = body if isinstance(body, bytes) else json.dumps(body)
    with closing(connection):
        connection.request("POST", path, data, headers)
        response = connection.getresponse()
        return response.status, response.read()


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    lines = body.decode().splitlines()
    *events, last = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


def dial(api: OpenAIApi, body: Any) -> socket.socket:
    """A connection on which one chat call was sent."""
    data = json.dumps(body).encode()
    sock = socket.create_connection(("127.0.0.1", api.port), timeout=TIMEOUT_S)
    sock.sendall(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(data)))
    sock.sendall(data)
    return sock


def wire(api: OpenAIApi, body: Any) -> bytes:
    """All that comes back for one chat call until the connection ends."""
    with dial(api, body) as sock:
        return b"".join(iter(lambda: sock.recv(65_536), b""))


# --- answers, read by the official SDK -------------------------------------------------------


def test_chat_echoes_the_last_user_message(client: openai.OpenAI) -> None:
    """Tokens are words: five go in, four come out."""
    messages: Any = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "grüße dich"}]},
    ]
    reply = client.chat.completions.create(model="any", messages=messages)
    [choice] = reply.choices
    assert (choice.message.content, choice.finish_reason) == ("You said: grüße dich", "stop")
    assert (reply.model, reply.system_fingerprint) == ("any", "fp_a")
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 4)
    assert reply.usage.total_tokens == 9


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, HELLO),
        (CHAT, {**HELLO, "max_tokens": 1}),
        (CHAT, {**HELLO, "max_completion_tokens": 3, "n": 3}),
        ("/v1/completions", {"model": "m", "prompt": "tell me more"}),
        ("/v1/completions", {"model": "m", "prompt": ["one", "two words"], "n": 2}),
        ("/v1/completions", {"model": "m", "prompt": [[1, 2, 3]], "max_tokens": 4}),
    ],
)
@pytest.mark.parametrize("tokens_output", [None, 5])
def test_streamed_equals_buffered(
    api: OpenAIApi, path: str, body: dict[str, Any], tokens_output: int | None
) -> None:
    """U7: the same call streamed and buffered says the same and reports the same usage."""
    api.set(tokens_output=tokens_output)
    buffered = json.loads(call(api, body, path)[1])
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = chunks_of(call(api, {**body, **options}, path)[1])
    assert chunks[-1]["usage"] == buffered["usage"]
    texts = [""] * len(buffered["choices"])
    endings: list[Any] = [None] * len(texts)
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        said = choice.get("text") or choice.get("delta", {}).get("content", "")
        texts[choice["index"]] += said
        endings[choice["index"]] = choice["finish_reason"]
    assert texts == [
        each["text"] if "text" in each else each["message"]["content"]
        for each in buffered["choices"]
    ]
    assert endings == [each["finish_reason"] for each in buffered["choices"]]
    spoken = sum(len(text.split()) for text in texts)
    assert buffered["usage"]["completion_tokens"] == spoken
    if tokens_output is not None:
        assert spoken == tokens_output * len(texts)
    assert {chunk["id"] for chunk in chunks} == {buffered["id"]}


def test_limits_cut_the_text(client: openai.OpenAI) -> None:
    """A limit below the text's length ends each choice there and says so."""
    reply = client.chat.completions.create(**HELLO, max_tokens=3, n=2)
    said = [(each.message.content, each.finish_reason) for each in reply.choices]
    assert said == [("You said: hello", "length")] * 2


@pytest.mark.parametrize(
    ("style", "body", "totals"),
    [
        ("last_empty_choices", WITH_USAGE, [None, None, None, None, None, None, 6]),
        ("last_empty_choices", STREAMED, [None] * 6),
        ("with_last_choice", STREAMED, [None, None, None, None, None, 6]),
        ("every_chunk", STREAMED, [2, 3, 4, 5, 6, 6]),
    ],
)
def test_usage_styles(api: OpenAIApi, style: str, body: Any, totals: list[int | None]) -> None:
    """U7: each style puts the total tokens where servers of its kind do."""
    api.set(usage_style=style)
    usages = [chunk.get("usage") for chunk in chunks_of(call(api, body)[1])]
    assert [usage and usage["total_tokens"] for usage in usages] == totals


def test_the_sdk_reads_a_stream(client: openai.OpenAI) -> None:
    """Its text is whole, its last chunk has the usage."""
    chunks = list(client.chat.completions.create(**WITH_USAGE))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert (text, chunks[-1].usage.total_tokens) == ("You said: hello there", 6)


def test_the_sdk_reads_completions_and_embeddings(client: openai.OpenAI) -> None:
    """The SDK asks for base64, which carries the same vector as plain numbers."""
    assert client.completions.create(model="m", prompt="hi").choices[0].text == "You said: hi"
    given: Any = {"model": "e", "input": ["some text", "other"], "dimensions": 8}
    packed = client.embeddings.create(**given)
    plain = client.embeddings.create(**given, encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding)
        assert sum(component**2 for component in one.embedding) == pytest.approx(1)
    assert plain.data[0].embedding != plain.data[1].embedding
    assert packed.usage.prompt_tokens == plain.usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/nowhere", HELLO, 404, None),
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
def test_what_is_wrong_with_a_call_is_named(
    api: OpenAIApi, path: str, body: Any, status: int, param: str | None
) -> None:
    """As an OpenAI error with the field."""
    found, answer = call(api, body, path)
    error = json.loads(answer)["error"]
    assert (found, set(error)) == (status, {"message", "type", "param", "code"})
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_the_credential_is_demanded() -> None:
    """With a key configured, it has to come as a bearer token."""
    with OpenAIApi(api_key="sk-right") as api:
        assert call(api)[0] == 401
        assert call(api, Authorization="Bearer sk-wrong")[0] == 401
        assert call(api, Authorization="Bearer sk-right")[0] == 200


# --- misbehaviour ----------------------------------------------------------------------------


def test_a_setting_that_does_not_exist_is_a_mistake(api: OpenAIApi) -> None:
    """A typing error does not make a well-behaved backend."""
    with pytest.raises(TypeError, match="latency"):
        api.set(latency=1)


def test_reset_returns_to_good_behaviour(api: OpenAIApi) -> None:
    """And forgets what was received."""
    api.set(error_status=500)
    assert call(api)[0] == 500
    api.reset()
    assert api.requests == []
    assert call(api)[0] == 200


def test_errors_carry_status_and_retry_after(api: OpenAIApi, client: openai.OpenAI) -> None:
    """The SDK takes the error for what its status says."""
    api.set(error_status=429, retry_after_s=7)
    with pytest.raises(openai.RateLimitError) as busy:
        client.chat.completions.create(**HELLO)
    assert busy.value.response.headers["retry-after"] == "7"


def test_waits_are_where_they_are_said_to_be(api: OpenAIApi) -> None:
    """Before the head; between the head of a stream and its events; between events."""
    began_s = time.monotonic()
    call(api, STREAMED)
    api.set(latency_ms=30)
    call(api)
    assert time.monotonic() - began_s >= 0.03
    api.set(latency_ms=0, first_token_ms=20, token_interval_ms=5)
    began_s = time.monotonic()
    call(api, STREAMED)
    assert time.monotonic() - began_s >= 0.02 + 5 * 0.005
    api.set(first_token_ms=60_000)
    with dial(api, STREAMED) as sock:
        assert sock.recv(65_536).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("failure", ["close", "reset", "garbage", "black_hole"])
def test_what_is_no_answer(api: OpenAIApi, failure: str) -> None:
    """The request was received; an end, an RST, noise or nothing comes back."""
    api.set(failure=failure)
    with dial(api, HELLO) as sock:
        api.wait_for(lambda fake: len(fake.requests) == 1)
        if failure == "reset":
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        elif failure == "black_hole":
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(1)
        else:
            assert sock.recv(100) == {"close": b"", "garbage": GARBAGE}[failure]
            assert sock.recv(1) == b""
    api.wait_for(lambda fake: fake.open_connections == 0)
    assert api.aborted == (failure == "black_hole")


def test_a_truncated_body_ends_before_its_length_does(api: OpenAIApi) -> None:
    """Half of it is there."""
    api.set(failure="truncate_body")
    with pytest.raises(http.client.IncompleteRead) as short:
        call(api)
    assert abs((short.value.expected or 0) - len(short.value.partial)) <= 1


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"failure": "truncate_body"}, 3),
        *(({"failure": "cut_stream", "cut_after_chunks": n}, min(n, 7)) for n in (0, 1, 6, 7, 99)),
    ],
    ids=str,
)
def test_a_cut_stream_lacks_its_end(api: OpenAIApi, settings: dict[str, Any], sent: int) -> None:
    """F6: the cut falls after any event, ``[DONE]`` included."""
    api.set(**settings)
    stream = wire(api, STREAMED)
    assert stream.startswith(b"HTTP/1.1 200 ")
    assert stream.count(b"data: ") == sent
    assert not stream.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("body", [HELLO, STREAMED], ids=["buffered", "streamed"])
@pytest.mark.parametrize("failure", ["tar_pit", "slow_body"])
def test_slow_bytes(api: OpenAIApi, body: dict[str, Any], failure: str) -> None:
    """F7: head or body come byte by byte, and in the end the answer is whole."""
    whole = call(api, body)
    api.set(failure=failure, tar_pit_interval_ms=60_000)
    with dial(api, body) as sock:
        came = sock.recv(65_536)
        if failure == "slow_body":
            came = came.partition(b"\r\n\r\n")[2] or sock.recv(65_536)
        assert len(came) == 1
    api.wait_for(lambda fake: fake.aborted == 1)
    api.set(tar_pit_interval_ms=0)
    assert call(api, body) == whole


def test_bad_json_is_framed_well(api: OpenAIApi) -> None:
    """A body or an event holds half a document."""
    api.set(failure="bad_json")
    events = call(api, STREAMED)[1].split(b"\n\n")[:-2]
    assert len(events) == 6
    for text in (call(api)[1], *(event.removeprefix(b"data: ") for event in events)):
        assert text.startswith(b'{"id"')
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)


def test_no_usage_is_reported(api: OpenAIApi) -> None:
    """U8: asked for or not."""
    api.set(failure="no_usage")
    assert "usage" not in json.loads(call(api)[1])
    embedded = call(api, {"model": "e", "input": "x"}, "/v1/embeddings")[1]
    assert "usage" not in json.loads(embedded)
    chunks = chunks_of(call(api, WITH_USAGE)[1])
    assert ["usage" in chunk for chunk in chunks] == [False] * 6


def test_events_may_be_laid_out_otherwise(api: OpenAIApi) -> None:
    """U7: line ends, comments, and events in two HTTP chunks, neither of which holds them whole."""
    plain = chunks_of(call(api, STREAMED)[1])
    api.set(line_ending="crlf", comments=True, split_writes=True)
    body = call(api, STREAMED)[1]
    assert body.startswith(b": keep-alive\r\n\r\ndata: {")
    assert b"\n" not in body.replace(b"\r\n", b"")
    assert chunks_of(body) == plain
    api.set(comments=False, line_ending="lf", failure="cut_stream", cut_after_chunks=7)
    pieces = wire(api, STREAMED).partition(b"\r\n\r\n")[2].split(b"\r\n")
    assert len(pieces) == 2 * 14 + 1  # two chunks an event, a size and some data each
    assert not any(piece.startswith(b"data") and piece.endswith(b"\n\n") for piece in pieces)


def test_a_test_may_write_the_answer_itself(api: OpenAIApi) -> None:
    """Bodies, streams whole and broken off, and bytes with the end of the connection."""
    api.will_answer(b"<html>", status=418, content_type="text/html")
    assert call(api) == (418, b"<html>")
    api.will_stream(b"data: 1\n\n", b"data: 2\n\n")
    assert call(api) == (200, b"data: 1\n\ndata: 2\n\n")
    api.will_stream(b"data: 1\n\n", whole=False)
    assert wire(api, HELLO).endswith(b"\r\n\r\n9\r\ndata: 1\n\n\r\n")
    api.will_end_after(b"HTTP/1.1")
    assert wire(api, HELLO) == b"HTTP/1.1"
