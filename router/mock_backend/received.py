"""A request as it came over the wire, down to its raw headers and its framing."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any, Literal

from router.mock_backend.wire import Connection, RequestError

Framing = Literal["none", "content-length", "chunked", "both"]

_LONGEST_LINE = 65_536
_MOST_HEADERS = 200
_LARGEST_BODY = 64 * 1024 * 1024
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")


@dataclass(frozen=True)
class Head:
    """The request line and the headers, each header as often and in the order as it came."""

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]

    @property
    def path(self) -> str:
        """Return the target without its query."""
        return self.target.partition("?")[0]

    def values(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """Return the first value of a header."""
        return next(iter(self.values(name)), None)

    @property
    def keeps_alive(self) -> bool:
        """Tell whether the client means to send another request."""
        options = ",".join(self.values("connection")).lower()
        return "close" not in options and (self.version == "HTTP/1.1" or "keep-alive" in options)

    @property
    def framing(self) -> Framing:
        """Say how the body is delimited; `both` is what a gateway must never send."""
        has_length = bool(self.values("content-length"))
        if self.values("transfer-encoding"):
            return "both" if has_length else "chunked"
        return "content-length" if has_length else "none"


@dataclass(frozen=True)
class ReceivedRequest(Head):
    """A whole request, and the number of the connection that it came on."""

    body: bytes
    connection: int

    def as_record(self) -> dict[str, Any]:
        """Return the request as JSON can carry it."""
        return {
            "method": self.method,
            "path": self.target,
            "version": self.version,
            "headers": [list(header) for header in self.headers],
            "body_base64": base64.b64encode(self.body).decode(),
            "framing": self.framing,
            "connection": self.connection,
        }


def read_request(connection: Connection) -> ReceivedRequest:
    """Read one request; RequestError when it is malformed or ends early."""
    head = _read_head(connection)
    if (head.header("expect") or "").lower() == "100-continue":
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = _read_body(connection, head)
    return ReceivedRequest(
        head.method, head.target, head.version, head.headers, body, connection.number
    )


def _read_head(connection: Connection) -> Head:
    parts = connection.read_line(_LONGEST_LINE).decode("latin-1").split(" ")
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]) or not parts[1]:
        raise RequestError("malformed request line")
    method, target, version = parts
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        raise RequestError("unknown protocol version", 505)
    headers: list[tuple[str, str]] = []
    while line := connection.read_line(_LONGEST_LINE):
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not _NAME.fullmatch(name):
            raise RequestError("malformed header")
        headers.append((name, value.strip(" \t")))
        if len(headers) > _MOST_HEADERS:
            raise RequestError("too many headers", 431)
    return Head(method, target, version, tuple(headers))


def _read_body(connection: Connection, head: Head) -> bytes:
    codings = head.values("transfer-encoding")
    if codings:
        if [coding.lower() for coding in codings] != ["chunked"]:
            raise RequestError("unknown transfer coding", 501)
        return _read_chunks(connection)
    lengths = set(head.values("content-length"))
    if not lengths:
        return b""
    length = lengths.pop()
    if lengths or not re.fullmatch(r"[0-9]{1,12}", length):
        raise RequestError("malformed content length")
    _check_size(int(length))
    return connection.read_exactly(int(length))


def _read_chunks(connection: Connection) -> bytes:
    body = bytearray()
    while True:
        size_text = connection.read_line(_LONGEST_LINE).partition(b";")[0].strip()
        if not _CHUNK_SIZE.fullmatch(size_text):
            raise RequestError("malformed chunk size")
        size = int(size_text, 16)
        if size == 0:
            break
        _check_size(len(body) + size)
        body += connection.read_exactly(size)
        if connection.read_exactly(2) != b"\r\n":
            raise RequestError("chunk longer than its size")
    while connection.read_line(_LONGEST_LINE):
        pass  # Trailers carry nothing that is needed here.
    return bytes(body)


def _check_size(size: int) -> None:
    if size > _LARGEST_BODY:
        raise RequestError("body too large", 413)
