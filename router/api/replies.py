"""Renders replies and errors. What every reply carries is added in one place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from flask import Response
from werkzeug.datastructures import Headers

from router import errors
from router.api.admission import add_rate_headers, read_stored, stored_reply
from router.api.call_usage import call_outcome
from router.api.dispatch import decision
from router.api.error_specs import error_spec_of, render, retry_after_s, status_of
from router.api.recording import note_refusal, record_answer, record_end
from router.api.scope import Scope, current_scope
from router.call import Dialect
from router.telemetry.redaction import redact_bytes
from router.upstream.forwarder import BackendReply
from router.upstream.reply_stream import ReplyStream

JSON: Final = "application/json"
LONG_ANSWER_BYTES: Final = 64 * 1024
EVENT_STREAM: Final = "text/event-stream; charset=utf-8"


class Reply(Response):
    """A response whose headers are final: the framework need not look through them once more for
    what it would have to correct."""

    def get_wsgi_headers(self, environ: dict[str, Any]) -> Headers:
        return self.headers


class ClientStream:
    """A stream for the client: the backend's bytes, then, if it broke, an event that says so.

    It has no ``close``: the response would call that first, and what interrupts it (the end of a
    worker, while a stream that its client has left is read on) would skip the settlement, which
    closes the stream itself.
    """

    def __init__(
        self,
        scope: Scope,
        stream: ReplyStream,
        on_failure: Callable[[errors.RouterError], bytes],
        chunks: Iterator[bytes] | None = None,
    ) -> None:
        self._scope = scope
        self._stream = stream
        self._chunks = stream if chunks is None else chunks
        self._is_translated = chunks is not None
        self._on_failure = on_failure
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        for chunk in self._chunks:
            return self._pass(chunk)
        self._ended = True
        outcome = self._stream.outcome
        last = self._pass(b"") if outcome == "completed" else b""
        if outcome not in ("completed", "client_aborted"):
            error = stream_error(self._stream)
            last = self._on_failure(error)
            self._scope.code = error_spec_of(error).code
            self._scope.bytes_sent += len(last)
            record_end(self._scope, call_outcome(self._scope), time.monotonic())
        if not last:
            raise StopIteration
        return last

    def _pass(self, chunk: bytes) -> bytes:
        """The chunk; the one that completes the answer goes out only when the call is recorded."""
        scope = self._scope
        scope.bytes_sent += len(chunk)
        if self._is_last() and not scope.recorded:
            sent_bytes = scope.bytes_sent - len(chunk)
            try:
                record_answer(scope, lambda error: self._withhold(error, sent_bytes))
            except errors.RecordsUnavailable as error:
                self._ended = True
                self._withhold(error, sent_bytes)
                return self._on_failure(error)
        return chunk

    def _is_last(self) -> bool:
        """Whether the answer is whole with what goes out next.

        Of a stream that is passed on that is its last event; one that is translated has an event
        of ours behind it.
        """
        if self._is_translated:
            return self._stream.outcome == "completed"
        return self._stream.is_complete

    def _withhold(self, error: errors.RecordsUnavailable, sent_bytes: int) -> None:
        """An error takes the place of the last event, which must not go out."""
        note_refusal(self._scope, error)
        self._scope.bytes_sent = sent_bytes + len(self._on_failure(error))


def deliver(backend_reply: BackendReply) -> Response:
    """The reply of the OpenAI dialect: bytes as they are."""
    if backend_reply.stream is None:
        return answer(backend_reply.body or b"")
    return stream_reply(ClientStream(current_scope(), backend_reply.stream, _openai_failure))


def answer(body: bytes) -> Response:
    """A whole answer, recorded before it goes out; raises ``RecordsUnavailable``."""
    _record_whole(body)
    scope = current_scope()
    admitted = scope.limits.admitted
    if admitted is not None and admitted.entry is not None and scope.backend_reply is not None:
        scope.limits.kept = stored_reply(scope.backend_reply.backend_id, decision(scope), body)
    return json_reply(body)


def replay_reply(scope: Scope) -> Response:
    """The reply that the same call had before, byte for byte; recorded, and free."""
    assert scope.limits.replay is not None
    backend_id, decided, body = read_stored(scope.limits.replay)
    _record_whole(body)
    response = json_reply(body)
    response.headers["X-Routing-Backend"] = backend_id
    response.headers["X-Routing-Decision"] = decided
    response.headers["Idempotency-Replayed"] = "true"
    return response


def answer_events(events: bytes) -> Response:
    """A whole answer in the form of a stream; otherwise as :func:`answer`."""
    _record_whole(events)
    return stream_reply(events)


def _record_whole(answer: bytes) -> None:
    scope = current_scope()
    scope.bytes_sent = len(answer)

    def withhold(error: errors.RecordsUnavailable) -> None:
        note_refusal(scope, error)
        scope.status = status_of(error)
        scope.bytes_sent = len(_error_body(scope, error, scope.dialect))

    record_answer(scope, withhold)


def json_reply(body: bytes, status: int = 200) -> Response:
    """A JSON body of known length."""
    return Reply(body, status, content_type=JSON)


def stream_reply(stream: ClientStream | bytes) -> Response:
    """Server-sent events, which nothing on the way may buffer."""
    # Not direct_passthrough: the server would then close the stream but never the response, and
    # what hangs on the response's end (settlement) would not happen.
    response = Reply(stream, 200, content_type=EVENT_STREAM)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def error_reply(error: Exception, dialect: Dialect) -> Response:
    """The error as the client's dialect shows it."""
    scope = current_scope()
    face = error_spec_of(error)
    scope.code = face.code
    scope.failed_outcome = face.outcome
    response = json_reply(_error_body(scope, error, dialect), status_of(error))
    wait_s = retry_after_s(error)
    if wait_s is not None:
        response.headers["Retry-After"] = str(wait_s)
    if isinstance(error, errors.MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, (errors.Unauthenticated, errors.SignatureInvalid)):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _error_body(scope: Scope, error: Exception, dialect: Dialect) -> bytes:
    # It may name what the client sent: a model, a field. Keys have been seen in both places.
    return redact_bytes(render(error, dialect, trace_id=scope.trace.trace_id))


def bound_writes(scope: Scope, response: Response) -> None:
    """Give up on a client that stops reading a long answer; a short one fits into the kernel."""
    sock = scope.request.environ.get("gunicorn.socket")
    if sock is None:
        return
    if response.is_streamed or scope.bytes_sent > LONG_ANSWER_BYTES:
        sock.settimeout(scope.services.settings.client_write_timeout_s)
        # The connection's next wait is for a request, which has its own limit.
        response.call_on_close(lambda: sock.settimeout(None))


def finish(scope: Scope, response: Response) -> Response:
    """Add what every reply carries, and note when it was ready to begin."""
    scope.status = response.status_code
    scope.answered_s = time.monotonic()
    scope.overhead_s = scope.answered_s - scope.started_s - scope.backend_s
    add = response.headers.add  # none of them is there yet, so nothing is to be replaced
    add("X-Request-ID", scope.request_id)
    if scope.backend_reply is not None:
        add("X-Routing-Backend", scope.backend_reply.backend_id)
        add("X-Routing-Decision", decision(scope))
    if scope.backend_reply is not None or scope.limits.replay is not None:
        add("X-Router-Overhead-Ms", f"{scope.overhead_s * 1000:.2f}")
    if scope.limits.decision is not None:
        add_rate_headers(response, scope.limits.decision)
    if not response.is_streamed:
        scope.bytes_sent = response.content_length or 0
    bound_writes(scope, response)
    return response


def stream_error(stream: ReplyStream) -> errors.RouterError:
    """Why a stream ended before its end."""
    if stream.outcome == "timeout":
        return errors.BackendTimeout(stream.failure or "idle")
    return errors.BackendFailed(stream.failure or "stream ended early")


def _openai_failure(error: errors.RouterError) -> bytes:
    body = render(error, "openai", trace_id="")
    return b"data: " + body + b"\n\n"
