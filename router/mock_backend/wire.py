"""Bytes in and out of one client connection, and the news that the client has gone."""

from __future__ import annotations

import select
import socket
import struct

# On Linux this tells of a client that closed even while its unread bytes wait in the socket.
_PEER_CLOSED = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
_RECEIVE_BYTES = 65_536
_HOUR_S = 3600.0
_LINGER_S = 0.1


class ClientGoneError(Exception):
    """The client closed or reset its connection before it had all that it was due."""


class RequestError(Exception):
    """Bytes that are no HTTP request which this server would serve."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """One accepted client connection; only the thread that serves it reads, writes and closes."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = number
        self._socket = sock
        self._buffer = bytearray()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._gone = select.poll()
        self._gone.register(sock, _PEER_CLOSED)

    @property
    def buffered(self) -> bytes:
        """Return the bytes that have come but are not read yet."""
        return bytes(self._buffer)

    def fill(self, timeout_s: float | None = None) -> bool:
        """Wait for bytes unless some are there; False when none came in time or ever will."""
        if self._buffer:
            return True
        if not self._readable.poll(None if timeout_s is None else timeout_s * 1000):
            return False
        return self._receive()

    def read_line(self, limit: int) -> bytes:
        """Read up to a line feed and return the line without its ending."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > limit:
                raise RequestError("line too long", 431)
            if not self._receive():
                raise RequestError("request ends within its head")
        if end > limit:
            raise RequestError("line too long", 431)
        return self._take(end + 1).rstrip(b"\r\n")

    def read_exactly(self, size: int) -> bytes:
        """Read a number of bytes, all or none."""
        while len(self._buffer) < size:
            if not self._receive():
                raise RequestError("request ends within its body")
        return self._take(size)

    def send(self, data: bytes) -> None:
        """Write all bytes, for as long as the client is there to take them."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ClientGoneError from error

    def trickle(self, data: bytes, interval_s: float) -> None:
        """Write byte by byte with a wait between them."""
        for position in range(len(data)):
            if position:
                self.wait(interval_s)
            self.send(data[position : position + 1])

    def wait(self, duration_s: float) -> None:
        """Let time pass; ClientGoneError at once when the client closes or has closed."""
        if self._gone.poll(duration_s * 1000):
            raise ClientGoneError

    def wait_for_end(self) -> None:
        """Say nothing until the client has had enough, which ClientGoneError tells."""
        while True:
            self.wait(_HOUR_S)

    def reset(self) -> None:
        """Close with an RST in place of a FIN, once `close` is called."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def drain(self) -> None:
        """End the answer but read on for a moment.

        Closing with unread bytes sends an RST, which may overtake an answer still on its way.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return
        while self._readable.poll(_LINGER_S * 1000) and self._receive():
            self._buffer.clear()

    def interrupt(self) -> None:
        """Wake the serving thread from whatever it waits for; called by another thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # The client was quicker.

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _receive(self) -> bool:
        try:
            received = self._socket.recv(_RECEIVE_BYTES)
        except OSError:
            return False
        self._buffer += received
        return bool(received)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken
