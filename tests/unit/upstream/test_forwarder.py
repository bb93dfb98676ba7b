"""What goes out for a call, and what becomes of the answer."""

from __future__ import annotations

import datetime
import gzip
from collections.abc import Callable
from email.utils import format_datetime
from typing import Any

import orjson
import pytest

from router.call import Operation, Usage
from router.config.document import Backend
from router.errors import BackendBusy, BackendFailed, BackendRejected, BackendUnavailable
from router.upstream.forwarder import MAX_ERROR_BYTES, MAX_RETRY_AFTER_S
from router.upstream.session import BackendSession
from tests.fakes.backend.scripts import answer, answer_and_hang, chunk, chunked, event_stream, reply
from tests.fakes.backend.server import FakeServer
from tests.unit.upstream.builders import (
    completion,
    forward,
    new_backend,
    new_call,
    new_forwarder,
)

Serve = Callable[..., FakeServer]

DONE = b"data: [DONE]\n\n"


def test_a_request_is_what_was_meant(serve: Serve, session: BackendSession) -> None:
    """Head and body on the wire, byte for byte."""
    server = serve(answer(reply(completion())))
    backend = new_backend(server.url, credential="env:KEY")
    forwarder = new_forwarder(session, read_credential={"env:KEY": "sk-1"}.get)
    call = new_call(seed=7)
    headers = [("User-Agent", "OpenAI/Python"), ("X-Name", "n\xe9"), ("X-Request-ID", "r-1")]
    forward(forwarder, backend, call=call, headers=headers)
    assert call.body is not None
    assert server.requests == [
        (
            f"POST /v1/chat/completions HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{server.port}\r\n"
            f"Content-Type: application/json\r\n"
            f"Accept-Encoding: identity\r\n"
            f"Authorization: Bearer sk-1\r\n"
            f"User-Agent: OpenAI/Python\r\n"
            f"X-Name: n\xe9\r\n"
            f"X-Request-ID: r-1\r\n"
            f"Content-Length: {len(call.body)}\r\n\r\n"
        ).encode("latin-1")
        + call.body
    ]


def test_the_length_counts_bytes(serve: Serve, session: BackendSession) -> None:
    """Not characters: a length too short would begin a second request (P16)."""
    server = serve(answer(reply(completion())))
    call = new_call(messages=[{"role": "user", "content": "Füße ☃ 😀"}])
    for _ in range(2):
        forward(new_forwarder(session), new_backend(server.url), call=call)
    assert [request.split(b"\r\n\r\n", 1)[1] for request in server.requests] == [call.body] * 2
    assert server.connections == 1


def test_a_backend_is_asked_for_its_own_name_of_the_model(
    serve: Serve, session: BackendSession
) -> None:
    """Each backend of a policy may call the same model differently."""
    server = serve(answer(reply(completion())))
    backend = new_backend(server.url, models={"gpt-4o": "azure-gpt-4o-2024"})
    forward(new_forwarder(session), backend, call=new_call(requested_model="fast"))
    body = orjson.loads(server.requests[0].split(b"\r\n\r\n", 1)[1])
    assert body["model"] == "azure-gpt-4o-2024"


@pytest.mark.parametrize(
    ("operation", "path"),
    [("chat", b"chat/completions"), ("completions", b"completions"), ("embeddings", b"embeddings")],
)
def test_each_operation_goes_to_its_path(
    serve: Serve, session: BackendSession, operation: Operation, path: bytes
) -> None:
    """Below the backend's base URL."""
    server = serve(answer(reply(completion())))
    forward(new_forwarder(session), new_backend(server.url), call=new_call(operation))
    assert server.requests[0].startswith(b"POST /v1/" + path + b" HTTP/1.1\r\n")


def test_a_buffered_answer_is_delivered_as_it_came(serve: Serve, session: BackendSession) -> None:
    """Body untouched, usage read."""
    body = completion(system_fingerprint="fp", unknown=[1, {"a": None}])
    backend_reply = forward(new_forwarder(session), new_backend(serve(answer(reply(body))).url))
    assert (backend_reply.body, backend_reply.usage, backend_reply.stream) == (
        body,
        Usage(5, 7),
        None,
    )


def test_an_answer_without_usage_has_its_output_counted(
    serve: Serve, session: BackendSession
) -> None:
    """For an estimate (U8)."""
    body = completion(usage=None)
    backend_reply = forward(new_forwarder(session), new_backend(serve(answer(reply(body))).url))
    assert (backend_reply.usage, backend_reply.output_bytes) == (None, 5)


@pytest.mark.parametrize("frame", [reply, chunked], ids=["length", "chunked"])
def test_an_answer_over_the_limit_is_a_failure(
    serve: Serve, session: BackendSession, frame: Callable[[bytes], bytes]
) -> None:
    """The limit is exact, and memory is bounded by it."""
    body = completion(padding="x" * 100_000)
    backend = new_backend(serve(answer(frame(body))).url)
    with pytest.raises(BackendFailed) as failed:
        forward(new_forwarder(session, max_reply_bytes=len(body) - 1), backend)
    assert failed.value.reason == "reply too large"
    assert forward(new_forwarder(session, max_reply_bytes=len(body)), backend).body == body


@pytest.mark.parametrize(
    "content_type",
    ["text/event-stream", "text/event-stream; charset=utf-8", "TEXT/Event-Stream"],
)
def test_a_stream_is_delivered_as_a_stream(
    serve: Serve, session: BackendSession, content_type: str
) -> None:
    """Without waiting for anything but its head."""
    head = reply(b"", headers=(f"Content-Type: {content_type}", "Transfer-Encoding: chunked"),
                 length=False)  # fmt: skip
    server = serve(answer_and_hang(head))
    backend_reply = forward(
        new_forwarder(session), new_backend(server.url), call=new_call(stream=True)
    )
    assert backend_reply.body is None
    assert backend_reply.stream is not None
    backend_reply.stream.close()


def test_a_stream_says_what_the_same_call_says_buffered(
    serve: Serve, session: BackendSession
) -> None:
    """Identical usage either way (U7)."""
    events = (
        b'data: {"choices": [{"index": 0, "delta": {"content": "hello"}}]}\n\n',
        b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}\n\n',
        DONE,
    )
    server = serve(answer(reply(completion())), answer(event_stream(*events)))
    forwarder = new_forwarder(session)
    buffered = forward(forwarder, new_backend(server.url))
    session.close()
    streamed = forward(forwarder, new_backend(server.url), call=new_call(stream=True)).stream
    assert streamed is not None
    assert b"".join(streamed) == events[0] + DONE
    assert streamed.usage == buffered.usage == Usage(5, 7)


def test_a_backend_that_does_not_stream_answers_all_the_same(
    serve: Serve, session: BackendSession
) -> None:
    """A JSON reply to a call for a stream is delivered as what it is."""
    server = serve(answer(reply(completion(), headers=("Content-Type: application/json",))))
    backend_reply = forward(
        new_forwarder(session), new_backend(server.url), call=new_call(stream=True)
    )
    assert (backend_reply.body, backend_reply.usage, backend_reply.stream) == (
        completion(),
        Usage(5, 7),
        None,
    )


def test_a_compressed_stream_is_a_failure(serve: Serve, session: BackendSession) -> None:
    """It was not requested: its usage could not be read, and the client would get noise."""
    headers = ("Content-Type: text/event-stream", "Content-Encoding: gzip")
    server = serve(answer(reply(gzip.compress(DONE), headers=headers)))
    with pytest.raises(BackendFailed):
        forward(new_forwarder(session), new_backend(server.url), call=new_call(stream=True))


def in_seconds(seconds: float) -> str:
    when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    return format_datetime(when, usegmt=True)


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        (None, 1, 1),
        ("7", 7, 7),
        (" 7 ", 7, 7),
        ("0", 1, 1),
        ("0.2", 1, 1),
        ("6.01", 7, 7),
        ("-5", 1, 1),
        ("soon", 1, 1),
        ("nan", 1, 1),
        ("inf", 1, 1),
        ("1e9", MAX_RETRY_AFTER_S, MAX_RETRY_AFTER_S),
        ("99999999999999999999", MAX_RETRY_AFTER_S, MAX_RETRY_AFTER_S),
        (90, 60, 90),
        (-90, 1, 1),
        (1e8, MAX_RETRY_AFTER_S, MAX_RETRY_AFTER_S),
        ("Wed, 99 Oct 2015 07:28:00 GMT", 1, 1),
        ("Wed, 21 Oct 2015 07:28:00", 1, 1),
    ],
)
def test_a_busy_backend_says_when_to_come_back(
    serve: Serve, session: BackendSession, header: str | float | None, low: int, high: int
) -> None:
    """Its ``Retry-After`` passes as whole seconds, at least 1; a date used to become 1 (R10)."""
    if isinstance(header, (int, float)):  # so many seconds from now, written as a date
        header = in_seconds(header)
    headers = () if header is None else (f"Retry-After: {header}",)
    server = serve(answer(*(reply(b"{}", status, headers=headers) for status in (429, 503, 529))))
    forwarder, backend = new_forwarder(session), new_backend(server.url)
    with pytest.raises(BackendBusy) as busy:
        forward(forwarder, backend)
    with pytest.raises(BackendUnavailable) as unavailable:
        forward(forwarder, backend)
    with pytest.raises(BackendUnavailable) as overloaded:
        forward(forwarder, backend)
    for failed in (busy, unavailable, overloaded):
        seconds = failed.value.retry_after_s
        assert isinstance(seconds, int)
        assert low <= seconds <= high


def refusal(
    session: BackendSession, backend: Backend, credential: str | None = None
) -> BackendRejected:
    with pytest.raises(BackendRejected) as refused:
        forward(new_forwarder(session, read_credential=lambda _: credential), backend)
    return refused.value


def test_a_refusal_is_shown_in_the_backend_s_words(serve: Serve, session: BackendSession) -> None:
    """The client can fix its request only when it learns what is wrong."""
    body = b'{"error": {"message": "max_tokens is too large", "param": "max_tokens"}}'
    refused = refusal(session, new_backend(serve(answer(reply(body, 400))).url))
    assert (refused.message, refused.status, refused.body) == ("max_tokens is too large", 400, body)


@pytest.mark.parametrize(
    "body",
    [b"<html>nginx at gpu-7.internal</html>", b"", b'{"detail": "gpu-7.internal"}', b"[]",
     b'{"error": {"message": "' + b"x" * MAX_ERROR_BYTES + b'"}}'],
    ids=["html", "empty", "other JSON", "list", "endless"],
)  # fmt: skip
def test_a_refusal_that_is_no_error_object_is_not_shown(
    serve: Serve, session: BackendSession, body: bytes
) -> None:
    """Responses never name hosts, and a page of a proxy would."""
    refused = refusal(session, new_backend(serve(answer(reply(body, 422))).url))
    assert refused.message == "the backend refused the request with status 422"
    assert (refused.status, refused.body) == (422, None)


def test_a_refusal_in_another_dialect_keeps_its_message_only(
    serve: Serve, session: BackendSession
) -> None:
    """The body of an Anthropic error is not of the OpenAI dialect."""
    body = b'{"type": "error", "error": {"type": "invalid_request_error", "message": "too long"}}'
    backend = new_backend(serve(answer(reply(body, 400))).url, kind="anthropic")
    refused = refusal(session, backend)
    assert ("too long" in refused.message, refused.body) == (True, None)


def test_a_refusal_that_quotes_our_credential_is_not_shown(
    serve: Serve, session: BackendSession
) -> None:
    """Whatever its status, the router's credential goes to no client (P17)."""
    body = b'{"error": {"message": "unknown project for key sk-canary-4711"}}'
    backend = new_backend(serve(answer(reply(body, 404))).url, credential="env:KEY")
    refused = refusal(session, backend, "sk-canary-4711")
    assert "canary" not in f"{refused!r} {vars(refused)}"


def test_a_cut_refusal_is_a_refusal(serve: Serve, session: BackendSession) -> None:
    """The status is what counts; its text is lost."""

    def cut(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 400 No\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b'{"err'))
        peer.end()
        peer.wait_closed()

    assert refusal(session, new_backend(serve(cut).url)).status == 400


def test_a_backend_is_prepared_once_a_revision(session: BackendSession) -> None:
    """The wire side is kept until the document replaces the backend."""
    forwarder = new_forwarder(session)
    before, after = new_backend("http://gpu"), new_backend("http://gpu-2")
    assert forwarder.target(before) is forwarder.target(before)
    assert forwarder.target(after).endpoint == ("http", "gpu-2", 80)
    assert forwarder.target(before).endpoint == ("http", "gpu", 80)
