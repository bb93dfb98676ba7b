"""What the current call used and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

from router.api.scope import Scope
from router.call import NO_USAGE, Outcome, Usage
from router.pricing.cost import cost_nanos, estimate, unpriced


def call_usage(scope: Scope) -> tuple[Usage, int | None]:
    """Usage and cost in nano-USD of what was delivered; estimated where nothing was reported.

    A backend that failed before it said anything has delivered nothing, streamed or whole.
    """
    backend_reply, call, document = scope.backend_reply, scope.call, scope.document
    if scope.limits.replay is not None:
        return NO_USAGE, 0
    if backend_reply is None or call is None or document is None:
        return NO_USAGE, None
    stream = backend_reply.stream
    usage = backend_reply.usage if stream is None else stream.usage
    if usage is None:
        if stream is None:
            usage = estimate(call.fields, backend_reply.output_chars)
        elif stream.fault and not stream.output_chars and stream.usage_at_start is None:
            return NO_USAGE, None
        else:
            usage = estimate(call.fields, stream.output_chars, stream.usage_at_start)
    return usage, cost_nanos(usage, document.prices_of(call.model, _backend_id(scope)))


def unpriced_classes(scope: Scope, usage: Usage) -> tuple[str, ...]:
    """The classes of ``usage`` for which the model has no price of its own."""
    if scope.call is None or scope.document is None or scope.limits.replay is not None:
        return ()
    return unpriced(usage, scope.document.prices_of(scope.call.model, _backend_id(scope)))


@dataclass(slots=True)
class Ending:
    """What has come of a call, once its response has closed."""

    ended_s: float
    """On the monotonic clock."""
    outcome: Outcome
    usage: Usage
    cost_nanos: int | None
    """``None`` for a model without a price, or where nothing was delivered."""


def ending_of(scope: Scope, ended_s: float) -> Ending:
    """How the call has ended, and what it has used."""
    usage, cost = call_usage(scope)
    return Ending(ended_s, call_outcome(scope), usage, cost)


def call_outcome(scope: Scope) -> Outcome:
    """How the call has ended, as far as it has."""
    if scope.failed_outcome is not None:
        died = scope.failed_outcome == "upstream_error" and _broke_after_status(scope)
        return "upstream_aborted" if died else scope.failed_outcome
    stream = None if scope.backend_reply is None else scope.backend_reply.stream
    if stream is not None:
        return stream.outcome or "client_aborted"
    return "completed" if scope.handed_over else "client_aborted"


def _broke_after_status(scope: Scope) -> bool:
    """The backend had begun a good answer and did not finish it."""
    return bool(scope.attempts) and scope.attempts[-1].status == 200


def _backend_id(scope: Scope) -> str | None:
    return scope.attempts[-1].backend_id if scope.attempts else None
