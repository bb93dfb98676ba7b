"""SIGTERM: what was accepted is finished and recorded, nobody waits for clients that are idle."""

from __future__ import annotations

import http.client
import signal
import socket
import time
import uuid
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.servers.deployment import CHAT, HELLO, Deployment, deploy
from tests.servers.load import Result, running_load
from tests.servers.router_process import is_running, wait_until
from tests.servers.streaming_client import StreamingClient

STREAM_S = 2.0
IDLE_EXIT_S = 5.0
"""Far below the drain timeout of 30 s; two of them pass between two looks at the clock."""
DRAIN_S = 5


def open_stream(deployed: Deployment, request_id: str) -> StreamingClient:
    headers = {"X-API-Key": deployed.key.key, "X-Request-ID": request_id}
    fields = {"model": CHAT, "messages": HELLO, "stream": True}
    return StreamingClient(deployed.router.port, "/v1/chat/completions", fields, headers)


def test_a_router_under_load_drains(tmp_path: Path) -> None:
    """G3, P13, U1: in-flight calls and streams complete, each with one line; exit code 0."""
    with deploy(tmp_path) as deployed, ExitStack() as connections:
        router = deployed.router
        # 30 tokens at this pace, for streams; other calls get their answer after a moment.
        deployed.backend.set(
            latency_ms=50, tokens_output=30, token_interval_ms=STREAM_S * 1000 / 30
        )
        streams = {f"stream-{n}": open_stream(deployed, f"stream-{n}") for n in range(6)}
        for client in streams.values():
            connections.enter_context(client)
            client.read_head()
        workers = router.worker_pids()

        def call(_: str) -> tuple[str, Any, dict[str, str]]:
            fields = {"model": CHAT, "messages": HELLO}
            return "/v1/chat/completions", fields, {"X-API-Key": deployed.key.key}

        with running_load(router.port, call, clients=8, name="load") as load:
            wait_until(lambda: len(load.results) > 50, 10, "traffic")
            router.signal(signal.SIGTERM)
            term_s = time.monotonic()
            bodies = {name: client.read_rest() for name, client in streams.items()}
            code = router.wait()
            exit_s = time.monotonic() - term_s

        assert code == 0
        assert not any(is_running(pid) for pid in workers)
        assert exit_s < STREAM_S + IDLE_EXIT_S
        assert all(b"data: [DONE]" in body for body in bodies.values())
        lines = Counter(line["request_id"] for line in router.calls())
        assert_drained(load.results, lines, term_s)
        assert [lines[name] for name in streams] == [1] * len(streams)
        assert router.faults() == []


def assert_drained(results: list[Result], lines: Counter[str], term_s: float) -> None:
    """Nobody whose request was read was let down: a call without an answer has no line either.

    HTTP knows no better for a kept connection that is closed while its client begins the next
    call, nor TCP for a new one that nobody has accepted yet; both may be sent again.
    """
    assert {result.status for result in results if result.error is None} == {200}
    for result in results:
        assert lines[result.request_id] == (result.error is None), result
        assert result.error is None or result.started_s > term_s, result
    assert any(result.ended_s > term_s and result.status for result in results)


def test_idle_connections_do_not_hold_it_up(tmp_path: Path) -> None:
    """G3: kept, silent and half-spoken connections are closed, and it exits at once."""
    with deploy(tmp_path) as deployed, ExitStack() as connections:
        router = deployed.router
        for _ in range(8):
            kept = http.client.HTTPConnection("127.0.0.1", router.port, timeout=10)
            connections.callback(kept.close)
            kept.request("GET", "/healthz")
            assert kept.getresponse().read()
            for said in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"):
                silent = socket.create_connection(("127.0.0.1", router.port), 10)
                connections.callback(silent.close)
                silent.sendall(said)

        started_s = time.monotonic()
        assert router.stop() == 0
        assert time.monotonic() - started_s < IDLE_EXIT_S
        assert router.faults() == []


def test_streams_past_the_deadline_are_ended_and_settled(tmp_path: Path) -> None:
    """B5, U2: what the drain cuts off is recorded, once, before the worker is killed."""
    settings = {"ROUTER_DRAIN_TIMEOUT": str(DRAIN_S), "ROUTER_ON_CLIENT_ABORT": "drain"}
    with deploy(tmp_path, **settings) as deployed, ExitStack() as opened:
        router = deployed.router
        deployed.backend.set(tokens_output=10_000, token_interval_ms=100)
        ids = [str(uuid.uuid4()) for _ in range(8)]
        clients = [opened.enter_context(open_stream(deployed, request_id)) for request_id in ids]
        for client in clients:
            client.read_head()
        # Two whose clients have left, and which are read on; one that still waits for its head.
        for client in clients[:2]:
            client.leave()
        deployed.backend.set(latency_ms=60_000)
        waiting = str(uuid.uuid4())
        opened.enter_context(open_stream(deployed, waiting))
        deployed.backend.wait_for(lambda fake: fake.in_flight == 9)

        started_s = time.monotonic()
        code = router.stop()
        exit_s = time.monotonic() - started_s

        assert code == 0
        assert exit_s < DRAIN_S
        lines = Counter(line["request_id"] for line in router.calls())
        assert [lines[request_id] for request_id in (*ids, waiting)] == [1] * 9
        outcomes = {line["outcome"] for line in router.calls() if line["request_id"] in ids}
        assert len(outcomes) == 1
        for client in clients[2:]:
            body = client.read_rest()
            assert not body.endswith(b"0\r\n\r\n"), "it looks as if the stream had ended"
            assert b"[DONE]" not in body
        deployed.backend.wait_for(lambda fake: fake.in_flight == 0)
        # Not killed: they had time to write down what they cut off.
        events = [line["event"] for line in router.log()]
        assert sum(event.startswith("Worker exiting") for event in events) == 2
        assert router.faults() == []
