"""The gunicorn worker: a gevent worker with a fast drain, prompt ends and refusals in JSON."""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from contextlib import suppress
from email.utils import formatdate
from typing import Any, Final

import gevent
import gunicorn.http.wsgi
import orjson
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
)
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker

from router.agent.supervisor import AgentSupervisor
from router.redis.embedded.embedded_redis import EmbeddedSupervisor
from router.server.client_socket import ClientSocket
from router.server.corked import CorkedSocket
from router.server.error_stream import ErrorStream
from router.server.idle_wait import IdleWait
from router.server.loop_watchdog import LoopWatchdog

ABORT_END_S: Final = 5.0
"""How long the master lets an aborted worker live before it kills it."""

BREAK_IN_AFTER_S: Final = 1.0
"""How long an aborted worker waits for its event loop before it interrupts what blocks the loop."""

SERVER_NAME: Final = "router"
"""The ``Server`` header: neither a program nor a version to look up attacks for."""

_YOUNG_OBJECTS: Final = 20_000
"""New objects, less those that are gone, between two searches for cycles."""

CROWDED: Final = 0.9
"""The share of its connections from which on a worker ends those that only wait."""

_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)
"""Linux: ends a connection whose other side has acknowledged nothing for this long."""

_HEAD_ERRORS: Final[dict[type[Exception], tuple[int, str]]] = {
    LimitRequestLine: (414, "URI Too Long"),
    LimitRequestHeaders: (431, "Request Header Fields Too Large"),
    ExpectationFailed: (417, "Expectation Failed"),
}


class RouterWorker(GeventWorker):  # type: ignore[misc]
    """A gevent worker that drains without waiting for idle clients and refuses in JSON.

    ``post_fork`` fills in the attributes of the class.
    """

    slot = 0
    forked_s = 0.0
    client_write_timeout_s = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Every worker supervises; locks make sure that only one process of each kind runs.
        self.supervisors: list[AgentSupervisor | EmbeddedSupervisor] = []
        # In the order in which they began to wait.
        self._idle: dict[IdleWait, None] = {}
        self._connections: set[gevent.Greenlet] = set()
        self._crowded = max(1, int(self.worker_connections * CROWDED))
        self._ends_now = False
        self._has_successor = False

    def load_wsgi(self) -> None:
        """Build the application; it goes on where the last worker of this slot has ended."""
        super().load_wsgi()
        gunicorn.http.wsgi.WSGIErrorsWrapper = ErrorStream
        gunicorn.http.wsgi.SERVER = SERVER_NAME
        gunicorn.http.wsgi.Response = RouterResponse
        services = getattr(self.wsgi, "extensions", {}).get("router")
        if services is not None:  # None if somebody has wrapped the application
            services.take_over(self.slot)
        # What is loaded stays, and what a call makes dies with it, in no cycle as a rule. A search
        # for cycles after each 700 new objects would come several times in every call.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS, 20, 20)

    def timeout_ctx(self) -> IdleWait:
        """Bounds the wait for the next request on a connection."""
        current = gevent.getcurrent()
        served = getattr(current, "has_served", False)
        return IdleWait(self.cfg.keepalive, self._idle, current.client, fresh=not served)

    def run(self) -> None:
        """Serve until the worker is to end."""
        self._watchdog = LoopWatchdog()
        self._watchdog.start()
        super().run()

    def notify(self) -> None:
        """Called every second, also while draining: heartbeat, supervisors, idle connections."""
        try:
            super().notify()
        except SystemExit:  # the master has died; calls still have to be recorded
            self.end_now()
        services = getattr(self.wsgi, "extensions", {}).get("router")
        if services is not None:  # None if somebody has wrapped the application
            services.heartbeat()
            services.metrics.publish_figures({"loop_blocks": self._watchdog.blocks})
        for supervisor in self.supervisors:
            supervisor.tick()
        in_time = self.alive or self._has_successor
        is_over = IdleWait.is_late if in_time else IdleWait.may_end
        now_s = time.monotonic()
        for wait in [wait for wait in self._idle if is_over(wait, now_s)]:
            wait.end()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one connection for as long as its client reads what is sent."""
        if _TCP_USER_TIMEOUT is not None:
            unacknowledged_ms = int(self.client_write_timeout_s * 1000)
            client.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, unacknowledged_ms)
        if self._ends_now:
            client.close()
            return
        if len(self._connections) >= self._crowded and self._idle:
            next(iter(self._idle)).end()  # who has waited longest without a request makes room
        current = gevent.getcurrent()
        current.client = client = ClientSocket(client)
        self._connections.add(current)
        try:
            super().handle(listener, client, addr)
        finally:
            self._connections.discard(current)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve one request; the base class would go on to the next after a killed greenlet."""
        sock.take_turns()  # more requests may have come with the last one
        corked = CorkedSocket(sock)
        gevent.getcurrent().has_served = True
        try:
            AsyncWorker.handle_request(self, listener_name, req, corked, addr)
            corked.flush()
        except StopIteration:  # the reply is complete and the connection is to be closed
            with suppress(OSError):  # gunicorn has closed it already
                corked.flush()
            raise
        except (gevent.GreenletExit, SystemExit, TimeoutError):
            # The drain is over, or the client has read nothing for too long.
            raise StopIteration from None

    def handle_winch(self, sig: int, frame: Any) -> None:
        """WINCH, just before TERM: others serve already, so this one may take its time.

        Then idle connections are left to their clients, which close them or send a request that is
        answered with ``Connection: close``. To end them is never safe: a request may be on its way.
        """
        self._has_successor = True

    def handle_exit(self, sig: int, frame: Any) -> None:
        """TERM: drain; a second one ends idle connections at once."""
        self._has_successor = self._has_successor and self.alive
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """INT, QUIT: end running calls, then the worker; the base class would not settle them.

        Runs as a signal handler, between any two instructions, as does :meth:`handle_abort`.
        """
        self.end_now()

    def handle_abort(self, sig: int, frame: Any) -> None:
        """ABRT, for a missing heartbeat: the same, and interrupt what blocks the event loop."""
        self.end_now()
        # The master kills a worker without a new heartbeat at its next check, a second later.
        alive_s = time.monotonic() - self.cfg.timeout + ABORT_END_S
        os.utime(self.tmp.fileno(), (alive_s, alive_s))
        signal.signal(signal.SIGALRM, _interrupt_call)
        signal.setitimer(signal.ITIMER_REAL, BREAK_IN_AFTER_S)
        gevent.get_hub().loop.run_callback(signal.setitimer, signal.ITIMER_REAL, 0)

    def end_now(self) -> None:
        """End as at the end of a drain, without the drain."""
        self._ends_now = True
        self.alive = False
        self.cfg.__dict__["graceful_timeout"] = -1
        gevent.spawn(self._end_calls)

    def _end_calls(self) -> None:
        gevent.killall(list(self._connections), block=False)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Refuse in JSON what cannot be read as a request, and repeat nothing of it."""
        if isinstance(exc, gevent.GreenletExit):
            return
        if not isinstance(exc, ParseException):
            self.log.error("error handling a request", exc_info=exc)
            _refuse(client, 500, "Internal Server Error", "INTERNAL")
            return
        status, reason = next(
            (found for kind, found in _HEAD_ERRORS.items() if isinstance(exc, kind)),
            (400, "Bad Request"),
        )
        self.log.info("malformed request refused: %s", type(exc).__name__)
        _refuse(client, status, reason, "MALFORMED_REQUEST")


class RouterResponse(gunicorn.http.wsgi.Response):  # type: ignore[misc]
    """A response; the connection ends after it if the body of its request was not read."""

    def should_close(self) -> bool:
        """Asked for the head, and once more at the end."""
        if super().should_close():
            return True
        if _is_at_hand(self.req.body.reader):
            return False
        self.sock.client.unread = True
        return True


def _is_at_hand(reader: Any) -> bool:
    """Whether what is left of a body was read from the socket already."""
    if isinstance(reader, LengthReader):
        left: int = reader.length
        return left == 0 or reader.unreader.buf.getbuffer().nbytes >= left
    return isinstance(reader, ChunkedReader) and reader.parser is None


def _interrupt_call(sig: int, frame: Any) -> None:
    """End the call that blocks the event loop, so that the others can be settled."""
    current = gevent.getcurrent()
    if isinstance(current, gevent.Greenlet):
        raise gevent.GreenletExit


def _refuse(client: Any, status: int, reason: str, code: str) -> None:
    body = orjson.dumps({"error": "the request could not be read", "code": code, "trace_id": ""})
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with suppress(OSError):  # the client has gone
        client.sendall(head.encode("ascii") + body)


_date: tuple[int, str] = (0, "")


def http_date() -> str:
    """The ``Date`` of a reply, formatted once a second."""
    global _date
    second, now_s = _date[0], int(time.time())
    if second != now_s:
        _date = (now_s, formatdate(now_s, usegmt=True))
    return _date[1]
