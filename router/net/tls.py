"""TLS over a connected socket, with one deadline over each operation.

Under gevent the sockets of ``ssl`` restart their timeout at every byte that arrives: a peer that
trickles a handshake or a record could hold a call for as long as it likes. Here the TLS engine
works on memory, so every wait is one of ours and keeps the deadline.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Final

from router.net.sockets import has_input, left_s

_RECEIVE_BYTES: Final = 32 * 1024


class TlsSocket:
    """The part of a socket's interface that our clients use."""

    __slots__ = ("_deadline_s", "_engine", "_incoming", "_outgoing", "_unsent", "plain")

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self.plain = plain
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._engine = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._unsent = memoryview(b"")
        self._deadline_s = 0.0

    @property
    def has_input(self) -> bool:
        """True when a read would not wait: data, the end of the stream or an error has arrived."""
        return self._incoming.pending > 0 or self._engine.pending() > 0 or has_input(self.plain)

    def settimeout(self, timeout_s: float) -> None:
        """How long the next operation may take, however many waits it consists of."""
        self._deadline_s = time.monotonic() + timeout_s

    def handshake(self) -> None:
        """Agree on keys and verify the peer; raises ``OSError``."""
        while True:
            try:
                self._engine.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
        self._flush()

    def recv(self, size: int) -> bytes:
        """Decrypted bytes; ``b""`` when the peer has sent TLS' closing message."""
        engine, incoming = self._engine, self._incoming
        if not incoming.pending and not engine.pending():
            self._fill()  # asking the engine first would only cost an exception
        while True:
            try:
                return engine.read(size)
            except ssl.SSLWantReadError:
                self._flush()  # the peer may want new keys
                self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    def send(self, data: bytes | memoryview) -> int:
        """Send all of ``data``; after a ``TimeoutError`` it must be called again with the same."""
        if not self._unsent:
            self._engine.write(data)
        self._flush()
        return len(data)

    def sendall(self, data: bytes) -> None:
        """Send all of ``data``."""
        self.send(data)

    def close(self) -> None:
        """Close without TLS' closing message, for which nobody would wait."""
        self.plain.close()

    def _flush(self) -> None:
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            self.plain.settimeout(left_s(self._deadline_s))
            self._unsent = self._unsent[self.plain.send(self._unsent) :]

    def _fill(self) -> None:
        self.plain.settimeout(left_s(self._deadline_s))
        data = self.plain.recv(_RECEIVE_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
