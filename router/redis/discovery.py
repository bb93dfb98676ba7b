"""Which server is asked: the only one, the master that Sentinel names, or the owner of a slot."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Protocol, cast

from redis.crc import key_slot
from redis.exceptions import ResponseError

from router.breaker import Breaker, State, Unavailable
from router.redis.address import HostPort, RedisAddress
from router.redis.connection import (
    ConnectionOptions,
    RedisConnection,
    Resolve,
    tcp_connection,
    unix_connection,
)
from router.redis.pipelining import Exchanger, Pipelining
from router.redis.pool import Pool
from router.redis.scripts import packed

SLOTS: Final = 16384

OnChange = Callable[[str, State], None]

_PROBE_KEYS: Final = 512
_PING: Final = packed(("PING",))
_CLUSTER_SLOTS: Final = packed(("CLUSTER", "SLOTS"))


@dataclass(frozen=True, slots=True)
class Node:
    """A server, its connections, and whether it is worth asking."""

    pool: Exchanger
    breaker: Breaker


class Topology(Protocol):
    """Knows the server for a key."""

    def node(self, key: str, deadline_s: float) -> Node:
        """The server that owns ``key``; raises :class:`Unavailable` when none is known."""

    def moved(self, slot: int, address: HostPort) -> Node:
        """A server said that ``slot`` belongs to another one."""

    def redirected(self, address: HostPort) -> Node:
        """A server said that, this once, another one is to be asked."""

    def nodes(self) -> list[Node]:
        """Every server known so far."""

    def breakers(self) -> list[Breaker]:
        """What stands between the calls and those servers."""

    def close(self) -> None:
        """Close all connections and end all probes."""


class _Fixed:
    """What servers without slots have in common: nobody is ever redirected."""

    def moved(self, slot: int, address: HostPort) -> Node:
        raise Unavailable("redis", "topology", "the server is part of a cluster")

    def redirected(self, address: HostPort) -> Node:
        raise Unavailable("redis", "topology", "the server is part of a cluster")


class SingleServer(_Fixed):
    """One server that stays where it is."""

    def __init__(self, connect: Connect, options: ConnectionOptions, on_change: OnChange) -> None:
        pool = _pool(connect, options)
        probe = _prober(lambda _deadline_s: pool, _write, options.timeout_s)
        self._node = Node(pool, Breaker("redis", probe=probe, on_change=on_change))

    def node(self, key: str, deadline_s: float) -> Node:
        return self._node

    def nodes(self) -> list[Node]:
        return [self._node]

    def breakers(self) -> list[Breaker]:
        return [self._node.breaker]

    def close(self) -> None:
        _close(self.nodes())


class SentinelMaster(_Fixed):
    """The master of a service, asked for at first and again by each probe of an outage.

    A failover shows as failures: the old master refuses, is silent, or has become read-only. They
    open the breaker, and its probe asks the sentinels before it tries.
    """

    def __init__(
        self,
        address: RedisAddress,
        options: ConnectionOptions,
        resolve: Resolve,
        on_change: OnChange,
    ) -> None:
        self._address = address
        self._options = options
        self._resolve = resolve
        probe = _prober(self._asked_again, _write, options.timeout_s)
        self._breaker = Breaker("redis", probe=probe, on_change=on_change)
        self._master: HostPort | None = None
        self._node: Node | None = None
        login = replace(
            options, login=address.sentinel_login, db=0, max_connections=2, pipeline_commands=False
        )
        self._sentinels = [
            _pool(_tcp(sentinel, login, resolve), login) for sentinel in address.hosts
        ]

    def node(self, key: str, deadline_s: float) -> Node:
        if self._node is None:
            if not self._breaker.allows():
                raise Unavailable("redis", "breaker_open")
            try:
                self._asked_again(deadline_s)
            except Unavailable as error:
                self._breaker.failed(error.reason, error.detail)
                raise
        return cast(Node, self._node)

    def nodes(self) -> list[Node]:
        return [self._node] if self._node is not None else []

    def breakers(self) -> list[Breaker]:
        return [self._breaker]

    def close(self) -> None:
        self._breaker.stop()
        _close(self.nodes())
        for pool in self._sentinels:
            pool.close()

    def _asked_again(self, deadline_s: float) -> Exchanger:
        master = self._ask(deadline_s)
        if self._node is None or master != self._master:
            old, self._master = self._node, master
            self._node = Node(
                _pool(_tcp(master, self._options, self._resolve), self._options), self._breaker
            )
            if old is not None:
                old.pool.close()
        return self._node.pool

    def _ask(self, deadline_s: float) -> HostPort:
        command = packed(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service))
        share_s = (deadline_s - time.monotonic()) / len(self._sentinels)
        for index, pool in enumerate(self._sentinels):
            try:
                # One silent sentinel must not use up the time of the others.
                until_s = min(deadline_s, time.monotonic() + share_s)
                [reply] = pool.exchange(command, 1, until_s)
            except Unavailable:
                continue
            if isinstance(reply, list) and len(reply) == 2:
                # Whoever answered is asked first from now on.
                self._sentinels.insert(0, self._sentinels.pop(index))
                return reply[0].decode(), int(reply[1])
        raise Unavailable("redis", "topology", f"no sentinel knows '{self._address.service}'")


class Cluster:
    """The masters of a Redis Cluster, each with its own breaker: one may be away alone.

    The map of slots is read when it is first needed and by each probe of a master that is away;
    in between, what ``MOVED`` says is learnt slot by slot. While all of them are away nobody asks.
    """

    def __init__(
        self,
        address: RedisAddress,
        options: ConnectionOptions,
        resolve: Resolve,
        on_change: OnChange,
    ) -> None:
        self._seeds = address.hosts
        self._options = options
        self._resolve = resolve
        self._on_change = on_change
        self._known: dict[HostPort, Node] = {}
        self._owners: list[Node | None] = [None] * SLOTS

    def node(self, key: str, deadline_s: float) -> Node:
        slot = slot_of(key)
        owner = self._owners[slot]
        if owner is None:
            if self._known and not any(map(self._is_up, self._known)):
                raise Unavailable("redis", "breaker_open")
            self._read_map(deadline_s)
            owner = self._owners[slot]
        if owner is None:
            raise Unavailable("redis", "topology", f"nobody owns slot {slot}")
        return owner

    def moved(self, slot: int, address: HostPort) -> Node:
        owner = self._owners[slot] = self._node_at(address)
        return owner

    def redirected(self, address: HostPort) -> Node:
        return self._node_at(address)

    def nodes(self) -> list[Node]:
        return list(self._known.values())

    def breakers(self) -> list[Breaker]:
        return [node.breaker for node in self._known.values()]

    def close(self) -> None:
        _close(self.nodes())

    def _node_at(self, address: HostPort) -> Node:
        node = self._known.get(address)
        if node is None:
            pool = _pool(_tcp(address, self._options, self._resolve), self._options)
            command, timeout_s = self._probe_of(address), self._options.timeout_s
            probe = _prober(self._with_new_map(pool), command, timeout_s)
            breaker = Breaker("redis", probe=probe, on_change=self._on_change)
            node = self._known[address] = Node(pool, breaker)
        return node

    def _with_new_map(self, pool: Exchanger) -> Callable[[float], Exchanger]:
        def pool_after_map(deadline_s: float) -> Exchanger:
            # Another server may have taken over the slots; then nobody waits for this one.
            try:
                self._read_map(deadline_s)
            except Unavailable:
                pass
            return pool

        return pool_after_map

    def _probe_of(self, address: HostPort) -> Callable[[], bytes]:
        def command() -> bytes:
            """A write where it owns slots: answering PING is no proof that it can take one."""
            node = self._known[address]
            for number in range(_PROBE_KEYS):
                key = f"router:{{probe{number}}}"
                if self._owners[slot_of(key)] is node:
                    return _probe(key)
            return _PING

        return command

    def _read_map(self, deadline_s: float) -> None:
        addresses = list(dict.fromkeys((*self._known, *self._seeds)))
        addresses.sort(key=lambda address: not self._is_up(address))
        share_s = (deadline_s - time.monotonic()) / len(addresses)
        for address in addresses:
            node = self._node_at(address)
            try:
                until_s = min(deadline_s, time.monotonic() + share_s)
                [reply] = node.pool.exchange(_CLUSTER_SLOTS, 1, until_s)
            except Unavailable as error:
                if not error.echo:
                    node.breaker.failed(error.reason, error.detail)
                continue
            if isinstance(reply, list):
                self._learn(reply, address[0])
                return
        raise Unavailable("redis", "topology", "no server of the cluster answers")

    def _is_up(self, address: HostPort) -> bool:
        return address in self._known and self._known[address].breaker.state == "closed"

    def _learn(self, reply: list[list[object]], asked_host: str) -> None:
        owners: list[Node | None] = [None] * SLOTS
        for first, last, master, *_replicas in reply:
            host, port = cast("list[bytes]", master)[:2]
            # An empty host means the one that was asked.
            node = self._node_at((host.decode() if host else asked_host, int(port)))
            for slot in range(int(cast(int, first)), int(cast(int, last)) + 1):
                owners[slot] = node
        self._owners = owners


Connect = Callable[[], RedisConnection]

_MOVED: Final = re.compile(r"(\d+) (.*):(\d+)$")


def parse_redirection(error: ResponseError) -> tuple[int, HostPort]:
    """Slot and server that a ``MOVED`` or an ``ASK`` names."""
    found = _MOVED.search(str(error))
    if found is None:
        raise Unavailable("redis", "topology", str(error))
    return int(found[1]), (found[2], int(found[3]))


def open_topology(
    address: RedisAddress, options: ConnectionOptions, resolve: Resolve, on_change: OnChange
) -> Topology:
    """What ``address`` describes. Connects to nothing yet."""
    if address.kind == "sentinel":
        return SentinelMaster(address, options, resolve, on_change)
    if address.kind == "cluster":
        return Cluster(address, options, resolve, on_change)
    path = address.path
    if path is not None:
        return SingleServer(lambda: unix_connection(path, options), options, on_change)
    return SingleServer(_tcp(address.hosts[0], options, resolve), options, on_change)


@lru_cache(maxsize=8192)
def slot_of(key: str) -> int:
    """The cluster slot of a key."""
    return int(key_slot(key.encode()))


def _tcp(address: HostPort, options: ConnectionOptions, resolve: Resolve) -> Connect:
    return lambda: tcp_connection(address, options, resolve)


def _pool(connect: Connect, options: ConnectionOptions) -> Exchanger:
    pool = Pool(connect, timeout_s=options.timeout_s, max_connections=options.max_connections)
    return Pipelining(pool, timeout_s=options.timeout_s) if options.pipeline_commands else pool


def _probe(key: str) -> bytes:
    return packed(("SET", key, "1", "PX", "1000"))


def _write() -> bytes:
    # Not only PING: a server that has become a replica, or whose memory is full, answers that.
    return _probe("router:{probe}")


def _prober(
    pool: Callable[[float], Exchanger], command: Callable[[], bytes], timeout_s: float
) -> Callable[[], None]:
    def probe() -> None:
        deadline_s = time.monotonic() + timeout_s
        [reply] = pool(deadline_s).exchange(command(), 1, deadline_s)
        if isinstance(reply, ResponseError):
            raise Unavailable("redis", "script", str(reply))

    return probe


def _close(nodes: list[Node]) -> None:
    for node in nodes:
        node.breaker.stop()
        node.pool.close()
