"""A worker that drains ends waits for requests, never requests."""

from __future__ import annotations

import time
from collections.abc import Iterator

import gevent
import gevent.socket
import pytest

from router.server.client_socket import ClientSocket
from router.server.idle_wait import FIRST_REQUEST_S, IdleWait


class Connection:
    """A client, and what a worker does with its connection: wait for a request, and serve it."""

    def __init__(self, *, fresh: bool = False) -> None:
        self.client, served = gevent.socket.socketpair()
        self.waiting: dict[IdleWait, None] = {}
        self._served = ClientSocket(served)
        self._fresh = fresh
        self.greenlet = gevent.spawn(self._serve_one)
        gevent.sleep(0)
        (self.idle,) = self.waiting

    def _serve_one(self) -> str:
        request = b""
        with IdleWait(60.0, self.waiting, self._served, fresh=self._fresh):
            while not request.endswith(b"."):
                request += self._served.recv(100)
        if not request.endswith(b"."):
            return "closed"
        gevent.sleep(0.001)
        return "served"

    def may_end(self, after_s: float) -> bool:
        return self.idle.may_end(time.monotonic() + after_s)

    def close(self) -> None:
        self.greenlet.kill()
        self.client.close()
        self._served.close()


@pytest.fixture
def connection() -> Iterator[Connection]:
    connection = Connection()
    yield connection
    connection.close()


def test_a_request_that_comes_in_the_same_instant_is_served(connection: Connection) -> None:
    """What ends the wait used to be thrown at the request, which was then answered with a 500."""
    connection.client.sendall(b"GET.")
    gevent.sleep(0)
    connection.idle.end()
    assert connection.greenlet.get(timeout=5) == "served"


def test_a_request_that_the_kernel_has_is_served(connection: Connection) -> None:
    """It came after the loop had looked, before the wait was ended: a POST that is lost then cannot
    be sent again."""
    connection.client._sock.sendall(b"POST.")  # no turn of the loop comes between
    connection.idle.end()
    assert connection.greenlet.get(timeout=5) == "served"


def test_a_connection_without_a_request_is_closed(connection: Connection) -> None:
    """The wait ends without an exception, long before its time."""
    connection.idle.end()
    assert connection.greenlet.get(timeout=5) == "closed"
    assert not connection.waiting


def test_who_sends_a_little_at_a_time_is_spared_once(connection: Connection) -> None:
    """A head that never ends does not keep its connection."""
    for _ in range(2):
        connection.client._sock.sendall(b"G")
        connection.idle.end()
        gevent.sleep(0.001)
    assert connection.greenlet.get(timeout=5) == "closed"


@pytest.mark.parametrize(
    ("fresh", "sent", "waits"), [(False, b"", False), (False, b"G", True), (True, b"", True)]
)
def test_a_drain_waits_for_what_is_coming(fresh: bool, sent: bytes, waits: bool) -> None:
    """For the first request of a connection, and for one that has begun; not for ever."""
    connection = Connection(fresh=fresh)
    connection.client.sendall(sent)
    gevent.sleep(0.001)
    assert connection.may_end(0) is not waits
    assert connection.may_end(FIRST_REQUEST_S)
    connection.close()
