"""Server-sent events, cut out of a byte stream without changing a byte."""

from __future__ import annotations

import re
from typing import Final

MAX_EVENT_BYTES: Final = 1024 * 1024

# Two line ends in a row. A lone CR counts only when no LF follows, or CRLF would count twice.
_BOUNDARY: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINES: Final = re.compile(rb"\r\n|\n|\r")


class SseSplitter:
    """Collects bytes and hands out whole events, each with its blank line."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Whole events completed by ``chunk``; an oversize one comes in pieces."""
        rest = self._rest
        # A boundary has at most four bytes: what was searched before is not searched again.
        searched = max(0, len(rest) - 3)
        rest += chunk
        events: list[bytes] = []
        start = 0
        for match in _BOUNDARY.finditer(rest, searched):
            events.append(bytes(rest[start : match.end()]))
            start = match.end()
        if len(rest) - start > MAX_EVENT_BYTES:
            events.append(bytes(rest[start:]))
            start = len(rest)
        if start:
            del rest[:start]
        return events

    def finish(self) -> bytes:
        """What is left when the stream has ended without a last blank line."""
        rest = bytes(self._rest)
        self._rest.clear()
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
