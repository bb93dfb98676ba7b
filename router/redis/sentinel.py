"""The topology behind Redis Sentinel: one master, which the sentinels name."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from redis.connection import ConnectionPool
from redis.exceptions import RedisError
from redis.sentinel import Sentinel

from router.breaker import Breaker, Unavailable
from router.redis.address import HostPort, RedisAddress
from router.redis.connection import ConnectionOptions, library_options, tcp_connection
from router.redis.topology import Node, OnChange, Topology, write_probe


class SentinelMaster(Topology):
    """The master of a service, looked up at first and again by each probe of an outage.

    A failover shows as failures: the old master refuses, is silent, or has become read-only. They
    open the breaker, and its probe asks the sentinels before it tries the master.
    """

    def __init__(
        self, address: RedisAddress, options: ConnectionOptions, on_change: OnChange
    ) -> None:
        super().__init__(address, options, on_change)
        self._breaker = Breaker("redis", probe=self._probe, on_change=on_change)
        self._lookup: Future[Node] | None = None
        self._master: HostPort | None = None
        self._node: Node | None = None
        self._sentinels = list(address.hosts)
        self._sentinel_options = replace(options, login=address.sentinel_login, db=0)

    def node(self, key: str, deadline_s: float) -> Node:
        """The master; the first caller looks it up."""
        if self._node is not None:
            return self._node
        if not self._breaker.allows():
            raise Unavailable("redis", "breaker_open")
        try:
            return self._discovered(deadline_s)
        except Unavailable as error:
            if error.counts:
                self._breaker.failed(error.reason, error.detail)
            raise

    def nodes(self) -> list[Node]:
        """The master, once it is known."""
        return [self._node] if self._node is not None else []

    def breakers(self) -> list[Breaker]:
        """One breaker, whichever server is the master."""
        return [self._breaker]

    def close(self) -> None:
        """Close all connections and end all probes."""
        self._breaker.stop()
        super().close()

    def _probe(self) -> None:
        deadline_s = self.probe_deadline_s()
        self._discovered(deadline_s).probe(write_probe(), deadline_s)

    def _discovered(self, deadline_s: float) -> Node:
        # One lookup at a time: calls that arrive together need not each connect to the sentinels.
        # Whoever finds one going on shares its end, which its own deadline brings.
        if self._lookup is not None:
            return self._lookup.result()
        lookup = self._lookup = Future[Node]()
        failure = Unavailable("redis", "topology", "its lookup was ended", counts=False)
        try:
            node = self._followed(self._ask_sentinels(deadline_s))
            lookup.set_result(node)
            return node
        except Unavailable as error:
            failure = Unavailable(error.name, error.reason, error.detail, counts=False)
            raise
        finally:
            self._lookup = None
            if not lookup.done():
                lookup.set_exception(failure)

    def _followed(self, master: HostPort) -> Node:
        if self._node is None or master != self._master:
            old, self._master = self._node, master
            self._node = self.tcp_node(master, self._breaker)
            if old is not None:
                old.pool.close()
        return self._node

    def _ask_sentinels(self, deadline_s: float) -> HostPort:
        # A silent sentinel must not use up the time of the others.
        share_s = (deadline_s - time.monotonic()) / len(self._sentinels)
        reasons = []
        for sentinel in list(self._sentinels):
            until_s = min(deadline_s, time.monotonic() + share_s)
            try:
                master = self._ask(sentinel, until_s)
            except (RedisError, OSError) as error:
                reasons.append(str(error))
                continue
            except (AttributeError, LookupError, TypeError, ValueError):
                reasons.append("unreadable reply")  # the library reads replies without checks
                continue
            # The sentinel that answered is asked first from now on.
            self._sentinels.remove(sentinel)
            self._sentinels.insert(0, sentinel)
            return master
        what = f"no sentinel knows '{self.address.service}': " + "; ".join(reasons)
        raise Unavailable("redis", "topology", what)

    def _ask(self, sentinel: HostPort, deadline_s: float) -> HostPort:
        connection = tcp_connection(sentinel, self._sentinel_options)
        connection.set_deadline(deadline_s)
        pool = ConnectionPool(
            connection_class=lambda **_options: connection,
            **library_options(self._sentinel_options),
        )
        try:
            asked: Any = Sentinel(  # type: ignore[no-untyped-call]
                [sentinel], sentinel_kwargs={"connection_pool": pool}
            )
            host, port = asked.discover_master(self.address.service)
        finally:
            pool.disconnect()
        return str(host), int(port)
