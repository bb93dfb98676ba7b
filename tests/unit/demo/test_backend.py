"""The demo backend, asked over HTTP as the router asks it."""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from router.demo.backend import DIMENSIONS, MODELS, DemoBackend

HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello to you"}]}


@pytest.fixture(scope="module")
def backend() -> Iterator[DemoBackend]:
    with DemoBackend("demo-a") as made:
        serving = threading.Thread(target=made.serve_forever)
        serving.start()
        yield made
        made.shutdown()
        serving.join()


def post(backend: DemoBackend, path: str, call: Any) -> requests.Response:
    return requests.post(f"{backend.base_url}{path}", json=call, timeout=5)


def events(reply: requests.Response) -> list[Any]:
    """The chunks of a stream that ended as it should."""
    *chunks, end = [event.removeprefix("data: ") for event in reply.text.strip().split("\n\n")]
    assert end == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def test_a_chat_is_repeated_and_counted(backend: DemoBackend) -> None:
    """A token is a word; equal calls get equal replies."""
    reply = post(backend, "/chat/completions", HELLO)
    assert reply.json()["choices"][0]["message"]["content"] == "You said: Hello to you"
    assert reply.json()["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
    }
    assert post(backend, "/chat/completions", HELLO).content == reply.content


def test_max_tokens_cuts_the_reply(backend: DemoBackend) -> None:
    """The finish reason says so."""
    reply = post(backend, "/chat/completions", {**HELLO, "max_tokens": 2}).json()
    assert reply["choices"][0]["message"]["content"] == "You said:"
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("with_usage", [True, False])
def test_a_stream_says_what_the_whole_reply_says(backend: DemoBackend, with_usage: bool) -> None:
    """Usage comes in one last chunk, if it was asked for."""
    whole = post(backend, "/chat/completions", HELLO).json()
    call = {**HELLO, "stream": True, "stream_options": {"include_usage": with_usage}}
    chunks = events(post(backend, "/chat/completions", call))
    if with_usage:
        last = chunks.pop()
        assert (last["choices"], last["usage"]) == ([], whole["usage"])
    parts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(parts) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert [chunk.get("usage") for chunk in chunks] == [None] * len(chunks)


def test_a_text_completion(backend: DemoBackend) -> None:
    """Whole and as a stream."""
    call = {"model": "gpt-4o", "prompt": "One two"}
    assert post(backend, "/completions", call).json()["choices"][0]["text"] == "You said: One two"
    chunks = events(post(backend, "/completions", {**call, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "You said: One two"


def test_embeddings_as_numbers_and_as_base64(backend: DemoBackend) -> None:
    """Both hold the same numbers; other texts have others."""
    call = {"model": "text-embedding-3-small", "input": ["a", "b"]}
    numbers = [entry["embedding"] for entry in post(backend, "/embeddings", call).json()["data"]]
    packed = post(backend, "/embeddings", {**call, "encoding_format": "base64"}).json()["data"]
    unpacked = [
        list(struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(entry["embedding"])))
        for entry in packed
    ]
    assert unpacked == numbers
    assert numbers[0] != numbers[1]


def test_models_are_listed(backend: DemoBackend) -> None:
    """Those of the demo document."""
    listed = requests.get(f"{backend.base_url}/models", timeout=5).json()
    assert [card["id"] for card in listed["data"]] == list(MODELS)


@pytest.mark.parametrize(
    ("path", "call", "status"),
    [
        ("/chat/completions", {"model": "gpt-4o"}, 400),
        ("/chat/completions", [], 400),
        ("/embeddings", {"model": "gpt-4o"}, 400),
        ("/nothing", {}, 404),
    ],
)
def test_what_cannot_be_served_is_refused(
    backend: DemoBackend, path: str, call: Any, status: int
) -> None:
    """In OpenAI's shape."""
    reply = post(backend, path, call)
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == "invalid_request_error"
