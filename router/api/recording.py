"""The durable side of a call's end: usage record and audit event, before the last byte goes out.

A call that was answered is in the spool. So the record of a whole reply is written before the
reply is handed to the server, the record of a stream before its last event, and only what a client
broke off, or what was refused, is written when the response closes.
"""

from __future__ import annotations

import logging
from typing import Final

from router.accounting.records import (
    AttemptRecord,
    AuditEvent,
    UsageRecord,
    degraded_usage,
    encode_usage,
)
from router.api.dispatch import decision
from router.api.scope import Scope, new_uuid
from router.api.usage import call_usage
from router.call import Attempt, Outcome

log = logging.getLogger("router.records")

BILLED_OUTCOMES: Final[frozenset[Outcome]] = frozenset(
    {"completed", "client_aborted", "upstream_aborted", "timeout"}
)
"""How a call may end whose backend has, or may have, generated something."""


def record_answer(scope: Scope, outcome: Outcome, *, status: int = 200) -> None:
    """Record a call before its answer is complete; raises ``RecordsUnavailable``.

    Nothing may be answered that is not recorded: the caller refuses the call, or ends the stream
    with an error, when this raises.
    """
    scope.status = status
    _record(scope, outcome, answered=False)


def record_end(scope: Scope, outcome: Outcome) -> None:
    """Record a call whose response has ended, unless it is recorded already. Never raises."""
    if scope.recorded or scope.key is None or not scope.is_call:
        return
    try:
        _record(scope, outcome, answered=True)
    except Exception:
        log.exception("a call could not be recorded", extra={"request_id": scope.request_id})


def _record(scope: Scope, outcome: Outcome, *, answered: bool) -> None:
    scope.recorded = True
    scope.services.recorder.record(_usage_line(scope, outcome), _event(scope), answered=answered)


def _usage_line(scope: Scope, outcome: Outcome) -> bytes:
    try:
        return encode_usage(_usage(scope, outcome))
    except Exception:
        log.exception("a record is degraded", extra={"request_id": scope.request_id})
        key = scope.key
        return degraded_usage(
            scope.request_id,
            None if key is None else key.id,
            scope.endpoint,
            scope.services.clock.now_s(),
            scope.status,
            organization_id=None if key is None else key.organization_id,
        )


def _usage(scope: Scope, outcome: Outcome) -> UsageRecord:
    call, key, attempts = scope.call, scope.key, scope.attempts
    usage, cost = call_usage(scope)
    elapsed_s = scope.elapsed_s()
    return UsageRecord(
        record_id=new_uuid(),
        request_id=scope.request_id,
        timestamp=scope.services.clock.now_s() - elapsed_s,
        organization_id=None if key is None else key.organization_id,
        api_key_id=None if key is None else key.id,
        endpoint=scope.endpoint,
        operation=None if call is None else call.operation,
        model=None if call is None else call.model,
        model_requested=None if call is None else call.requested_model,
        backend_id=attempts[-1].backend_id if attempts else None,
        stream=call is not None and call.stream,
        status=scope.status,
        outcome=outcome,
        limit_state="WITHIN_LIMIT",
        decision_reason=decision(scope) if attempts else None,
        usage_source=usage.source,
        tokens_input=usage.tokens_input,
        tokens_output=usage.tokens_output,
        tokens_cached=usage.tokens_cached,
        cost_nanos=cost,
        latency_ms=round(elapsed_s * 1000, 3),
        bytes_sent=scope.bytes_sent,
        attempts=_attempts(attempts, outcome),
        retry_count=max(0, len(attempts) - 1),
        trace_id=scope.trace.trace_id,
        span_id=scope.trace.span_id,
        metadata={} if call is None else call.metadata,
    )


def _attempts(attempts: list[Attempt], outcome: Outcome) -> tuple[AttemptRecord, ...]:
    last = len(attempts)
    return tuple(
        [
            AttemptRecord(
                attempt=number,
                backend_id=attempt.backend_id,
                status=attempt.status,
                error=attempt.error,
                latency_ms=round(attempt.duration_s * 1000, 3),
                billed=number == last and attempt.status == 200 and outcome in BILLED_OUTCOMES,
            )
            for number, attempt in enumerate(attempts, 1)
        ]
    )


def _event(scope: Scope) -> AuditEvent:
    """Whether the call was let through to a backend, and if not, why."""
    key, call = scope.key, scope.call
    key_id = "" if key is None else key.id
    context: dict[str, str | int | float | bool | None] = {
        "api_key_id": key_id,
        "endpoint": scope.endpoint,
        "status": scope.status,
    }
    if call is not None:
        context["model"] = call.model
    if scope.attempts:
        context["backend_id"] = scope.attempts[-1].backend_id
    return AuditEvent(
        event_id=new_uuid(),
        action="REQUEST_ALLOWED" if scope.attempts else "REQUEST_DENIED",
        actor=f"key:{key_id}",
        entity_type="request",
        entity_id=scope.request_id,
        timestamp=scope.services.clock.now_s(),
        organization_id=None if key is None else key.organization_id,
        reason=scope.code,
        request_id=scope.request_id,
        context=context,
        trace_id=scope.trace.trace_id,
    )
