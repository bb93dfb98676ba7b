"""gunicorn's settings, what it does around the workers' lives, and how it logs."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import gunicorn.glogging
import gunicorn.util
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
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
from router.pricing.token_counter import load_token_counter
from router.redis.embedded.embedded_redis import (
    EmbeddedRedis,
    EmbeddedRedisError,
    EmbeddedSupervisor,
)
from router.server.metrics_dir import prepare_metrics_dir, remove_metrics_dir
from router.server.succession import await_successors
from router.server.worker import RouterWorker, http_date
from router.telemetry.logs import JsonFormatter
from router.telemetry.metrics import use_worker_slot

APPLICATION: Final = "router.wsgi:application"
HEARTBEAT_TIMEOUT_S: Final = 60

SETTLE_MARGIN_S: Final = 4
"""How much earlier than the master's kill a worker ends its streams, so that they are settled.

gunicorn can use up three of them: one until a worker notices TERM, one between two checks of the
clock, one in a last wait before it ends the rest.
"""

AGENT_MARGIN_S: Final = 5.0
"""What the agent may need to start and to close its connections, besides its time for shipping."""


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
        # Trust decides about the scheme alone then, which nothing depends on; this asks nothing.
        "forwarded_allow_ips": "*",
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
    """In the master: create what workers need. A problem is one line and exit code 1."""
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
    if settings.token_vocabulary is not None:
        try:
            load_token_counter(settings.token_vocabulary)
        except ValueError as error:
            server.log.error("ROUTER_TOKEN_VOCABULARY: %s", error)
            sys.exit(1)
    server.router_slots = {}
    await_successors(server)


def when_ready(server: Arbiter) -> None:
    """In the master: start without metrics, and with a Redis.

    It runs after the ports were bound: until then another instance may use the same directories.
    """
    settings = load_settings()
    server.router_metrics_dir = prepare_metrics_dir(settings)
    export_metrics_dir(server.router_metrics_dir)
    if settings.redis_addr == EMBEDDED_REDIS:
        server.router_redis = _join_redis(server, settings)


def _join_redis(server: Arbiter, settings: Settings) -> EmbeddedRedis | None:
    """The embedded Redis. If it does not start, the router serves as it does in an outage."""
    embedded = None
    try:
        embedded = EmbeddedRedis(settings.redis_dir)
        embedded.join()
    except (EmbeddedRedisError, OSError) as error:
        server.log.error("limits are enforced as when Redis is unavailable: %s", error)
    return embedded


def on_exit(server: Arbiter) -> None:
    """In the master: stop Redis, have the last records shipped, free the shared memory.

    If another master (USR2) continues, the agent and the metrics stay for it.
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
        # In a container all processes end with this one, so this is the agent's last chance.
        longest_s = settings.agent_drain_s + AGENT_MARGIN_S
        end_agent(settings.data_dir, longest_s, master_pid=server.pid)


def pre_fork(server: Arbiter, worker: RouterWorker) -> None:
    """In the master: give the worker the lowest free slot; note its heartbeat file as it is."""
    taken = set(server.router_slots.values())
    worker.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
    server.router_slots[worker.age] = worker.slot
    worker.forked_s = worker.tmp.last_update()


def post_fork(server: Arbiter, worker: RouterWorker) -> None:
    """In the worker: count in the slot's files, and end streams before the master kills."""
    settings = load_settings()
    assert settings.metrics_dir is not None  # when_ready has set it
    use_worker_slot(worker.slot, settings.metrics_dir)
    worker.client_write_timeout_s = settings.client_write_timeout_s
    if settings.agent == "embedded":
        master = worker.ppid
        worker.supervisors.append(AgentSupervisor(settings.data_dir, lambda: spawn_agent(master)))
    if getattr(server, "router_redis", None) is not None:
        worker.supervisors.append(EmbeddedSupervisor(server.router_redis))
    drain_s = worker.cfg.graceful_timeout
    worker.cfg.set("graceful_timeout", max(1, drain_s - SETTLE_MARGIN_S))
    # gunicorn reads its settings one by one through __getattr__, 6 % of a call in all. Nothing
    # changes them in a worker from here on, so they become plain attributes.
    current = {name: setting.get() for name, setting in worker.cfg.settings.items()}
    worker.cfg.__dict__.update(current)
    gunicorn.util.http_date = http_date


def child_exit(server: Arbiter, worker: RouterWorker) -> None:
    """In the master: free the dead worker's slot, and its live gauges with it."""
    mark_process_dead(f"slot{worker.slot}")  # type: ignore[no-untyped-call]
    server.router_slots.pop(worker.age, None)


class JsonLogger(gunicorn.glogging.Logger):  # type: ignore[misc]
    """gunicorn's own messages as JSON lines, like all others."""

    def setup(self, cfg: Config) -> None:
        """Replace the handlers of the base class."""
        super().setup(cfg)
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(JsonFormatter())
        self.error_log.handlers[:] = [handler]
        self.error_log.propagate = False
