"""Pooled connections to one backend endpoint.

No request is sent on a connection that the backend has closed, and no call waits for a connection,
a name, a handshake or its turn for longer than its deadline allows.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import deque

from router.net.address_policy import refusal_of
from router.net.resolver import Resolver
from router.net.sockets import connect, has_input, next_deadline_s
from router.net.tls import TlsSocket
from router.upstream.transport import Deadlines, Exchange, Socket, TransportError, reason_of

Endpoint = tuple[str, str, int]
"""Scheme, host, port: what connections are pooled by."""


class ConnectionPool:
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
        self.in_use = 0
        """Connections that calls use at this moment."""
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
                return Exchange(self._give_back, sock, deadlines, reused=True)
            sock = self._connect(deadlines)
            self.opened += 1
            return Exchange(self._give_back, sock, deadlines, reused=False)
        except BaseException:
            self._free_slot()
            raise

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            _close(self._idle.pop()[0])

    def _give_back(self, sock: Socket, reusable: bool) -> None:
        if reusable:
            self._idle.append((sock, time.monotonic()))
        else:
            _close(sock)
        self._free_slot()

    def _take_slot(self, timeout_s: float) -> None:
        # Workers are single-threaded: nothing between the check and the count lets others run.
        if self.in_use < self._size:
            self.in_use += 1
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
        """False when the slot has been handed over already, be it at the very last moment."""
        try:
            self._waiting.remove(turn)
        except ValueError:
            return False
        return True

    def _free_slot(self) -> None:
        """Hand the slot to the caller that waits longest, or count it free."""
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self.in_use -= 1

    def _take_idle(self) -> Socket | None:
        """The connection used last, which is the least likely to have been closed."""
        oldest_s = time.monotonic() - self._idle_s
        while self._idle:
            sock, since_s = self._idle.pop()
            if since_s < oldest_s:  # all that are left are older still
                _close(sock)
                self.close()
                return None
            # Input on an idle connection is its end, or bytes that belong to no request.
            if not _has_input(sock):
                return sock
            _close(sock)
        return None

    def _connect(self, deadlines: Deadlines) -> Socket:
        _, host, port = self._endpoint
        now_s = time.monotonic()
        deadline_s = min(now_s + deadlines.connect_s, deadlines.deadline_s)
        addresses = self._resolver.resolve(host, deadline_s - now_s)
        if not addresses:
            raise TransportError("no address", sent=False)
        # Here and not only when the document is loaded: a name may lead elsewhere by now.
        addresses = [address for address in addresses if refusal_of(address) is None]
        if not addresses:
            raise TransportError("address not allowed", sent=False)
        try:
            sock = connect(addresses, port, deadline_s)
        except OSError as error:
            raise TransportError(reason_of(error, "connect failed"), sent=False) from None
        return sock if self._tls is None else _secure(self._tls, sock, host, deadline_s)


def _secure(tls: ssl.SSLContext, sock: socket.socket, host: str, deadline_s: float) -> TlsSocket:
    try:
        secured = TlsSocket(sock, tls, host)
        secured.settimeout(next_deadline_s(deadline_s) - time.monotonic())
        secured.handshake()
    except BaseException as error:
        _close(sock)
        if isinstance(error, (OSError, ValueError)):
            raise TransportError(reason_of(error, "TLS failed"), sent=False) from None
        raise
    return secured


def _has_input(sock: Socket) -> bool:
    return sock.has_input if isinstance(sock, TlsSocket) else has_input(sock)


def _close(sock: Socket) -> None:
    try:
        sock.close()
    except OSError:
        pass  # it is gone either way
