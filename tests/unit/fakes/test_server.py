"""The scripted server tells the truth about what it received."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from tests.fakes.backend.received import ForbiddenFraming, Request
from tests.fakes.backend.scripts import answer, chunked, reply, serving
from tests.fakes.backend.server import FakeServer, Peer


def connect(server: FakeServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_requests_are_recorded_whole() -> None:
    """However they are cut, and also when two come at once."""
    first = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    second = b"GET / HTTP/1.1\r\n\r\n"
    with FakeServer(answer(reply(b"one"), reply(b"two"))) as server, connect(server) as client:
        for byte in first[:-2]:
            client.sendall(bytes([byte]))
        client.sendall(first[-2:] + second)
        got = b""
        while not got.endswith(b"two"):
            got += client.recv(4096)
        assert got == reply(b"one") + reply(b"two")
    assert server.requests == server.peers[0].requests == [first, second]
    assert server.peers[0].received == first + second


def test_the_last_script_serves_all_later_connections() -> None:
    """Connections play the scripts in the order of their arrival."""
    with FakeServer(answer(reply(b"1")), answer(reply(b"2"))) as server:
        bodies = []
        for _ in range(3):
            with connect(server) as client:
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                bodies.append(client.recv(4096)[-1:])
        assert (bodies, server.connections) == ([b"1", b"2", b"2"], 3)


def test_a_reset_is_an_error_and_an_end_is_none() -> None:
    """The two ways of hanging up differ for who is reading."""

    def ending(peer: Peer) -> None:
        peer.end()
        peer.wait_closed()

    with FakeServer(Peer.reset, ending) as server:
        with pytest.raises(ConnectionResetError), connect(server) as client:
            client.recv(1)
        with connect(server) as client:
            assert client.recv(1) == b""


def test_a_mistake_in_a_script_is_raised() -> None:
    """Not swallowed by the thread that plays it."""

    def mistaken(peer: Peer) -> None:
        raise LookupError("in the script")

    server = FakeServer(mistaken)
    with connect(server) as client:
        assert client.recv(1) == b""
    with pytest.raises(LookupError, match="in the script"):
        server.close()


def test_a_request_says_what_its_bytes_say() -> None:
    """Headers keep order, case and repetition, the target its encoding, the body its bytes."""
    sent = (
        b"POST /v1/x?q=%2F..%2f HTTP/1.1\r\nhOST: x\r\nX-Two: 1\r\n"
        b'Content-Length: 11\r\nX-Two: 2\r\n\r\n{"odd" : 1}'
    )
    with FakeServer(answer(reply())) as server, connect(server) as client:
        client.sendall(sent)
        client.recv(4096)
    [request] = server.requests
    assert request == sent
    assert (request.method, request.target, request.path) == ("POST", "/v1/x?q=%2F..%2f", "/v1/x")
    names = [name for name, _ in request.headers]
    assert names == ["hOST", "X-Two", "Content-Length", "X-Two"]
    assert (request.values("x-two"), request.header("absent")) == (["1", "2"], None)
    assert (request.body, request.fields) == (b'{"odd" : 1}', {"odd": 1})


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_a_framing_that_a_router_must_not_send_fails_the_test(framing: bytes) -> None:
    """P16: it is never taken for a request, and cannot be overlooked."""
    server = FakeServer(answer(reply()))
    with connect(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\n" + framing)
        assert client.recv(1) == b""
    with pytest.raises(ForbiddenFraming):
        server.close()
    assert server.requests == []


def test_an_early_end_is_no_request() -> None:
    """A body shorter than its Content-Length does not pass for a whole one."""
    with FakeServer(answer(reply())) as server, connect(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhell")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert server.requests == []


@pytest.mark.parametrize("unread", [b"", b"GET / HTTP/1.1\r\n\r\n"], ids=["", "behind a request"])
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_a_client_that_leaves_is_noticed_in_a_pause(reset: bool, unread: bytes) -> None:
    """S3: at once, by FIN and by RST, also behind bytes that nobody has read."""

    def wait(peer: Peer, request: Request) -> bool:
        peer.pause(60)
        return True

    with FakeServer(serving(wait)) as server:
        client = connect(server)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n" + unread)
        server.wait_for(lambda fake: fake.in_flight == 1)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        server.wait_for(lambda fake: fake.open_connections == 0, timeout_s=1)
        assert (server.aborted, server.in_flight) == (1, 0)


def test_a_client_that_does_not_read_can_leave() -> None:
    """A write that blocks on a full socket ends when the client does."""
    with FakeServer(serving(lambda peer, _: bool(peer.send(bytes(50_000_000))))) as server:
        with connect(server) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            server.wait_for(lambda fake: fake.in_flight == 1)
        server.wait_for(lambda fake: fake.aborted == 1 and fake.open_connections == 0)


def test_a_whole_answer_is_no_abort() -> None:
    """A client that had all it was due may leave."""
    with FakeServer(serving(lambda peer, _: peer.send(reply()) is None)) as server:
        with connect(server) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.recv(4096)
        server.wait_for(lambda fake: fake.open_connections == 0)
        assert server.aborted == 0


def test_the_end_takes_every_thread_back() -> None:
    """Whatever connections do, closing ends their threads and aborts none of them."""
    before = set(threading.enumerate())
    server = FakeServer(serving(lambda peer, _: bool(peer.pause(60))))
    with connect(server), connect(server) as waiting, connect(server) as half:
        waiting.sendall(b"GET / HTTP/1.1\r\n\r\n")
        half.sendall(b"POST / HTTP/1.1\r\nContent-")
        server.wait_for(lambda fake: fake.in_flight == 1 and fake.open_connections == 3)
        server.close()
    assert set(threading.enumerate()) == before
    assert (server.aborted, server.open_connections) == (0, 0)


def test_waiting_in_vain_says_what_there_is() -> None:
    """A condition that is not met in time fails with the counts."""
    with FakeServer(answer(reply())) as server, pytest.raises(TimeoutError, match="aborted=0"):
        server.wait_for(lambda fake: fake.aborted == 1, timeout_s=0.01)


def test_chunks_are_framed() -> None:
    """Sizes in hex, an empty chunk at the end."""
    assert chunked(b"a" * 16, b"b").endswith(
        b"\r\n\r\n10\r\n" + b"a" * 16 + b"\r\n1\r\nb\r\n0\r\n\r\n"
    )
