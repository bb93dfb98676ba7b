"""The topology behind Redis Sentinel: one master, which the sentinels name."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final

from redis.connection import ConnectionPool
from redis.exceptions import RedisError
from redis.sentinel import Sentinel

from router.breaker import Breaker, Unavailable
from router.redis.address import HostPort, RedisAddress
from router.redis.connection import ConnectionOptions, library_options, tcp_connection
from router.redis.topologies.sentinel_events import PROMOTING, SELECTED, SentinelEvents, role_of
from router.redis.topologies.topology import Node, OnChange, Topology, write_probe

_PROMOTION_S: Final = 10.0
"""For so long a replica may be announced that is no master yet."""
_STEP_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.25
"""After the selection of a replica; its promotion takes a tick of the sentinel, 53 to 100 ms."""


class SentinelMaster(Topology):
    """The master of a service, as the sentinels name it: looked up at first, by each probe of an
    outage, and whenever the master does not behave as one.

    A failover shows in three ways, and the first one counts. A sentinel announces it: then calls
    wait until the replica is a master, at most 100 ms as a rule, and go there. The old master
    refuses a write, because it has no replica left or is one itself: then the call looks for its
    successor, and is made there. Or connections are lost: then no new one is made before a sentinel
    was asked, because a server that was restarted may have been replaced.
    """

    def __init__(
        self, address: RedisAddress, options: ConnectionOptions, on_change: OnChange
    ) -> None:
        super().__init__(address, options, on_change)
        self._breaker = Breaker("redis", probe=self._probe, on_change=on_change)
        self._lookup: Future[Node] | None = None
        self._master: HostPort | None = None
        self._node: Node | None = None
        self._following = threading.Lock()
        self._selected: HostPort | None = None
        self._selected_until_s = 0.0
        self._pause_until_s = 0.0
        self._settled = threading.Event()
        self._epoch = 0
        self._sentinels = list(address.hosts)
        self._sentinel_options = replace(options, login=address.sentinel_login, db=0)
        self._events = SentinelEvents(
            address,
            self._sentinel_options,
            on_event=self._heard,
            on_return=lambda: self._look_again(self.probe_deadline_s()),
        )

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

    def successor(self, node: Node, deadline_s: float) -> Node:
        """The master that has taken over from ``node``, or ``node``, where the sentinels still name
        it or none of them answers."""
        node.pool.was_lost = False
        if self._node is node:
            self._look_again(deadline_s)
        return self._node or node

    def nodes(self) -> list[Node]:
        """The master, once it is known."""
        return [self._node] if self._node is not None else []

    def breakers(self) -> list[Breaker]:
        """One breaker, whichever server is the master."""
        return [self._breaker]

    def close(self) -> None:
        """Close all connections and end all probes."""
        self._events.close()
        self._breaker.stop()
        super().close()

    def _probe(self) -> None:
        deadline_s = self.probe_deadline_s()
        self._discovered(deadline_s).probe(write_probe(), deadline_s)

    def wait_until_settled(self) -> None:
        """As above: from the tick before a replica is told to be a master until it is one. What the
        old master has executed before reaches the replica; what comes later would be lost."""
        if self._breaker.state == "closed":
            self._settled.wait(max(0.0, self._pause_until_s - time.monotonic()))
        if time.monotonic() >= self._pause_until_s:
            self.is_switching = False

    def _heard(self, event: str, server: HostPort) -> None:
        now_s = time.monotonic()
        self._selected, self._selected_until_s = server, now_s + _PROMOTION_S
        if event == SELECTED:
            self._pause_until_s = now_s + _LONGEST_PAUSE_S
            self._settled.clear()
            self.is_switching = True
        elif event == PROMOTING:
            while self._selected == server and not self._is_promoted(self.probe_deadline_s()):
                time.sleep(_STEP_S)
        else:
            self._is_promoted(self.probe_deadline_s())
            self._selected = None
            self._breaker.probe_now()

    def _is_promoted(self, deadline_s: float) -> bool:
        """Whether the server that a sentinel has announced is a master; if so, it is ours."""
        selected = self._selected
        if selected is None or time.monotonic() > self._selected_until_s:
            self._selected = None  # it may become a master for other reasons later
            return False
        if role_of(selected, self.options, deadline_s) != "master":
            return False
        self._selected = None
        if selected != self._master:
            self._epoch += 1  # what sentinels say that do not know of it yet is older
            self._followed(selected)
        self.is_switching = False
        self._settled.set()
        return True

    def _look_again(self, deadline_s: float) -> None:
        with contextlib.suppress(Unavailable):
            if not self._is_promoted(deadline_s):
                self._discovered(deadline_s)

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
        with self._following:
            old = self._node
            if old is not None and master == self._master:
                old.pool.was_lost = False
                return old
            node = self.tcp_node(master, self._breaker)
            node.pool.connects_when_lost = False
            self._node, self._master = node, master
        if old is None:
            self._events.listen()
        else:
            old.pool.close()
        return node

    def _ask_sentinels(self, deadline_s: float) -> HostPort:
        # A silent sentinel must not use up the time of the others.
        share_s = (deadline_s - time.monotonic()) / len(self._sentinels)
        reasons, outdated = [], None
        for sentinel in list(self._sentinels):
            until_s = min(deadline_s, time.monotonic() + share_s)
            try:
                master, epoch = self._ask(sentinel, until_s)
            except (RedisError, OSError) as error:
                reasons.append(str(error))
                continue
            except (AttributeError, LookupError, TypeError, ValueError):
                reasons.append("unreadable reply")  # the library reads replies without checks
                continue
            if role_of(master, self.options, until_s) == "slave":
                reasons.append(f"{master[0]}:{master[1]} is a replica")
                continue
            if epoch < self._epoch:  # this sentinel has not heard of the last failover
                outdated = outdated or master
                continue
            # The sentinel that answered is asked first from now on.
            self._sentinels.remove(sentinel)
            self._sentinels.insert(0, sentinel)
            self._epoch = epoch
            return master
        if outdated is not None:
            # Unless the failover was given up, the one that took over is a master still.
            known = self._master
            is_ours = known and role_of(known, self.options, deadline_s) == "master"
            return known if known and is_ours else outdated
        what = f"no sentinel knows '{self.address.service}': " + "; ".join(reasons)
        raise Unavailable("redis", "topology", what)

    def _ask(self, sentinel: HostPort, deadline_s: float) -> tuple[HostPort, int]:
        """The master that a sentinel names, and how many failovers it knows of."""
        connection = tcp_connection(sentinel, self._sentinel_options)
        connection.set_deadline(deadline_s)
        pool = ConnectionPool(
            connection_class=lambda **_options: connection,
            **library_options(self._sentinel_options),
        )
        service = self.address.service
        try:
            asked: Any = Sentinel(  # type: ignore[no-untyped-call]
                [sentinel], sentinel_kwargs={"connection_pool": pool}
            )
            state = asked.sentinels[0].sentinel_masters()[service]
            if not asked.check_master_state(state, service):
                raise LookupError("the sentinel takes it for down")
        finally:
            pool.disconnect()
        return (str(state["ip"]), int(state["port"])), int(state.get("config-epoch", 0))
