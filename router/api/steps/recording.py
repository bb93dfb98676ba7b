"""The durable side of a call's end: usage record and audit event, before the last byte goes out.

A call that was answered is in the spool. So the record of a whole reply is written before the
reply is handed to the server, the record of a stream before its last event, and only what a client
broke off, or what was refused, is written when the response closes.
"""

from __future__ import annotations

import dataclasses
import logging
import time

import orjson

from router.api.endpoints import serves_calls
from router.api.error_specs import error_spec_of
from router.api.scope import Charge, LimitContext, Scope, new_uuid
from router.api.steps.call_usage import (
    call_outcome,
    charge_of,
    is_over_reservation,
)
from router.call import Attempt, Outcome, Usage
from router.limits.budgets.windows import Amounts
from router.records.record_types import (
    AttemptRecord,
    AuditEvent,
    DecisionReason,
    UsageRecord,
    degraded_usage,
    encode_usage,
)
from router.records.recorder import Entry, Unwritten

log = logging.getLogger("router.records")

Context = dict[str, str | int | float | bool | None]


def record_answer(scope: Scope) -> Unwritten | None:
    """Record a call before its answer is complete.

    Nothing may be answered that is not recorded: when the spool refuses, the caller withholds the
    answer and then calls :func:`record_withheld`.
    """
    scope.status = 200
    return _record(scope, "completed", time.monotonic())


def record_withheld(scope: Scope, unwritten: Unwritten) -> None:
    """Buffer the record of a call whose answer is withheld, as what the scope now says of it. What
    the call has cost stays as it was."""
    changed = None
    try:
        spec = error_spec_of(unwritten.error)
        scope.code, scope.failed_outcome = spec.code, spec.outcome
        if unwritten.may_change:
            scope.charge, _ = charge_of(scope, call_outcome(scope))
            changed = _withheld(scope, *unwritten.entry)
    finally:
        unwritten.buffer(changed)


def record_end(scope: Scope, outcome: Outcome, ended_s: float) -> None:
    """Record a call that has ended for its client, unless it is recorded already. Never raises.

    An unauthenticated client leaves no record: anyone could fill the disk with them. A client that
    uses a known key which may not be used leaves an audit event.
    """
    if (
        scope.recorded
        or not serves_calls(scope.endpoint)
        or (scope.key is None and scope.refused is None)
    ):
        return
    if not scope.attempts and not scope.services.recorder.admits_refusals():
        return
    try:
        unwritten = _record(scope, outcome, ended_s)
        if unwritten is not None:  # nobody can take back what the client has got
            unwritten.buffer()
    except Exception:
        log.exception("a call could not be recorded", extra={"request_id": scope.request_id})


def streamed_s(scope: Scope, ended_s: float) -> float:
    """Seconds that the last attempt has gone on for since the answer began."""
    stream = None if scope.backend_reply is None else scope.backend_reply.stream
    if stream is None or not scope.answered_s:  # a killed greenlet has begun no answer
        return 0.0
    return max(0.0, (stream.ended_s or ended_s) - scope.answered_s)


def _record(scope: Scope, outcome: Outcome, ended_s: float) -> Unwritten | None:
    """Append the record and the event; ``None`` when they are in the spool."""
    _name_fault(scope)
    record, line = None, None
    charge, amounts = charge_of(scope, outcome)
    if scope.key is not None:
        record, line = _usage_line(scope, charge, amounts, ended_s)
    event = _event_or_less(scope, record)
    # Before the append: a greenlet that is killed while the spool syncs may have written it.
    scope.recorded, scope.charge = True, charge
    recorder = scope.services.recorder
    dispatch = recorder.open_calls.ended(
        scope.record_id,
        cost_nanos=amounts.cost_nanos,
        tokens=amounts.tokens,
        requests=amounts.requests,
    )
    unwritten = None
    try:
        unwritten = recorder.record(line, event)
    except Exception:
        scope.recorded, scope.charge = False, None
        raise
    finally:
        if dispatch is not None and (unwritten is not None or not scope.recorded):
            recorder.open_calls.dispatched(dispatch)
    return unwritten


def _name_fault(scope: Scope) -> None:
    """Say of the last attempt how its stream broke, as is said where there was no answer."""
    stream = None if scope.backend_reply is None else scope.backend_reply.stream
    if stream is not None and stream.fault is not None:
        scope.attempts[-1].error = stream.fault


def _withheld(scope: Scope, line: bytes | None, event: AuditEvent | None) -> Entry:
    """What was to be recorded, now that the answer is withheld; its cost stays as it was."""
    if line is not None:
        fields = orjson.loads(line)
        changed = {
            "status": scope.status,
            "outcome": call_outcome(scope),
            "bytes_sent": scope.bytes_sent,
        }
        # A degraded record has not all of them.
        fields.update({name: value for name, value in changed.items() if name in fields})
        line = orjson.dumps(fields)
    if event is not None:
        context = {**event.context, "status": scope.status}
        event = dataclasses.replace(event, reason=scope.code, context=context)
    return line, event


def _usage_line(
    scope: Scope, charge: Charge, amounts: Amounts, ended_s: float
) -> tuple[UsageRecord | None, bytes]:
    """The record, and its line; the least that can be said in a line if there is no record."""
    try:
        record = _usage(scope, charge, amounts, ended_s)
        return record, encode_usage(record)
    except Exception:
        log.exception("a record is degraded", extra={"request_id": scope.request_id})
        scope.services.recorder.degraded += 1
        key = scope.key
        return None, degraded_usage(
            scope.request_id,
            None if key is None else key.id,
            scope.endpoint,
            _began_s(scope),
            scope.status,
            organization_id=None if key is None else key.organization_id,
        )


def _began_s(scope: Scope) -> float:
    return scope.services.clock.now_s() - scope.elapsed_s()


def _usage(scope: Scope, charge: Charge, amounts: Amounts, ended_s: float) -> UsageRecord:
    call, key, attempts = scope.call, scope.key, scope.attempts
    usage, reserved = charge.usage, scope.limits.amounts
    assert charge.outcome is not None
    return UsageRecord(
        record_id=scope.record_id,
        request_id=scope.request_id,
        timestamp=_began_s(scope),
        organization_id=None if key is None else key.organization_id,
        api_key_id=None if key is None else key.id,
        endpoint=scope.endpoint,
        operation=None if call is None else call.operation,
        model=None if call is None else call.model,
        model_requested=scope.requested_model,
        backend_id=attempts[-1].backend_id if attempts else None,
        stream=call is not None and call.stream,
        status=scope.status,
        outcome=charge.outcome,
        limit_state=scope.limits.limit_state,
        decision_reason=_reason(scope),
        usage_source=usage.source,
        tokens_input=usage.tokens_input,
        tokens_output=usage.tokens_output,
        tokens_cached=usage.tokens_cached,
        usage_classes=usage.classes(),
        service_tier=usage.service_tier,
        cost_nanos=charge.cost_nanos,
        reserved_nanos=None if reserved is None else reserved.cost_nanos,
        reserved_tokens=None if reserved is None else reserved.tokens,
        over_reservation=is_over_reservation(scope, amounts),
        latency_ms=round((ended_s - scope.started_s) * 1000, 3),
        bytes_sent=scope.bytes_sent,
        attempts=_attempts(attempts, usage, streamed_s(scope, ended_s)),
        retry_count=max(0, len(attempts) - 1),
        trace_id=scope.trace.trace_id,
        span_id=scope.trace.span_id,
        metadata={} if call is None else call.metadata,
    )


def _reason(scope: Scope) -> DecisionReason | None:
    if scope.limits.limit_state == "RATE_LIMITED":
        return "RATE_LIMIT"
    return scope.decision if scope.attempts else None


def _attempts(
    attempts: list[Attempt], usage: Usage, last_streamed_s: float
) -> tuple[AttemptRecord, ...]:
    last = len(attempts)
    return tuple(
        [
            AttemptRecord(
                attempt=number,
                backend_id=attempt.backend_id,
                status=attempt.status,
                error=attempt.error,
                latency_ms=round(
                    (attempt.duration_s + (last_streamed_s if number == last else 0.0)) * 1000, 3
                ),
                billed=number == last and usage.source != "none",
            )
            for number, attempt in enumerate(attempts, 1)
        ]
    )


def _event_or_less(scope: Scope, record: UsageRecord | None) -> AuditEvent | None:
    """The event, without its details if they cannot be had, or none: the record must not wait."""
    try:
        return _event(scope, record)
    except Exception:
        log.exception("an audit event is degraded", extra={"request_id": scope.request_id})
        scope.services.recorder.degraded += 1
    try:
        return _decided(scope, {"degraded": True})
    except Exception:
        log.exception("an audit event is missing", extra={"request_id": scope.request_id})
        return None


def _event(scope: Scope, record: UsageRecord | None) -> AuditEvent:
    """Whether the call was let through to a backend, and if not, why."""
    call = scope.call
    context: Context = {
        "api_key_id": _caller(scope)[0],
        "endpoint": scope.endpoint,
        "status": scope.status,
    }
    if scope.key is None:  # the client learns no more than that the key may not be used
        context["refusal"] = scope.reason
    model = scope.requested_model if call is None else call.model
    if model is not None:
        context["model"] = model
    if scope.attempts:
        context["backend_id"] = scope.attempts[-1].backend_id
    context |= _limit_context(scope.limits)
    if record is not None and record.usage_source != "none":
        context["tokens"] = record.tokens_input + record.tokens_output
    if record is not None and record.over_reservation:
        context["over_reservation"] = True
    return _decided(scope, context)


def _decided(scope: Scope, context: Context) -> AuditEvent:
    key_id, organization_id = _caller(scope)
    allowed = bool(scope.attempts) or scope.limits.replay is not None
    return AuditEvent(
        event_id=new_uuid(),
        action="REQUEST_ALLOWED" if allowed else "REQUEST_DENIED",
        actor=f"key:{key_id}",
        entity_type="request",
        entity_id=scope.request_id,
        timestamp=scope.services.clock.now_s(),
        organization_id=organization_id,
        reason=scope.code,
        request_id=scope.request_id,
        context=context,
        trace_id=scope.trace.trace_id,
    )


def _limit_context(limits: LimitContext) -> Context:
    """What limits had to say; amounts are nano-USD, tokens or calls, exact."""
    context: Context = {}
    if limits.replay is not None:
        context["replayed"] = True
    if limits.shadow_denied:
        context["shadow_denied"] = ",".join(limits.shadow_denied)
    denial = limits.denial
    if denial is None:
        return context
    amounts = limits.amounts
    context |= {
        "limit_type": denial.limit_type,
        "limit_name": denial.name,
        "limit_scope": denial.scope,
        "limit_unit": denial.unit,
        "limit": denial.limit,
        "usage": denial.usage,
        "reservation": denial.this_request,
        "tokens": limits.tokens if amounts is None else amounts.tokens,
    }
    if denial.period is not None:
        context |= {"settled": denial.settled, "reserved": denial.reserved}
    return context


def _caller(scope: Scope) -> tuple[str, str | None]:
    """Ids of the key and its organization, also of a key that may not be used."""
    if scope.key is not None:
        return scope.key.id, scope.key.organization_id
    return scope.refused or ("", None)
