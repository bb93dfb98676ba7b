"""Is it alive, can it serve, what is it? And, on the ops listener, the metrics."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Final

import orjson
from flask import Blueprint, Response

from router.api.replies import json_reply
from router.api.wiring import services
from router.errors import NotConfigured, RecordsUnavailable

blueprint: Final = Blueprint("status", __name__)

OPS_ENDPOINTS: Final = frozenset({"prometheus_metrics"})
"""Served on the ops listener only."""

EVERYWHERE: Final = "status."
"""Served on both; all else is served on the public listener only."""

SPOOL_FILLING: Final = 0.5
"""The share of its limit at which somebody should look why the spool is not shipped."""

NOT_LOOKED: Final = {"status": "degraded", "detail": "not looked at yet"}


@blueprint.get("/v1/status/healthz")
@blueprint.get("/healthz")
def healthz() -> Response:
    """The process answers. Touches nothing, so it fails only when the worker is wedged."""
    return json_reply(orjson.dumps({"status": "ok", **_build()}))


@blueprint.get("/v1/status/readyz")
@blueprint.get("/readyz")
def readyz() -> Response:
    """Whether calls can be served now, and the state of each component."""
    checks = {
        "state": _state_check(),
        "spool": _spool_check(),
        "agent": _agent_check(),
        "record_store": _store_check(),
    }
    ready = all(check["status"] != "failed" for check in checks.values())
    degraded = any(check["status"] == "degraded" for check in checks.values())
    status = "ready" if ready and not degraded else "degraded" if ready else "not_ready"
    body = orjson.dumps({"status": status, "checks": checks, **_build()})
    return json_reply(body, 200 if ready else 503)


def _state_check() -> dict[str, Any]:
    wired = services()
    state = wired.state
    try:
        document = state.document()
        keys_fit = state.pepper_matches(wired.pepper_fingerprint)
    except NotConfigured as error:
        return {"status": "failed", "detail": error.message}
    if keys_fit is False:  # every key would be refused as unknown
        return {
            "status": "failed",
            "revision": document.revision,
            "detail": "the keys were made with another pepper than this router's",
        }
    if state.fault is not None:
        return {"status": "degraded", "revision": document.revision, "detail": state.fault}
    return {"status": "ok", "revision": document.revision}


def _spool_check() -> dict[str, Any]:
    """Without a place for their records no calls are served."""
    spool = services().recorder.spool
    figures = spool.status()
    sizes = {"bytes_used": figures.total_bytes, "bytes_limit": figures.max_bytes}
    try:
        spool.check()
    except RecordsUnavailable as refusal:
        return {"status": "failed", "detail": refusal.reason, **sizes}
    if figures.held_bytes:
        return {"status": "degraded", "detail": "records are held in memory", **sizes}
    if figures.total_bytes > SPOOL_FILLING * figures.max_bytes:
        return {"status": "degraded", "detail": "the spool fills", **sizes}
    return {"status": "ok", **sizes}


def _agent_check() -> dict[str, Any]:
    """Without it records wait in the spool."""
    seen = services().watch.seen
    if seen is None:
        return NOT_LOOKED
    if not seen.shipping.is_running:
        return {"status": "degraded", "detail": "no agent runs"}
    if seen.shipping.silent_s is not None:
        detail = f"the agent has not reported for {seen.shipping.silent_s:.0f} s"
        return {"status": "degraded", "detail": detail}
    failing = sorted(name for name, sink in seen.shipping.sinks.items() if sink.failing)
    if failing:
        return {"status": "degraded", "detail": f"not delivered to: {', '.join(failing)}"}
    return {"status": "ok"}


def _store_check() -> dict[str, Any]:
    """Without it audit and usage cannot be asked for."""
    seen = services().watch.seen
    if seen is None:
        return NOT_LOOKED
    if seen.store_fault is not None:
        return {"status": "degraded", "detail": seen.store_fault}
    return {"status": "ok"}


def _version() -> str:
    try:
        return metadata.version("api-router")
    except metadata.PackageNotFoundError:
        return "unreleased"  # run from a checkout that was never installed


VERSION: Final = _version()


def _build() -> dict[str, str]:
    return {"version": VERSION, "build": services().settings.build}
