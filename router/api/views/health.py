"""Health, readiness and version, on both listeners; the names of what the ops listener serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, Final

import orjson
from flask import Blueprint, Response

from router.api.error_specs import shown_timestamp
from router.api.replies import json_reply
from router.api.scope import current_scope
from router.config.settings import Settings
from router.readiness.components import Component

blueprint: Final = Blueprint("status", __name__)

OPS_ENDPOINTS: Final = frozenset({"prometheus_metrics"})
"""Served on the ops listener only."""

EVERYWHERE: Final = "status."
"""Served on both; all else is served on the public listener only."""

_OLD_CHECKS: Final = {
    "state": "configuration",
    "spool": "records",
    "agent": "agent",
    "record_store": "store",
}
"""Deprecated name in ``checks`` → component."""


def is_on_ops_listener(environ: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a request came in where operators ask; anybody reaches the public listener."""
    return environ.get("SERVER_PORT") == str(settings.ops_bind.port)


@blueprint.get("/v1/status/healthz")
@blueprint.get("/healthz")
def healthz() -> Response:
    """The process answers. Reads nothing, so it fails only when the worker is blocked."""
    return json_reply(orjson.dumps({"status": "ok", **_details(_build)}))


@blueprint.get("/v1/status/readyz")
@blueprint.get("/readyz")
def readyz() -> Response:
    """Whether calls can be served now, and the state of each component that they need."""
    components = current_scope().services.components()
    states = {component.state for component in components.values()}
    status = (
        "not_ready" if "unavailable" in states else "degraded" if "degraded" in states else "ready"
    )

    def parts() -> dict[str, Any]:
        return {
            "components": {name: _component(found) for name, found in components.items()},
            "checks": {old: _check(components[name]) for old, name in _OLD_CHECKS.items()},
            **_build(),
        }

    shown = {"status": status, **_details(parts)}
    return json_reply(orjson.dumps(shown), 503 if status == "not_ready" else 200)


def _details(build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What only operators are told: anybody else learns no version, size or name of a part."""
    scope = current_scope()
    known = is_on_ops_listener(scope.request.environ, scope.services.settings)
    return build() if known else {}


def _component(found: Component) -> dict[str, Any]:
    shown = {"state": found.state, "since": shown_timestamp(int(found.since_s)), **found.facts}
    return shown if found.state == "ok" else {**shown, "detail": found.detail}


def _check(found: Component) -> dict[str, Any]:
    """The component as it was shown before there were ``components``."""
    status = "failed" if found.state == "unavailable" else found.state
    detail = {"detail": found.reason or found.cause} if found.cause else {}
    return {"status": status, **detail, **found.facts}


def _version() -> str:
    try:
        return metadata.version("api-router")
    except metadata.PackageNotFoundError:
        return "unreleased"  # run from a checkout that was never installed


VERSION: Final = _version()


def _build() -> dict[str, str]:
    return {"version": VERSION, "build": current_scope().services.settings.build}
