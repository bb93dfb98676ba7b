"""A backend's reply in the client's dialect, recorded before its last byte goes out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from flask import Response

from router import errors
from router.api.dialects.dialect import Dialect
from router.api.dialects.dialect_table import DIALECTS
from router.api.error_specs import error_spec_of, status_of
from router.api.replies import error_body, json_reply, stream_reply
from router.api.scope import Scope
from router.api.steps.call_usage import call_outcome
from router.api.steps.recording import record_answer, record_end, record_withheld
from router.api.steps.settlement import charge_before_last_byte
from router.upstream.reply_stream import ReplyStream


def deliver(scope: Scope) -> Response:
    """The answer of the call in its client's dialect; raises ``RecordsUnavailable``.

    A whole answer is recorded here, a stream while it is read.
    """
    dialect, reply, call = DIALECTS[scope.dialect], scope.backend_reply, scope.call
    assert reply is not None and call is not None
    if reply.stream is not None:
        return stream_reply(ClientStream(scope, dialect, reply.stream))
    if call.stream:
        events = dialect.render_events(scope, reply)
        if events is not None:
            _record_whole(scope, events)
            return stream_reply(events)
    body = dialect.render(scope, reply)
    _record_whole(scope, body)
    admitted = scope.limits.admitted
    if admitted is not None and admitted.entry is not None:
        scope.limits.stored_reply = _to_stored(reply.backend_id, scope.decision, body)
    return json_reply(body)


def replay(scope: Scope) -> Response:
    """The reply that the same call had before, byte for byte; recorded, and free."""
    assert scope.limits.replay is not None
    backend_id, decision, body = _from_stored(scope.limits.replay)
    _record_whole(scope, body)
    response = json_reply(body)
    response.headers["X-Routing-Backend"] = backend_id
    response.headers["X-Routing-Decision"] = decision
    response.headers["Idempotency-Replayed"] = "true"
    return response


class ClientStream:
    """A stream for the client: the backend's bytes, then, if it broke, an event that says so.

    It has no ``close``: the response would call that first, and what interrupts it (the end of a
    worker, while a stream that its client has left is read on) would skip the settlement, which
    closes the stream itself.
    """

    def __init__(self, scope: Scope, dialect: Dialect, stream: ReplyStream) -> None:
        self._scope = scope
        self._dialect = dialect
        self._stream = stream
        translated = dialect.translate(scope, stream)
        self._chunks: Iterator[bytes] = stream if translated is None else translated
        self._is_translated: Final = translated is not None
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
            error = _stream_error(self._stream)
            last = self._failure(error)
            self._scope.code = error_spec_of(error).code
            self._scope.bytes_sent += len(last)
            ended_as = call_outcome(self._scope)
            record_end(self._scope, ended_as, time.monotonic())
            charge_before_last_byte(self._scope, ended_as)
        if not last:
            raise StopIteration
        return last

    def _pass(self, chunk: bytes) -> bytes:
        """The chunk; the one that completes the answer goes out only when the call is recorded."""
        scope = self._scope
        scope.bytes_sent += len(chunk)
        if self._is_last() and not scope.recorded:
            unwritten = record_answer(scope)
            if unwritten is not None:
                # An error takes the place of the last event, which must not go out.
                self._ended = True
                failure = self._failure(unwritten.error)
                scope.bytes_sent += len(failure) - len(chunk)
                record_withheld(scope, unwritten)
                charge_before_last_byte(scope, call_outcome(scope))
                return failure
            charge_before_last_byte(scope, "completed")
        return chunk

    def _is_last(self) -> bool:
        """Whether the answer is whole with what goes out next.

        Of a stream that is passed on that is its last event; one that is translated has an event
        of ours behind it.
        """
        if self._is_translated:
            return self._stream.outcome == "completed"
        return self._stream.is_complete

    def _failure(self, error: errors.RouterError) -> bytes:
        return self._dialect.failure_event(error, trace_id=self._scope.trace.trace_id)


def _record_whole(scope: Scope, answer: bytes) -> None:
    """Record the call; raises ``RecordsUnavailable``, and then nothing of the answer may go out."""
    scope.bytes_sent = len(answer)
    unwritten = record_answer(scope)
    if unwritten is not None:
        scope.status = status_of(unwritten.error)
        scope.bytes_sent = len(error_body(scope, unwritten.error))
        record_withheld(scope, unwritten)
        raise unwritten.error


def _stream_error(stream: ReplyStream) -> errors.RouterError:
    """Why a stream ended before its end."""
    if stream.outcome == "timeout":
        return errors.BackendTimeout(stream.failure or "idle")
    return errors.BackendFailed(stream.failure or "stream ended early")


def _to_stored(backend_id: str, decision: str, body: bytes) -> bytes:
    """A whole reply as it is stored for duplicates."""
    return f"{backend_id}\n{decision}\n".encode() + body


def _from_stored(reply: bytes) -> tuple[str, str, bytes]:
    """Backend, decision and body of a stored reply."""
    backend_id, decision, body = reply.split(b"\n", 2)
    return backend_id.decode(), decision.decode(), body
