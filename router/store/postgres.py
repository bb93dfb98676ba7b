"""A connection to PostgreSQL that does not wait for ever.

A healthy server ends a statement that takes too long. A server that is stopped, whose disk hangs or
that the network no longer reaches ends nothing; so the client has a deadline, too.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

Answer = TypeVar("Answer")


class BoundedConnection(psycopg.Connection[Any]):
    """Gives up, closed, when the server has not answered for ``answer_within_s``."""

    answer_within_s: float | None = None

    def wait(self, gen: PQGen[Answer], *args: Any, **options: Any) -> Answer:
        """Every exchange with the server goes through here.

        Raises ``psycopg.OperationalError``.
        """
        if self.answer_within_s is None:
            return super().wait(gen, *args, **options)
        ends_s = time.monotonic() + self.answer_within_s
        try:
            wanted = next(gen)
            while True:
                wanted = gen.send(self._ready(wanted, ends_s))
        except StopIteration as end:
            answer: Answer = end.value
            return answer

    def _ready(self, wanted: int, ends_s: float) -> Any:
        """What of ``wanted`` the connection is ready for."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.pgconn.socket, wanted)
            found = selector.select(max(0.0, ends_s - time.monotonic()))
        if not found:
            self.pgconn.finish()
            raise psycopg.OperationalError("no answer from the server in time")
        return found[0][1]


def connecting(answer_within_s: float | None) -> Callable[..., BoundedConnection]:
    """A ``do_connect`` listener of SQLAlchemy: connections whose every wait is bounded."""

    def connect(_dialect: object, _record: object, args: Any, options: Any) -> BoundedConnection:
        connection = BoundedConnection.connect(*args, **options)
        connection.answer_within_s = answer_within_s
        return connection

    return connect


def limiting(statement_s: float) -> Callable[[BoundedConnection, object], None]:
    """A ``connect`` listener of SQLAlchemy: sets the statement timeout of a new connection."""

    def limit(connection: BoundedConnection, _record: object) -> None:
        # Not as an option of the connection: SQLAlchemy's first queries would be cut off, too, and
        # it then leaves the connection open.
        try:
            connection.execute(f"SET statement_timeout = {max(1, round(statement_s * 1000))}")
            connection.commit()
        except BaseException:
            connection.close()
            raise

    return limit
