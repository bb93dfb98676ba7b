"""The reference budget service: the router's own ledger behind HTTP.

It implements ``contracts/budget-service.openapi.json``, for routers whose
``BUDGET_SERVICE_ENDPOINT`` leads here and for any other client.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson
from flask import Flask, Response, request
from marshmallow import Schema, ValidationError
from werkzeug.exceptions import HTTPException

from router.breaker import Unavailable
from router.config.loader import flatten_messages
from router.config.schema.fields import is_id
from router.limits.budgets.rebuilding import RebuildingLedger
from router.limits.budgets.windows import Closed, Denied, ThresholdEvent, WindowSpec
from router.limits.remote import contract, messages
from router.limits.remote.messages import ReserveCommand, SettleCommand

log = logging.getLogger(__name__)

_MAX_PROBLEMS: Final = 20

WindowsOf = Callable[[str, str | None], Sequence[WindowSpec] | None]
"""The windows of an organization, and of its key if one is named; ``None`` when there is no such
organization or key. Raises :class:`Unavailable`."""

_CHECK: Final = messages.CheckRequest()
_RESERVE: Final = messages.ReserveRequest()
_SETTLE: Final = messages.SettleRequest()
_RELEASE: Final = messages.ReleaseRequest()
_CHECKED: Final = messages.CheckReply()
_RESERVED: Final = messages.ReserveReply()
_DENIED: Final = messages.DeniedReply()
_SETTLED: Final = messages.SettleReply()
_STATES: Final = messages.WindowsReply()


class _Refused(Exception):
    """A refusal: status, code, and a message for people."""

    def __init__(self, status: int, code: str, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.problems = problems


class BudgetService:
    """The endpoints. They have no state: it is all in the ledger."""

    def __init__(
        self, ledger: RebuildingLedger, windows_of: WindowsOf, ping: Callable[[], None]
    ) -> None:
        self._ledger = ledger
        self._windows_of = windows_of
        self._ping = ping

    def check(self) -> Response:
        """Whether the amounts would fit."""
        command: ReserveCommand = _load(_CHECK)
        check, threshold_events = self._ledger.check(
            command.organization_id, self._windows(command), command.amounts
        )
        _log(command.organization_id, threshold_events)
        return _reply(_CHECKED.dump(check))

    def reserve(self) -> Response:
        """Reserve the amounts."""
        command: ReserveCommand = _load(_RESERVE)
        outcome, threshold_events = self._ledger.reserve(
            command.organization_id,
            command.lease_id,
            self._windows(command),
            command.amounts,
            ttl_ms=command.ttl_ms,
        )
        if isinstance(outcome, Closed):
            raise _Refused(409, "LEASE_ENDED", "this lease was settled or released before")
        if isinstance(outcome, Denied):
            return _reply(_DENIED.dump(_denied(outcome, threshold_events)), 402)
        return _reply(_RESERVED.dump({"reservation": outcome, "crossings": threshold_events}))

    def settle(self) -> Response:
        """Book what was used, and free the rest."""
        return self._end(_load(_SETTLE))

    def release(self) -> Response:
        """Free what was reserved."""
        return self._end(_load(_RELEASE))

    def windows(self) -> Response:
        """What the counters say of an organization and, if one is named, of its key."""
        organization_id, key_id = request.args.get("organization_id"), request.args.get("key_id")
        wrong = [
            f"{name}: must be an id"
            for name, value in (("organization_id", organization_id), ("key_id", key_id or "any"))
            if not is_id(value)
        ]
        if wrong or organization_id is None:
            raise _Refused(400, "INVALID_REQUEST", "the query is wrong", wrong)
        windows = self._windows_of(organization_id, key_id or None)
        if windows is None:
            raise _Refused(404, "NOT_FOUND", "no such organization, or no such key of it")
        states, threshold_events = self._ledger.read(organization_id, windows)
        _log(organization_id, threshold_events)
        return _reply(_STATES.dump({"windows": states}))

    def alive(self) -> Response:
        """The process answers."""
        return _reply({"status": "ok"})

    def ready(self) -> Response:
        """The ledger answers."""
        try:
            self._ping()
        except Unavailable:
            return _reply({"status": "unavailable"}, 503)
        return _reply({"status": "ok"})

    def _windows(self, command: ReserveCommand) -> Sequence[WindowSpec]:
        if command.windows is not None:
            return command.windows
        return self._windows_of(command.organization_id, command.key_id) or ()

    def _end(self, command: SettleCommand) -> Response:
        settlement = self._ledger.settle(command.reservation, command.amounts)
        return _reply(_SETTLED.dump(settlement))


def create_app(
    ledger: RebuildingLedger,
    *,
    windows_of: WindowsOf = lambda _organization_id, _key_id: None,
    ping: Callable[[], None] = lambda: None,
    token: str | None = None,
) -> Flask:
    """The service as a WSGI application. With ``token`` only clients that send it get an answer,
    except on the health endpoints."""
    app = Flask("budget-service", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = contract.MAX_BODY_BYTES
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    service = BudgetService(ledger, windows_of, ping)
    for path, view in (
        (contract.CHECK, service.check),
        (contract.RESERVE, service.reserve),
        (contract.SETTLE, service.settle),
        (contract.RELEASE, service.release),
    ):
        app.post(path)(view)
    for path, view in (
        (contract.WINDOWS, service.windows),
        (contract.ALIVE, service.alive),
        (contract.READY, service.ready),
    ):
        app.get(path)(view)
    if token is not None:
        app.before_request(lambda: _require(token))
    app.register_error_handler(_Refused, _on_refused)
    app.register_error_handler(Unavailable, _on_unavailable)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(Exception, _on_unexpected_error)
    return app


def _require(token: str) -> None:
    if request.path in (contract.ALIVE, contract.READY):
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not right:
        raise _Refused(401, "UNAUTHENTICATED", "the bearer token is missing or wrong")


def _load(schema: Schema) -> Any:
    """The body as the value of the schema; raises :class:`_Refused`."""
    body = request.get_data(cache=False)
    if request.content_length is not None and len(body) != request.content_length:
        raise _Refused(400, "INVALID_REQUEST", "the body is shorter than announced")
    try:
        return schema.load(orjson.loads(body))
    except orjson.JSONDecodeError:
        raise _Refused(400, "INVALID_REQUEST", "the body is not JSON") from None
    except ValidationError as error:
        problems = [*flatten_messages(error.messages)][:_MAX_PROBLEMS]
        raise _Refused(400, "INVALID_REQUEST", "the body is wrong", problems) from None


def _denied(denied: Denied, threshold_events: Sequence[ThresholdEvent]) -> dict[str, Any]:
    """The values of a :class:`messages.DeniedReply`."""
    window = denied.binding.window
    is_budget = window.unit == "usd"
    return {
        "error": f"the {'budget' if is_budget else 'quota'} '{window.name}' is exhausted",
        "code": "BUDGET_EXCEEDED" if is_budget else "QUOTA_EXCEEDED",
        "binding": denied.binding,
        "this_request": denied.this_request,
        "windows": denied.states,
        "dropped": denied.dropped,
        "crossings": threshold_events,
    }


def _log(organization_id: str, threshold_events: Sequence[ThresholdEvent]) -> None:
    """Log the thresholds that a rebuild found, where the reply has no field for them."""
    for found in threshold_events:
        facts = {"organization_id": organization_id, "window": found.window.id}
        log.warning("budget threshold reached", extra={**facts, "percent": found.percent})


def _reply(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, mimetype="application/json")


def _on_refused(error: _Refused) -> Response:
    body = {"error": str(error), "code": error.code, "problems": error.problems}
    reply = _reply(body, error.status)
    if error.status == 401:
        reply.headers["WWW-Authenticate"] = "Bearer"
    return reply


def _on_unavailable(error: Unavailable) -> Response:
    log.info("no answer", extra={"dependency": error.name, "reason": error.reason})
    reply = _on_refused(_Refused(503, "LEDGER_UNAVAILABLE", "the ledger is unavailable"))
    reply.headers["Retry-After"] = "1"
    return reply


def _on_http_error(error: HTTPException) -> Response:
    code, message = {
        404: ("NOT_FOUND", "no such endpoint"),
        405: ("METHOD_NOT_ALLOWED", "this endpoint has another method"),
        413: ("BODY_TOO_LARGE", f"more than {contract.MAX_BODY_BYTES} bytes"),
    }.get(error.code or 400, ("INVALID_REQUEST", "the request is malformed"))
    reply = _on_refused(_Refused(error.code or 400, code, message))
    for name, value in error.get_headers():
        if name == "Allow":
            reply.headers[name] = value
    return reply


def _on_unexpected_error(error: Exception) -> Response:
    log.error("unexpected error", exc_info=error)
    return _on_refused(_Refused(500, "INTERNAL", "the service has failed"))
