"""Puts an answer on the wire, or what the behaviour makes of it."""

from __future__ import annotations

import http
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice

from router.mock_backend.behaviour import Behaviour, Draw
from router.mock_backend.received import Head
from router.mock_backend.replies import Answer, Event, StreamAnswer
from router.mock_backend.wire import Connection

GARBAGE = b"\x00\x01 this is not HTTP \xff\xfe\r\n\r\n"

# Long enough for the first half of an event to leave, and to be read, on its own.
_SPLIT_PAUSE_S = 0.002
_BODILESS = (204, 304)

_Header = tuple[str, str]


def deliver(connection: Connection, head: Head, answer: Answer | StreamAnswer, draw: Draw) -> bool:
    """Send an answer as the behaviour has it; True when the connection may serve another request.

    Raises ClientGoneError when the client leaves before the end.
    """
    behaviour = draw.behaviour
    connection.wait(draw.delay_s)
    if behaviour.failure == "reset":
        connection.reset()
        return False
    if behaviour.failure == "garbage":
        connection.send(GARBAGE)
        return False
    if behaviour.failure == "black_hole":
        connection.wait_for_end()
    if isinstance(answer, StreamAnswer):
        return _deliver_stream(connection, head, answer, behaviour)
    return _deliver_whole(connection, head, answer, behaviour)


def reject(connection: Connection, answer: Answer) -> None:
    """Send an answer to bytes that could not be read as a request, and read no more of them."""
    framing = [("Content-Type", "application/json"), ("Content-Length", str(len(answer.body)))]
    connection.send(_response_head(answer.status, framing, closing=True) + answer.body)
    connection.drain()


def _deliver_whole(
    connection: Connection, head: Head, answer: Answer, behaviour: Behaviour
) -> bool:
    body = answer.body
    if behaviour.failure == "bad_json":
        body = body[: len(body) // 2]
    length, closing = str(len(body)), not head.keeps_alive
    framing = [("Content-Type", "application/json"), ("Content-Length", length)]
    if answer.status in _BODILESS:
        framing = []
    if not framing or head.method == "HEAD":
        body = b""
    top = _response_head(answer.status, [*framing, *answer.headers], closing=closing)
    if behaviour.failure == "truncate_body":
        connection.send(top + body[: len(body) // 2])
        return False
    if behaviour.failure in ("tar_pit", "slow_body"):
        send_head, send_body = _senders(connection, behaviour)
        send_head(top)
        send_body(body)
    else:
        connection.send(top + body)
    return not closing


def _deliver_stream(
    connection: Connection, head: Head, answer: StreamAnswer, behaviour: Behaviour
) -> bool:
    chunked = head.version == "HTTP/1.1"
    closing = not (chunked and head.keeps_alive)
    framing = [("Transfer-Encoding", "chunked")] if chunked else []
    kind = [("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-cache")]
    send_head, send_body = _senders(connection, behaviour)
    send_head(_response_head(200, [*kind, *framing], closing=closing))
    events, cut = _before_cut(answer.events, behaviour)
    for event in events:
        connection.wait(event.delay_s)
        first, *rest = _writes(event, chunked=chunked, split=behaviour.split_writes, cut=cut)
        send_body(first)
        for write in rest:
            connection.wait(_SPLIT_PAUSE_S)
            send_body(write)
    return not (closing or cut)


def _before_cut(events: Iterable[Event], behaviour: Behaviour) -> tuple[Iterable[Event], bool]:
    """Return the events that the behaviour lets through, and whether the stream breaks there."""
    if behaviour.failure == "cut_stream":
        return islice(events, behaviour.cut_after_chunks), True
    if behaviour.failure == "truncate_body":
        whole = list(events)
        return whole[: len(whole) // 2], True
    return events, False


def _writes(event: Event, *, chunked: bool, split: bool, cut: bool) -> list[bytes]:
    middle = len(event.data) // 2
    writes = [event.data[:middle], event.data[middle:]] if split else [event.data]
    if not chunked:
        return writes
    writes = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in writes]
    if event.last and not cut:
        # The terminator rides on `[DONE]`: a client may leave right after it, without aborting.
        writes[-1] += b"0\r\n\r\n"
    return writes


def _senders(
    connection: Connection, behaviour: Behaviour
) -> tuple[Callable[[bytes], None], Callable[[bytes], None]]:
    """Choose how heads and how bodies are written."""
    trickle = partial(connection.trickle, interval_s=behaviour.tar_pit_interval_ms / 1000)
    if behaviour.failure == "tar_pit":
        return trickle, connection.send
    if behaviour.failure == "slow_body":
        return connection.send, trickle
    return connection.send, connection.send


def _response_head(status: int, headers: Iterable[_Header], *, closing: bool) -> bytes:
    try:
        reason = http.HTTPStatus(status).phrase
    except ValueError:
        reason = "Unknown"
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
    if closing:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
