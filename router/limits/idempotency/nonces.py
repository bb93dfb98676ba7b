"""Nonces of signed requests: each is taken once, by whatever worker of whatever host."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from router.clock import Clock
from router.limits.redis_keys import quoted, tag
from router.redis.scripts import Argument, Loader, Runner, ScriptCall, load_script


@dataclass(frozen=True, slots=True)
class Nonce:
    """The nonce of a request whose signature was verified."""

    organization_id: str
    key_id: str
    text: str
    signed_s: int
    """The timestamp that was signed."""
    owner: str
    """The lease id of the call."""

    @property
    def keys(self) -> list[str]:
        """Its Redis keys. A digest is as short for a long nonce."""
        prefix, key_id = f"{tag(self.organization_id)}nonces:", quoted(self.key_id)
        digest = hashlib.blake2b(f"{self.key_id}\0{self.text}".encode(), digest_size=16).hexdigest()
        return [f"{prefix}used:{digest}", f"{prefix}count:{key_id}", f"{prefix}memory"]


@dataclass(frozen=True, slots=True)
class NonceRefused:
    """The request is not accepted."""

    reason: Literal["replayed", "over_quota", "not_remembered"]
    """``not_remembered``: Redis began to remember after it was signed, so it may have been used."""
    retry_after_s: int = 1


class Nonces:
    """The nonces of every organization. Raises :class:`Unavailable` while Redis is unavailable.

    A request that was signed with a clock ahead by ``tolerance_s`` stays fresh for twice that, and
    so long its nonce is kept. ``quota`` is how many a key may take in that time.
    """

    def __init__(
        self,
        redis: Runner,
        *,
        clock: Clock | None = None,
        tolerance_s: int = 300,
        quota: int = 200_000,
        load: Loader = load_script,
    ) -> None:
        self._redis = redis
        self._clock = clock or Clock()
        # At the last moment itself a signature is still fresh, hence one second more.
        self._keep_ms = (2 * tolerance_s + 1) * 1000
        self._quota = quota
        self._script = load("idempotency/nonce.lua")

    def take(self, nonce: Nonce) -> NonceRefused | None:
        """Take the nonce; what speaks against it, if anything does."""
        return self.read(self._redis.run(self.plan(nonce)))

    def plan(self, nonce: Nonce) -> ScriptCall:
        """What :meth:`take` sends."""
        now_ms = int(self._clock.now_s() * 1000)
        arguments: list[Argument] = [
            nonce.owner,
            self._keep_ms,
            self._quota,
            nonce.signed_s * 1000,
            now_ms,
        ]
        return ScriptCall(self._script, nonce.keys, arguments)

    def read(self, reply: Any) -> NonceRefused | None:
        """What Redis made of it."""
        status, *facts = reply
        if status == b"taken":
            return None
        if status == b"replayed":
            return NonceRefused("replayed")
        if status == b"over_quota":
            return NonceRefused("over_quota", max(1, -(-facts[0] // 1000)))
        return NonceRefused("not_remembered")
