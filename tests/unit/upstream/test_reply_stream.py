"""However a streamed reply ends, it has one outcome and frees its backend (U9, F6)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from router.call import Usage
from router.providers.openai_api import CompletionStream
from router.upstream import reply_stream as module
from router.upstream.connection_pool import ConnectionPool
from router.upstream.reply_stream import ReplyStream
from router.upstream.transport import Deadlines
from tests.fakes.backend.scripts import (
    answer,
    answer_and_end,
    answer_and_hang,
    answer_and_reset,
    chunk,
    event_stream,
    reply,
)
from tests.fakes.backend.server import FakeServer, Peer, Script
from tests.unit.upstream.builders import begin, deadlines, exchange_body

Serve = Callable[..., FakeServer]
PoolTo = Callable[..., ConnectionPool]

FIRST = b'data: {"choices": [{"index": 0, "delta": {"content": "hello"}}]}\n\n'
LAST = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = event_stream(FIRST, LAST, USAGE, DONE)
OPEN = WHOLE[: WHOLE.index(b"\r\n\r\n") + 4]


def open_stream(
    pool: ConnectionPool, waits: Deadlines | None = None, *, drain: bool = False, strip: bool = True
) -> ReplyStream:
    return ReplyStream(begin(pool, waits), CompletionStream(strip_usage=strip), drain=drain)


def closed_within(server: FakeServer, seconds: float) -> bool:
    """Whether the backend sees the router's end of the first connection in time."""
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        if server.peers[0].closed_s is not None:
            return True
        time.sleep(0.001)
    return False


def test_a_completed_stream(serve: Serve, pool_to: PoolTo) -> None:
    """All bytes came, usage is known, and the connection serves the next call."""
    server = serve(answer(WHOLE, reply(b"next")))
    pool = pool_to(server)
    stream = open_stream(pool)
    body = b"".join(stream)
    assert body == FIRST + LAST + DONE
    assert (stream.outcome, stream.failure) == ("completed", None)
    assert (stream.usage, stream.output_bytes) == (Usage(5, 7), 5)
    assert stream.ended_s <= time.monotonic()
    assert exchange_body(pool) == (200, b"next")
    assert server.connections == 1


@pytest.mark.parametrize("read", [0, 1], ids=["before the first byte", "in the middle"])
def test_a_client_that_leaves_ends_the_backend_s_work(
    serve: Serve, pool_to: PoolTo, read: int
) -> None:
    """The backend's connection is closed at once, also when nothing was read (U9, S3)."""
    server = serve(answer_and_hang(OPEN + chunk(FIRST)))
    pool = pool_to(server)
    stream = open_stream(pool)
    for _ in range(read):
        next(stream)
    stream.close()
    assert closed_within(server, 1.0)
    assert stream.outcome == "client_aborted"
    assert pool.in_use == 0


def test_a_client_that_leaves_after_the_last_byte_had_everything(
    serve: Serve, pool_to: PoolTo
) -> None:
    """SDKs hang up at ``[DONE]``: that is a completed call, and the connection stays."""
    server = serve(answer(OPEN + chunk(FIRST) + chunk(USAGE) + chunk(DONE) + chunk(b"")))
    pool = pool_to(server)
    stream = open_stream(pool)
    assert DONE in next(stream)
    stream.close()
    assert (stream.outcome, stream.usage) == ("completed", Usage(5, 7))
    exchange_body(pool)
    assert server.connections == 1


@pytest.mark.parametrize("script", [answer_and_hang, answer_and_end, answer_and_reset])
@pytest.mark.parametrize("leaves", [True, False])
def test_nothing_is_missing_after_the_last_event(
    serve: Serve,
    pool_to: PoolTo,
    monkeypatch: pytest.MonkeyPatch,
    script: Callable[[bytes], Script],
    leaves: bool,
) -> None:
    """A backend that forgets to end its body is waited for shortly; the stream is complete.

    The client used to get an error event after ``[DONE]``, 30 seconds later.
    """
    monkeypatch.setattr(module, "END_S", 0.1)
    pool = pool_to(serve(script(OPEN + chunk(FIRST) + chunk(DONE))))
    stream = open_stream(pool)
    started_s = time.monotonic()
    got = [next(stream)] if leaves else list(stream)
    stream.close()
    assert b"".join(got) == FIRST + DONE
    assert (stream.outcome, stream.failure) == ("completed", None)
    assert time.monotonic() - started_s < 0.5
    assert pool.in_use == 0


def test_what_follows_the_last_event_does_not_hold_the_call(
    serve: Serve, pool_to: PoolTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that talks on after ``[DONE]`` is cut off."""
    monkeypatch.setattr(module, "END_S", 0.1)

    def endless(peer: Peer) -> None:
        peer.read_request()
        peer.send(OPEN + chunk(DONE))
        while True:
            peer.send(chunk(b": ping\n\n"))
            peer.pause(0.01)

    pool = pool_to(serve(endless))
    stream = open_stream(pool)
    assert next(stream).startswith(DONE)
    started_s = time.monotonic()
    stream.close()
    assert time.monotonic() - started_s < 0.5
    assert stream.outcome == "completed"


@pytest.mark.parametrize("ending", [answer_and_end, answer_and_reset])
@pytest.mark.parametrize("sent", range(4))
def test_a_backend_that_dies_at_any_chunk_is_told(
    serve: Serve,
    pool_to: PoolTo,
    sent: int,
    ending: Callable[[bytes], Script],
) -> None:
    """Whatever had arrived was passed on, and the end is no clean one (F6)."""
    events = [FIRST, FIRST, FIRST, FIRST][:sent]
    pool = pool_to(serve(ending(OPEN + b"".join(chunk(part) for part in events))))
    stream = open_stream(pool)
    assert b"".join(stream) == b"".join(events)
    assert stream.outcome == "upstream_aborted"
    assert stream.failure in ("connection closed early", "receive failed: Connection reset by peer")
    assert stream.output_bytes == 5 * sent


@pytest.mark.parametrize(
    ("wire", "failure"),
    [
        (event_stream(FIRST), "stream ended early"),
        (event_stream(), "stream ended early"),
        (event_stream(FIRST, USAGE), "stream ended early"),
        (event_stream(FIRST, b'data: {"error": {"message": "out of memory"}}\n\n'), "error event"),
    ],
    ids=["no last event", "no event", "usage but no end", "error event"],
)
def test_a_stream_that_is_not_whole_was_aborted(
    serve: Serve, pool_to: PoolTo, wire: bytes, failure: str
) -> None:
    """A proper end of the body is not enough: the events have to be complete (F6)."""
    pool = pool_to(serve(answer(wire)))
    stream = open_stream(pool, strip=False)
    list(stream)
    assert stream.outcome == "upstream_aborted"
    assert (stream.failure or "").startswith(failure)
    assert (stream.fault or "").startswith(failure)
    assert pool.in_use == 0


def broken(peer: Peer) -> None:
    """One event, then something that is no chunk."""
    peer.read_request()
    peer.send(OPEN + chunk(FIRST))
    peer.pause(0.02)
    peer.send(b"ZZ\r\n")
    peer.wait_closed()


def test_a_stream_that_turns_into_nonsense_was_aborted(serve: Serve, pool_to: PoolTo) -> None:
    """What came before is passed on, and the connection is gone."""
    server = serve(broken)
    stream = open_stream(pool_to(server))
    assert list(stream) == [FIRST]
    assert stream.outcome == "upstream_aborted"
    assert (stream.failure or "").startswith("malformed reply")
    assert stream.fault == "malformed reply"
    assert closed_within(server, 1.0)


def test_an_error_event_still_reaches_the_client(serve: Serve, pool_to: PoolTo) -> None:
    """The bytes before it and its own are passed on."""
    error = b'data: {"error": {"message": "out of memory"}}\n\n'
    stream = open_stream(pool_to(serve(answer(event_stream(FIRST, error, DONE)))))
    body = b"".join(stream)
    assert body.startswith(FIRST + error)
    assert stream.outcome == "upstream_aborted"


@pytest.mark.parametrize(
    ("waits", "phase"), [({"idle_s": 0.1}, "idle"), ({"total_s": 0.1}, "total")]
)
def test_a_stream_that_stalls_times_out(
    serve: Serve, pool_to: PoolTo, waits: dict[str, float], phase: str
) -> None:
    """The phase is known, and the backend's connection is closed (F7)."""
    server = serve(answer_and_hang(OPEN + chunk(FIRST)))
    stream = open_stream(pool_to(server), deadlines(**waits))
    assert list(stream) == [FIRST]
    assert (stream.outcome, stream.failure) == ("timeout", phase)
    assert stream.fault == "BackendTimeout"
    assert closed_within(server, 1.0)


@pytest.mark.parametrize("sent", [b"", FIRST])
def test_a_client_that_is_found_gone_ends_the_stream(
    serve: Serve, pool_to: PoolTo, sent: bytes
) -> None:
    """Without a byte to write there is only the look at its connection that tells."""
    server = serve(answer_and_hang(OPEN + (chunk(sent) if sent else b"")))
    stream = open_stream(pool_to(server), deadlines(client_gone=lambda: True))
    started_s = time.monotonic()
    assert b"".join(stream) == sent
    assert stream.outcome == "client_aborted"
    assert time.monotonic() - started_s <= 0.5
    assert closed_within(server, 1.0)


def test_a_translator_that_gives_up_ends_the_stream(serve: Serve, pool_to: PoolTo) -> None:
    """What is no stream of the backend's dialect is an aborted one."""

    class Strict(CompletionStream):
        def feed(self, chunk: bytes) -> bytes:
            raise ValueError("no such event")

    server = serve(answer_and_hang(OPEN + chunk(FIRST)))
    stream = ReplyStream(begin(pool_to(server)), Strict(strip_usage=True), drain=False)
    assert list(stream) == []
    assert (stream.outcome, stream.failure) == ("upstream_aborted", "no such event")
    assert stream.fault == "malformed stream"
    assert closed_within(server, 1.0)


def test_draining_reads_the_usage_of_an_abandoned_stream(serve: Serve, pool_to: PoolTo) -> None:
    """The client is gone, the bill is exact, and the connection is kept (U9)."""
    server = serve(answer(WHOLE))
    pool = pool_to(server)
    stream = open_stream(pool, drain=True)
    stream.close()
    assert (stream.outcome, stream.usage) == ("client_aborted", Usage(5, 7))
    exchange_body(pool)
    assert server.connections == 1


def test_draining_reads_a_last_event_without_its_blank_line(serve: Serve, pool_to: PoolTo) -> None:
    """It used to be left in the buffer, with the usage in it."""
    stream = open_stream(pool_to(serve(answer(event_stream(FIRST, USAGE.rstrip())))), drain=True)
    stream.close()
    assert (stream.outcome, stream.usage) == ("client_aborted", Usage(5, 7))


def test_draining_is_bounded_in_time(
    serve: Serve, pool_to: PoolTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the backend is silent, which used to add its whole idle time."""
    monkeypatch.setattr(module, "DRAIN_S", 0.1)
    server = serve(answer_and_hang(OPEN + chunk(FIRST)))
    stream = open_stream(pool_to(server), drain=True)
    started_s = time.monotonic()
    stream.close()
    assert 0.1 <= time.monotonic() - started_s <= 0.3
    assert (stream.outcome, stream.usage, stream.output_bytes) == ("client_aborted", None, 5)
    assert closed_within(server, 1.0)
    assert module._draining == 0


def test_draining_is_bounded_in_number(
    serve: Serve, pool_to: PoolTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the cap an abandoned stream is simply closed (U9)."""
    monkeypatch.setattr(module, "_draining", module.MAX_DRAINS)
    server = serve(answer_and_hang(OPEN + chunk(FIRST)))
    stream = open_stream(pool_to(server), drain=True)
    started_s = time.monotonic()
    stream.close()
    assert time.monotonic() - started_s < 0.1
    assert (stream.outcome, module._draining) == ("client_aborted", module.MAX_DRAINS)
    assert closed_within(server, 1.0)


@pytest.mark.parametrize("ending", [answer_and_end, answer_and_reset])
def test_draining_ends_with_the_backend(
    serve: Serve, pool_to: PoolTo, ending: Callable[[bytes], Script]
) -> None:
    """What was reported until it died is what is known."""
    pool = pool_to(serve(ending(OPEN + chunk(FIRST + USAGE))))
    stream = open_stream(pool, drain=True)
    stream.close()
    assert (stream.outcome, stream.usage) == ("client_aborted", Usage(5, 7))
    assert (pool.in_use, module._draining) == (0, 0)


@pytest.mark.parametrize(
    "script",
    [answer(WHOLE), answer(event_stream(FIRST)), broken],
    ids=["whole", "early", "broken"],
)
def test_an_end_is_final(serve: Serve, pool_to: PoolTo, script: Script) -> None:
    """Closing, closing again and reading on change nothing any more."""
    stream = open_stream(pool_to(serve(script)))
    list(stream)
    ended = (stream.outcome, stream.failure, stream.ended_s)
    for _ in range(2):
        stream.close()
        assert list(stream) == []
    assert (stream.outcome, stream.failure, stream.ended_s) == ended


def test_a_stream_closed_before_its_start_gives_nothing(serve: Serve, pool_to: PoolTo) -> None:
    """A server that calls ``close`` first and iterates then gets an empty body."""
    stream = open_stream(pool_to(serve(answer(WHOLE))))
    stream.close()
    assert list(stream) == []
    assert stream.outcome == "client_aborted"
