"""What the Messages API reports as used, buffered and streamed, and how a client reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from router.call import Usage
from router.providers.anthropic.messages_usage import read_usage
from router.providers.anthropic.reply import read_reply
from router.providers.anthropic.stream import MessagesStream
from router.providers.openai_usage import read_usage as read_openai_usage
from tests.fakes.backend.anthropic_messages import encode_event
from tests.fakes.backend.usage_spellings import all_input, all_output, anthropic_usage, respelled

NUMBERS: dict[str, Callable[[int], Any]] = {"whole": int, "float": float, "text": str}


def counts(fresh: Any, output: Any, **more: Any) -> dict[str, Any]:
    return {"input_tokens": fresh, "output_tokens": output, **more}


def usage(
    tokens_input: int, tokens_output: int, cached: int = 0, tier: str | None = None, **special: int
) -> Usage:
    return Usage(tokens_input, tokens_output, cached, special=special, service_tier=tier)


def written(for_5m: Any, for_1h: Any) -> dict[str, Any]:
    return {"ephemeral_5m_input_tokens": for_5m, "ephemeral_1h_input_tokens": for_1h}


@pytest.mark.parametrize(
    ("reported", "read"),
    [
        (counts(3, 1), usage(3, 1)),
        (counts(3, 1, cache_read_input_tokens=None), usage(3, 1)),
        (counts(3, 1, cache_read_input_tokens=900), usage(903, 1, 900)),
        # Writes have classes of their own; they used to be priced as plain input.
        (counts(3, 1, cache_creation_input_tokens=800), usage(803, 1, cache_write_5m=800)),
        (
            counts(3, 1, cache_creation_input_tokens=800, cache_creation=written(300, 500)),
            usage(803, 1, cache_write_1h=500, cache_write_5m=300),
        ),
        (
            counts(3, 1, cache_creation_input_tokens=800, cache_creation=written(0, 800)),
            usage(803, 1, cache_write_1h=800),
        ),
        (
            counts(3, 1, cache_creation_input_tokens=800, cache_creation=written(0, 500)),
            usage(803, 1, cache_write_1h=500, cache_write_5m=300),
        ),
        (counts(3, 1, cache_creation=written(300, 500)),
         usage(803, 1, cache_write_1h=500, cache_write_5m=300)),
        (counts(3, 1, cache_creation_input_tokens=1, cache_creation=written(300, 500)),
         usage(803, 1, cache_write_1h=500, cache_write_5m=300)),
        # Thinking is within the output; searches are billed apart.
        (counts(3, 9, output_tokens_details={"thinking_tokens": 5}),
         usage(3, 9, output_reasoning=5)),
        (counts(3, 9, server_tool_use={"web_search_requests": 2, "web_fetch_requests": 1}),
         usage(3, 9, web_searches=2)),
        (counts(3, 9, service_tier="standard"), usage(3, 9)),
        (counts(3, 9, service_tier="priority"), usage(3, 9, tier="priority")),
        (counts(3, 9, service_tier="batch"), usage(3, 9, tier="batch")),
        (counts(3, 9, service_tier=None), usage(3, 9)),
        # Numbers in other clothes.
        (counts(3.0, "1"), usage(3, 1)),
        # A number that makes no sense counts as not given.
        (counts(3, 1, cache_read_input_tokens=-900), usage(3, 1)),
        (counts(3, 1, cache_read_input_tokens=2**63), usage(3, 1)),
        (counts(3, 1, cache_creation_input_tokens=[]), usage(3, 1)),
        (counts(3, 1, cache_creation=5, server_tool_use=[], output_tokens_details="x"),
         usage(3, 1)),
        (counts(3, -1), usage(3, 0)),
        (counts(3, True), usage(3, 0)),
        ({"input_tokens": 3}, usage(3, 0)),
        (counts(-3, 1), None),
        (counts(None, 1, cache_read_input_tokens=900), None),
        (counts(10**9, 1, cache_read_input_tokens=10**9), None),
        ({"output_tokens": 3}, None),
        ({}, None),
        ([], None),
        ("much", None),
        (None, None),
    ],
)  # fmt: skip
def test_each_number_is_read_for_itself(reported: Any, read: Usage | None) -> None:
    """A number of no sense spoils none of the others, and never the reply (U8)."""
    assert read_usage(reported) == read


def message(reported: Any, text: str = "Hello") -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [{"type": "text", "text": text}] if text else [],
        "stop_reason": "end_turn",
        "usage": reported,
    }


def events(start: Any, *ends: Any, text: str = "Hello") -> list[dict[str, Any]]:
    deltas = [{"type": "text_delta", "text": text}] if text else []
    return [
        {"type": "message_start", "message": message(start, text="")},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        *({"type": "message_delta", "delta": {"stop_reason": None}, "usage": end} for end in ends),
        {"type": "message_stop"},
    ]


def streamed(*parts: dict[str, Any]) -> tuple[MessagesStream, list[Any]]:
    stream = MessagesStream("chat", include_usage=True, created=1)
    out = b"".join(stream.feed(encode_event((part["type"], part))) for part in parts)
    data = [event.removeprefix(b"data: ") for event in out.split(b"\n\n")[:-1]]
    return stream, [orjson.loads(each) for each in data if each != b"[DONE]"]


CLASSES = (
    "input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "output_reasoning",
    "web_searches",
)  # fmt: skip
SPLITS = st.fixed_dictionaries(
    {name: st.just(0) | st.integers(1, 5000) for name in CLASSES} | {"output": st.integers(1, 5000)}
)


@pytest.mark.parametrize("number", NUMBERS)
@given(split=SPLITS, tier=st.sampled_from(["standard", "priority"]))
def test_a_split_is_read_back_and_reaches_the_client(
    number: str, split: dict[str, int], tier: str
) -> None:
    """Buffered or streamed in two reports, record and client have the classes that were used."""
    reported = respelled(anthropic_usage(split) | {"service_tier": tier}, NUMBERS[number])
    true = {name: amount for name, amount in split.items() if amount}
    read = read_reply("chat", orjson.dumps(message(reported)), created=1)
    assert read.usage is not None
    assert read.usage.classes() == true
    assert read.usage.service_tier == (None if tier == "standard" else tier)

    at_start = {**reported, "output_tokens": 1, "server_tool_use": None}
    kept = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    at_end = {name: reported[name] for name in (*kept, "output_tokens", "output_tokens_details")}
    at_end["server_tool_use"] = reported["server_tool_use"]
    stream, chunks = streamed(*events(at_start, at_end))
    assert stream.usage == read.usage

    reply = orjson.loads(read.body)
    assert chunks[-1]["usage"] == reply["usage"]
    assert ChatCompletion.model_validate(reply).service_tier == read.usage.service_tier
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    shown = CompletionUsage.model_validate(reply["usage"])
    assert (shown.prompt_tokens, shown.completion_tokens) == (all_input(split), all_output(split))
    seen = read_openai_usage(reply["usage"])
    assert seen is not None
    assert seen.classes() == true


@pytest.mark.parametrize("reported", [None, {}, [], "x", {"output_tokens": 3}, counts(-1, 3)])
def test_a_missing_usage_is_no_zero(reported: Any) -> None:
    """U8: what is not reported is neither a call that used nothing nor a failed one."""
    read = read_reply("chat", orjson.dumps(message(reported)), created=1)
    assert (read.usage, read.output_bytes, read.usage_at_start) == (None, 5, None)
    assert "usage" not in orjson.loads(read.body)


@pytest.mark.parametrize("reported", [{"input_tokens": 3}, counts(3, -1), counts(3, 0)])
def test_an_input_that_is_known_is_kept_where_the_output_is_not(reported: Any) -> None:
    """U8: an output of 0 for a text that was sent is no report of it."""
    read = read_reply("chat", orjson.dumps(message(reported)), created=1)
    assert (read.usage, read.output_bytes, read.usage_at_start) == (None, 5, usage(3, 0))
    assert "usage" not in orjson.loads(read.body)


def test_a_reply_without_text_may_have_no_output() -> None:
    """A refusal before the first token."""
    read = read_reply("chat", orjson.dumps(message(counts(3, 0), text="")), created=1)
    assert (read.usage, read.output_bytes) == (usage(3, 0), 0)


START = counts(25, 1, cache_read_input_tokens=5)


@pytest.mark.parametrize(
    ("reports", "read"),
    [
        ([START, {"output_tokens": 15}], usage(30, 15, 5)),
        ([START, counts(0, 15, cache_read_input_tokens=0)], usage(30, 15, 5)),
        ([START, counts(None, 15)], usage(30, 15, 5)),
        ([START, counts(-2, 15)], usage(30, 15, 5)),
        ([START, counts(26, 15)], usage(31, 15, 5)),
        ([START, {"output_tokens": 9}, {"output_tokens": 15}], usage(30, 15, 5)),
        ([START, {"output_tokens": 15}, {"output_tokens": 0}], usage(30, 15, 5)),
        ([START, {"output_tokens": 15}, {}], usage(30, 15, 5)),
        ([counts(0, 0), counts(25, 15)], usage(25, 15)),
        ([None, counts(25, 15)], usage(25, 15)),
        ([START, {"output_tokens": 0}], None),
        ([START, {"output_tokens": -1}], None),
        ([START, "x"], None),
        ([START], None),
        ([None, {"output_tokens": 15}], None),
        ([counts(25, 1, cache_creation=written(3, 4)), {"output_tokens": 15}],
         usage(32, 15, cache_write_5m=3, cache_write_1h=4)),
        ([counts(25, 1, cache_creation=written(3, 4), cache_creation_input_tokens=7),
          {"output_tokens": 15, "cache_creation_input_tokens": 9}],
         usage(34, 15, cache_write_5m=5, cache_write_1h=4)),
        ([{**START, "service_tier": "priority"}, {"output_tokens": 15}],
         usage(30, 15, 5, tier="priority")),
    ],
)  # fmt: skip
def test_reports_of_a_stream_are_running_totals(reports: list[Any], read: Usage | None) -> None:
    """The last good figure of each count is the truth; what is 0 or odd replaces none."""
    stream, chunks = streamed(*events(*reports))
    assert stream.complete
    assert stream.usage == read
    assert bool(chunks[-1]["usage"]) is (read is not None)


def test_a_stream_that_breaks_off_tells_its_input() -> None:
    """The class of each input token is known from the start, also without an end."""
    start = {**START, "cache_creation": written(3, 4), "service_tier": "priority"}
    stream, _ = streamed(*events(start)[:2])
    assert stream.usage is None
    assert stream.usage_at_start == usage(
        37, 1, 5, tier="priority", cache_write_5m=3, cache_write_1h=4
    )
