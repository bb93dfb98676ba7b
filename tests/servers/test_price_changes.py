"""A price that changes while calls run: each call has the price of the moment of its admission."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router.store.failures import StoreError
from tests.fakes.redis_server import BINARY, running
from tests.servers.ledger import Ledger
from tests.servers.limited_routers import (
    MODEL,
    PATIENT,
    Answer,
    LimitedRouters,
    budget,
    key,
    limited_routers,
    post,
)
from tests.servers.router_process import wait_until
from tests.servers.streaming_client import StreamingClient

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

TOKENS = 3
OLD_NANOS, NEW_NANOS = 10_000, 30_000
"""Of a token of output: 10 and 30 USD a million."""
OLD_COST, NEW_COST = 30_000, 90_000
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "the sea"}]}


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[LimitedRouters]:
    keys = [key("payer", budgets=[budget("spend", "usd", "1000000")])]
    with (
        running(tmp_path / "redis", unix=True) as redis,
        limited_routers(tmp_path, redis.url, keys, **PATIENT) as routers,
    ):
        yield routers


def change_price(limited: LimitedRouters) -> None:
    """Apply the same document with the new price."""
    path = limited.router.directory / "document.json"
    document = json.loads(path.read_text())
    document["models"][0]["prices"]["output_usd_per_million_tokens"] = str(NEW_NANOS // 1000)
    applied = limited.router.apply(document)
    assert applied.returncode == 0, applied.stderr


def costs(limited: LimitedRouters) -> list[int]:
    """What the records say, oldest first."""
    try:
        records = Ledger(limited.router.data_dir).usage()
    except StoreError:  # it is not there yet
        return []
    assert {record["tokens_output"] for record in records} == {TOKENS}
    return [record["cost_nanos"] for record in sorted(records, key=lambda one: one["timestamp"])]


def whole_call(limited: LimitedRouters) -> Callable[[], Answer]:
    """Begin a buffered call; what waits for its end."""
    answers: list[Answer] = []

    def call() -> None:
        answers.append(post(limited.router.port, "payer", CHAT, path="/v1/chat/completions"))

    thread = threading.Thread(target=call)
    thread.start()

    def end() -> Answer:
        thread.join(60)
        return answers[0]

    return end


def test_a_price_holds_for_calls_that_are_admitted_after_it(limited: LimitedRouters) -> None:
    """P22: three tokens at 10 USD a million and, since the change, at 30; in records and ledger."""
    backend = limited.backend
    backend.set(tokens_output=TOKENS, latency_ms=4_000)
    end_whole = whole_call(limited)
    wait_until(lambda: len(backend.requests) == 1, 20.0, "the buffered call runs")
    backend.set(latency_ms=0, token_interval_ms=1_500)
    headers = {"X-API-Key": "demo-payer"}
    fields = {**CHAT, "stream": True}
    with StreamingClient(limited.router.port, "/v1/chat/completions", fields, headers) as streamed:
        streamed.read_head()
        change_price(limited)
        assert limited.state("payer").settled == 0, "both calls still run"
        assert b"[DONE]" in streamed.read_rest()
    assert end_whole().status == 200
    assert limited.state("payer").settled == 2 * OLD_COST

    backend.set(token_interval_ms=0)
    assert whole_call(limited)().status == 200
    state = limited.state("payer")
    assert (state.settled, state.reserved) == (2 * OLD_COST + NEW_COST, 0)
    wait_until(lambda: len(costs(limited)) == 3, 20.0, "the records are stored")
    assert costs(limited) == [OLD_COST, OLD_COST, NEW_COST]


def test_a_killed_call_has_the_price_of_its_admission(limited: LimitedRouters) -> None:
    """P7, P22: the agent charges it after the change, by what was written when it was sent."""
    backend = limited.backend
    prices = {"input_usd_per_million_tokens": "10", "output_usd_per_million_tokens": "0"}
    path = limited.router.directory / "document.json"
    document = json.loads(path.read_text())
    document["models"][0]["prices"] = prices
    assert limited.router.apply(document).returncode == 0
    backend.set(tokens_output=TOKENS, latency_ms=60_000)
    end_whole = whole_call(limited)
    wait_until(lambda: len(backend.requests) == 1, 20.0, "the call runs")
    document["models"][0]["prices"] = {**prices, "input_usd_per_million_tokens": "30"}
    assert limited.router.apply(document).returncode == 0
    for pid in limited.router.worker_pids():
        os.kill(pid, signal.SIGKILL)
    assert end_whole().status == 0
    # "the sea" is 7 characters, 2 tokens at four characters each.
    wait_until(lambda: limited.state("payer").settled == 2 * OLD_NANOS, 20.0, "it is charged")
    assert limited.state("payer").reserved == 0
