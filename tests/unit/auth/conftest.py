"""One key, its record, and an authenticator over a look-up that counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from router.auth.authenticator import Authenticator
from router.auth.keys import derive_signing_secret, generate_key, hash_key
from router.auth.signatures import SignedParts, sign
from router.clock import FrozenClock
from router.config.document import KeyRecord

PEPPER = b"a pepper for the tests, 32 bytes"


@dataclass
class CountingLookup:
    """A key store that remembers how often it was asked; ``failure`` makes it unreadable."""

    records: dict[bytes, KeyRecord] = field(default_factory=dict)
    lookups: int = 0
    failure: Exception | None = None

    def find_key(self, hash: bytes) -> KeyRecord | None:
        self.lookups += 1
        if self.failure is not None:
            raise self.failure
        return self.records.get(hash)


@dataclass
class Stand:
    """A key, the store it may or may not be in, and what is needed to sign with it."""

    key: str
    store: CountingLookup
    clock: FrozenClock
    pepper: bytes = PEPPER

    def put(self, key: str | None = None, **facts: Any) -> KeyRecord:
        """Store a record for ``key`` (by default the stand's own)."""
        hashed = hash_key(key or self.key, self.pepper)
        record = KeyRecord(
            **{"id": "key_1", "organization_id": "org_1", "hash": hashed.hex(), **facts}
        )
        self.store.records[hashed] = record
        return record

    def authenticator(self, **choices: Any) -> Authenticator:
        """An authenticator over the stand's store, pepper and clock."""
        facts: dict[str, Any] = {
            "find_key": self.store.find_key,
            "pepper": self.pepper,
            "clock": self.clock,
        }
        return Authenticator(**{**facts, **choices})

    def parts(self, **changes: str) -> SignedParts:
        """The parts of a plain request that is made now."""
        facts = {
            "method": "POST",
            "path": "/v1/inference",
            "query": "trace=1",
            "timestamp": str(int(self.clock.now_s())),
            "nonce": "0123456789abcdef",
        }
        return SignedParts(**{**facts, **changes})

    def sign(self, record: KeyRecord, parts: SignedParts, body: bytes) -> str:
        """Sign as the holder of the record's key would."""
        return sign(derive_signing_secret(self.pepper, record.id, record.hash), parts, body)


@pytest.fixture
def stand() -> Stand:
    """A fresh key over an empty store, at a time that stands still."""
    return Stand(key=generate_key("test"), store=CountingLookup(), clock=FrozenClock())


@pytest.fixture
def any_organization() -> Callable[[str], bool]:
    """Every organization is active."""
    return lambda organization_id: True
