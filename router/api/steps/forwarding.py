"""An admitted call goes to a backend: the only door from HTTP to ``upstream``."""

from __future__ import annotations

from collections.abc import Callable

from router.api.scope import Scope
from router.net.sockets import at_end
from router.routing.candidates import candidates
from router.upstream.forwarder import ForwardContext
from router.upstream.headers import forwardable


def forward(scope: Scope) -> None:
    """Send the call to the backends that may serve it; the reply is in the scope then.

    Raises a subclass of ``RouterError`` when none of them has answered; what was tried is in
    ``scope.attempts`` either way.
    """
    document, caller, call = scope.document, scope.caller, scope.call
    assert document is not None and caller is not None and call is not None
    if scope.limits.admitted is None:  # a route that forgot its limits; never unlimited
        raise RuntimeError(f"{scope.endpoint} would forward a call that was not admitted")
    # Before anything is spent: a call that could not be recorded is not made.
    scope.services.recorder.check()
    chosen = candidates(document, caller.organization_id, call)
    model = document.models[call.model]
    scope.backend_reply = scope.services.forwarder.send(
        call,
        chosen,
        ForwardContext(_headers(scope, model.allow), _client_probe(scope)),
        scope.attempts,
        model.max_output_tokens,
    )


def _headers(scope: Scope, allow: tuple[str, ...]) -> list[tuple[str, str]]:
    headers = forwardable(scope.request.environ, scope.secrets, allow)
    if scope.trace.parent_span_id is None:
        # Without the trace that it belongs to, the client's state would join ours to another.
        headers = [header for header in headers if header[0] != "Tracestate"]
    headers.append(("X-Request-ID", scope.request_id))
    headers.append(("traceparent", scope.trace.traceparent))
    return headers


def _client_probe(scope: Scope) -> Callable[[], bool] | None:
    """Tells whether the client has closed its connection, without reading from it."""
    if scope.services.settings.on_client_abort == "drain":
        return None
    sock = scope.request.environ.get("gunicorn.socket")
    return None if sock is None else lambda: at_end(sock)
