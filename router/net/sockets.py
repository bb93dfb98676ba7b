"""Plain sockets with one deadline, in seconds of the monotonic clock, over several waits."""

from __future__ import annotations

import _socket
import socket
import time
from collections.abc import Iterable


def left_s(deadline_s: float) -> float:
    """Seconds until ``deadline_s``, more than 0; raises ``TimeoutError`` when there are none."""
    left = deadline_s - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def connect(addresses: Iterable[str], port: int, deadline_s: float) -> socket.socket:
    """A TCP connection to the first address that accepts one before ``deadline_s``.

    Its timeout is what was left when it was made. Raises the ``OSError`` of the last address.
    """
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            sock = socket.create_connection((address, port), left_s(deadline_s))
        except OSError as error:
            failure = error
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    raise failure


def has_input(sock: socket.socket) -> bool:
    """True when a read would not wait: data, the end of the stream or an error has arrived."""
    return _peek(sock) is not None


def at_end(sock: socket.socket) -> bool:
    """True when the other side has closed; looks without reading and without waiting."""
    return _peek(sock) == b""


def _peek(sock: socket.socket) -> bytes | None:
    """The next byte, ``b""`` at the end of the stream or after an error, ``None`` for no input."""
    # gevent keeps the real socket, which never waits, inside its own. The lowest class reads it,
    # because TLS sockets refuse flags.
    inner: _socket.socket | None = getattr(sock, "_sock", None)
    try:
        if inner is not None:
            return _socket.socket.recv(inner, 1, socket.MSG_PEEK)
        timeout_s = sock.gettimeout()
        sock.settimeout(0.0)
        try:
            return _socket.socket.recv(sock, 1, socket.MSG_PEEK)
        finally:
            sock.settimeout(timeout_s)
    except BlockingIOError:
        return None
    except OSError:
        return b""
