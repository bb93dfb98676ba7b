"""What a stream of the Messages API becomes for an OpenAI client."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any, Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.call import Usage
from router.providers.anthropic.reply import read_reply
from router.providers.anthropic.request import write_request
from router.providers.anthropic.stream import MessagesStream
from router.providers.sse import MAX_EVENT_BYTES
from tests.fakes.backend.anthropic_messages import compose, encode_event, stream_events
from tests.fakes.backend.anthropic_requests import check_request

START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 25, "cache_read_input_tokens": 5, "output_tokens": 1},
    },
}
END = {
    "type": "message_delta",
    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
    "usage": {"output_tokens": 15},
}
STOP = {"type": "message_stop"}


def opened(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": fields}


def closed(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


TEXT = [
    opened(0, type="text", text=""),
    delta(0, type="text_delta", text="Hel"),
    delta(0, type="text_delta", text="lo"),
    closed(0),
]
CALL = [
    opened(1, type="tool_use", id="toolu_1", name="f", input={}),
    delta(1, type="input_json_delta", partial_json=""),
    delta(1, type="input_json_delta", partial_json='{"a":'),
    delta(1, type="input_json_delta", partial_json="1}"),
    closed(1),
]


def wire(*events: dict[str, Any]) -> bytes:
    return b"".join(encode_event((event["type"], event)) for event in events)


def stream(
    operation: Literal["chat", "completions"] = "chat", *, include_usage: bool = False
) -> MessagesStream:
    return MessagesStream(operation, include_usage=include_usage, created=1700000000)


def chunks(out: bytes) -> list[Any]:
    """The parsed chunks of an OpenAI stream; its end is the string DONE."""
    events = out.split(b"\n\n")
    assert events.pop() == b""
    data = [event.removeprefix(b"data: ") for event in events]
    return ["DONE" if chunk == b"[DONE]" else orjson.loads(chunk) for chunk in data]


def feed_all(translation: MessagesStream, pieces: list[bytes]) -> bytes:
    return b"".join(translation.feed(piece) for piece in pieces)


def deltas(out: bytes) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in chunks(out) if chunk != "DONE"]


def test_a_text_is_streamed_as_chunks() -> None:
    """The role comes first, then the text, then the reason, then the end."""
    translation = stream()
    out = chunks(translation.feed(wire(START, *TEXT, END, STOP)))

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {
            "id": "msg_1",
            "object": "chat.completion.chunk",
            "created": 1700000000,
            "model": "claude-x",
            "choices": [
                {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            ],
        }

    assert out == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo"}),
        chunk({}, "stop"),
        "DONE",
    ]
    assert translation.complete
    assert translation.usage == Usage(30, 15, 5)
    assert translation.output_bytes == 5
    assert translation.finish() == b""


def test_each_delta_goes_out_at_once() -> None:
    """S1: what arrived is forwarded, nothing waits for what comes later."""
    translation = stream()
    translation.feed(wire(START, TEXT[0]))
    assert deltas(translation.feed(wire(TEXT[1]))) == [{"content": "Hel"}]


def test_usage_is_the_last_chunk_where_it_was_asked_for() -> None:
    """Every chunk carries a null usage, and one without choices carries the figures."""
    out = chunks(stream(include_usage=True).feed(wire(START, *TEXT, END, STOP)))
    assert [chunk["usage"] for chunk in out[:-2]] == [None] * 4
    assert out[-2]["choices"] == []
    assert out[-2]["usage"] == {
        "prompt_tokens": 30,
        "completion_tokens": 15,
        "total_tokens": 45,
        "prompt_tokens_details": {"cached_tokens": 5},
    }
    assert out[-1] == "DONE"


def test_a_completion_is_streamed_as_texts() -> None:
    """Legacy chunks have a text instead of a delta, and no opening chunk."""
    blocks = [opened(0, type="thinking", thinking="Hm"), closed(0), *TEXT]
    out = chunks(stream("completions").feed(wire(START, *blocks, END, STOP)))
    assert {chunk["object"] for chunk in out[:-1]} == {"text_completion"}
    assert [chunk["choices"][0] for chunk in out[:-1]] == [
        {"index": 0, "text": "Hel", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "lo", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"},
    ]


def test_tool_use_is_streamed_as_tool_calls() -> None:
    """Calls are counted from 0 whatever blocks stand before them; arguments come in pieces."""
    second = [opened(2, type="tool_use", id="toolu_2", name="g", input={}), closed(2)]
    end = END | {"delta": {"stop_reason": "tool_use"}}
    translation = stream()
    out = translation.feed(wire(START, *TEXT, *CALL, *second, end, STOP))
    calls = [delta["tool_calls"][0] for delta in deltas(out) if "tool_calls" in delta]
    assert calls == [
        {
            "index": 0,
            "id": "toolu_1",
            "type": "function",
            "function": {"name": "f", "arguments": ""},
        },
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 0, "function": {"arguments": "1}"}},
        {
            "index": 1,
            "id": "toolu_2",
            "type": "function",
            "function": {"name": "g", "arguments": ""},
        },
        {"index": 1, "function": {"arguments": "{}"}},
    ]
    assert chunks(out)[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert translation.output_bytes == len('Hello{"a":1}{}')


def test_arguments_that_come_whole_are_sent_once() -> None:
    """A compatible server may put the input into the start and repeat it in deltas."""
    blocks = [
        opened(0, type="tool_use", id="t", name="f", input={"a": 1}),
        delta(0, type="input_json_delta", partial_json='{"a":1}'),
        closed(0),
    ]
    out = deltas(stream().feed(wire(START, *blocks)))
    assert [d["tool_calls"][0]["function"]["arguments"] for d in out[1:]] == ["", '{"a":1}']


def test_thinking_is_streamed_as_reasoning() -> None:
    """Thinking has its own field; signatures, server tools and their inputs stay out."""
    blocks = [
        opened(0, type="thinking", thinking="", signature=""),
        delta(0, type="thinking_delta", thinking="Hm."),
        delta(0, type="signature_delta", signature="x"),
        closed(0),
        opened(1, type="server_tool_use", id="s", name="web_search", input={}),
        delta(1, type="input_json_delta", partial_json='{"q":1}'),
        closed(1),
    ]
    translation = stream()
    assert deltas(translation.feed(wire(START, *blocks)))[1:] == [{"reasoning_content": "Hm."}]
    assert translation.output_bytes == len('Hm.{"q":1}')  # both are billed as output


def test_pings_comments_and_unknown_events_are_silent() -> None:
    """The API may add events; none of them disturbs the client."""
    noise = b': comment\n\nevent: ping\ndata: {"type": "ping"}\n\nid: 7\nretry: 5\n\n'
    translation = stream()
    assert translation.feed(noise + wire({"type": "something_new", "x": 1})) == b""


def test_later_figures_replace_earlier_ones() -> None:
    """Counts are running totals: the last report is the truth, nulls change nothing."""
    first = END | {"usage": {"output_tokens": 9, "input_tokens": 26}, "delta": {}}
    last = END | {"usage": {"output_tokens": 15, "input_tokens": None}}
    translation = stream()
    translation.feed(wire(START, first, last, STOP))
    assert translation.usage == Usage(31, 15, 5)


def test_an_interrupted_stream_has_no_final_usage() -> None:
    """U8: the first report's output count is a placeholder, so only its input may be used."""
    translation = stream()
    translation.feed(wire(START, *TEXT))
    assert translation.finish() == b""
    assert (translation.complete, translation.error, translation.usage) == (False, None, None)
    assert translation.usage_at_start == Usage(30, 1, 5)
    assert translation.output_bytes == 5


def test_a_stream_without_figures_reports_none() -> None:
    """U8: no usage from the backend is no usage, and no usage chunk."""
    start = START | {"message": {"id": "msg_1", "model": "claude-x"}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    translation = stream(include_usage=True)
    out = chunks(translation.feed(wire(start, end, STOP)))
    assert translation.usage is None
    assert out[-1] == "DONE"
    assert all(chunk["choices"] for chunk in out[:-1])


def test_a_stream_without_a_stop_reason_still_finishes() -> None:
    """Clients wait for a finish_reason; a complete stream always has exactly one."""
    out = chunks(stream().feed(wire(START, *TEXT, STOP)))
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in out[:-1]]
    assert reasons == [None, None, None, "stop"]


def test_an_error_event_ends_the_translation() -> None:
    """F6: the caller learns why, the client so far got only what came before."""
    failure = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    translation = stream()
    out = translation.feed(wire(START, *TEXT, failure, END, STOP))
    assert deltas(out)[1:] == [{"content": "Hel"}, {"content": "lo"}]
    assert (translation.error, translation.complete) == ("Overloaded", False)
    assert translation.feed(wire(END, STOP)) == translation.finish() == b""


def test_a_stream_cut_inside_an_event_is_incomplete() -> None:
    """Half an event is neither forwarded nor a fault of its own."""
    translation = stream()
    translation.feed(wire(START, *TEXT)[:-20])
    assert translation.finish() == b""
    assert not translation.complete


def test_an_end_without_its_blank_line_counts() -> None:
    """A server that closes right after the last data has sent it all."""
    translation = stream()
    translation.feed(wire(START, *TEXT, END, STOP).rstrip(b"\n"))
    assert not translation.complete
    assert chunks(translation.finish())[-1] == "DONE"
    assert translation.complete


def test_bytes_after_the_end_are_ignored() -> None:
    """Nothing follows [DONE]."""
    translation = stream()
    out = translation.feed(wire(START, *TEXT, END, STOP, *TEXT))
    assert chunks(out)[-1] == "DONE"
    assert translation.feed(wire(*TEXT)) == b""


@pytest.mark.parametrize(
    "event",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: \xff\n\n",
        wire({"type": "message_start"}),
        wire({"type": "message_start", "message": {"id": 1, "model": "x"}}),
        wire({"type": "content_block_delta", "index": 0}),
        wire(delta(0, type="text_delta")),
        wire({"type": "content_block_start", "index": "x", "content_block": {"type": "tool_use"}}),
        wire(opened(0, type="tool_use", id="t", name=None)),
        wire(opened(0, type="tool_use", id="t", name="f", input="x")),
        wire({"type": "error", "error": "x"}),
    ],
)
def test_a_malformed_event_raises_value_error(event: bytes) -> None:
    """Nonsense from a backend is noticed, whatever is wrong with it."""
    translation = stream()
    translation.feed(wire(START))
    with pytest.raises(ValueError, match=r".+"):
        translation.feed(event)


def test_content_before_the_start_raises_value_error() -> None:
    """A chunk without id and model cannot be written."""
    with pytest.raises(ValueError, match="message_start"):
        stream().feed(wire(*TEXT))


@pytest.mark.parametrize("piece", [b"x", b": comment ", b"data: x\n"])
def test_an_oversized_event_raises_value_error(piece: bytes) -> None:
    """An event that never ends cannot fill the memory."""
    translation = stream()
    with pytest.raises(ValueError, match="too large"):
        feed_all(translation, [piece * 10_000] * (MAX_EVENT_BYTES // 10_000 // len(piece) + 1))


def test_an_event_just_below_the_limit_passes() -> None:
    """The limit is for what is absurd, not for what is long."""
    text = "x" * (MAX_EVENT_BYTES - 200)
    out = stream().feed(wire(START, delta(0, type="text_delta", text=text)))
    assert deltas(out)[1] == {"content": text}


def test_calls_that_are_never_closed_are_bounded() -> None:
    """A backend that opens blocks without end cannot fill the memory."""
    translation = stream()
    translation.feed(wire(START))
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    with pytest.raises(ValueError, match="too many"):
        feed_all(translation, [wire(opened(i, **call)) for i in range(300)])


# --- properties ------------------------------------------------------------------------------

WHOLE = wire(
    START,
    {"type": "ping"},
    opened(0, type="thinking", thinking=""),
    delta(0, type="thinking_delta", thinking="Hm… 🤔"),
    closed(0),
    *CALL,
    opened(2, type="text", text=""),
    delta(2, type="text_delta", text="Grüße,\n\u2028 Welt\r\n"),
    closed(2),
    END,
    STOP,
)
COMMENTED = WHOLE.replace(b"event: ping", b": keep-alive\nevent: ping")


@given(
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.lists(st.integers(0, 3 * len(COMMENTED)), max_size=40),
)
def test_any_split_of_the_bytes_gives_the_same_stream(line_end: bytes, cuts: list[int]) -> None:
    """U7: where the network cuts the bytes and how lines end changes nothing for the client."""
    whole = stream(include_usage=True)
    expected = whole.feed(WHOLE) + whole.finish()
    received = COMMENTED.replace(b"\n", line_end)
    bounds = [0, *sorted(cut % len(received) for cut in cuts), len(received)]
    split = stream(include_usage=True)
    out = feed_all(split, [received[start:end] for start, end in pairwise(bounds)])
    assert out + split.finish() == expected
    assert (split.usage, split.output_bytes) == (whole.usage, whole.output_bytes)
    assert split.complete


def test_one_byte_at_a_time_gives_the_same_stream() -> None:
    """U7: the smallest pieces there are."""
    split = stream()
    out = feed_all(split, [bytes([byte]) for byte in COMMENTED])
    assert out == stream().feed(WHOLE)


PIECES = [wire(event) for event in (START, *TEXT, *CALL, END)]
SCRAPS = [b"data:", b"\n", b"{}", b"\r", b"\xff"]


@given(st.lists(st.sampled_from(PIECES + SCRAPS)), st.binary(max_size=20))
def test_no_bytes_break_the_translation(pieces: list[bytes], tail: bytes) -> None:
    """Whatever a backend sends is translated or a ValueError."""
    translation = stream(include_usage=True)
    out: list[bytes] = []
    with suppress(ValueError):
        out += (translation.feed(piece) for piece in [*pieces, tail])
        out.append(translation.finish())
    assert all(chunk == "DONE" or "choices" in chunk for chunk in chunks(b"".join(out)))


TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
    },
}
EMPTY_TOOL = {"type": "function", "function": {"name": "g"}}
REQUESTS = st.fixed_dictionaries(
    {
        "messages": st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=3).map(
            lambda texts: [
                {"role": "system", "content": "Be brief"},
                *({"role": "user", "content": "use tools " + text} for text in texts),
            ]
        )
    },
    optional={
        "max_tokens": st.integers(1, 30),
        "stop": st.sampled_from(["a", "said", ["o", "e"]]),
        "tools": st.sampled_from([[TOOL], [TOOL, EMPTY_TOOL], [EMPTY_TOOL]]),
        "parallel_tool_calls": st.booleans(),
        "thinking": st.just({"type": "adaptive"}),
    },
)


@given(st.sampled_from(["chat", "completions"]), REQUESTS)
def test_streamed_and_buffered_replies_agree(
    operation: Literal["chat", "completions"], fields: dict[str, Any]
) -> None:
    """U7: the same request streamed and buffered gives one answer and one usage."""
    if operation == "completions":
        fields = fields | {"prompt": fields["messages"][-1]["content"]}
    request = orjson.loads(
        write_request(operation, fields, model="claude-x", default_max_tokens=64)
    )
    check_request(request)
    message = compose(request)
    read = read_reply(operation, orjson.dumps(message), created=1700000000)
    translation = stream(operation, include_usage=True)
    sent = b"".join(encode_event(event) for event in stream_events(message))
    *parts, last, done = chunks(translation.feed(sent))
    assert (translation.usage, done) == (read.usage, "DONE")
    whole = orjson.loads(read.body)
    assert last["usage"] == whole["usage"]
    assert gathered(operation, parts) == whole["choices"][0]


def gathered(operation: str, parts: list[Any]) -> dict[str, Any]:
    """The choice that an SDK puts together from the chunks."""
    choices = [part["choices"][0] for part in parts]
    end = {"index": 0, "logprobs": None, "finish_reason": choices[-1]["finish_reason"]}
    if operation == "completions":
        return end | {"text": "".join(choice["text"] for choice in choices)}
    seen = [choice["delta"] for choice in choices]
    calls: list[Any] = []
    for call in (delta["tool_calls"][0] for delta in seen if "tool_calls" in delta):
        if "id" in call:
            calls.append({k: v for k, v in call.items() if k != "index"})
        else:
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    text = "".join(delta.get("content", "") for delta in seen)
    thinking = "".join(delta.get("reasoning_content", "") for delta in seen)
    message = {
        "role": "assistant",
        "content": None if calls and not text else text,
        "refusal": None,
    }
    message |= {"reasoning_content": thinking} if thinking else {}
    message |= {"tool_calls": calls} if calls else {}
    return end | {"message": message}
