"""Usage records and audit events: their values, and their JSON as one line each.

This module does not know where the lines go (spool, Kafka, record store). Every call encodes a
record and an event: each is one dictionary, spelled out because a loop over the fields takes a
microsecond more, and one pass of the encoder.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any, Final, Literal, get_args

import orjson

from router.call import Decision, LimitState, Outcome, UsageClass, UsageSource
from router.telemetry.redaction import redact_bytes

SCHEMA_VERSION: Final = 1
NANOS_PER_USD: Final = 1_000_000_000
_MICROS_PER_S: Final = 1_000_000
_CANONICAL: Final = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS

DecisionReason = Literal[Decision, "RATE_LIMIT"]
DECISION_REASONS: Final[tuple[DecisionReason, ...]] = get_args(DecisionReason)

AuditAction = Literal[
    "REQUEST_ALLOWED",
    "REQUEST_DENIED",
    "POLICY_UPDATE",
    "LIMIT_UPDATE",
    "LIMIT_RESET",
    "BUDGET_ADJUSTED",
    "BUDGET_REBUILT",
    "BUDGET_THRESHOLD",
    "BUDGET_RESERVED",
    "BUDGET_SETTLED",
    "BUDGET_RELEASED",
    "BACKEND_ENABLED",
    "BACKEND_DISABLED",
    "DEPENDENCY_LOST",
    "DEPENDENCY_RESTORED",
    "KEY_CREATED",
    "KEY_UPDATED",
    "KEY_ROTATED",
    "KEY_REVOKED",
    "KEY_REMOVED",
    "KEY_EXPIRED",
    "CONFIG_APPLIED",
    "CONFIG_REJECTED",
    "ADMIN_DENIED",
]
AUDIT_ACTIONS: Final[tuple[AuditAction, ...]] = get_args(AuditAction)


@dataclass(slots=True, kw_only=True)
class AttemptRecord:
    """One attempt at one backend, as part of the record of its call."""

    attempt: Annotated[int, "From 1."]
    backend_id: str
    status: int | None
    error: str | None
    latency_ms: float
    billed: Annotated[bool, "The tokens and the cost of the record were spent here."]


@dataclass(slots=True, kw_only=True)
class UsageRecord:
    """One client call: what was asked, who served it, what it used and cost, how it ended.

    A fact that was never known is ``None``: a call refused before its body was read has no model.
    Annotations describe the field in its JSON Schema (``record_schemas``).
    """

    schema_version: int = SCHEMA_VERSION
    record_id: Annotated[str, "Equal ids are the same record, delivered again."]
    """A UUID."""
    request_id: str
    timestamp: Annotated[float, "When the call began."]
    """Seconds since the epoch."""
    organization_id: str | None
    api_key_id: Annotated[str | None, "The key's id, never the key."]
    endpoint: str
    operation: str | None
    model: Annotated[str | None, "The canonical id."]
    model_requested: Annotated[str | None, "What the client wrote."]
    """An alias, or a name that does not exist."""
    backend_id: Annotated[str | None, "The backend that served the call."]
    stream: bool
    status: Annotated[int, "The HTTP status; 0 when no answer was begun."]
    outcome: Outcome
    limit_state: LimitState
    decision_reason: DecisionReason | None
    usage_source: Annotated[
        UsageSource, "Whether the tokens were reported by the backend, estimated, or not known."
    ]
    tokens_input: int
    tokens_output: int
    tokens_cached: Annotated[int, "The part of the input billed as cached."]
    usage_classes: Annotated[
        Mapping[UsageClass, int],
        "How the tokens split, and what else is billed; classes of tokens sum to the two totals.",
    ] = field(default_factory=dict)
    service_tier: Annotated[
        str | None, "The provider's tier that served the call; null is the standard one."
    ] = None
    cost_nanos: Annotated[
        int | None, "Nano-USD; null when the model has no price or nothing was delivered."
    ]
    reserved_nanos: Annotated[
        int | None, "What the call reserved in budgets in USD, in nano-USD; null without budgets."
    ] = None
    reserved_tokens: Annotated[
        int | None, "What the call reserved in budgets of tokens; null without budgets."
    ] = None
    over_reservation: Annotated[bool, "The call used more of a budget than it had reserved."] = (
        False
    )
    latency_ms: Annotated[float, "From the request's head to the moment when the record was made."]
    bytes_sent: int
    attempts: tuple[AttemptRecord, ...]
    retry_count: int
    trace_id: str | None
    span_id: str | None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class AuditEvent:
    """One decision or change that somebody may have to answer for.

    ``AuditChain.link`` adds the event's place in the chain of its writer.
    """

    schema_version: int = SCHEMA_VERSION
    event_id: Annotated[str, "Equal ids are the same event, delivered again."]
    """A UUID."""
    action: AuditAction
    actor: Annotated[str, "Who did it: a key id, an operator, the router itself."]
    entity_type: Annotated[str, "What it was done to: request, api_key, document, …"]
    entity_id: str
    timestamp: float
    """Seconds since the epoch."""
    organization_id: str | None = None
    reason: str | None = None
    request_id: str | None = None
    context: Annotated[
        Mapping[str, str | int | float | bool | None],
        "Facts of the decision, such as the limit, the usage and the tokens.",
    ] = field(default_factory=dict)
    """Flat. The store finds events by ``api_key_id`` and ``model``."""
    before: Annotated[Any, "The entity before the change, without secrets."] = None
    after: Annotated[Any, "The entity after the change, without secrets."] = None
    trace_id: str | None = None


def encode_usage(record: UsageRecord) -> bytes:
    """The record as one line of JSON without its newline, secrets in it redacted.

    Raises ``TypeError`` for what JSON cannot carry; :func:`degraded_usage` is for that case.
    """
    line = orjson.dumps(
        {
            "schema_version": record.schema_version,
            "record_id": record.record_id,
            "request_id": record.request_id,
            "timestamp": format_timestamp(record.timestamp),
            "organization_id": record.organization_id,
            "api_key_id": record.api_key_id,
            "endpoint": record.endpoint,
            "operation": record.operation,
            "model": record.model,
            "model_requested": record.model_requested,
            "backend_id": record.backend_id,
            "stream": record.stream,
            "status": record.status,
            "outcome": record.outcome,
            "limit_state": record.limit_state,
            "decision_reason": record.decision_reason,
            "usage_source": record.usage_source,
            "tokens_input": record.tokens_input,
            "tokens_output": record.tokens_output,
            "tokens_cached": record.tokens_cached,
            "usage_classes": record.usage_classes,
            "service_tier": record.service_tier,
            "cost_nanos": record.cost_nanos,
            "cost_usd": None if record.cost_nanos is None else format_usd(record.cost_nanos),
            "reserved_nanos": record.reserved_nanos,
            "reserved_tokens": record.reserved_tokens,
            "over_reservation": record.over_reservation,
            "latency_ms": record.latency_ms,
            "bytes_sent": record.bytes_sent,
            "attempts": [_attempt(attempt) for attempt in record.attempts],
            "retry_count": record.retry_count,
            "trace_id": record.trace_id,
            "span_id": record.span_id,
            "metadata": record.metadata,
        }
    )
    redacted = redact_bytes(line)
    # Decoded and encoded again: two names of metadata may have become one.
    return line if redacted is line else orjson.dumps(orjson.loads(redacted))


def degraded_usage(
    request_id: str,
    api_key_id: str | None,
    endpoint: str,
    timestamp: float,
    status: int,
    *,
    organization_id: str | None = None,
) -> bytes:
    """The minimal record of a call whose full record could not be built; never fails."""
    return orjson.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "record_id": str(uuid.uuid4()),
            "request_id": _encodable(request_id),
            "timestamp": format_timestamp(timestamp),
            "organization_id": None if organization_id is None else _encodable(organization_id),
            "api_key_id": None if api_key_id is None else _encodable(api_key_id),
            "endpoint": _encodable(endpoint),
            "status": status,
            "degraded": True,
        }
    )


def audit_body(event: AuditEvent, writer_id: str, sequence: int, previous_hash: str) -> bytes:
    """The text that an event's hash covers: all its fields but the hash, names sorted.

    Secrets are redacted before hashing, or the hash would not fit what is stored.
    """
    body = canonical(
        {
            "schema_version": event.schema_version,
            "event_id": event.event_id,
            "action": event.action,
            "actor": event.actor,
            "entity_type": event.entity_type,
            "entity_id": event.entity_id,
            "timestamp": format_timestamp(event.timestamp),
            "organization_id": event.organization_id,
            "reason": event.reason,
            "request_id": event.request_id,
            "context": event.context,
            "before": event.before,
            "after": event.after,
            "trace_id": event.trace_id,
            "writer_id": writer_id,
            "sequence": sequence,
            "previous_hash": previous_hash,
        }
    )
    redacted = redact_bytes(body)
    # Redacted names may be equal, or sort differently.
    return body if redacted is body else canonical(orjson.loads(redacted))


def canonical(value: Mapping[str, Any]) -> bytes:
    """The canonical JSON of an object: names sorted, no spaces, UTF-8 unescaped.

    Raises ``TypeError`` for what JSON cannot carry, and for dataclasses: the encoder would write
    their fields unsorted, and a reader that decodes the text could not reproduce it.
    """
    return orjson.dumps(value, option=_CANONICAL)


def seal(body: bytes, hash_hex: str) -> bytes:
    """``body`` with its hash as the last field, so that a reader can cut the hashed text out."""
    return b'%b,"hash":"%b"}' % (body[:-1], hash_hex.encode())


_second: tuple[int, str] = (0, "1970-01-01T00:00:00")
"""The second formatted last, with its text; one tuple, so that threads see both or neither."""


def format_timestamp(seconds: float) -> str:
    """RFC 3339 in UTC, always with microseconds, so that the texts sort by time."""
    global _second
    total = round(seconds * _MICROS_PER_S)
    second = total // _MICROS_PER_S
    known, text = _second
    if known != second:
        text = datetime.fromtimestamp(second, timezone.utc).isoformat()[:19]
        _second = (second, text)
    return f"{text}.{total % _MICROS_PER_S:06d}Z"


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)


def parse_timestamp_us(text: str) -> int:
    """Microseconds since the epoch, exactly; raises ``ValueError`` for another form."""
    if len(text) != len("1970-01-01T00:00:00.000000Z") or text[10::9] != "T." or text[-1] != "Z":
        raise ValueError(f"not a timestamp of a record: {text!r}")
    return (datetime.fromisoformat(f"{text[:-1]}+00:00") - _EPOCH) // _MICROSECOND


def format_usd(nanos: int) -> str:
    """Nano-USD as decimal USD with at least two places: ``2.50``, ``0.000000001``."""
    digits = f"{nanos:010d}" if nanos >= 0 else f"{nanos:011d}"
    return f"{digits[:-9]}.{digits[-9:].rstrip('0'):0<2}"


def _attempt(attempt: AttemptRecord) -> dict[str, Any]:
    # The encoder reads dataclasses by itself, at four times the cost.
    return {
        "attempt": attempt.attempt,
        "backend_id": attempt.backend_id,
        "status": attempt.status,
        "error": attempt.error,
        "latency_ms": attempt.latency_ms,
        "billed": attempt.billed,
    }


def _encodable(text: str) -> str:
    return str(text).encode("utf-8", "replace").decode()
