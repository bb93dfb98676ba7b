"""API keys: their shape, their checksum, the hash that is stored, the secret that signs.

A key reads ``rtr_<env>_<random>_<checksum>``: 32 random base62 characters carry 190 bits, and the
checksum is the CRC-32 of everything before it. The checksum is no protection: it refuses typing
errors and junk without a look-up, and lets scanners tell a real key from a look-alike.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
import zlib
from functools import lru_cache
from typing import Final

PREFIX: Final = "rtr_"
SIGNING_PREFIX: Final = "rsk_"
RANDOM_LENGTH: Final = 32
CHECKSUM_LENGTH: Final = 6

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
# Two base62 digits at a time: a check takes three look-ups instead of six divisions.
_PAIRS: Final = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_PAIR: Final = len(_PAIRS)

_ENV: Final = "[a-z][a-z0-9]{0,15}"
_ENV_SHAPE: Final = re.compile(_ENV)
_KEY_SHAPE: Final = re.compile(
    rf"{PREFIX}({_ENV})_[0-9A-Za-z]{{{RANDOM_LENGTH}}}_[0-9A-Za-z]{{{CHECKSUM_LENGTH}}}"
)
_SIGNING_CONTEXT: Final = b"request-signing"


def generate_key(env: str) -> str:
    """Make a new key for an environment such as ``live`` or ``test``.

    Raises ``ValueError`` unless ``env`` is a lowercase letter and up to 15 letters or digits.
    """
    if _ENV_SHAPE.fullmatch(env) is None:
        raise ValueError("a key's environment is 1 to 16 of a-z and 0-9 and begins with a letter")
    random = "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_LENGTH))
    body = f"{PREFIX}{env}_{random}"
    return f"{body}_{_checksum(body)}"


def is_well_formed(key: str) -> bool:
    """Tell whether this can be a key at all: shape and checksum, no look-up."""
    if _KEY_SHAPE.fullmatch(key) is None:
        return False
    return key[-CHECKSUM_LENGTH:] == _checksum(key[: -CHECKSUM_LENGTH - 1])


def hash_key(key: str, pepper: bytes) -> bytes:
    """The 32 bytes under which a key is stored: HMAC-SHA256 with the server's pepper."""
    keyed = _keyed(pepper).copy()
    keyed.update(key.encode())
    return keyed.digest()


@lru_cache(maxsize=8)
def _keyed(pepper: bytes) -> hmac.HMAC:
    """To be copied: OpenSSL takes several times as long to set one up, and every call needs one."""
    return hmac.new(pepper, digestmod="sha256")


def derive_signing_secret(pepper: bytes, key_id: str, key_hash_hex: str) -> str:
    """The secret with which the holder of a key signs requests.

    It is derived, so the server stores nothing for it, and a rotated key (another hash) has
    another secret. No key contains a NUL byte, so :func:`hash_key` never hashes the same input.
    """
    message = b"\0".join((_SIGNING_CONTEXT, key_id.encode(), key_hash_hex.encode()))
    return SIGNING_PREFIX + hmac.digest(pepper, message, "sha256").hex()


def redact(key: str) -> str:
    """The part of a key that a message may show: ``rtr_<env>_…``, or ``…`` for any other text."""
    match = _KEY_SHAPE.fullmatch(key)
    return "…" if match is None else f"{PREFIX}{match[1]}_…"


def _checksum(body: str) -> str:
    high, low = divmod(zlib.crc32(body.encode()), _PAIR)
    return _PAIRS[high // _PAIR] + _PAIRS[high % _PAIR] + _PAIRS[low]
