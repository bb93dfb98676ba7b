"""Runs scripts on Redis: one exchange, no library retries, every failure counted by a breaker."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from redis.exceptions import AskError, MovedError, NoScriptError, ResponseError, TryAgainError

from router.breaker import Breaker, Unavailable
from router.redis.address import Kind, RedisAddress
from router.redis.cluster import Cluster
from router.redis.connection import ConnectionOptions
from router.redis.scripts import Argument, ScriptCall, packed
from router.redis.sentinel import SentinelMaster
from router.redis.topology import Node, OnChange, SingleServer, Topology

TOPOLOGIES: Final[Mapping[Kind, type[Topology]]] = {
    "server": SingleServer,
    "sentinel": SentinelMaster,
    "cluster": Cluster,
}

EXCHANGE_SHARE: Final = 0.94
"""Of the timeout, for the exchange. The rest is for what the caller does with a failure, so that
its whole decision ends in time."""

_HOPS: Final = 3
_ASKING: Final = packed(("ASKING",))
_EVICTION: Final = re.compile(rb"^maxmemory_policy:(\S+)", re.MULTILINE)


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
        deadline_s = time.monotonic() + self._timeout_s
        node = self._usable(calls[0].keys[0], deadline_s)
        try:
            replies = node.exchange(
                b"".join([call.by_digest() for call in calls]), len(calls), deadline_s
            )
            if _first_error(replies) is not None:
                replies = self._recovered(calls, replies, node, deadline_s)
        except Unavailable as error:
            node.failed(error)
            raise
        node.breaker.succeeded()
        return replies

    def command(self, *arguments: Argument, key: str = "") -> object:
        """One plain command, for administration, to the server that owns ``key``.

        What Redis refuses to do raises :class:`Unavailable` too, but is no outage.
        """
        deadline_s = time.monotonic() + self._timeout_s
        node = self._usable(key, deadline_s)
        try:
            [reply] = node.exchange(packed(arguments), 1, deadline_s)
        except Unavailable as error:
            node.failed(error)
            raise
        node.breaker.succeeded()
        if isinstance(reply, ResponseError):
            raise Unavailable("redis", "script", str(reply))
        return reply

    def eviction_policy(self) -> str | None:
        """What this Redis does when its memory is full; ``None`` when the server does not say.

        Anything but ``noeviction`` can forget a counter, which then has to be rebuilt.
        """
        reply = self.command("INFO", "memory")
        found = _EVICTION.search(reply) if isinstance(reply, bytes) else None
        return found[1].decode() if found else None

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

    def _recovered(
        self, calls: Sequence[ScriptCall], replies: list[object], node: Node, deadline_s: float
    ) -> list[object]:
        """The replies, once every refused call was sent again as Redis demands: with the source of
        its script, or to another server."""
        known = [True] * len(calls)
        prefix = b""
        for _hop in range(_HOPS + len(calls)):
            first = _first_error(replies)
            if first is None:
                return replies
            error = replies[first]
            if isinstance(error, NoScriptError) and known[first]:
                known[first] = False  # again to the same server, now with the source
            elif isinstance(error, MovedError):
                node, prefix = self._topology.moved(error.slot_id, error.node_addr), b""
            elif isinstance(error, AskError):
                node, prefix = self._topology.redirected(error.node_addr), _ASKING
            else:
                # While a slot moves, scripts with several keys are put off: that is no outage.
                is_moving = isinstance(error, TryAgainError)
                raise Unavailable("redis", "script", str(error), counts=not is_moving)
            again = _send(calls[first:], known[first:], prefix, node, deadline_s)
            replies = replies[:first] + again
        if _first_error(replies) is None:
            return replies
        raise Unavailable("redis", "topology", "too many redirections")


def _first_error(replies: Sequence[object]) -> int | None:
    for index, reply in enumerate(replies):
        if isinstance(reply, ResponseError):
            return index
    return None


def _send(
    calls: Sequence[ScriptCall],
    known: Sequence[bool],
    prefix: bytes,
    node: Node,
    deadline_s: float,
) -> list[object]:
    packed = [
        prefix + (call.by_digest() if is_known else call.by_source())
        for call, is_known in zip(calls, known, strict=True)
    ]
    each = 2 if prefix else 1
    replies = node.exchange(b"".join(packed), len(calls) * each, deadline_s)
    return replies[each - 1 :: each]
