"""The real entry point with warnings as errors, and settings that most tests leave alone."""

from __future__ import annotations

import stat
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.servers.deployment import CHAT, CLAUDE, HELLO, Deployment, deploy
from tests.servers.router_process import wait_until
from tests.servers.streaming_client import StreamingClient

WRITE_TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Every warning ends the program; streams are read on when their client leaves."""
    metrics_dir = tmp_path_factory.mktemp("metrics")
    (metrics_dir / "counter_slot0.db").write_bytes(b"left by an earlier run")
    (metrics_dir / "unrelated.txt").write_text("not ours")
    settings = {
        "ROUTER_ON_CLIENT_ABORT": "drain",
        "ROUTER_CLIENT_WRITE_TIMEOUT": f"{WRITE_TIMEOUT_S:g}s",
        "PROMETHEUS_MULTIPROC_DIR": str(metrics_dir),
        "ROUTER_BUILD": "test-build",
    }
    directory = tmp_path_factory.mktemp("strict")
    # Files that are open when a process ends are no fault of an entry point.
    options = ("-W", "error", "-W", "ignore::ResourceWarning")
    with deploy(directory, python_options=options, **settings) as deployed:
        yield deployed
        assert deployed.router.stop() == 0
        assert deployed.router.faults() == []


@pytest.fixture(autouse=True)
def fresh(strict: Deployment) -> None:
    strict.reset()


def stream(
    strict: Deployment, model: str = CHAT, *, small_window: bool = False, choices: int = 1
) -> StreamingClient:
    headers = {"X-API-Key": strict.key.key, "X-Request-ID": str(uuid.uuid4())}
    fields = {"model": model, "messages": HELLO, "stream": True, "n": choices}
    return StreamingClient(
        strict.router.port, "/v1/chat/completions", fields, headers, small_window=small_window
    )


def test_it_serves_with_warnings_as_errors(strict: Deployment) -> None:
    """G4: no MonkeyPatchWarning, and no other, from the first import to a served stream."""
    for model in (CHAT, CLAUDE):
        with stream(strict, model) as client:
            client.read_head()
            assert b"[DONE]" in client.read_rest()

    assert "Warning" not in strict.router.log_text()
    assert strict.router.request("GET", "/readyz", ops=True).json["build"] == "test-build"


def test_no_header_says_what_serves(strict: Deployment) -> None:
    """Neither the program nor its version: that is where a stranger begins."""
    for path in ("/healthz", "/v1/models", "/nowhere"):
        reply = strict.router.request("GET", path)
        assert reply.headers.get_all("Server") == ["router"]
        assert "gunicorn" not in str(reply.headers).lower()


def test_metrics_of_an_earlier_run_are_gone(strict: Deployment) -> None:
    """M3: the directory is emptied of metrics, and of nothing else."""
    assert "api_router_requests_total" in strict.router.metrics()
    directory = strict.router.metrics_dir

    assert (directory / "unrelated.txt").read_text() == "not ours"
    assert b"earlier run" not in (directory / "counter_slot0.db").read_bytes()


def test_what_is_kept_is_private(strict: Deployment) -> None:
    """M3: only its owner reads the data directory."""
    mode = stat.S_IMODE(strict.router.data_dir.stat().st_mode)
    assert mode & 0o077 == 0


def test_a_stream_whose_client_left_is_read_to_its_end(strict: Deployment) -> None:
    """U9: the policy `drain` learns the usage that the backend reports at last."""
    strict.backend.set(tokens_output=20, token_interval_ms=40)
    with stream(strict) as client:
        client.read_head()
        client.read_event()
        client.leave(rudely=True)
        line = strict.router.line_of(client.request_id)

    assert line["outcome"] == "client_aborted"
    assert (line["usage_source"], line["tokens_output"]) == ("reported", 20)
    assert strict.backend.aborted == 0


def test_a_buffered_call_whose_client_left_is_finished(strict: Deployment) -> None:
    """U9: and so is the one that waits for its answer; what it cost is known."""
    strict.backend.set(latency_ms=600)
    request_id = str(uuid.uuid4())
    headers = {"X-API-Key": strict.key.key, "X-Request-ID": request_id}
    fields = {"model": CHAT, "messages": HELLO}
    with StreamingClient(strict.router.port, "/v1/chat/completions", fields, headers) as client:
        strict.backend.wait_for(lambda fake: fake.in_flight == 1)
        client.leave()
        line = strict.router.line_of(request_id)

    assert line["usage_source"] == "reported"
    assert line["cost_nanos"] > 0
    assert strict.backend.aborted == 0


def test_a_client_that_stops_reading_is_given_up(strict: Deployment) -> None:
    """S3: whoever takes nothing for `ROUTER_CLIENT_WRITE_TIMEOUT` holds no backend any longer."""
    # Some 10 MB each: far more than the sockets on the way hold.
    strict.backend.set(tokens_output=10_000)
    clients = [stream(strict, small_window=True, choices=5) for _ in range(2)]
    try:
        strict.backend.wait_for(lambda fake: fake.in_flight == 2)
        started_s = time.monotonic()
        wait_until(
            lambda: all(strict.router.lines_of(client.request_id) for client in clients),
            WRITE_TIMEOUT_S + 10,
            "stalled streams are settled",
        )
        assert time.monotonic() - started_s >= WRITE_TIMEOUT_S * 0.5
    finally:
        for client in clients:
            client.leave(rudely=True)
    for client in clients:
        assert strict.router.line_of(client.request_id)["outcome"] == "client_aborted"
