"""A call that has ended is charged, counted, and written to the log in one line."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from router.api.scope import Scope
from router.api.steps.call_usage import Ending, call_usage, unpriced_classes
from router.api.steps.limiting import settle_limits
from router.api.steps.recording import streamed_s
from router.call import Attempt, Outcome, Usage

log = logging.getLogger("router")

QUIET_ENDPOINTS: Final = ("status.", "prometheus_")
"""Asked for every few seconds by machines; a line for each would drown the calls."""


def charge(scope: Scope, ending: Ending) -> None:
    """Charge the call and give back what it holds, unless that is done. Never raises."""
    try:
        settle_limits(scope, ending)
    except Exception:
        log.exception("limits could not be settled", extra={"request_id": scope.request_id})


def charge_before_last_byte(scope: Scope, outcome: Outcome) -> None:
    """Charge a recorded call whose answer is whole with what goes out next, so that the caller's
    next call finds it charged, on whatever connection it comes.

    The wait for Redis only changes its place: else the next call on the connection would have it.
    A budget service may take much longer; there the charge follows the answer.
    """
    if not scope.services.limits.admission.uses_budget_service:
        usage, cost = call_usage(scope)
        charge(scope, Ending(time.monotonic(), outcome, usage, cost))


def settle(scope: Scope, ending: Ending) -> None:
    """Charge the call, count it, write its line."""
    charge(scope, ending)
    if scope.attempts:
        scope.attempts[-1].duration_s += streamed_s(scope, ending.ended_s)
    duration_s = ending.ended_s - scope.started_s
    _count(scope, ending, duration_s)
    if not scope.endpoint.startswith(QUIET_ENDPOINTS):
        written = scope.services.call_log.write(_line(scope, ending, duration_s))
        if not written:
            scope.services.metrics.count_lost_line()


def _count(scope: Scope, ending: Ending, duration_s: float) -> None:
    metrics, usage = scope.services.metrics, ending.usage
    metrics.count_request(scope.endpoint, scope.status, ending.outcome, duration_s)
    for attempt in scope.attempts:
        metrics.count_attempt(attempt.backend_id, _error_class(attempt), attempt.duration_s)
    if scope.backend_reply is not None:
        metrics.count_overhead(scope.overhead_s)
    if scope.backend_reply is not None or usage.source != "none":
        metrics.count_usage(usage.source, usage.tokens_input, usage.tokens_output)
        if ending.cost_nanos:
            metrics.count_cost(ending.cost_nanos)
        for name in unpriced_classes(scope, usage):
            metrics.count_unpriced(name)
    elif scope.status == 401 and scope.reason is not None:
        metrics.count_auth_failure(scope.reason)


def _error_class(attempt: Attempt) -> str:
    """One of ``ATTEMPT_ERRORS``: what went wrong, in a closed set."""
    error, status = attempt.error, attempt.status
    if error is None:
        return "none"
    if error == "credential missing" or status in (401, 403):
        return "credential"
    if status == 429:
        return "status_429"
    if status is not None and status >= 400:
        return "status_5xx" if status >= 500 else "status_4xx"
    if error in ("BackendTimeout", "ClientGone", "InvalidRequest"):
        return {"BackendTimeout": "timeout", "ClientGone": "client_gone"}.get(error, "invalid")
    return "connect" if error.startswith(_NEVER_CONNECTED) else "transport"


_NEVER_CONNECTED: Final = (
    "connect failed",
    "connect timeout",
    "connection pool exhausted",
    "no address",
    "TLS failed",
)


def _line(scope: Scope, ending: Ending, duration_s: float) -> dict[str, Any]:
    """The facts of one call. Never a secret, never a payload, never text a client chose freely."""
    line: dict[str, Any] = {
        "request_id": scope.request_id,
        "trace_id": scope.trace.trace_id,
        "span_id": scope.trace.span_id,
        "endpoint": scope.endpoint,
        "status": scope.status,
        "outcome": ending.outcome,
        "duration_ms": round(duration_s * 1000, 3),
        "bytes_sent": scope.bytes_sent,
        "remote_addr": scope.remote_addr,
    }
    if scope.key is not None:
        line["organization_id"] = scope.key.organization_id
        line["key_id"] = scope.key.id
    elif scope.refused is not None:
        line["key_id"], line["organization_id"] = scope.refused
    if scope.code is not None:
        line["code"] = scope.code
    if scope.reason is not None:
        line["reason"] = scope.reason
    if scope.call is not None:
        line["model"] = scope.call.model
        line["stream"] = scope.call.stream
    if scope.limits.denial is not None:
        line["limit"] = scope.limits.denial.name
    if scope.limits.replay is not None:
        line["replayed"] = True
    if scope.attempts:
        line.update(_attempts(scope))
    if scope.backend_reply is not None or ending.usage.source != "none":
        line.update(_charged(ending.usage, ending.cost_nanos))
    if scope.backend_reply is not None:
        line.update(_delivered(scope))
    return line


def _attempts(scope: Scope) -> dict[str, Any]:
    last = scope.attempts[-1]
    facts: dict[str, Any] = {
        "backend": last.backend_id,
        "attempts": len(scope.attempts),
        "backend_ms": round(scope.backend_s * 1000, 3),
    }
    if last.error is not None:
        facts["backend_error"] = last.error
    return facts


def _charged(usage: Usage, cost: int | None) -> dict[str, Any]:
    return {
        "tokens_input": usage.tokens_input,
        "tokens_output": usage.tokens_output,
        "usage_source": usage.source,
        "cost_nanos": cost,
    }


def _delivered(scope: Scope) -> dict[str, Any]:
    return {
        "decision": scope.decision,
        "ttfb_ms": round((scope.answered_s - scope.started_s) * 1000, 3),
        "overhead_ms": round(scope.overhead_s * 1000, 3),
    }
