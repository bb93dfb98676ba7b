"""A caller that sends one call after the other is never refused for what its last call reserved."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.redis_server import BINARY, RedisServer
from tests.servers.limited_routers import (
    CAREFUL,
    MODEL,
    NANOS_A_TOKEN,
    PATIENT,
    LimitedRouters,
    at_once,
    body,
    budget,
    key,
    limited_routers,
    post,
    secret,
    statuses,
)

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

CALLS = 1000
RESERVED_TOKENS = 2000
# Room for what 1 000 calls of one token use and for one reservation, at no time for two: 1 000 +
# 2 000 <= 3 500 < 2 * 2 000.
LIMIT_USD = f"{3500 * NANOS_A_TOKEN / 1e9:.9f}"
ONE_AT_ONCE = {"requests_per_second": None, "concurrent": 1}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Any]:
    """Two routers of two workers each. No call waits for others to settle: the order alone has to
    do it."""
    keys = [
        key(
            f"caller-{number}",
            organization=f"org-{number}",
            budgets=[budget("b", "usd", LIMIT_USD, **CAREFUL)],
            rate_limit=ONE_AT_ONCE,
        )
        for number in range(4)
    ]
    settings = {**PATIENT, "ROUTER_BUDGET_WAIT": "0"}
    directory: Path = tmp_path_factory.mktemp("routers")
    with limited_routers(directory, shared_redis.url, keys, instances=2, **settings) as routers:
        routers.backend.set(tokens_output=1)
        yield routers


def connect(limited: LimitedRouters, number: int) -> http.client.HTTPConnection:
    port = limited.routers[number % len(limited.routers)].port
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def call(connection: http.client.HTTPConnection, caller: str, stream: bool) -> int:
    headers = {"Content-Type": "application/json", "X-API-Key": secret(caller)}
    path, fields = "/v1/inference", body(parameters={"max_tokens": RESERVED_TOKENS})
    if stream:
        message = {"role": "user", "content": "Tell me of the sea"}
        path = "/v1/chat/completions"
        fields = {"model": MODEL, "messages": [message], "max_tokens": RESERVED_TOKENS}
        fields["stream"] = True
    connection.request("POST", path, json.dumps(fields).encode(), headers)
    reply = connection.getresponse()
    reply.read()
    return reply.status


@pytest.mark.parametrize(
    ("caller", "connections", "stream"),
    [
        ("caller-0", 1, False),
        ("caller-1", 2, False),
        ("caller-2", 2, True),
    ],
)
def test_calls_in_a_row_that_fit_are_served(
    limited: LimitedRouters, caller: str, connections: int, stream: bool
) -> None:
    """0 of 1 000 are refused, on one connection and in turns over two to different routers; 3 to 8
    of 50 used to get 402, and those with one slot 429."""
    opened = [connect(limited, number) for number in range(connections)]
    answers = Counter(
        call(connection, caller, stream) for connection in islice(cycle(opened), CALLS)
    )
    assert answers == {200: CALLS}
    state = limited.state(caller)
    assert (state.settled, state.reserved) == (CALLS * NANOS_A_TOKEN, 0)
    for connection in opened:
        connection.close()


def test_a_call_waits_for_one_of_another_router(tmp_path: Path, shared_redis: RedisServer) -> None:
    """Both fit one after the other, and not together: the second used to get 402 until the end of
    the period."""
    keys = [key("pair", organization="waiting", budgets=[budget("b", "usd", LIMIT_USD, **CAREFUL)])]
    settings = {**PATIENT, "ROUTER_BUDGET_WAIT": "5s"}
    with limited_routers(
        tmp_path, shared_redis.url, keys, instances=2, workers=1, **settings
    ) as limited:
        limited.backend.set(tokens_output=1, latency_ms=400)
        fields = {"max_tokens": RESERVED_TOKENS}
        calls = [
            partial(post, router.port, "pair", body(parameters=fields))
            for router in limited.routers
        ]
        answers = at_once(calls)
        assert statuses(answers) == {200: 2}
        assert max(answer.took_s for answer in answers) >= 0.8, "one has waited for the other"
        state = limited.state("pair")
        assert (state.settled, state.reserved) == (2 * NANOS_A_TOKEN, 0)


def test_calls_in_a_row_on_new_connections_are_served(limited: LimitedRouters) -> None:
    """Each may come to another worker of either router."""
    answers: Counter[int] = Counter()
    for number in range(CALLS // 2):
        connection = connect(limited, number)
        answers[call(connection, "caller-3", False)] += 1
        connection.close()
    assert answers == {200: CALLS // 2}
