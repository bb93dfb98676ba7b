"""The connections to one Redis server: bounded in number, every wait bounded in time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from redis.exceptions import RedisError

from router.breaker import Unavailable
from router.net.sockets import has_input
from router.redis.connection import RedisConnection

LOST: Final = "connections were lost"


class Pool:
    """Exchanges commands for replies, one connection for each exchange at a time.

    A connection goes back only after all replies of its exchange were read. Whatever else ends an
    exchange, a timeout or a killed greenlet, costs the connection: the reply that is still to come
    must never be taken for the reply to another command.
    """

    def __init__(self, connect: Callable[[], RedisConnection], *, max_connections: int) -> None:
        self._connect = connect
        self._max_connections = max_connections
        self._idle: deque[RedisConnection] = deque()
        self._open = 0
        self._waiting = 0
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        self.was_lost = False
        """Whether a connection has been closed from the other end."""
        self.connects_when_lost = True
        """Where not, no connection is made while ``was_lost``: :class:`Unavailable` with the detail
        ``LOST``, which does not count, lets the owner find out first who is there now."""

    @property
    def in_use(self) -> int:
        """How many connections are exchanging, or being made, now."""
        return self._open - len(self._idle)

    @property
    def open(self) -> int:
        """How many connections there are."""
        return self._open

    def exchange(self, commands: bytes, count: int, deadline_s: float) -> list[object]:
        """Send packed commands, read ``count`` replies; an error that Redis answers is a reply.

        Raises :class:`Unavailable` when they are not all here by ``deadline_s``.
        """
        connection = self._checkout(deadline_s)
        complete = False
        try:
            connection.set_deadline(deadline_s)
            replies = connection.exchange(commands, count)
            complete = True
        except TimeoutError as error:
            raise Unavailable("redis", "timeout", str(error)) from None
        except (RedisError, OSError) as error:
            self.was_lost = True
            raise Unavailable("redis", "lost", str(error)) from None
        finally:
            if complete and not self._closed:
                self._give_back(connection)
            else:
                self._discard(connection)
        return replies

    def close(self) -> None:
        """Close idle connections now, the others when their exchange ends."""
        self._closed = True
        while self._idle:
            self._discard(self._idle.pop())

    def _checkout(self, deadline_s: float) -> RedisConnection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if connection._sock is not None and not has_input(connection._sock):
                return connection
            self.was_lost = True
            self._discard(connection)  # Redis has closed it
        return self._reserve_place(deadline_s) or self._made(deadline_s)

    def _reserve_place(self, deadline_s: float) -> RedisConnection | None:
        """A connection that came free, or ``None`` and a place for a new one."""
        with self._changed:
            # Announced before looking, or what is given back in between would wake nobody.
            self._waiting += 1
            try:
                while True:
                    try:
                        return self._idle.pop()
                    except IndexError:
                        pass
                    if self._open < self._max_connections:
                        self._open += 1
                        return None
                    self._wait(deadline_s - time.monotonic())
            finally:
                self._waiting -= 1

    def _wait(self, left_s: float) -> None:
        if left_s <= 0:
            raise Unavailable("redis", "pool_wait", f"{self._max_connections} connections busy")
        self._changed.wait(left_s)

    def _made(self, deadline_s: float) -> RedisConnection:
        connection = None
        made = False
        try:
            if self.was_lost and not self.connects_when_lost:
                raise Unavailable("redis", "connect", LOST, counts=False)
            connection = self._connect()
            connection.set_deadline(deadline_s)
            connection.connect()
            made = True
            return connection
        except (RedisError, OSError) as error:
            raise Unavailable("redis", "connect", str(error)) from None
        finally:
            if not made:  # whatever it was, a killed greenlet included
                self._discard(connection)

    def _give_back(self, connection: RedisConnection) -> None:
        self._idle.append(connection)
        if self._waiting:
            with self._changed:
                self._changed.notify()

    def _discard(self, connection: RedisConnection | None) -> None:
        with self._changed:
            self._open -= 1
            self._changed.notify()
        if connection is not None:
            connection.disconnect()
