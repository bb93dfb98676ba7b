"""Who calls, and may they? The key, its scopes, and the signature of the request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from router.api.bodies import request_body
from router.api.scope import Scope
from router.api.target import raw_target
from router.auth.signatures import (
    BODY_FIELD,
    NONCE_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    SignedParts,
)
from router.errors import InvalidRequest, RouterError, ScopeMissing, SignatureInvalid
from router.limits.idempotency.nonces import Nonce

_SIGNATURE: Final = "HTTP_" + SIGNATURE_HEADER.upper().replace("-", "_")


def authenticate(scope: Scope) -> None:
    """Look the key up; raises ``Unauthenticated`` or ``NotConfigured``."""
    wired, environ = scope.services, scope.request.environ
    x_api_key, authorization = environ.get("HTTP_X_API_KEY"), environ.get("HTTP_AUTHORIZATION")
    scope.secrets = _credentials(x_api_key, authorization)
    document = scope.document = wired.state.document()

    def active(organization_id: str) -> bool:
        organization = document.organizations.get(organization_id)
        return organization is not None and organization.active

    scope.key = wired.authenticator.authenticate(x_api_key, authorization, active)
    scope.caller = wired.authenticator.to_caller(scope.key)


def authorize(scope: Scope, needed: str | None) -> None:
    """Raises ``ScopeMissing`` unless the key has the scope ``needed``; ``None`` asks for none."""
    caller = scope.caller
    if needed is not None and (caller is None or needed not in caller.scopes):
        raise ScopeMissing(needed)


def verify_signature(scope: Scope, *, may_be_in_body: bool) -> None:
    """Check the signature in the headers.

    What is wrong with it, or that it is missing, is noted and refused by admission, where it counts
    for the rate limits like any other request.

    With ``may_be_in_body`` a missing one is looked for by :func:`verify_body_signature`.
    """
    try:
        _verify_signature(scope, may_be_in_body)
    except RouterError as error:
        scope.unreadable = error


def _verify_signature(scope: Scope, may_be_in_body: bool) -> None:
    key, request, authenticator = scope.key, scope.request, scope.services.authenticator
    assert key is not None and scope.caller is not None
    signature = request.headers.get(SIGNATURE_HEADER) if _SIGNATURE in request.environ else None
    if signature is not None:
        parts = _signed_parts(scope)
        authenticator.check_before_body(parts, signature)
        body = request_body(scope) if request.method == "POST" else b""
        authenticator.verify_signature(key, parts, body, signature)
        _note_signed(scope, parts)
    elif key.require_signature and not may_be_in_body:
        raise _unsigned()


def verify_body_signature(scope: Scope, fields: dict[str, Any], body: bytes) -> None:
    """Check ``hmac_signature`` when it is there; a key that requires a signature needs either."""
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
    _note_signed(scope, parts)


def _note_signed(scope: Scope, parts: SignedParts) -> None:
    key = scope.key
    assert key is not None and scope.caller is not None
    scope.caller = replace(scope.caller, signed=True)
    scope.nonce = Nonce(
        key.organization_id, key.id, parts.nonce, int(parts.timestamp), scope.record_id
    )


def _credentials(x_api_key: str | None, authorization: str | None) -> tuple[str, ...]:
    """What must never be passed on, in whatever header it stands."""
    found = [x_api_key] if x_api_key else []
    if authorization:
        found.extend(authorization.split()[-1:])
    return tuple(found)


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
