"""A spool that a broker's outage has filled serves again as soon as its records are delivered."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from router.agent.status import read_report
from tests.servers.deployment import CHAT, HELLO, SECOND, Deployment, deploy
from tests.servers.load import running_load
from tests.servers.router_process import wait_until
from tests.servers.scrapes import gauge

pytest.importorskip("confluent_kafka", reason="the mock broker needs confluent-kafka")

from tests.fakes.kafka_broker import mock_broker

PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))
SIZES = [(1, 1), (1, 4), (8, 1), (8, 4), (64, 1), (64, 4)] if PROOF else [(8, 1)]
"""MiB of the limit, and workers."""
METADATA = {f"label-{number}": "x" * 1000 for number in range(15)}
RESUMED_S = 2.0
CALLS = 24
"""So many in a row meet every worker."""


def small_calls(deployment: Deployment) -> Counter[int]:
    """The statuses of calls whose records together need a tenth of the smallest limit."""
    fields = {"model": CHAT, "messages": HELLO}
    key = deployment.key.key
    return Counter(
        deployment.router.post("/v1/chat/completions", fields, key).status for _ in range(CALLS)
    )


def behind_bytes(deployment: Deployment) -> int:
    """What waits for Kafka, as the agent says; unknown is much."""
    sinks = (read_report(deployment.router.data_dir) or {}).get("sinks", {})
    return int(sinks.get("kafka", {}).get("behind_bytes", 1 << 40))


def spool_detail(deployment: Deployment) -> Any:
    """What a worker's readiness says of the spool."""
    readiness = deployment.router.request("GET", "/readyz", ops=True)
    return readiness.json["checks"]["spool"].get("detail")


@pytest.mark.parametrize(("limit_mib", "workers"), SIZES)
def test_what_is_delivered_frees_room(tmp_path: Path, limit_mib: int, workers: int) -> None:
    """P3, Must show 7: with an open segment that nobody could remove, calls were refused until a
    restart though nothing was behind."""
    with (
        mock_broker() as broker,
        deploy(
            tmp_path,
            KAFKA_BROKERS=broker.address,
            KAFKA_API_VERSION=".".join(map(str, broker.api_version or ())),
            ROUTER_AGENT_DRAIN="1s",
            ROUTER_SPOOL_MAX_BYTES=str(limit_mib << 20),
            workers=workers,
        ) as deployment,
    ):
        router = deployment.router

        def large_call(_name: str) -> tuple[str, Any, dict[str, str]]:
            fields = {
                "request_id": str(uuid.uuid4()),
                "model": SECOND,
                "payload": "hello",
                "metadata": METADATA,
            }
            return "/v1/inference", fields, {"X-API-Key": deployment.key.key}

        for topic in ("usage.records.v1", "audit.router"):
            broker.make_topic(topic, 8)
        wait_until(lambda: behind_bytes(deployment) == 0, 15, "the agent works")
        for _ in range(2 if PROOF else 1):
            broker.go_down()
            with running_load(router.port, large_call, clients=4, name="fill") as load:
                wait_until(
                    lambda: Counter(result.status for result in load.results[-50:])[503] == 50,
                    60 if PROOF else 20,
                    "every worker refuses calls",
                )
            wait_until(lambda: spool_detail(deployment) == "spool_full", 5, "readiness tells why")
            broker.come_up()
            wait_until(lambda: behind_bytes(deployment) == 0, 60, "all is delivered")
            delivered_s = time.monotonic()
            resumed_s = wait_until(
                lambda: small_calls(deployment) == {200: CALLS}, RESUMED_S, "calls are served"
            )
            assert resumed_s <= RESUMED_S
            time.sleep(max(0.0, delivered_s + RESUMED_S - time.monotonic()))
            for _ in range(3):
                assert small_calls(deployment) == {200: CALLS}
                time.sleep(0.5)
            wait_until(lambda: behind_bytes(deployment) == 0, 10, "nothing is behind")
            assert small_calls(deployment) == {200: CALLS}
        assert gauge(router.metrics(), "api_router_spool_bytes") < (limit_mib << 20)
        assert router.stop() == 0
