"""Streams: how soon their chunks pass, and what happens when either side leaves."""

from __future__ import annotations

import copy
import json
import statistics
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.backend.received import Request
from tests.fakes.backend.scripts import chunk, reply, serving
from tests.fakes.backend.server import FakeServer, Peer
from tests.servers.deployment import CHAT, CLAUDE, HELLO, SECOND, Deployment
from tests.servers.router_process import wait_until
from tests.servers.streaming_client import StreamingClient

EVENTS = 60
EVENT_INTERVAL_S = 0.01
MAX_ADDED_S = 0.020
"""The promise is 5 ms; the machine that runs this may be busy."""
PROMPT = HELLO[0]["content"]
GONE_S = 1.0
ABORTS = 100


def stream(
    deployed: Deployment, model: str = CHAT, *, native: bool = False, **more: Any
) -> tuple[str, StreamingClient]:
    """A streaming call, and its request id."""
    request_id = str(uuid.uuid4())
    headers = {"X-API-Key": deployed.key.key, "X-Request-ID": request_id}
    if native:
        fields = {"request_id": request_id, "model": model, "payload": PROMPT, "stream": True}
        return request_id, StreamingClient(deployed.router.port, "/v1/inference", fields, headers)
    fields = {"model": model, "messages": HELLO, "stream": True, **more}
    client = StreamingClient(deployed.router.port, "/v1/chat/completions", fields, headers)
    return request_id, client


def _stamped(peer: Peer, _: Request) -> bool:
    """Stream events in which stands when they were sent."""
    kind = "Content-Type: text/event-stream"
    peer.send(reply(b"", headers=(kind, "Transfer-Encoding: chunked"), length=False))
    for _ in range(EVENTS):
        peer.pause(EVENT_INTERVAL_S)
        event = {"sent": time.monotonic(), "choices": [{"index": 0, "delta": {"content": "x"}}]}
        peer.send(chunk(b"data: " + json.dumps(event).encode() + b"\n\n"))
    peer.send(chunk(b"data: [DONE]\n\n") + chunk(b""))
    return True


@pytest.fixture
def stamping(deployed: Deployment) -> Iterator[int]:
    """The port of a stamping backend, which serves the model `stamped`."""
    document = copy.deepcopy(deployed.document)
    document["models"].append({"id": "stamped"})
    served = {"organization": "*", "model": "stamped", "backends": [{"id": "stamping"}]}
    document["policies"].append(served)
    with FakeServer(serving(_stamped)) as server:
        base_url = f"{server.url}/v1"
        document["backends"].append({"id": "stamping", "kind": "openai", "base_url": base_url})
        try:
            assert deployed.router.apply(document).returncode == 0
            time.sleep(0.3)
            yield server.port
        finally:
            assert deployed.router.apply(deployed.document).returncode == 0


def delays(client: StreamingClient) -> list[float]:
    """Seconds that each event of a stamped stream was on its way."""
    found = []
    with client:
        assert client.read_head()[0] == 200
        for _ in range(EVENTS):
            event, received_s = client.read_event()
            found.append(received_s - json.loads(event.partition(b"data: ")[2])["sent"])
    return found


def test_chunks_pass_at_once(deployed: Deployment, stamping: int) -> None:
    """S1: the median chunk is hardly later than without the router."""
    fields = {"model": "stamped", "messages": HELLO, "stream": True}
    direct = delays(StreamingClient(stamping, "/v1/chat/completions", fields, {}))
    routed = delays(stream(deployed, "stamped")[1])

    added_s = statistics.median(routed) - statistics.median(direct)
    assert added_s < MAX_ADDED_S, f"{added_s * 1000:.1f} ms"
    # A stream that was held back and let go at its end would have a delay of half its length.
    assert statistics.median(routed) < EVENTS * EVENT_INTERVAL_S / 4


@pytest.mark.parametrize("model", [CHAT, CLAUDE])
@pytest.mark.parametrize("native", [False, True])
def test_nothing_on_the_way_may_buffer(deployed: Deployment, model: str, native: bool) -> None:
    """S1: the headers that tell proxies and caches to keep their hands off."""
    _, client = stream(deployed, model, native=native)
    with client:
        status, headers = client.read_head()

    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-cache"
    assert "content-length" not in headers


def test_a_stream_is_recorded_to_its_end(deployed: Deployment) -> None:
    """S4, U9: duration and bytes are those of the whole stream, not of its head."""
    deployed.backend.set(tokens_output=5, token_interval_ms=150)
    request_id, client = stream(deployed)
    with client:
        client.read_head()
        body = client.read_rest()

    line = deployed.router.line_of(request_id)
    assert line["outcome"] == "completed"
    assert line["duration_ms"] >= 750
    assert line["backend_ms"] >= 750
    assert line["ttfb_ms"] < line["duration_ms"] - 500
    assert line["overhead_ms"] < 250
    # What is on the wire besides: sizes of chunks.
    assert 0 < line["bytes_sent"] < len(body)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_slow_answer_is_waited_for(deployed: Deployment, streamed: bool) -> None:
    """A look at the client during the wait does not end it; it used to, for ever."""
    deployed.backend.set(latency_ms=0 if streamed else 800, first_token_ms=800)
    fields = {"model": CHAT, "messages": HELLO, "stream": streamed}
    reply = deployed.router.post("/v1/chat/completions", fields, deployed.key.key)

    assert reply.status == 200
    assert b"sea" in reply.body


# --- the client leaves -------------------------------------------------------------------------


@pytest.mark.parametrize("rudely", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("moment", ["before the first byte", "between chunks", "amid chunks"])
@pytest.mark.parametrize("native", [False, True], ids=["openai", "native"])
def test_a_client_that_leaves_a_stream(
    deployed: Deployment, moment: str, rudely: bool, native: bool
) -> None:
    """S3, U9: the backend's connection is closed within a second, and the line says why."""
    deployed.backend.set(
        tokens_output=5_000,
        **{
            "before the first byte": {"latency_ms": 20_000},
            "between chunks": {"first_token_ms": 1, "token_interval_ms": 20_000},
            "amid chunks": {"token_interval_ms": 5},
        }[moment],
    )
    request_id, client = stream(deployed, native=native)
    with client:
        deployed.backend.wait_for(lambda fake: fake.in_flight == 1)
        if moment == "between chunks" and native:
            time.sleep(0.2)  # the chunk that names the role becomes no event in this dialect
        elif moment != "before the first byte":
            client.read_head()
        if moment == "amid chunks":
            for _ in range(20):
                client.read_event()
        left_s = client.leave(rudely=rudely)
    deployed.backend.wait_for(lambda fake: fake.aborted == 1)

    assert time.monotonic() - left_s < GONE_S
    line = deployed.router.line_of(request_id)
    assert line["outcome"] == "client_aborted"
    if moment != "before the first byte":
        assert line["usage_source"] == "estimated"
        assert line["tokens_input"] > 0


@pytest.mark.parametrize("rudely", [False, True], ids=["FIN", "RST"])
def test_a_client_that_leaves_a_buffered_call(deployed: Deployment, rudely: bool) -> None:
    """S3: a call that is not streamed is given up just as soon."""
    deployed.backend.set(latency_ms=20_000)
    request_id = str(uuid.uuid4())
    headers = {"X-API-Key": deployed.key.key, "X-Request-ID": request_id}
    fields = {"model": CHAT, "messages": HELLO}
    with StreamingClient(deployed.router.port, "/v1/chat/completions", fields, headers) as client:
        deployed.backend.wait_for(lambda fake: fake.in_flight == 1)
        left_s = client.leave(rudely=rudely)
    deployed.backend.wait_for(lambda fake: fake.aborted == 1)

    assert time.monotonic() - left_s < GONE_S
    assert deployed.router.line_of(request_id)["outcome"] == "client_aborted"


def test_streams_that_are_left_leave_nothing_behind(deployed: Deployment) -> None:
    """S5: after many of them, workers hold as many descriptors as before; one line for each."""
    router = deployed.router

    def descriptors() -> int:
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in router.worker_pids())

    deployed.backend.set(tokens_output=5_000, token_interval_ms=20)
    before = descriptors()
    ids = []
    for number in range(ABORTS):
        request_id, client = stream(deployed)
        ids.append(request_id)
        with client:
            client.read_head()
            client.leave(rudely=number % 2 == 0)
    deployed.backend.wait_for(lambda fake: fake.aborted == ABORTS)

    wait_until(lambda: descriptors() <= before, 5, "the descriptors are given back")
    deployed.backend.wait_for(lambda fake: fake.open_connections == 0)
    lines = [line for line in router.calls() if line["request_id"] in set(ids)]
    assert len(lines) == ABORTS
    assert {line["outcome"] for line in lines} == {"client_aborted"}


# --- the backend leaves ------------------------------------------------------------------------


@pytest.mark.parametrize("native", [False, True], ids=["openai", "native"])
@pytest.mark.parametrize("events", range(0, 9, 2))
def test_a_backend_that_breaks_off(deployed: Deployment, events: int, native: bool) -> None:
    """F6: at whatever chunk it breaks, what came is delivered and an error event ends it."""
    deployed.backend.set(failure="cut_stream", cut_after_chunks=events)
    request_id, client = stream(deployed, native=native)
    with client:
        assert client.read_head()[0] == 200
        body = client.read_rest()

    last = body.rpartition(b"data: ")[2].partition(b"\n\n")[0]
    assert "error" in json.loads(last)
    assert (b"event: error" in body) is native
    assert b"[DONE]" not in body
    line = deployed.router.line_of(request_id)
    assert (line["outcome"], line["status"]) == ("upstream_aborted", 200)


@pytest.mark.parametrize(
    ("behaviour", "phase"),
    [
        ({"latency_ms": 20_000}, "first_byte"),
        ({"first_token_ms": 20_000}, "idle"),
        ({"token_interval_ms": 20_000}, "idle"),
        ({"token_interval_ms": 300, "tokens_output": 100}, "total"),
        ({"failure": "tar_pit", "tar_pit_interval_ms": 200}, "first_byte"),
        ({"failure": "black_hole"}, "first_byte"),
    ],
    ids=str,
)
def test_each_timeout_ends_a_stream(
    deployed: Deployment, behaviour: dict[str, Any], phase: str
) -> None:
    """F7: before the head a 504, afterwards an error event; never an open end."""
    deployed.second.set(**behaviour)
    request_id, client = stream(deployed, SECOND)
    started_s = time.monotonic()
    with client:
        status, _ = client.read_head()
        body = client.read_rest() if status == 200 else b""
        elapsed_s = time.monotonic() - started_s

    if phase == "first_byte":
        assert status == 504
    else:
        assert status == 200
        assert b'"code":"backend_timeout"' in body
    # Reading on for a moment after the last event is the client's own time.
    limit_s = {"first_byte": 0.6, "idle": 0.6, "total": 1.5}[phase]
    assert limit_s * 0.9 <= elapsed_s < limit_s + 1
    assert deployed.router.line_of(request_id)["outcome"] == "timeout"
