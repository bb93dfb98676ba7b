"""The pooled ``requests`` session that every backend call goes through.

A plain ``requests.Session`` with our own transport adapter below it: no environment proxies, no
``.netrc``, no redirects, no cookie jar, no library retries. What ``Session.post`` would do on each
call (URL parsing, header merging, cookies) is done once per backend.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final

import requests
from requests.adapters import BaseAdapter
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from router.net.resolver import Resolver
from router.upstream.connection_pool import ConnectionPool, Endpoint
from router.upstream.transport import Deadlines, Exchange, TransportError

_NO_HEADERS: Final[CaseInsensitiveDict[str]] = CaseInsensitiveDict()
_NO_COOKIES: Final = RequestsCookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))


class BackendRequest(requests.PreparedRequest):
    """A prepared request with its endpoint, its bytes on the wire and its deadlines."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        url: str,
        head: bytes,
        body: bytes,
        deadlines: Deadlines,
        on_send: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.method = "POST"
        self.url = url
        self.headers = _NO_HEADERS
        self.body = body
        self.endpoint = endpoint
        self.head = head
        self.deadlines = deadlines
        self.on_send = on_send


class BackendResponse(requests.Response):
    """A response whose ``raw`` is the exchange; skips what this session never uses."""

    encoding = None
    reason = ""

    def __init__(self, request: BackendRequest, exchange: Exchange) -> None:
        # Not calling super().__init__(): it builds a cookie jar per reply, a third of its cost.
        self.status_code = exchange.status
        self.raw = exchange
        self.request = request
        self.url = request.url or ""
        self.headers = _NO_HEADERS
        self.cookies = _NO_COOKIES
        self.history = []
        self._content = False  # type: ignore[assignment]
        self._content_consumed = False
        self._next = None


class PooledAdapter(BaseAdapter):
    """Sends a :class:`BackendRequest` over a pooled connection; ``raw`` is the exchange."""

    def __init__(self, *, pool_size: int, idle_s: float) -> None:
        super().__init__()
        self._pool_size = pool_size
        self._idle_s = idle_s
        self._resolver = Resolver()
        self._tls = trusted_context()
        self._pools: dict[Endpoint, ConnectionPool] = {}

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """As :meth:`exchange`."""
        if not isinstance(request, BackendRequest):
            raise TransportError("not a backend call", sent=False)
        return BackendResponse(request, self.exchange(request))

    def exchange(self, request: BackendRequest) -> Exchange:
        """Raises ``TransportError``, ``BackendTimeout`` or ``ClientGone``; never retries."""
        exchange = self.pool(request.endpoint).open(request.deadlines)
        assert isinstance(request.body, bytes)
        exchange.run(request.head, request.body, request.on_send)
        return exchange

    def pool(self, endpoint: Endpoint) -> ConnectionPool:
        """The connections to one endpoint."""
        pool = self._pools.get(endpoint)
        if pool is None:
            pool = self._pools[endpoint] = ConnectionPool(
                endpoint,
                size=self._pool_size,
                idle_s=self._idle_s,
                resolver=self._resolver,
                tls=self._tls,
            )
        return pool

    def close(self) -> None:
        """Close every idle connection."""
        for pool in self._pools.values():
            pool.close()


class BackendSession(requests.Session):
    """The one session of a worker."""

    def __init__(self, *, pool_size: int, idle_s: float) -> None:
        super().__init__()
        self.trust_env = False
        self.max_redirects = 0
        self.cookies = _NO_COOKIES
        self.adapters.clear()
        self.transport = PooledAdapter(pool_size=pool_size, idle_s=idle_s)
        self.mount("http://", self.transport)
        self.mount("https://", self.transport)

    def resolve_redirects(self, *_: Any, **__: Any) -> Iterator[Any]:
        """Nothing: a redirect is a reply like any other, and is never followed."""
        return iter(())

    def exchange(self, request: BackendRequest) -> Exchange:
        """Send one request; the returned exchange has read the reply's head.

        What :meth:`send` does besides (hooks, cookies, redirects, the time taken) no call uses; it
        would be 1.3 % of what one costs.
        """
        return self.transport.exchange(request)


def trusted_context() -> ssl.SSLContext:
    """Verifies names and chains against the system's authorities and those of ``requests``."""
    context = ssl.create_default_context()
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python asks OpenSSL 3 to take a cut connection for a proper end; a reply without a declared
    # length could then be cut short by an attacker on the way.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(["http/1.1"])
    return context
