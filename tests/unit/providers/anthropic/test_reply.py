"""What a reply or an error of the Messages API becomes for an OpenAI client."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.call import Usage
from router.providers.anthropic.messages_api import AnthropicProvider
from router.providers.anthropic.reply import read_reply
from router.providers.provider import ReadReply

read_error = AnthropicProvider().read_error

USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 4,
    "cache_creation_input_tokens": 2,
    "output_tokens": 5,
}


def message(*content: dict[str, Any], **fields: Any) -> bytes:
    return orjson.dumps(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-x",
            "content": content,
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": USAGE,
        }
        | fields
    )


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def read_chat(body: bytes) -> ReadReply:
    return read_reply("chat", body, created=1)


def test_a_text_becomes_a_chat_completion() -> None:
    """Every field an OpenAI client reads is there, and all input tokens are counted."""
    read = read_reply("chat", message(text("Hel"), text("lo")), created=1700000000)
    assert orjson.loads(read.body) == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "claude-x",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 16,
            "completion_tokens": 5,
            "total_tokens": 21,
            "prompt_tokens_details": {
                "cached_tokens": 4,
                "cache_write_tokens": 2,
                "cache_creation_tokens": 2,
                "cache_creation_token_details": {
                    "ephemeral_5m_input_tokens": 2,
                    "ephemeral_1h_input_tokens": 0,
                },
            },
        },
    }
    assert read.usage == Usage(16, 5, 4, "reported", special={"cache_write_5m": 2})


def test_a_text_becomes_a_legacy_completion() -> None:
    """A completion carries its text in the choice itself."""
    read = read_reply("completions", message(text("Hello")), created=1)
    parsed = orjson.loads(read.body)
    assert parsed["object"] == "text_completion"
    assert parsed["choices"] == [
        {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}
    ]
    assert read.usage is not None
    assert read.usage.tokens_output == 5


def test_tool_use_becomes_tool_calls() -> None:
    """Arguments are JSON text again, and content is null where the model only calls."""
    block = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1]}}
    reply = read_chat(message(block, stop_reason="tool_use")).body
    choice = orjson.loads(reply)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {
                "id": "toolu_1",
                "type": "function",
                "function": {"name": "f", "arguments": '{"a":[1]}'},
            }
        ],
    }


def test_thinking_becomes_reasoning_content() -> None:
    """Thinking is told apart from the answer; blocks unknown to the dialect are left out."""
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        text("Yes"),
    ]
    reply = read_chat(message(*blocks)).body
    answer = orjson.loads(reply)["choices"][0]["message"]
    assert (answer["reasoning_content"], answer["content"]) == ("Hm.", "Yes")
    assert "tool_calls" not in answer


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
        (None, "stop"),
    ],
)
def test_every_stop_reason_has_a_finish_reason(stop_reason: Any, finish_reason: str) -> None:
    """A reason that the API adds one day must not break clients."""
    reply = read_chat(message(stop_reason=stop_reason)).body
    choice = orjson.loads(reply)["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == (finish_reason, "")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff",
        b"[]",
        b"null",
        b'{"type": "error", "error": {"type": "api_error", "message": "x"}}',
        message(id=None),
        message(model=5),
        message(content="x"),
        message(content=["x"]),
        message({"type": "text"}),
        message({"type": "tool_use", "id": "t", "name": "f", "input": "x"}),
        message({"type": "tool_use", "name": "f", "input": {}}),
        message(
            {"type": "tool_use", "id": "t", "name": "f", "input": {}},
        ).replace(b'"input":{}', b'"input":' + b'{"a":' * 300 + b"1" + b"}" * 300),
    ],
)
def test_a_malformed_reply_raises_value_error(body: bytes) -> None:
    """Nonsense from a backend is told apart from a reply, whatever is wrong with it."""
    with pytest.raises(ValueError, match=r".+"):
        read_reply("chat", body, created=1)


@given(st.binary(max_size=40) | st.sampled_from([b"{", b'{"type":"message"}']))
def test_no_bytes_break_the_reader(body: bytes) -> None:
    """Whatever a backend answers is a reply or a ValueError."""
    with pytest.raises(ValueError, match=r".+"):
        read_reply("chat", body, created=1)


# --- errors ----------------------------------------------------------------------------------


def error(text: Any) -> bytes:
    return orjson.dumps(
        {"type": "error", "error": {"type": "invalid_request_error", "message": text}}
    )


def test_the_message_of_an_error_is_shown() -> None:
    """The client reads what is wrong with its request."""
    assert read_error(error("temperature: range: 0..1")) == "temperature: range: 0..1"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("key sk-ant-api03-CANARY_x is bad", "key [redacted] is bad"),
        ("got Bearer CANARY here", "got [redacted] here"),
        ("see https://internal-7.example/CANARY please", "see [link] please"),
        ("two\nlines\x00\t and\r\n more", "two lines\x00 and more"),
    ],
)
def test_secrets_and_links_are_cut_out_of_errors(message: str, told: str) -> None:
    """K6: whatever a backend echoes, keys and addresses do not reach a client."""
    assert read_error(error(message)) == told


def test_long_errors_are_cut() -> None:
    """A backend cannot make our error bodies large."""
    assert read_error(error("x" * 100_000)) == "x" * 1000


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"error": "x"}', error(5), error(" ")]
)
def test_an_unreadable_error_has_no_message(body: bytes) -> None:
    """A proxy's HTML page is not shown to clients."""
    assert read_error(body) is None
