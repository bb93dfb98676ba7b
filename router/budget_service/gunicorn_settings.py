"""gunicorn's settings of the budget service: ``-c python:router.budget_service.serving``."""

from __future__ import annotations

import os
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import click
from gunicorn.arbiter import Arbiter

from router.cli.operator_audit import as_owner_of
from router.config.settings import (
    EMBEDDED_REDIS,
    Address,
    Settings,
    SettingsError,
    load_settings,
)
from router.redis.embedded.embedded_redis import EmbeddedRedis, EmbeddedRedisError, redis_address
from router.server.hooks import HEARTBEAT_TIMEOUT_S, JsonLogger

APPLICATION: Final = "router.budget_service.application:build()"
STOP_S: Final = 5
"""How long requests that run may take to end; a request takes milliseconds."""

IDLE_S: Final = 75
"""How long an idle connection of a router is kept."""


def check_exposure(settings: Settings) -> None:
    """Raise :class:`SettingsError` where anybody who reaches the port could change budgets."""
    if settings.budget_service_token is None and not is_loopback(settings.budget_service_bind):
        raise SettingsError(
            [
                "BUDGET_SERVICE_TOKEN: must be set, because BUDGET_SERVICE_BIND"
                f" ({settings.budget_service_bind}) can be reached from other hosts"
            ]
        )


def is_loopback(address: Address) -> bool:
    """Whether only this host can reach the address. A name is looked up by nobody here, so only
    ``localhost`` counts."""
    try:
        ip = ip_address(address.host)
    except ValueError:
        return address.host.lower() == "localhost"
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback


def configuration(settings: Settings) -> dict[str, Any]:
    """gunicorn's settings by name, hooks included; raises :class:`SettingsError`."""
    check_exposure(settings)
    shared_memory = Path("/dev/shm")
    return {
        "wsgi_app": APPLICATION,
        "bind": [str(settings.budget_service_bind)],
        "worker_class": "router.server.worker.RouterWorker",
        "workers": settings.workers,
        "worker_connections": settings.worker_connections,
        "keepalive": IDLE_S,
        "timeout": HEARTBEAT_TIMEOUT_S,
        "graceful_timeout": STOP_S,
        "worker_tmp_dir": str(shared_memory) if shared_memory.is_dir() else None,
        "forwarder_headers": "",
        "control_socket_disable": True,
        "accesslog": None,
        "errorlog": "-",
        "logger_class": JsonLogger,
        "loglevel": settings.log_level.lower(),
        "proc_name": "api-router-budget-service",
        "when_ready": when_ready,
        "on_exit": on_exit,
        **_owner(settings.data_dir),
    }


def when_ready(server: Arbiter) -> None:
    """In the master, after the port was bound: have a Redis, and say where the service is."""
    settings = load_settings()
    try:
        address = redis_address(settings)
    except ValueError as error:
        server.log.error("RATE_LIMIT_REDIS_ADDR: %s", error)
        sys.exit(1)
    if settings.redis_addr == EMBEDDED_REDIS:
        try:
            with as_owner_of(settings.data_dir):
                server.budget_redis = EmbeddedRedis(settings.redis_dir)
                server.budget_redis.join()
        except (EmbeddedRedisError, OSError) as error:
            server.log.error("no embedded Redis: %s", error)
            sys.exit(1)
    click.echo(f"budget service on http://{settings.budget_service_bind}, redis: {address}")


def on_exit(server: Arbiter) -> None:
    """In the master: leave the embedded Redis, which ends with its last user."""
    embedded: EmbeddedRedis | None = getattr(server, "budget_redis", None)
    if embedded is not None:
        embedded.leave()


def _owner(data_dir: Path) -> dict[str, int]:
    """Workers that root starts run as the owner of the data directory, so that the agent and the
    router can read what they write."""
    if os.geteuid() != 0 or not data_dir.is_dir():
        return {}
    owner = data_dir.stat()
    return {"user": owner.st_uid, "group": owner.st_gid} if owner.st_uid != 0 else {}
