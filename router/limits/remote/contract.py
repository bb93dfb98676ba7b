"""The OpenAPI document of a budget service: what the router asks of it, and what it may answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema

from router.config.settings import Settings
from router.limits.remote import message_parts, messages

API_VERSION: Final = "1.0.0"
CHECK: Final = "/v1/budget/check"
RESERVE: Final = "/v1/budget/reserve"
SETTLE: Final = "/v1/budget/settle"
RELEASE: Final = "/v1/budget/release"
WINDOWS: Final = "/v1/budget/windows"
READY: Final = "/readyz"
ALIVE: Final = "/healthz"

UNKNOWN_ORGANIZATION: Final = "UNKNOWN_ORGANIZATION"
"""The code of a 404 that is about the caller, not about the path."""

CANNOT_RESERVE: Final = "CANNOT_RESERVE"
"""The code with which a service says that it only checks."""

MAX_BODY_BYTES: Final = 1024 * 1024

_SCHEMAS: Final[Mapping[str, type[Schema]]] = {
    "Window": message_parts.WindowSchema,
    "Amounts": message_parts.AmountsSchema,
    "State": message_parts.StateSchema,
    "Held": message_parts.ReservedWindowSchema,
    "Reservation": message_parts.ReservationSchema,
    "ThresholdEvent": message_parts.ThresholdEventSchema,
    "CheckRequest": messages.CheckRequest,
    "CheckReply": messages.CheckReply,
    "ReserveRequest": messages.ReserveRequest,
    "ReserveReply": messages.ReserveReply,
    "DeniedReply": messages.DeniedReply,
    "SettleRequest": messages.SettleRequest,
    "SettleReply": messages.SettleReply,
    "ReleaseRequest": messages.ReleaseRequest,
    "WindowsReply": messages.WindowsReply,
    "ErrorReply": messages.ErrorReply,
    "HealthReply": messages.HealthReply,
}

_DESCRIPTION: Final = """\
What the API Router asks of the service that holds its budgets (`BUDGET_SERVICE_ENDPOINT`), and what
`routerctl budget-service` answers.

**A service may be as small as `POST /v1/budget/check`** with `{"allowed": true}` or
`{"allowed": false}` as its whole answer. Where a service answers 404, 405 or 501 to a reservation,
the router asks for checks instead, and nothing is reserved between the check and the end of a call:
calls that run at the same time may overspend together. Reservations are what makes a budget exact.
A service that has reserved before is not asked for checks instead, unless it answers with the code
`CANNOT_RESERVE`; nor is one whose check says `reserves: true`.

**404 with the code `UNKNOWN_ORGANIZATION`** means that there is no such organization, or no such
key of it. The call is refused, whatever the router's policy for outages is.

**A lease is settled once**, by its id. One that was never reserved is booked in the windows of its
`reservation`; where `windows` is empty, in those that the service knows of `organization_id` and
`key_id`. A settlement that is not answered with 200 is sent again until it is.

Amounts are whole numbers: nano-USD (10⁻⁹ USD), tokens, requests. Fields of a request that are not
listed are refused; a reply may have more than is listed.

Every answer must be JSON, at most 1 MiB, whole within `BUDGET_SERVICE_TIMEOUT` of the request.
Anything else counts as no answer: the router then does what `ROUTER_BUDGET_FALLBACK` says. Every
request may come twice, and a second one with the same `lease_id` must change nothing.
"""

_ERRORS: Final[Mapping[str, tuple[str, str]]] = {
    "400": ("InvalidRequest", "INVALID_REQUEST: it cannot be understood; `problems` lists why."),
    "401": ("Unauthenticated", "UNAUTHENTICATED: the bearer token is missing or wrong."),
    "413": ("BodyTooLarge", "BODY_TOO_LARGE: more than 1 MiB."),
    "500": ("Internal", "INTERNAL: a defect of the service."),
    "503": (
        "Unavailable",
        "LEDGER_UNAVAILABLE: the counters cannot be read now; nothing may be spent.",
    ),
}


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    server = {
        "url": f"http://{Settings().budget_service_bind}",
        "description": "routerctl budget-service (BUDGET_SERVICE_BIND)",
    }
    spec = APISpec(
        "Budget service of the API Router",
        API_VERSION,
        openapi_version="3.1.0",
        plugins=[MarshmallowPlugin()],
        info={"description": _DESCRIPTION},
        servers=[server],
    )
    token = "BUDGET_SERVICE_TOKEN; a service without one demands none."
    spec.components.security_scheme(
        "Token", {"type": "http", "scheme": "bearer", "description": token}
    )
    for name, schema in _SCHEMAS.items():
        words = " ".join((schema.__doc__ or "").split()).replace("``", "`")
        spec.components.schema(name, {"description": words}, schema=schema)
    for name, text in _ERRORS.values():
        spec.components.response(name, _json(text, "ErrorReply"))
    for path, method, operation in _operations():
        spec.path(path, operations={method: operation})
    return spec.to_dict()


def _operations() -> list[tuple[str, str, dict[str, Any]]]:
    exhausted = {"402": _json("Reserved in no window.", "DeniedReply")}
    ended = {"409": _json("LEASE_ENDED: it was settled or released before.", "ErrorReply")}
    unknown = {"404": _json("NOT_FOUND: no such organization, or no such key of it.", "ErrorReply")}
    refused = {"404": _json("UNKNOWN_ORGANIZATION: it, or its key, is unknown.", "ErrorReply")}
    nowhere = {"404": _json("UNKNOWN_ORGANIZATION: nothing says where to book it.", "ErrorReply")}
    windows = _operation(
        "listWindows",
        "What the counters say. The service has to know the router's document.",
        {"200": _json("Found.", "WindowsReply"), **_failures("400", "401", "500", "503")} | unknown,
        security=_SECURITY,
        parameters=[
            _parameter("organization_id", "Who pays.", required=True),
            _parameter("key_id", "One of its keys, for the windows of that key as well."),
        ],
    )
    yes, no = {"200": _json("Yes.", "HealthReply")}, {"503": _json("No.", "HealthReply")}
    reserve = _post(
        "reserve", "Reserve it in all windows, or in none.", "Reserve", exhausted | ended | refused
    )
    return [
        (CHECK, "post", _post("check", "Would it fit? Reserves nothing.", "Check", refused)),
        (RESERVE, "post", reserve),
        (
            SETTLE,
            "post",
            _post("settle", "Book what was used, and free the rest.", "Settle", nowhere),
        ),
        (RELEASE, "post", _post("release", "Free it.", "Release", nowhere, reply="SettleReply")),
        (WINDOWS, "get", windows),
        (ALIVE, "get", _operation("getHealth", "The process answers.", yes)),
        (READY, "get", _operation("getReadiness", "The ledger answers.", yes | no)),
    ]


_SECURITY: Final[list[dict[str, list[str]]]] = [{"Token": []}, {}]


def _operation(
    operation_id: str, summary: str, responses: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    return {"operationId": operation_id, "summary": summary, "responses": responses, **more}


def _post(
    operation_id: str,
    summary: str,
    name: str,
    responses: Mapping[str, Any] | None = None,
    *,
    reply: str | None = None,
) -> dict[str, Any]:
    done = {"200": _json("Done.", reply or f"{name}Reply")}
    content = {"application/json": {"schema": f"{name}Request"}}
    return _operation(
        operation_id,
        summary,
        {**done, **_failures(*_ERRORS), **(responses or {})},
        security=_SECURITY,
        requestBody={"required": True, "content": content},
    )


def _parameter(name: str, text: str, *, required: bool = False) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": 128}
    return {
        "name": name,
        "in": "query",
        "required": required,
        "description": text,
        "schema": schema,
    }


def _json(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _failures(*statuses: str) -> dict[str, str]:
    return {status: _ERRORS[status][0] for status in statuses}
