"""Requests as the fake server received them."""

from __future__ import annotations

import json
from typing import Any


class ForbiddenFraming(Exception):
    """A request whose end two parsers may see at different places, which a router must not send."""


class Request(bytes):
    """A request as it came: its very bytes, and what they say."""

    @property
    def _head(self) -> str:
        return self.partition(b"\r\n\r\n")[0].decode("latin-1")

    @property
    def method(self) -> str:
        return self._head.split(" ", 1)[0]

    @property
    def target(self) -> str:
        """Path and query, undecoded."""
        return self._head.split(" ", 2)[1]

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Every header in the order and with the case in which it came."""
        lines = [line.partition(":") for line in self._head.split("\r\n")[1:]]
        return [(name, value.strip(" \t")) for name, _, value in lines]

    def values(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next(iter(self.values(name)), None)

    @property
    def body(self) -> bytes:
        return self.partition(b"\r\n\r\n")[2]

    @property
    def fields(self) -> Any:
        """The body, parsed; ValueError when it is no JSON."""
        return json.loads(self.body)


def request_size(data: bytes) -> int | None:
    """Bytes of the first request in ``data``; None while its head is not complete.

    Raises ForbiddenFraming.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = Request(data[: end + 4])
    lengths = head.values("content-length")
    if len(lengths) > 1 or head.values("transfer-encoding"):
        raise ForbiddenFraming(head)
    return end + 4 + int(lengths[0] if lengths else 0)
