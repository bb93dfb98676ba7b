"""Runs scripts on Redis: one exchange, no library retries, every failure counted by a breaker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from redis.exceptions import ResponseError

from router.breaker import Breaker, Unavailable
from router.redis.address import Kind, RedisAddress
from router.redis.connection import ConnectionOptions
from router.redis.pool import LOST
from router.redis.recovery import Recovery, first_error
from router.redis.scripts import Argument, ScriptCall, packed
from router.redis.topologies.cluster import Cluster
from router.redis.topologies.durability import Durability
from router.redis.topologies.sentinel import SentinelMaster
from router.redis.topologies.topology import Node, OnChange, SingleServer, Topology

TOPOLOGIES: Final[Mapping[Kind, type[Topology]]] = {
    "server": SingleServer,
    "sentinel": SentinelMaster,
    "cluster": Cluster,
}

EXCHANGE_SHARE: Final = 0.94
"""Of the timeout, for the exchange. The rest is for what the caller does with a failure, so that
its whole decision ends in time."""


class RedisClient:
    """The door to Redis for one process, to be built after fork. Connects when first used.

    Every method raises :class:`Unavailable` when there is no whole answer within ``timeout_s``.
    What was sent may have been executed then, or may yet be: nothing is ever sent twice, except
    what Redis itself has refused to execute (unknown script, wrong server).
    """

    def __init__(
        self,
        address: RedisAddress,
        options: ConnectionOptions,
        *,
        on_change: OnChange = lambda _name, _state: None,
    ) -> None:
        self.address = address
        self._timeout_s = options.timeout_s * EXCHANGE_SHARE
        options = replace(
            options,
            login=address.login,
            db=address.db,
            tls=address.tls_context(),
            timeout_s=self._timeout_s,
        )
        self._topology = TOPOLOGIES[address.kind](address, options, on_change)

    @property
    def is_unavailable(self) -> bool:
        """Whether every server known so far is unavailable, so that no call is sent at present."""
        breakers = self.breakers()
        return bool(breakers) and all(breaker.state != "closed" for breaker in breakers)

    def run(self, call: ScriptCall) -> Any:
        """The reply of one script."""
        return self.run_all((call,))[0]

    def run_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """The replies of scripts sent together, in order, over one connection.

        When Redis knows one of them no longer, that one and all after it are run (again): a script
        that is not the last must be sent with others that a second run does not harm.
        """
        if self._topology.is_switching:
            self._topology.wait_until_settled()
        deadline_s = time.monotonic() + self._timeout_s
        node = self._usable(calls[0].key, deadline_s)
        commands = b"".join([call.by_digest() for call in calls])
        node, replies = self._asked(node, commands, len(calls), deadline_s)
        if first_error(replies) is not None:
            recovery = Recovery(self._topology, calls, deadline_s)
            node, replies = recovery.replies(node, replies)
        node.breaker.succeeded()
        return replies

    def command(self, *arguments: Argument, key: str = "") -> object:
        """One plain command, for administration, to the server that owns ``key``.

        What Redis refuses to do raises :class:`Unavailable` too, but is no outage.
        """
        deadline_s = time.monotonic() + self._timeout_s
        node = self._usable(key, deadline_s)
        node, [reply] = self._asked(node, packed(arguments), 1, deadline_s)
        node.breaker.succeeded()
        if isinstance(reply, ResponseError):
            raise Unavailable("redis", "script", str(reply))
        return reply

    @property
    def unavailable_s(self) -> float:
        """Seconds that servers were unavailable, all of them together."""
        known_s = sum([breaker.unavailable_s for breaker in self.breakers()])
        return known_s + self._topology.forgotten_s

    @property
    def needs_refresh(self) -> bool:
        """Whether :meth:`refresh` has anything to do."""
        return self._topology.needs_refresh

    def refresh(self) -> None:
        """To be called about once a second, beside calls: learn of masters that have moved or are
        new. Raises :class:`Unavailable`."""
        self._topology.refresh()

    def durability(self) -> list[Durability]:
        """What every master known so far has said of itself."""
        found = [node.durability for node in self._topology.nodes()]
        return [durability for durability in found if durability is not None]

    def breakers(self) -> list[Breaker]:
        """One for each server known so far, and those of finding servers at all."""
        return self._topology.breakers()

    def connections(self) -> tuple[int, int]:
        """How many connections are open, and how many of them are in use."""
        pools = [node.pool for node in self._topology.nodes()]
        return sum(pool.open for pool in pools), sum(pool.in_use for pool in pools)

    def close(self) -> None:
        """Close all connections. The client is of no use afterwards."""
        self._topology.close()

    def _usable(self, key: str, deadline_s: float) -> Node:
        node = self._topology.node(key, deadline_s)
        if not node.breaker.allows():
            raise Unavailable("redis", "breaker_open")
        return node

    def _asked(
        self, node: Node, commands: bytes, count: int, deadline_s: float
    ) -> tuple[Node, list[object]]:
        """The replies and who gave them: ``node``, or the server that has taken over from it where
        nothing could be sent to ``node``."""
        try:
            return node, node.ask(commands, count, deadline_s)
        except Unavailable as error:
            if error.reason != "connect":
                raise
            successor = self._topology.successor(node, deadline_s)
            if successor is node and error.detail != LOST:
                raise
            return successor, successor.ask(commands, count, deadline_s)
