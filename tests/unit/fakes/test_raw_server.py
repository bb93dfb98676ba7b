"""The scripted server tells the truth about what it received."""

from __future__ import annotations

import socket

import pytest

from tests.fakes.raw_server import Peer, RawServer, answer, chunked, reply


def connect(server: RawServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_requests_are_recorded_whole() -> None:
    """However they are cut, and also when two come at once."""
    first = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    second = b"GET / HTTP/1.1\r\n\r\n"
    with RawServer(answer(reply(b"one"), reply(b"two"))) as server, connect(server) as client:
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
    with RawServer(answer(reply(b"1")), answer(reply(b"2"))) as server:
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

    with RawServer(Peer.reset, ending) as server:
        with pytest.raises(ConnectionResetError), connect(server) as client:
            client.recv(1)
        with connect(server) as client:
            assert client.recv(1) == b""


def test_a_mistake_in_a_script_is_raised() -> None:
    """Not swallowed by the thread that plays it."""

    def mistaken(peer: Peer) -> None:
        raise LookupError("in the script")

    server = RawServer(mistaken)
    with connect(server) as client:
        assert client.recv(1) == b""
    with pytest.raises(LookupError, match="in the script"):
        server.close()


def test_chunks_are_framed() -> None:
    """Sizes in hex, an empty chunk at the end."""
    assert chunked(b"a" * 16, b"b").endswith(
        b"\r\n\r\n10\r\n" + b"a" * 16 + b"\r\n1\r\nb\r\n0\r\n\r\n"
    )
