"""A connection's wait for its next request, which a drain can end."""

from __future__ import annotations

import time
from typing import Any, Final

import gevent

from router.server.client_socket import ClientSocket

FIRST_REQUEST_S: Final = 2.0
"""How long a draining worker waits for a request that is about to come: the first one on an
accepted connection, or one of which a part has arrived."""


class IdleWait:
    """A context that waits ``seconds`` at most and then ends without an exception.

    It adds itself to ``waiting`` while it lasts. It has no timer of its own: the worker checks all
    waits once a second.
    """

    __slots__ = (
        "_began_s",
        "_client",
        "_ended",
        "_fresh",
        "_greenlet",
        "_late_s",
        "_received_before",
        "_spared",
        "_waiting",
    )

    def __init__(
        self, seconds: float, waiting: dict[IdleWait, None], client: ClientSocket, *, fresh: bool
    ) -> None:
        self._waiting = waiting
        self._client = client
        self._began_s = time.monotonic()
        self._late_s = self._began_s + seconds
        # A client that has just connected is about to send a request; one that was served before
        # must expect the end of the connection at any time.
        self._fresh = fresh
        self._received_before = client.received
        self._spared = False
        self._greenlet: gevent.Greenlet | None = None
        self._ended: _Ended | None = None

    def __enter__(self) -> IdleWait:
        self._greenlet = gevent.getcurrent()
        self._waiting[self] = None
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> bool:
        self._waiting.pop(self, None)
        return value is not None and value is self._ended

    def is_late(self, now_s: float) -> bool:
        """Whether the client has sent no request for too long."""
        return now_s >= self._late_s

    def may_end(self, now_s: float) -> bool:
        """Whether a draining worker need not wait for this connection's next request."""
        is_coming = self._fresh or self._client.received > self._received_before
        return not is_coming or now_s >= self._began_s + FIRST_REQUEST_S

    def end(self) -> None:
        """Stop waiting, unless a request arrives first."""
        gevent.get_hub().loop.run_callback(self._interrupt)

    def _interrupt(self) -> None:
        # Checked here, not in end(): an exception thrown into a greenlet that has left the wait
        # would hit the request that it serves.
        if self not in self._waiting or self._greenlet is None:
            return
        # What has arrived this instant may be a request, which its client could not send again.
        # Once: a client that sends a little at a time gains a second.
        if not self._spared and self._client.has_input():
            self._spared = True
            return
        self._ended = _Ended()
        self._greenlet.throw(self._ended)


class _Ended(BaseException):
    """Thrown into a wait that is over."""
