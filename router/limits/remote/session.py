"""The pooled ``requests`` session to the budget service, with one deadline for a whole question.

``requests`` bounds each wait, so a service that trickles would never be late. Here every read and
write of the socket gets what is left of the time, the lookup of the name and all addresses that are
tried included. No proxies or passwords of the environment, no redirects, no cookies, no library
retries.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final, cast

import orjson
import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NewConnectionError

from router.breaker import Reason, Unavailable
from router.net.resolver import Resolve, system_resolve

NAME: Final = "budget service"
MAX_CONNECTIONS: Final = 64
MAX_REPLY_BYTES: Final = 1024 * 1024
_LONGEST_WAIT_S: Final = 3600.0


class BudgetSession:
    """Asks one service. Whatever is no whole answer in time raises :class:`Unavailable`."""

    def __init__(
        self,
        *,
        timeout_s: float,
        token: str | None = None,
        resolve: Resolve = system_resolve,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._timeout_s = timeout_s
        self._free = threading.BoundedSemaphore(max_connections)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.headers = {
            "Accept": "application/json",
            # What is unpacked could be any number of times what was sent.
            "Accept-Encoding": "identity",
            "User-Agent": "api-router",
            **({"Authorization": f"Bearer {token}"} if token else {}),
        }
        self._resolve = resolve
        adapter = _Adapter(max_connections)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def post(self, url: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body of the answer. The question may arrive twice."""
        data = orjson.dumps(body)
        deadline_s = time.monotonic() + self._timeout_s
        try:
            return self._ask("POST", url, data, deadline_s)
        except Unavailable as error:
            # Most likely a connection that the service had given up while it was not used.
            if error.reason != "lost" or time.monotonic() >= deadline_s:
                raise
        return self._ask("POST", url, data, deadline_s)

    def get(self, url: str) -> tuple[int, bytes]:
        """Status and body of the answer."""
        return self._ask("GET", url, None, time.monotonic() + self._timeout_s)

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()

    def _ask(
        self, method: str, url: str, data: bytes | None, deadline_s: float
    ) -> tuple[int, bytes]:
        if not self._free.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            raise Unavailable(NAME, "pool_wait")
        try:
            return self._exchange(method, url, data, deadline_s)
        except (requests.RequestException, HTTPError, HTTPException, OSError, ValueError) as error:
            reason = _reason(error, late=time.monotonic() >= deadline_s)
            raise Unavailable(NAME, reason, type(error).__name__) from None
        finally:
            self._free.release()

    def _exchange(
        self, method: str, url: str, data: bytes | None, deadline_s: float
    ) -> tuple[int, bytes]:
        _question.deadline_s, _question.resolve = deadline_s, self._resolve
        response = self._session.request(
            method,
            url,
            data=data,
            headers={"Content-Type": "application/json"} if data else None,
            timeout=max(0.001, deadline_s - time.monotonic()),
            allow_redirects=False,
            stream=True,
        )
        with response:
            body = response.raw.read(MAX_REPLY_BYTES + 1, decode_content=False)
            if len(body) > MAX_REPLY_BYTES:
                response.raw.close()  # whatever else comes is not waited for
                raise ValueError("the answer is too large")
            return response.status_code, body


class _Question(threading.local):
    """What this thread (under gevent: this greenlet) asks, for the connection that it will use."""

    deadline_s = 0.0
    resolve: Resolve = staticmethod(system_resolve)


_question: Final = _Question()


class _TimedSocket(socket.socket):
    """A socket whose reads and writes all end at ``deadline_s``."""

    deadline_s = float("inf")

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_left_s(self.deadline_s))
        return super().recv_into(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.settimeout(_left_s(self.deadline_s))
        super().sendall(*args, **kwargs)


class _TimedTlsSocket(ssl.SSLSocket):
    """The same over TLS, once hands are shaken."""

    deadline_s = float("inf")

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_left_s(self.deadline_s))
        return super().recv_into(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.settimeout(_left_s(self.deadline_s))
        super().sendall(*args, **kwargs)


class _TimedConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request; a connection that was there before gets the new deadline."""
        if self.sock is not None:
            cast(_TimedSocket, self.sock).deadline_s = _question.deadline_s
        super().request(*args, **kwargs)


class _TimedTlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        """The same; urllib3 has connected before."""
        cast(_TimedTlsSocket, self.sock).deadline_s = _question.deadline_s
        super().request(*args, **kwargs)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _TimedConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TimedTlsConnection


class _Adapter(HTTPAdapter):
    def __init__(self, max_connections: int) -> None:
        super().__init__(
            pool_connections=1, pool_maxsize=max_connections, max_retries=0, pool_block=False
        )

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Pools of connections that know their deadline."""
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslsocket_class = _TimedTlsSocket
        super().init_poolmanager(*args, **kwargs, ssl_context=context)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}


def _connect(connection: HTTPConnection) -> socket.socket:
    failure: OSError = OSError("it has no address")
    try:
        for address in _question.resolve(connection.host, _left_s(_question.deadline_s)):
            try:
                return _connect_to(address, connection.port or 0)
            except OSError as error:
                failure = error
    except OSError as error:  # the name could not be looked up, or not in time
        failure = error
    raise NewConnectionError(connection, str(failure)) from failure


def _connect_to(address: str, port: int) -> socket.socket:
    sock = _TimedSocket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        sock.settimeout(_left_s(_question.deadline_s))
        sock.connect((address, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.deadline_s = _question.deadline_s
    except BaseException:
        sock.close()
        raise
    return sock


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the time is up")
    return min(left_s, _LONGEST_WAIT_S)


def _reason(error: Exception, *, late: bool) -> Reason:
    """Whether the service can have heard the question: not when no connection was made."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(cause, NewConnectionError) or isinstance(error, requests.exceptions.SSLError):
        return "connect"
    return "timeout" if late or isinstance(error, requests.Timeout) else "lost"
