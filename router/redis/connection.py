"""Connections to one Redis server, every option of them set here and nowhere else."""

from __future__ import annotations

import _socket
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from redis.backoff import NoBackoff
from redis.connection import Connection, UnixDomainSocketConnection
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from router.redis.address import Credentials, HostPort

Resolve = Callable[[str, float], Sequence[str]]
"""Host and seconds that may pass → addresses, best first."""

NO_LOGIN: Final = Credentials()
TIMEOUT_S: Final = 0.05
MAX_CONNECTIONS: Final = 64


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """How to talk to a server."""

    login: Credentials = NO_LOGIN
    db: int = 0
    tls: ssl.SSLContext | None = None
    timeout_s: float = TIMEOUT_S
    """For everything that one exchange needs, connecting and waiting for a connection included."""
    max_connections: int = MAX_CONNECTIONS
    pipeline_commands: bool = False
    """Whether exchanges of one turn of gevent's loop go over one connection together."""


def library_options(options: ConnectionOptions) -> dict[str, Any]:
    """What redis-py is told. Nothing is left to its defaults: ten retries and five seconds."""
    return {
        "socket_timeout": options.timeout_s,
        "socket_connect_timeout": options.timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": [],
        # Idle connections are looked at when they are taken from the pool; a PING would cost a
        # round trip and tell no more.
        "health_check_interval": 0,
        # RESP2 needs no handshake, so a new connection can send its first command at once.
        "protocol": 2,
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "decode_responses": False,
        "db": options.db,
        "username": options.login.username,
        "password": options.login.password,
    }


class RedisConnection(Protocol):
    """What the pool uses of redis-py's connections, which carry hardly any types."""

    _sock: socket.socket | None
    deadline_s: float

    def connect(self) -> None:
        """Be connected and logged in before ``deadline_s``."""

    def disconnect(self) -> None:
        """Close the socket."""

    def send_packed_command(self, command: Sequence[bytes], check_health: bool = True) -> None:
        """Write bytes that are in Redis' format already."""

    def read_response(
        self, disable_decoding: bool = False, *, disconnect_on_error: bool = True
    ) -> object:
        """The next reply; an error that Redis answered is raised."""


class TcpConnection(Connection):
    """A connection that is there, logged in and encrypted, before ``deadline_s``, or fails."""

    def __init__(self, address: HostPort, options: ConnectionOptions, resolve: Resolve) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            host=address[0], port=address[1], **library_options(options)
        )
        self.deadline_s = 0.0
        self._tls = options.tls
        self._resolve = resolve

    def _connect(self) -> socket.socket:
        failure: OSError = OSError(f"{self.host} has no address")
        for address in self._resolve(self.host, _left_s(self.deadline_s)):
            try:
                return self._connect_to(address)
            except OSError as error:
                failure = error
        raise failure

    def _connect_to(self, address: str) -> socket.socket:
        sock = socket.create_connection((address, self.port), _left_s(self.deadline_s))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self.host)
            sock.settimeout(_left_s(self.deadline_s))
        except BaseException:
            sock.close()
            raise
        return sock


class UnixConnection(UnixDomainSocketConnection):
    """The same over a unix socket."""

    # The library asks for both when a connection is late, and fails where they are missing.
    host = ""
    port = 0

    def __init__(self, path: str, options: ConnectionOptions) -> None:
        super().__init__(path=path, **library_options(options))  # type: ignore[no-untyped-call]
        self.deadline_s = 0.0

    def _connect(self) -> socket.socket:
        sock: socket.socket = super()._connect()  # type: ignore[no-untyped-call]
        try:
            sock.settimeout(_left_s(self.deadline_s))
        except BaseException:
            sock.close()
            raise
        return sock


def tcp_connection(
    address: HostPort, options: ConnectionOptions, resolve: Resolve
) -> RedisConnection:
    """A connection over TCP, not connected yet."""
    return cast(RedisConnection, TcpConnection(address, options, resolve))


def unix_connection(path: str, options: ConnectionOptions) -> RedisConnection:
    """A connection over a unix socket, not connected yet."""
    # redis-py leaves the property `host` of its own base class abstract here.
    return cast(RedisConnection, cast(Any, UnixConnection)(path, options))


def system_resolve(host: str, timeout_s: float) -> list[str]:
    """The addresses that the system knows. It may take longer than ``timeout_s``: production
    injects a resolver that does not."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def has_input(sock: socket.socket) -> bool:
    """True when a read would not wait: a reply, the end of the stream or an error is there."""
    raw = getattr(sock, "_sock", sock)  # gevent keeps the real socket in there, non-blocking
    if raw is not sock:
        return _peeks(raw)
    timeout_s = sock.gettimeout()
    sock.settimeout(0.0)
    try:
        return _peeks(sock)
    finally:
        sock.settimeout(timeout_s)


def _peeks(raw: _socket.socket) -> bool:
    try:
        _socket.socket.recv(raw, 1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("no time left to connect")
    return left_s
