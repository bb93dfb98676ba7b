"""Server-sent events, cut out of a byte stream without changing a byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

MAX_EVENT_BYTES: Final = 1024 * 1024

# Two line ends in a row. A lone CR counts only when no LF follows, or CRLF would count twice.
_BOUNDARY: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINES: Final = re.compile(rb"\r\n|\n|\r")


class EventCutter:
    """Collects bytes and hands out whole events, each with its blank line."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Whole events completed by ``chunk``; an oversize one comes in pieces."""
        buffer = self._rest + chunk if self._rest else chunk
        start = 0
        for match in _BOUNDARY.finditer(buffer):
            yield buffer[start : match.end()]
            start = match.end()
        rest = buffer[start:]
        if len(rest) > MAX_EVENT_BYTES:
            yield rest
            rest = b""
        self._rest = rest

    def finish(self) -> bytes:
        """What is left when the stream has ended without a last blank line."""
        rest, self._rest = self._rest, b""
        return rest


def data_of(event: bytes) -> bytes | None:
    """The event's data, its lines joined as the standard says; ``None`` for comments alone."""
    if event.startswith(b"data: "):
        line = event[6:].rstrip(b"\r\n")
        if b"\n" not in line and b"\r" not in line:
            return line
    lines = [
        line[6:] if line[5:6] == b" " else line[5:]
        for line in _LINES.split(event)
        if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None
