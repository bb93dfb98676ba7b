"""An admitted call goes to a backend: the only door from HTTP to ``upstream``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from router.api.scope import Scope
from router.api.steps.call_usage import abandoned_charge
from router.call import Attempt
from router.config.document import Backend
from router.limits.budgets.lease_notation import lease_of
from router.net.sockets import at_end
from router.providers.client_headers import FORWARDED
from router.records.dispatches import Dispatch
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
        ForwardContext(
            _headers(scope, model.allow),
            _client_probe(scope),
            lambda attempt: _note_dispatch(scope, attempt),
            _more_headers(scope, chosen),
        ),
        scope.attempts,
        model.max_output_tokens,
    )


def _note_dispatch(scope: Scope, attempt: Attempt) -> None:
    """Note on disk that the call is being sent, and what it costs if nothing comes back."""
    call, key, limits = scope.call, scope.key, scope.limits
    assert call is not None and key is not None and limits.admitted is not None
    charge, amounts = abandoned_charge(scope, attempt.backend_id), limits.amounts
    scope.services.recorder.dispatched(
        Dispatch(  # by position: twenty names would cost another 3 µs
            scope.record_id,
            scope.request_id,
            scope.services.clock.now_s() - scope.elapsed_s(),
            key.organization_id,
            key.id,
            scope.endpoint,
            call.operation,
            call.model,
            scope.requested_model,
            attempt.backend_id,
            call.stream,
            scope.decision,
            scope.trace.trace_id,
            scope.trace.span_id,
            call.metadata,
            charge.usage.source,
            charge.usage.tokens_input,
            charge.usage.tokens_output,
            charge.cost_nanos,
            charge.usage.service_tier,
            (amounts.cost_nanos, amounts.tokens, amounts.requests) if amounts else None,
            lease_of(limits.admitted.reservation, scope.services.limits.lease_ms),
        )
    )
    scope.services.limits.admission.sent(scope.record_id)


def _headers(scope: Scope, allow: tuple[str, ...]) -> list[tuple[str, str]]:
    headers = forwardable(scope.request.environ, scope.secrets, allow)
    if scope.trace.parent_span_id is None:
        # Without the trace that it belongs to, the client's state would join ours to another.
        headers = [header for header in headers if header[0] != "tracestate"]
    headers.append(("X-Request-ID", scope.request_id))
    headers.append(("traceparent", scope.trace.traceparent))
    return headers


def _more_headers(scope: Scope, chosen: Sequence[Backend]) -> list[tuple[str, str]]:
    """What some of these backends get besides; what all get is not sent twice."""
    names = {name for each in chosen for name in each.forward_headers if name not in FORWARDED}
    return forwardable(scope.request.environ, scope.secrets, names=names) if names else []


def _client_probe(scope: Scope) -> Callable[[], bool] | None:
    """Tells whether the client has closed its connection, without reading from it."""
    if scope.services.settings.on_client_abort == "drain":
        return None
    sock = scope.request.environ.get("gunicorn.socket")
    return None if sock is None else lambda: at_end(sock)
