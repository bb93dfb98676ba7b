"""What the sentinels tell of failovers while they happen, so that nobody has to run into one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from router.redis.address import HostPort, RedisAddress
from router.redis.connection import ConnectionOptions, RedisConnection, tcp_connection
from router.redis.scripts import packed

SELECTED: Final = "+selected-slave"
"""The replica that will be promoted; the sentinel that leads the failover says so."""
PROMOTING: Final = "+failover-state-wait-promotion"
"""The same sentinel has just told it to be a master, one of its ticks (53 to 100 ms) later."""
SWITCHED: Final = "+switch-master"
"""The failover is done; each sentinel says so when it knows."""

_SUBSCRIBE: Final = packed(("SUBSCRIBE", SELECTED, PROMOTING, SWITCHED))
_PING: Final = packed(("PING",))
_SILENT_S: Final = 1.0
"""After so long a silence the sentinel is asked whether it is still there."""
_PAUSE_S: Final = 1.0

OnEvent = Callable[[str, HostPort], None]
"""Called with the event and the server that becomes, or is, the master."""


class SentinelEvents:
    """Listens to every sentinel, in a thread each, until closed.

    ``on_event`` is called for the failovers of the service, ``on_return`` when a sentinel can be
    heard again after a while in which it could not: it may have said something meanwhile.
    """

    def __init__(
        self,
        address: RedisAddress,
        options: ConnectionOptions,
        *,
        on_event: OnEvent,
        on_return: Callable[[], None],
    ) -> None:
        self._address = address
        self._options = options
        self._on_event = on_event
        self._on_return = on_return
        self._stopped = threading.Event()
        self._connections: dict[HostPort, RedisConnection] = {}

    def listen(self) -> None:
        """Begin. Returns at once."""
        for sentinel in self._address.hosts:
            threading.Thread(
                target=self._listen, args=(sentinel,), name="sentinel-events", daemon=True
            ).start()

    def close(self) -> None:
        """Hang up."""
        self._stopped.set()
        for connection in list(self._connections.values()):
            connection.hang_up()

    def _listen(self, sentinel: HostPort) -> None:
        was_lost = False
        while not self._stopped.is_set():
            connection = tcp_connection(sentinel, self._options)
            self._connections[sentinel] = connection
            try:
                _send(connection, _SUBSCRIBE)
                if was_lost:
                    self._on_return()
                self._hear(connection)
            except (RedisError, OSError):
                was_lost = True
            finally:
                connection.disconnect()
            self._stopped.wait(_PAUSE_S)

    def _hear(self, connection: RedisConnection) -> None:
        """Until the connection is lost; then raises."""
        was_asked = False
        while not self._stopped.is_set():
            connection.set_deadline(time.monotonic() + _SILENT_S)
            try:
                message = connection.read_response(disable_decoding=True, disconnect_on_error=False)
            except RedisTimeoutError:
                if was_asked:
                    raise
                _send(connection, _PING)
                was_asked = True
                continue
            was_asked = False
            self._understand(message)

    def _understand(self, message: object) -> None:
        match message:
            case [b"message", bytes() as channel, bytes() as text]:
                words = text.decode(errors="replace").split()
            case _:
                return
        event = channel.decode(errors="replace")
        match event, words:
            case "+switch-master", [service, _, _, host, port]:
                pass
            case _, [_, _, host, port, "@", service, *_]:
                pass
            case _:
                return
        if service == self._address.service and port.isdigit():
            self._on_event(event, (host, int(port)))


def role_of(address: HostPort, options: ConnectionOptions, deadline_s: float) -> str | None:
    """What a server says that it is: ``master``, ``slave``; ``None`` when it does not say."""
    connection = tcp_connection(address, options)
    try:
        connection.set_deadline(deadline_s)
        connection.connect()
        _send(connection, packed(("ROLE",)), deadline_s)
        reply = connection.read_response(disable_decoding=True, disconnect_on_error=False)
    except (RedisError, OSError):
        return None
    finally:
        connection.disconnect()
    match reply:
        case [bytes() as role, *_]:
            return role.decode(errors="replace")
    return None


def _send(connection: RedisConnection, command: bytes, deadline_s: float | None = None) -> None:
    connection.set_deadline(deadline_s or time.monotonic() + _SILENT_S)
    connection.send_packed_command((command,), check_health=False)
