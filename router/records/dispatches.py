"""What is written down when a call is sent to a backend, in case that its worker dies.

A dispatch says what a usage record needs, what the call costs if nothing more becomes known, and
what it has reserved. A lease is plain JSON here: ``limits.budgets.lease_notation`` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from router.call import Decision, Usage, UsageSource
from router.records.record_types import (
    AttemptRecord,
    AuditEvent,
    UsageRecord,
)
from router.telemetry.redaction import redact_bytes

Lease = Sequence[Any]
_KILLED: Final = "worker killed"


class Dispatch(NamedTuple):
    """A call that was sent to a backend."""

    record_id: str
    request_id: str
    timestamp: float
    """When the call began, in seconds since the epoch."""
    organization_id: str
    api_key_id: str
    endpoint: str
    operation: str
    model: str
    model_requested: str | None
    backend_id: str
    stream: bool
    decision_reason: Decision
    trace_id: str | None
    span_id: str | None
    metadata: Mapping[str, str]
    usage_source: UsageSource
    """This and the next four: what is charged if nothing comes back."""
    tokens_input: int
    tokens_output: int
    cost_nanos: int | None
    service_tier: str | None
    reserved: Sequence[int] | None = None
    """Nano-USD, tokens and calls; ``None`` without budgets."""
    lease: Lease | None = None


def encode_dispatch(dispatch: Dispatch) -> bytes:
    """The fields in order, as JSON; secrets in them are redacted. Every call pays for this."""
    line = orjson.dumps(tuple(dispatch))
    if dispatch.metadata or dispatch.model_requested != dispatch.model:
        return redact_bytes(line)  # nowhere else is what a client chose freely
    return line


_RECORD_ID: Final = re.compile(rb'^(?:\["|.{0,64}?"record_id":")([^"]+)"')


def record_id_of(payload: bytes) -> str:
    """The id in an encoded dispatch or usage record, without decoding all of it; empty without."""
    found = _RECORD_ID.match(payload)
    return "" if found is None else found[1].decode("ascii", "replace")


def decode_dispatch(payload: bytes) -> Dispatch:
    """Raises ``ValueError`` for what is no dispatch."""
    fields = orjson.loads(payload)
    if not isinstance(fields, list):
        raise ValueError("not a dispatch")
    try:
        return Dispatch(*fields)
    except TypeError as error:
        raise ValueError(f"not a dispatch: {error}") from None


def interrupted_record(dispatch: Dispatch) -> UsageRecord:
    """The usage record of a call whose worker died: the same for the same dispatch."""
    return UsageRecord(
        record_id=dispatch.record_id,
        request_id=dispatch.request_id,
        timestamp=dispatch.timestamp,
        organization_id=dispatch.organization_id,
        api_key_id=dispatch.api_key_id,
        endpoint=dispatch.endpoint,
        operation=dispatch.operation,
        model=dispatch.model,
        model_requested=dispatch.model_requested,
        backend_id=dispatch.backend_id,
        stream=dispatch.stream,
        status=0,
        outcome="interrupted",
        limit_state="WITHIN_LIMIT",
        decision_reason=dispatch.decision_reason,
        usage_source=dispatch.usage_source,
        tokens_input=dispatch.tokens_input,
        tokens_output=dispatch.tokens_output,
        tokens_cached=0,
        usage_classes=Usage(dispatch.tokens_input, dispatch.tokens_output).classes(),
        service_tier=dispatch.service_tier,
        cost_nanos=dispatch.cost_nanos,
        reserved_nanos=None if dispatch.reserved is None else dispatch.reserved[0],
        reserved_tokens=None if dispatch.reserved is None else dispatch.reserved[1],
        latency_ms=0.0,
        bytes_sent=0,
        attempts=(
            AttemptRecord(
                attempt=1,
                backend_id=dispatch.backend_id,
                status=None,
                error=_KILLED,
                latency_ms=0.0,
                billed=dispatch.usage_source != "none",
            ),
        ),
        retry_count=0,
        trace_id=dispatch.trace_id,
        span_id=dispatch.span_id,
        metadata=dispatch.metadata,
    )


def interrupted_event(dispatch: Dispatch, event_id: str, now_s: float) -> AuditEvent:
    """The audit event beside it."""
    context: dict[str, str | int | float | bool | None] = {
        "api_key_id": dispatch.api_key_id,
        "endpoint": dispatch.endpoint,
        "status": 0,
        "model": dispatch.model,
        "backend_id": dispatch.backend_id,
    }
    if dispatch.usage_source != "none":
        context["tokens"] = dispatch.tokens_input + dispatch.tokens_output
    return AuditEvent(
        event_id=event_id,
        action="REQUEST_ALLOWED",
        actor=f"key:{dispatch.api_key_id}",
        entity_type="request",
        entity_id=dispatch.request_id,
        timestamp=now_s,
        organization_id=dispatch.organization_id,
        reason="INTERRUPTED",
        request_id=dispatch.request_id,
        context=context,
        trace_id=dispatch.trace_id,
    )
