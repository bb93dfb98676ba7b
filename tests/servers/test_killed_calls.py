"""Whatever ends a worker, each call that a backend was sent has one record, and the budget has the
sum of the records, soon and without an operator.

A few calls in each stage, and 50 with ``ROUTER_TEST_PROOF=1``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library

from router.store.failures import StoreError
from tests.fakes.backend.scripts import silent
from tests.fakes.backend.server import FakeServer
from tests.fakes.redis_server import BINARY, RedisServer
from tests.servers.ledger import Ledger
from tests.servers.limited_routers import (
    MODEL,
    PATIENT,
    LimitedRouters,
    budget,
    key,
    limited_routers,
    post,
    secret,
)
from tests.servers.router_process import wait_until

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))
IN_EACH_STAGE = 50 if PROOF else 8
WITHIN_S = 20.0
"""The promise is 5 s; the machine that runs this may be busy."""
GUESSED_INPUT = 5  # "Tell me of the sea" at four characters a token
LONG = {"ROUTER_LEASE": "24h"}
"""Nobody waits for a lease."""


def keys() -> list[dict[str, Any]]:
    return [key("killed", budgets=[budget("calls", "tokens", 10**9)])]


def leave_open(limited: LimitedRouters, fields: dict[str, Any]) -> threading.Thread:
    """A call in a thread of its own, whose connection may break."""
    thread = threading.Thread(
        target=lambda: post(limited.router.port, "killed", fields, path="/v1/chat/completions"),
        daemon=True,
    )
    thread.start()
    return thread


def chat(**changes: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "Tell me of the sea"}
    return {"model": MODEL, "messages": [message], **changes}


def connecting(limited: LimitedRouters) -> list[socket.socket]:
    """Connections on which a call has begun whose body never comes."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"X-API-Key: {secret('killed')}\r\nContent-Length: 500\r\n\r\n{{"
    )
    opened = []
    for _ in range(IN_EACH_STAGE):
        opened.append(socket.create_connection(("127.0.0.1", limited.router.port)))
        opened[-1].sendall(head.encode())
    return opened


def kill_workers(limited: LimitedRouters) -> None:
    """Both workers, at once and without a warning."""
    for pid in limited.router.worker_pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def recorded(limited: LimitedRouters) -> dict[str, dict[str, Any]]:
    """The usage records in the store by the id of their request; each is there once."""
    try:
        records = Ledger(limited.router.data_dir).usage()
    except StoreError:  # it is not there yet
        return {}
    counts = Counter(record["request_id"] for record in records)
    assert [one for one, count in counts.items() if count > 1] == []
    return {record["request_id"]: record for record in records}


def sent(limited: LimitedRouters) -> set[str]:
    """The ids of all calls that the backend got."""
    found = {request.header("x-request-id") for request in limited.backend.requests}
    return {request_id for request_id in found if request_id is not None}


def await_agreement(limited: LimitedRouters) -> float:
    """Until every call that was sent has its record, the budget is their sum, and nothing is
    reserved; how long that took."""

    def agree() -> bool:
        records, state = recorded(limited), limited.state("killed")
        tokens = sum(one["tokens_input"] + one["tokens_output"] for one in records.values())
        is_whole = sent(limited) <= records.keys()
        return is_whole and (state.settled, state.reserved) == (tokens, 0)

    began_s = time.monotonic()
    try:
        wait_until(agree, WITHIN_S, "ledger = records")
    except AssertionError as error:
        records, state = recorded(limited), limited.state("killed")
        missing = len(sent(limited) - records.keys())
        outcomes = Counter(record["outcome"] for record in records.values())
        raise AssertionError(f"{error}: {missing=} {outcomes} {state}") from None
    return time.monotonic() - began_s


def test_calls_of_killed_workers_are_recorded_and_charged_once(
    tmp_path: Path, redis: RedisServer
) -> None:
    """Must show 5, P6, P7: they used to leave no record, and their leases had to expire."""
    with limited_routers(tmp_path, redis.url, keys(), **PATIENT, **LONG) as limited:
        backend = limited.backend
        begun = connecting(limited)
        backend.set(tokens_output=400, token_interval_ms=200)
        streams = [leave_open(limited, chat(stream=True)) for _ in range(IN_EACH_STAGE)]
        wait_until(lambda: len(backend.requests) == IN_EACH_STAGE, 20.0, "all stream")
        backend.set(latency_ms=60_000)
        waiting = [leave_open(limited, chat()) for _ in range(IN_EACH_STAGE)]
        wait_until(lambda: len(backend.requests) == 2 * IN_EACH_STAGE, 20.0, "all wait")
        backend.set(latency_ms=50, token_interval_ms=0, tokens_output=3)
        ending = [leave_open(limited, chat()) for _ in range(IN_EACH_STAGE)]
        # Some of these end at the very moment.
        wait_until(lambda: len(backend.requests) == 3 * IN_EACH_STAGE, 20.0, "all are sent")
        kill_workers(limited)
        await_agreement(limited)
        for thread in (*streams, *waiting, *ending):
            thread.join(10)
        for connection in begun:
            connection.close()
        records = recorded(limited)
        interrupted = [one for one in records.values() if one["outcome"] == "interrupted"]
        assert len(interrupted) >= 2 * IN_EACH_STAGE
        for record in interrupted:
            assert (record["usage_source"], record["status"]) == ("estimated", 0)
            assert (record["tokens_input"], record["tokens_output"]) == (GUESSED_INPUT, 0)
        # A second agent finds nothing to add.
        agent = Ledger(limited.router.data_dir).agent_pid()
        assert agent is not None
        os.kill(agent, signal.SIGKILL)
        wait_until(lambda: limited.call("killed").status == 200, 20.0, "another worker serves")
        assert await_agreement(limited) < WITHIN_S
        events = Counter(
            event["request_id"]
            for event in Ledger(limited.router.data_dir).audit()
            if event["reason"] == "INTERRUPTED"
        )
        assert events == Counter(record["request_id"] for record in interrupted)
        verdict = Ledger(limited.router.data_dir).verdict()
        assert verdict.ok, verdict


def test_calls_that_are_killed_before_they_are_sent_give_back_what_they_reserved(
    tmp_path: Path, redis: RedisServer
) -> None:
    """Must show 5, P6: they used to hold their budget until their leases ended."""
    with (
        FakeServer(silent) as deaf,  # a handshake that never ends
        limited_routers(
            tmp_path,
            redis.url,
            [key("killed", budgets=[budget("calls", "requests", 10**6)])],
            timeouts={"connect_s": 60, "first_byte_s": 60, "total_s": 120},
            backend_url=f"https://127.0.0.1:{deaf.port}/v1",
            **PATIENT,
            **LONG,
        ) as limited,
    ):
        calls = [leave_open(limited, chat()) for _ in range(IN_EACH_STAGE)]
        wait_until(lambda: limited.state("killed").reserved == IN_EACH_STAGE, 20.0, "all wait")
        kill_workers(limited)
        wait_until(lambda: limited.state("killed").reserved == 0, WITHIN_S, "nothing is reserved")
        assert limited.state("killed").settled == 0
        for thread in calls:
            thread.join(10)
        # Those that live now have nothing to give back.
        others = [leave_open(limited, chat()) for _ in range(IN_EACH_STAGE)]
        wait_until(lambda: limited.state("killed").reserved == IN_EACH_STAGE, 20.0, "all wait")
        time.sleep(3.0)
        assert limited.state("killed").reserved == IN_EACH_STAGE
        assert recorded(limited) == {}
        kill_workers(limited)
        for thread in others:
            thread.join(10)
        wait_until(lambda: limited.state("killed").reserved == 0, WITHIN_S, "nothing is reserved")


def test_what_an_outage_and_a_sigterm_left_open_is_settled_by_the_next_agent(
    tmp_path: Path, redis: RedisServer
) -> None:
    """Must show 5, P6: what a worker could not settle used to end with its memory."""
    settings = {"ROUTER_REDIS_TIMEOUT": "500ms", "ROUTER_DRAIN_TIMEOUT": "8", **LONG}
    with limited_routers(tmp_path, redis.url, keys(), **settings) as limited:
        limited.backend.set(latency_ms=1_500, tokens_output=3)
        calls = [leave_open(limited, chat()) for _ in range(IN_EACH_STAGE)]
        wait_until(lambda: len(limited.backend.requests) == IN_EACH_STAGE, 20.0, "all run")
        redis.pause()
        for thread in calls:
            thread.join(20)
        assert limited.router.stop(60.0) == 0
        redis.resume()
        assert limited.state("killed").reserved > 0
        limited.router.start()
        await_agreement(limited)
        assert len(recorded(limited)) == IN_EACH_STAGE
        assert {one["outcome"] for one in recorded(limited).values()} == {"completed"}


def test_an_emptied_redis_does_not_admit_the_calls_in_flight_again(
    tmp_path: Path, redis: RedisServer
) -> None:
    """Must show 5, P7: FLUSHALL with calls in flight that hold all of a budget."""
    count = 40
    limited_keys = [key("killed", budgets=[budget("calls", "requests", count)])]
    with limited_routers(tmp_path, redis.url, limited_keys, **PATIENT, **LONG) as limited:
        limited.backend.set(latency_ms=6_000)
        calls = [leave_open(limited, chat()) for _ in range(count)]
        wait_until(lambda: len(limited.backend.requests) == count, 20.0, "all run")
        with redis_client(redis) as client:
            client.flushall()
        answer = post(limited.router.port, "killed", chat(), path="/v1/chat/completions")
        assert answer.status == 402, answer.body
        state = limited.state("killed")
        assert state.settled + state.reserved == count
        for thread in calls:
            thread.join(30)
        wait_until(lambda: limited.state("killed").reserved == 0, 10.0, "nothing is held")
        assert limited.state("killed").settled == count
        assert limited.backend_calls() == count


@contextlib.contextmanager
def redis_client(server: RedisServer) -> Iterator[redis_library.Redis]:
    client = redis_library.Redis(unix_socket_path=server.path, protocol=2)
    try:
        yield client
    finally:
        client.close()


def test_clients_that_leave_again_and_again_use_up_their_budget(
    tmp_path: Path, redis: RedisServer
) -> None:
    """Must show 4: each call that hangs up after 300 ms moves the budget by its input; then the
    budget refuses. Buffered calls used to be free."""
    count = 100 if PROOF else 6
    prompt = "sea " * 1_000  # 1 000 tokens
    each = 1_000
    careful = {"reservation": {"mode": "floor"}}
    limited_keys = [
        key(name, budgets=[budget("tokens", "tokens", count * each, **careful)])
        for name in ("whole", "streamed")
    ]
    with limited_routers(tmp_path, redis.url, limited_keys, **PATIENT) as limited:
        limited.backend.set(latency_ms=60_000)
        for name in ("whole", "streamed"):
            fields = chat(messages=[{"role": "user", "content": prompt}], stream=name != "whole")
            for number in range(1, count + 1):
                _leave_after(limited.router.port, name, fields, 0.3)
                wait_until(
                    lambda name=name, number=number: (  # type: ignore[misc]
                        limited.state(name).settled == number * each
                    ),
                    10.0,
                    f"call {number} is charged",
                )
            answer = post(limited.router.port, name, fields, path="/v1/chat/completions")
            assert answer.status == 402


def _leave_after(port: int, key_id: str, fields: dict[str, Any], seconds: float) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Content-Type": "application/json", "X-API-Key": secret(key_id)}
    connection.request("POST", "/v1/chat/completions", json.dumps(fields).encode(), headers)
    time.sleep(seconds)
    connection.close()
