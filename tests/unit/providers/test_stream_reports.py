"""Which of a stream's reports of usage counts, and for how much of it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from router.call import Usage
from router.providers.openai_api import CompletionStream

CHUNK = {"index": 0, "delta": {}, "finish_reason": "stop"}


def usage(tokens_input: int, tokens_output: int) -> Usage:
    return Usage(tokens_input, tokens_output, special={})


def spelled(tokens_input: int, tokens_output: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": tokens_input, "completion_tokens": tokens_output, **more}


TEXT = {"choices": [{"index": 0, "delta": {"content": "hello"}}]}
LAST = {"choices": [CHUNK]}
ZEROS = spelled(0, 0, total_tokens=0)
BEFORE = {**TEXT, "usage": spelled(5, 2)}


@pytest.mark.parametrize(
    ("chunks", "read", "at_start"),
    [
        # The last good report wins over zeros after it.
        ([BEFORE, {**LAST, "usage": ZEROS}], usage(5, 2), usage(5, 2)),
        ([BEFORE, {**LAST, "usage": spelled(5, 0)}], usage(5, 2), usage(5, 2)),
        ([BEFORE, {**LAST, "usage": spelled(0, 9)}], usage(5, 9), usage(5, 9)),
        ([BEFORE, {**LAST, "usage": spelled(-5, 9)}], usage(5, 2), usage(5, 2)),
        # Zeros before the text, the truth after it.
        ([{**TEXT, "usage": ZEROS}, {**LAST, "usage": spelled(5, 7)}], usage(5, 7), usage(5, 7)),
        # Zeros alone are no report of a text that was sent; the input may be known all the same.
        ([TEXT, {**LAST, "usage": ZEROS}], None, None),
        ([TEXT, {**LAST, "usage": spelled(5, 0)}], None, usage(5, 0)),
        ([TEXT, {**LAST, "usage": spelled(5, -7)}], None, usage(5, 0)),
        # No text, and no output.
        ([{**LAST, "usage": spelled(5, 0)}], usage(5, 0), usage(5, 0)),
    ],
)  # fmt: skip
def test_the_last_good_report_of_a_stream_counts(
    chunks: list[dict[str, Any]], read: Usage | None, at_start: Usage | None
) -> None:
    """Some backends end a stream with zeros, which used to make it free."""
    stream = CompletionStream(strip_usage=True)
    for chunk in chunks:
        stream.feed(b"data: " + orjson.dumps(chunk) + b"\n\n")
    stream.finish()
    assert (stream.usage, stream.usage_at_start) == (read, at_start)


@pytest.mark.parametrize(
    ("chunks", "read", "at_start"),
    [
        ([BEFORE], usage(5, 2), usage(5, 2)),
        ([BEFORE, TEXT], None, usage(5, 2)),
        ([{**TEXT, "usage": ZEROS}], None, None),
        ([{"choices": [], "usage": spelled(5, 0)}, TEXT], None, usage(5, 0)),
        ([TEXT, {"choices": [], "usage": spelled(5, 2)}], usage(5, 2), usage(5, 2)),
        ([TEXT], None, None),
    ],
)
def test_a_report_counts_what_came_before_it(
    chunks: list[dict[str, Any]], read: Usage | None, at_start: Usage | None
) -> None:
    """Of a stream that breaks off after more text, it tells the input alone."""
    stream = CompletionStream(strip_usage=True)
    for chunk in chunks:
        stream.feed(b"data: " + orjson.dumps(chunk) + b"\n\n")
    assert (stream.usage, stream.usage_at_start) == (read, at_start)


@pytest.mark.parametrize("reported", [ZEROS, spelled(-1, 7), {}, spelled(5, 7)])
def test_a_chunk_of_usage_alone_is_left_out_whatever_it_says(reported: dict[str, Any]) -> None:
    """The client has not asked for it, be it readable or not."""
    event = b"data: " + orjson.dumps({"choices": [], "usage": reported}) + b"\n\n"
    assert CompletionStream(strip_usage=True).feed(event) == b""
    assert CompletionStream(strip_usage=False).feed(event) == event
