"""What is read off a buffered reply in the OpenAI dialect, and off an error."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.call import Usage
from router.providers.openai_api import OpenAIProvider
from router.providers.provider import ReadReply
from tests.unit.upstream.builders import completion, new_call

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**63) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "usage", "message", "delta", "text", "content", "tool_calls", "function",
             "arguments", "prompt_tokens", "completion_tokens", "prompt_tokens_details",
             "cached_tokens", "error", "finish_reason"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


def test_a_reply_passes_with_its_usage() -> None:
    """The bytes are the backend's own."""
    body = completion(unknown={"kept": True})
    read = OpenAIProvider().read_reply(new_call(), body)
    assert read.body is body
    assert (read.usage, read.output_bytes, read.usage_at_start) == (Usage(5, 7), 0, None)


@pytest.mark.parametrize(
    ("reply", "chars"),
    [
        ({"choices": [{"message": {"content": "hello"}}]}, 5),
        ({"choices": [{"message": {"content": "hello"}}, {"message": {"content": "you"}}]}, 8),
        ({"choices": [{"text": "hello"}]}, 5),
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, 2),
        ({"choices": [{"message": {"content": "a", "reasoning_content": "bcd"}}]}, 4),
        (
            {"choices": [{"message": {"tool_calls": [
                {"function": {"name": "f", "arguments": "{\"a\":1}"}},
                {"function": {"name": "g", "arguments": "{}"}}]}}]},
            9,
        ),
        ({"choices": [{"message": {"content": None, "reasoning": "hm"}}]}, 2),
        # Two names of one text, as a backend that changes its name for it sends both.
        ({"choices": [{"message": {"reasoning": "hmm", "reasoning_content": "hmm"}}]}, 3),
        (
            {"choices": [{"message": {"content": "a", "reasoning": "hmm",
                                      "reasoning_details": [{"type": "x", "text": "hmm"}]}}]},
            4,
        ),
        ({"choices": [{"message": {"function_call": {"name": "f", "arguments": "{}"}}}]}, 2),
        (
            {"choices": [{"message": {"tool_calls": [
                {"type": "custom", "custom": {"name": "f", "input": "abc"}}]}}]},
            3,
        ),
        (
            {"choices": [{"message": {"content": None, "audio": {
                "id": "audio_1", "data": "UklGRg==", "transcript": "hello"}}}]},
            5,
        ),
        (
            {"choices": [{"message": {"content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "hello"}]}}]},
            7,
        ),
        # Zeros are no report of what was said.
        (
            {"usage": {"prompt_tokens": 0, "completion_tokens": 0},
             "choices": [{"message": {"content": "hello"}}]},
            5,
        ),
        ({"choices": [{"message": {"content": ["odd"]}}, None, "x", {}]}, 0),
        ({"choices": [{"message": {"tool_calls": 5}}]}, 0),
        ({"choices": [{"message": {"tool_calls": {"a": 1}}}]}, 0),
        ({"choices": {"a": 1}}, 0),
        ({"choices": None}, 0),
        ({"data": [{"embedding": [0.1]}]}, 0),
        ({}, 0),
    ],
)  # fmt: skip
def test_output_is_counted_for_an_estimate(reply: Any, chars: int) -> None:
    """Text, reasoning, transcripts and arguments; oddities count nothing, and used to raise."""
    read = OpenAIProvider().read_reply(new_call(), orjson.dumps(reply))
    assert read == ReadReply(orjson.dumps(reply), None, chars)


def test_an_input_that_is_known_is_kept_where_the_output_is_not() -> None:
    """The input of such a call is not estimated (U8)."""
    usage = {"prompt_tokens": 5000, "completion_tokens": 0}
    body = orjson.dumps({"choices": [{"message": {"content": "hello"}}], "usage": usage})
    read = OpenAIProvider().read_reply(new_call(), body)
    assert read == ReadReply(body, None, 5, Usage(5000, 0))


@pytest.mark.parametrize(
    "body",
    [b"", b"not JSON", b"[1]", b'"text"', b"null", b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000],
)
def test_nonsense_is_a_failure_of_the_backend(body: bytes) -> None:
    """What is no JSON object is not handed to a client as a success."""
    with pytest.raises(ValueError, match=r".+"):
        OpenAIProvider().read_reply(new_call(), body)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=8), ANY_JSON) | ANY_JSON)
def test_no_reply_brings_the_reader_down(reply: Any) -> None:
    """Whatever a backend answers, it is delivered or it is a ``ValueError``."""
    body = orjson.dumps(reply)
    try:
        read = OpenAIProvider().read_reply(new_call(), body)
    except ValueError:
        assert not isinstance(reply, dict)
        return
    assert read.body == body
    assert read.output_bytes >= 0
    assert read.usage is None or read.usage.tokens_input >= 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "too long", "type": "x"}}', "too long"),
        (b'{"error": "plain"}', "plain"),
        (b'{"message": "vLLM of old"}', "vLLM of old"),
        (b'{"object": "error", "message": "bad", "code": 400}', "bad"),
        (b'{"error": {"message": 5}}', None),
        (b'{"error": null}', None),
        (b'{"detail": [{"msg": "x"}]}', None),
        (b'["x"]', None),
        (b"<html>Bad Request</html>", None),
        (b"", None),
        (b"\xff", None),
    ],
)
def test_the_message_of_an_error(body: bytes, message: str | None) -> None:
    """Only what is an error object has a message that can be shown."""
    assert OpenAIProvider().read_error(body) == message


def test_paths_and_credentials_are_those_of_the_dialect() -> None:
    """Each operation has its path; without a credential there is no header."""
    provider = OpenAIProvider()
    assert provider.paths == {
        "chat": "/chat/completions",
        "completions": "/completions",
        "embeddings": "/embeddings",
    }
    assert provider.credential_headers("sk-1") == [("Authorization", "Bearer sk-1")]
    assert provider.credential_headers(None) == []
