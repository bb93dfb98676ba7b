"""When a connection is used again, and when it must not be."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from router.upstream.connection_pool import ConnectionPool
from router.upstream.transport import TransportError
from tests.fakes.backend.scripts import (
    answer,
    answer_and_end,
    answer_and_reset,
    chunk,
    chunked,
    reply,
)
from tests.fakes.backend.server import FakeServer, Peer
from tests.unit.upstream.builders import REPLY_BYTES, begin, deadlines, exchange_body, head

Serve = Callable[..., FakeServer]
PoolTo = Callable[..., ConnectionPool]


def until(met: Callable[[], bool]) -> None:
    """Let the other threads run until something is so."""
    deadline_s = time.monotonic() + 5
    while not met():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_a_connection_is_used_again(serve: Serve, pool_to: PoolTo) -> None:
    """In steady state every call but the first finds a connection (X2)."""
    server = serve(answer(reply(b"one"), chunked(b"t", b"wo"), reply(b"three")))
    pool = pool_to(server)
    bodies = [exchange_body(pool)[1] for _ in range(100)]
    assert bodies[:3] == [b"one", b"two", b"three"]
    assert (server.connections, len(server.requests)) == (1, 100)
    assert (pool.opened, pool.reused) == (1, 99)


def test_an_exchange_tells_whether_its_connection_was_used_before(
    serve: Serve, pool_to: PoolTo
) -> None:
    """The first call opens a connection, the second does not."""
    pool = pool_to(serve(answer(reply())))
    first, second = begin(pool), begin(pool)
    assert [first.reused, second.reused] == [False, True]


@pytest.mark.parametrize("ending", [answer_and_end, answer_and_reset])
def test_a_connection_closed_while_idle_is_never_written_to(
    serve: Serve, pool_to: PoolTo, ending: Callable[[bytes], object]
) -> None:
    """A backend that hung up between two calls costs neither an error nor a second hit (X1)."""
    server = serve(ending(reply(b"first")), answer(reply(b"second")))
    pool = pool_to(server)
    assert exchange_body(pool) == (200, b"first")
    time.sleep(0.1)  # the end has to arrive; a call made earlier would be in a race with it
    assert exchange_body(pool) == (200, b"second")
    assert len(server.requests) == 2


def test_a_connection_idle_for_too_long_is_closed(serve: Serve, pool_to: PoolTo) -> None:
    """Older connections than allowed are discarded before use, all of them (X1)."""
    server = serve(answer(reply()))
    pool = pool_to(server, idle_s=0.05)
    for exchange in [pool.open(deadlines()) for _ in range(2)]:
        exchange.run(head(), b"{}")
    time.sleep(0.1)
    assert exchange_body(pool) == (200, b"{}")
    assert (pool.opened, pool.reused) == (3, 0)
    until(lambda: [peer.closed_s is not None for peer in server.peers] == [True, True, False])


def test_bytes_nobody_asked_for_end_an_idle_connection(serve: Serve, pool_to: PoolTo) -> None:
    """A reply sent ahead of any request is never taken for the next one's (P16)."""

    def talkative(peer: Peer) -> None:
        peer.read_request()
        peer.send(reply(b"first"))
        peer.pause(0.02)
        peer.send(reply(b"forged", 200))
        peer.wait_closed()

    server = serve(talkative, answer(reply(b"second")))
    pool = pool_to(server)
    assert exchange_body(pool) == (200, b"first")
    time.sleep(0.1)
    assert exchange_body(pool) == (200, b"second")
    assert server.connections == 2


@pytest.mark.parametrize(
    "surplus",
    [b"X", b"\x00", b"0\r\n\r\n", b"HTTP/1.1 ", reply(b"forged", 503, headers=("Retry-After: 9",))],
    ids=["letter", "nul", "chunk", "half a reply", "whole reply"],
)
@pytest.mark.parametrize(
    "whole", [reply(b"mine"), chunked(b"mi", b"ne")], ids=["length", "chunked"]
)
def test_a_byte_too_many_ends_the_connection_not_the_reply(
    serve: Serve, pool_to: PoolTo, whole: bytes, surplus: bytes
) -> None:
    """What follows a reply in the same packet changes nothing of it and is not reused (P16).

    The second reply's status and headers used to replace those of the first.
    """
    server = serve(answer(whole + surplus))
    pool = pool_to(server)
    exchange = begin(pool)
    assert exchange.status == 200
    assert [name for name, _ in exchange.headers if name == "Retry-After"] == []
    assert exchange.read_all(REPLY_BYTES) == b"mine"
    assert exchange_body(pool) == (200, b"mine")
    assert server.connections == 2


@pytest.mark.parametrize(
    "closing",
    [
        reply(b"bye", headers=("Connection: close",)),
        reply(b"bye", headers=("Connection: Close, X-Other",)),
        b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nbye",
    ],
    ids=["close", "close among others", "HTTP/1.0"],
)
def test_a_backend_that_will_close_is_taken_at_its_word(
    serve: Serve, pool_to: PoolTo, closing: bytes
) -> None:
    """``Connection: close`` and HTTP/1.0 end a connection although it is still open."""
    server = serve(answer(closing))
    pool = pool_to(server)
    assert [exchange_body(pool) for _ in range(2)] == [(200, b"bye")] * 2
    assert server.connections == 2


def test_http_1_0_may_keep_a_connection(serve: Serve, pool_to: PoolTo) -> None:
    """An old server that says keep-alive means it."""
    kept = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}"
    server = serve(answer(kept))
    pool = pool_to(server)
    assert [exchange_body(pool) for _ in range(2)] == [(200, b"{}")] * 2
    assert server.connections == 1


def test_a_reply_that_was_not_read_to_its_end_ends_the_connection(
    serve: Serve, pool_to: PoolTo
) -> None:
    """The rest of an abandoned reply is never read as the next one's head."""

    def half(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        peer.wait_closed()

    server = serve(half, answer(reply(b"whole")))
    pool = pool_to(server)
    exchange = begin(pool)
    assert exchange.read_chunk() == b"half"
    exchange.close()
    assert exchange_body(pool) == (200, b"whole")
    assert server.connections == 2


def test_a_closed_exchange_reads_nothing_more(serve: Serve, pool_to: PoolTo) -> None:
    """Reading on after ``close`` fails at once instead of touching somebody else's connection."""
    stream = reply(b"", headers=("Transfer-Encoding: chunked",), length=False) + chunk(b"begun")
    pool = pool_to(serve(answer(stream)))
    exchange = begin(pool)
    assert exchange.read_chunk() == b"begun"
    exchange.close()
    exchange.close()
    with pytest.raises(TransportError, match="already closed"):
        exchange.read_chunk()
