"""Whole replies and streams of backends that report what a call used, in every spelling."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.backend.usage_spellings import SPELLINGS, Split, anthropic_usage, put, respelled

NUMBERS: dict[str, Callable[[int], Any]] = {"whole": int, "float": float, "text": str}
CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


@dataclass(frozen=True)
class Report:
    """A backend's way to report one split."""

    name: str
    model: str
    split: Split
    whole: dict[str, Any]
    """The buffered reply."""
    events: tuple[bytes, ...]
    """The stream."""
    last: dict[str, Any] | None = None
    """The chunk of the stream that reports the usage, where the client may see it as it is."""
    tier: str = "standard"


def reports(amounts: Split) -> Iterator[Report]:
    """Every spelling with every kind of number; of the amounts each tells those that it can."""
    yield from _openai_reports(amounts)
    yield from _anthropic_reports(amounts)


def sse(data: Mapping[str, Any], kind: str = "") -> bytes:
    name = f"event: {kind}\n" if kind else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


def _openai_reports(amounts: Split) -> Iterator[Report]:
    message = {"role": "assistant", "content": "hi"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    text = {**CHUNK, "choices": [{"index": 0, "delta": message, "finish_reason": None}]}
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    for spelling in SPELLINGS:
        split = {name: amounts[name] for name in amounts if name in spelling.classes}
        for kind, spell in NUMBERS.items():
            fields = respelled(spelling.fields(split), spell)
            alone = "choice" not in fields
            last = {**CHUNK, "choices": []} if alone else {**CHUNK, "choices": [end]}
            last = put(last, fields)
            chunks = [text, *([{**CHUNK, "choices": [end]}] if alone else []), last]
            yield Report(
                f"openai, {spelling.name}, {kind}",
                "plain",
                split,
                put({**whole, "choices": [choice]}, fields),
                (*[sse(each) for each in chunks], b"data: [DONE]\n\n"),
                last,
            )


def _anthropic_reports(amounts: Split) -> Iterator[Report]:
    every = {"input", "cache_read", "cache_write_5m", "cache_write_1h", "output",
             "output_reasoning", "web_searches"}  # fmt: skip
    shapes: dict[str, tuple[set[str], str, bool]] = {
        "plain": ({"input", "output"}, "standard", False),
        "cached": ({"input", "output", "cache_read"}, "standard", False),
        "written": ({"input", "output", "cache_write_5m"}, "standard", False),
        "written for an hour": ({"input", "output", "cache_write_1h"}, "standard", False),
        "everything": (every, "standard", False),
        "everything at the end": (every, "standard", True),
        "priority": (every, "priority", False),
    }
    for shape, (classes, tier, late) in shapes.items():
        split = {name: amounts[name] for name in amounts if name in classes}
        for kind, spell in NUMBERS.items():
            usage = respelled({**anthropic_usage(split), "service_tier": tier}, spell)
            yield Report(
                f"anthropic, {shape}, {kind}",
                "claude",
                split,
                _message(usage, "hi"),
                tuple(_events(usage, late=late)),
                tier=tier,
            )


def _message(usage: dict[str, Any], text: str) -> dict[str, Any]:
    return {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": text}] if text else [],
        "stop_reason": "end_turn",
        "usage": usage,
    }


def _events(usage: dict[str, Any], *, late: bool) -> Iterator[bytes]:
    """The input is reported at the start and the output at the end, or everything at the end."""
    at_end = {name: usage[name] for name in ("output_tokens", "output_tokens_details")}
    at_end["server_tool_use"] = usage["server_tool_use"]
    zeros = {"input_tokens": 0, "output_tokens": 0}
    start = zeros if late else {**usage, "output_tokens": 1, "output_tokens_details": None}
    yield sse({"type": "message_start", "message": _message(start, "")}, "message_start")
    block = {"type": "text", "text": ""}
    yield sse({"type": "content_block_start", "index": 0, "content_block": block})
    delta = {"type": "text_delta", "text": "hi"}
    yield sse({"type": "content_block_delta", "index": 0, "delta": delta})
    yield sse({"type": "content_block_stop", "index": 0})
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    yield sse({"type": "message_delta", "delta": end, "usage": usage if late else at_end})
    yield sse({"type": "message_stop"})
