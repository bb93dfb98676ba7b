"""Charges that the budget service does not take: whatever dies, they are booked once."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from router.limits.budgets.windows import WindowState
from tests.fakes.redis_server import BINARY, RedisServer
from tests.servers.limited_routers import (
    NANOS_A_TOKEN,
    PATIENT,
    LimitedRouters,
    body,
    budget,
    budget_service,
    key,
    limited_routers,
)
from tests.servers.router_process import children, run_routerctl, wait_until

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

TOKENS = 5
COST = TOKENS * NANOS_A_TOKEN
CALLS = 6
TAKEN_S = 30.0


@contextmanager
def router_and_service(
    directory: Path, redis: RedisServer, *, unit: str = "usd"
) -> Iterator[tuple[LimitedRouters, list[int]]]:
    """A router that lets calls pass while its service is away, and the processes of the service."""
    ours = set(children(os.getpid()))
    with budget_service(directory / "service", redis.url) as endpoint:
        [master] = set(children(os.getpid())) - ours
        settings: dict[str, Any] = {
            **PATIENT,
            **endpoint,
            "BUDGET_SERVICE_TIMEOUT": "1s",
            "ROUTER_BUDGET_FALLBACK": "open",
        }
        keys = [key("kept", budgets=[budget("b", unit, "1" if unit == "usd" else 10**6)])]
        with limited_routers(directory, redis.url, keys, **settings) as limited:
            limited.backend.set(tokens_output=TOKENS)
            yield limited, [master, *children(master)]


def stop(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def waiting(limited: LimitedRouters) -> int:
    lines = limited.router.metrics().splitlines()
    return sum(
        int(float(line.split()[-1]))
        for line in lines
        if line.startswith("api_router_budget_charges_waiting ")
    )


def written(limited: LimitedRouters) -> int:
    """How many charges were ever put on disk."""
    files = (limited.router.data_dir / "budget-service").rglob("*.charges")
    return sum(file.read_bytes().count(b'{"reservation"') for file in files)


def settles(limited: LimitedRouters, calls: int) -> None:
    """The ledger comes to what so many calls cost, and no higher."""
    settled = lambda: limited.state("kept").settled  # noqa: E731
    wait_until(lambda: settled() >= calls * COST, TAKEN_S, "all is booked")
    assert settled() == calls * COST


def call(limited: LimitedRouters) -> None:
    assert limited.call("kept", body(parameters={"max_tokens": TOKENS})).status == 200


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_what_a_stopped_service_did_not_take_is_booked_once(
    tmp_path: Path, redis: RedisServer, end: str
) -> None:
    """The service hangs, calls pass, the router is killed or ended, and both go on: 6 calls of 5
    tokens cost 300 000 nano-USD, and one more, that was settled before, 50 000."""
    with router_and_service(tmp_path, redis) as (limited, service):
        call(limited)
        settles(limited, 1)
        stop(service, signal.SIGSTOP)
        for _ in range(CALLS):
            call(limited)
        wait_until(lambda: waiting(limited) == CALLS, TAKEN_S, "the charges are counted")
        router = limited.router
        if end == "kill":
            router.kill()
        else:
            assert router.stop() == 0
        stop(service, signal.SIGCONT)
        router.start()
        settles(limited, CALLS + 1)
        wait_until(lambda: waiting(limited) == 0, TAKEN_S, "nothing waits")
        call(limited)
        settles(limited, CALLS + 2)
        assert router.stop() == 0
    left = [*(router.data_dir / "budget-service").rglob("*.charges")]
    assert left == []


def test_a_charge_that_was_written_is_not_lost_with_its_worker(
    tmp_path: Path, redis: RedisServer
) -> None:
    """kill -9 of all workers while they wait for the service's answer to a settlement."""
    with router_and_service(tmp_path, redis) as (limited, service):
        call(limited)
        limited.backend.set(tokens_output=TOKENS, latency_ms=1000)

        def lose() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                call(limited)

        caller = threading.Thread(target=lose)
        caller.start()
        wait_until(lambda: limited.backend_calls() == 2, TAKEN_S, "the call runs")
        stop(service, signal.SIGSTOP)
        wait_until(lambda: written(limited) == 2, TAKEN_S, "the charge is written")
        for pid in limited.router.worker_pids():
            os.kill(pid, signal.SIGKILL)
        caller.join(10)
        stop(service, signal.SIGCONT)
        settles(limited, 2)
        wait_until(lambda: limited.state("kept").reserved == 0, TAKEN_S, "nothing is held")


def test_a_call_that_is_killed_while_it_runs_is_charged_at_the_service(
    tmp_path: Path, redis: RedisServer
) -> None:
    """kill -9 of all workers: its prompt of 18 characters counts as 5 tokens, once, and nothing is
    held, long before its lease would end."""
    with router_and_service(tmp_path, redis, unit="tokens") as (limited, _):
        limited.backend.set(tokens_output=TOKENS, latency_ms=60_000)

        def lose() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                limited.call("kept", body(parameters={"max_tokens": TOKENS}))

        caller = threading.Thread(target=lose)
        caller.start()
        wait_until(lambda: limited.backend_calls() == 1, TAKEN_S, "the call runs")
        assert limited.state("kept").reserved > 0
        for pid in limited.router.worker_pids():
            os.kill(pid, signal.SIGKILL)
        caller.join(10)
        wait_until(lambda: limited.state("kept").settled > 0, 2 * TAKEN_S, "it is booked")
        state = limited.state("kept")
        assert (state.settled, state.reserved) == (5, 0)


@pytest.mark.parametrize("is_answered", [True, False], ids=["reserved", "unanswered"])
def test_a_killed_call_is_charged_in_windows_that_only_the_service_knows(
    tmp_path: Path, redis: RedisServer, is_answered: bool
) -> None:
    """The router has no budgets, and may never have learned that the service had reserved, which
    stood still and reserved later. That lease used to be held until its end, for nothing."""
    with router_and_service(tmp_path, redis, unit="tokens") as (limited, service):
        path = limited.router.directory / "document.json"
        of_service = {"ROUTER_DATA_DIR": str(tmp_path / "service"), "ROUTER_DEMO": "1"}
        applied = run_routerctl("config", "apply", str(path), environment=of_service, cwd=tmp_path)
        assert applied.returncode == 0, applied.stderr
        document = json.loads(path.read_text())
        seen = limited.ledger()
        [spec] = [state.window for state in limited.states("kept", seen)]
        del document["keys"][0]["budgets"]
        assert limited.router.apply(document).returncode == 0

        def state() -> WindowState:
            [found] = seen.read("acme", [spec])
            return found

        limited.backend.set(tokens_output=TOKENS)
        call(limited)
        wait_until(lambda: state().settled > 0, TAKEN_S, "the service counts")
        before = state().settled
        limited.backend.set(tokens_output=TOKENS, latency_ms=60_000)
        if not is_answered:
            stop(service, signal.SIGSTOP)

        def lose() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                call(limited)

        caller = threading.Thread(target=lose)
        caller.start()
        wait_until(lambda: limited.backend_calls() == 2, TAKEN_S, "the call runs")
        if not is_answered:
            stop(service, signal.SIGCONT)
        wait_until(lambda: state().reserved > 0, TAKEN_S, "the service has reserved")
        for pid in limited.router.worker_pids():
            os.kill(pid, signal.SIGKILL)
        caller.join(10)
        # 18 characters, 5 tokens.
        wait_until(lambda: state().settled == before + 5, 2 * TAKEN_S, "it is booked")
        assert state().reserved == 0
