"""Connections to one Redis server, every option of them set here and nowhere else."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import hiredis
from redis.backoff import NoBackoff
from redis.connection import Connection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from router.net.deadline_socket import (
    DeadlineSocket,
    DeadlineTlsSocket,
    open_socket,
    secured,
)
from router.net.resolver import Resolve, system_resolve
from router.net.sockets import hang_up, next_deadline_s
from router.redis.address import Credentials, HostPort

NO_LOGIN: Final = Credentials()
TIMEOUT_S: Final = 0.05
MAX_CONNECTIONS: Final = 64


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """How to talk to a server. :class:`RedisClient` sets what the address of the server says."""

    login: Credentials = NO_LOGIN
    db: int = 0
    tls: ssl.SSLContext | None = None
    timeout_s: float = TIMEOUT_S
    """For all that one decision needs, connecting and waiting for a connection included."""
    max_connections: int = MAX_CONNECTIONS
    pipeline_commands: bool = False
    """Whether commands that are sent in one turn of gevent's loop share one exchange."""
    resolve: Resolve = system_resolve


def library_options(options: ConnectionOptions) -> dict[str, Any]:
    """The arguments for redis-py. Its defaults would be ten retries and five seconds."""
    return {
        "socket_timeout": options.timeout_s,
        "socket_connect_timeout": options.timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": [],
        # The pool looks at an idle connection before it uses it. A PING would cost a round trip
        # and show no more.
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


_INCOMPLETE: Final = object()
_READ_BYTES: Final = 16384


class RedisConnection(Protocol):
    """What the pool uses of redis-py's connections, which carry hardly any types."""

    _sock: DeadlineSocket | DeadlineTlsSocket | None

    def set_deadline(self, deadline_s: float) -> None:
        """End every wait at ``deadline_s``, connecting and logging in included."""

    def connect(self) -> None:
        """Connect and log in."""

    def disconnect(self) -> None:
        """Close the socket; for the thread that uses the connection."""

    def hang_up(self) -> None:
        """Fail what the thread that uses the connection waits for, so that it disconnects."""

    def exchange(self, commands: bytes, count: int) -> list[object]:
        """Send packed commands, read ``count`` replies; an error that Redis answers is a reply.
        Raises ``TimeoutError``, else an ``OSError`` or a ``RedisError``."""

    def send_packed_command(self, command: Sequence[bytes], check_health: bool = True) -> None:
        """Write bytes that are in Redis' format already."""

    def read_response(
        self, disable_decoding: bool = False, *, disconnect_on_error: bool = True
    ) -> object:
        """The next reply; an error that Redis answered is raised."""


class _Deadline:
    """The part of a connection that knows its deadline."""

    _sock: Any
    _parser: Any
    _replies: hiredis.Reader | None = None
    deadline_s = 0.0

    def set_deadline(self, deadline_s: float) -> None:
        """As :meth:`RedisConnection.set_deadline`."""
        self.deadline_s = deadline_s
        if self._sock is not None:
            self._sock.deadline_s = deadline_s

    def exchange(self, commands: bytes, count: int) -> list[object]:
        """As :meth:`RedisConnection.exchange`: the library's reader, without the layers above it,
        which would be a tenth of what a call costs."""
        sock, reader = self._sock, self._replies
        if reader is None:  # the library has read all that came before
            reader = self._replies = hiredis.Reader(
                protocolError=InvalidResponse,
                replyError=self._parser.parse_error,
                notEnoughData=_INCOMPLETE,
            )
        sock.sendall(commands)
        replies: list[object] = []
        while len(replies) < count:
            reply = reader.gets()
            if reply is _INCOMPLETE:
                data = sock.recv(_READ_BYTES)
                if not data:
                    raise ConnectionResetError("closed by Redis")
                reader.feed(data)
            elif isinstance(reply, RedisConnectionError):  # it serves nobody now
                raise reply
            else:
                replies.append(reply)
        return replies

    def hang_up(self) -> None:
        """As :meth:`RedisConnection.hang_up`."""
        sock = self._sock
        if sock is not None:
            hang_up(sock)


class _TcpConnection(_Deadline, Connection):
    """A connection over TCP, with TLS where the options have it."""

    def __init__(self, address: HostPort, options: ConnectionOptions) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            host=address[0], port=address[1], **library_options(options)
        )
        self._tls = options.tls
        self._resolve = options.resolve

    def _connect(self) -> socket.socket:
        deadline_s = next_deadline_s(self.deadline_s)
        addresses = self._resolve(self.host, deadline_s - time.monotonic())
        sock: DeadlineSocket | DeadlineTlsSocket
        sock = open_socket(addresses, self.port, deadline_s)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is not None:
                sock = secured(sock, self._tls, self.host)
        except BaseException:
            sock.close()
            raise
        return sock


class _UnixConnection(_Deadline, UnixDomainSocketConnection):
    """A connection over a unix socket."""

    # The library reads both when a connection times out, and fails where they are missing.
    host = ""
    port = 0

    def __init__(self, path: str, options: ConnectionOptions) -> None:
        super().__init__(path=path, **library_options(options))  # type: ignore[no-untyped-call]

    def _connect(self) -> socket.socket:
        sock = DeadlineSocket(socket.AF_UNIX)
        try:
            sock.deadline_s = next_deadline_s(self.deadline_s)
            sock.settimeout(sock.deadline_s - time.monotonic())
            sock.connect(self.path)
        except BaseException:
            sock.close()
            raise
        return sock


def tcp_connection(address: HostPort, options: ConnectionOptions) -> RedisConnection:
    """A connection over TCP, not connected yet."""
    return cast(RedisConnection, _TcpConnection(address, options))


def unix_connection(path: str, options: ConnectionOptions) -> RedisConnection:
    """A connection over a unix socket, not connected yet."""
    # redis-py leaves the property `host` of its own base class abstract here.
    return cast(RedisConnection, cast(Any, _UnixConnection)(path, options))
