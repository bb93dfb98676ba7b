"""What several greenlets ask of Redis in one turn of the event loop leaves as one.

A worker under load wakes many calls at once, and each of them has a question. On connections of
their own every question costs a send, a wait and a receive; together they cost that once. Nobody
waits for it: what is gathered is what has been asked by the time the loop comes round, or until
there is enough of it.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

import gevent
from gevent.hub import Waiter

from router.breaker import Unavailable

MOST: Final = 16
"""Questions in one exchange. Redis works on one bunch while the next is being made, and answers in
order, so that each waits for all before it: with more of them the worker would stand idle."""

FRESH: Final = 0.9
"""Of the time for an exchange; a second hop has less left."""

LARGE_BYTES: Final = 16 * 1024
"""A question above this size goes alone: the others need not wait until it is transferred."""


class Exchanger(Protocol):
    """Connections to one server; :class:`router.redis.pool.Pool` are the real ones."""

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


class Pipelining:
    """Exchanges of one turn over one connection, for programs that run under gevent.

    Each caller gets its own replies, or the failure of the exchange; of that failure one caller
    hears as such, the others as ``echo``, so that it counts once.
    """

    def __init__(self, pool: Exchanger, *, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._open_bunch: list[_Question] | None = None

    @property
    def in_use(self) -> int:
        """How many connections are exchanging, or being made, now."""
        return self._pool.in_use

    @property
    def open(self) -> int:
        """How many connections there are."""
        return self._pool.open

    def exchange(self, commands: bytes, count: int, deadline_s: float) -> list[object]:
        """As :meth:`router.redis.pool.Pool.exchange`. The time in which others may join does not
        count: it is our own, not Redis'. Who has less time left than the others goes alone."""
        is_late = deadline_s - time.monotonic() < self._timeout_s * FRESH
        if is_late or len(commands) > LARGE_BYTES:
            return self._pool.exchange(commands, count, deadline_s)
        question = _Question(commands, count)
        bunch = self._open_bunch
        if bunch is None:
            bunch = self._open_bunch = [question]
            self._let_others_join(bunch)
        else:
            bunch.append(question)
            if len(bunch) < MOST:
                return question.answer()
        if self._open_bunch is not bunch:  # whoever filled it has sent it
            return question.answer()
        self._open_bunch = None
        return self._carried_out(bunch, question)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _let_others_join(self, bunch: list[_Question]) -> None:
        try:
            gevent.sleep(0)
        except BaseException:
            if self._open_bunch is bunch:
                self._open_bunch = None
                _fail(bunch, Unavailable("redis", "lost", "its sender has ended"))
            raise

    def _carried_out(self, bunch: list[_Question], own: _Question) -> list[object]:
        """The replies to ``own``, once all others have theirs on the way."""
        others = [question for question in bunch if question is not own]
        count = sum([question.count for question in bunch])
        deadline_s = time.monotonic() + self._timeout_s
        failure: Unavailable | None = Unavailable("redis", "lost", "its exchange was ended")
        try:
            commands = b"".join([question.commands for question in bunch])
            replies = self._pool.exchange(commands, count, deadline_s)
            failure = None
        except Unavailable as error:
            failure = error
            raise
        finally:  # whatever ended it, a killed greenlet included
            if failure is not None:
                _fail(others, failure)
        at, mine = 0, replies
        for question in bunch:
            found = replies[at : at + question.count]
            at += question.count
            if question is own:
                mine = found
            else:
                _soon(question.waiter.switch, found)
        return mine


class _Question:
    """What one greenlet asks, and what it waits on."""

    __slots__ = ("commands", "count", "waiter")

    def __init__(self, commands: bytes, count: int) -> None:
        self.commands = commands
        self.count = count
        self.waiter = Waiter()

    def answer(self) -> list[object]:
        """The replies, once they are there; raises :class:`Unavailable`."""
        replies: list[object] = self.waiter.get()
        return replies


def _fail(questions: list[_Question], error: Unavailable) -> None:
    for question in questions:
        # One for each: a raised exception gathers the traceback of whoever raises it.
        echo = Unavailable(error.name, error.reason, error.detail, echo=True)
        _soon(question.waiter.throw, echo)


def _soon(wake: object, value: object) -> None:
    """Waiters are woken by the loop, never by another greenlet."""
    gevent.get_hub().loop.run_callback(wake, value)
