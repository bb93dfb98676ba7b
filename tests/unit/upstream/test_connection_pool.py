"""Slots and file descriptors: bounded, handed over in turn, and never lost."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import pytest

from router.errors import RouterError
from router.net.resolver import Resolver
from router.upstream import connection_pool as module
from router.upstream.connection_pool import ConnectionPool
from router.upstream.transport import TransportError
from tests.fakes.backend.scripts import (
    answer,
    answer_and_end,
    answer_and_hang,
    answer_and_reset,
    chunk,
    refuse,
    reply,
    silent,
)
from tests.fakes.backend.server import FakeServer
from tests.unit.upstream.builders import (
    REPLY_BYTES,
    begin,
    deadlines,
    exchange_body,
    new_pool,
)

Serve = Callable[..., FakeServer]
PoolTo = Callable[..., ConnectionPool]

OPEN_STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"first")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_full_pool_makes_callers_wait_no_longer_than_to_connect(
    serve: Serve, pool_to: PoolTo
) -> None:
    """Waiting for a slot is bounded, and nothing was sent when it fails (X2)."""
    server = serve(answer_and_hang(OPEN_STREAM))
    pool = pool_to(server, size=2)
    held = [begin(pool), begin(pool)]
    started_s = time.monotonic()
    with pytest.raises(TransportError, match="pool exhausted") as full:
        pool.open(deadlines(connect_s=0.1))
    assert 0.1 <= time.monotonic() - started_s <= 0.25
    assert not full.value.sent
    assert (pool.in_use, server.connections) == (2, 2)
    for exchange in held:
        exchange.close()


def test_waiting_for_a_slot_ends_with_the_call(serve: Serve, pool_to: PoolTo) -> None:
    """The call's own deadline counts when it comes first."""
    pool = pool_to(serve(answer_and_hang(OPEN_STREAM)), size=1)
    held = begin(pool)
    started_s = time.monotonic()
    with pytest.raises(TransportError, match="pool exhausted"):
        pool.open(deadlines(connect_s=5.0, total_s=0.1))
    assert time.monotonic() - started_s <= 0.3
    held.close()


def test_a_free_slot_goes_to_who_waits_longest(serve: Serve, pool_to: PoolTo) -> None:
    """Callers are served in the order of their arrival, on one connection after the other."""
    server = serve(answer(reply()))
    pool = pool_to(server, size=1)
    held = pool.open(deadlines())
    served: list[int] = []

    def call(number: int) -> None:
        exchange_body(pool)
        served.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(5)]
    for waiting, thread in enumerate(threads, start=1):
        thread.start()
        while len(pool._waiting) < waiting:
            time.sleep(0.001)
    held.close()
    for thread in threads:
        thread.join(5)
    assert served == [0, 1, 2, 3, 4]
    assert pool.in_use == 0


def test_a_caller_that_gave_up_takes_no_slot(serve: Serve, pool_to: PoolTo) -> None:
    """The slot that falls free later goes to somebody who is still there."""
    pool = pool_to(serve(answer(reply())), size=1)
    held = pool.open(deadlines())
    with pytest.raises(TransportError):
        pool.open(deadlines(connect_s=0.01))
    held.close()
    assert exchange_body(pool) == (200, b"{}")


class Killed(BaseException):
    """What ends a greenlet from outside."""


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_caller_killed_while_waiting_takes_no_slot(
    serve: Serve, pool_to: PoolTo, monkeypatch: pytest.MonkeyPatch, handed_over: bool
) -> None:
    """Whether its turn had come or not; the slot used to be lost for ever."""
    pool = pool_to(serve(answer(reply())), size=1)
    held = pool.open(deadlines())

    class Turn:
        def set(self) -> None:
            """The turn has come."""

        def wait(self, _timeout_s: float) -> bool:
            if handed_over:
                held.close()
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(module, "threading", SimpleNamespace(Event=Turn))
        with pytest.raises(Killed):
            pool.open(deadlines())
    held.close()
    assert pool.in_use == 0
    assert exchange_body(pool) == (200, b"{}")


def test_a_thousand_aborted_exchanges_leave_nothing_behind(serve: Serve, pool_to: PoolTo) -> None:
    """Slots and open files are back where they were, whatever ended the exchanges (S5)."""
    endings = [
        answer_and_hang(OPEN_STREAM),
        answer_and_end(OPEN_STREAM),
        answer_and_reset(b""),
        answer_and_end(b"garbage\r\n\r\n"),
        refuse,
        silent,
        answer(reply(b"x" * 5000)),
        answer(reply() + b"surplus"),
    ]
    chance = random.Random(7)
    server = serve(*(chance.choice(endings) for _ in range(1001)))
    pool = pool_to(server)
    exchange_body_or_error(pool, 0)
    before = open_files()
    for number in range(1000):
        exchange_body_or_error(pool, number % 5)
    pool.close()
    settle(before)
    assert pool.in_use == 0
    assert open_files() <= before


def exchange_body_or_error(pool: ConnectionPool, how: int) -> None:
    """Begin an exchange and give it up in one of several ways."""
    try:
        exchange = pool.open(deadlines(first_byte_s=0.002, idle_s=0.002))
        if how == 0:
            exchange.close()  # before anything was sent
            return
        exchange.run(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"")
        if how == 1:
            exchange.close()
        elif how == 2:
            exchange.read_chunk()
            exchange.close()
        else:
            exchange.read_all(100)
    except (TransportError, RouterError):
        pass


def settle(files: int) -> None:
    """Let the server's threads close their ends, which are files of this process too."""
    deadline_s = time.monotonic() + 5
    while open_files() > files and time.monotonic() < deadline_s:
        time.sleep(0.01)


def test_closing_a_pool_closes_what_is_idle(serve: Serve, pool_to: PoolTo) -> None:
    """The backend sees the end of its kept connections at once."""
    server = serve(answer(reply()))
    pool = pool_to(server)
    exchange_body(pool)
    pool.close()
    deadline_s = time.monotonic() + 5
    while server.peers[0].closed_s is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    assert exchange_body(pool) == (200, b"{}")
    assert server.connections == 2


def test_an_address_that_cannot_be_resolved_is_no_slot_lost() -> None:
    """A host without an address fails the call before anything is sent."""
    pool = new_pool(("http", "no..such.host", 80), size=1)
    for _ in range(3):
        with pytest.raises(TransportError, match=r"^no address$") as unknown:
            pool.open(deadlines())
        assert not unknown.value.sent
    assert pool.in_use == 0


@pytest.mark.parametrize("moved_to", ["0.0.0.0", "::ffff:0.0.0.0", "169.254.169.254", "fe80::1%lo"])
def test_a_name_that_leads_elsewhere_by_now_is_not_followed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, moved_to: str
) -> None:
    """The document was checked, then its name was given another address. Linux takes 0.0.0.0 for
    this machine, so that the server would hear of it."""
    tripwire, addresses = serve(answer(reply(b"{}"))), ["127.0.0.1"]

    def getaddrinfo(_name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    port = tripwire.endpoint[2]
    pool = new_pool(("http", "rebound.example", port), size=1, resolver=Resolver(fresh_s=0.0))
    exchange_body(pool)
    pool.close()
    heard = tripwire.connections
    assert heard == 1
    addresses[:] = [moved_to]
    began_s = time.monotonic()
    while time.monotonic() < began_s + 5:
        # The look-up is made beside the call: the old address serves until it is done.
        with suppress(TransportError):
            pool.open(deadlines()).close()
            pool.close()
            heard = tripwire.connections
            continue
        break
    for _ in range(3):
        with pytest.raises(TransportError, match=r"^address not allowed$") as refused:
            pool.open(deadlines())
        assert not refused.value.sent
    assert tripwire.connections == heard
    assert pool.in_use == 0


def test_an_exchange_may_be_closed_in_any_state(serve: Serve, pool_to: PoolTo) -> None:
    """Before sending, after the head, in the body, at the end, and always twice."""
    pool = pool_to(serve(answer(reply(b"x" * 100_000))), size=1)
    for read in range(4):
        exchange = pool.open(deadlines())
        if read > 0:
            exchange.run(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"")
        if read > 1:
            exchange.read_chunk()
        if read > 2:
            exchange.read_all(REPLY_BYTES)
        exchange.close()
        exchange.close()
        assert pool.in_use == 0
