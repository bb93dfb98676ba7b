"""The OpenAPI document of a budget service: what the router asks of it, and what it may answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema

from router.config.settings import Settings
from router.limits.remote import wire as budget_wire

API_VERSION: Final = "1.0.0"
CHECK: Final = "/v1/budget/check"
RESERVE: Final = "/v1/budget/reserve"
SETTLE: Final = "/v1/budget/settle"
RELEASE: Final = "/v1/budget/release"
WINDOWS: Final = "/v1/budget/windows"
READY: Final = "/readyz"
ALIVE: Final = "/healthz"

MAX_BODY_BYTES: Final = 1024 * 1024

_SCHEMAS: Final[tuple[type[Schema], ...]] = (
    budget_wire.CheckRequest,
    budget_wire.CheckReply,
    budget_wire.ReserveRequest,
    budget_wire.ReserveReply,
    budget_wire.DeniedReply,
    budget_wire.SettleRequest,
    budget_wire.SettleReply,
    budget_wire.ReleaseRequest,
    budget_wire.WindowsReply,
    budget_wire.ErrorReply,
    budget_wire.HealthReply,
)

_DESCRIPTION: Final = """\
What the API Router asks of the service that holds its budgets (`BUDGET_SERVICE_ENDPOINT`), and what
`routerctl budget-service` answers.

**A service may be as small as `POST /v1/budget/check`** with `{"allowed": true}` or
`{"allowed": false}` as its whole answer. Whoever answers 404, 405 or 501 to a reservation is asked
for checks instead, and nothing is held between the check and the end of a call: calls that run at
the same time may overspend together. Reservations are what makes a budget exact.

Amounts are whole numbers: nano-USD (10⁻⁹ USD), tokens, requests. Fields of a request that are not
listed are refused; a reply may hold more than is listed.

Every answer must be JSON, at most 1 MiB, whole within `BUDGET_SERVICE_TIMEOUT` of the question.
Anything else counts as no answer: the router then does what `ROUTER_BUDGET_FALLBACK` says. Every
question may come twice, and a second one with the same `lease_id` must change nothing.
"""

_ERRORS: Final[Mapping[str, tuple[str, str]]] = {
    "400": ("InvalidRequest", "INVALID_REQUEST: it cannot be understood; `problems` tells why."),
    "401": ("Unauthenticated", "UNAUTHENTICATED: the bearer token is missing or wrong."),
    "413": ("BodyTooLarge", "BODY_TOO_LARGE: more than 1 MiB."),
    "500": ("Internal", "INTERNAL: a defect of the service."),
    "503": ("Unavailable", "LEDGER_UNAVAILABLE: nobody can know now; nothing may be spent."),
}


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    plugin = MarshmallowPlugin(schema_name_resolver=_name)
    spec = APISpec("budget service", API_VERSION, openapi_version="3.1.0", plugins=[plugin])
    for schema in _SCHEMAS:
        spec.components.schema(_name(schema), schema=schema)
    components = spec.to_dict()["components"]["schemas"]
    assert plugin.converter is not None
    for key in plugin.converter.refs:
        words = " ".join((key[0].__doc__ or "").split()).replace("``", "`")
        components[_name(key[0])]["description"] = words
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Budget service of the API Router",
            "version": API_VERSION,
            "description": _DESCRIPTION,
        },
        "servers": [
            {
                "url": f"http://{Settings().budget_service_bind}",
                "description": "routerctl budget-service (BUDGET_SERVICE_BIND)",
            }
        ],
        "paths": _paths(),
        "components": {
            "schemas": components,
            "responses": {name: _json(text, "ErrorReply") for name, text in _ERRORS.values()},
            "securitySchemes": {
                "Token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "BUDGET_SERVICE_TOKEN; without it nobody is asked for one.",
                }
            },
        },
    }


def _paths() -> dict[str, Any]:
    exhausted = {"402": _json("Held in no window.", "DeniedReply")}
    ended = {"409": _json("LEASE_ENDED: it was settled or released before.", "ErrorReply")}
    return {
        CHECK: _post("check", "Would it fit? Holds nothing.", "Check"),
        RESERVE: _post(
            "reserve", "Hold it in all windows, or in none.", "Reserve", exhausted | ended
        ),
        SETTLE: _post("settle", "Book what was used, and hold no more.", "Settle"),
        RELEASE: _post("release", "Hold no more.", "Release", reply="Settle"),
        WINDOWS: {
            "get": {
                "operationId": "listWindows",
                "summary": "What the counters say. The service has to know the router's document.",
                "security": [{"Token": []}, {}],
                "parameters": [
                    _parameter("organization_id", "Who pays.", required=True),
                    _parameter("key_id", "One of its keys, for the windows of that key as well."),
                ],
                "responses": {
                    "200": _json("Found.", "WindowsReply"),
                    **_failures("400", "401", "500", "503"),
                    "404": _json(
                        "NOT_FOUND: no such organization, or no such key of it.", "ErrorReply"
                    ),
                },
            }
        },
        ALIVE: _health("getHealth", "The process answers."),
        READY: _health("getReadiness", "The ledger answers.", away=True),
    }


def _post(
    operation: str,
    summary: str,
    name: str,
    more: Mapping[str, Any] | None = None,
    *,
    reply: str | None = None,
) -> dict[str, Any]:
    body = {"application/json": {"schema": _schema(f"{name}Request")}}
    return {
        "post": {
            "operationId": operation,
            "summary": summary,
            "security": [{"Token": []}, {}],
            "requestBody": {"required": True, "content": body},
            "responses": {
                "200": _json("Done.", f"{reply or name}Reply"),
                **_failures(*_ERRORS),
                **(more or {}),
            },
        }
    }


def _health(operation: str, summary: str, *, away: bool = False) -> dict[str, Any]:
    responses = {"200": _json("Yes.", "HealthReply")}
    if away:
        responses["503"] = _json("No.", "HealthReply")
    return {"get": {"operationId": operation, "summary": summary, "responses": responses}}


def _parameter(name: str, text: str, *, required: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": required,
        "description": text,
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    }


def _json(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _schema(schema)}}}


def _failures(*statuses: str) -> dict[str, Any]:
    return {status: {"$ref": f"#/components/responses/{_ERRORS[status][0]}"} for status in statuses}


def _schema(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _name(schema: Any) -> str:
    owner = schema if isinstance(schema, type) else type(schema)
    return owner.__name__.removesuffix("Schema")
