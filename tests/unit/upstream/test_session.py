"""The one ``requests.Session``: what it does like any other, and what it never does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from router.upstream.session import BackendRequest, BackendSession
from router.upstream.targets import endpoint_of
from router.upstream.transport import Exchange, TransportError
from tests.fakes.backend.scripts import answer, reply, silent
from tests.fakes.backend.server import FakeServer
from tests.unit.upstream.builders import REPLY_BYTES, deadlines, head

Serve = Callable[..., FakeServer]


def request_to(server: FakeServer, body: bytes = b"{}") -> BackendRequest:
    return BackendRequest(
        endpoint=server.endpoint,
        url=server.url + "/v1/chat/completions",
        head=head(body),
        body=body,
        deadlines=deadlines(),
    )


def call(session: BackendSession, server: FakeServer) -> tuple[int, bytes]:
    exchange = session.exchange(request_to(server))
    return exchange.status, exchange.read_all(REPLY_BYTES)


def test_a_dispatch_is_sent_as_it_stands(serve: Serve, session: BackendSession) -> None:
    """The bytes on the wire are the prepared ones and nothing else."""
    server = serve(answer(reply(b"hello")))
    assert call(session, server) == (200, b"hello")
    assert server.requests == [head() + b"{}"]


def test_it_is_a_requests_session(serve: Serve, session: BackendSession) -> None:
    """Hooks, response attributes and ``raise_for_status`` work as everywhere."""
    seen: list[requests.Response] = []

    def note(response: requests.Response, **_: Any) -> None:
        seen.append(response)

    request = request_to(serve(answer(reply(b"busy", 503))))
    request.hooks["response"].append(note)
    assert isinstance(session, requests.Session)
    response = session.send(request, stream=True, allow_redirects=False)
    assert seen == [response]
    assert (response.status_code, response.ok, response.url) == (503, False, request.url)
    assert response.elapsed.total_seconds() > 0
    assert isinstance(response.raw, Exchange)
    with pytest.raises(requests.HTTPError, match="503 Server Error"):
        response.raise_for_status()


@pytest.mark.parametrize("method", ["get", "post", "put", "delete", "head", "options"])
def test_only_prepared_calls_are_sent(serve: Serve, session: BackendSession, method: str) -> None:
    """The session cannot be talked into fetching a URL (Z1)."""
    server = serve(answer(reply()))
    with pytest.raises(TransportError, match="not a backend call"):
        getattr(session, method)(server.url + "/anything")
    with pytest.raises(requests.exceptions.InvalidSchema):
        session.get("file:///etc/passwd")
    assert server.requests == []


def test_the_environment_has_no_say(
    serve: Serve, session: BackendSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither proxies nor a ``.netrc`` nor other certificates change a call (X3)."""
    proxy, backend = serve(silent), serve(answer(reply(b"direct")))
    netrc = tmp_path / ".netrc"
    netrc.write_text(
        "machine 127.0.0.1 login mallory password canary\ndefault login a password b\n"
    )
    netrc.chmod(0o600)
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(netrc))
    with_environment = BackendSession(pool_size=1, idle_s=1.0)
    assert call(with_environment, backend) == (200, b"direct")
    assert call(session, backend) == (200, b"direct")
    with_environment.close()
    assert backend.requests == [head() + b"{}"] * 2
    assert proxy.connections == 0
    assert not session.trust_env


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer(serve: Serve, session: BackendSession, status: int) -> None:
    """It is never followed, so no credential goes where a backend points (Z1)."""
    elsewhere = serve(answer(reply()))
    backend = serve(answer(reply(b"go", status, headers=(f"Location: {elsewhere.url}/v1",))))
    assert call(session, backend) == (status, b"go")
    followed = session.send(request_to(backend), stream=True, allow_redirects=True)
    assert followed.status_code == status
    assert elsewhere.connections == 0
    assert len(backend.requests) == 2


def test_cookies_are_never_stored(serve: Serve, session: BackendSession) -> None:
    """What one call brings home no other call carries out."""
    cookie = "Set-Cookie: session=canary; Path=/; Domain=127.0.0.1"
    backend = serve(answer(reply(headers=(cookie, "Set-Cookie2: a=b"))))
    for _ in range(2):
        call(session, backend)
    session.cookies.set("planted", "canary")
    call(session, backend)
    assert backend.requests == [head() + b"{}"] * 3
    session.cookies.clear()


def test_backends_do_not_share_connections(serve: Serve, session: BackendSession) -> None:
    """A connection belongs to one scheme, host and port."""
    one, two = serve(answer(reply(b"one"))), serve(answer(reply(b"two")))
    assert [call(session, server)[1] for server in (one, two, one, two)] == [
        b"one", b"two", b"one", b"two",
    ]  # fmt: skip
    assert (one.connections, two.connections) == (1, 1)
    assert session.transport.pool(one.endpoint) is session.transport.pool(one.endpoint)
    assert session.transport.pool(one.endpoint) is not session.transport.pool(two.endpoint)


def test_the_pool_has_the_size_that_was_set(serve: Serve) -> None:
    """Its size is explicit (X2), and closing the session leaves no connection."""
    server = serve(silent)
    session = BackendSession(pool_size=1, idle_s=1.0)
    held = session.transport.pool(server.endpoint).open(deadlines())
    request = request_to(server)
    request.deadlines = deadlines(connect_s=0.05)
    with pytest.raises(TransportError, match="pool exhausted"):
        session.exchange(request)
    held.close()
    session.close()


@pytest.mark.parametrize(
    ("base_url", "endpoint", "host", "prefix"),
    [
        ("http://gpu", ("http", "gpu", 80), "gpu", ""),
        ("http://gpu:80/v1", ("http", "gpu", 80), "gpu", "/v1"),
        ("http://gpu:443/v1", ("http", "gpu", 443), "gpu:443", "/v1"),
        ("https://api.example/v1", ("https", "api.example", 443), "api.example", "/v1"),
        ("https://api.example:443", ("https", "api.example", 443), "api.example", ""),
        ("https://GPU.Example:8443/a", ("https", "gpu.example", 8443), "gpu.example:8443", "/a"),
        ("http://[::1]:8000/v1", ("http", "::1", 8000), "[::1]:8000", "/v1"),
        ("https://[2001:db8::1]", ("https", "2001:db8::1", 443), "[2001:db8::1]", ""),
        ("http://127.0.0.1:8000", ("http", "127.0.0.1", 8000), "127.0.0.1:8000", ""),
    ],
)  # fmt: skip
def test_a_base_url_says_where_to_connect(
    base_url: str, endpoint: tuple[str, str, int], host: str, prefix: str
) -> None:
    """The default port goes unsaid in ``Host``, and an IPv6 address keeps its brackets there."""
    assert endpoint_of(base_url) == (endpoint, host, prefix)
