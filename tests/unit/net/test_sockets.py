"""Sockets keep one deadline, and looking at one changes nothing."""

from __future__ import annotations

import socket
import time

import pytest

from router.net.sockets import LATE_S, at_end, connect, has_input, left_s, next_deadline_s


def test_time_that_is_left_is_positive_or_an_error() -> None:
    """A timeout of 0 would mean "never wait", a negative one is refused by sockets."""
    assert 9.0 < left_s(time.monotonic() + 10.0) <= 10.0
    with pytest.raises(TimeoutError):
        left_s(time.monotonic())


def test_the_first_address_that_accepts_is_taken() -> None:
    """An address where nobody listens costs no connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with connect(["127.0.0.2", "127.0.0.1"], port, time.monotonic() + 5.0) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_after_the_deadline_one_address_is_tried() -> None:
    """A busy caller may begin late. However many addresses there are, they have one deadline."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        with pytest.raises(TimeoutError):
            connect(["127.0.0.2", "127.0.0.1", "127.0.0.1"], port, time.monotonic())
        with pytest.raises(BlockingIOError):
            server.accept()
        with connect(["127.0.0.1"], port, time.monotonic()) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)


def test_a_further_step_has_time() -> None:
    """What is left, but always enough for a peer that answers at once."""
    now_s = time.monotonic()
    assert next_deadline_s(now_s + 5.0) == now_s + 5.0
    assert now_s + LATE_S <= next_deadline_s(now_s - 5.0) <= time.monotonic() + LATE_S


def test_no_address_is_an_error() -> None:
    """There is nothing to return."""
    with pytest.raises(OSError, match="no address"):
        connect([], 80, time.monotonic() + 5.0)


def test_looking_at_a_socket_changes_nothing() -> None:
    """A look reads no byte, waits for none and leaves the socket's timeout as it was."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(7.0)
        assert (has_input(ours), at_end(ours)) == (False, False)
        theirs.sendall(b"x")
        assert (has_input(ours), at_end(ours)) == (True, False)
        assert ours.recv(10) == b"x"
        theirs.close()
        assert (has_input(ours), at_end(ours)) == (True, True)
        assert ours.gettimeout() == 7.0
    assert (has_input(ours), at_end(ours)) == (True, True)
