"""The Flask application: blueprints, and what holds for every request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from flask import Flask, Request, Response, request
from flask.sessions import NullSession, SessionInterface
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed
from werkzeug.exceptions import NotFound as WerkzeugNotFound
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import MapAdapter

from router import errors
from router.api import pipeline
from router.api.endpoints import ENDPOINTS, call_blueprints
from router.api.replies import error_reply, finish
from router.api.scope import Scope, current_scope, enter_scope, leave_scope, request_id_from
from router.api.target import refuse_ambiguous
from router.api.views import health, model_list, own_limits, own_records
from router.call import Dialect
from router.services.worker_services import Services
from router.telemetry import scrape
from router.telemetry.traces import open_trace

log = logging.getLogger("router")

NATIVE_PATHS: Final = (
    "/v1/inference/",
    "/v1/limits/",
    "/v1/audit/",
    "/v1/usage/",
    "/v1/status/",
)


class _NoSession(SessionInterface):
    """The gateway keeps no sessions; Flask's own would cost a part of each call."""

    _nothing: Final = NullSession()

    def open_session(self, app: Flask, request: Any) -> NullSession:
        return self._nothing


class RouterApp(Flask):
    """Flask without what each call would pay for and this application does not use: whether a
    function is a coroutine, what the host is called, and hooks of blueprints after a call."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """For the path alone: no route depends on the host, and none leads to another."""
        if request is None:
            return None
        return MapAdapter(
            self.url_map, "router", "/", "", request.scheme, request.path, request.method
        )

    # Later versions of Flask pass the context before what all of them pass.

    def process_response(self, *arguments: Any) -> Response:
        response: Response = arguments[-1]
        for hook in reversed(self.after_request_funcs[None]):
            response = hook(response)
        return response

    def do_teardown_request(self, *arguments: Any) -> None:
        for hook in reversed(self.teardown_request_funcs[None]):
            hook(arguments[-1])


def create_app(wired: Services) -> Flask:
    """An application that serves with ``wired``."""
    app = RouterApp("router", static_folder=None)
    app.session_interface = _NoSession()
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = True
    app.config["PROPAGATE_EXCEPTIONS"] = False
    # Without it OPTIONS would walk through the pipeline of whatever the path leads to.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.extensions["router"] = wired
    app.before_request(lambda: open_scope(wired))
    app.after_request(hand_over)
    app.teardown_request(settle_what_is_left)
    app.register_error_handler(errors.RouterError, on_router_error)
    app.register_error_handler(HTTPException, on_http_error)
    app.register_error_handler(Exception, on_unexpected_error)
    dialects = call_blueprints(pipeline.enter, pipeline.serve)
    model_list.add_routes(dialects["openai"])
    for blueprint in (
        *dialects.values(),
        own_limits.blueprint,
        own_records.blueprint,
        health.blueprint,
    ):
        app.register_blueprint(blueprint)
    assert not (app.after_request_funcs.keys() | app.teardown_request_funcs.keys()) - {None}
    if wired.settings.trusted_proxies:
        hops = wired.settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]
    return app


class _MetricsEndpoint(GunicornInternalPrometheusMetrics):  # type: ignore[misc]
    """The exporter's endpoint over our own reading of the files."""

    def generate_metrics(
        self, accept_header: str | None = None, names: list[str] | None = None
    ) -> tuple[str, str]:
        """Everything, also where only ``names`` are asked for: the library fails on those."""
        return scrape.render(accept_header)


def expose_metrics(app: Flask) -> None:
    """Serve ``/metrics`` with the figures of all workers together."""
    # Our own histograms time streams to their end, which the exporter's defaults do not.
    _MetricsEndpoint(app, path="/metrics", export_defaults=False)


def open_scope(wired: Services) -> None:
    """The first thing that happens to any request, known path or not."""
    # Once, here: each use of the proxies costs more than most steps do.
    current: Request = request._get_current_object()  # type: ignore[attr-defined]
    environ = current.environ
    endpoint = current.endpoint or "unknown"
    enter_scope(
        Scope(
            request=current,
            services=wired,
            request_id=request_id_from(environ.get("HTTP_X_REQUEST_ID")),
            trace=open_trace(environ.get("HTTP_TRACEPARENT")),
            started_s=time.monotonic(),
            remote_addr=environ.get("REMOTE_ADDR", ""),
            endpoint=endpoint,
            dialect=_dialect(environ["PATH_INFO"], endpoint),
        )
    )
    wired.metrics.running += 1
    refuse_ambiguous(environ)
    on_ops_listener = health.is_on_ops_listener(environ, wired.settings)
    if on_ops_listener is not (endpoint in health.OPS_ENDPOINTS) and not endpoint.startswith(
        health.EVERYWHERE
    ):
        raise errors.NotFound("no such endpoint")


def hand_over(response: Response) -> Response:
    """Whatever becomes of the response from here on, closing it settles the call."""
    scope = current_scope()
    finish(scope, response)
    scope.handed_over = True
    response.call_on_close(lambda: pipeline.end(scope))
    if not response.is_streamed:
        try:
            pipeline.answer(scope)
        except BaseException:  # a killed greenlet: nobody will close the response
            pipeline.end(scope)
            raise
    return response


def settle_what_is_left(_error: BaseException | None) -> None:
    """The backstop: an exception that produced no response, a greenlet that was killed."""
    scope = leave_scope()
    if scope is not None and not scope.handed_over:
        pipeline.end(scope)


_WITH_REASON: Final = (
    errors.Unauthenticated,
    errors.SignatureInvalid,
    errors.BackendFailed,
    errors.RecordStoreUnavailable,
)
"""Errors that tell the log more than the client."""


def on_router_error(error: errors.RouterError) -> Response:
    """Our own errors, all of them."""
    scope = current_scope()
    if isinstance(error, _WITH_REASON):
        scope.reason = error.reason
    if isinstance(error, errors.Unauthenticated):
        scope.refused = error.known
    return error_reply(error)


def on_http_error(error: HTTPException) -> Response:
    """What the framework refuses: unknown paths, wrong methods, malformed requests."""
    if isinstance(error, WerkzeugNotFound):
        return on_router_error(errors.NotFound("no such endpoint"))
    if isinstance(error, WerkzeugMethodNotAllowed):
        allowed = tuple(sorted(error.valid_methods or ()))
        return on_router_error(errors.MethodNotAllowed(request.method[:16], allowed))
    return on_router_error(errors.InvalidRequest("the request is malformed"))


def on_unexpected_error(error: Exception) -> Response:
    """A defect of ours: the client learns nothing of it, the log everything."""
    scope = current_scope()
    log.error("unexpected error", exc_info=error, extra={"request_id": scope.request_id})
    return error_reply(error)


def _dialect(path: str, endpoint: str) -> Dialect:
    """That of the endpoint. Unknown paths are answered as the OpenAI SDKs expect, unless they are
    clearly native."""
    if not path.startswith("/v1/"):
        return "native"
    known = ENDPOINTS.get(endpoint)
    if known is not None:
        return known.dialect
    return "native" if f"{path}/".startswith(NATIVE_PATHS) else "openai"
