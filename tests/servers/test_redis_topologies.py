"""Limits over a real Redis Sentinel and a real Redis Cluster: discovery, failover, moved slots."""

from __future__ import annotations

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
RATE = BucketSpec("calls", (), 0.001, 1000)
SPEND = WindowSpec("spend", "usd", "total", 1_000_000)
ORGANIZATIONS = [f"org-{number}" for number in range(24)]


class Limits:
    """Rates and budgets of organizations, over one address."""

    def __init__(self, url: str) -> None:
        self.redis = RedisClient(parse_address(url), ConnectionOptions(timeout_s=TIMEOUT_S))
        self.rates = RateLimiter(self.redis)
        self.ledger = Ledger(self.redis)
        self._calls = 0

    def open_budgets(self, *organizations: str) -> None:
        for organization in organizations:
            LedgerMaintenance(self.redis).rebuild(organization, [SPEND], lambda _lost: 0)

    def decide(self, organization: str) -> None:
        """Admit one call; raises ``Unavailable``."""
        self._calls += 1
        assert self.rates.take(organization, [RATE]).allowed
        lease = f"lease-{self._calls}"
        outcome = self.ledger.reserve(organization, lease, [SPEND], Amounts(10, 0), ttl_ms=60_000)
        assert isinstance(outcome, Reservation)
        assert self.ledger.settle(outcome, Amounts(3, 0)).booked

    def settled(self, organization: str) -> int:
        [state] = self.ledger.read(organization, [SPEND])
        return state.settled

    def close(self) -> None:
        self.redis.close()


def does(work: Callable[[], None]) -> Callable[[], bool]:
    return lambda: work() is None


# --- Sentinel -------------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer, SentinelServer]]:
    """A master, its replica and a sentinel that knows both."""
    (tmp_path / "master").mkdir()
    (tmp_path / "replica").mkdir()
    master = RedisServer(tmp_path / "master")
    replica = RedisServer(tmp_path / "replica", "--replicaof", "127.0.0.1", str(master.port))
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


def test_a_failover_is_followed(
    watched: tuple[RedisServer, RedisServer, SentinelServer],
) -> None:
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


def test_a_slot_that_moves_is_followed(cluster: ClusterServers) -> None:
    """R5: while the slot of an organization goes to another master its rates are decided (ASK), its
    budgets admit nothing, which opens no breaker; afterwards (MOVED) all is as before."""
    organization = ORGANIZATIONS[0]
    slot = slot_of(tag(organization))
    source = cluster.nodes[cluster.owner_index(organization)]
    target = next(node for node in cluster.nodes if node is not source)
    source_id, target_id = (command(node, "CLUSTER", "MYID") for node in (source, target))
    limits = Limits(cluster.url(*cluster.nodes))
    try:
        limits.open_budgets(organization)
        limits.decide(organization)
        command(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        command(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        keys = command(source, "CLUSTER", "GETKEYSINSLOT", slot, 100)
        command(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for _ in range(5):
            assert limits.rates.take(organization, [RATE]).allowed
            with pytest.raises(Unavailable, match="script"):
                limits.decide(organization)
        assert not limits.redis.is_unavailable
        for node in (target, source):
            command(node, "CLUSTER", "SETSLOT", slot, "NODE", target_id)
        limits.decide(organization)
        assert limits.settled(organization) == 2 * 3
        assert command(source, "CLUSTER", "COUNTKEYSINSLOT", slot) == 0
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
