"""Who calls: from the two headers of a request to a key record, and whether it was signed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal, get_args

from router.auth.keys import derive_signing_secret, hash_key, is_well_formed
from router.auth.signatures import (
    BODY_FIELD,
    SIGNATURE_HEADER,
    SignedParts,
    blank_body_signature,
    shape_fault,
    verify,
)
from router.call import Caller
from router.clock import Clock
from router.config.document import KeyRecord
from router.errors import SignatureInvalid, Unauthenticated

KeyRefusal = Literal[
    "missing",
    "conflicting_keys",
    "malformed",
    "unknown",
    "revoked",
    "expired",
    "demo_key",
    "organization_inactive",
]
SignatureRefusal = Literal["malformed", "stale", "mismatch", "replayed"]

KEY_REFUSALS: Final[tuple[KeyRefusal, ...]] = get_args(KeyRefusal)
SIGNATURE_REFUSALS: Final[tuple[SignatureRefusal, ...]] = get_args(SignatureRefusal)

_DEMO_KEY_SHAPE: Final = re.compile("[A-Za-z0-9_-]{1,64}")


class Authenticator:
    """Proves who calls. Holds no key and no record from one call to the next.

    ``find_key`` finds a record by the hash of its key; ``None`` means that there is certainly none.
    What it raises when the store cannot be read (:class:`~router.errors.NotConfigured`) passes
    through: a client must never be told that its key is wrong because the router could not look.

    ``demo`` admits the published keys of the demo document. ``tolerance_s`` is how far the
    timestamp of a signature may be from ``clock``. Whether its nonce is new, admission says.
    """

    def __init__(
        self,
        *,
        find_key: Callable[[bytes], KeyRecord | None],
        pepper: bytes,
        clock: Clock,
        demo: bool = False,
        tolerance_s: int = 300,
    ) -> None:
        if not pepper:
            raise ValueError("the pepper is empty: stored hashes would protect no key")
        self._find_key = find_key
        self._pepper = pepper
        self._clock = clock
        self._demo = demo
        self._tolerance_s = tolerance_s

    def authenticate(
        self,
        x_api_key: str | None,
        authorization: str | None,
        organization_active: Callable[[str], bool],
    ) -> KeyRecord:
        """The record of the key in the two headers; raises :class:`Unauthenticated`.

        Only the error's ``reason``, one of ``KEY_REFUSALS``, differs from cause to cause.
        """
        key = _presented_key(x_api_key, authorization)
        if not (is_well_formed(key) or (self._demo and _DEMO_KEY_SHAPE.fullmatch(key))):
            raise Unauthenticated("malformed")
        record = self._find_key(hash_key(key, self._pepper))
        if record is None:
            raise Unauthenticated("unknown")
        refusal = self._refusal(record)
        if refusal is None and not organization_active(record.organization_id):
            refusal = "organization_inactive"
        if refusal is not None:
            raise Unauthenticated(refusal, known=(record.id, record.organization_id))
        return record

    @staticmethod
    def to_caller(record: KeyRecord, signed: bool = False) -> Caller:
        """What the rest of the router knows of an authenticated key."""
        return Caller(
            organization_id=record.organization_id,
            key_id=record.id,
            scopes=record.scopes,
            models=record.models,
            require_signature=record.require_signature,
            signed=signed,
        )

    def verify_signature(
        self, record: KeyRecord, parts: SignedParts, body: bytes, signature: str
    ) -> None:
        """Accept a signed request; raises :class:`SignatureInvalid` for any other.

        ``signature`` is the value of its header, ``body`` the raw body. The error's ``reason`` is
        one of ``SIGNATURE_REFUSALS``; its message tells an honest client what to fix.
        """
        self.check_before_body(parts, signature)
        self._check_match(record, parts, body, signature, name=SIGNATURE_HEADER)

    def check_before_body(self, parts: SignedParts, signature: str) -> None:
        """Refuse what no body can make right: a wrong shape, a timestamp that is not fresh."""
        fault = shape_fault(parts, signature)
        if fault is not None:
            raise SignatureInvalid(fault, reason="malformed")
        self._check_fresh(parts)

    def verify_body_signature(
        self, record: KeyRecord, parts: SignedParts, body: bytes, signature: str
    ) -> None:
        """Accept a request whose signature is in ``hmac_signature`` of its native body.

        ``signature`` is the parsed value of the field, ``body`` the raw body as it arrived. Raises
        like :meth:`verify_signature`.
        """
        fault = shape_fault(parts, signature, name=BODY_FIELD)
        blanked = blank_body_signature(body, signature) if fault is None else None
        if blanked is None:
            message = fault or f"{BODY_FIELD} must stand exactly once, unescaped, in the body"
            raise SignatureInvalid(message, reason="malformed")
        self._check_fresh(parts)
        self._check_match(record, parts, blanked, signature, name=BODY_FIELD)

    def _refusal(self, record: KeyRecord) -> KeyRefusal | None:
        if record.status != "active":
            return "revoked"
        if record.expires_at_s is not None and self._clock.now_s() >= record.expires_at_s:
            return "expired"
        if record.demo and not self._demo:
            return "demo_key"
        return None

    def _check_fresh(self, parts: SignedParts) -> None:
        if abs(self._clock.now_s() - int(parts.timestamp)) > self._tolerance_s:
            raise SignatureInvalid(
                f"the signature's timestamp is more than {self._tolerance_s} s from our time",
                reason="stale",
            )

    def _check_match(
        self, record: KeyRecord, parts: SignedParts, body: bytes, signature: str, *, name: str
    ) -> None:
        if not self._matches(record, parts, body, signature):
            raise SignatureInvalid(f"{name} does not match the request", reason="mismatch")

    def _matches(self, record: KeyRecord, parts: SignedParts, body: bytes, signature: str) -> bool:
        secret = derive_signing_secret(self._pepper, record.id, record.hash)
        try:
            return verify(secret, parts, body, signature)
        except ValueError:
            # No client can have signed a target that the scheme cannot express.
            return False


def _presented_key(x_api_key: str | None, authorization: str | None) -> str:
    """The one key that a request presents; an empty header presents none."""
    bearer = _bearer_token(authorization)
    if x_api_key and bearer and x_api_key != bearer:
        # A proxy in between may have added one of them, and its owner may expect the other to pay.
        raise Unauthenticated("conflicting_keys")
    key = x_api_key or bearer
    if not key:
        raise Unauthenticated("missing")
    return key


def _bearer_token(authorization: str | None) -> str:
    """The token of a Bearer credential; empty for another scheme, which is not for the router."""
    if not authorization:
        return ""
    scheme, _, token = authorization.partition(" ")
    return token.strip(" ") if scheme.lower() == "bearer" else ""
