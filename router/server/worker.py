"""gunicorn around the application: its settings, its worker, what happens at fork and exit."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from email.utils import formatdate
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import gevent
import gunicorn.glogging
import gunicorn.util
import orjson
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
)
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker
from prometheus_client.multiprocess import mark_process_dead

from router.agent.supervisor import AgentSupervisor, end_agent, spawn_agent
from router.config.config_errors import PepperError
from router.config.pepper import load_pepper
from router.config.settings import (
    EMBEDDED_REDIS,
    Settings,
    export_metrics_dir,
    load_settings,
)
from router.redis.embedded import EmbeddedRedis, EmbeddedRedisError, EmbeddedSupervisor
from router.server.corked import CorkedSocket
from router.server.metrics_dir import prepare_metrics_dir, remove_metrics_dir
from router.telemetry.logs import JsonFormatter
from router.telemetry.metrics import use_worker_slot

APPLICATION: Final = "router.wsgi:application"
HEARTBEAT_TIMEOUT_S: Final = 60
FIRST_REQUEST_S: Final = 2.0
"""How long a worker that drains waits for the first request on a connection it has accepted."""

SETTLE_MARGIN_S: Final = 4
"""How much earlier than the master's kill a worker ends its streams, so that they settle.

gunicorn spends up to three of them: one until a worker notices TERM, one between two looks at the
clock, one in waiting once more before it ends what is left.
"""

QUICK_END_S: Final = 5.0
"""How long the master waits for a worker that it has told to end for not giving a sign of life."""

TURN_S: Final = 1.0
"""How long a worker that was told so waits for its event loop, before it breaks in."""

AGENT_MARGIN_S: Final = 5.0
"""What the agent may need beyond its time for shipping, to begin and to close its connections."""

_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)
"""Linux: ends a connection whose other side has acknowledged nothing for this long."""

_HEAD_ERRORS: Final[dict[type[Exception], tuple[int, str]]] = {
    LimitRequestLine: (414, "URI Too Long"),
    LimitRequestHeaders: (431, "Request Header Fields Too Large"),
    ExpectationFailed: (417, "Expectation Failed"),
}


def configuration(settings: Settings) -> dict[str, Any]:
    """gunicorn's settings by name, hooks included."""
    shared_memory = Path("/dev/shm")
    return {
        "wsgi_app": APPLICATION,
        "bind": [str(settings.bind), str(settings.ops_bind)],
        "worker_class": "router.server.worker.RouterWorker",
        "workers": settings.workers,
        "worker_connections": settings.worker_connections,
        "max_requests": settings.max_requests,
        # Without jitter all workers would be recycled at the same moment.
        "max_requests_jitter": settings.max_requests // 5,
        "keepalive": settings.keepalive_s,
        "timeout": HEARTBEAT_TIMEOUT_S,
        "graceful_timeout": settings.drain_timeout_s,
        "worker_tmp_dir": str(shared_memory) if shared_memory.is_dir() else None,
        "forwarder_headers": "",
        "control_socket_disable": True,
        "accesslog": None,
        "errorlog": "-",
        "logger_class": JsonLogger,
        "loglevel": settings.log_level.lower(),
        "proc_name": "api-router",
        "on_starting": on_starting,
        "when_ready": when_ready,
        "pre_fork": pre_fork,
        "post_fork": post_fork,
        "child_exit": child_exit,
        "on_exit": on_exit,
    }


def on_starting(server: Arbiter) -> None:
    """Make what the workers need; what an operator has to mend is one line and exit code 1."""
    settings = load_settings()
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        load_pepper(settings, create=True)
    except (OSError, PepperError) as error:
        server.log.error("ROUTER_DATA_DIR cannot be used: %s", error)
        sys.exit(1)
    if settings.store_url.startswith("postgresql") and find_spec("psycopg") is None:
        server.log.error("ROUTER_RECORD_STORE: PostgreSQL needs the extra: api-router[postgres]")
        sys.exit(1)
    server.router_slots = {}


def when_ready(server: Arbiter) -> None:
    """Begin with no metrics, and with a Redis. Not before the ports are ours: they may be another
    instance's."""
    settings = load_settings()
    server.router_metrics_dir = prepare_metrics_dir(settings)
    export_metrics_dir(server.router_metrics_dir)
    if settings.redis_addr == EMBEDDED_REDIS:
        server.router_redis = _join_redis(server, settings)


def _join_redis(server: Arbiter, settings: Settings) -> EmbeddedRedis | None:
    """Without a Redis the router serves as it is configured to while Redis is away."""
    embedded = None
    try:
        embedded = EmbeddedRedis(settings.redis_dir)
        embedded.join()
    except (EmbeddedRedisError, OSError) as error:
        server.log.error("limits are enforced as when Redis is away: %s", error)
    return embedded


def on_exit(server: Arbiter) -> None:
    """Have the last records shipped, Redis ended, and leave nothing in shared memory.

    Unless another master (USR2) goes on with them.
    """
    embedded: EmbeddedRedis | None = getattr(server, "router_redis", None)
    if embedded is not None:
        embedded.leave()
    metrics_dir = getattr(server, "router_metrics_dir", None)
    if metrics_dir is None or server.reexec_pid or server.master_pid:
        return
    settings = load_settings()
    remove_metrics_dir(settings, metrics_dir)
    if settings.agent == "embedded":
        # In a container everything ends with us, so this is the agent's last chance.
        longest_s = settings.agent_drain_s + AGENT_MARGIN_S
        end_agent(settings.data_dir, longest_s, master_pid=server.pid)


def pre_fork(server: Arbiter, worker: RouterWorker) -> None:
    """Give the worker the lowest slot that no living worker holds."""
    taken = set(server.router_slots.values())
    worker.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
    server.router_slots[worker.age] = worker.slot


def post_fork(server: Arbiter, worker: RouterWorker) -> None:
    """In the worker: count in the slot's files, and end streams before the master kills."""
    settings = load_settings()
    assert settings.metrics_dir is not None  # when_ready has set it
    use_worker_slot(worker.slot, settings.metrics_dir)
    worker.client_write_timeout_s = settings.client_write_timeout_s
    if settings.agent == "embedded":
        master = worker.ppid
        worker.supervisor = AgentSupervisor(settings.data_dir, lambda: spawn_agent(master))
    if getattr(server, "router_redis", None) is not None:
        worker.redis_supervisor = EmbeddedSupervisor(server.router_redis)
    drain_s = worker.cfg.graceful_timeout
    worker.cfg.set("graceful_timeout", max(1, drain_s - SETTLE_MARGIN_S))
    # gunicorn looks its settings up one by one through __getattr__, 6 % of a call in all. Nothing
    # changes them in a worker from here on, so they become plain attributes.
    current = {name: setting.get() for name, setting in worker.cfg.settings.items()}
    worker.cfg.__dict__.update(current)
    gunicorn.util.http_date = _http_date


def child_exit(server: Arbiter, worker: RouterWorker) -> None:
    """In the master: the slot is free, and what the dead worker was doing is done."""
    mark_process_dead(f"slot{worker.slot}")  # type: ignore[no-untyped-call]
    server.router_slots.pop(worker.age, None)


class RouterWorker(GeventWorker):  # type: ignore[misc]
    """A gevent worker that drains without waiting for idle clients and refuses in JSON."""

    slot = 0
    supervisor: AgentSupervisor | None = None
    """Every worker looks after the agent: the lock sees to it that there is but one."""
    redis_supervisor: EmbeddedSupervisor | None = None
    client_write_timeout_s = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: set[_Idle] = set()
        self._connections: set[gevent.Greenlet] = set()
        self._ends_now = False

    def timeout_ctx(self) -> gevent.Timeout:
        """Bounds the wait for the next request on a connection."""
        served = getattr(gevent.getcurrent(), "has_served", False)
        return _Idle(self.cfg.keepalive, self._idle, fresh=not served)

    def notify(self) -> None:
        """Called every second: also while draining, when idle connections are only in the way."""
        try:
            super().notify()
        except SystemExit:  # the master is gone: no reason to leave calls unrecorded
            self.end_now()
        services = getattr(self.wsgi, "extensions", {}).get("router")
        if services is not None:  # else somebody has wrapped the application
            services.heartbeat()
        if self.supervisor is not None:
            self.supervisor.tick()
        if self.redis_supervisor is not None:
            self.redis_supervisor.tick()
        if not self.alive:
            may_end = _Idle.may_end
        else:
            may_end = _Idle.is_late
        now_s = time.monotonic()
        for idle in [idle for idle in self._idle if may_end(idle, now_s)]:
            idle.end()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one connection, for as long as its client takes what it is sent."""
        if _TCP_USER_TIMEOUT is not None:
            patience_ms = int(self.client_write_timeout_s * 1000)
            client.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, patience_ms)
        if self._ends_now:
            client.close()
            return
        current = gevent.getcurrent()
        self._connections.add(current)
        try:
            super().handle(listener, client, addr)
        finally:
            self._connections.discard(current)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve one request; the base class would go on to the next after a killed greenlet."""
        corked = CorkedSocket(sock)
        gevent.getcurrent().has_served = True
        try:
            AsyncWorker.handle_request(self, listener_name, req, corked, addr)
            corked.flush()
        except StopIteration:  # the reply is whole and the connection is to be closed
            _flush(corked)
            raise
        except (gevent.GreenletExit, SystemExit, TimeoutError):
            # The drain is over, or the client has not taken anything for too long.
            raise StopIteration from None

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT, SIGQUIT: end the calls that run, and then; the base class leaves them unsettled.

        Runs as a signal handler, in the middle of anything, as does :meth:`handle_abort`.
        """
        self.end_now()

    def handle_abort(self, sig: int, frame: Any) -> None:
        """SIGABRT: the master has seen no sign of life. The same, and break in on what blocks."""
        self.end_now()
        # Who has not given another one kills at its next look, a second later.
        alive_s = time.monotonic() - self.cfg.timeout + QUICK_END_S
        os.utime(self.tmp.fileno(), (alive_s, alive_s))
        signal.signal(signal.SIGALRM, _break_in)
        signal.setitimer(signal.ITIMER_REAL, TURN_S)
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
        """What cannot be read as a request is refused in JSON, without repeating any of it."""
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


_date: tuple[int, str] = (0, "")


def _http_date() -> str:
    """The ``Date`` of a reply, put into words once a second."""
    global _date
    second, now_s = _date[0], int(time.time())
    if second != now_s:
        _date = (now_s, formatdate(now_s, usegmt=True))
    return _date[1]


class _Ended(BaseException):
    """Thrown into a wait that is over."""


class _Idle:
    """A wait for a request, of ``seconds`` at most; it ends without an exception.

    No timer of its own: the worker looks through all waits once a second.
    """

    __slots__ = ("_ended", "_greenlet", "_late_s", "_may_end_s", "_waiting")

    def __init__(self, seconds: float, waiting: set[_Idle], *, fresh: bool) -> None:
        self._waiting = waiting
        now_s = time.monotonic()
        self._late_s = now_s + seconds
        # A client that has just connected is about to ask; one that has been served before must
        # always reckon with the connection's end.
        self._may_end_s = now_s + FIRST_REQUEST_S if fresh else 0.0
        self._greenlet: gevent.Greenlet | None = None
        self._ended: _Ended | None = None

    def __enter__(self) -> _Idle:
        self._greenlet = gevent.getcurrent()
        self._waiting.add(self)
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> bool:
        self._waiting.discard(self)
        return value is not None and value is self._ended

    def is_late(self, now_s: float) -> bool:
        """Whether no request has come for too long."""
        return now_s >= self._late_s

    def may_end(self, now_s: float) -> bool:
        """Whether a worker that drains need not wait for this connection's next request."""
        return now_s >= self._may_end_s

    def end(self) -> None:
        """Stop waiting, unless the request has come meanwhile."""
        gevent.get_hub().loop.run_callback(self._interrupt)

    def _interrupt(self) -> None:
        # Asked now and not when the end was decided: what is thrown at a greenlet that has left the
        # wait would hit the request that it serves.
        if self in self._waiting and self._greenlet is not None:
            self._ended = _Ended()
            self._greenlet.throw(self._ended)


class JsonLogger(gunicorn.glogging.Logger):  # type: ignore[misc]
    """gunicorn's own messages as JSON lines, like all others."""

    def setup(self, cfg: Config) -> None:
        """Replace the handlers that the base class has made."""
        super().setup(cfg)
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(JsonFormatter())
        self.error_log.handlers[:] = [handler]
        self.error_log.propagate = False


def _break_in(sig: int, frame: Any) -> None:
    """End the call that keeps the event loop from turning, so that the others can be settled."""
    current = gevent.getcurrent()
    if isinstance(current, gevent.Greenlet):
        raise gevent.GreenletExit


def _flush(corked: CorkedSocket) -> None:
    try:
        corked.flush()
    except OSError:
        pass  # gunicorn has given the connection up


def _refuse(client: Any, status: int, reason: str, code: str) -> None:
    body = orjson.dumps({"error": "the request could not be read", "code": code, "trace_id": ""})
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        client.sendall(head.encode("ascii") + body)
    except OSError:
        pass  # the client does not wait for an answer
