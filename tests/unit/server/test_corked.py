"""Head and body in one piece, whatever the body looks like."""

from __future__ import annotations

import pytest

from router.server.corked import JOINED_BYTES, CorkedSocket


class Wire:
    """Remembers what is sent, call by call."""

    def __init__(self, takes: int = 1 << 30) -> None:
        self.sent: list[bytes] = []
        self.timeout: float | None = None
        self._takes = takes

    def send(self, data: bytes) -> int:
        taken = data if len(data) <= self._takes else data[: self._takes]
        self.sent.append(taken)
        return len(taken)

    def sendall(self, data: bytes) -> None:
        self.sent.append(bytes(data) if isinstance(data, memoryview) else data)

    def settimeout(self, timeout: float | None) -> None:
        self.timeout = timeout


def test_head_and_body_leave_together() -> None:
    """One system call for a short reply; what follows goes out as it comes."""
    wire = Wire()
    corked = CorkedSocket(wire)
    corked.sendall(b"head ")
    assert wire.sent == []
    corked.sendall(b"body")
    corked.sendall(b"more")
    corked.flush()
    assert wire.sent == [b"head body", b"more"]


def test_a_long_body_is_not_copied() -> None:
    """The head goes first, the body is sent as the very object it is."""
    wire, body = Wire(), bytes(JOINED_BYTES + 1)
    corked = CorkedSocket(wire)
    corked.sendall(b"head")
    corked.sendall(body)
    assert wire.sent[0] == b"head"
    assert wire.sent[1] is body


def test_what_the_kernel_did_not_take_at_once_follows() -> None:
    """A client that reads slowly gets every byte once."""
    wire = Wire(takes=3)
    corked = CorkedSocket(wire)
    corked.sendall(b"head ")
    corked.sendall(b"body")
    assert wire.sent == [b"hea", b"d body"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_reply_without_a_body_is_its_head(times: int) -> None:
    """Flushing sends it, once."""
    wire = Wire()
    corked = CorkedSocket(wire)
    corked.sendall(b"head")
    for _ in range(times):
        corked.flush()
    assert wire.sent == [b"head"]


def test_nothing_sent_is_nothing_flushed() -> None:
    """A connection that was given up before its head gets no bytes."""
    wire = Wire()
    CorkedSocket(wire).flush()
    assert wire.sent == []


def test_all_else_is_the_socket_s() -> None:
    """Time limits reach the connection itself."""
    wire = Wire()
    CorkedSocket(wire).settimeout(3.0)
    assert wire.timeout == 3.0
