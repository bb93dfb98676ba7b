"""A client's connection for one reply: its head and body are sent with one system call."""

from __future__ import annotations

from typing import Any, Final

JOINED_BYTES: Final = 64 * 1024
"""Up to this size copying is cheaper than another system call and another packet."""


class CorkedSocket:
    """Delays the first data that is sent, which is the head, and sends it with the next.

    gunicorn writes head and body apart. In everything else this is the socket that it wraps.
    """

    # No `_sock`: code that asks for that wants the socket inside gevent's, which never waits.
    __slots__ = ("_delayed", "client")

    def __init__(self, sock: Any) -> None:
        self.client = sock
        self._delayed: bytes | None = None

    def sendall(self, data: bytes) -> None:
        """Send ``data`` after the delayed data, or delay it if it is the first."""
        if self._delayed is None:
            self._delayed = data
            return
        if self._delayed:
            head, self._delayed = self._delayed, b""
            if len(data) <= JOINED_BYTES:
                data = head + data
            else:
                self.client.sendall(head)
        # Almost always all of it, at half the cost of sendall.
        sent = self.client.send(data)
        if sent < len(data):
            self.client.sendall(memoryview(data)[sent:])

    def flush(self) -> None:
        """Send the delayed data of a reply without a body."""
        if self._delayed:
            head, self._delayed = self._delayed, b""
            self.client.sendall(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)
