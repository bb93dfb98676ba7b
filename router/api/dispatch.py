"""From a read call to a delivered one: the only door from HTTP to the gateway."""

from __future__ import annotations

from collections.abc import Callable

from router.api.scope import Scope, current_scope
from router.call import Decision
from router.net.sockets import at_end
from router.upstream.forwarder import BackendReply, ForwardContext
from router.upstream.headers import forwardable


def serve() -> BackendReply:
    """Forward the current call; every route that can reach a backend ends up here."""
    scope = current_scope()
    assert scope.document is not None and scope.caller is not None and scope.call is not None
    if scope.limits.admitted is None:  # a route that forgot its limits; never unlimited
        raise RuntimeError(f"{scope.endpoint} would forward a call that was not admitted")
    # Before anything is spent: a call that could not be recorded is not made.
    scope.services.recorder.check()
    headers = forwardable(scope.request.environ, scope.secrets)
    if scope.trace.parent_span_id is None:
        # Without the trace that it belongs to, the client's state would join ours to another.
        headers = [header for header in headers if header[0] != "Tracestate"]
    headers.append(("X-Request-ID", scope.request_id))
    headers.append(("traceparent", scope.trace.traceparent))
    context = ForwardContext(headers, _client_probe(scope))
    scope.backend_reply = scope.services.gateway.serve(
        scope.document, scope.caller, scope.call, context, scope.attempts
    )
    return scope.backend_reply


def _client_probe(scope: Scope) -> Callable[[], bool] | None:
    """Tells whether the client has closed its connection, without reading from it."""
    if scope.services.settings.on_client_abort == "drain":
        return None
    sock = scope.request.environ.get("gunicorn.socket")
    return None if sock is None else lambda: at_end(sock)


def decision(scope: Scope) -> Decision:
    """Whether the policy's first choice answered."""
    return "PRIMARY" if len(scope.attempts) <= 1 else "FAILOVER"
