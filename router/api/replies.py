"""Responses: JSON, events, errors. What every response carries is added in one place."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

from flask import Response
from werkzeug.datastructures import Headers

from router import errors
from router.api.dialects.dialect_table import DIALECTS
from router.api.error_specs import error_spec_of, retry_after_s, status_of
from router.api.scope import Scope, current_scope
from router.api.steps.denials import add_rate_headers
from router.telemetry.redaction import redact_bytes

JSON: Final = "application/json"
LONG_ANSWER_BYTES: Final = 64 * 1024
EVENT_STREAM: Final = "text/event-stream; charset=utf-8"


class Reply(Response):
    """A response whose headers are final, so that the framework does not look through them again
    for what it would have to correct."""

    def get_wsgi_headers(self, environ: dict[str, Any]) -> Headers:
        return self.headers


def json_reply(body: bytes, status: int = 200) -> Response:
    """A JSON body of known length."""
    return Reply(body, status, content_type=JSON)


def stream_reply(stream: Iterable[bytes] | bytes) -> Response:
    """Server-sent events, which nothing on the way may buffer."""
    # Not direct_passthrough: the server would then close the stream but never the response, and
    # what hangs on the response's end (settlement) would not happen.
    response = Reply(stream, 200, content_type=EVENT_STREAM)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def error_reply(error: Exception) -> Response:
    """The error as the dialect of the current request shows it."""
    scope = current_scope()
    spec = error_spec_of(error)
    scope.code = spec.code
    scope.failed_outcome = spec.outcome
    response = json_reply(error_body(scope, error), status_of(error))
    wait_s = retry_after_s(error)
    if wait_s is not None:
        response.headers["Retry-After"] = str(wait_s)
    if isinstance(error, errors.MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, (errors.Unauthenticated, errors.SignatureInvalid)):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def error_body(scope: Scope, error: Exception) -> bytes:
    """The error's body without secrets: it may name a model or a field that the client sent, and
    keys have been seen in both places."""
    body = DIALECTS[scope.dialect].error_body(error, trace_id=scope.trace.trace_id)
    return redact_bytes(body)


def finish(scope: Scope, response: Response) -> None:
    """Add what every response carries, and note when it was ready to begin."""
    scope.status = response.status_code
    scope.answered_s = time.monotonic()
    scope.overhead_s = scope.answered_s - scope.started_s - scope.backend_s
    add = response.headers.add  # none of them is there yet, so nothing is to be replaced
    add("X-Request-ID", scope.request_id)
    if scope.backend_reply is not None:
        add("X-Routing-Backend", scope.backend_reply.backend_id)
        add("X-Routing-Decision", scope.decision)
    if scope.backend_reply is not None or scope.limits.replay is not None:
        add("X-Router-Overhead-Ms", f"{scope.overhead_s * 1000:.2f}")
    if scope.limits.rate_decision is not None:
        add_rate_headers(response, scope.limits.rate_decision)
    if not response.is_streamed:
        scope.bytes_sent = response.content_length or 0
    _bound_writes(scope, response)


def _bound_writes(scope: Scope, response: Response) -> None:
    """Give up on a client that stops reading a long answer; a short one fits into the kernel."""
    sock = scope.request.environ.get("gunicorn.socket")
    if sock is None:
        return
    if response.is_streamed or scope.bytes_sent > LONG_ANSWER_BYTES:
        sock.settimeout(scope.services.settings.client_write_timeout_s)
        # The connection's next wait is for a request, which has its own limit.
        response.call_on_close(lambda: sock.settimeout(None))
