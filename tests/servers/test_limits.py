"""T019: limits and budgets through gunicorn and a real Redis, with the audit trail in Kafka.

The rate of several instances is measured over 3 s, or with ``ROUTER_TEST_PROOF=1`` over 10 s with 8
workers at 400 calls/s.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from router.redis.address import parse_address
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from tests.fakes.redis_server import BINARY, RedisServer
from tests.servers.limited_routers import (
    CAREFUL,
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
    rate,
    secret,
)
from tests.servers.router_process import wait_until

pytest.importorskip("confluent_kafka", reason="the mock broker needs confluent-kafka")

from tests.fakes.kafka_broker import MockBroker, mock_broker

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))
RATE, BURST = (100, 50) if PROOF else (20, 10)
CALLS_A_S = 400 if PROOF else 80
LASTS_S = 10.0 if PROOF else 3.0
AUDIT_TOPIC = "audit.router"
SHIPPED_S = 15.0
CONTRACT = Path(__file__).parents[2] / "contracts" / "openapi.json"

KEYS = [
    key("burst-key", rate_limit=rate(0.5, 5)),
    key("spent-key", budgets=[budget("spend", "usd", "0.0000001", "monthly")]),
    key("blocked-key", budgets=[budget("spend", "usd", 0)]),
    key("calls-key", budgets=[budget("calls", "requests", 2, "daily")]),
    key("tokens-key", budgets=[budget("tokens", "tokens", 3, "monthly", **CAREFUL)]),
    key("shadow-key", rate_limit=rate(0.01, 1, shadow=True),
        budgets=[budget("calls", "requests", 1, shadow=True)]),
    key("two-key", "duo", rate_limit=rate(0.5, 1)),
]  # fmt: skip
DUO = {"id": "duo", "rate_limit": rate(1000, 1000), "budgets": [budget("all", "requests", 100)]}


@pytest.fixture(scope="module")
def broker() -> Iterator[MockBroker]:
    with mock_broker() as made:
        yield made


@pytest.fixture(scope="module")
def limited(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer, broker: MockBroker
) -> Iterator[LimitedRouters]:
    with limited_routers(
        tmp_path_factory.mktemp("limited"),
        shared_redis.url,
        KEYS,
        organizations=[DUO],
        KAFKA_BROKERS=broker.address,
        KAFKA_API_VERSION=".".join(map(str, broker.api_version or ())),
        **PATIENT,
    ) as made:
        yield made
        assert made.router.faults() == []


def check_refusal(answer: Any, status: int, code: str, limit_type: str) -> Any:
    """The body is that of the hand-over, by the published contract."""
    assert answer.status == status, answer.body
    schemas = json.loads(CONTRACT.read_text("utf-8"))["components"]["schemas"]
    schema = {**schemas["LimitErrorResponse"], "components": {"schemas": schemas}}
    found = answer.json
    jsonschema.validate(found, schema)
    assert (found["code"], found["limit_type"]) == (code, limit_type)
    header = answer.headers.get("Retry-After")
    assert found.get("retry_after") == (None if header is None else int(header))
    return found


def test_rate_limit_exceeded(limited: LimitedRouters) -> None:
    """T019, R9: 429 after the burst; whoever waits as long as it says, and calls alone, passes."""
    limited.backend.requests.clear()
    answers = [limited.call("burst-key") for _ in range(8)]
    refused = [answer for answer in answers if answer.status == 429]
    assert [answer.status for answer in answers] == [200] * 5 + [429] * 3
    assert limited.backend_calls() == 5
    found = check_refusal(refused[-1], 429, "RATE_LIMIT_EXCEEDED", "rate_limit")
    assert found["limit"] == 5
    assert found["retry_after"] >= 1
    assert '"key-requests";q=5' in refused[-1].headers["RateLimit-Policy"]
    assert '"key-requests";r=0' in refused[-1].headers["RateLimit"]
    time.sleep(found["retry_after"])
    assert limited.call("burst-key").status == 200


@pytest.mark.parametrize("used", ["spent-key", "blocked-key"])
def test_budget_exceeded(limited: LimitedRouters, used: str) -> None:
    """T019: 402 and no backend call; a budget that ends tells when, one that does not, nothing."""
    limited.backend.requests.clear()
    answer = limited.call(used)
    found = check_refusal(answer, 402, "BUDGET_EXCEEDED", "budget")
    assert found["current_usage"] == 0
    assert limited.backend_calls() == 0
    if used == "blocked-key":
        assert "retry_after" not in found


@pytest.mark.parametrize(("used", "passing"), [("calls-key", 2), ("tokens-key", 0)])
def test_quota_exceeded(limited: LimitedRouters, used: str, passing: int) -> None:
    """T019: 402 once the calls, or the tokens, are used up."""
    answers = [limited.call(used) for _ in range(passing + 1)]
    assert [answer.status for answer in answers] == [200] * passing + [402]
    found = check_refusal(answers[-1], 402, "QUOTA_EXCEEDED", "quota")
    assert found["current_usage"] == passing
    wait_until(lambda: limited.state(used).settled == passing, 2.0, "all of it is settled")


def test_the_openai_dialect_tells_the_same(limited: LimitedRouters) -> None:
    """An SDK reads code and type where it always does."""
    fields = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    answer = limited.router.post("/v1/chat/completions", fields, secret("blocked-key"))
    assert answer.status == 402
    assert answer.json["error"]["type"] == "insufficient_quota"


def test_denials_are_in_the_audit_trail(limited: LimitedRouters, broker: MockBroker) -> None:
    """T019, T023: every denial is read back from Kafka, with who, which limit, and how full it was.

    Its usage record is there as well, and says what the limit did.
    """
    expected = {}
    for used, code in (("blocked-key", "budget"), ("burst-key", "rate_limit")):
        answers = [limited.call(used) for _ in range(7)]
        denied = next(answer for answer in answers if answer.status in (402, 429))
        expected[denied.headers["X-Request-ID"]] = (used, code)

    def denials() -> dict[str, Any]:
        events = (json.loads(message.value) for message in broker.read(AUDIT_TOPIC))
        return {
            event["request_id"]: event for event in events if event["action"] == "REQUEST_DENIED"
        }

    wait_until(lambda: expected.keys() <= denials().keys(), SHIPPED_S, "the denials are in Kafka")
    found = denials()
    for request_id, (used, limit_type) in expected.items():
        event = found[request_id]
        assert (event["organization_id"], event["context"]["api_key_id"]) == ("acme", used)
        assert event["context"]["limit_type"] == limit_type
        assert {"limit", "usage"} <= event["context"].keys()
    records = {}
    for message in broker.read("usage.records.v1"):
        record = json.loads(message.value)
        records[record["request_id"]] = record
    states = {
        records[request_id]["limit_state"] for request_id in expected if request_id in records
    }
    assert states <= {"BUDGET_EXCEEDED", "RATE_LIMITED"}


def test_denials_are_counted(limited: LimitedRouters) -> None:
    """T024: one metric for each kind of denial."""
    for used in ("blocked-key", "tokens-key", "burst-key", "burst-key", "burst-key"):
        for _ in range(6):
            limited.call(used)

    def counted() -> bool:
        text = limited.router.metrics()
        return all(
            f"api_router_{kind}_denials_total{{" in text
            for kind in ("rate_limit", "budget", "quota")
        )

    wait_until(counted, 5.0, "the denials are counted")


def test_shadow_mode_denies_nothing(limited: LimitedRouters) -> None:
    """It tells what it would have done: in the metrics."""
    assert {limited.call("shadow-key").status for _ in range(4)} == {200}
    wait_until(
        lambda: "api_router_shadow_denials_total{" in limited.router.metrics(), 5.0, "it is counted"
    )


def test_a_refusal_charges_nothing(limited: LimitedRouters, shared_redis: RedisServer) -> None:
    """P8, R2: after a refused call every counter in Redis is byte for byte what it was."""
    address = parse_address(shared_redis.url)
    client = RedisClient(address, ConnectionOptions(login=address.login, timeout_s=5.0))

    def contents() -> dict[bytes, Any]:
        names: Any = client.command("KEYS", "*{duo}*")
        return {name: client.command("DUMP", name) for name in sorted(names)}

    try:
        assert limited.call("two-key").status == 200
        # A call is settled when its answer is out.
        wait_until(lambda: not any(s.reserved for s in limited.states("two-key")), 2.0, "settled")
        before = contents()
        assert before
        assert limited.call("two-key").status == 429
        assert contents() == before
    finally:
        client.close()


def test_many_workers_hold_one_rate(tmp_path: Path, shared_redis: RedisServer) -> None:
    """Must show 2, P8, R1: over two instances at most burst + rate x T, and 99.9 % of it."""
    keys = [key("metered", "metered", rate_limit=rate(RATE, BURST))]
    with limited_routers(
        tmp_path, shared_redis.url, keys, instances=2, workers=4 if PROOF else 2, **PATIENT
    ) as limited:
        ports = [router.port for router in limited.routers]
        deadline_s = time.monotonic() + LASTS_S
        clients = CALLS_A_S // 10

        def poll(number: int) -> list[Answer]:
            found = []
            while time.monotonic() < deadline_s:
                found.append(post(ports[number % 2], "metered", body()))
                time.sleep(0.05)
            return found

        collected: list[Answer] = []

        def client(number: int) -> Answer:
            collected.extend(poll(number))
            return collected[-1]

        at_once([lambda number=number: client(number) for number in range(clients)])  # type: ignore[misc]
        admitted = [answer for answer in collected if answer.status == 200]
        assert {answer.status for answer in collected} == {200, 429}
        began_s = min(answer.began_s for answer in collected)
        ended_s = max(answer.began_s + answer.took_s for answer in admitted)
        assert len(admitted) <= BURST + RATE * (ended_s - began_s)
        # The bucket begins to flow when the first call is decided, and the last one asks it last:
        # what has flowed in by then was asked for, all but the part of a token that is left.
        decided_s = min(answer.began_s + answer.took_s for answer in collected)
        asked_until_s = max(answer.began_s for answer in collected)
        assert len(admitted) >= 0.999 * (BURST + RATE * (asked_until_s - decided_s)) - 1
