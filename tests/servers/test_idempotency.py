"""P19: one call with one id is one backend call and one charge, however often it is sent."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.redis_server import BINARY, RedisServer
from tests.servers.limited_routers import (
    MODEL,
    PATIENT,
    Answer,
    LimitedRouters,
    at_once,
    body,
    budget,
    key,
    limited_routers,
    post,
    secret,
)
from tests.servers.router_process import wait_until

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

DUPLICATES = 100
LEASE_S = 4.0
CALLS = [budget("calls", "requests", 1_000_000)]
KEYS = [
    key("once", budgets=CALLS),
    key("again", budgets=CALLS),
    key("other", "rival", budgets=CALLS),
    key("free"),
]


@pytest.fixture(scope="module")
def routers(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> Iterator[LimitedRouters]:
    directory = tmp_path_factory.mktemp("routers")
    with limited_routers(directory, shared_redis.url, KEYS, instances=2, **PATIENT) as made:
        yield made


@pytest.fixture
def limited(routers: LimitedRouters) -> LimitedRouters:
    routers.backend.reset()
    return routers


def chat(limited: LimitedRouters, used: str, id: str, **fields: Any) -> Any:
    sent = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **fields}
    return limited.router.post(
        "/v1/chat/completions", sent, secret(used), **{"Idempotency-Key": id}
    )


def test_duplicates_at_once(limited: LimitedRouters) -> None:
    """Must show 6: of 100 at once over two instances one reaches a backend and is charged; the
    others hear 409, or get the reply of the first byte for byte."""
    limited.backend.set(latency_ms=300)
    fields = body()
    ports = [router.port for router in limited.routers]
    before = limited.state("once").settled
    answers: list[Answer] = at_once(
        [lambda n=n: post(ports[n % 2], "once", fields) for n in range(DUPLICATES)]  # type: ignore[misc]
    )
    answers += [post(port, "once", fields) for port in ports]
    assert limited.backend_calls() == 1
    first = [
        one for one in answers if one.status == 200 and "idempotency-replayed" not in one.headers
    ]
    replayed = [one for one in answers if one.headers.get("idempotency-replayed") == "true"]
    refused = [one for one in answers if one.status == 409]
    assert len(first) == 1
    assert len(first) + len(replayed) + len(refused) == len(answers)
    assert {one.body for one in replayed} == {first[0].body}
    assert {one.json["code"] for one in refused} <= {"IN_PROGRESS"}
    assert {one.headers["retry-after"] for one in refused} <= {"1"}
    assert replayed
    wait_until(lambda: limited.state("once").settled == before + 1, 2.0, "it is charged once")


def test_another_body_is_no_duplicate(limited: LimitedRouters) -> None:
    """The id is taken: 422, and no backend is asked."""
    fields = body()
    assert limited.call("once", fields).status == 200
    answer = limited.call("once", {**fields, "payload": "Something else"})
    assert (answer.status, answer.json["code"]) == (422, "IDEMPOTENCY_MISMATCH")
    assert limited.backend_calls() == 1


def test_another_organization_is_independent(limited: LimitedRouters) -> None:
    """Its ids are its own; another key of the same organization is no other caller."""
    fields = body()
    assert limited.call("once", fields).status == 200
    assert limited.call("other", fields).headers.get("Idempotency-Replayed") is None
    assert limited.backend_calls() == 2
    assert limited.call("again", fields).headers.get("Idempotency-Replayed") == "true"
    assert limited.backend_calls() == 2


def test_the_openai_dialect_has_a_header_for_it(limited: LimitedRouters) -> None:
    """A call without an id is always a new one."""
    first, second = (chat(limited, "once", "order-7") for _ in range(2))
    assert first.status == second.status == 200
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.body == first.body
    assert limited.backend_calls() == 1


def test_a_failed_call_may_be_made_again(limited: LimitedRouters) -> None:
    """Its id is free: what did not succeed is not kept."""
    fields = body()
    limited.backend.set(error_status=500)
    assert limited.call("once", fields).status >= 500
    limited.backend.reset()
    answer = limited.call("once", fields)
    assert answer.status == 200
    assert "Idempotency-Replayed" not in answer.headers


def test_a_completed_stream_is_not_made_again(limited: LimitedRouters) -> None:
    """There is no reply to repeat, and a second charge would be worse than none."""
    first = chat(limited, "once", "stream-1", stream=True)
    assert first.status == 200
    assert b"[DONE]" in first.body
    wait_until(lambda: limited.state("once").reserved == 0, 2.0, "it has ended")
    assert chat(limited, "once", "stream-1", stream=True).status == 409
    assert limited.backend_calls() == 1


@pytest.mark.parametrize("used", ["once", "free"])
def test_the_id_of_a_killed_worker_is_usable_at_its_lease(
    tmp_path: Path, shared_redis: RedisServer, used: str
) -> None:
    """Must show 6: until then 409, for the call may have been made; then it may be made again."""
    with limited_routers(
        tmp_path, shared_redis.url, KEYS, workers=1, ROUTER_LEASE=f"{LEASE_S:g}s", **PATIENT
    ) as limited:
        limited.backend.set(latency_ms=60_000)
        fields = body()
        began_s = time.monotonic()
        lost = threading.Thread(target=lambda: post(limited.router.port, used, fields))
        lost.start()
        wait_until(lambda: limited.backend_calls() == 1, LEASE_S, "it has reached the backend")
        reached_s = time.monotonic()
        [worker] = limited.router.worker_pids()
        os.kill(worker, signal.SIGKILL)
        lost.join()
        limited.backend.set(latency_ms=0)
        seen: list[tuple[float, int]] = []

        def succeeds() -> bool:
            status = post(limited.router.port, used, fields).status
            # Not when it was asked: a call may wait for the new worker longer than a lease.
            seen.append((time.monotonic(), status))
            return status == 200

        wait_until(succeeds, LEASE_S + 20.0, "the id is free")
        assert seen[-1][0] >= began_s + LEASE_S - 0.1, "it was free before its lease ended"
        assert {status for _, status in seen} <= {0, 409, 200}
        late = [at_s for at_s, status in seen if status == 409]
        assert not late or max(late) <= reached_s + LEASE_S + 1
        assert limited.backend_calls() == 2
