"""Golden streams in the OpenAI dialect: bytes pass, usage is read on the way (U7)."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.call import Usage
from router.providers.openai_api import CompletionStream, OpenAIProvider
from tests.unit.upstream.builders import new_call

USAGE = {"prompt_tokens": 5, "completion_tokens": 7}
DONE = b"data: [DONE]\n\n"


def event(fields: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"


def delta(text: str, **more: Any) -> bytes:
    return event({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}], **more})


def last(**more: Any) -> bytes:
    choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return event({"id": "c", "choices": [choice], **more})


BEGIN = event({"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant"}}]})
EMPTY = event({"id": "c", "choices": [], "usage": USAGE})

# name → the events, and which of them carry usage alone
GOLDEN: dict[str, tuple[list[bytes], set[int]]] = {
    "usage in a chunk of its own": ([BEGIN, delta("hello"), last(), EMPTY, DONE], {3}),
    "usage in the last chunk": ([BEGIN, delta("hello"), last(usage=USAGE), DONE], set()),
    "usage in every chunk": (
        [
            BEGIN,
            delta("he", usage={"prompt_tokens": 5, "completion_tokens": 1}),
            delta("llo", usage={"prompt_tokens": 5, "completion_tokens": 2}),
            last(usage=USAGE),
            EMPTY,
            DONE,
        ],
        {4},
    ),
    "null usage until the last": (
        [delta("hello", usage=None), last(usage=None), EMPTY, DONE],
        {2},
    ),
    "carriage returns and comments": (
        [
            b": ping\r\n\r\n",
            BEGIN.replace(b"\n", b"\r\n"),
            b"event: completion\r\nid: 7\r\n" + delta("hello").replace(b"\n", b"\r\n"),
            b": ping\r\n\r\n",
            last().replace(b"\n", b"\r\n"),
            EMPTY.replace(b"\n", b"\r\n"),
            DONE.replace(b"\n", b"\r\n"),
        ],
        {5},
    ),
    "lone carriage returns": (
        [part.replace(b"\n", b"\r") for part in (BEGIN, delta("hello"), last(), EMPTY, DONE)],
        {3},
    ),
    "no blank after the colon": (
        [part.replace(b"data: ", b"data:") for part in (delta("hello"), last(), EMPTY, DONE)],
        {2},
    ),
    "data on two lines": (
        [delta("hello"), last(), EMPTY.replace(b',"usage"', b'\ndata: ,"usage"'), DONE],
        {2},
    ),
    "chunks of other kinds": (
        [event({"choices": [], "prompt_filter_results": []}), delta("hello"), last(), EMPTY, DONE],
        {3},
    ),
    "done without a blank line": ([delta("hello"), last(), EMPTY, b"data: [DONE]"], {2}),
    "no done": ([delta("hello"), last(), EMPTY], {2}),
}
EACH = pytest.mark.parametrize("name", GOLDEN)


def tap_of(*chunks: bytes, strip_usage: bool = True) -> tuple[CompletionStream, bytes]:
    translator = CompletionStream(strip_usage=strip_usage)
    forwarded = b"".join([*(translator.feed(chunk) for chunk in chunks), translator.finish()])
    return translator, forwarded


@EACH
def test_usage_is_what_a_buffered_reply_would_report(name: str) -> None:
    """The last report counts, wherever it stands (U7)."""
    translator, _ = tap_of(*GOLDEN[name][0])
    assert translator.usage == Usage(5, 7)
    assert (translator.complete, translator.error, translator.output_bytes) == (True, None, 5)


@EACH
def test_a_client_that_asked_for_usage_gets_every_byte(name: str) -> None:
    """Nothing is left out, nothing is rewritten."""
    events = GOLDEN[name][0]
    assert tap_of(*events, strip_usage=False)[1] == b"".join(events)


@EACH
def test_only_the_injected_chunk_is_left_out(name: str) -> None:
    """A client that did not ask gets all bytes but those of the chunk with nothing but usage."""
    events, alone = GOLDEN[name]
    expected = b"".join(part for index, part in enumerate(events) if index not in alone)
    assert tap_of(*events)[1] == expected


@EACH
@pytest.mark.parametrize("strip_usage", [True, False])
def test_reads_may_end_anywhere(name: str, strip_usage: bool) -> None:
    """Split at every byte, a stream reports the same and forwards the same events."""
    stream = b"".join(GOLDEN[name][0])
    whole, forwarded = tap_of(stream, strip_usage=strip_usage)
    for at in range(len(stream)):
        translator, split = tap_of(stream[:at], stream[at:], strip_usage=strip_usage)
        assert (translator.usage, translator.complete, translator.output_bytes) == (
            whole.usage,
            True,
            5,
        )
        # A CR that ends a read ends its event too; its LF then stands before the next one.
        assert split.replace(b"\n", b"") == forwarded.replace(b"\n", b"")
        if b"\r" not in stream or not strip_usage:
            assert split == forwarded


@EACH
def test_each_event_is_forwarded_as_soon_as_it_is_whole(name: str) -> None:
    """The translator delays nothing by more than the event that is still arriving (S1)."""
    events, alone = GOLDEN[name]
    translator = CompletionStream(strip_usage=True)
    for index, part in enumerate(events):
        if part.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
            assert translator.feed(part) == (b"" if index in alone else part)


def test_a_stream_without_usage_has_none() -> None:
    """The bytes of its text are counted instead, for an estimate (U8)."""
    translator, _ = tap_of(BEGIN, delta("hello "), delta("wörld ☃"), last(), DONE)
    assert (translator.usage, translator.output_bytes, translator.complete) == (None, 16, True)


@pytest.mark.parametrize("operation", ["chat", "completions"])
def test_the_tap_knows_whether_the_client_asked(operation: Any) -> None:
    """What was injected for our own sake is stripped, what the client asked for is not."""
    for asked in (True, False):
        call = new_call(operation, stream=True, include_usage=asked)
        assert (OpenAIProvider().open_stream(call).feed(EMPTY) == EMPTY) is asked


def test_completions_are_counted_too() -> None:
    """Their chunks have text where those of chat have a delta."""
    chunk = event({"choices": [{"index": 0, "text": "hello", "finish_reason": "length"}]})
    translator, _ = tap_of(chunk)
    assert (translator.output_bytes, translator.complete) == (5, True)


def test_all_that_is_generated_is_counted() -> None:
    """Reasoning, refusals and the arguments of tools, over all choices."""
    parts = {
        "reasoning_content": "abc",
        "refusal": "de",
        "tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}, {"index": 1}, None],
    }
    choices = [{"index": 0, "delta": parts}, {"index": 1, "delta": {"content": "f"}}]
    assert tap_of(event({"choices": choices}))[0].output_bytes == 3 + 2 + 4 + 1


@pytest.mark.parametrize(
    ("delta", "chars"),
    [
        ({"reasoning": "abc"}, 3),
        ({"reasoning_content": "abc"}, 3),
        ({"reasoning": "abc", "reasoning_content": "abc"}, 3),
        ({"reasoning": "abc", "reasoning_details": [{"text": "abc"}], "content": ""}, 3),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "abc"}]}, 3),
        ({"role": "assistant", "content": "abc"}, 3),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "abc"}]}]}, 3),
        ({"function_call": {"arguments": "abc"}}, 3),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "abc"}}]}, 3),
        ({"audio": {"transcript": "abc"}}, 3),
        ({"audio": {"data": "UklGRg=="}}, 0),
        ({"refusal": "abc"}, 3),
        ({"role": "assistant"}, 0),
        ({}, 0),
    ],
)
def test_each_kind_of_delta_counts(delta: dict[str, Any], chars: int) -> None:
    """A stream of reasoning that is abandoned used to cost one token."""
    translator, _ = tap_of(event({"choices": [{"index": 0, "delta": delta}]}) * 2)
    assert (translator.usage, translator.output_bytes) == (None, 2 * chars)


@pytest.mark.parametrize("error", [{"message": "boom", "code": 500}, "boom", ["boom"]])
def test_an_error_event_is_noticed_and_forwarded(error: Any) -> None:
    """The client sees what the backend says; the stream did not complete."""
    stream = [delta("he"), event({"error": error})]
    translator, forwarded = tap_of(*stream)
    assert forwarded == b"".join(stream)
    assert translator.error is not None
    assert not translator.complete


@pytest.mark.parametrize("nothing", [None, {}, "", False])
def test_an_empty_error_is_none(nothing: Any) -> None:
    """Some backends send the field in every chunk."""
    translator, _ = tap_of(delta("x", error=nothing), last(), DONE)
    assert (translator.error, translator.complete) == (None, True)


@pytest.mark.parametrize(
    "events",
    [[], [BEGIN], [BEGIN, delta("hello")], [BEGIN, delta("hello"), EMPTY], [b"data: [DON"]],
    ids=["nothing", "begun", "broken off", "usage but no end", "half an end"],
)
def test_a_stream_that_broke_off_is_not_complete(events: list[bytes]) -> None:
    """Only ``[DONE]`` or a reason to finish ends a stream."""
    assert not tap_of(*events)[0].complete


@pytest.mark.parametrize(
    "odd",
    [
        b"data: not JSON\n\n",
        b"data: [1, 2]\n\n",
        b"data: null\n\n",
        b"data:\n\n",
        b"data: \xff\xfe\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"choices": [5, null, []]}\n\n',
        b'data: {"choices": [{"delta": 5}]}\n\n',
        b'data: {"choices": [{"delta": {"tool_calls": 5}}]}\n\n',
        b'data: {"choices": [{"delta": {"tool_calls": {"a": 1}}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": {"a": 1}}}]}\n\n',
        b'data: {"usage": "much", "choices": []}\n\n',
        b"data: " + b"[" * 5000 + b"\n\n",
        b"retry: 5\n\n",
        b"\x00\x00\n\n",
    ],
)
def test_odd_events_pass_untouched(odd: bytes) -> None:
    """What cannot be read is the client's to read; some of these used to end the stream."""
    translator, forwarded = tap_of(delta("a"), odd, last(), EMPTY, DONE)
    assert forwarded == delta("a") + odd + last() + DONE
    assert (translator.usage, translator.complete) == (Usage(5, 7), True)


def test_an_oversize_event_passes() -> None:
    """It is too large to be read, and is forwarded in pieces all the same."""
    huge = delta("x" * 3_000_000)
    chunks = [huge[n : n + 32_768] for n in range(0, len(huge), 32_768)]
    translator, forwarded = tap_of(BEGIN, *chunks, last(), EMPTY, DONE)
    assert forwarded == BEGIN + huge + last() + DONE
    assert (translator.usage, translator.complete) == (Usage(5, 7), True)


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_no_stream_brings_the_tap_down(chunks: list[bytes]) -> None:
    """Any bytes at all are forwarded as they are."""
    translator, forwarded = tap_of(*chunks)
    assert forwarded == b"".join(chunks)
    assert translator.usage is None
