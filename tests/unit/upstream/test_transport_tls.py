"""TLS to backends: who is trusted, and that no wait loses its deadline behind it."""

from __future__ import annotations

import datetime
import random
import ssl
import time
from collections.abc import Callable

import pytest
import trustme

from router.errors import BackendTimeout
from router.upstream import transport
from router.upstream.connection_pool import ConnectionPool
from router.upstream.session import trusted_context
from router.upstream.transport import TransportError
from tests.fakes.backend.scripts import answer, answer_and_hang, chunk, deaf, reply, silent
from tests.fakes.backend.server import FakeServer, Peer, Script
from tests.unit.upstream.builders import (
    REPLY_BYTES,
    begin,
    deadlines,
    exchange_body,
    head,
    new_pool,
)

Serve = Callable[..., FakeServer]
PoolTo = Callable[..., ConnectionPool]

SLACK_S = 0.5
"""What a busy machine may add. Without its deadline each wait would take 4 s and more."""
LAST_YEAR = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=365)


def server_side(
    *names: str, authority: trustme.CA, until: datetime.datetime | None = None
) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names, not_after=until).configure_cert(context)
    return context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The only authority that the router trusts in these tests."""
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """The router's own context, with that authority added."""
    context = trusted_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def trusted(authority: trustme.CA) -> ssl.SSLContext:
    """What a backend with a good certificate serves with."""
    return server_side("127.0.0.1", authority=authority)


def test_a_trusted_backend_is_called(
    serve: Serve, pool_to: PoolTo, trusted: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """Calls go through, and one handshake serves many of them."""
    server = serve(answer(reply(b"secret")), tls=trusted)
    pool = pool_to(server, tls=trusting)
    assert [exchange_body(pool) for _ in range(20)] == [(200, b"secret")] * 20
    assert (server.connections, server.requests[0]) == (1, head() + b"{}")


def test_the_system_s_authorities_are_trusted_and_nothing_is_optional() -> None:
    """The context that workers use checks chain and name, from TLS 1.2 on."""
    context = trusted_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) > 50


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda ours: server_side("127.0.0.1", authority=trustme.CA()), "unable to get"),
        (lambda ours: server_side("other.example", authority=ours), "IP address mismatch"),
        (lambda ours: server_side("127.0.0.2", authority=ours), "IP address mismatch"),
        (lambda ours: server_side("127.0.0.1", authority=ours, until=LAST_YEAR), "has expired"),
    ],
    ids=["unknown authority", "other name", "other address", "expired"],
)  # fmt: skip
def test_a_backend_that_cannot_prove_itself_gets_nothing(
    serve: Serve,
    pool_to: PoolTo,
    authority: trustme.CA,
    trusting: ssl.SSLContext,
    make: Callable[[trustme.CA], ssl.SSLContext],
    reason: str,
) -> None:
    """Not a byte of the call is sent, and the reason names no host."""
    server = serve(silent, tls=make(authority))
    with pytest.raises(TransportError) as refused:
        pool_to(server, tls=trusting).open(deadlines())
    assert refused.value.reason.startswith("TLS failed: certificate not trusted (")
    assert reason in refused.value.reason
    assert "127.0.0.1" not in refused.value.reason
    assert not refused.value.sent
    assert [peer.received for peer in server.peers] == [b""]


def test_a_wrong_host_name_is_refused(
    serve: Serve, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """A certificate for another name is refused, also from a trusted authority."""
    server = serve(silent, tls=server_side("other.example", authority=authority))
    pool = new_pool(("https", "localhost", server.port), tls=trusting)
    with pytest.raises(TransportError) as refused:
        pool.open(deadlines())
    assert "Hostname mismatch" in refused.value.reason
    assert "localhost" not in refused.value.reason


def test_plain_text_is_no_tls(serve: Serve, trusting: ssl.SSLContext) -> None:
    """A backend that speaks HTTP where TLS is configured gets nothing."""

    def shout(peer: Peer) -> None:
        peer.read_some()
        peer.send(reply())
        peer.wait_closed()

    pool = new_pool(("https", "127.0.0.1", serve(shout).port), tls=trusting)
    with pytest.raises(TransportError, match=r"^TLS failed") as refused:
        pool.open(deadlines())
    assert not refused.value.sent


def test_large_bodies_pass_both_ways(
    serve: Serve, pool_to: PoolTo, trusted: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """Requests and replies of many records arrive whole."""
    body = bytes(range(256)) * 8_000
    server = serve(answer(reply(body)), tls=trusted)
    pool = pool_to(server, tls=trusting)
    exchange = begin(pool, deadlines(), body)
    assert exchange.read_all(REPLY_BYTES) == body
    assert server.requests == [head(body) + body]
    assert exchange_body(pool) == (200, body)
    assert server.connections == 1


def test_a_slow_reader_gets_every_record_once(
    serve: Serve,
    pool_to: PoolTo,
    trusted: ssl.SSLContext,
    trusting: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wait in the middle of a record is taken up where it was, not begun again."""
    monkeypatch.setattr(transport, "CLIENT_CHECK_S", 0.02)

    def slow(peer: Peer) -> None:
        peer.pause(0.15)
        peer.read_request()
        peer.send(reply(b"got it"))

    server = serve(slow, tls=trusted)
    body = random.Random(7).randbytes(12_000_000)
    exchange = begin(pool_to(server, tls=trusting), deadlines(), body)
    assert exchange.read_all(REPLY_BYTES) == b"got it"
    assert server.requests == [head(body) + body]


def test_a_request_that_is_not_read_ends(
    serve: Serve, pool_to: PoolTo, trusted: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """A stalled request ends at its deadline, also in the middle of a record."""
    pool = pool_to(serve(deaf, tls=trusted), tls=trusting)
    started_s = time.monotonic()
    with pytest.raises(BackendTimeout) as late:
        begin(pool, deadlines(idle_s=0.2), b"x" * 12_000_000)
    assert late.value.phase == "idle"
    assert time.monotonic() - started_s <= 0.2 + SLACK_S


@pytest.mark.parametrize("farewell", [True, False])
def test_a_connection_closed_while_idle_is_not_used(
    serve: Serve,
    pool_to: PoolTo,
    trusted: ssl.SSLContext,
    trusting: ssl.SSLContext,
    farewell: bool,
) -> None:
    """Whether or not the backend says good-bye as TLS demands (X1)."""

    def once(peer: Peer) -> None:
        peer.read_request()
        peer.send(reply(b"first"))
        if farewell:
            peer.end_tls()
        else:
            peer.end()
        peer.pause(0.15)

    server = serve(once, answer(reply(b"second")), tls=trusted)
    pool = pool_to(server, tls=trusting)
    assert exchange_body(pool) == (200, b"first")
    time.sleep(0.1)
    assert exchange_body(pool) == (200, b"second")
    assert len(server.requests) == 2


@pytest.mark.parametrize("farewell", [True, False])
def test_a_body_that_ends_with_the_connection_needs_a_farewell(
    serve: Serve,
    pool_to: PoolTo,
    trusted: ssl.SSLContext,
    trusting: ssl.SSLContext,
    farewell: bool,
) -> None:
    """Anybody on the way can cut a connection; without TLS's own end the body is not whole."""

    def cut(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of it?")
        if farewell:
            peer.end_tls()
        else:
            peer.end()
        peer.pause(0.15)

    pool = pool_to(serve(cut, tls=trusted), tls=trusting)
    if farewell:
        assert exchange_body(pool) == (200, b"all of it?")
    else:
        with pytest.raises(TransportError, match=r"^receive failed"):
            exchange_body(pool)


def by_hand(
    context: ssl.SSLContext, *records: bytes, handshake_s: float = 0.0, records_s: float = 0.0
) -> Script:
    """Serve TLS and answer with these records, at once or byte by byte."""

    def play(peer: Peer) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        engine = context.wrap_bio(incoming, outgoing, server_side=True)

        def send(every_s: float) -> None:
            data = outgoing.read()
            if every_s:
                peer.trickle(data, every_s)
            else:
                peer.send(data)

        def until(step: Callable[[], object], every_s: float) -> None:
            while True:
                try:
                    step()
                    break
                except ssl.SSLWantReadError:
                    send(every_s)
                    incoming.write(peer.read_some())
            send(every_s)

        until(engine.do_handshake, handshake_s)
        until(lambda: engine.read(65536), 0.0)
        for record in records:
            engine.write(record)
        send(records_s)
        peer.wait_closed()

    return play


def test_records_nobody_asked_for_end_a_connection(
    serve: Serve, trusted: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """Also when they came along with the reply and wait, decrypted or not, in our memory (P16)."""
    server = serve(
        by_hand(trusted, reply(b"first"), reply(b"forged")),
        by_hand(trusted, reply(b"second")),
    )
    pool = new_pool(("https", "127.0.0.1", server.port), tls=trusting)
    assert exchange_body(pool) == (200, b"first")
    assert exchange_body(pool) == (200, b"second")
    assert server.connections == 2
    pool.close()


def test_a_trickled_handshake_costs_the_connect_timeout(
    serve: Serve, trusted: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """Under gevent each byte used to start the wait anew: 48 s instead of half a second (F7)."""
    server = serve(by_hand(trusted, reply(), handshake_s=0.02))
    pool = new_pool(("https", "127.0.0.1", server.port), tls=trusting)
    started_s = time.monotonic()
    with pytest.raises(TransportError, match=r"^TLS failed: timeout$") as late:
        pool.open(deadlines(connect_s=0.2))
    assert 0.2 <= time.monotonic() - started_s <= 0.2 + SLACK_S
    assert (late.value.sent, pool.in_use) == (False, 0)


@pytest.mark.parametrize(
    ("waits", "phase"), [({"first_byte_s": 0.2}, "first_byte"), ({"total_s": 0.2}, "total")]
)
def test_a_trickled_record_does_not_stretch_a_deadline(
    serve: Serve,
    trusted: ssl.SSLContext,
    trusting: ssl.SSLContext,
    waits: dict[str, float],
    phase: str,
) -> None:
    """Nor do the bytes of a record that is never whole (F7)."""
    server = serve(by_hand(trusted, reply(b"x" * 5000), records_s=0.02))
    pool = new_pool(("https", "127.0.0.1", server.port), tls=trusting)
    started_s = time.monotonic()
    with pytest.raises(BackendTimeout) as late:
        begin(pool, deadlines(**waits))
    assert late.value.phase == phase
    assert 0.2 <= time.monotonic() - started_s <= 0.2 + SLACK_S
    assert pool.in_use == 0


def test_a_stream_is_handed_on_as_it_arrives(
    serve: Serve, pool_to: PoolTo, trusted: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """No byte waits for more of its record's neighbours."""
    stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"first")
    pool = pool_to(serve(answer_and_hang(stream), tls=trusted), tls=trusting)
    exchange = begin(pool)
    assert exchange.read_chunk() == b"first"
    exchange.close()
