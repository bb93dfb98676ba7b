"""Auto-pipelining: the commands that greenlets send in one turn of the event loop form a batch.

A worker under load wakes many calls at once, and each of them has a command for Redis. On a
connection of its own every command costs a send, a wait and a receive; a batch costs that once. No
call waits for a batch to grow: a batch is what was sent by the time the loop comes round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import gevent
from gevent.hub import Waiter

from router.breaker import Unavailable

MAX_BATCH: Final = 16
"""Commands in one batch. Redis executes one batch while the worker prepares the next, and replies
in order, so that each command waits for all before it: in larger batches the worker would idle."""

FRESH: Final = 0.9
"""A command with less than this share of the timeout left, such as a second hop, goes alone."""

LARGE_BYTES: Final = 16 * 1024
"""A command above this size goes alone: the others need not wait for its transfer."""

Exchange = Callable[[bytes, int, float], list[object]]
"""Packed commands, the number of replies and a deadline → the replies; raises
:class:`Unavailable`."""


class Pipelining:
    """Batches the exchanges of one turn, for programs that run under gevent.

    Each caller gets its own replies, or the failure of the whole exchange; one caller gets that
    failure, the others get copies that no breaker counts.
    """

    def __init__(self, exchange: Exchange, *, timeout_s: float) -> None:
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._open_batch: list[_Command] | None = None

    def exchange(self, commands: bytes, count: int, deadline_s: float) -> list[object]:
        """As :meth:`router.redis.pool.Pool.exchange`. The time in which others may join does not
        count: the worker spends it, not Redis."""
        is_short_of_time = deadline_s - time.monotonic() < self._timeout_s * FRESH
        if is_short_of_time or len(commands) > LARGE_BYTES:
            return self._exchange(commands, count, deadline_s)
        command = _Command(commands, count)
        batch = self._open_batch
        if batch is None:
            batch = self._open_batch = [command]
            self._let_others_join(batch)
        else:
            batch.append(command)
            if len(batch) < MAX_BATCH:
                return command.replies()
        if self._open_batch is not batch:  # the caller that filled it has sent it
            return command.replies()
        self._open_batch = None
        return self._carried_out(batch, command)

    def _let_others_join(self, batch: list[_Command]) -> None:
        try:
            gevent.sleep(0)
        except BaseException:
            if self._open_batch is batch:
                self._open_batch = None
                _fail(batch, Unavailable("redis", "lost", "its sender has ended"))
            raise

    def _carried_out(self, batch: list[_Command], own: _Command) -> list[object]:
        """The replies to ``own``, once all others have theirs on the way."""
        others = [command for command in batch if command is not own]
        count = sum([command.count for command in batch])
        deadline_s = time.monotonic() + self._timeout_s
        failure: Unavailable | None = Unavailable("redis", "lost", "its exchange was ended")
        try:
            packed = b"".join([command.packed for command in batch])
            replies = self._exchange(packed, count, deadline_s)
            failure = None
        except Unavailable as error:
            failure = error
            raise
        finally:  # whatever ended it, a killed greenlet included
            if failure is not None:
                _fail(others, failure)
        at, own_replies = 0, replies
        for command in batch:
            found = replies[at : at + command.count]
            at += command.count
            if command is own:
                own_replies = found
            else:
                _soon(command.waiter.switch, found)
        return own_replies


class _Command:
    """What one greenlet sends, and what it waits on."""

    __slots__ = ("count", "packed", "waiter")

    def __init__(self, packed: bytes, count: int) -> None:
        self.packed = packed
        self.count = count
        self.waiter = Waiter()

    def replies(self) -> list[object]:
        """The replies, once they are there; raises :class:`Unavailable`."""
        replies: list[object] = self.waiter.get()
        return replies


def _fail(commands: list[_Command], error: Unavailable) -> None:
    for command in commands:
        # One for each: an exception collects the traceback of every greenlet that raises it.
        copy = Unavailable(error.name, error.reason, error.detail, counts=False)
        _soon(command.waiter.throw, copy)


def _soon(wake: object, value: object) -> None:
    """Waiters are woken by the loop, never by another greenlet."""
    gevent.get_hub().loop.run_callback(wake, value)
