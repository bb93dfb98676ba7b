"""A client's connection: reading it takes turns with other connections, and it closes gently."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Any, Final

import gevent

from router.net.sockets import REST_S

TURN_S: Final = 0.002
"""How long a connection that always has input may go on before the others get a turn."""

LINGER_S: Final = 1.0
LINGER_READS: Final = 256
"""How long, and for how many reads, a closing connection takes in what nobody reads."""

_READ_BYTES: Final = 64 * 1024


class ClientSocket:
    """gunicorn's view of the socket ``sock`` of gevent; in everything else it is that socket.

    A read that finds its data there does not switch greenlets, so a client that sends faster than
    it is served would keep the event loop for itself.
    """

    __slots__ = ("_client", "_raw", "_turn_began_s", "received", "send", "sendall", "unread")

    def __init__(self, sock: Any) -> None:
        self._client = sock
        self._raw = sock._sock
        # Here, because they are called for every reply.
        self.send, self.sendall = sock.send, sock.sendall
        self._turn_began_s = time.monotonic()
        self.received = 0
        """Bytes so far."""
        self.unread = False
        """Whether the connection is to be closed although the client goes on sending a body."""

    def recv(self, size: int, *flags: int) -> bytes:
        """As of a socket; raises ``OSError``."""
        while True:
            try:
                data: bytes = self._raw.recv(size, *flags)
            except BlockingIOError:
                self._client._wait(self._client._read_event)
                self._turn_began_s = time.monotonic()
                continue
            self.received += len(data)
            self.take_turns()
            return data

    def take_turns(self) -> None:
        """Let other connections go on, if this one has been served long enough."""
        if time.monotonic() - self._turn_began_s > TURN_S:
            gevent.sleep(REST_S)
            self._turn_began_s = time.monotonic()

    def has_input(self) -> bool:
        """Whether something has arrived that was not read yet, be it the end."""
        return self._peek() is not None

    def _peek(self) -> bytes | None:
        try:
            found: bytes = self._raw.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        return found

    def close(self) -> None:
        """Close it so that the last reply arrives: closing with input unread would reset the
        connection, and throw away what the client has not read (RFC 9112, 9.6)."""
        try:
            if self.unread or self._peek():
                self._linger()
        finally:
            self._client.close()

    def _linger(self) -> None:
        with suppress(OSError), gevent.Timeout(LINGER_S, False):
            self._client.shutdown(socket.SHUT_WR)
            for _ in range(LINGER_READS):
                if not self.recv(_READ_BYTES):
                    return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
