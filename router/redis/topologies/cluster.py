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
from router.redis.topologies.topology import (
    PING,
    UNKNOWN_HOSTS,
    Node,
    OnChange,
    Topology,
    write_probe,
)

_CLUSTER_SLOTS: Final = packed(("CLUSTER", "SLOTS"))
_PROBE_KEYS: Final = 512
"""So many keys are tried to find one whose slot a given master owns."""


class Cluster(Topology):
    """The masters of a Redis Cluster, each with its own breaker: one may be unavailable alone.

    The map of slots is read when it is first needed, by each probe of an unavailable master, and
    after ``MOVED`` replies, which correct it slot by slot meanwhile. A server that is no master in
    the map is forgotten. While no master is available, calls ask nobody.
    """

    def __init__(
        self, address: RedisAddress, options: ConnectionOptions, on_change: OnChange
    ) -> None:
        super().__init__(address, options, on_change)
        self._known: dict[HostPort, Node] = {}
        self._owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._is_map_old = False

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
        self._is_map_old = True
        return owner

    def redirected(self, address: HostPort) -> Node:
        """The server at ``address``, for one command only."""
        return self._node_at(address)

    def nodes(self) -> list[Node]:
        """Every server known so far."""
        return list(self._known.values())

    @property
    def needs_refresh(self) -> bool:
        """As above, and after a reply has shown that the map is old."""
        return self._is_map_old or super().needs_refresh

    def refresh(self) -> None:
        """As above, with a map that is up to date."""
        if self._is_map_old:
            self._is_map_old = False
            self._read_map(self.probe_deadline_s())
        super().refresh()

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
        node = self._known.get(address)
        if node is None:  # its breaker is stopped
            raise Unavailable("redis", "topology", "the server is part of the cluster no more")
        node.probe(self._probe_command(node), deadline_s)

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
                [reply] = node.ask(_CLUSTER_SLOTS, 1, until_s)
            except Unavailable:
                continue
            if isinstance(reply, list) and reply:
                self._learn(reply, address[0])
                return
        raise Unavailable("redis", "topology", "no server of the cluster answers")

    def _is_up(self, address: HostPort) -> bool:
        return address in self._known and self._known[address].breaker.state == "closed"

    def _learn(self, reply: list[object], replying_host: str) -> None:
        owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        ranges = cast("dict[tuple[int, int], Any]", parse_cluster_slots(reply))
        masters = set()
        for (first, last), servers in ranges.items():
            host, port = servers["primary"]
            address = (replying_host if host in UNKNOWN_HOSTS else host, port)
            masters.add(address)
            owners[first : last + 1] = [self._node_at(address)] * (last + 1 - first)
        self._owners = owners
        for address in [known for known in self._known if known not in masters]:
            self._forget(self._known.pop(address))

    def _forget(self, node: Node) -> None:
        self.forgotten_s += node.breaker.unavailable_s
        node.close()
        if node.breaker.state != "closed":  # nobody waits for it any more
            self.on_change(node.breaker.name, "closed")


@lru_cache(maxsize=8192)
def slot_of(key: str) -> int:
    """The cluster slot of a key."""
    return int(key_slot(key.encode()))
