"""Requests that no client should send: always a 4xx in the right shape, never a 5xx, never a hang.

1 500 requests, or 10 000 with ``ROUTER_TEST_PROOF=1`` in the environment. A failure names the seed;
``ROUTER_TEST_SEED`` draws the same requests again. Continuous integration always draws the same.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.servers.deployment import CHAT, Deployment
from tests.servers.malformed import MAX_BODY_BYTES, Draw, Request
from tests.servers.raw_client import Answer, exchange
from tests.servers.router_process import resident_bytes

PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))
REQUESTS = 10_000 if PROOF else 1_500
UNFINISHED = REQUESTS // 25
FIXED_SEED = 20_261_123 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
SEED = int(os.environ.get("ROUTER_TEST_SEED") or FIXED_SEED)

HANG_S = 10.0
MAX_GROWTH_BYTES = 50 * 2**20

NATIVE = {"error", "code", "trace_id"}
OPENAI = {"message", "type", "param", "code"}


def send(port: int, requests: list[Request], *, at_once: int) -> list[tuple[Request, Answer]]:
    """Each request on a connection of its own; what came back, in order."""

    def one(request: Request) -> Answer:
        return exchange(port, request.data, ends=request.ends)

    with ThreadPoolExecutor(at_once) as pool:
        return list(zip(requests, pool.map(one, requests), strict=True))


def fault(request: Request, answer: Answer) -> str | None:
    """What the router did wrong, if anything."""
    if answer.elapsed_s > HANG_S:
        return f"open for {answer.elapsed_s:.1f} s"
    if answer.status >= 500:
        return f"status {answer.status}"
    if request.statuses and answer.status not in request.statuses:
        return f"status {answer.status}, not one of {request.statuses}"
    if answer.status < 400:
        return None
    return shape_fault(request, answer)


def shape_fault(request: Request, answer: Answer) -> str | None:
    """What is wrong with the body of an error, if anything."""
    if answer.headers.get_content_type() != "application/json":
        return f"an error of type {answer.headers.get_content_type()}"
    try:
        body = json.loads(answer.body)
    except ValueError:
        return f"an error that is not JSON: {answer.body[:100]!r}"
    if isinstance(body.get("error"), dict):
        found = "openai" if set(body["error"]) == OPENAI else "?"
    else:
        found = "native" if set(body) >= NATIVE else "?"
    if found == "?" or request.dialect not in ("either", found):
        return f"an error in the shape of {found}, not {request.dialect}: {answer.body[:100]!r}"
    return None


def check(answered: list[tuple[Request, Answer]]) -> None:
    """Fail with the faults of a run and with what is needed to see them again."""
    faults = [
        f"{problem}: {request.what} {request.data[:300]!r}"
        for request, answer in answered
        if (problem := fault(request, answer)) is not None
    ]
    kinds = Counter(line.partition(":")[0] for line in faults)
    if faults:
        pytest.fail("\n".join([f"ROUTER_TEST_SEED={SEED} {dict(kinds)}", *faults[:20]]))


def hits(deployed: Deployment) -> int:
    """How many requests any backend has seen."""
    seen = len(deployed.backend.requests) + len(deployed.second.requests)
    return seen + len(deployed.claude.requests)


@pytest.fixture
def draw(deployed: Deployment) -> Draw:
    return Draw(SEED, deployed.key.key)


def test_wrong_requests_are_refused_in_the_right_shape(deployed: Deployment, draw: Draw) -> None:
    """P15: no 5xx, no hang, JSON in the dialect of the path, no backend asked, memory bounded."""
    router = deployed.router
    workers = router.worker_pids()
    send(router.port, [draw.wrong() for _ in range(100)], at_once=16)
    before = {pid: resident_bytes(pid) for pid in workers}

    requests = [draw.wrong() for _ in range(REQUESTS * 2 // 3)]
    answered = send(router.port, requests, at_once=16)

    check(answered)
    assert hits(deployed) == 0
    assert router.worker_pids() == workers
    growth = sum(resident_bytes(pid) - before[pid] for pid in workers)
    assert growth < MAX_GROWTH_BYTES
    assert router.faults() == []


def test_damaged_requests_do_no_harm(deployed: Deployment, draw: Draw) -> None:
    """P15: whatever random damage makes of a request, it is never a 5xx and never a hang."""
    router = deployed.router
    workers = router.worker_pids()

    requests = [draw.mutated() for _ in range(REQUESTS // 3)]
    answered = send(router.port, requests, at_once=16)

    check(answered)
    assert router.worker_pids() == workers
    assert router.faults() == []
    served = sum(answer.status == 200 for _, answer in answered)
    refused = sum(answer.status in range(400, 500) for _, answer in answered)
    assert served > 0
    assert refused > 0
    assert hits(deployed) <= served + sum(answer.status == 400 for _, answer in answered)


def test_requests_that_never_end_are_ended(deployed: Deployment, draw: Draw) -> None:
    """A body that does not come is a 408, a head that does not come a close, within 10 s."""
    requests = [draw.wrong(ends=False) for _ in range(UNFINISHED)]
    answered = send(deployed.router.port, requests, at_once=80)

    check(answered)
    assert {answer.status for _, answer in answered} == {0, 408}
    assert hits(deployed) == 0
    assert deployed.router.request("GET", "/healthz").status == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_a_413(deployed: Deployment, chunked: bool) -> None:
    """The limit holds for a body that is really sent, however it is framed."""
    body = json.dumps({"model": CHAT, "messages": "x" * MAX_BODY_BYTES}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"X-API-Key: {deployed.key.key}\r\n"
    )
    if chunked:
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        data = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + framed
    else:
        data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    answer = exchange(deployed.router.port, data, ends=False)

    assert answer.status == 413
    assert json.loads(answer.body)["error"]["code"] == "body_too_large"
    assert hits(deployed) == 0


def test_a_connection_survives_a_refusal(deployed: Deployment) -> None:
    """A 400 whose body was read leaves the connection fit for the next request."""
    good = json.dumps({"model": CHAT, "messages": [{"role": "user", "content": "hi"}]}).encode()

    def framed(body: bytes) -> bytes:
        return (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            f"X-API-Key: {deployed.key.key}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    answer = exchange(deployed.router.port, framed(b"{nonsense") + framed(good))

    assert answer.status == 400
    deployed.backend.wait_for(lambda fake: len(fake.requests) == 1)
