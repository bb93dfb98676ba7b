"""What several greenlets ask of Redis in one turn of the event loop leaves as one.

A worker under load wakes many calls at once, and each of them has a question. On connections of
their own every question costs a send, a wait and a receive; together they cost that once. Nobody
waits for it: what is gathered is what has been asked by the time the loop comes round.
"""

from __future__ import annotations

import time
from typing import Final, Protocol, cast

import gevent
from gevent.hub import Waiter

from router.limits.breaker import Unavailable

MOST: Final = 64
"""Questions in one exchange. Redis answers in order, so each waits for all before it."""

LARGE_BYTES: Final = 16 * 1024
"""A question above this size goes alone: the others need not wait until it is transferred."""


class Exchanger(Protocol):
    """Connections to one server; :class:`router.limits.pool.Pool` are the real ones."""

    @property
    def in_use(self) -> int:
        """How many connections are exchanging, or being made, now."""

    @property
    def open(self) -> int:
        """How many connections there are."""

    def exchange(self, commands: bytes, count: int, deadline_s: float) -> list[object]:
        """Send packed commands, read ``count`` replies; raises :class:`Unavailable`."""

    def close(self) -> None:
        """Close them."""


class Gathering:
    """Exchanges of one turn over one connection, for programs that run under gevent.

    Each caller gets its own replies, or the failure of the exchange; of that failure one caller
    hears as such, the others as ``echo``, so that it counts once.
    """

    def __init__(self, pool: Exchanger) -> None:
        self._pool = pool
        self._open_bunch: _Bunch | None = None

    @property
    def in_use(self) -> int:
        """How many connections are exchanging, or being made, now."""
        return self._pool.in_use

    @property
    def open(self) -> int:
        """How many connections there are."""
        return self._pool.open

    def exchange(self, commands: bytes, count: int, deadline_s: float) -> list[object]:
        """As :meth:`router.limits.pool.Pool.exchange`. The time in which others may join does not
        count: it is our own, not Redis'."""
        if len(commands) > LARGE_BYTES:
            return self._pool.exchange(commands, count, deadline_s)
        left_s = deadline_s - time.monotonic()
        bunch = self._open_bunch
        if bunch is not None:
            return self._join(bunch, commands, count, left_s)
        bunch = self._open_bunch = _Bunch(commands, count, left_s)
        try:
            gevent.sleep(0)
            self._close(bunch)
            return bunch.exchanged_over(self._pool)
        finally:  # whatever ended it, a killed greenlet included
            self._close(bunch)
            bunch.fail_who_waits(Unavailable("redis", "lost", "its exchange was ended", echo=True))

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _join(self, bunch: _Bunch, commands: bytes, count: int, left_s: float) -> list[object]:
        waiter = bunch.joined(commands, count, left_s)
        if len(bunch.waiting) == MOST - 1:
            self._close(bunch)
        return cast("list[object]", waiter.get())

    def _close(self, bunch: _Bunch) -> None:
        if self._open_bunch is bunch:
            self._open_bunch = None


class _Bunch:
    """The questions of one exchange; the first is that of the greenlet which carries it out."""

    def __init__(self, commands: bytes, count: int, left_s: float) -> None:
        self._commands = [commands]
        self._count = count
        self._left_s = left_s
        self.waiting: list[tuple[Waiter, int]] = []
        """Whoever waits for an answer, and for how many replies."""

    def joined(self, commands: bytes, count: int, left_s: float) -> Waiter:
        """What the next one has to wait on."""
        waiter = Waiter()
        self._commands.append(commands)
        self.waiting.append((waiter, count))
        if left_s < self._left_s:
            self._left_s = left_s
        return waiter

    def exchanged_over(self, pool: Exchanger) -> list[object]:
        """The replies to the first question, once all others have theirs on the way."""
        count = self._count + sum([count for _, count in self.waiting])
        deadline_s = time.monotonic() + self._left_s
        try:
            replies = pool.exchange(b"".join(self._commands), count, deadline_s)
        except Unavailable as error:
            self.fail_who_waits(Unavailable(error.name, error.reason, error.detail, echo=True))
            raise
        at = self._count
        for waiter, count in self.waiting:
            _soon(waiter.switch, replies[at : at + count])
            at += count
        self.waiting = []
        return replies[: self._count]

    def fail_who_waits(self, error: Unavailable) -> None:
        """Tell everybody who has no answer."""
        for waiter, _ in self.waiting:
            # One for each: a raised exception gathers the traceback of whoever raises it.
            _soon(waiter.throw, Unavailable(error.name, error.reason, error.detail, echo=True))
        self.waiting = []


def _soon(wake: object, value: object) -> None:
    """Waiters are woken by the loop, never by another greenlet."""
    gevent.get_hub().loop.run_callback(wake, value)
