"""A client's connection for the time of one reply: head and body leave with one system call."""

from __future__ import annotations

from typing import Any, Final

JOINED_BYTES: Final = 64 * 1024
"""Up to here copying is cheaper than another system call and another packet."""


class CorkedSocket:
    """Holds back the first thing that is sent, which is the head, until the next one comes.

    gunicorn writes head and body apart. For all else this is the socket that it wraps.
    """

    # Not `_sock`: whoever asks for that wants the socket inside gevent's, which never waits.
    __slots__ = ("_client", "_held")

    def __init__(self, sock: Any) -> None:
        self._client = sock
        self._held: bytes | None = None

    def sendall(self, data: bytes) -> None:
        """Send ``data`` behind what is held back; hold it back if it is the first."""
        if self._held is None:
            self._held = data
            return
        if self._held:
            held, self._held = self._held, b""
            if len(data) <= JOINED_BYTES:
                data = held + data
            else:
                self._client.sendall(held)
        # Almost always all of it, at half the cost of sendall.
        sent = self._client.send(data)
        if sent < len(data):
            self._client.sendall(memoryview(data)[sent:])

    def flush(self) -> None:
        """Send what is held back: the reply had no body."""
        if self._held:
            held, self._held = self._held, b""
            self._client.sendall(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
