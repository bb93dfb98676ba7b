"""Sockets with one deadline over all their waits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from router.net.deadline_socket import DeadlineSocket, open_socket
from router.net.sockets import LATE_S


@pytest.fixture
def ends() -> Iterator[tuple[DeadlineSocket, socket.socket]]:
    """A socket with a deadline, and its peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = open_socket(["127.0.0.1"], listener.getsockname()[1], time.monotonic() + 5)
        peer, _ = listener.accept()
    with sock, peer:
        yield sock, peer


def test_a_peer_that_trickles_does_not_extend_the_deadline(
    ends: tuple[DeadlineSocket, socket.socket],
) -> None:
    """D1: each byte comes in time, and the whole takes no longer than its deadline."""
    sock, peer = ends
    stopping = threading.Event()

    def trickle() -> None:
        while not stopping.wait(0.02):
            peer.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        sock.deadline_s = time.monotonic() + 0.2
        received = 0
        with pytest.raises(TimeoutError):
            while True:
                received += sock.recv_into(bytearray(10))
        assert time.monotonic() >= sock.deadline_s
        assert 1 <= received <= 10
    finally:
        stopping.set()
        thread.join(5)


def test_what_has_arrived_is_read_after_the_deadline(
    ends: tuple[DeadlineSocket, socket.socket],
) -> None:
    """A program that was busy until then does not take its peer for slow; nothing is waited for."""
    sock, peer = ends
    peer.sendall(b"in time")
    sock.deadline_s = time.monotonic() - 1
    buffer = bytearray(10)
    assert sock.recv_into(buffer) == 7
    assert buffer[:7] == b"in time"
    with pytest.raises(TimeoutError):
        sock.recv_into(buffer)


def test_a_late_writer_still_hears_the_answer(
    ends: tuple[DeadlineSocket, socket.socket],
) -> None:
    """A busy worker that comes to write after the deadline waits a moment more, and only once."""
    sock, peer = ends
    sock.deadline_s = time.monotonic() - 1
    written_s = time.monotonic()
    sock.sendall(b"x")
    assert peer.recv(1) == b"x"
    with pytest.raises(TimeoutError):
        sock.recv_into(bytearray(1))
    assert LATE_S <= time.monotonic() - written_s < LATE_S + 0.5


def test_writing_ends_at_the_deadline(ends: tuple[DeadlineSocket, socket.socket]) -> None:
    """D1: a peer that does not read holds nobody up."""
    sock, _ = ends
    sock.deadline_s = time.monotonic() + 0.1
    with pytest.raises(TimeoutError):
        sock.sendall(b"x" * 50_000_000)


def test_without_a_deadline_nothing_waits() -> None:
    """A forgotten deadline fails at once instead of waiting for ever."""
    ours, theirs = socket.socketpair()
    sock = DeadlineSocket(ours.family, ours.type, ours.proto, ours.detach())
    with theirs, sock, pytest.raises(TimeoutError):
        sock.recv_into(bytearray(1))
