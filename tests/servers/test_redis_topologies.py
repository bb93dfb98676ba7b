"""Limits over a real Redis Sentinel and a real Redis Cluster: discovery, failover, moved slots."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router.breaker import Unavailable
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import Amounts, Reservation, WindowSpec
from router.limits.rates.decision import BucketSpec
from router.limits.rates.limiter import RateLimiter
from router.limits.redis_keys import tag
from router.redis.address import parse_address
from router.redis.client import RedisClient
from router.redis.cluster import slot_of
from router.redis.connection import ConnectionOptions
from tests.fakes.redis_server import BINARY, RedisServer, free_port
from tests.fakes.redis_topologies import ClusterServers, SentinelServer, command, wait_until

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

TIMEOUT_S = 1.0
RATE = BucketSpec("calls", (), 0.001, 1_000_000)
SPEND = WindowSpec("spend", "usd", "total", 1_000_000_000)
ORGANIZATIONS = [f"org-{number}" for number in range(24)]


class Limits:
    """Rates and budgets of organizations, over one address."""

    def __init__(self, url: str) -> None:
        self.redis = RedisClient(parse_address(url), ConnectionOptions(timeout_s=TIMEOUT_S))
        self.rates = RateLimiter(self.redis)
        self.ledger = Ledger(self.redis)
        self._calls = itertools.count(1)

    def open_budgets(self, *organizations: str) -> None:
        for organization in organizations:
            LedgerMaintenance(self.redis).rebuild(organization, [SPEND], lambda _lost: 0)

    def decide(self, organization: str) -> None:
        """Admit one call; raises ``Unavailable``."""
        assert self.rates.take(organization, [RATE]).allowed
        lease = f"lease-{next(self._calls)}"
        outcome = self.ledger.reserve(organization, lease, [SPEND], Amounts(10, 0), ttl_ms=60_000)
        assert isinstance(outcome, Reservation)
        assert self.ledger.settle(outcome, Amounts(3, 0)).booked

    def settled(self, organization: str) -> int:
        [state] = self.ledger.read(organization, [SPEND])
        return state.settled

    @property
    def master_port(self) -> int:
        [master] = self.redis._topology.nodes()
        assert master.address is not None
        return master.address[1]

    def close(self) -> None:
        self.redis.close()


def does(work: Callable[[], None]) -> Callable[[], bool]:
    return lambda: work() is None


# --- Sentinel -------------------------------------------------------------------------------


Watched = tuple[RedisServer, RedisServer, SentinelServer]


@pytest.fixture
def min_replicas() -> int:
    return 0


@pytest.fixture
def watched(tmp_path: Path, min_replicas: int) -> Iterator[Watched]:
    """A master, its replica and a sentinel that knows both."""
    (tmp_path / "master").mkdir()
    (tmp_path / "replica").mkdir()
    options = ("--min-replicas-to-write", str(min_replicas))
    master = RedisServer(tmp_path / "master", *options)
    of_master = ("--replicaof", "127.0.0.1", str(master.port))
    replica = RedisServer(tmp_path / "replica", *options, *of_master)
    sentinel = SentinelServer(tmp_path / "sentinel", master)
    servers = (master, replica, sentinel)
    try:
        for server in servers:
            server.start()
        wait_until(
            lambda: b"master_link_status:up" in command(replica, "INFO", "replication"),
            "the replica follows",
        )
        wait_until(
            lambda: len(command(sentinel, "SENTINEL", "REPLICAS", "mymaster")) == 1,
            "the sentinel knows the replica",
        )
        yield servers
    finally:
        for server in servers:
            server.close()


def test_a_failover_is_followed(watched: Watched) -> None:
    """P9, D5: the master that the sentinel names decides; once it is dead, the replica that was
    promoted does, with what the master had told it. A dead sentinel in the list delays nobody."""
    master, replica, sentinel = watched
    dead = f"127.0.0.1:{free_port()}"
    limits = Limits(f"redis+sentinel://{dead},127.0.0.1:{sentinel.port}/mymaster")
    try:
        limits.open_budgets("acme")
        limits.decide("acme")
        assert command(master, "DBSIZE") > 0
        command(master, "WAIT", 1, 5000)
        master.kill()
        wait_until(does(lambda: limits.decide("acme")), "the promoted replica decides")
        assert b"role:master" in command(replica, "INFO", "replication")
        assert limits.settled("acme") == 2 * 3
    finally:
        limits.close()


class Load:
    """Calls of one organization, one after another in each of some threads, until ended."""

    def __init__(self, limits: Limits, organizations: list[list[str]]) -> None:
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self._limits = limits
        self._ended = threading.Event()
        self._callers = [
            threading.Thread(target=self._call, args=(names,)) for names in organizations
        ]

    def __enter__(self) -> Load:
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        for caller in self._callers:
            caller.join(10)

    def _call(self, organizations: list[str]) -> None:
        for organization in itertools.cycle(organizations):
            if self._ended.is_set():
                return
            try:
                self._limits.decide(organization)
                self.done[organization] += 1
            except Exception as error:
                self.failures.append(f"{organization}: {error!r}")
                time.sleep(0.01)


def settled_at(server: RedisServer) -> int:
    """What a server has of the only budget, read without a script: it may be a replica."""
    counters = [
        command(server, "HGET", key, "settled")
        for key in command(server, "KEYS", "*")
        if b":lease:" not in key and command(server, "TYPE", key) == b"hash"
    ]
    [settled] = [int(counter) for counter in counters if counter is not None]
    return settled


@pytest.mark.parametrize("min_replicas", [0, 1], ids=["any", "min-replicas"])
def test_a_planned_failover_loses_nothing(watched: Watched, min_replicas: int) -> None:
    """P9: SENTINEL FAILOVER under load. The old master is left when the replica is a master, so
    that every decision is counted. No call fails either, unless the new master waits for a replica
    of its own."""
    master, replica, sentinel = watched
    limits = Limits(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    try:
        limits.open_budgets("acme")
        limits.decide("acme")
        with Load(limits, [["acme"]] * 2) as load:
            time.sleep(0.5)
            command(sentinel, "SENTINEL", "FAILOVER", "mymaster")
            wait_until(lambda: limits.master_port == replica.port, "the replica decides")
            before = sum(load.done.values())
            wait_until(lambda: sum(load.done.values()) > before + 50, "and goes on")
            wait_until(
                lambda: b"role:slave" in command(master, "INFO", "replication"),
                "the old master has become a replica",
            )
        assert min_replicas or load.failures == []
        assert limits.settled("acme") == 3 * (1 + sum(load.done.values()))
        assert limits.redis.breakers()[0].state == "closed"
    finally:
        limits.close()


@pytest.mark.parametrize("min_replicas", [0, 1], ids=["any", "min-replicas"])
def test_an_unplanned_failover_loses_what_the_replica_lacked(
    watched: Watched, min_replicas: int
) -> None:
    """P9: kill -9 of the master under load. What the replica had got is there, and what was decided
    afterwards; with min-replicas-to-write and a replica that keeps up that is all."""
    master, replica, sentinel = watched
    limits = Limits(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    try:
        limits.open_budgets("acme")
        with Load(limits, [["acme"]] * 2) as load:
            time.sleep(0.5)
            master.kill()
            time.sleep(0.1)
            before, replica_had = sum(load.done.values()), settled_at(replica)
            command(replica, "CONFIG", "SET", "min-replicas-to-write", 0)  # nobody is left
            wait_until(lambda: sum(load.done.values()) > before + 50, "the replica decides")
        after = sum(load.done.values()) - before
        assert limits.settled("acme") == replica_had + 3 * after
        # A call that was lost with the master may have been executed there all the same.
        assert replica_had <= 3 * (before + 2)
        assert not min_replicas or replica_had >= 3 * before
    finally:
        limits.close()


# --- Cluster --------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterServers]:
    servers = ClusterServers(tmp_path)
    try:
        servers.start()
        yield servers
    finally:
        servers.close()


def test_a_cluster_is_found_from_one_node(cluster: ClusterServers) -> None:
    """R5: one address is enough; every organization is decided by the master of its slot, where
    all its keys lie, and a script never meets a key of another slot."""
    limits = Limits(cluster.url(cluster.nodes[2]))
    try:
        limits.open_budgets(*ORGANIZATIONS)
        for organization in ORGANIZATIONS:
            limits.decide(organization)
        assert [limits.settled(organization) for organization in ORGANIZATIONS] == [3] * 24
        for index, node in enumerate(cluster.nodes):
            own = [name for name in ORGANIZATIONS if cluster.owner_index(name) == index]
            keys = command(node, "KEYS", "*")
            assert own
            assert {key.split(b"{")[1].split(b"}")[0].decode() for key in keys} == set(own)
        assert len(limits.redis.breakers()) == 3
    finally:
        limits.close()


@pytest.mark.parametrize("most", [0, 1, 2, 3, 100], ids=lambda most: f"{most}-keys-moved")
def test_a_slot_that_moves_is_decided(cluster: ClusterServers, most: int) -> None:
    """R5, P9: whatever part of an organization's keys is on the new master when the move of its
    slot stops for a while, every call is decided, with leases, buckets and ids that are new or on
    either side. A budget used to admit nothing for all that time."""
    organization = ORGANIZATIONS[0]
    slot = slot_of(tag(organization))
    source = cluster.nodes[cluster.owner_index(organization)]
    target = next(node for node in cluster.nodes if node is not source)
    limits = Limits(cluster.url(*cluster.nodes))
    try:
        limits.open_budgets(organization)
        limits.decide(organization)
        cluster.begin_move(slot, source, target)
        cluster.move_some(slot, source, target, most) if most else None
        for _ in range(5):
            limits.decide(organization)
        assert [breaker._failures for breaker in limits.redis.breakers()] == [0, 0, 0]
        assert limits.settled(organization) == 6 * 3
        while cluster.move_some(slot, source, target, 100):
            pass
        cluster.end_move(slot, target)
        limits.decide(organization)
        assert limits.settled(organization) == 7 * 3
        assert command(source, "CLUSTER", "COUNTKEYSINSLOT", slot) == 0
        used = limits.rates.peek(organization, [RATE]).statuses[0]
        assert used.remaining == 1_000_000 - 7
    finally:
        limits.close()


def test_a_reshard_under_load_harms_nobody(cluster: ClusterServers) -> None:
    """R5, P9: the slots of half of the organizations go to another master and back, with thousands
    of keys, while all of them are called: no call fails, and every amount is counted once."""
    limits = Limits(cluster.url(*cluster.nodes))
    moving = ORGANIZATIONS[::2]

    def reshard(organization: str) -> None:
        slot = slot_of(tag(organization))
        source = cluster.nodes[cluster.owner_index(organization)]
        target = next(node for node in cluster.nodes if node is not source)
        for one, other in ((source, target), (target, source)):
            cluster.begin_move(slot, one, other)
            while cluster.move_some(slot, one, other, 10):
                pass
            cluster.end_move(slot, other)

    try:
        limits.open_budgets(*ORGANIZATIONS)
        for organization in moving:
            owner = cluster.nodes[cluster.owner_index(organization)]
            fill = f"for i = 1, 300 do redis.call('SET', '{tag(organization)}x' .. i, i) end"
            command(owner, "EVAL", fill, 1, f"{tag(organization)}x1")
        with Load(limits, [ORGANIZATIONS[n::3] for n in range(3)]) as load:
            for organization in moving:
                reshard(organization)
        assert load.failures == []
        assert min(load.done[name] for name in ORGANIZATIONS) > 3
        assert {name: limits.settled(name) for name in ORGANIZATIONS} == {
            name: 3 * count for name, count in load.done.items()
        }
        assert {breaker.state for breaker in limits.redis.breakers()} == {"closed"}
    finally:
        limits.close()


def test_a_replaced_node_is_forgotten(cluster: ClusterServers) -> None:
    """P9: a master that comes back at another address is found there; the old address is forgotten
    with its breaker and its connections, so that the limits count as available again."""
    limits = Limits(cluster.url(*cluster.nodes))
    index = 1
    own = [name for name in ORGANIZATIONS if cluster.owner_index(name) == index]
    try:
        limits.open_budgets(*ORGANIZATIONS)
        old = cluster.nodes[index]
        cluster.replace(index)
        for _ in range(3):
            with contextlib.suppress(Unavailable):
                limits.decide(own[0])

        def decided_again() -> None:
            limits.open_budgets(*own)  # its data is gone
            limits.decide(own[0])

        wait_until(does(decided_again), "it decides at its new address")
        nodes = {node.address for node in limits.redis._topology.nodes()}
        assert nodes == {("127.0.0.1", node.port) for node in cluster.nodes}
        assert ("127.0.0.1", old.port) not in nodes
        assert [breaker.state for breaker in limits.redis.breakers()] == ["closed"] * 3
    finally:
        limits.close()


def test_one_master_is_unavailable_alone(cluster: ClusterServers) -> None:
    """P9, D3: what a dead master owned is not decided, at once after three failures; the others
    decide on; when it is back, so does it."""
    limits = Limits(cluster.url(*cluster.nodes))
    owned = dict.fromkeys(range(3), ORGANIZATIONS[:])
    for index in owned:
        owned[index] = [name for name in ORGANIZATIONS if cluster.owner_index(name) == index]
    victim = cluster.nodes[1]
    try:
        limits.open_budgets(*ORGANIZATIONS)
        victim.kill()
        for _ in range(3):
            with pytest.raises(Unavailable):
                limits.decide(owned[1][0])
        with pytest.raises(Unavailable, match="breaker_open"):
            limits.decide(owned[1][-1])
        assert not limits.redis.is_unavailable
        for organization in owned[0] + owned[2]:
            wait_until(does(lambda name=organization: limits.decide(name)), "the others decide")  # type: ignore[misc]
        victim.start()

        def decided_again() -> None:
            limits.open_budgets(*owned[1])  # its data is gone
            limits.decide(owned[1][0])

        wait_until(does(decided_again), "it decides again")
    finally:
        limits.close()
