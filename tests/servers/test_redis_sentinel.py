"""Limits over a real Redis Sentinel: discovery, planned and unplanned failover."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.redis_server import BINARY, RedisServer, free_port
from tests.fakes.redis_topologies import SentinelServer, command, wait_until
from tests.servers.topology_load import Limits, Load, does

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

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
        wait_until(
            lambda: (
                b"slave0:" in (state := command(master, "INFO", "replication"))
                and (not min_replicas or b"min_slaves_good_slaves:1" in state)
            ),
            "the master counts the replica",
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
        limits.redis.refresh()
        [durability] = limits.redis.durability()
        assert durability.may_lose_writes is (min_replicas == 0)
        limits.open_budgets("acme")
        limits.decide("acme")
        with Load(limits, [["acme"]] * 2) as load:
            time.sleep(0.5)
            command(sentinel, "SENTINEL", "FAILOVER", "mymaster")
            wait_until(
                lambda: limits.addresses() == {("127.0.0.1", replica.port)}, "the replica decides"
            )
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
