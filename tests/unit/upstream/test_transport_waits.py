"""Every wait has a deadline that no tar pit can stretch (F7), and ends when the client leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from router.errors import BackendTimeout, ClientGone
from router.upstream.connection_pool import ConnectionPool
from router.upstream.transport import Deadlines, Exchange, TransportError
from tests.fakes.backend.scripts import answer, answer_and_hang, chunk, deaf, reply, silent, trickle
from tests.fakes.backend.server import FakeServer, Peer, Script
from tests.unit.upstream.builders import (
    REPLY_BYTES,
    ScriptedSocket,
    begin,
    deadlines,
    exchange_body,
    head,
    new_pool,
)

Serve = Callable[..., FakeServer]
PoolTo = Callable[..., ConnectionPool]

SLACK_S = 0.2
"""What a busy machine may add; the waits themselves are exact."""
LARGE = b"x" * 12_000_000
"""More than the sockets of both sides hold."""
OPEN_STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"first")
OPEN_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"


@contextmanager
def takes(seconds: float) -> Iterator[None]:
    """The block takes this long and hardly longer."""
    started_s = time.monotonic()
    yield
    assert seconds <= time.monotonic() - started_s <= seconds * 1.1 + SLACK_S


def timeout_of(pool: ConnectionPool, waits: Deadlines, body: bytes = b"{}") -> str:
    """The phase of a call in which a backend takes too long."""
    with pytest.raises(BackendTimeout) as late:
        begin(pool, waits, body).read_all(REPLY_BYTES)
    return late.value.phase


def test_a_black_hole_costs_the_connect_timeout(black_hole: int) -> None:
    """Nothing was sent when no connection comes about in time (P10)."""
    pool = new_pool(("http", "127.0.0.1", black_hole))
    with takes(0.2), pytest.raises(TransportError, match=r"^connect timeout$") as late:
        pool.open(deadlines(connect_s=0.2))
    assert (late.value.sent, pool.in_use) == (False, 0)


def test_connecting_ends_with_the_call(black_hole: int) -> None:
    """A call that has little time left does not wait for the whole connect timeout."""
    pool = new_pool(("http", "127.0.0.1", black_hole))
    with takes(0.1), pytest.raises(TransportError, match=r"^connect timeout$"):
        pool.open(deadlines(connect_s=2.0, total_s=0.1))


def test_a_refused_connection_costs_nothing(closed_port: int) -> None:
    """A closed port is reported at once and without its number (P10)."""
    pool = new_pool(("http", "127.0.0.1", closed_port))
    with takes(0.0), pytest.raises(TransportError) as refused:
        pool.open(deadlines())
    assert refused.value.reason == "connect failed: Connection refused"
    assert (refused.value.sent, pool.in_use) == (False, 0)


@pytest.mark.parametrize(
    "script",
    [
        silent,
        trickle(reply(b"never whole", headers=("X-Filler: " + "x" * 200,)), 0.02),
        trickle(b"HTTP/1.1 100 Continue\r\n\r\n" * 10, 0.01),
    ],
    ids=["silence", "trickled head", "interim replies"],
)
def test_the_first_byte_has_its_deadline(serve: Serve, pool_to: PoolTo, script: Script) -> None:
    """The head has to be whole in time, however busily it trickles."""
    pool = pool_to(serve(script))
    with takes(0.2):
        assert timeout_of(pool, deadlines(first_byte_s=0.2)) == "first_byte"


@pytest.mark.parametrize(
    "script",
    [
        answer_and_hang(OPEN_STREAM),
        trickle(b"5;" + b"x" * 200, 0.02, at_once=OPEN_STREAM),
        trickle(b"X-Trailer: " + b"x" * 200, 0.02, at_once=OPEN_STREAM + b"0\r\n"),
    ],
    ids=["silence", "chunk extension", "trailers"],
)
def test_the_next_chunk_has_its_deadline(serve: Serve, pool_to: PoolTo, script: Script) -> None:
    """Only bytes of the body count as progress."""
    pool = pool_to(serve(script))
    exchange = begin(pool, deadlines(idle_s=0.2))
    assert exchange.read_chunk() == b"first"
    with takes(0.2), pytest.raises(BackendTimeout) as late:
        exchange.read_chunk()
    assert late.value.phase == "idle"


def test_each_chunk_renews_the_idle_deadline(serve: Serve, pool_to: PoolTo) -> None:
    """A slow stream that keeps moving is left alone."""

    def slow(peer: Peer) -> None:
        peer.read_request()
        peer.send(OPEN_STREAM)
        for _ in range(5):
            peer.pause(0.08)
            peer.send(chunk(b"next"))
        peer.send(chunk(b""))

    pool = pool_to(serve(slow))
    body = begin(pool, deadlines(idle_s=0.25)).read_all(REPLY_BYTES)
    assert body == b"first" + b"next" * 5


@pytest.mark.parametrize(
    "script",
    [
        silent,
        trickle(reply(b"x" * 500), 0.02),
        trickle(b"x" * 500, 0.02, at_once=OPEN_BODY),
        trickle(chunk(b"x") * 100, 0.01, at_once=OPEN_STREAM),
    ],
    ids=["silence", "trickled reply", "trickled body", "trickled chunks"],
)
def test_the_whole_call_has_its_deadline(serve: Serve, pool_to: PoolTo, script: Script) -> None:
    """No progress is fast enough to outlive the total deadline (G6)."""
    pool = pool_to(serve(script))
    with takes(0.2):
        assert timeout_of(pool, deadlines(total_s=0.2)) == "total"


def test_a_backend_that_reads_nothing_is_left(serve: Serve, pool_to: PoolTo) -> None:
    """A large request that stalls ends after the idle time, where it used to take the total."""
    pool = pool_to(serve(deaf))
    with takes(0.2):
        assert timeout_of(pool, deadlines(idle_s=0.2), LARGE) == "idle"


def test_sending_ends_with_the_call(serve: Serve, pool_to: PoolTo) -> None:
    """The total deadline holds while a large request is sent."""
    pool = pool_to(serve(deaf))
    with takes(0.15):
        assert timeout_of(pool, deadlines(total_s=0.15), LARGE) == "total"


def test_a_slow_reader_gets_all_of_a_large_request(serve: Serve, pool_to: PoolTo) -> None:
    """Every byte arrives once and in order although the sockets were full for a while."""

    def slow(peer: Peer) -> None:
        peer.pause(0.05)
        peer.read_request()
        peer.send(reply(b"got it"))

    server = serve(slow)
    body = bytes(range(256)) * 12_000
    exchange = begin(pool_to(server), deadlines(), body)
    assert exchange.read_all(REPLY_BYTES) == b"got it"
    assert server.requests == [head(body) + body]


def test_a_socket_that_takes_little_at_a_time_gets_every_byte() -> None:
    """What a socket did not take is sent again, and nothing is sent twice."""

    class Reluctant(ScriptedSocket):
        taken = b""
        asked = 0

        def send(self, data: bytes) -> int:
            self.asked += 1
            if self.asked % 3 == 0 and len(self.taken) > 100:
                raise TimeoutError
            self.taken += bytes(data[:7_001])
            return min(len(data), 7_001)

        def sendall(self, data: bytes) -> None:
            self.taken += data

    sock: Any = Reluctant([reply()])
    body = bytes(range(256)) * 1_000
    Exchange(lambda *_: None, sock, deadlines(), reused=False).run(head(body), body)
    assert sock.taken == head(body) + body


def test_nothing_is_sent_after_the_deadline(serve: Serve, pool_to: PoolTo) -> None:
    """A call that is over before it begins reaches no backend, also on a kept connection."""
    server = serve(answer(reply()))
    pool = pool_to(server)
    exchange_body(pool)
    with pytest.raises(BackendTimeout):
        begin(pool, deadlines(total_s=0.0))
    assert exchange_body(pool) == (200, b"{}")
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("script", "body"),
    [
        (silent, b"{}"),
        (trickle(reply(b"x" * 500), 0.02), b"{}"),
        (trickle(b"x" * 500, 0.02, at_once=OPEN_BODY), b"{}"),
        (answer_and_hang(OPEN_STREAM), b"{}"),
        (deaf, LARGE),
    ],
    ids=["silence", "trickled head", "trickled body", "silent stream", "stalled request"],
)
def test_a_client_that_left_ends_the_wait(
    serve: Serve, pool_to: PoolTo, script: Script, body: bytes
) -> None:
    """Within half a second the backend's connection is closed (U9, S3).

    Bytes that trickled in used to keep the router from looking at all.
    """
    server = serve(script)
    pool = pool_to(server)
    left_s = time.monotonic() + 0.1
    waits = deadlines(client_gone=lambda: time.monotonic() >= left_s)
    with pytest.raises(ClientGone):
        begin(pool, waits, body).read_all(REPLY_BYTES)
    assert time.monotonic() - left_s <= 0.5
    assert pool.in_use == 0


def test_a_quick_call_does_not_look_for_its_client(serve: Serve, pool_to: PoolTo) -> None:
    """Looking costs a system call, so it is done only when there is a wait."""
    asked: list[bool] = []

    def gone() -> bool:
        asked.append(True)
        return True

    pool = pool_to(serve(answer(reply())))
    assert exchange_body(pool, deadlines(client_gone=gone)) == (200, b"{}")
    assert asked == []


def test_the_rest_can_be_hurried(serve: Serve, pool_to: PoolTo) -> None:
    """A shorter deadline takes the place of a longer one, never the other way round."""
    pool = pool_to(serve(answer_and_hang(OPEN_STREAM)))
    exchange = begin(pool)
    exchange.shorten_deadline(0.1)
    exchange.shorten_deadline(30.0)
    assert exchange.read_chunk() == b"first"
    with takes(0.1), pytest.raises(BackendTimeout) as late:
        exchange.read_chunk()
    assert late.value.phase == "total"


def test_the_time_to_first_byte_is_measured(serve: Serve, pool_to: PoolTo) -> None:
    """It runs from the first byte sent to the end of the head."""

    def late(peer: Peer) -> None:
        peer.read_request()
        peer.pause(0.05)
        peer.send(reply())

    exchange = begin(pool_to(serve(late)))
    assert 0.05 <= exchange.ttfb_s <= 0.05 + SLACK_S
