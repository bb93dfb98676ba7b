"""What a mock backend can say: a whole answer or a stream of events, not yet on the wire."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Event(NamedTuple):
    """One server-sent event as bytes, and how long to wait before it."""

    delay_s: float
    data: bytes
    last: bool


@dataclass(frozen=True)
class Answer:
    """An answer whose body is known as a whole."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class StreamAnswer:
    """A 200 whose body is a sequence of server-sent events."""

    events: Iterable[Event]


def encode_json(value: Any) -> bytes:
    """Write a value as JSON in UTF-8; lone surrogates, which UTF-8 cannot carry, become `?`."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def json_answer(value: Any, status: int = 200, **headers: str) -> Answer:
    """Answer with a value as JSON; header names are given with underscores."""
    named = tuple((name.replace("_", "-"), text) for name, text in headers.items())
    return Answer(status, encode_json(value), named)


def error_answer(
    status: int, message: str, *, param: str | None = None, code: str | None = None, **headers: str
) -> Answer:
    """Answer with an error in OpenAI's shape."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == 429:
        kind = "rate_limit_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return json_answer({"error": error}, status, **headers)
