"""The steps that every authenticated request passes before its view, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from flask import Blueprint, Response

from router.api.admission import needs_call, reserve, take_rates
from router.api.bodies import is_at_hand, parse_object, read_body, require_json
from router.api.replies import replay_reply
from router.api.scope import Scope, current_scope
from router.api.target import raw_target
from router.auth.signatures import (
    BODY_FIELD,
    NONCE_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    SignedParts,
)
from router.call import Call
from router.errors import InvalidRequest, RouterError, ScopeMissing, SignatureInvalid

ReadFields = Callable[[Scope, dict[str, Any], bytes], Call]
"""Makes a call out of a parsed body and the bytes it was parsed from."""

BODY_SIGNED_ENDPOINTS: Final = frozenset({"native.inference"})
"""Where the signature may travel in the body instead, so that it is looked for there."""

_SCOPES: Final[dict[str, str | None]] = {}
_READERS: Final[dict[str, ReadFields]] = {}


def declare(endpoint: str, *, scope: str | None, reader: ReadFields | None = None) -> None:
    """What the steps need to know of a route: the scope it asks for, how its body is read.

    Without a scope any valid key may use it. With a reader it is one that limits apply to; without,
    it cannot reach a backend.
    """
    _SCOPES[endpoint] = scope
    if reader is not None:
        _READERS[endpoint] = reader


def authenticate(scope: Scope) -> None:
    """Who calls? Before anything else: a stranger costs one hash and one look-up."""
    wired, environ = scope.services, scope.request.environ
    x_api_key, authorization = environ.get("HTTP_X_API_KEY"), environ.get("HTTP_AUTHORIZATION")
    scope.secrets = _credentials(x_api_key, authorization)
    document = scope.document = wired.state.document()

    def active(organization_id: str) -> bool:
        organization = document.organizations.get(organization_id)
        return organization is not None and organization.active

    scope.key = wired.authenticator.authenticate(x_api_key, authorization, active)
    scope.caller = wired.authenticator.to_caller(scope.key)


def authorize(scope: Scope) -> None:
    """May the key do this at all? Before the body is read: a forbidden call costs no parsing."""
    caller, needed = scope.caller, _SCOPES[scope.endpoint]
    if needed is not None and (caller is None or needed not in caller.scopes):
        raise ScopeMissing(needed)


def verify_signature(scope: Scope) -> None:
    """Is the request signed where it must be? Needs the body, so it comes after the cheap steps."""
    key, request = scope.key, scope.request
    assert key is not None and scope.caller is not None
    signature = request.headers.get(SIGNATURE_HEADER) if _SIGNATURE in request.environ else None
    if signature is not None:
        body = _body(scope) if request.method == "POST" else b""
        parts = _signed_parts(scope)
        scope.services.authenticator.verify_signature(key, parts, body, signature)
        scope.caller = replace(scope.caller, signed=True)
    elif key.require_signature and scope.endpoint not in BODY_SIGNED_ENDPOINTS:
        raise _unsigned()


def limit_rate(scope: Scope) -> None:
    """Does the caller come too often? Before the body is read, unless a limit depends on it, or
    the body is short and there: then the rates are asked together with the budgets, which is one
    exchange with Redis less. They still come first, and what they refuse has cost nothing else."""
    if scope.endpoint not in _READERS or needs_call(scope) or is_at_hand(scope.request.environ):
        return
    take_rates(scope)


def read_call(scope: Scope) -> None:
    """What is asked? The body becomes a call; the client's bytes are kept beside it."""
    reader = _READERS.get(scope.endpoint)
    if reader is None:
        return
    try:
        require_json(scope.request)
        body = _body(scope)
        fields = parse_object(body)
        if scope.endpoint in BODY_SIGNED_ENDPOINTS:
            _verify_body_signature(scope, fields, body)
        scope.call = reader(scope, fields, body)
    except RouterError:
        if scope.limits.decision is None:
            take_rates(scope)  # what cannot be read counts like what can
        raise


def admit(scope: Scope) -> None:
    """Is it within the budgets, and is it new? Needs to know what the call may cost. Asks for the
    rates, too, where they were not asked yet."""
    if scope.call is None:
        return
    reserve(scope)


STEPS: Final = (authenticate, authorize, verify_signature, limit_rate, read_call, admit)


def walk() -> Response | None:
    """Take the current request through the steps; one that refuses raises.

    Answers in place of the view when the same call was answered before.
    """
    scope = current_scope()
    for step in STEPS:
        step(scope)
    return None if scope.limits.replay is None else replay_reply(scope)


def install(blueprint: Blueprint) -> None:
    """Walk the steps before every view of ``blueprint``."""
    blueprint.before_request(walk)


_SIGNATURE: Final = "HTTP_" + SIGNATURE_HEADER.upper().replace("-", "_")


def _credentials(x_api_key: str | None, authorization: str | None) -> tuple[str, ...]:
    """What must never be passed on, in whatever header it stands."""
    found = [x_api_key] if x_api_key else []
    if authorization:
        found.extend(authorization.split()[-1:])
    return tuple(found)


def _body(scope: Scope) -> bytes:
    if scope.body is None:
        settings = scope.services.settings
        scope.body = read_body(scope.request, settings.max_body_bytes, settings.body_timeout_s)
    return scope.body


def _verify_body_signature(scope: Scope, fields: dict[str, Any], body: bytes) -> None:
    """Check ``hmac_signature`` when it is there; a key that requires one gets by on either."""
    assert scope.key is not None and scope.caller is not None
    signature = fields.get(BODY_FIELD)
    if signature is None:
        if scope.key.require_signature and not scope.caller.signed:
            raise _unsigned()
        return
    if not isinstance(signature, str):
        raise InvalidRequest("must be a string", field=BODY_FIELD)
    if scope.caller.signed:
        raise SignatureInvalid(
            f"send the signature in {SIGNATURE_HEADER} or in '{BODY_FIELD}', not in both",
            reason="malformed",
        )
    parts = _signed_parts(scope)
    scope.services.authenticator.verify_body_signature(scope.key, parts, body, signature)
    scope.caller = replace(scope.caller, signed=True)


def _signed_parts(scope: Scope) -> SignedParts:
    request = scope.request
    path, _, query = raw_target(request.environ).partition("?")
    return SignedParts(
        method=request.method,
        path=path,
        query=query,
        timestamp=request.headers.get(TIMESTAMP_HEADER, ""),
        nonce=request.headers.get(NONCE_HEADER, ""),
    )


def _unsigned() -> SignatureInvalid:
    return SignatureInvalid(
        f"this key requires a signed request ({SIGNATURE_HEADER})", reason="missing"
    )
