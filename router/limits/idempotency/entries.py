"""Idempotency: a request id is served once, and its reply again for a while."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from router.breaker import Unavailable
from router.limits.redis_keys import tag
from router.redis.scripts import Loader, Runner, ScriptCall, load_script

KEEP_S: Final = 86_400.0
MAX_REPLY_BYTES: Final = 1024 * 1024


@dataclass(slots=True)
class Entry:
    """One request id of one organization, as claimed by one call."""

    organization_id: str
    request_id: str
    fingerprint: bytes
    owner: str
    """The lease id of the call: unique, and the same for its reservation."""

    @property
    def key(self) -> str:
        """Its Redis key: as short for a long id, and the client's own text never in Redis."""
        digest = hashlib.blake2b(self.request_id.encode(), digest_size=16).hexdigest()
        return f"{tag(self.organization_id)}idempotency:{digest}"


@dataclass(frozen=True, slots=True)
class New:
    """The id is this call's: to be completed or abandoned."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """Another call has it, for at most ``lease_left_ms`` more."""

    lease_left_ms: int


@dataclass(frozen=True, slots=True)
class Replay:
    """It was served before; this was the reply, byte for byte."""

    reply: bytes


@dataclass(slots=True)
class NotStored:
    """It was served before, and its reply was not stored: too large, a stream, or no Redis."""


class NotProtected(Unavailable):
    """Nobody knows whether the id was used, and such a call is not to go on."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The id was used for another request."""


BeginOutcome = New | InFlight | Replay | NotStored | Mismatch


def fingerprint(*parts: bytes) -> bytes:
    """A digest by which two requests are the same or not; parts do not run into one another."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


class Idempotency:
    """The entries of every organization. Raises :class:`Unavailable` while Redis is unavailable."""

    def __init__(
        self,
        redis: Runner,
        *,
        keep_s: float = KEEP_S,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        load: Loader = load_script,
    ) -> None:
        self._redis = redis
        self._keep_ms = int(keep_s * 1000)
        self._max_reply_bytes = max_reply_bytes
        self._begin = load("idempotency/claim.lua")
        self._end = load("idempotency/end.lua")

    def begin(self, entry: Entry, *, lease_ms: int) -> BeginOutcome:
        """Claim the id, for at most ``lease_ms`` should this call never end."""
        return self.read_begin(self._redis.run(self.plan_begin(entry, lease_ms=lease_ms)))

    def plan_begin(self, entry: Entry, *, lease_ms: int) -> ScriptCall:
        """What :meth:`begin` would send."""
        return ScriptCall(self._begin, [entry.key], [entry.fingerprint, entry.owner, lease_ms])

    def read_begin(self, reply: Any) -> BeginOutcome:
        """What Redis made of it."""
        status, *facts = reply
        if status == b"new":
            return New()
        if status == b"in_flight":
            return InFlight(max(0, facts[0]))
        if status == b"replay":
            return Replay(facts[0])
        return NotStored() if status == b"not_kept" else Mismatch()

    def end(self, entry: Entry, reply: bytes | NotStored | None) -> bool:
        """End the claim as :meth:`plan_end` says; false when the id was no longer this call's."""
        return bool(self._redis.run(self.plan_end(entry, reply)) == 1)

    def plan_end(self, entry: Entry, reply: bytes | NotStored | None) -> ScriptCall:
        """What :meth:`end` sends: it stores the reply for replays, or without one frees the id.
        ``NotStored`` shows duplicates that the call was done, and so does a reply that is too
        large."""
        mode, body = "complete", b""
        if reply is None:
            mode = "abandon"
        elif isinstance(reply, NotStored) or len(reply) > self._max_reply_bytes:
            mode = "not_kept"
        else:
            body = reply
        return ScriptCall(self._end, [entry.key], [mode, entry.owner, self._keep_ms, body])
