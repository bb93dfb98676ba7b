"""How safe a master keeps what it has been told: read from it, for warnings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from router.redis.pipelining import Exchange
from router.redis.scripts import packed

SAFE_POLICY: Final = "noeviction"

_INFO: Final = packed(("INFO", "memory")) + packed(("INFO", "replication"))
_FACT: Final = re.compile(
    rb"^(maxmemory_policy|connected_slaves|min_slaves_good_slaves):(\S+)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Durability:
    """What a master has said of itself; ``None`` where it does not say."""

    eviction_policy: str | None = None
    """What it does when its memory is full."""
    replicas: int | None = None
    waits_for_replica: bool | None = None
    """Whether it refuses writes while no replica follows (``min-replicas-to-write``)."""

    @property
    def may_evict(self) -> bool:
        """Whether it can forget a counter, which then has to be rebuilt."""
        return self.eviction_policy not in (None, SAFE_POLICY)

    @property
    def may_lose_writes(self) -> bool:
        """Whether it goes on deciding after a replica of it was promoted, which then does not know
        of these decisions."""
        return bool(self.replicas) and not self.waits_for_replica


def read_durability(ask: Exchange, deadline_s: float) -> Durability:
    """Ask one server; raises :class:`Unavailable`. A server that refuses INFO says nothing."""
    found: dict[bytes, bytes] = {}
    for reply in ask(_INFO, 2, deadline_s):
        if isinstance(reply, bytes):
            found |= dict(_FACT.findall(reply))
    policy, replicas = found.get(b"maxmemory_policy"), found.get(b"connected_slaves")
    return Durability(
        None if policy is None else policy.decode(),
        None if replicas is None else int(replicas),
        # Redis names the number of good replicas only where it needs some.
        None if replicas is None else b"min_slaves_good_slaves" in found,
    )
