"""Pooled HTTP/1.1 connections to backends, with a deadline on every single wait.

Bytes are parsed by llhttp (through geventhttpclient's binding), which refuses every ambiguous
framing: both ``Content-Length`` and ``Transfer-Encoding``, duplicate lengths, bare line feeds,
folded headers. Sockets, waiting, pooling and reuse are ours, because the router's promises live
there: no wait without a deadline, no request sent on a connection that the backend has closed,
no connection reused after a byte too many.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from geventhttpclient._parser import HTTPParseError, HTTPResponseParser

from router.errors import BackendTimeout, ClientGone
from router.upstream.resolver import Resolver
from router.upstream.tls import TlsSocket

Endpoint = tuple[str, str, int]
"""Scheme, host, port: what connections are pooled by."""

Socket = socket.socket | TlsSocket

RECEIVE_BYTES: Final = 32 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024
CLIENT_CHECK_S: Final = 0.25
"""How often a waiting call looks whether its client is still there."""
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


class _Parser(HTTPResponseParser):
    """Collects what llhttp finds of one reply. Whatever comes after its head and its body, be it
    trailers or a message that nobody asked for, changes neither; the latter spoils the connection.
    """

    def __init__(self) -> None:
        super().__init__()
        self.status = 0
        self.header_list: list[list[str]] = []
        self.body: list[bytes] = []
        self.head_done = False
        self.done = False
        self.dirty = False
        self._in_value = True

    def _on_message_begin(self) -> None:
        if self.done:
            self.dirty = True

    def _on_status(self, message: str) -> None:
        """The reason phrase means nothing to anybody."""

    def _on_header_field(self, text: str) -> None:
        if self.head_done:
            return
        if self._in_value:
            self.header_list.append([text, ""])
            self._in_value = False
        else:
            self.header_list[-1][0] += text

    def _on_header_value(self, text: str) -> None:
        if self.head_done:
            return
        self._in_value = True
        self.header_list[-1][1] += text

    def _on_headers_complete(self) -> bool:
        status = self.get_code()
        if status < 100:  # neither an interim reply nor a final one
            raise HTTPParseError("status below 100")
        if status >= 200 and not self.head_done:
            self.status = status
            self.head_done = True
        return False

    def _on_body(self, data: bytearray) -> None:
        if not self.done:
            self.body.append(bytes(data))

    def _on_message_complete(self) -> None:
        if self.head_done:
            self.done = True
        else:  # an interim 1xx reply: the real one follows
            self.header_list.clear()
            self._in_value = True

    def take_body(self) -> bytes:
        """The body bytes parsed since the last call."""
        if len(self.body) == 1:
            data = self.body[0]
        else:
            data = b"".join(self.body)
        self.body.clear()
        return data


def has_input(sock: Socket) -> bool:
    """True when a read would not wait: data, end of stream or an error has arrived."""
    if isinstance(sock, TlsSocket):
        return sock.has_input or has_input(sock.plain)
    return _peek(sock) is not None


def at_end(sock: socket.socket) -> bool:
    """True when the other side has closed; looks without reading and without waiting."""
    return _peek(sock) == b""


def _peek(sock: socket.socket) -> bytes | None:
    """The next byte, ``b""`` at the end of the stream or after an error, ``None`` for no input."""
    # gevent keeps the real socket, which never waits, inside its own.
    raw: socket.socket | None = getattr(sock, "_sock", None)
    try:
        if raw is not None:
            return raw.recv(1, socket.MSG_PEEK)
        timeout_s = sock.gettimeout()
        sock.settimeout(0.0)
        try:
            return sock.recv(1, socket.MSG_PEEK)
        finally:
            sock.settimeout(timeout_s)
    except BlockingIOError:
        return None
    except OSError:
        return b""


class Exchange:
    """One request on one connection and the reply to it."""

    __slots__ = (
        "_deadline_s", "_look_s", "_parser", "_patience", "_pool", "_sock", "reused", "ttfb_s",
    )  # fmt: skip

    def __init__(self, pool: Pool, sock: Socket, deadlines: Deadlines, reused: bool) -> None:
        self._pool = pool
        self._sock: Socket | None = sock
        self._patience = deadlines
        self._parser = _Parser()
        self._deadline_s = deadlines.deadline_s
        self._look_s = 0.0
        """When to look again whether the client is still there."""
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

    def run(self, head: bytes, body: bytes) -> None:
        """Send the request and read up to the end of the reply's head."""
        started_s = time.monotonic()
        self._look_s = started_s + CLIENT_CHECK_S
        try:
            self._send(head, body)
            self._read_head(time.monotonic() + self._patience.first_byte_s)
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
        deadline_s = time.monotonic() + self._patience.idle_s
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
            if self._parser.done:  # most replies: all of it came at once
                return chunk if len(chunks) == 1 else b"".join(chunks)
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
        self._pool.give_back(sock, reusable=reusable)

    def _send(self, head: bytes, body: bytes) -> None:
        sock = self._sock
        assert sock is not None
        request = head + body if len(body) <= _SMALL_BODY_BYTES else head
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise BackendTimeout("total")
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
            raise TransportError(_why(error, "send failed"), sent=True) from None

    def _send_large(self, sock: Socket, body: memoryview) -> None:
        """Piece by piece: a backend that does not read is left, and a client that left is seen."""
        stall_s = time.monotonic() + self._patience.idle_s
        while body:
            sock.settimeout(self._next_wait_s(stall_s, "idle"))
            try:
                body = body[sock.send(body[:_SEND_BYTES]) :]
            except TimeoutError:
                continue
            stall_s = time.monotonic() + self._patience.idle_s

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
                return sock.recv(RECEIVE_BYTES)
            except TimeoutError:
                continue
            except OSError as error:
                raise TransportError(_why(error, "receive failed"), sent=True) from None

    def _next_wait_s(self, deadline_s: float, phase: str) -> float:
        """How long to wait before looking at the clock and at the client again."""
        now_s = time.monotonic()
        if self._deadline_s < deadline_s:
            deadline_s, phase = self._deadline_s, "total"
        left_s = deadline_s - now_s
        if left_s <= 0:
            raise BackendTimeout(phase)
        if now_s >= self._look_s:  # also when bytes trickle in all the time
            self._look_s = now_s + CLIENT_CHECK_S
            if self._patience.client_gone is not None and self._patience.client_gone():
                raise ClientGone
        return left_s if left_s < CLIENT_CHECK_S else CLIENT_CHECK_S

    def _feed_head(self, data: bytes) -> None:
        """Feed the head with ``?`` for whatever is not ASCII in it, and what follows as it is.

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


class Pool:
    """Connections to one endpoint: at most ``size`` at a time, idle ones kept ``idle_s``."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        size: int,
        idle_s: float,
        resolver: Resolver,
        tls: ssl.SSLContext,
    ) -> None:
        self._endpoint = endpoint
        self._idle_s = idle_s
        self._resolver = resolver
        self._tls = tls if endpoint[0] == "https" else None
        self._size = size
        self._in_use = 0
        self._waiting: deque[threading.Event] = deque()
        self._idle: deque[tuple[Socket, float]] = deque()
        self.opened = 0
        self.reused = 0

    def open(self, deadlines: Deadlines) -> Exchange:
        """A clean connection, kept or new. Nothing has been sent when this raises."""
        self._take_slot(min(deadlines.connect_s, deadlines.deadline_s - time.monotonic()))
        try:
            sock = self._take_idle()
            if sock is not None:
                self.reused += 1
                return Exchange(self, sock, deadlines, True)
            sock = self._connect(deadlines)
            self.opened += 1
            return Exchange(self, sock, deadlines, False)
        except BaseException:
            self._free_slot()
            raise

    @property
    def in_use(self) -> int:
        """Connections that calls hold at this moment."""
        return self._in_use

    def give_back(self, sock: Socket, *, reusable: bool) -> None:
        """Return a connection; one that is not reusable is closed."""
        if reusable:
            self._idle.append((sock, time.monotonic()))
        else:
            _drop(sock)
        self._free_slot()

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            _drop(self._idle.pop()[0])

    def _take_slot(self, timeout_s: float) -> None:
        # Workers are single-threaded: nothing between the check and the count lets others run.
        if self._in_use < self._size:
            self._in_use += 1
            return
        turn = threading.Event()
        self._waiting.append(turn)
        try:
            turn.wait(timeout_s)
        except BaseException:
            if not self._leave_queue(turn):
                self._free_slot()
            raise
        if self._leave_queue(turn):
            raise TransportError("connection pool exhausted", sent=False)

    def _leave_queue(self, turn: threading.Event) -> bool:
        """False when the slot was handed over before, be it at the very last moment."""
        try:
            self._waiting.remove(turn)
        except ValueError:
            return False
        return True

    def _free_slot(self) -> None:
        """Hand the slot to whoever waits longest, or count it free."""
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._in_use -= 1

    def _take_idle(self) -> Socket | None:
        """The connection used last, which is the least likely to have been closed."""
        oldest_s = time.monotonic() - self._idle_s
        while self._idle:
            sock, since_s = self._idle.pop()
            if since_s < oldest_s:  # all that are left are older still
                _drop(sock)
                self.close()
                return None
            # Anything readable on an idle connection is its end, or bytes nobody asked for.
            if not has_input(sock):
                return sock
            _drop(sock)
        return None

    def _connect(self, deadlines: Deadlines) -> Socket:
        _, host, port = self._endpoint
        now_s = time.monotonic()
        deadline_s = min(now_s + deadlines.connect_s, deadlines.deadline_s)
        reason = "no address"
        for address in self._resolver.resolve(host, deadline_s - now_s):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                reason = "connect timeout"
                break
            try:
                sock = socket.create_connection((address, port), timeout=left_s)
            except OSError as error:
                reason = _why(error, "connect failed")
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock if self._tls is None else self._secure(self._tls, sock, host, deadline_s)
        raise TransportError(reason, sent=False)

    def _secure(
        self, tls: ssl.SSLContext, sock: socket.socket, host: str, deadline_s: float
    ) -> TlsSocket:
        try:
            secured = TlsSocket(sock, tls, host)
            secured.settimeout(deadline_s - time.monotonic())
            secured.handshake()
        except BaseException as error:
            _drop(sock)
            if isinstance(error, (OSError, ValueError)):
                raise TransportError(_why(error, "TLS failed"), sent=False) from None
            raise
        return secured


def _drop(sock: Socket) -> None:
    try:
        sock.close()
    except OSError:
        pass  # it is gone either way


def _why(error: Exception, default: str) -> str:
    """A short reason for logs that names no host."""
    if isinstance(error, TimeoutError):
        return "connect timeout" if default == "connect failed" else f"{default}: timeout"
    if isinstance(error, ssl.SSLCertVerificationError):
        problem = error.verify_message.partition(",")[0]  # the rest names the host
        return f"{default}: certificate not trusted ({problem})"
    name = getattr(error, "strerror", None)
    return f"{default}: {name}" if name else default
