"""Request signatures: what is signed, how it is signed, how a signature is checked.

The one scheme, ``ROUTER-HMAC-SHA256``, is specified in ``docs/authentication.md``.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

SCHEME: Final = "ROUTER-HMAC-SHA256"
TIMESTAMP_HEADER: Final = "X-Router-Timestamp"
NONCE_HEADER: Final = "X-Router-Nonce"
SIGNATURE_HEADER: Final = "X-Router-Signature"
BODY_FIELD: Final = "hmac_signature"

_TIMESTAMP_SHAPE: Final = re.compile("[0-9]{1,12}")
_NONCE_SHAPE: Final = re.compile("[A-Za-z0-9_-]{16,128}")
_SIGNATURE_SHAPE: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SignedParts:
    """All that a signature covers besides the body, as it was sent.

    ``path`` and ``query`` are the request target before and after the first ``?``, not decoded;
    ``query`` is empty when there is none. A missing header is an empty string.
    """

    method: str
    path: str
    query: str
    timestamp: str
    nonce: str


def canonical(parts: SignedParts, body: bytes) -> bytes:
    """The bytes that are signed; no two different requests share them.

    Raises ``ValueError`` for parts with a line break, with which one request could be read as
    another, and for parts outside ASCII, which cannot stand in a request target.
    """
    text = "\n".join(
        (
            SCHEME,
            parts.timestamp,
            parts.nonce,
            parts.method,
            parts.path,
            parts.query,
            hashlib.sha256(body).hexdigest(),
        )
    )
    if text.count("\n") != 6 or not text.isascii():
        raise ValueError("a signed part holds a line break or a character outside ASCII")
    return text.encode("ascii")


def sign(secret: str, parts: SignedParts, body: bytes) -> str:
    """The signature of a request: 64 lowercase hex digits. Raises like :func:`canonical`."""
    return hmac.digest(secret.encode(), canonical(parts, body), "sha256").hex()


def verify(secret: str, parts: SignedParts, body: bytes, signature: str) -> bool:
    """Tell, in constant time, whether ``signature`` is this request's. Raises like ``canonical``.

    Knows nothing of time and nonces: a signature that verifies may still be stale or replayed.
    """
    expected = sign(secret, parts, body)
    # compare_digest refuses text outside ASCII with a TypeError.
    return signature.isascii() and hmac.compare_digest(expected, signature)


def shape_fault(parts: SignedParts, signature: str, *, name: str = SIGNATURE_HEADER) -> str | None:
    """What is wrong with the shape of the client's three values; ``None`` when nothing is.

    ``name`` is where the signature was: its header or the field of the body.
    """
    if _TIMESTAMP_SHAPE.fullmatch(parts.timestamp) is None:
        return f"{TIMESTAMP_HEADER} must be the time in whole Unix seconds"
    if _NONCE_SHAPE.fullmatch(parts.nonce) is None:
        return f"{NONCE_HEADER} must be 16 to 128 characters of A-Z, a-z, 0-9, '_' and '-'"
    if _SIGNATURE_SHAPE.fullmatch(signature) is None:
        return f"{name} must be 64 lowercase hex digits"
    return None


def blank_body_signature(body: bytes, signature: str) -> bytes | None:
    """The body as its client signed it: with ``hmac_signature`` still empty.

    ``None`` unless the signature occurs exactly once in the raw bytes: with two of them, the router
    could not tell which one the client had filled in.
    """
    if _SIGNATURE_SHAPE.fullmatch(signature) is None:
        return None
    needle = signature.encode("ascii")
    at = body.find(needle)
    if at < 0 or body.rfind(needle) != at:
        return None
    return body[:at] + body[at + len(needle) :]
