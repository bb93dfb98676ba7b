"""A real Sentinel and a real Redis Cluster on 127.0.0.1."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from router.breaker import Unavailable
from router.limits.redis_keys import tag
from router.redis.address import parse_address
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from router.redis.topologies.cluster import slot_of
from tests.fakes.redis_server import BINARY, RedisServer, free_port

SLOTS = 16384
GIVE_UP_S = 30.0


def command(server: RedisServer, *words: str | int) -> Any:
    client = RedisClient(parse_address(server.url), ConnectionOptions(timeout_s=5))
    try:
        return client.command(*words)
    finally:
        client.close()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """``holds`` may raise ``Unavailable`` while it does not hold."""
    give_up_s = time.monotonic() + GIVE_UP_S
    while True:
        try:
            if holds():
                return
        except Unavailable:
            pass
        assert time.monotonic() < give_up_s, what
        time.sleep(0.05)


class SentinelServer(RedisServer):
    """A redis-server that watches one master."""

    def __init__(self, directory: Path, master: RedisServer) -> None:
        directory.mkdir()
        super().__init__(directory)
        file = directory / "sentinel.conf"
        file.write_text(
            f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds mymaster 500\n"
            "sentinel failover-timeout mymaster 2000\n"
        )
        assert BINARY is not None
        self._command = [
            BINARY, str(file), "--sentinel", "--port", str(self.port),
            "--bind", "127.0.0.1", "--dir", str(directory),
        ]  # fmt: skip


class ClusterServers:
    """Three masters, a third of the slots each."""

    def __init__(self, directory: Path) -> None:
        self.nodes = []
        for number in range(3):
            self.nodes.append(_cluster_node(directory / f"node{number}"))
        self.replica = _cluster_node(directory / "replica")
        """Not started before :meth:`add_replica`."""

    def start(self) -> None:
        bounds = [SLOTS * number // 3 for number in range(4)]
        for node, first, end in zip(self.nodes, bounds, bounds[1:], strict=False):
            node.start()
            command(node, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for node in self.nodes[1:]:
            _meet(self.nodes[0], node)
        for node in self.nodes:
            wait_until(lambda node=node: self._is_whole(node), "all know each other")

    def url(self, *nodes: RedisServer) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        return f"redis+cluster://{hosts}"

    def owner_index(self, organization: str) -> int:
        return slot_of(tag(organization)) * 3 // SLOTS

    def add_replica(self, index: int) -> RedisServer:
        """A replica of one of the masters, once it follows."""
        master, replica = self.nodes[index], self.replica
        replica.start()
        _meet(master, replica)
        master_id = command(master, "CLUSTER", "MYID")
        wait_until(lambda: master_id in command(replica, "CLUSTER", "NODES"), "they have met")
        wait_until(
            lambda: command(replica, "CLUSTER", "REPLICATE", master_id) == b"OK", "it is a replica"
        )
        wait_until(
            lambda: b"master_link_status:up" in command(replica, "INFO", "replication"),
            "the replica follows",
        )
        replica_id = command(replica, "CLUSTER", "MYID")
        for node in self.nodes:
            wait_until(
                lambda node=node: any(
                    line.startswith(replica_id) and b" slave " in line
                    for line in command(node, "CLUSTER", "NODES").splitlines()
                ),
                "all know of it",
            )
        return replica

    def replace(self, index: int) -> None:
        """End a node, and start it at another port: it is the same one to the others."""
        old, node = self.nodes[index], copy.copy(self.nodes[index])
        old.kill()
        node.port = free_port()
        ports = {str(old.port): str(node.port)}
        node._command = [ports.get(word, word) for word in old._command]
        self.nodes[index] = node
        node.start()

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """The first step of what ``redis-cli --cluster reshard`` does for each slot."""
        source_id, target_id = (command(node, "CLUSTER", "MYID") for node in (source, target))
        command(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        command(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)

    def move_some(self, slot: int, source: RedisServer, target: RedisServer, most: int) -> int:
        """The second, which it repeats until there are no keys left; says how many there were."""
        keys = command(source, "CLUSTER", "GETKEYSINSLOT", slot, most)
        if keys:
            command(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, target: RedisServer) -> None:
        """The third."""
        target_id = command(target, "CLUSTER", "MYID")
        others = [node for node in self.nodes if node is not target]
        for node in (target, *others):
            command(node, "CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def close(self) -> None:
        for node in (*self.nodes, self.replica):
            node.close()

    @staticmethod
    def _is_whole(node: RedisServer) -> bool:
        info = command(node, "CLUSTER", "INFO")
        wanted = (b"cluster_state:ok", b"cluster_slots_ok:16384", b"cluster_known_nodes:3")
        return all(fact in info for fact in wanted)


def _cluster_node(directory: Path) -> RedisServer:
    directory.mkdir()
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    # The port of the cluster's bus is 10000 above; free ports begin at 32768.
    bus = ("--cluster-port", str(free_port()), "--cluster-require-full-coverage", "no")
    return RedisServer(directory, *options, *bus)


def _meet(node: RedisServer, other: RedisServer) -> None:
    # The third argument of MEET is the bus of the other one.
    bus = other._command[other._command.index("--cluster-port") + 1]
    command(node, "CLUSTER", "MEET", "127.0.0.1", other.port, bus)
