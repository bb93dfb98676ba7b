"""P6, P7: budgets are exact however many call at once, and nothing stays held.

200 callers over 4 workers of each of 2 instances, and 1 000 with ``ROUTER_TEST_PROOF=1``.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.redis_server import BINARY, RedisServer, running
from tests.servers.limited_routers import (
    CAREFUL,
    MODEL,
    NANOS_A_TOKEN,
    PATIENT,
    LimitedRouters,
    at_once,
    body,
    budget,
    budget_service,
    key,
    limited_routers,
    post,
    secret,
    statuses,
)
from tests.servers.router_process import wait_until

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))
CALLERS = (200, 1000) if PROOF else (200,)
WORKERS = 4
FITTING = 37
TOKENS = 10
COST = TOKENS * NANOS_A_TOKEN
SAMPLE_S = 0.005
FREED_S = 1.0
IMPATIENT = {"connect_s": 0.5, "first_byte_s": 0.6, "idle_s": 0.6, "total_s": 1.5}
LEASE_S = 4.0
IN_FLIGHT = 50


def usd(nanos: int) -> str:
    return f"{nanos / 1e9:.9f}"


class Watcher:
    """Reads a key's counters every 5 ms and keeps the greatest of what it saw."""

    def __init__(self, limited: LimitedRouters, key: str) -> None:
        self.samples: list[tuple[int, int]] = []
        self._limited, self._key = limited, key
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        ledger = self._limited.ledger()
        [first] = self._limited.states(self._key, ledger)
        while not self._stop.wait(SAMPLE_S):
            [state] = ledger.read("acme", [first.window])
            self.samples.append((state.settled, state.reserved))


@pytest.mark.parametrize("callers", CALLERS)
@pytest.mark.parametrize("unit", ["requests", "usd"])
def test_exactly_as_many_as_fit_are_admitted(
    tmp_path: Path, redis: RedisServer, unit: str, callers: int
) -> None:
    """Must show 3, B1: of all that call at once k pass and the others get 402, at every sample
    settled and reserved stay within the limit, and at the end all of it is settled."""
    check_exactness(tmp_path, redis, unit, callers)


def test_a_budget_service_is_as_exact(tmp_path: Path, redis: RedisServer) -> None:
    """Must show 9: the same calls, the same answers, where the budget is held behind HTTP."""
    with budget_service(tmp_path / "service", redis.url) as settings:
        check_exactness(tmp_path, redis, "requests", 200, **settings)


def check_exactness(
    directory: Path, redis: RedisServer, unit: str, callers: int, **settings: Any
) -> None:
    limit: Any = FITTING if unit == "requests" else usd(FITTING * COST)
    held: dict[str, Any] = {} if unit == "requests" else CAREFUL
    keys = [key("exact", budgets=[budget("b", unit, limit, **held)])]
    settings = {**PATIENT, **settings}
    with limited_routers(
        directory, redis.url, keys, instances=2, workers=WORKERS, **settings
    ) as limited:
        limited.backend.set(latency_ms=50, tokens_output=TOKENS)
        ports = [router.port for router in limited.routers]
        fields = [body(parameters={"max_tokens": TOKENS}) for _ in range(callers)]
        with Watcher(limited, "exact") as watcher:
            answers = at_once(
                [
                    lambda number=number: post(ports[number % 2], "exact", fields[number])  # type: ignore[misc]
                    for number in range(callers)
                ]
            )
        assert statuses(answers) == {200: FITTING, 402: callers - FITTING}
        assert limited.backend_calls() == FITTING
        whole = FITTING if unit == "requests" else FITTING * COST
        assert watcher.samples
        assert max(settled + reserved for settled, reserved in watcher.samples) <= whole
        wait_until(lambda: limited.state("exact").reserved == 0, FREED_S, "nothing is held")
        assert limited.state("exact").settled == whole


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LimitedRouters]:
    directory = tmp_path_factory.mktemp("endings")
    keys = [key("ends", budgets=[budget("calls", "requests", 1_000_000)])]
    with (
        running(directory / "redis", unix=True) as server,
        limited_routers(directory, server.url, keys, timeouts=IMPATIENT, **PATIENT) as limited,
    ):
        yield limited


@pytest.mark.parametrize(
    "behaviour",
    [
        {},
        {"error_status": 500},
        {"error_status": 400},
        {"error_status": 429},
        {"failure": "close"},
        {"failure": "reset"},
        {"failure": "black_hole"},
        {"failure": "tar_pit"},
        {"failure": "truncate_body"},
        {"failure": "garbage"},
        {"failure": "bad_json"},
        {"failure": "no_usage"},
        {"failure": "slow_body"},
        {"failure": "cut_stream"},
        {"latency_ms": 3000},
    ],
    ids=lambda behaviour: "-".join(map(str, behaviour.values())) or "success",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_nothing_is_held_after_a_call(
    endings: LimitedRouters, behaviour: dict[str, Any], stream: bool
) -> None:
    """B5, P7: whatever becomes of a call, within a second of its end nothing is reserved."""
    endings.backend.reset()
    endings.backend.set(**behaviour)
    fields = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": stream,
    }
    post(endings.router.port, "ends", fields, path="/v1/chat/completions")
    wait_until(lambda: endings.state("ends").reserved == 0, FREED_S, "nothing is held")


@pytest.mark.parametrize("when", ["before the first byte", "in the middle"])
def test_nothing_is_held_after_a_client_left(endings: LimitedRouters, when: str) -> None:
    """B5: the client's connection is reset while its call runs."""
    endings.backend.reset()
    if when == "in the middle":
        endings.backend.set(tokens_output=200, token_interval_ms=50)
    else:
        endings.backend.set(latency_ms=500)
    fields = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": when == "in the middle",
    }
    connection = http.client.HTTPConnection("127.0.0.1", endings.router.port, timeout=5)
    headers = {"Content-Type": "application/json", "X-API-Key": secret("ends")}
    connection.request("POST", "/v1/chat/completions", json.dumps(fields).encode(), headers)
    wait_until(lambda: endings.state("ends").reserved == 1, 5.0, "the call runs")
    if when == "in the middle":
        assert connection.getresponse().read(10)
    assert connection.sock is not None
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    # A client that leaves before the head is noticed when the answer is written.
    patience_s = FREED_S + (0.5 if when != "in the middle" else 0)
    wait_until(lambda: endings.state("ends").reserved == 0, patience_s, "nothing is held")


def test_nothing_is_held_after_a_drain(tmp_path: Path, redis: RedisServer) -> None:
    """B5: a master that is told to end lets its calls end, and settles them."""
    keys = [key("ends", budgets=[budget("calls", "requests", 100)])]
    with limited_routers(tmp_path, redis.url, keys, **PATIENT) as limited:
        limited.backend.set(latency_ms=1000)
        answers: list[Any] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(post(limited.router.port, "ends", body()))
            )
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: limited.state("ends").reserved == 10, 10.0, "ten calls run")
        assert limited.router.stop() == 0
        for thread in threads:
            thread.join()
        assert statuses(answers) == {200: 10}
        state = limited.state("ends")
        assert (state.settled, state.reserved) == (10, 0)


def test_leases_of_killed_workers_end_by_themselves(tmp_path: Path, redis: RedisServer) -> None:
    """Must show 3, B4, P7: without an agent, after kill -9 with 50 calls in flight they are held
    until their lease ends and no longer, whatever else the key does."""
    keys = [key("killed", budgets=[budget("calls", "requests", 1000)])]
    with limited_routers(
        tmp_path,
        redis.url,
        keys,
        workers=1,
        ROUTER_LEASE=f"{LEASE_S:g}s",
        ROUTER_AGENT="external",
        **PATIENT,
    ) as limited:
        limited.backend.set(latency_ms=60_000)
        threads = [
            threading.Thread(target=lambda: post(limited.router.port, "killed", body()))
            for _ in range(IN_FLIGHT)
        ]
        began_s = time.monotonic()
        for thread in threads:
            thread.start()
        wait_until(lambda: limited.state("killed").reserved == IN_FLIGHT, LEASE_S, "all run")
        last_s = time.monotonic()
        [worker] = limited.router.worker_pids()
        os.kill(worker, signal.SIGKILL)
        limited.backend.set(latency_ms=0)
        for thread in threads:
            thread.join()
        # Until the first lease ends nothing is given back.
        while time.monotonic() < began_s + LEASE_S - 0.2:
            assert limited.state("killed").reserved == IN_FLIGHT
            time.sleep(0.05)
        ended_s = last_s + LEASE_S + 1
        wait_until(
            lambda: limited.state("killed").reserved == 0,
            ended_s - time.monotonic(),
            "nothing is held at lease + 1 s",
        )
        assert limited.state("killed").settled == 0
        wait_until(lambda: limited.call("killed").status == 200, 20.0, "another worker serves")
        wait_until(lambda: limited.state("killed").reserved == 0, FREED_S, "it is settled")
        assert limited.state("killed").settled == 1
