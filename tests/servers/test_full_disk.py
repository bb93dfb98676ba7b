"""Must show 4: a disk that is full, or fails once, under load: nothing is answered unrecorded."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.deployment import CHAT, HELLO, SECOND, Deployment, deploy
from tests.servers.faulty_disk import FaultyDisk, fill, small_file_system, why_no_mount
from tests.servers.load import Load, running_load
from tests.servers.router_process import wait_until
from tests.servers.scrapes import gauge, samples
from tests.servers.stored_records import stored_records
from tests.servers.streaming_client import StreamingClient

CLIENTS = 6
NAMESPACE = uuid.uuid4()
RESUMED_S = 2.0
BURST = 20
"""So many calls in a row meet every worker."""
METADATA = {f"label-{number}": "x" * 1000 for number in range(15)}
"""Makes records large, so that the room that is set aside is used up in seconds."""
SPOOL_MIB = 48


def id_of(name: str) -> str:
    """The request id of a call in the load, which names it otherwise."""
    return str(uuid.uuid5(NAMESPACE, name))


def calls_of(deployment: Deployment) -> Any:
    """Native calls with large records, for :func:`running_load`."""

    def call(name: str) -> tuple[str, Any, dict[str, str]]:
        fields = {
            "request_id": id_of(name),
            "model": SECOND,
            "payload": "hello",
            "metadata": METADATA,
        }
        return "/v1/inference", fields, {"X-API-Key": deployment.key.key}

    return call


def attempt(deployment: Deployment, request_id: str | None = None) -> Any:
    """One call; its reply."""
    fields = {"model": SECOND, "messages": HELLO}
    key = deployment.key.key
    return deployment.router.post("/v1/chat/completions", fields, key, request_id=request_id)


def await_statuses(deployment: Deployment, status: int, timeout_s: float) -> float:
    """Seconds until every worker answers with this status."""
    return wait_until(
        lambda: all(attempt(deployment).status == status for _ in range(BURST)),
        timeout_s,
        f"every call gets {status}",
    )


def stored(deployment: Deployment, status: int = 200) -> Counter[str]:
    """How often each request id is in the record store, with this answer."""
    url = f"sqlite:///{deployment.router.data_dir / 'records.db'}"
    # An attempt has a status, too, that of the record stands before its outcome.
    answer = b'"status":%d,"outcome"' % status
    rows = stored_records(url, "usage")
    return Counter(_request_id(encoded) for encoded in rows if answer in encoded)


def _request_id(encoded: bytes) -> str:
    return encoded.partition(b'"request_id":"')[2].partition(b'"')[0].decode()


def assert_all_recorded(deployment: Deployment, load: Load) -> None:
    """P3: whatever was answered well is in the store, once."""
    answered = {id_of(result.request_id) for result in load.results if result.status == 200}
    assert answered
    wait_until(lambda: answered <= set(stored(deployment)), 20, "all that was answered is stored")
    found = stored(deployment)
    assert [request_id for request_id in answered if found[request_id] != 1] == []


def counted(deployment: Deployment, name: str, **labels: str) -> float:
    """A counter of the router."""
    found = samples(deployment.router.metrics())
    return found.get((f"api_router_{name}", frozenset(labels.items())), 0.0)


def assert_refusal(deployment: Deployment) -> None:
    """503 with `Retry-After`, in time, and no backend hears of the call."""
    request_id = str(uuid.uuid4())
    reply = attempt(deployment, request_id)
    assert reply.status == 503
    assert reply.json["error"]["code"] == "records_unavailable"
    assert int(reply.headers["Retry-After"]) >= 1
    assert b"disk" not in reply.body
    asked = {request.header("x-request-id") for request in deployment.second.requests}
    assert request_id not in asked


@contextlib.contextmanager
def on_a_small_disk(directory: Path) -> Iterator[tuple[Deployment, Path]]:
    spool = directory / "data" / "spool"
    with small_file_system(spool, SPOOL_MIB), deploy(directory) as deployment:
        yield deployment, spool
        assert deployment.router.stop() == 0


def long_stream(deployment: Deployment, request_id: str) -> StreamingClient:
    """A call that a backend begins to serve now and ends in about twelve seconds."""
    deployment.backend.set(tokens_output=60, token_interval_ms=200)
    headers = {"X-API-Key": deployment.key.key, "X-Request-ID": request_id}
    fields = {"model": CHAT, "messages": HELLO, "stream": True}
    client = StreamingClient(deployment.router.port, "/v1/chat/completions", fields, headers)
    assert client.read_head()[0] == 200
    return client


@pytest.mark.skipif(why_no_mount() is not None, reason=str(why_no_mount()))
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """P3: new calls are refused before any backend is asked, calls in flight are recorded, and
    calls are served again within 2 s of there being space."""
    with on_a_small_disk(tmp_path) as (deployment, spool):
        router = deployment.router
        assert router.request("GET", "/readyz").status == 200
        streamed = str(uuid.uuid4())
        with (
            long_stream(deployment, streamed) as stream,
            running_load(router.port, calls_of(deployment), clients=CLIENTS, name="full") as load,
            contextlib.ExitStack() as shipping,
        ):
            wait_until(lambda: len(load.results) > 50, 10, "the load runs")
            filler = fill(spool)
            # What is shipped would be removed, and the disk would have room again.
            agent_pid = int((router.data_dir / "run" / "agent.lock").read_text())
            os.kill(agent_pid, signal.SIGSTOP)
            shipping.callback(os.kill, agent_pid, signal.SIGCONT)
            wait_until(
                lambda: fill(spool) and load.results[-1].status == 503, 20, "the disk is full"
            )
            await_statuses(deployment, 503, 10)
            began_s = time.monotonic()
            assert_refusal(deployment)
            readiness = router.request("GET", "/readyz", ops=True)
            assert (readiness.status, readiness.json["status"]) == (503, "not_ready")
            assert readiness.json["checks"]["spool"]["detail"] == "disk_full"

            assert b"[DONE]" in stream.read_rest()
            asked = len(deployment.second.requests)
            time.sleep(1.2)
            assert len(deployment.second.requests) == asked, "a backend was asked meanwhile"
            assert gauge(router.metrics(), "api_router_spool_writable") == 0
            assert {result.status for result in load.since(began_s)} == {503}

            filler.unlink()
            shipping.close()
            freed_s = time.monotonic()
            resumed_s = wait_until(
                lambda: attempt(deployment).status == 200, RESUMED_S, "it serves again"
            )
            await_statuses(deployment, 200, RESUMED_S)
            wait_until(
                lambda: sum(result.status == 200 for result in load.since(freed_s)) > 50,
                10,
                "the load is served again",
            )
        assert resumed_s <= RESUMED_S
        assert Counter(result.error for result in load.results) == {None: len(load.results)}
        assert_all_recorded(deployment, load)
        assert stored(deployment)[streamed] == 1
        assert counted(deployment, "records_refused_total", reason="disk_full") > 0
        assert counted(deployment, "records_lost_total") == 0
        assert router.request("GET", "/readyz", ops=True).json["checks"]["spool"]["status"] == "ok"


def test_a_disk_that_takes_nothing_at_all(tmp_path: Path) -> None:
    """P3: the harder case, in which not even room that was set aside can be written to. Calls in
    flight are refused with 503 instead of being answered, and recorded from memory later."""
    disk = FaultyDisk(tmp_path / "faults")
    with deploy(tmp_path, **disk.environment) as deployment:
        router = deployment.router
        deployment.second.set(latency_ms=30)  # so that some are in flight at every moment
        with running_load(
            router.port, calls_of(deployment), clients=CLIENTS, name="broken"
        ) as load:
            wait_until(lambda: len(load.results) > 50, 10, "the load runs")
            with disk.full():
                await_statuses(deployment, 503, 5)
                assert_refusal(deployment)
                assert router.request("GET", "/readyz").status == 503
                time.sleep(2)
            healed_s = time.monotonic()
            await_statuses(deployment, 200, RESUMED_S)
            wait_until(
                lambda: sum(result.status == 200 for result in load.since(healed_s)) > 50,
                10,
                "the load is served again",
            )
        assert {result.status for result in load.results} == {200, 503}
        assert_all_recorded(deployment, load)
        asked = {request.header("x-request-id") for request in deployment.second.requests}
        refused = {id_of(result.request_id) for result in load.results if result.status == 503}
        in_flight = refused & asked
        assert in_flight, "no call was in flight when the disk broke"
        wait_until(lambda: in_flight <= set(stored(deployment, 503)), 10, "those are recorded too")
        assert in_flight.isdisjoint(stored(deployment)), "recorded as answered"
        assert counted(deployment, "records_lost_total") == 0
        assert router.stop() == 0


@pytest.mark.parametrize("mode", ["fast", "durable"])
def test_one_sync_that_fails(tmp_path: Path, mode: str) -> None:
    """P3, P2: one I/O error of fdatasync costs no call anything, and nothing is lost by it."""
    disk = FaultyDisk(tmp_path / "faults")
    with deploy(tmp_path, ROUTER_SPOOL_MODE=mode, **disk.environment) as deployment:
        router = deployment.router
        with running_load(router.port, calls_of(deployment), clients=CLIENTS, name=mode) as load:
            wait_until(lambda: len(load.results) > 50, 10, "the load runs")
            disk.fail_next_sync()
            wait_until(lambda: not disk.sync_is_to_fail, 5, "a sync has failed")
            began_s = time.monotonic()
            wait_until(lambda: len(load.since(began_s)) > 100, 10, "the load goes on")
        assert {result.status for result in load.results} == {200}
        wait_until(
            lambda: counted(deployment, "spool_sync_errors_total") == 1, 5, "it is counted, once"
        )
        assert_all_recorded(deployment, load)
        assert counted(deployment, "records_lost_total") == 0
        assert router.stop() == 0
