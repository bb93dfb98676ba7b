"""Nonces that were used, so that a signed request is accepted once."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from typing import Final

_DIGEST_BYTES: Final = 16
# Each call adds one entry, so two evictions a call would suffice. Bounded, so that the first
# request after a quiet hour does not pay for 200 000 of them. The rest is kept a little longer.
_EVICTIONS_PER_CALL: Final = 8


class NonceStore:
    """The nonces of one worker process, bounded in number and in time.

    Fails closed: while it is full of nonces that may still be replayed it takes no further one,
    because forgetting one would let its request be replayed. ``len()`` is the number of nonces,
    ``refused_full`` counts those that were refused because the store was full.
    """

    def __init__(self, *, tolerance_s: int = 300, max_entries: int = 200_000) -> None:
        # A request signed with a clock that is ``tolerance_s`` ahead stays fresh for twice that.
        self._ttl_s = 2 * tolerance_s
        self._max_entries = max_entries
        self._expiry_s: dict[bytes, float] = {}
        self._order: deque[bytes] = deque()
        self._lock = threading.Lock()
        self.refused_full = 0

    def __len__(self) -> int:
        return len(self._expiry_s)

    def accept(self, key_id: str, nonce: str, now_s: float) -> bool:
        """Take a nonce of a key: True once within the window, False for a replay or when full.

        Only for nonces whose signature verified: otherwise one client could use up those of others.
        """
        # A digest makes every entry equally small, however long the client's nonce is.
        entry = hashlib.blake2b(f"{key_id}\0{nonce}".encode(), digest_size=_DIGEST_BYTES).digest()
        with self._lock:
            self._evict(now_s)
            if entry in self._expiry_s:
                return False
            if len(self._expiry_s) >= self._max_entries:
                self.refused_full += 1
                return False
            self._expiry_s[entry] = now_s + self._ttl_s
            self._order.append(entry)
            return True

    def _evict(self, now_s: float) -> None:
        order = self._order
        for _ in range(_EVICTIONS_PER_CALL):
            # At ``expiry_s`` itself a signature is still fresh, so its nonce is kept.
            if not order or self._expiry_s[order[0]] >= now_s:
                return
            del self._expiry_s[order.popleft()]
