"""What a connection is told to do, and the bytes of replies."""

from __future__ import annotations

from collections.abc import Callable

from tests.fakes.backend.received import Request
from tests.fakes.backend.server import Peer, Script


def serving(answer: Callable[[Peer, Request], bool]) -> Script:
    """Answer each request with this function, until it says that the connection is over."""

    def play(peer: Peer) -> None:
        while True:
            request = peer.read_request()
            with peer.answering():
                if not answer(peer, request):
                    return

    return play


def answer(*replies: bytes) -> Script:
    """Answer each request with the next reply, the last of them again and again."""

    def play(peer: Peer) -> None:
        count = 0
        while True:
            peer.read_request()
            peer.send(replies[min(count, len(replies) - 1)])
            count += 1

    return play


def answer_and_end(data: bytes) -> Script:
    """Answer one request with these bytes, then close in good order."""

    def play(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        peer.end()
        peer.wait_closed()

    return play


def answer_and_reset(data: bytes) -> Script:
    """Answer one request with these bytes, then break the connection."""

    def play(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        if data:
            peer.pause(0.05)  # a reset at once would overtake the bytes
        peer.reset()

    return play


def answer_and_hang(data: bytes) -> Script:
    """Answer one request with these bytes, then do nothing until the other side closes."""

    def play(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        peer.wait_closed()

    return play


def trickle(data: bytes, every_s: float, *, at_once: bytes = b"") -> Script:
    """Answer one request byte by byte, after what is sent at once."""

    def play(peer: Peer) -> None:
        peer.read_request()
        peer.send(at_once)
        peer.trickle(data, every_s)
        peer.wait_closed()

    return play


def silent(peer: Peer) -> None:
    """Take whatever arrives and never answer."""
    peer.wait_closed()


def deaf(peer: Peer) -> None:
    """Accept, and do not read a single byte."""
    peer.pause(60.0)


def refuse(peer: Peer) -> None:
    """Accept, and break the connection at once."""
    peer.reset()


def reply(
    body: bytes = b"{}", status: int = 200, *, headers: tuple[str, ...] = (), length: bool = True
) -> bytes:
    """A whole HTTP/1.1 reply; ``headers`` are lines such as ``Retry-After: 7``."""
    lines = [f"HTTP/1.1 {status} Whatever", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*chunks: bytes, status: int = 200, headers: tuple[str, ...] = ()) -> bytes:
    """A whole reply whose body comes in these chunks."""
    head = reply(b"", status, headers=(*headers, "Transfer-Encoding: chunked"), length=False)
    return head + b"".join(chunk(data) for data in chunks) + chunk(b"")


def chunk(data: bytes) -> bytes:
    """One chunk on the wire; an empty one ends the body."""
    return f"{len(data):x}\r\n".encode("ascii") + data + b"\r\n"


def event_stream(*events: bytes) -> bytes:
    """A whole reply that is a stream of server-sent events, each a chunk."""
    return chunked(*events, headers=("Content-Type: text/event-stream",))
