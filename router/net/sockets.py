"""Plain sockets with one deadline, in seconds of the monotonic clock, over several waits."""

from __future__ import annotations

import _socket
import contextlib
import socket
import time
from collections.abc import Iterable
from typing import Final

NEAR_S: Final = 0.005
"""Less than this is too little for a peer that answers at once."""

REST_S: Final = 0.0001
"""How long a greenlet that gives way sleeps. Not 0: ``sleep(0)`` comes back up to 50 times before
gevent looks at any other socket."""

LATE_S: Final = 0.02
"""For the peer's part of a step that begins when the deadline is near or over, though every step
before it has succeeded: a busy event loop used up the time then, not the peer."""


def left_s(deadline_s: float) -> float:
    """Seconds until ``deadline_s``, more than 0; raises ``TimeoutError`` when there are none."""
    left = deadline_s - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def next_deadline_s(deadline_s: float) -> float:
    """The deadline of one more step, after steps that have all succeeded."""
    now_s = time.monotonic()
    return deadline_s if deadline_s - now_s >= NEAR_S else now_s + LATE_S


def connect(addresses: Iterable[str], port: int, deadline_s: float) -> socket.socket:
    """A TCP connection to the first address that accepts one before ``deadline_s``.

    Its timeout is what was left when it was made. Raises the ``OSError`` of the last address.
    """
    failure: OSError = OSError("no address")
    first_deadline_s = next_deadline_s(deadline_s)
    for number, address in enumerate(addresses):
        try:
            return _connected(address, port, deadline_s if number else first_deadline_s)
        except OSError as error:
            failure = error
    raise failure


def _connected(address: str, port: int, deadline_s: float) -> socket.socket:
    # Not socket.create_connection: gevent's looks up even addresses on a thread, with no deadline.
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(left_s(deadline_s))
        try:
            sock.connect((address, port))
        except TimeoutError:
            if not _has_peer(sock):  # a busy loop may come back late to a connection made in time
                raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def has_input(sock: socket.socket) -> bool:
    """True when a read would not wait: data, the end of the stream or an error has arrived."""
    return _peek(sock) is not None


def at_end(sock: socket.socket) -> bool:
    """True when the other side has closed; looks without reading and without waiting."""
    return _peek(sock) == b""


def hang_up(sock: socket.socket) -> None:
    """End whatever another thread waits for on this socket, which stays its to close."""
    # The lowest class again: what TLS sockets do first is no business of another thread.
    with contextlib.suppress(OSError):
        _socket.socket.shutdown(getattr(sock, "_sock", sock), socket.SHUT_RDWR)


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
