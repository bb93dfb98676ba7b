"""Reading takes turns, and closing does not throw a reply away."""

from __future__ import annotations

import time

import gevent
import gevent.socket
import pytest

from router.server import client_socket
from router.server.client_socket import ClientSocket


def connected() -> tuple[gevent.socket.socket, ClientSocket]:
    """Both ends of a TCP connection, because only TCP resets."""
    with gevent.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = gevent.socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
    return client, ClientSocket(served)


def test_a_client_that_always_sends_leaves_time_for_others() -> None:
    """Each read finds its data there, so nothing but the turns switches to another greenlet."""
    client, served = connected()
    with client:
        for _ in range(40):
            client.sendall(b"x")
        ticks = reads = 0

        def tick() -> None:
            nonlocal ticks
            seen = -1
            while True:
                ticks += reads != seen
                seen = reads
                gevent.sleep(0)

        ticker = gevent.spawn(tick)
        began_s = time.monotonic()
        for _ in range(40):
            served.recv(1)
            reads += 1
            time.sleep(0.001)  # what serving the byte takes
        turns = (time.monotonic() - began_s) / client_socket.TURN_S
        assert 4 <= ticks <= turns + 1
        ticker.kill()
        served.close()


def test_a_read_waits_for_data() -> None:
    """Like any other socket; what was received is counted."""
    client, served = connected()
    with client:
        gevent.spawn_later(0.001, client.sendall, b"late")
        assert served.recv(100) == b"late"
        assert served.received == 4
        served.close()


@pytest.mark.parametrize("unread", [b"", b"a body that nobody reads"])
def test_a_reply_arrives_although_its_request_was_not_read(unread: bytes) -> None:
    """A reset would take the reply away from a client that has not read it yet."""
    client, served = connected()
    with client:
        client.sendall(unread)
        gevent.sleep(0.001)
        served.sendall(b"401")
        closing = gevent.spawn(served.close)
        gevent.sleep(0.001)
        assert client.recv(100) == b"401"
        assert client.recv(100) == b""
    closing.get(timeout=5)


def test_who_never_stops_sending_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end does not depend on the client."""
    monkeypatch.setattr(client_socket, "LINGER_S", 0.01)
    client, served = connected()
    with client:
        served.unread = True
        began_s = time.monotonic()
        served.close()
        assert time.monotonic() - began_s < 5
        assert served.fileno() == -1


def test_others_whose_data_has_arrived_come_next() -> None:
    """A greenlet that slept for no time came back fifty times before a socket was looked at."""
    (client, served), (neighbour, its_end) = connected(), connected()
    turns = 0

    def work() -> None:
        nonlocal turns
        while True:
            time.sleep(client_socket.TURN_S * 1.1)  # what serving takes; not gevent's
            turns += 1
            served.take_turns()

    with client, neighbour:
        gevent.sleep(0)
        worker = gevent.spawn(work)
        neighbour.sendall(b"x")
        assert its_end.recv(1) == b"x"
        its_end.sendall(b"y")
        assert neighbour.recv(1) == b"y"
        worker.kill()
        served.close()
        its_end.close()
    assert turns < 20
