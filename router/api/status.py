"""Is it alive, can it serve, what is it? And, on the ops listener, the metrics."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Final

import orjson
from flask import Blueprint, Response

from router.api.replies import json_reply
from router.api.wiring import services
from router.errors import NotConfigured

blueprint: Final = Blueprint("status", __name__)

OPS_ENDPOINTS: Final = frozenset({"prometheus_metrics"})
"""Served on the ops listener only."""

EVERYWHERE: Final = "status."
"""Served on both; all else is served on the public listener only."""


@blueprint.get("/v1/status/healthz")
@blueprint.get("/healthz")
def healthz() -> Response:
    """The process answers. Touches nothing, so it fails only when the worker is wedged."""
    return json_reply(orjson.dumps({"status": "ok", **_build()}))


@blueprint.get("/v1/status/readyz")
@blueprint.get("/readyz")
def readyz() -> Response:
    """Whether calls can be served now, and the state of each component."""
    checks = {"state": _state_check()}
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


def _version() -> str:
    try:
        return metadata.version("api-router")
    except metadata.PackageNotFoundError:
        return "unreleased"  # run from a checkout that was never installed


VERSION: Final = _version()


def _build() -> dict[str, str]:
    return {"version": VERSION, "build": services().settings.build}
