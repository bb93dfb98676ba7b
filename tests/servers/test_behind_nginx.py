"""The shipped nginx site in front of the real router."""

from __future__ import annotations

import http.client
import json
import statistics
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.servers.deployment import CHAT, HELLO, Deployment
from tests.servers.router_process import Reply
from tests.servers.streaming_client import StreamingClient
from tests.servers.test_nginx_conf import NGINX, running_site

pytestmark = pytest.mark.skipif(
    NGINX is None, reason="NGINX IS NOT INSTALLED: the router is not tested behind it"
)

CALLS = 200
TOKENS = 30
INTERVAL_S = 0.05


@pytest.fixture(scope="module")
def nginx(shared_deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx that serves the shipped site."""
    yield from running_site(tmp_path_factory.mktemp("nginx"), shared_deployment.router.port)


def headers(deployed: Deployment, request_id: str) -> dict[str, str]:
    return {
        "X-API-Key": deployed.key.key,
        "X-Request-ID": request_id,
        "Content-Type": "application/json",
    }


def test_calls_and_kept_connections(deployed: Deployment, nginx: int) -> None:
    """G2: on one kept connection, pauses included, each call is answered once."""
    connection = http.client.HTTPConnection("127.0.0.1", nginx, timeout=15)
    try:
        for number in range(CALLS):
            if number == CALLS // 2:
                time.sleep(1.0)
            body = json.dumps({"model": CHAT, "messages": HELLO})
            sent = headers(deployed, f"nginx-{number}")
            connection.request("POST", "/v1/chat/completions", body, sent)
            reply = connection.getresponse()
            assert (reply.status, reply.headers["X-Request-ID"]) == (200, f"nginx-{number}")
            reply.read()
    finally:
        connection.close()

    assert len(deployed.backend.requests) == CALLS


def test_a_stream_passes_event_by_event(deployed: Deployment, nginx: int) -> None:
    """S1: nothing is held back; the events come in the backend's own rhythm."""
    deployed.backend.set(tokens_output=TOKENS, token_interval_ms=INTERVAL_S * 1000)
    fields = {"model": CHAT, "messages": HELLO, "stream": True}
    sent = headers(deployed, str(uuid.uuid4()))
    with StreamingClient(nginx, "/v1/chat/completions", fields, sent) as client:
        status, found = client.read_head()
        moments = [client.read_event()[1] for _ in range(TOKENS)]
        assert b"[DONE]" in client.read_rest()

    assert (status, found["cache-control"]) == (200, "no-cache")
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert statistics.median(gaps) == pytest.approx(INTERVAL_S, abs=INTERVAL_S / 2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_backend(
    deployed: Deployment, nginx: int, stream: bool
) -> None:
    """S3: nginx passes the news on, and the backend's connection is closed within a second."""
    deployed.backend.set(latency_ms=0 if stream else 20_000, token_interval_ms=20_000)
    fields = {"model": CHAT, "messages": HELLO, "stream": stream}
    request_id = str(uuid.uuid4())
    sent = headers(deployed, request_id)
    with StreamingClient(nginx, "/v1/chat/completions", fields, sent) as client:
        deployed.backend.wait_for(lambda fake: fake.in_flight == 1)
        if stream:
            client.read_head()
        left_s = client.leave()
    deployed.backend.wait_for(lambda fake: fake.aborted == 1)

    assert time.monotonic() - left_s < 1.0
    assert deployed.router.line_of(request_id)["outcome"] == "client_aborted"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/inference"])
def test_a_body_over_the_limit_is_the_routers_413(
    deployed: Deployment, nginx: int, path: str
) -> None:
    """A body just over the router's limit is refused by it, in the dialect of the path."""
    reply = post(nginx, path, b" " * (10 * 2**20 + 1), headers(deployed, "large"))

    error = reply.json["error"]
    assert reply.status == 413
    assert (error["code"] if isinstance(error, dict) else reply.json["code"]).lower() == (
        "body_too_large"
    )
    assert len(deployed.backend.requests) == 0


@pytest.mark.parametrize("path", ["/v1/%2e%2e/models", "/v1//models", "/v1/models%2f"])
def test_ambiguous_paths_are_refused_by_the_router(
    deployed: Deployment, nginx: int, path: str
) -> None:
    """Z1: what nginx passes on untouched meets the router's own refusal."""
    connection = http.client.HTTPConnection("127.0.0.1", nginx, timeout=15)
    try:
        connection.request("GET", path, headers=headers(deployed, "path"))
        reply = connection.getresponse()
        body = json.loads(reply.read())
    finally:
        connection.close()

    assert reply.status == 400
    assert body["error"]["param"] == "path"


def post(port: int, path: str, body: bytes, sent: dict[str, str]) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    try:
        connection.request("POST", path, body, sent)
        reply = connection.getresponse()
        return Reply(reply.status, reply.headers, reply.read())
    finally:
        connection.close()
