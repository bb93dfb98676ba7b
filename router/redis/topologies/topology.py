"""Which server owns a key: what all topologies share, and the topology of a single server.

To support another topology, write a subclass of :class:`Topology`, add one line to ``TOPOLOGIES``
of :mod:`router.redis.client`, and give it a scheme in :mod:`router.redis.address` and in the
settings. What a new connection has to say first stands in :mod:`router.redis.connection`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from redis.exceptions import ResponseError

from router.breaker import Breaker, State, Unavailable
from router.redis.address import HostPort, RedisAddress
from router.redis.connection import (
    ConnectionOptions,
    RedisConnection,
    tcp_connection,
    unix_connection,
)
from router.redis.pipelining import Pipelining
from router.redis.pool import Pool
from router.redis.scripts import packed
from router.redis.topologies.durability import Durability, read_durability

OnChange = Callable[[str, State], None]
"""Called with the name of the dependency and the new state of its breaker."""

PING: Final = packed(("PING",))

UNKNOWN_HOSTS: Final = ("", "?")
"""What a server of a cluster names that does not know the host: it is the one that replied."""


class Node:
    """One server: its connections, and the breaker that counts its failures."""

    def __init__(
        self,
        connect: Callable[[], RedisConnection],
        options: ConnectionOptions,
        breaker: Breaker,
        address: HostPort | None = None,
    ) -> None:
        self.address = address
        self.durability: Durability | None = None
        """``None`` until the server was asked."""
        self.pool = Pool(connect, max_connections=options.max_connections)
        self.breaker = breaker
        self.exchange = (
            Pipelining(self.pool.exchange, timeout_s=options.timeout_s).exchange
            if options.pipeline_commands
            else self.pool.exchange
        )

    def ask(self, commands: bytes, count: int, deadline_s: float) -> list[object]:
        """An exchange whose failure the breaker counts. Whether it was a success, the caller has to
        say: a reply may be an error."""
        try:
            return self.exchange(commands, count, deadline_s)
        except Unavailable as error:
            self.failed(error)
            raise

    def failed(self, error: Unavailable) -> None:
        """Count a failure of an exchange."""
        if error.counts:
            self.breaker.failed(error.reason, error.detail)

    def probe(self, command: bytes, deadline_s: float) -> None:
        """Send one command; raises :class:`Unavailable` when it is refused or not answered."""
        [reply] = self.exchange(command, 1, deadline_s)
        if isinstance(reply, ResponseError):
            raise Unavailable("redis", "script", str(reply))

    def close(self) -> None:
        """Close all connections and end the probes."""
        self.breaker.stop()
        self.pool.close()


class Topology(ABC):
    """Knows the server that owns a key. Connects to nothing before it is first used."""

    def __init__(
        self, address: RedisAddress, options: ConnectionOptions, on_change: OnChange
    ) -> None:
        self.address = address
        self.options = options
        self.on_change = on_change
        self.forgotten_s = 0.0
        """How long servers were unavailable that are not known any more."""
        self.is_switching = False
        """Whether a failover is going on, so that :meth:`wait_until_settled` may take a while."""

    def wait_until_settled(self) -> None:
        """Wait while no server is to be told anything. Never more than a quarter of a second."""
        return

    @abstractmethod
    def node(self, key: str, deadline_s: float) -> Node:
        """The server that owns ``key``; raises :class:`Unavailable` when none is known."""

    @abstractmethod
    def nodes(self) -> list[Node]:
        """Every server known so far."""

    @property
    def needs_refresh(self) -> bool:
        """Whether :meth:`refresh` has anything to do."""
        nodes = self.nodes()
        return not nodes or any(node.durability is None for node in nodes)

    def refresh(self) -> None:
        """Beside calls: find the servers, and ask each master that is new about itself. Raises
        :class:`Unavailable`."""
        if not self.nodes():
            self.node("", self.probe_deadline_s())
        for node in self.nodes():
            if node.durability is None and node.breaker.state == "closed":
                node.durability = read_durability(node.ask, self.probe_deadline_s())

    def successor(self, node: Node, deadline_s: float) -> Node:
        """The server to send to what ``node`` has refused as no master, or could not be sent. It is
        ``node`` where no other has taken over."""
        return node

    def moved(self, slot: int, address: HostPort) -> Node:
        """The server at ``address``, which owns ``slot`` from now on."""
        raise Unavailable("redis", "topology", "the server is part of a cluster")

    def redirected(self, address: HostPort) -> Node:
        """The server at ``address``, for one command only."""
        raise Unavailable("redis", "topology", "the server is part of a cluster")

    def breakers(self) -> list[Breaker]:
        """The breakers of all servers known so far."""
        return [node.breaker for node in self.nodes()]

    def close(self) -> None:
        """Close all connections and end all probes."""
        for node in self.nodes():
            node.close()

    def tcp_node(self, address: HostPort, breaker: Breaker) -> Node:
        """A new node at ``address``."""
        options = self.options
        return Node(lambda: tcp_connection(address, options), options, breaker, address)

    def probe_deadline_s(self) -> float:
        """When a probe that begins now has to be done."""
        return time.monotonic() + self.options.timeout_s


class SingleServer(Topology):
    """One server that stays where it is, over TCP or a unix socket."""

    def __init__(
        self, address: RedisAddress, options: ConnectionOptions, on_change: OnChange
    ) -> None:
        super().__init__(address, options, on_change)
        path = address.path
        breaker = Breaker("redis", probe=self._probe, on_change=on_change)
        self._node = (
            Node(lambda: unix_connection(path, options), options, breaker)
            if path is not None
            else self.tcp_node(address.hosts[0], breaker)
        )

    def node(self, key: str, deadline_s: float) -> Node:
        """The only server."""
        return self._node

    def nodes(self) -> list[Node]:
        """The only server."""
        return [self._node]

    def _probe(self) -> None:
        self._node.probe(write_probe(), self.probe_deadline_s())


def server_named(address: HostPort, by: Node) -> HostPort:
    """The address that a redirection by ``by`` names."""
    host, port = address
    if host in UNKNOWN_HOSTS and by.address is not None:
        return by.address[0], port
    return host, port


def write_probe(key: str = "router:{probe}") -> bytes:
    """The command of a probe: a write, because a server that has become a replica, or whose memory
    is full, still answers PING."""
    return packed(("SET", key, "1", "PX", "1000"))
