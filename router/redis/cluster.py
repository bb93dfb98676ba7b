"""The topology of a Redis Cluster: every master owns some of the slots."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any, Final, cast

from redis.cluster import parse_cluster_slots
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from router.breaker import Breaker, Unavailable
from router.redis.address import HostPort, RedisAddress
from router.redis.connection import ConnectionOptions
from router.redis.scripts import packed
from router.redis.topology import PING, Node, OnChange, Topology, write_probe

_CLUSTER_SLOTS: Final = packed(("CLUSTER", "SLOTS"))
_PROBE_KEYS: Final = 512
"""So many keys are tried to find one whose slot a given master owns."""


class Cluster(Topology):
    """The masters of a Redis Cluster, each with its own breaker: one may be unavailable alone.

    The map of slots is read when it is first needed and by each probe of an unavailable master; in
    between, ``MOVED`` replies correct it slot by slot. While no master is available, calls ask
    nobody.
    """

    def __init__(
        self, address: RedisAddress, options: ConnectionOptions, on_change: OnChange
    ) -> None:
        super().__init__(address, options, on_change)
        self._known: dict[HostPort, Node] = {}
        self._owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS

    def node(self, key: str, deadline_s: float) -> Node:
        """The master of the key's slot."""
        slot = slot_of(key)
        if self._owners[slot] is None:
            if self._known and not any(map(self._is_up, self._known)):
                raise Unavailable("redis", "breaker_open")
            self._read_map(deadline_s)
        owner = self._owners[slot]
        if owner is None:
            raise Unavailable("redis", "topology", f"nobody owns slot {slot}")
        return owner

    def moved(self, slot: int, address: HostPort) -> Node:
        """The server at ``address``, which owns ``slot`` from now on."""
        owner = self._owners[slot] = self._node_at(address)
        return owner

    def redirected(self, address: HostPort) -> Node:
        """The server at ``address``, for one command only."""
        return self._node_at(address)

    def nodes(self) -> list[Node]:
        """Every server known so far."""
        return list(self._known.values())

    def _node_at(self, address: HostPort) -> Node:
        node = self._known.get(address)
        if node is None:
            breaker = Breaker("redis", probe=lambda: self._probe(address), on_change=self.on_change)
            node = self._known[address] = self.tcp_node(address, breaker)
        return node

    def _probe(self, address: HostPort) -> None:
        deadline_s = self.probe_deadline_s()
        try:
            self._read_map(deadline_s)  # another server may have taken over the slots by now
        except Unavailable:
            pass
        self._known[address].probe(self._probe_command(self._known[address]), deadline_s)

    def _probe_command(self, node: Node) -> bytes:
        """A write to a slot of this server; PING where it owns none of those tried."""
        keys = (f"router:{{probe{number}}}" for number in range(_PROBE_KEYS))
        own = next((key for key in keys if self._owners[slot_of(key)] is node), None)
        return PING if own is None else write_probe(own)

    def _read_map(self, deadline_s: float) -> None:
        """Ask one server after the other for the map, the available ones first."""
        addresses = list(dict.fromkeys((*self._known, *self.address.hosts)))
        addresses.sort(key=lambda address: not self._is_up(address))
        share_s = (deadline_s - time.monotonic()) / len(addresses)
        for address in addresses:
            node = self._node_at(address)
            try:
                until_s = min(deadline_s, time.monotonic() + share_s)
                [reply] = node.exchange(_CLUSTER_SLOTS, 1, until_s)
            except Unavailable as error:
                node.failed(error)
                continue
            if isinstance(reply, list):
                self._learn(reply, address[0])
                return
        raise Unavailable("redis", "topology", "no server of the cluster answers")

    def _is_up(self, address: HostPort) -> bool:
        return address in self._known and self._known[address].breaker.state == "closed"

    def _learn(self, reply: list[object], replying_host: str) -> None:
        owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        # A server that does not know its own host leaves it out; then it is the one that replied.
        ranges = cast(
            "dict[tuple[int, int], Any]", parse_cluster_slots(reply, current_host=replying_host)
        )
        for (first, last), servers in ranges.items():
            owners[first : last + 1] = [self._node_at(servers["primary"])] * (last + 1 - first)
        self._owners = owners


@lru_cache(maxsize=8192)
def slot_of(key: str) -> int:
    """The cluster slot of a key."""
    return int(key_slot(key.encode()))
