"""A busy event loop is no slow dependency: what was answered in time counts, however late the
worker comes to look."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import trustme

from tests.fakes.redis_server import BINARY, free_port, running
from tests.fakes.redis_topologies import ClusterServers, SentinelServer

PROGRAM = Path(__file__).with_name("busy_worker.py")
ROOT = PROGRAM.parents[2]
needs_redis = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")
CALLS = 32


@contextmanager
def tcp_server(directory: Path) -> Iterator[str]:
    with running(directory) as server:
        yield server.url


@contextmanager
def named_server(directory: Path) -> Iterator[str]:
    with running(directory) as server:
        yield f"redis://localhost:{server.port}"


@contextmanager
def server_with_a_password(directory: Path) -> Iterator[str]:
    with running(directory, "--requirepass", "secret") as server:
        yield f"redis://:secret@127.0.0.1:{server.port}/1"


@contextmanager
def unix_server(directory: Path) -> Iterator[str]:
    with running(directory, unix=True) as server:
        yield server.url


@contextmanager
def tls_server(directory: Path) -> Iterator[str]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(directory / "server.pem"))
    port, pem = free_port(), str(directory / "server.pem")
    assert BINARY is not None
    # It ends at once, for want of a certificate or of TLS.
    told = subprocess.run(
        [BINARY, "--port", "0", "--tls-port", str(port)], capture_output=True, check=False
    )
    if b"Failed to configure TLS" not in told.stdout + told.stderr:
        pytest.skip("THIS REDIS SERVER WAS BUILT WITHOUT TLS")
    with running(
        directory, "--tls-port", str(port), "--tls-auth-clients", "no",
        "--tls-cert-file", pem, "--tls-key-file", pem, "--tls-ca-cert-file", f"{directory}/ca.pem",
    ):  # fmt: skip
        yield f"rediss://127.0.0.1:{port}?ssl_ca_certs={directory / 'ca.pem'}"


@contextmanager
def sentinel(directory: Path) -> Iterator[str]:
    with running(directory / "master") as master:
        watching = SentinelServer(directory / "sentinel", master)
        try:
            watching.start()
            yield f"redis+sentinel://127.0.0.1:{watching.port}/mymaster"
        finally:
            watching.close()


@contextmanager
def cluster(directory: Path) -> Iterator[str]:
    servers = ClusterServers(directory)
    try:
        servers.start()
        yield servers.url(servers.nodes[0])
    finally:
        servers.close()


def answers(kind: str, url: str) -> dict[str, int]:
    """What the calls of a busy worker met."""
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), kind, url],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    met: dict[str, int] = json.loads(ran.stdout)
    return met


@needs_redis
@pytest.mark.parametrize(
    "server",
    [tcp_server, named_server, server_with_a_password, unix_server, tls_server, sentinel, cluster],
)
def test_calls_of_a_cold_worker_are_decided(server, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """R5, P9: no connection, no script and no master known, 32 calls at once, each of which keeps
    the loop busy: Redis has answered all of them at once, so all are decided."""
    with server(tmp_path) as url:
        assert answers("redis", url) == {"answered": CALLS}


REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class AnswersAtOnce(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, _data: bytes) -> None:
        self.transport.write(REPLY)


@contextmanager
def http_server() -> Iterator[int]:
    """The port of a server that answers whatever comes, in its own thread."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        loop.create_server(AnswersAtOnce, "127.0.0.1", 0, backlog=2 * CALLS)
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


@pytest.mark.parametrize("kind", ["budget", "backend"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_busy_worker_connects(kind: str, host: str) -> None:
    """The same for a budget service and for backends."""
    with http_server() as port:
        assert answers(kind, f"http://{host}:{port}/") == {"answered": CALLS}
