"""What only the memory of a worker knows while Redis is emptied: settlements and reservations."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library

from router.store.failures import StoreError
from router.store.record_store import RecordStore
from tests.fakes.redis_server import BINARY, RedisServer, running
from tests.servers.ledger import Ledger
from tests.servers.limited_routers import (
    LimitedRouters,
    at_once,
    body,
    budget,
    key,
    limited_routers,
    post,
)
from tests.servers.router_process import RouterProcess, wait_until
from tests.servers.scrapes import gauge
from tests.servers.test_store_postgres import Server, server

__all__ = ["server"]

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

CALLS = 6
SETTINGS: dict[str, Any] = {"ROUTER_REDIS_TIMEOUT": "1s", "ROUTER_LEASE": "24h"}
WITHIN_S = 30.0


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path / "redis", unix=True) as started:
        yield started


def stored(url: str) -> int:
    """How many records the store has acknowledged."""
    try:
        with RecordStore(url, read_only=True) as store:
            return store.count_usage()
    except StoreError:  # it is not there yet
        return 0


def settle_in_vain(limited: LimitedRouters, redis: RedisServer, url: str) -> None:
    """Calls of the first router end while Redis stands still; then their records are stored."""
    limited.backend.set(latency_ms=1_500, tokens_output=3)
    calls = [lambda: post(limited.router.port, "late", body()) for _ in range(CALLS)]
    backend = limited.backend

    def pause() -> Any:
        wait_until(lambda: len(backend.requests) == CALLS, WITHIN_S, "all run")
        redis.pause()

    found = at_once([*calls, pause])
    assert [answer.status for answer in found if answer is not None] == [200] * CALLS
    limited.backend.set(latency_ms=0)
    wait_until(lambda: stored(url) == CALLS, WITHIN_S, "the records are stored")


@contextmanager
def standing_still(router: RouterProcess) -> Iterator[None]:
    """Its workers and its agent do nothing meanwhile."""
    agent = Ledger(router.data_dir).agent_pid()
    assert agent is not None
    pids = [agent, *router.worker_pids()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def start(router: RouterProcess, fields: dict[str, Any]) -> threading.Thread:
    """A call in a thread of its own."""
    thread = threading.Thread(target=lambda: post(router.port, "late", fields), daemon=True)
    thread.start()
    return thread


def reserved(limited: LimitedRouters) -> int:
    """What running calls hold, also while the counter itself is lost."""
    with closing(redis_library.Redis(unix_socket_path=limited.redis_url[7:], protocol=2)) as client:
        names = [*client.scan_iter(match="*:leases")]
        return sum(client.zcard(name) for name in names)


def is_done(router: RouterProcess) -> bool:
    """Whether no worker has anything in its memory that is to be settled."""
    return gauge(router.metrics(), "api_router_limits_deferred") == 0


def empty(redis: RedisServer) -> None:
    redis.kill()
    redis.start()


def test_what_waits_in_memory_is_not_booked_beside_its_record(
    tmp_path: Path, redis: RedisServer
) -> None:
    """P6, P7: a rebuild finds the records in the store, and the workers settle afterwards. Each of
    the six calls used to be booked twice."""
    keys = [key("late", budgets=[budget("calls", "requests", 100)])]
    with limited_routers(tmp_path, redis.url, keys, **SETTINGS) as limited:
        settle_in_vain(limited, redis, f"sqlite:///{limited.router.data_dir / 'records.db'}")
        with standing_still(limited.router):
            empty(redis)
            rebuilt = limited.router.ctl("budgets", "rebuild", "--only-lost")
            assert rebuilt.returncode == 0, rebuilt.stderr
            assert limited.state("late").settled == CALLS
        wait_until(lambda: limited.call("late").status == 200, WITHIN_S, "calls are served")
        wait_until(lambda: is_done(limited.router), WITHIN_S, "all is settled")
        state = limited.state("late")
        assert (state.settled, state.reserved) == (limited.backend_calls(), 0)


def test_what_waits_in_the_memory_of_another_host_is_not_booked_beside_its_record(
    tmp_path: Path, redis: RedisServer, server: Server
) -> None:
    """P6, P7: two hosts share a Redis and a PostgreSQL; one has the settlements, the other one
    rebuilds."""
    server.empty()
    keys = [key("late", budgets=[budget("calls", "requests", 100)])]
    settings = {**SETTINGS, "ROUTER_RECORD_STORE": server.url()}
    with limited_routers(tmp_path, redis.url, keys, instances=2, **settings) as limited:
        settle_in_vain(limited, redis, server.url())
        first, second = limited.routers
        with standing_still(first):
            empty(redis)
            wait_until(
                lambda: post(second.port, "late", body()).status == 200, WITHIN_S, "it is served"
            )
            assert limited.state("late").settled == CALLS + 1
        wait_until(lambda: is_done(first), WITHIN_S, "all is settled")
        state = limited.state("late")
        assert (state.settled, state.reserved) == (CALLS + 1, 0)


def test_what_another_host_has_in_flight_is_not_admitted_again(
    tmp_path: Path, redis: RedisServer
) -> None:
    """P7: calls of one host hold all of a budget, Redis is emptied, and the other host is asked. It
    used to admit as many calls again until those of the first host had ended."""
    keys = [key("late", budgets=[budget("calls", "requests", CALLS)])]
    with limited_routers(tmp_path, redis.url, keys, instances=2, **SETTINGS) as limited:
        first, second = limited.routers
        limited.backend.set(latency_ms=8_000)
        running = [start(first, body()) for _ in range(CALLS)]
        wait_until(lambda: len(limited.backend.requests) == CALLS, WITHIN_S, "all run")
        empty(redis)
        wait_until(lambda: reserved(limited) == CALLS, 5.0, "the first host has said so")
        assert post(second.port, "late", body()).status == 402
        for thread in running:
            thread.join(WITHIN_S)
        wait_until(lambda: reserved(limited) == 0, WITHIN_S, "nothing is held")
        assert limited.state("late").settled == limited.backend_calls() == CALLS
