"""The pooled HTTP connections to the budget service, with one deadline for a whole exchange.

urllib3 bounds each wait only, so a service that trickles could take any time. Here the look-up of
the name, all addresses that are tried, and every read and write share one deadline. No proxies or
passwords of the environment, no redirects, no cookies, no library retries.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from http.client import HTTPException
from typing import Any, Final

import orjson
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NewConnectionError, SSLError, TimeoutError

from router.breaker import Reason, Unavailable
from router.net.deadline_socket import DeadlineTlsSocket, open_socket
from router.net.resolver import Resolve, system_resolve
from router.net.sockets import next_deadline_s

NAME: Final = "budget service"
MAX_CONNECTIONS: Final = 64
MAX_REPLY_BYTES: Final = 1024 * 1024


class BudgetSession:
    """Talks to one service; raises :class:`Unavailable` without a whole reply in time."""

    def __init__(
        self,
        *,
        timeout_s: float,
        token: str | None = None,
        resolve: Resolve = system_resolve,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._free = threading.BoundedSemaphore(max_connections)
        self._headers = {
            "Accept": "application/json",
            # A compressed reply could unpack to any multiple of its size.
            "Accept-Encoding": "identity",
            "User-Agent": "api-router",
            **({"Authorization": f"Bearer {token}"} if token else {}),
        }
        tls = ssl.create_default_context()
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.sslsocket_class = DeadlineTlsSocket
        self._pools = PoolManager(num_pools=1, maxsize=max_connections, ssl_context=tls)
        self._pools.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def post(self, url: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body of the reply. The request may arrive twice."""
        data = orjson.dumps(body)
        deadline_s = time.monotonic() + self._timeout_s
        try:
            return self._exchange("POST", url, data, deadline_s)
        except Unavailable as error:
            # Most likely an idle connection that the service had given up.
            if error.reason != "lost" or time.monotonic() >= deadline_s:
                raise
        return self._exchange("POST", url, data, deadline_s)

    def get(self, url: str) -> tuple[int, bytes]:
        """Status and body of the reply."""
        return self._exchange("GET", url, None, time.monotonic() + self._timeout_s)

    def close(self) -> None:
        """Close idle connections."""
        self._pools.clear()

    def _exchange(
        self, method: str, url: str, data: bytes | None, deadline_s: float
    ) -> tuple[int, bytes]:
        wait_s = max(0.0, deadline_s - time.monotonic())
        if not (self._free.acquire(timeout=wait_s) or self._free.acquire(blocking=False)):
            raise Unavailable(NAME, "pool_wait")
        _current.deadline_s, _current.resolve, _current.is_sent = deadline_s, self._resolve, False
        try:
            return self._send(method, url, data)
        except (HTTPError, HTTPException, OSError, ValueError) as error:
            raise Unavailable(NAME, _reason(error, deadline_s), type(error).__name__) from None
        finally:
            self._free.release()

    def _send(self, method: str, url: str, data: bytes | None) -> tuple[int, bytes]:
        content_type = {"Content-Type": "application/json"} if data else {}
        response = self._pools.request(
            method,
            url,
            body=data,
            headers={**self._headers, **content_type},
            timeout=None,  # the sockets have their deadline
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        try:
            body = response.read(MAX_REPLY_BYTES + 1)
            if len(body) > MAX_REPLY_BYTES:
                raise ValueError("the reply is too large")
            return response.status, body
        finally:
            response.close()  # a connection whose reply was read to its end is in the pool again


class _Current(threading.local):
    """The exchange of this thread (under gevent: of this greenlet), for its connection."""

    deadline_s = 0.0
    resolve: Resolve = staticmethod(system_resolve)
    is_sent = False
    """Whether a connection was there, so that the service may have got the request."""


_current: Final = _Current()


class _Deadline:
    """The part of a connection that obeys the deadline of the current exchange."""

    sock: Any

    def _new_conn(self: Any) -> socket.socket:
        try:
            deadline_s = next_deadline_s(_current.deadline_s)
            addresses = _current.resolve(self.host, deadline_s - time.monotonic())
            return open_socket(addresses, self.port or 0, deadline_s)
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request; a connection that was there before gets the new deadline."""
        if self.sock is not None:
            self.sock.deadline_s = _current.deadline_s
            _current.is_sent = True
        super().request(*args, **kwargs)  # type: ignore[misc]


class _Connection(_Deadline, HTTPConnection):
    pass


class _TlsConnection(_Deadline, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def _reason(error: Exception, deadline_s: float) -> Reason:
    """``connect`` only where the service cannot have got the request."""
    if isinstance(error, NewConnectionError):
        return "connect"
    if isinstance(error, SSLError) and not _current.is_sent:
        return "connect"
    is_late = time.monotonic() >= deadline_s or isinstance(error, TimeoutError)
    return "timeout" if is_late else "lost"
