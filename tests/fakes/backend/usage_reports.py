"""Whole replies and streams of backends that report what a call used, in every spelling."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.backend.usage_spellings import (
    SPELLINGS,
    Json,
    Spelling,
    Split,
    anthropic_usage,
    put,
    respelled,
)

NUMBERS: dict[str, Callable[[int], Any]] = {"whole": int, "float": float, "text": str}
CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
SAID = "y" * 8
"""What every answer says."""

Write = Callable[[Split], Json]
"""Split → the fields that report it."""
Vary = Callable[[Write, Split], Json]
"""How the fields are written: as they should be, or not."""


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
    stages: tuple[int, int, int]
    """How many events of it there are when it has begun, when it has said its text, and when it
    has reported its usage."""
    last: dict[str, Any] | None = None
    """The chunk of the stream that reports the usage, where the client may see it as it is."""
    tier: str = "standard"
    told_at_start: bool = False
    """The stream begins with the input, and one token of output."""


@dataclass(frozen=True)
class Reporter:
    """A backend with one way to report usage."""

    name: str
    model: str
    classes: frozenset[str]
    """What it tells apart."""
    build: Callable[[Reporter, Split, Vary], Report]
    spelling: Spelling | None = None
    tier: str = "standard"
    late: bool = False
    """Of Anthropic's streams: everything is reported at the end."""

    def report(self, amounts: Split, vary: Vary) -> Report:
        """Of the amounts those that it tells apart, written like this."""
        split = {name: amounts[name] for name in amounts if name in self.classes}
        return self.build(self, split, vary)


def as_it_is(write: Write, split: Split) -> Json:
    """Everything is reported."""
    return write(split)


def in_full(spell: Callable[[int], Any]) -> Vary:
    """Everything is reported, each number spelled like this."""
    return lambda write, split: respelled(write(split), spell)


def without(classes: tuple[str, ...]) -> Vary:
    """Nothing is reported that depends on what was used of these classes."""

    def write_rest(write: Write, split: Split) -> Json:
        more = {name: amount * (3 if name in classes else 1) for name, amount in split.items()}
        return _common(write(split), write(more))

    return write_rest


def _common(first: Any, second: Any) -> Any:
    """What two reports have in common; null for what they have not."""
    if isinstance(first, dict):
        return {name: _common(value, second[name]) for name, value in first.items()}
    if isinstance(first, list):
        return [_common(*pair) for pair in zip(first, second, strict=True)]
    return first if first == second else None


def sse(data: Mapping[str, Any], kind: str = "") -> bytes:
    name = f"event: {kind}\n" if kind else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


def _openai(reporter: Reporter, split: Split, vary: Vary) -> Report:
    assert reporter.spelling is not None
    fields = vary(reporter.spelling.fields, split)
    message = {"role": "assistant", "content": SAID}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    alone = "choice" not in fields
    last = put({**CHUNK, "choices": [] if alone else [end]}, fields)
    text = [
        {**CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in ({"role": "assistant", "content": ""}, {"content": SAID})
    ]
    chunks = [*text, *([{**CHUNK, "choices": [end]}] if alone else []), last]
    return Report(
        reporter.name,
        reporter.model,
        split,
        put({**whole, "choices": [choice]}, fields),
        (*[sse(each) for each in chunks], b"data: [DONE]\n\n"),
        (1, 2, len(chunks)),
        last,
    )


def _anthropic(reporter: Reporter, split: Split, vary: Vary) -> Report:
    usage = vary(anthropic_usage, split)
    if usage:
        usage = {**usage, "service_tier": reporter.tier}
    return Report(
        reporter.name,
        reporter.model,
        split,
        _message(usage, SAID),
        tuple(_events(usage, late=reporter.late)),
        (2, 3, 5),
        tier=reporter.tier,
        told_at_start=not reporter.late,
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
    names = ("output_tokens", "output_tokens_details", "server_tool_use")
    at_end = {name: usage[name] for name in names if name in usage}
    start = {**usage, "output_tokens": 1, "output_tokens_details": None} if usage else {}
    if late:
        counts = usage.get("input_tokens") is not None  # else it is not 0 at the start either
        start, at_end = {"input_tokens": 0, "output_tokens": 0} if counts else {}, usage
    yield sse({"type": "message_start", "message": _message(start, "")}, "message_start")
    block = {"type": "text", "text": ""}
    yield sse({"type": "content_block_start", "index": 0, "content_block": block})
    delta = {"type": "text_delta", "text": SAID}
    yield sse({"type": "content_block_delta", "index": 0, "delta": delta})
    yield sse({"type": "content_block_stop", "index": 0})
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    yield sse({"type": "message_delta", "delta": end, "usage": at_end})
    yield sse({"type": "message_stop"})


def _reporters() -> Iterator[Reporter]:
    for spelling in SPELLINGS:
        yield Reporter(f"openai, {spelling.name}", "plain", spelling.classes, _openai, spelling)
    every = frozenset({"input", "cache_read", "cache_write_5m", "cache_write_1h", "output",
                       "output_reasoning", "web_searches"})  # fmt: skip
    plain = frozenset({"input", "output"})
    shapes: dict[str, tuple[frozenset[str], str, bool]] = {
        "plain": (plain, "standard", False),
        "cached": (plain | {"cache_read"}, "standard", False),
        "written": (plain | {"cache_write_5m"}, "standard", False),
        "written for an hour": (plain | {"cache_write_1h"}, "standard", False),
        "everything": (every, "standard", False),
        "everything at the end": (every, "standard", True),
        "priority": (every, "priority", False),
    }
    for shape, (classes, tier, late) in shapes.items():
        name = f"anthropic, {shape}"
        yield Reporter(name, "claude", classes, _anthropic, tier=tier, late=late)


REPORTERS = tuple(_reporters())
