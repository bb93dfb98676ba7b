"""What the service answers when it has no answer: status, code, and a message for people."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import orjson
from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from router.breaker import Unavailable
from router.limits.remote import contract

log = logging.getLogger(__name__)


class Refusal(Exception):
    """A request that is refused, with the status and the code of the answer."""

    def __init__(self, status: int, code: str, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.problems = problems


def json_reply(body: dict[str, Any], status: int = 200) -> Response:
    """``body`` as the answer."""
    return Response(orjson.dumps(body), status, mimetype="application/json")


def answer_errors(app: Flask) -> None:
    """Have every error of ``app`` answered in JSON."""
    app.register_error_handler(Refusal, _on_refused)
    app.register_error_handler(Unavailable, _on_unavailable)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(Exception, _on_unexpected_error)


def _on_refused(error: Refusal) -> Response:
    body = {"error": str(error), "code": error.code, "problems": error.problems}
    reply = json_reply(body, error.status)
    if error.status == 401:
        reply.headers["WWW-Authenticate"] = "Bearer"
    return reply


def _on_unavailable(error: Unavailable) -> Response:
    log.info("no answer", extra={"dependency": error.name, "reason": error.reason})
    reply = _on_refused(Refusal(503, "LEDGER_UNAVAILABLE", "the ledger is unavailable"))
    reply.headers["Retry-After"] = "1"
    return reply


def _on_http_error(error: HTTPException) -> Response:
    code, message = {
        404: ("NOT_FOUND", "no such endpoint"),
        405: ("METHOD_NOT_ALLOWED", "this endpoint has another method"),
        413: ("BODY_TOO_LARGE", f"more than {contract.MAX_BODY_BYTES} bytes"),
    }.get(error.code or 400, ("INVALID_REQUEST", "the request is malformed"))
    reply = _on_refused(Refusal(error.code or 400, code, message))
    for name, value in error.get_headers():
        if name == "Allow":
            reply.headers[name] = value
    return reply


def _on_unexpected_error(error: Exception) -> Response:
    log.error("unexpected error", exc_info=error)
    return _on_refused(Refusal(500, "INTERNAL", "the service has failed"))
