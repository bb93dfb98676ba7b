"""A worker that drains ends waits for requests, never requests."""

from __future__ import annotations

import gevent
from gevent.event import Event

from router.server.idle_wait import IdleWait


def test_a_request_that_comes_in_the_same_instant_is_served() -> None:
    """What ends the wait used to be thrown at the request, which was then answered with a 500."""
    waiting: set[IdleWait] = set()
    request = Event()
    connection = gevent.spawn(_serve_one, waiting, request)
    gevent.sleep(0)
    (idle,) = waiting
    request.set()  # wakes it before what ends the wait arrives
    idle.end()
    assert connection.get(timeout=5) == "served"


def test_a_connection_without_a_request_is_closed() -> None:
    """The wait ends without an exception, long before its time."""
    waiting: set[IdleWait] = set()
    connection = gevent.spawn(_serve_one, waiting, Event())
    gevent.sleep(0)
    (idle,) = waiting
    idle.end()
    assert connection.get(timeout=5) == "closed"
    assert not waiting


def _serve_one(waiting: set[IdleWait], request: Event) -> str:
    """What a connection's greenlet does: wait for a request, then serve it for a while."""
    with IdleWait(60.0, waiting, fresh=False):
        request.wait()
    if not request.is_set():
        return "closed"
    gevent.sleep(0.001)
    return "served"
