"""The nginx site in front of the router, with a real nginx and a backend that records."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.backend.received import Request
from tests.fakes.backend.scripts import chunk, reply, serving
from tests.fakes.backend.server import FakeServer, Peer

SITE = Path(__file__).resolve().parents[2] / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
TIMEOUT_S = 10.0

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(NGINX is None, reason="NGINX IS NOT INSTALLED: the site is not tested"),
]

MAIN = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/site.conf;
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_configuration(directory: Path, *, port: int, backend_port: int) -> list[str]:
    """The shipped site with this test's ports and times; returns the command that uses it."""
    site = SITE.read_text("utf-8")
    replacements = {
        "listen 80;": f"listen 127.0.0.1:{port};",
        "server 127.0.0.1:8080;": f"server 127.0.0.1:{backend_port};",
        "access_log /var/log/nginx/access.log api_router;": (
            f"access_log {directory}/access.log api_router;"
        ),
    }
    for shipped, ours in replacements.items():
        assert site.count(f"    {shipped}\n") == 1, f"the site no longer says {shipped!r}"
        site = site.replace(f"    {shipped}\n", f"    {ours}\n")
    (directory / "site.conf").write_text(site, "utf-8")
    (directory / "nginx.conf").write_text(MAIN.format(directory=directory), "utf-8")
    assert NGINX is not None
    return [NGINX, "-p", str(directory), "-e", "stderr", "-c", str(directory / "nginx.conf")]


class Backend(FakeServer):
    """Stands where the router stands: records requests, answers a stream in two halves."""

    def __init__(self) -> None:
        self.second_half = threading.Event()
        super().__init__(serving(self._answer))

    def _answer(self, peer: Peer, request: Request) -> bool:
        if request.path != "/stream":
            status = 413 if request.path == "/refused" else 200
            peer.send(reply(b"{}", status, headers=("Content-Type: application/json",)))
            return True
        headers = ("Content-Type: text/event-stream", "X-Accel-Buffering: no")
        peer.send(
            reply(b"", headers=(*headers, "Transfer-Encoding: chunked"), length=False)
            + chunk(b"data: 1\n\n")
        )
        self.second_half.wait(TIMEOUT_S)
        peer.send(chunk(b"data: 2\n\n") + chunk(b""))
        return True


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend
        backend.second_half.set()


@pytest.fixture
def site(backend: Backend, tmp_path: Path) -> Iterator[int]:
    """The port of a running nginx that serves the shipped site."""
    yield from running_site(tmp_path, backend.port)


@pytest.fixture
def site_without_router(tmp_path: Path) -> Iterator[int]:
    yield from running_site(tmp_path, free_port())


def running_site(directory: Path, backend_port: int) -> Iterator[int]:
    port = free_port()
    command = write_configuration(directory, port=port, backend_port=backend_port)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield port
    finally:
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "nginx did not start"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    pytest.fail("nginx does not listen")


def post(
    port: int, path: str, *, body: bytes = b"{}", headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, body, headers or {})
        reply = connection.getresponse()
        return reply, reply.read()
    finally:
        connection.close()


def test_nginx_accepts_the_site(tmp_path: Path) -> None:
    """`nginx -t` has nothing to say against the shipped file, warnings included."""
    command = write_configuration(tmp_path, port=free_port(), backend_port=8080)
    verdict = subprocess.run(
        [*command, "-t"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert verdict.returncode == 0, verdict.stderr
    assert "test is successful" in verdict.stderr
    assert "[warn]" not in verdict.stderr


def test_a_clients_request_id_goes_through(site: int, backend: Backend) -> None:
    """The id that the client chose is the one in every log."""
    post(site, "/v1/inference", headers={"X-Request-ID": "order-17.b:3"})
    assert backend.requests[0].header("x-request-id") == "order-17.b:3"


@pytest.mark.parametrize("sent", [None, "two words", "x" * 129])
def test_an_absent_or_unusable_request_id_is_replaced(
    site: int, backend: Backend, sent: str | None
) -> None:
    """The router always gets an id that it can use."""
    post(site, "/v1/inference", headers={} if sent is None else {"X-Request-ID": sent})
    received = backend.requests[0].header("x-request-id")
    assert re.fullmatch("[0-9a-f]{32}", received or "")


def test_the_clients_address_is_appended(site: int, backend: Backend) -> None:
    """A forged X-Forwarded-For stays in front of the address that nginx saw."""
    post(site, "/v1/inference", headers={"X-Forwarded-For": "203.0.113.9"})
    assert backend.requests[0].header("x-forwarded-for") == "203.0.113.9, 127.0.0.1"


@pytest.mark.parametrize("path", ["/v1/%2e%2e/admin?a=%20b", "/v1//models", "/v1/a%2fb"])
def test_the_path_is_not_rewritten(site: int, backend: Backend, path: str) -> None:
    """Signatures cover the path, and the router must see what the client really sent."""
    post(site, path)
    assert [request.target for request in backend.requests] == [path]


def test_the_access_log_keeps_no_query(site: int, tmp_path: Path) -> None:
    """No secret of a query string, or of the Referer, is kept; the line is found by its id."""
    headers = {
        "X-Request-ID": "order-17",
        "Referer": "https://page.example/?token=canary-in-referer",
    }
    post(site, "/v1/usage?key=canary-in-query", headers=headers)
    log = tmp_path / "access.log"
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (text := log.read_text("utf-8")) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert '"POST /v1/usage HTTP/1.1" 200 ' in text
    assert " order-17 " in text
    assert "canary" not in text


def test_connections_to_the_router_are_reused(site: int, backend: Backend) -> None:
    """Twenty calls by twenty clients take one connection, on HTTP/1.1 without `close`."""
    for _ in range(20):
        post(site, "/v1/inference")
    assert backend.connections == 1
    assert backend.requests[-1].header("connection") is None


def test_an_event_reaches_the_client_before_the_next_exists(site: int, backend: Backend) -> None:
    """S1: `X-Accel-Buffering: no` turns buffering off for streams."""
    connection = http.client.HTTPConnection("127.0.0.1", site, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/stream", b"{}")
        reply = connection.getresponse()
        assert reply.read1(100) == b"data: 1\n\n"
        backend.second_half.set()
        assert reply.read() == b"data: 2\n\n"
    finally:
        connection.close()


def test_a_body_over_the_routers_limit_still_reaches_it(site: int, backend: Backend) -> None:
    """The refusal of 10 MiB and a byte is the router's, in the client's dialect."""
    reply, body = post(site, "/refused", body=b"x" * (10 * 2**20 + 1))
    assert (reply.status, body) == (413, b"{}")
    assert len(backend.requests) == 1


def test_a_body_far_over_the_limit_is_refused_in_json(site: int, backend: Backend) -> None:
    """nginx's own refusal has the native error's shape."""
    with socket.create_connection(("127.0.0.1", site), TIMEOUT_S) as client:
        client.sendall(
            b"POST /v1/inference HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n"
        )
        reply = http.client.HTTPResponse(client)
        reply.begin()
        body = json.loads(reply.read())
    assert reply.status == 413
    assert set(body) == {"error", "code", "trace_id"}
    assert backend.requests == []


def test_a_router_that_is_unavailable_is_a_503(site_without_router: int) -> None:
    """Our own trouble is 503 with `Retry-After`, never a 502 page in HTML."""
    reply, body = post(site_without_router, "/v1/inference", headers={"X-Request-ID": "a-1"})
    assert reply.status == 503
    assert reply.headers["Retry-After"] == "1"
    assert reply.headers["X-Request-ID"] == "a-1"
    assert json.loads(body)["code"] == "ROUTER_UNAVAILABLE"
