"""A connection's wait for its next request, which a drain can end."""

from __future__ import annotations

import time
from typing import Any, Final

import gevent

FIRST_REQUEST_S: Final = 2.0
"""How long a draining worker waits for the first request on an accepted connection."""


class IdleWait:
    """A context that waits ``seconds`` at most and then ends without an exception.

    It adds itself to ``waiting`` while it lasts. It has no timer of its own: the worker checks all
    waits once a second.
    """

    __slots__ = ("_ended", "_greenlet", "_late_s", "_may_end_s", "_waiting")

    def __init__(self, seconds: float, waiting: set[IdleWait], *, fresh: bool) -> None:
        self._waiting = waiting
        now_s = time.monotonic()
        self._late_s = now_s + seconds
        # A client that has just connected is about to send a request; one that was served before
        # must expect the end of the connection at any time.
        self._may_end_s = now_s + FIRST_REQUEST_S if fresh else 0.0
        self._greenlet: gevent.Greenlet | None = None
        self._ended: _Ended | None = None

    def __enter__(self) -> IdleWait:
        self._greenlet = gevent.getcurrent()
        self._waiting.add(self)
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> bool:
        self._waiting.discard(self)
        return value is not None and value is self._ended

    def is_late(self, now_s: float) -> bool:
        """Whether the client has sent no request for too long."""
        return now_s >= self._late_s

    def may_end(self, now_s: float) -> bool:
        """Whether a draining worker need not wait for this connection's next request."""
        return now_s >= self._may_end_s

    def end(self) -> None:
        """Stop waiting, unless a request arrives first."""
        gevent.get_hub().loop.run_callback(self._interrupt)

    def _interrupt(self) -> None:
        # Checked here, not in end(): an exception thrown into a greenlet that has left the wait
        # would hit the request that it serves.
        if self in self._waiting and self._greenlet is not None:
            self._ended = _Ended()
            self._greenlet.throw(self._ended)


class _Ended(BaseException):
    """Thrown into a wait that is over."""
