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

from router.breaker import Unavailable
from router.budget_service.audit import BudgetAudit
from router.budget_service.lease_finder import LeaseFinder
from router.budget_service.refusals import Refusal, answer_errors, json_reply
from router.config.loader import flatten_messages
from router.config.schema.fields import is_id
from router.errors import NotConfigured
from router.limits.budgets.rebuilding import RebuildingLedger
from router.limits.budgets.windows import (
    Closed,
    Denied,
    ServiceReservation,
    Settlement,
    ThresholdEvent,
    WindowSpec,
)
from router.limits.remote import contract, messages
from router.limits.remote.message_parts import of_key
from router.limits.remote.messages import ReserveCommand, SettleCommand

log = logging.getLogger(__name__)

_MAX_PROBLEMS: Final = 20

WindowsOf = Callable[[str, str | None], Sequence[WindowSpec] | None]
"""The windows of an organization, and of its key if one is named; ``None`` when there is no such
organization or key. Raises ``NotConfigured`` where no document says who there is."""

_CHECK: Final = messages.CheckRequest()
_RESERVE: Final = messages.ReserveRequest()
_SETTLE: Final = messages.SettleRequest()
_RELEASE: Final = messages.ReleaseRequest()
_CHECKED: Final = messages.CheckReply()
_RESERVED: Final = messages.ReserveReply()
_DENIED: Final = messages.DeniedReply()
_SETTLED: Final = messages.SettleReply()
_STATES: Final = messages.WindowsReply()


class BudgetService:
    """The endpoints. They have no state: it is all in the ledger."""

    def __init__(
        self,
        ledger: RebuildingLedger,
        leases: LeaseFinder,
        audit: BudgetAudit,
        windows_of: WindowsOf,
        ping: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._audit = audit
        self._leases = leases
        self._windows_of = windows_of
        self._ping = ping

    def check(self) -> Response:
        """Whether the amounts would fit."""
        command: ReserveCommand = _load(_CHECK)
        check, threshold_events = self._ledger.check(
            command.organization_id, self._windows(command), command.amounts
        )
        self._note(command.organization_id, threshold_events)
        return json_reply(_CHECKED.dump(check))

    def reserve(self) -> Response:
        """Reserve the amounts."""
        command: ReserveCommand = _load(_RESERVE)
        self._audit.check()
        outcome, threshold_events = self._ledger.reserve(
            command.organization_id,
            command.lease_id,
            self._windows(command),
            command.amounts,
            ttl_ms=command.ttl_ms,
        )
        if isinstance(outcome, Closed):
            raise Refusal(409, "LEASE_ENDED", "this lease was settled or released before")
        if isinstance(outcome, Denied):
            return json_reply(_DENIED.dump(_denied(outcome, threshold_events)), 402)
        self._audit.reserved(outcome, command.key_id, command.amounts)
        reservation = of_key(outcome, command.key_id)
        return json_reply(
            _RESERVED.dump({"reservation": reservation, "crossings": threshold_events})
        )

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
            raise Refusal(400, "INVALID_REQUEST", "the query is wrong", wrong)
        windows = self._known_windows(organization_id, key_id or None)
        if windows is None:
            raise _unknown("NOT_FOUND")
        states, threshold_events = self._ledger.read(organization_id, windows)
        self._note(organization_id, threshold_events)
        return json_reply(_STATES.dump({"windows": states}))

    def alive(self) -> Response:
        """The process answers."""
        return json_reply({"status": "ok"})

    def ready(self) -> Response:
        """The ledger answers."""
        try:
            self._ping()
        except Unavailable:
            return json_reply({"status": "unavailable"}, 503)
        return json_reply({"status": "ok"})

    def _windows(self, command: ReserveCommand) -> Sequence[WindowSpec]:
        """The windows of the request, or those that the document has. Whom the document does not
        know gets none, whatever the request says."""
        try:
            known = self._windows_of(command.organization_id, command.key_id)
        except NotConfigured:
            known = command.windows  # nobody has said who there is
        if known is None:
            raise _unknown(contract.UNKNOWN_ORGANIZATION)
        return known if command.windows is None else command.windows

    def _known_windows(
        self, organization_id: str, key_id: str | None
    ) -> Sequence[WindowSpec] | None:
        try:
            return self._windows_of(organization_id, key_id)
        except NotConfigured:
            return None

    def _end(self, command: SettleCommand) -> Response:
        """End the lease; whoever names no windows means those that it was reserved in."""
        self._audit.check()
        reservation: Any = command.reservation
        key_id = reservation.key_id if isinstance(reservation, ServiceReservation) else None
        if not reservation.windows:
            windows = self._known_windows(reservation.organization_id, key_id)
            if windows is None:
                raise _unknown(contract.UNKNOWN_ORGANIZATION)
            reservation = self._leases.find(
                reservation.organization_id, reservation.lease_id, windows
            )
        if isinstance(reservation, Closed):
            return json_reply(_SETTLED.dump(Settlement(False)))
        settlement = self._ledger.settle(reservation, command.amounts)
        if settlement.booked:
            self._audit.ended(reservation, key_id, command.amounts)
        return json_reply(_SETTLED.dump(settlement))

    def _note(self, organization_id: str, found: Sequence[ThresholdEvent]) -> None:
        """Note the thresholds that a rebuild found, where the reply has no field for them."""
        for event in found:
            facts = {"organization_id": organization_id, "window": event.window.id}
            log.warning("budget threshold reached", extra={**facts, "percent": event.percent})
            self._audit.threshold_reached(organization_id, event)


def _no_document(_organization_id: str, _key_id: str | None) -> None:
    raise NotConfigured


def create_app(
    ledger: RebuildingLedger,
    leases: LeaseFinder,
    audit: BudgetAudit,
    *,
    windows_of: WindowsOf = _no_document,
    ping: Callable[[], None] = lambda: None,
    token: str | None = None,
) -> Flask:
    """The service as a WSGI application. With ``token`` only clients that send it get an answer,
    except on the health endpoints."""
    app = Flask("budget-service", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = contract.MAX_BODY_BYTES
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    service = BudgetService(ledger, leases, audit, windows_of, ping)
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
    answer_errors(app)
    return app


def _require(token: str) -> None:
    if request.path in (contract.ALIVE, contract.READY):
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not right:
        raise Refusal(401, "UNAUTHENTICATED", "the bearer token is missing or wrong")


def _unknown(code: str) -> Refusal:
    return Refusal(404, code, "no such organization, or no such key of it")


def _load(schema: Schema) -> Any:
    """The body as the value of the schema; raises :class:`Refusal`."""
    body = request.get_data(cache=False)
    if request.content_length is not None and len(body) != request.content_length:
        raise Refusal(400, "INVALID_REQUEST", "the body is shorter than announced")
    try:
        return schema.load(orjson.loads(body))
    except orjson.JSONDecodeError:
        raise Refusal(400, "INVALID_REQUEST", "the body is not JSON") from None
    except ValidationError as error:
        problems = [*flatten_messages(error.messages)][:_MAX_PROBLEMS]
        raise Refusal(400, "INVALID_REQUEST", "the body is wrong", problems) from None


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
