"""Sockets whose every read and write ends at one deadline, for libraries that know timeouts only.

A timeout bounds one wait only, so a peer that trickles could take any time. The owner of the socket
sets ``deadline_s``, in seconds of the monotonic clock, before each exchange; until then every wait
fails.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from router.net.sockets import LATE_S, connect, next_deadline_s

T = TypeVar("T")


class _Deadline:
    deadline_s = 0.0

    def recv(self: Any, *args: Any) -> bytes:
        """Read what there is, or wait for it until the deadline; raises ``TimeoutError``."""
        read: Callable[..., bytes] = super().recv  # type: ignore[misc]
        return _in_time(self, read, *args)

    def recv_into(self: Any, *args: Any) -> int:
        """As :meth:`recv`."""
        read: Callable[..., int] = super().recv_into  # type: ignore[misc]
        return _in_time(self, read, *args)

    def sendall(self: Any, *args: Any) -> None:
        """Write all bytes before the deadline; raises ``TimeoutError``.

        Whoever has something to write was answered so far, so the peer gets time to answer this.
        """
        self.deadline_s = next_deadline_s(self.deadline_s)
        self.settimeout(self.deadline_s - time.monotonic())
        super().sendall(*args)  # type: ignore[misc]


def _in_time(sock: Any, read: Callable[..., T], *args: Any) -> T:
    try:
        sock.settimeout(max(0.0, sock.deadline_s - time.monotonic()))
        return read(*args)
    except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
        pass
    # A busy event loop may come back after the deadline to bytes that came before it. The peer was
    # not slow then.
    try:
        sock.settimeout(0.0)
        return read(*args)
    except (BlockingIOError, ssl.SSLWantReadError):
        raise TimeoutError("the deadline has passed") from None


class DeadlineSocket(_Deadline, socket.socket):
    """A plain socket with a deadline."""


class DeadlineTlsSocket(_Deadline, ssl.SSLSocket):
    """A TLS socket with a deadline once its handshake is done; the handshake has one timeout."""

    def do_handshake(self, block: bool = False) -> None:
        """Agree on keys and verify the peer; raises ``OSError``."""
        try:
            super().do_handshake()
            return
        except TimeoutError:  # as above
            self.settimeout(LATE_S)
        try:
            super().do_handshake()
            return
        except TimeoutError:  # and a busy loop comes late to the end of that wait, too
            self.settimeout(0.0)
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            raise TimeoutError("the handshake was not answered in time") from None


def secured(sock: DeadlineSocket, context: ssl.SSLContext, host: str) -> DeadlineTlsSocket:
    """The socket with TLS on it and the same deadline, once the peer is verified; raises
    ``OSError``."""
    context.sslsocket_class = DeadlineTlsSocket  # a context's own class would know no deadline
    wrapped = cast(DeadlineTlsSocket, context.wrap_socket(sock, server_hostname=host))
    wrapped.deadline_s = sock.deadline_s
    return wrapped


def open_socket(addresses: Iterable[str], port: int, deadline_s: float) -> DeadlineSocket:
    """A TCP connection to the first address that accepts one; raises ``OSError``."""
    plain = connect(addresses, port, deadline_s)
    sock = DeadlineSocket(plain.family, plain.type, plain.proto, fileno=plain.detach())
    sock.deadline_s = next_deadline_s(deadline_s)
    sock.settimeout(sock.deadline_s - time.monotonic())
    return sock
