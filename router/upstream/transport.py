"""One HTTP/1.1 exchange with a backend, with a deadline on every single wait.

Sending and waiting are our own code, because no library keeps the promises of this module: no wait
without a deadline, and no connection that is used again after a byte too many.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from geventhttpclient._parser import HTTPParseError

from router.errors import BackendTimeout, ClientGone
from router.net.sockets import REST_S
from router.net.tls import TlsSocket
from router.upstream.reply_parser import ReplyParser

Socket = socket.socket | TlsSocket
Release = Callable[[Socket, bool], None]
"""Takes a connection back; the flag tells whether another exchange may use it."""

RECEIVE_BYTES: Final = 32 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024
CLIENT_CHECK_S: Final = 0.25
"""How often a waiting call checks whether its client is still there."""
TURN_BYTES: Final = 64 * 1024
"""After so much from one backend the other calls get a turn; as many small events take 5 ms."""
_SMALL_BODY_BYTES: Final = 16 * 1024
_SEND_BYTES: Final = 64 * 1024
_ASCII: Final = bytes(range(128)) + b"?" * 128


class TransportError(Exception):
    """The exchange with a backend broke; ``sent`` tells whether the backend may have seen it."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


@dataclass(slots=True)
class Deadlines:
    """How long one attempt may wait, in seconds; ``deadline_s`` is on the monotonic clock."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    deadline_s: float
    client_gone: Callable[[], bool] | None = None


class Exchange:
    """One request on one connection and the reply to it."""

    __slots__ = (
        "_client_check_s", "_deadline_s", "_deadlines", "_parser", "_release", "_sock",
        "_turn_bytes", "reused", "ttfb_s",
    )  # fmt: skip

    def __init__(
        self, release: Release, sock: Socket, deadlines: Deadlines, *, reused: bool
    ) -> None:
        self._release = release
        self._sock: Socket | None = sock
        self._deadlines = deadlines
        self._parser = ReplyParser()
        self._deadline_s = deadlines.deadline_s
        self._client_check_s = 0.0
        """When to check again whether the client is still there."""
        self._turn_bytes = 0
        self.reused = reused
        self.ttfb_s = 0.0

    @property
    def status(self) -> int:
        """The reply's status code."""
        return self._parser.status

    @property
    def headers(self) -> list[list[str]]:
        """The reply's header fields, name and value, in order, as they came."""
        return self._parser.header_list

    def header(self, name: str) -> str | None:
        """The value of the first header field of this lower-case name."""
        for field, value in self._parser.header_list:
            if field.lower() == name:
                return value
        return None

    def run(self, head: bytes, body: bytes, on_send: Callable[[], None] | None = None) -> None:
        """Send the request and read up to the end of the reply's head. ``on_send`` runs right
        before the first byte is handed over; what it raises keeps the request unsent."""
        started_s = time.monotonic()
        self._client_check_s = started_s + CLIENT_CHECK_S
        try:
            self._send(head, body, on_send)
            self._read_head(time.monotonic() + self._deadlines.first_byte_s)
        except BaseException:
            self.close()
            raise
        self.ttfb_s = time.monotonic() - started_s
        if self._parser.done:
            self.close()

    def read_chunk(self) -> bytes:
        """The next body bytes as they arrive; ``b""`` only at the body's proper end."""
        parser = self._parser
        if parser.body:
            return parser.take_body()
        deadline_s = time.monotonic() + self._deadlines.idle_s
        try:
            while not parser.body and not parser.done:
                self._feed(self._receive(deadline_s, "idle"))
        except BaseException:
            self.close()
            raise
        if parser.done:
            self.close()
        return parser.take_body()

    def read_all(self, limit_bytes: int) -> bytes:
        """The whole body; raises :class:`TransportError` when it is over ``limit_bytes``."""
        chunk = self.read_chunk()
        chunks, size = [chunk], len(chunk)
        while size <= limit_bytes:
            if self._parser.done:
                return b"".join(chunks)
            chunk = self.read_chunk()
            chunks.append(chunk)
            size += len(chunk)
        self.close()
        raise TransportError("reply too large", sent=True)

    def shorten_deadline(self, within_s: float) -> None:
        """Whatever is still to come has to come within ``within_s`` seconds from now."""
        self._deadline_s = min(self._deadline_s, time.monotonic() + within_s)

    def close(self) -> None:
        """Give the connection back if it is clean, drop it otherwise. May be called again."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        parser = self._parser
        reusable = parser.done and not parser.dirty and parser.should_keep_alive()
        self._release(sock, reusable)

    def _send(self, head: bytes, body: bytes, on_send: Callable[[], None] | None) -> None:
        sock = self._sock
        assert sock is not None
        request = head + body if len(body) <= _SMALL_BODY_BYTES else head
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise BackendTimeout("total")
        if on_send is not None:
            on_send()
        sock.settimeout(left_s)
        try:
            sent = sock.send(request)  # almost always all of it, at half the cost of sendall
            if sent < len(request):
                sock.sendall(request[sent:])
            if request is head:
                self._send_large(sock, memoryview(body))
        except TimeoutError:
            raise BackendTimeout("total") from None
        except OSError as error:
            # Part of it may have arrived: a backend that answers early (413) closes like this.
            raise TransportError(reason_of(error, "send failed"), sent=True) from None

    def _send_large(self, sock: Socket, body: memoryview) -> None:
        """Piece by piece: a backend that does not read is left, and a client that left is seen."""
        stall_s = time.monotonic() + self._deadlines.idle_s
        while body:
            sock.settimeout(self._next_wait_s(stall_s, "idle"))
            try:
                body = body[sock.send(body[:_SEND_BYTES]) :]
            except TimeoutError:
                continue
            stall_s = time.monotonic() + self._deadlines.idle_s

    def _read_head(self, deadline_s: float) -> None:
        parser, size = self._parser, 0
        while not parser.head_done:
            data = self._receive(deadline_s, "first_byte")
            size += len(data)
            if data.isascii():
                self._feed(data)
            else:
                self._feed_head(data)
            if size > MAX_HEAD_BYTES and not parser.head_done:
                raise TransportError("reply head too large", sent=True)

    def _receive(self, deadline_s: float, phase: str) -> bytes:
        sock = self._sock
        if sock is None:
            raise TransportError("connection already closed", sent=True)
        while True:
            sock.settimeout(self._next_wait_s(deadline_s, phase))
            try:
                data = sock.recv(RECEIVE_BYTES)
            except TimeoutError:
                continue
            except OSError as error:
                raise TransportError(reason_of(error, "receive failed"), sent=True) from None
            self._turn_bytes += len(data)
            if self._turn_bytes > TURN_BYTES:
                # A read that finds its data there does not switch greenlets, so a backend that is
                # faster than the router would keep the event loop for this call.
                self._turn_bytes = 0
                time.sleep(REST_S)
            return data

    def _next_wait_s(self, deadline_s: float, phase: str) -> float:
        """How long to wait before checking the deadline and the client again."""
        now_s = time.monotonic()
        if self._deadline_s < deadline_s:
            deadline_s, phase = self._deadline_s, "total"
        left_s = deadline_s - now_s
        if left_s <= 0:
            raise BackendTimeout(phase)
        if now_s >= self._client_check_s:  # also when bytes trickle in all the time
            self._client_check_s = now_s + CLIENT_CHECK_S
            if self._deadlines.client_gone is not None and self._deadlines.client_gone():
                raise ClientGone
        return left_s if left_s < CLIENT_CHECK_S else CLIENT_CHECK_S

    def _feed_head(self, data: bytes) -> None:
        """Feed the head with ``?`` for each byte outside ASCII, and the body as it is.

        Up to geventhttpclient 2.4, the last for Python 3.10, the binding takes heads for UTF-8 and
        brings the process down when they are not, or when a read ends inside a character.
        """
        start = 0
        while start < len(data) and not self._parser.head_done:
            end = data.find(b"\n", start) + 1 or len(data)  # heads end with a line
            self._feed(data[start:end].translate(_ASCII))
            start = end
        if start < len(data):
            self._feed(data[start:])

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        try:
            parser.feed(data)
        except HTTPParseError as error:
            if parser.done:  # the reply is whole; what follows it is not ours
                parser.dirty = True
                return
            reason = "connection closed early" if not data else f"malformed reply: {error}"
            raise TransportError(reason, sent=True) from None
        if not data and not parser.done:
            raise TransportError("connection closed early", sent=True)


def reason_of(error: Exception, default: str) -> str:
    """A short reason for records and logs, which names no host."""
    if isinstance(error, TimeoutError):
        return "connect timeout" if default == "connect failed" else f"{default}: timeout"
    if isinstance(error, ssl.SSLCertVerificationError):
        problem = error.verify_message.partition(",")[0]  # the rest names the host
        return f"{default}: certificate not trusted ({problem})"
    name = getattr(error, "strerror", None)
    return f"{default}: {name}" if name else default
