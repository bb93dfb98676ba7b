"""A call is sent again only while no backend can have processed it (F1, F4).

Every case counts what the backends saw, on live sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from router.call import Attempt
from router.config.document import Backend
from router.errors import (
    BackendBusy,
    BackendFailed,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ClientGone,
    InvalidRequest,
    RouterError,
)
from router.upstream import forwarder as module
from router.upstream.forwarder import ForwardContext
from router.upstream.retry_budget import RetryBudget
from router.upstream.session import BackendSession
from tests.fakes.backend.scripts import (
    answer,
    answer_and_end,
    answer_and_hang,
    answer_and_reset,
    chunk,
    chunked,
    reply,
    silent,
    trickle,
)
from tests.fakes.backend.server import FakeServer, Peer, Script
from tests.unit.upstream.builders import (
    completion,
    forward,
    new_backend,
    new_call,
    new_forwarder,
)

Serve = Callable[..., FakeServer]

GOOD = answer(reply(completion()))
CANARY = "sk-canary-4711"


def at(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def tried(attempts: list[Attempt]) -> list[tuple[str, int | None, str | None]]:
    return [(attempt.backend_id, attempt.status, attempt.error) for attempt in attempts]


@pytest.mark.parametrize("status", [429, 502, 503, 504, 529])
def test_a_backend_that_did_not_serve_is_followed_by_the_next(
    serve: Serve, session: BackendSession, status: int
) -> None:
    """These statuses say so: each backend sees the call once."""
    first, second = serve(answer(reply(b"{}", status))), serve(GOOD)
    attempts: list[Attempt] = []
    backend_reply = forward(
        new_forwarder(session),
        new_backend(first.url, "first"),
        new_backend(second.url, "second"),
        attempts=attempts,
    )
    assert (backend_reply.backend_id, backend_reply.body) == ("second", completion())
    assert (len(first.requests), len(second.requests)) == (1, 1)
    assert tried(attempts) == [("first", status, f"status {status}"), ("second", 200, None)]


@pytest.mark.parametrize("status", [401, 403])
def test_a_backend_that_refuses_our_credential_is_followed_by_the_next(
    serve: Serve, session: BackendSession, status: int
) -> None:
    """It is the operator's fault, not the client's (F1)."""
    quoting = reply(f'{{"error": {{"message": "bad key {CANARY}"}}}}'.encode(), status)
    first, second = serve(answer(quoting)), serve(GOOD)
    backends = new_backend(first.url, "first"), new_backend(second.url, "second")
    forwarder = new_forwarder(session)
    assert forward(forwarder, *backends).backend_id == "second"
    with pytest.raises(BackendFailed) as failed:
        forward(forwarder, backends[0])
    assert failed.value.status == status
    assert CANARY not in f"{failed.value!r} {vars(failed.value)}"
    assert (len(first.requests), len(second.requests)) == (2, 1)


def test_a_refused_connection_is_followed_by_the_next(
    serve: Serve, session: BackendSession, closed_port: int
) -> None:
    """The client notices nothing, at the cost of a few milliseconds (P10)."""
    second = serve(GOOD)
    attempts: list[Attempt] = []
    started_s = time.monotonic()
    backend_reply = forward(
        new_forwarder(session),
        new_backend(at(closed_port), "first"),
        new_backend(second.url, "second"),
        attempts=attempts,
    )
    assert time.monotonic() - started_s < 0.15
    assert backend_reply.backend_id == "second"
    assert tried(attempts) == [
        ("first", None, "connect failed: Connection refused"),
        ("second", 200, None),
    ]


def test_a_black_hole_is_followed_by_the_next(
    serve: Serve, session: BackendSession, black_hole: int
) -> None:
    """After the connect timeout and not later (P10)."""
    second = serve(GOOD)
    attempts: list[Attempt] = []
    started_s = time.monotonic()
    backend_reply = forward(
        new_forwarder(session),
        new_backend(at(black_hole), "first", connect_s=0.15),
        new_backend(second.url, "second"),
        attempts=attempts,
    )
    assert 0.15 <= time.monotonic() - started_s <= 0.3
    assert backend_reply.backend_id == "second"
    assert tried(attempts)[0] == ("first", None, "connect timeout")


def test_a_missing_credential_is_followed_by_the_next(
    serve: Serve, session: BackendSession
) -> None:
    """A backend that we cannot prove ourselves to sees nothing of the call."""
    first, second = serve(GOOD), serve(GOOD)
    attempts: list[Attempt] = []
    backends = (
        new_backend(first.url, "first", credential="env:GONE"),
        new_backend(second.url, "second"),
    )
    backend_reply = forward(new_forwarder(session), *backends, attempts=attempts)
    assert backend_reply.backend_id == "second"
    assert first.connections == 0
    assert tried(attempts)[0] == ("first", None, "credential missing")
    with pytest.raises(BackendUnavailable):
        forward(new_forwarder(session), backends[0])


def test_a_full_pool_is_followed_by_the_next(serve: Serve, session: BackendSession) -> None:
    """A backend that has as many of our calls as it may have is left alone."""
    first, second = serve(silent), serve(GOOD)
    pool = session.transport.pool(first.endpoint)
    backend = new_backend(first.url, "first", connect_s=0.05)
    held = [pool.open(module.Deadlines(1.0, 1.0, 1.0, time.monotonic() + 5)) for _ in range(4)]
    backend_reply = forward(new_forwarder(session), backend, new_backend(second.url, "second"))
    assert backend_reply.backend_id == "second"
    assert first.requests == []
    for exchange in held:
        exchange.close()


def late_reset(peer: Peer) -> None:
    """Take the request, think, and die."""
    peer.read_request()
    peer.pause(0.02)
    peer.reset()


OPEN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

# name → what the first backend does, what the client meets, status and error of the attempt
FINAL: dict[str, tuple[Script, type[RouterError], int | None, str]] = {
    "internal error": (answer(reply(b"{}", 500)), BackendFailed, 500, "status 500"),
    "not implemented": (answer(reply(b"{}", 501)), BackendFailed, 501, "status 501"),
    "bad request": (answer(reply(b"{}", 400)), BackendRejected, 400, "status 400"),
    "not found": (answer(reply(b"{}", 404)), BackendRejected, 404, "status 404"),
    "request timeout": (answer(reply(b"{}", 408)), BackendRejected, 408, "status 408"),
    "conflict": (answer(reply(b"{}", 409)), BackendRejected, 409, "status 409"),
    "too large": (answer(reply(b"{}", 413)), BackendRejected, 413, "status 413"),
    "unprocessable": (answer(reply(b"{}", 422)), BackendRejected, 422, "status 422"),
    "redirect": (
        answer(reply(b"", 307, headers=("Location: http://127.0.0.1:9/",))),
        BackendFailed, 307, "status 307",
    ),
    "no content": (answer(reply(b"", 204, length=False)), BackendFailed, 204, "status 204"),
    "part of it": (answer(reply(b"{}", 206)), BackendFailed, 206, "status 206"),
    "reset after the request": (
        late_reset, BackendFailed, None, "receive failed: Connection reset by peer",
    ),
    "end after the request": (answer_and_end(b""), BackendFailed, None, "connection closed early"),
    "cut head": (answer_and_end(OPEN[:20]), BackendFailed, None, "connection closed early"),
    "cut body": (
        answer_and_end(reply(completion())[:-5]), BackendFailed, 200, "connection closed early",
    ),
    "reset body": (
        answer_and_reset(OPEN + chunk(b'{"id"')), BackendFailed, 200,
        "receive failed: Connection reset by peer",
    ),
    "no JSON": (answer(reply(b"<html>")), BackendFailed, 200, "reply is not JSON"),
    "events nobody asked for": (
        answer(chunked(b"data: {}\n\n", headers=("Content-Type: text/event-stream",))),
        BackendFailed, 200, "reply is not JSON",
    ),
    "two framings": (
        answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"),
        BackendFailed, None, "malformed reply",
    ),
    "silence": (answer_and_hang(b""), BackendTimeout, None, "BackendTimeout"),
    "trickled head": (trickle(reply(completion()), 0.02), BackendTimeout, None, "BackendTimeout"),
    "silence in the body": (
        answer_and_hang(OPEN + chunk(b"{")), BackendTimeout, 200, "BackendTimeout",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FINAL)
def test_what_may_have_been_processed_is_never_sent_again(
    serve: Serve, session: BackendSession, name: str
) -> None:
    """One hit, no failover, and the attempt tells what happened (F4, P11)."""
    script, error, status, reason = FINAL[name]
    first, second = serve(script), serve(GOOD)
    attempts: list[Attempt] = []
    with pytest.raises(error):
        forward(
            new_forwarder(session),
            new_backend(first.url, "first", first_byte_s=0.1, idle_s=0.1),
            new_backend(second.url, "second"),
            attempts=attempts,
        )
    assert (len(first.requests), len(second.requests)) == (1, 0)
    [(backend_id, seen_status, seen_error)] = tried(attempts)
    assert (backend_id, seen_status) == ("first", status)
    assert (seen_error or "").startswith(reason)


def test_a_kept_connection_that_breaks_is_no_reason_to_send_again(
    serve: Serve, session: BackendSession
) -> None:
    """The backend may have read the request before it died, new connection or not (F4)."""

    def once(peer: Peer) -> None:
        peer.read_request()
        peer.send(reply(completion()))
        late_reset(peer)

    first, second = serve(once, GOOD), serve(GOOD)
    forwarder = new_forwarder(session)
    backends = new_backend(first.url, "first"), new_backend(second.url, "second")
    forward(forwarder, *backends)
    attempts: list[Attempt] = []
    with pytest.raises(BackendFailed):
        forward(forwarder, *backends, attempts=attempts)
    assert attempts[0].reused_connection is False  # there was no reply to know it from
    assert (len(first.requests), len(second.requests)) == (2, 0)


def test_a_client_that_left_is_not_served_elsewhere(serve: Serve, session: BackendSession) -> None:
    """Nobody waits for the answer."""
    first, second = serve(silent), serve(GOOD)
    attempts: list[Attempt] = []
    with pytest.raises(ClientGone):
        forward(
            new_forwarder(session),
            new_backend(first.url, "first"),
            new_backend(second.url, "second"),
            client_gone=lambda: True,
            attempts=attempts,
        )
    assert tried(attempts) == [("first", None, "ClientGone")]
    assert second.connections == 0


def test_what_a_backend_cannot_express_is_the_client_s_to_fix(
    serve: Serve, session: BackendSession
) -> None:
    """No backend sees a call that cannot be translated for the chosen one."""
    first, second = serve(silent), serve(GOOD)
    attempts: list[Attempt] = []
    with pytest.raises(InvalidRequest):
        forward(
            new_forwarder(session),
            new_backend(first.url, "first", kind="anthropic"),
            new_backend(second.url, "second"),
            call=new_call(n=2),
            attempts=attempts,
        )
    assert (first.connections, second.connections) == (0, 0)
    assert tried(attempts) == [("first", None, "InvalidRequest")]


def test_the_last_candidate_decides_what_the_client_meets(
    serve: Serve, session: BackendSession, closed_port: int
) -> None:
    """When none could take the call, the verdict of the last one counts."""
    busy = new_backend(serve(answer(reply(b"{}", 429, headers=("Retry-After: 7",)))).url, "busy")
    down, forwarder = new_backend(at(closed_port), "down"), new_forwarder(session)
    attempts: list[Attempt] = []
    with pytest.raises(BackendUnavailable):
        forward(forwarder, busy, down, attempts=attempts)
    assert [attempt.backend_id for attempt in attempts] == ["busy", "down"]
    with pytest.raises(BackendBusy) as refused:
        forward(forwarder, down, busy)
    assert refused.value.retry_after_s == 7


def test_no_backend_that_accepts_is_an_error_at_once(
    session: BackendSession, closed_port: int
) -> None:
    """Three refused connections take no time (P12)."""
    backends = [new_backend(at(closed_port), f"b{number}") for number in range(3)]
    attempts: list[Attempt] = []
    started_s = time.monotonic()
    with pytest.raises(BackendUnavailable) as unavailable:
        forward(new_forwarder(session), *backends, attempts=attempts)
    assert time.monotonic() - started_s <= 0.1
    assert (len(attempts), unavailable.value.retry_after_s) == (3, 1)


def test_the_retry_budget_ends_failover(
    serve: Serve, session: BackendSession, closed_port: int
) -> None:
    """Without a token the first verdict stands; first attempts are never rationed (P11)."""
    second = serve(GOOD)
    forwarder = new_forwarder(
        session, retry_budget=RetryBudget(share=0.5, per_second=0.0, monotonic_s=lambda: 0.0)
    )
    backends = new_backend(at(closed_port), "first"), new_backend(second.url, "second")
    served = 0
    for _ in range(10):
        try:
            forward(forwarder, *backends)
            served += 1
        except BackendUnavailable:
            pass
    assert (served, len(second.requests)) == (5, 5)


def test_a_good_answer_costs_no_retry(serve: Serve, session: BackendSession) -> None:
    """Only extra attempts are taken from the budget."""
    budget = RetryBudget(share=0.0, per_second=1.0, monotonic_s=lambda: 0.0)
    backend = new_backend(serve(GOOD).url)
    for _ in range(20):
        forward(new_forwarder(session, retry_budget=budget), backend)
    assert budget.take()


def test_one_deadline_covers_all_attempts(
    serve: Serve, session: BackendSession, black_hole: int
) -> None:
    """A candidate whose turn comes after the deadline is not called at all (X4).

    A kept connection used to carry the request although nobody waited for its answer any more.
    """
    second = serve(GOOD)
    forwarder = new_forwarder(session)
    last = new_backend(second.url, "second", total_s=0.2)
    forward(forwarder, last)
    attempts: list[Attempt] = []
    started_s = time.monotonic()
    with pytest.raises(BackendUnavailable):
        forward(
            forwarder,
            new_backend(at(black_hole), "first", connect_s=1.0, total_s=0.2),
            last,
            attempts=attempts,
        )
    assert 0.2 <= time.monotonic() - started_s <= 0.35
    assert [attempt.backend_id for attempt in attempts] == ["first"]
    assert len(second.requests) == 1


def test_each_attempt_also_has_its_own_total(serve: Serve, session: BackendSession) -> None:
    """The long timeouts of one candidate do not lengthen those of another."""
    started_s = time.monotonic()
    with pytest.raises(BackendTimeout) as late:
        forward(
            new_forwarder(session),
            new_backend(serve(silent).url, "first", total_s=0.1),
            new_backend(serve(GOOD).url, "second", total_s=60.0),
        )
    assert late.value.phase == "total"
    assert time.monotonic() - started_s <= 0.3


def test_a_failover_does_not_wait_for_the_text_of_a_refusal(
    serve: Serve, session: BackendSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that answers 503 and then stalls used to hold the call for its idle time."""
    monkeypatch.setattr(module, "ERROR_BODY_S", 0.1)
    stalled = b"HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\nsor"
    first, second = serve(answer_and_hang(stalled)), serve(GOOD)
    started_s = time.monotonic()
    backend_reply = forward(
        new_forwarder(session), new_backend(first.url, "first"), new_backend(second.url, "second")
    )
    assert backend_reply.backend_id == "second"
    assert time.monotonic() - started_s <= 0.3


def test_every_attempt_is_sent_the_same(serve: Serve, session: BackendSession) -> None:
    """Idempotency key, request id and trace are those of the call, not of the attempt (F5)."""
    first, second = serve(answer(reply(b"", 503))), serve(GOOD)
    headers = [("Idempotency-Key", "once"), ("X-Request-ID", "r-1"), ("traceparent", "00-a-b-01")]
    forward(
        new_forwarder(session),
        new_backend(first.url, "first"),
        new_backend(second.url, "second"),
        headers=headers,
    )
    [one], [two] = first.requests, second.requests
    shown = one.replace(str(first.port).encode(), b"").split(b"\r\n")
    assert shown == two.replace(str(second.port).encode(), b"").split(b"\r\n")
    assert one.count(b"\r\nIdempotency-Key: once\r\n") == 1


def test_a_backend_gets_the_further_headers_that_it_names(
    serve: Serve, session: BackendSession
) -> None:
    """Each its own, also where one call goes to both; the others get none."""
    servers = serve(answer(reply(b"{}", 503))), serve(answer(reply(b"{}", 503))), serve(GOOD)
    named = ((), ("baggage",), ("x-title", "baggage"))
    forwarder = new_forwarder(session)
    forwarder.send(
        new_call(),
        [
            replace(new_backend(server.url, str(place)), forward_headers=names)
            for place, (server, names) in enumerate(zip(servers, named, strict=True))
        ],
        ForwardContext(
            [("accept", "*/*")], more_headers=[("baggage", "tenant=1"), ("x-title", "mine")]
        ),
        [],
        max_output_tokens=100,
    )
    for server, names in zip(servers, named, strict=True):
        [request] = server.requests
        assert b"\r\naccept: */*\r\n" in request
        assert (b"\r\nbaggage: tenant=1\r\n" in request) == ("baggage" in names)
        assert (b"\r\nx-title: mine\r\n" in request) == ("x-title" in names)


def test_attempts_are_measured(serve: Serve, session: BackendSession) -> None:
    """Duration, time to first byte and reuse, whether it went well or not."""

    def slow(peer: Peer) -> None:
        for status in (200, 500):
            peer.read_request()
            peer.pause(0.03)
            peer.send(reply(completion(), status))

    backend: Backend = new_backend(serve(slow).url)
    forwarder, attempts = new_forwarder(session), []
    forward(forwarder, backend, attempts=attempts)
    with pytest.raises(BackendFailed):
        forward(forwarder, backend, attempts=(again := []))
    for attempt in (attempts[0], again[0]):
        assert 0.03 <= attempt.ttfb_s <= attempt.duration_s <= 0.2
    assert [attempts[0].reused_connection, again[0].reused_connection] == [False, True]
