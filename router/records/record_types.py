"""What is recorded of a call and of a decision: the values and their JSON, one line each.

Where the lines go (spool, Kafka, record store) is not known here. Encoding is on the path of every
call: it is one dictionary and one pass of the encoder.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal, get_args

import orjson

from router.call import Decision, LimitState, Outcome, UsageSource
from router.telemetry.redaction import redact_bytes

SCHEMA_VERSION: Final = 1
NANOS_PER_USD: Final = 1_000_000_000
_MICROS_PER_S: Final = 1_000_000
_CANONICAL: Final = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS

DecisionReason = Literal[Decision, "RATE_LIMIT"]
DECISION_REASONS: Final[tuple[DecisionReason, ...]] = (
    "PRIMARY",
    "FAILOVER",
    "OVERRIDE",
    "RATE_LIMIT",
)

AuditAction = Literal[
    "REQUEST_ALLOWED",
    "REQUEST_DENIED",
    "POLICY_UPDATE",
    "LIMIT_UPDATE",
    "LIMIT_RESET",
    "BUDGET_ADJUSTED",
    "BUDGET_THRESHOLD",
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
    """One try at one backend, as it stands in the record of its call."""

    attempt: int
    """From 1."""
    backend_id: str
    status: int | None
    error: str | None
    latency_ms: float
    billed: bool
    """The tokens and the cost of the record were spent here."""


@dataclass(slots=True, kw_only=True)
class UsageRecord:
    """One client call: what was asked, who served it, what it used and cost, how it ended.

    What was never known is ``None``: a call refused before its body was read has no model.
    """

    record_id: str
    """A UUID. Whoever meets it twice has met the same record twice."""
    request_id: str
    timestamp: float
    """When the call began; seconds since the epoch."""
    organization_id: str | None
    api_key_id: str | None
    endpoint: str
    operation: str | None
    model: str | None
    model_requested: str | None
    """As the client wrote it: an alias, or a name that does not exist."""
    backend_id: str | None
    stream: bool
    status: int
    outcome: Outcome
    limit_state: LimitState
    decision_reason: DecisionReason | None
    usage_source: UsageSource
    tokens_input: int
    tokens_output: int
    tokens_cached: int
    cost_nanos: int | None
    """``None`` when the model has no price; an unknown price is not a price of 0."""
    latency_ms: float
    bytes_sent: int
    attempts: tuple[AttemptRecord, ...]
    retry_count: int
    trace_id: str | None
    span_id: str | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(slots=True, kw_only=True)
class AuditEvent:
    """One decision or change that somebody may have to answer for.

    The last four fields are the event's place in the chain of its writer; ``AuditChain.link`` sets
    them.
    """

    event_id: str
    action: AuditAction
    actor: str
    entity_type: str
    entity_id: str
    timestamp: float
    organization_id: str | None = None
    reason: str | None = None
    request_id: str | None = None
    context: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    """Flat facts of the decision. The store finds events by ``api_key_id`` and ``model``."""
    before: Any = None
    """The entity as it was, without secrets; ``None`` when nothing changed or it is new."""
    after: Any = None
    trace_id: str | None = None
    schema_version: int = SCHEMA_VERSION
    writer_id: str | None = None
    sequence: int | None = None
    previous_hash: str | None = None
    hash: str | None = None


def encode_usage(record: UsageRecord) -> bytes:
    """The record as one line of JSON without its newline, secrets in it concealed.

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
            "cost_nanos": record.cost_nanos,
            "cost_usd": None if record.cost_nanos is None else format_usd(record.cost_nanos),
            "latency_ms": record.latency_ms,
            "bytes_sent": record.bytes_sent,
            "attempts": [_attempt(attempt) for attempt in record.attempts],
            "retry_count": record.retry_count,
            "trace_id": record.trace_id,
            "span_id": record.span_id,
            "metadata": record.metadata,
        }
    )
    shown = redact_bytes(line)
    # Read and written again: two names of metadata may have become one.
    return line if shown is line else orjson.dumps(orjson.loads(shown))


def degraded_usage(
    request_id: str,
    api_key_id: str | None,
    endpoint: str,
    timestamp: float,
    status: int,
    *,
    organization_id: str | None = None,
) -> bytes:
    """The least that can be said of a call whose full record could not be built; never fails."""
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


def encode_audit(event: AuditEvent) -> bytes:
    """A chained event as the line that its chain vouches for.

    Raises ``ValueError`` for an event that was never linked: it would be lost to every check.
    """
    writer_id, sequence, previous_hash = event.writer_id, event.sequence, event.previous_hash
    if writer_id is None or sequence is None or previous_hash is None or event.hash is None:
        raise ValueError("the event belongs to no chain: it is encoded by AuditChain.link")
    return seal(audit_body(event, writer_id, sequence, previous_hash), event.hash)


def audit_body(event: AuditEvent, writer_id: str, sequence: int, previous_hash: str) -> bytes:
    """What the hash of an event is taken over: all its fields but the hash, names sorted.

    Secrets in it are concealed before it is hashed, or the hash would not fit what is kept.
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
    shown = redact_bytes(body)
    # Concealed names may be the same, or sort differently.
    return body if shown is body else canonical(orjson.loads(shown))


def canonical(value: Mapping[str, Any]) -> bytes:
    """The one way to write a JSON object: names sorted, no spaces, UTF-8 unescaped.

    Raises ``TypeError`` for what JSON cannot carry, and for dataclasses: the encoder would write
    their fields unsorted, and nobody who decodes the text could write it so again.
    """
    return orjson.dumps(value, option=_CANONICAL)


def seal(body: bytes, hash_hex: str) -> bytes:
    """``body`` with its hash as the last field, so that what was hashed can be cut out again."""
    return b'%b,"hash":"%b"}' % (body[:-1], hash_hex.encode())


_second: tuple[int, str] = (0, "1970-01-01T00:00:00")
"""The second formatted last, with its text; one tuple, so that threads see both or neither."""


def format_timestamp(seconds: float) -> str:
    """RFC 3339 in UTC, always with microseconds, so that texts sort as the moments do."""
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
