"""How replies are read off the wire, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.upstream.connection_pool import ConnectionPool
from router.upstream.transport import (
    MAX_HEAD_BYTES,
    RECEIVE_BYTES,
    TransportError,
)
from tests.fakes.backend.scripts import (
    answer,
    answer_and_end,
    answer_and_reset,
    chunk,
    chunked,
    reply,
)
from tests.fakes.backend.server import FakeServer
from tests.unit.upstream.builders import (
    REPLY_BYTES,
    begin,
    exchange_body,
    read_pieces,
    replay,
)

Serve = Callable[..., FakeServer]
PoolTo = Callable[..., ConnectionPool]

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

GOOD = {
    "length": (reply(b'{"a": 1}', headers=("Content-Type: application/json",)), b'{"a": 1}'),
    "no body": (reply(b""), b""),
    "chunked": (chunked(b'{"a"', b": 1}"), b'{"a": 1}'),
    "many chunks": (chunked(*(bytes([65 + n]) * n for n in range(1, 20))), None),
    "chunk extension": (CHUNKED + b"2;name=value\r\nOK\r\n0\r\n\r\n", b"OK"),
    "trailers": (CHUNKED + b"2\r\nOK\r\n0\r\nRetry-After: 9\r\nX-Sum: 1\r\n\r\n", b"OK"),
    "empty values": (reply(b"OK", headers=("X-Empty:", "X-Blank:   ", "X-Full: x")), b"OK"),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nOK", b"OK"),
    "continue first": (b"HTTP/1.1 100 Continue\r\n\r\n" + reply(b"OK"), b"OK"),
    "early hints": (b"HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n" + reply(b"OK"), b"OK"),
    "three interim": (b"HTTP/1.1 102 Wait\r\nX: y\r\n\r\n" * 3 + chunked(b"OK"), b"OK"),
    "not found": (reply(b"{}", 404), b"{}"),
    "outside ASCII": (reply("né".encode(), headers=("X-Name: n\xe9\xff",)), "né".encode()),
    "line ends in front": (b"\r\n\r\n" + reply(b"OK"), b"OK"),
}
EACH_GOOD = pytest.mark.parametrize("name", GOOD)

BAD = {
    "length and chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "identity and length": b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nOK",
    "length twice": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nOK",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nOK",
    "list of lengths": b"Content-Length: 2, 2\r\n\r\nOK",
    "positive length": b"Content-Length: +2\r\n\r\nOK",
    "negative length": b"Content-Length: -2\r\n\r\nOK",
    "length in hex": b"Content-Length: 0x2\r\n\r\nOK",
    "empty length": b"Content-Length:\r\n\r\nOK",
    "endless length": b"Content-Length: 99999999999999999999999\r\n\r\nOK",
    "bare line feed": b"Content-Length: 2\nX: y\r\n\r\nOK",
    "bare line feed at the end": b"Content-Length: 2\r\n\nOK",
    "bare carriage return": b"X: a\rb\r\nContent-Length: 2\r\n\r\nOK",
    "folded header": b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nOK",
    "blank before colon": b"Content-Length : 2\r\n\r\nOK",
    "no colon": b"Content-Length\r\n\r\nOK",
    "no name": b": 2\r\n\r\nOK",
    "nul in a value": b"X: a\x00b\r\nContent-Length: 2\r\n\r\nOK",
    "nul in a name": b"X\x00Y: a\r\nContent-Length: 2\r\n\r\nOK",
    "chunk size in letters": b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nOK\r\n0\r\n\r\n",
    "negative chunk size": b"Transfer-Encoding: chunked\r\n\r\n-2\r\nOK\r\n0\r\n\r\n",
    "chunk size with 0x": b"Transfer-Encoding: chunked\r\n\r\n0x2\r\nOK\r\n0\r\n\r\n",
    "chunk size with a blank": b"Transfer-Encoding: chunked\r\n\r\n2 \r\nOK\r\n0\r\n\r\n",
    "endless chunk": b"Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\nOK\r\n0\r\n\r\n",
    "chunk longer than its size": b"Transfer-Encoding: chunked\r\n\r\n2\r\nOKK\r\n0\r\n\r\n",
    "chunk shorter than its size": b"Transfer-Encoding: chunked\r\n\r\n3\r\nOK\r\n0\r\n\r\n",
    "bare line feed after a chunk size": b"Transfer-Encoding: chunked\r\n\r\n2\nOK\r\n0\r\n\r\n",
}  # fmt: skip
NO_REPLY = {
    "bare line feeds only": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nOK",
    "status 99": b"HTTP/1.1 99 No\r\nContent-Length: 2\r\n\r\nOK",
    "status 000": b"HTTP/1.1 000 No\r\nContent-Length: 2\r\n\r\nOK",
    "status 099": b"HTTP/1.1 099 No\r\nContent-Length: 2\r\n\r\nOK",
    "status 1000": b"HTTP/1.1 1000 No\r\nContent-Length: 2\r\n\r\nOK",
    "status in letters": b"HTTP/1.1 two OK\r\nContent-Length: 2\r\n\r\nOK",
    "another protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx",
    "unknown version": b"HTTP/1.7 200 OK\r\nContent-Length: 2\r\n\r\nOK",
    "a request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no HTTP": b"<html>hello</html>\r\n\r\n",
    "another server": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": b"\x00" * 64,
}


def expected_headers(name: str) -> list[str]:
    lines = GOOD[name][0].split(b"\r\n\r\n")
    final = next(part for part in lines if b"HTTP/1.1 1" not in part and part)
    return [line.split(b":")[0].decode() for line in final.split(b"\r\n")[1:]]


@EACH_GOOD
def test_a_reply_is_read(serve: Serve, pool_to: PoolTo, name: str) -> None:
    """Every framing that the standard allows gives the body that was meant."""
    wire, body = GOOD[name]
    server = serve(answer(wire))
    pool = pool_to(server)
    exchange = begin(pool)
    assert exchange.status == (404 if name == "not found" else 200)
    assert [field for field, _ in exchange.headers] == expected_headers(name)
    if body is not None:
        assert exchange.read_all(REPLY_BYTES) == body
    else:
        assert len(exchange.read_all(REPLY_BYTES)) == sum(range(1, 20))
    exchange_body(pool)
    assert server.connections == 1  # none of them makes the connection unusable


@EACH_GOOD
def test_reads_may_end_anywhere(name: str) -> None:
    """Cut in two at every byte, a reply reads as it does in one piece."""
    wire = GOOD[name][0]
    whole = read_pieces([wire])
    assert whole[3] == [True]
    for cut in range(1, len(wire)):
        assert read_pieces([wire[:cut], wire[cut:]]) == whole
    assert read_pieces([wire[n : n + 1] for n in range(len(wire))]) == whole


@given(st.sampled_from(sorted(GOOD)), st.lists(st.integers(1, 400), max_size=12))
def test_reads_may_end_anywhere_any_number_of_times(name: str, cuts: list[int]) -> None:
    """However a reply is cut, it gives the same status, headers and body."""
    wire = GOOD[name][0]
    marks = [0, *sorted(cut % len(wire) for cut in cuts), len(wire)]
    pieces = [wire[start:end] for start, end in pairwise(marks)]
    assert read_pieces(pieces) == read_pieces([wire])


@pytest.mark.parametrize("name", BAD)
def test_an_ambiguous_reply_is_refused(serve: Serve, pool_to: PoolTo, name: str) -> None:
    """A reply that two parsers could read differently is none, and its connection is gone (P16)."""
    server = serve(answer_and_end(OK + BAD[name]), answer(reply(b"clean")))
    pool = pool_to(server)
    with pytest.raises(TransportError, match=r"^malformed reply") as refused:
        exchange_body(pool)
    assert refused.value.sent
    assert exchange_body(pool) == (200, b"clean")


@pytest.mark.parametrize("name", NO_REPLY)
def test_what_is_no_reply_is_refused_at_once(serve: Serve, pool_to: PoolTo, name: str) -> None:
    """Nonsense is not waited on: a status of 000 used to hold the call to its timeout."""
    pool = pool_to(serve(answer(NO_REPLY[name])))
    with pytest.raises(TransportError, match=r"^malformed reply"):
        exchange_body(pool)


@given(st.binary(min_size=1, max_size=400), st.booleans())
def test_no_bytes_bring_the_parser_down(noise: bytes, after_status: bool) -> None:
    """Random bytes are a reply or a ``TransportError``, never anything else."""
    try:
        status, _, body, reusable = read_pieces([OK + noise if after_status else noise])
    except TransportError:
        return
    assert status >= 200
    assert len(body) <= len(noise)
    assert len(reusable) == 1


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("headers", [(), ("Content-Length: 5",)], ids=["bare", "length"])
def test_some_statuses_have_no_body(
    serve: Serve, pool_to: PoolTo, status: int, headers: tuple[str, ...]
) -> None:
    """204 and 304 end with their head, whatever length they announce."""
    server = serve(answer(reply(b"", status, headers=headers, length=False), reply(b"next")))
    pool = pool_to(server)
    assert exchange_body(pool) == (status, b"")
    assert exchange_body(pool) == (200, b"next")
    assert server.connections == 1


def test_a_body_may_end_with_the_connection(serve: Serve, pool_to: PoolTo) -> None:
    """Without any framing the body is all that comes before the end of the stream."""
    server = serve(answer_and_end(OK + b"\r\nall of it"))
    pool = pool_to(server)
    assert exchange_body(pool) == (200, b"all of it")
    exchange_body(pool)
    assert server.connections == 2


@pytest.mark.parametrize("ending", [answer_and_end, answer_and_reset])
@pytest.mark.parametrize(
    "cut",
    [
        b"",
        b"HTTP/1.1 20",
        OK + b"Content-Le",
        OK + b"Content-Length: 9\r\n\r\n",
        OK + b"Content-Length: 9\r\n\r\nhalf",
        CHUNKED,
        CHUNKED + b"9\r\nhalf",
        CHUNKED + b"4\r\nhalf\r\n",
        CHUNKED + b"4\r\nhalf\r\n0\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
    ids=[
        "nothing", "status line", "header", "length only", "half a body", "chunked only",
        "half a chunk", "no last chunk", "half a last chunk", "interim only",
    ],
)  # fmt: skip
def test_a_cut_reply_is_an_error(
    serve: Serve, pool_to: PoolTo, cut: bytes, ending: Callable[[bytes], object]
) -> None:
    """A body that breaks off is never taken for a whole one; the backend may have seen the call."""
    pool = pool_to(serve(ending(cut)))
    with pytest.raises(TransportError, match=r"closed early|receive failed") as broken:
        exchange_body(pool)
    assert broken.value.sent


@pytest.mark.parametrize("name", ["length", "chunked", "many chunks"])
def test_a_reply_cut_at_any_byte_is_an_error(name: str) -> None:
    """There is no byte at which a framed reply could break off unnoticed (F6)."""
    wire = GOOD[name][0]
    for cut in range(len(wire)):
        with pytest.raises(TransportError, match="closed early"):
            read_pieces([wire[:cut]])


def test_trailers_are_not_headers(serve: Serve, pool_to: PoolTo) -> None:
    """What comes after the body never joins the head, where it used to end up."""
    exchange, _ = replay([GOOD["trailers"][0]])
    exchange.run(b"", b"")
    assert exchange.headers == [["Transfer-Encoding", "chunked"]]


def test_a_large_head_is_read(serve: Serve, pool_to: PoolTo) -> None:
    """A head just below the limit is one like any other."""
    filler = tuple(f"X-Filler-{n}: {'x' * 1000}" for n in range(62))
    wire = reply(b"body", headers=filler)
    assert RECEIVE_BYTES < len(wire) < MAX_HEAD_BYTES
    pool = pool_to(serve(answer(wire)))
    exchange = begin(pool)
    assert len(exchange.headers) == 63
    assert exchange.read_all(REPLY_BYTES) == b"body"


@pytest.mark.parametrize(
    "endless",
    [
        OK + b"X-Filler: x\r\n" * 10_000,
        OK + b"X-Filler: " + b"x" * 130_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 6_000,
        b"\r\n" * 60_000,
    ],
    ids=["many headers", "long header", "many interim replies", "empty lines"],
)
def test_an_endless_head_is_refused(serve: Serve, pool_to: PoolTo, endless: bytes) -> None:
    """A head takes no more memory than its limit and one read."""
    pool = pool_to(serve(answer(endless)))
    with pytest.raises(TransportError, match="head too large"):
        begin(pool)


def test_endless_trailers_are_not_kept(serve: Serve, pool_to: PoolTo) -> None:
    """Trailers are read over, not collected."""
    trailers = b"".join(b"X-%d: y\r\n" % n for n in range(10_000))
    exchange, _ = replay([CHUNKED + b"2\r\nOK\r\n0\r\n" + trailers + b"\r\n"])
    exchange.run(b"", b"")
    assert (exchange.read_all(REPLY_BYTES), len(exchange.headers)) == (b"OK", 1)


@pytest.mark.parametrize("size", [11, 12, 50_000, 500_000])
@pytest.mark.parametrize("frame", [reply, chunked], ids=["length", "chunked"])
def test_a_reply_over_its_limit_is_refused(
    serve: Serve, pool_to: PoolTo, size: int, frame: Callable[[bytes], bytes]
) -> None:
    """Not one byte more than allowed is accepted, also when it comes in the first read."""
    server = serve(answer(frame(b"x" * size)))
    pool = pool_to(server)
    with pytest.raises(TransportError, match="reply too large"):
        begin(pool).read_all(size - 1)
    assert len(begin(pool).read_all(size)) == size


def test_a_stream_is_handed_on_as_it_arrives(serve: Serve, pool_to: PoolTo) -> None:
    """Each chunk is there before the next is sent, and only the end of the body is empty."""
    pool = pool_to(serve(answer(CHUNKED + chunk(b"one"))))
    exchange = begin(pool)
    assert exchange.read_chunk() == b"one"
    exchange.close()
    whole, _ = replay([CHUNKED, chunk(b"one"), chunk(b"two")[:4], chunk(b"two")[4:], chunk(b"")])
    whole.run(b"", b"")
    assert [whole.read_chunk() for _ in range(4)] == [b"one", b"t", b"wo", b""]
    assert whole.read_chunk() == b""
