"""Records and events to test with: valid ones, and any number of different ones."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import orjson

from router.call import OUTCOMES
from router.records.audit_chain import AuditChain, derive_audit_key
from router.records.record_types import AttemptRecord, AuditEvent, UsageRecord, encode_usage

START_S: Final = 1_800_000_000.0
"""2027-01-15T08:00:00Z."""
KEY: Final = derive_audit_key(b"a pepper of at least thirty-two bytes")

RECORD: Final = UsageRecord(
    record_id="00000000-0000-4000-8000-000000000001",
    request_id="req-1",
    timestamp=START_S,
    organization_id="acme",
    api_key_id="key_1",
    endpoint="openai.chat",
    operation="chat",
    model="gpt-4o",
    model_requested="gpt-latest",
    backend_id="east",
    stream=False,
    status=200,
    outcome="completed",
    limit_state="WITHIN_LIMIT",
    decision_reason="PRIMARY",
    usage_source="reported",
    tokens_input=120,
    tokens_output=30,
    tokens_cached=20,
    usage_classes={"input": 100, "cache_read": 20, "output": 30},
    service_tier="priority",
    reserved_nanos=70_000,
    reserved_tokens=4_096,
    over_reservation=True,
    cost_nanos=1_500_000,
    latency_ms=812.345,
    bytes_sent=2048,
    attempts=(
        AttemptRecord(
            attempt=1, backend_id="east", status=200, error=None, latency_ms=800.5, billed=True
        ),
    ),
    retry_count=0,
    trace_id="0af7651916cd43dd8448eb211c80319c",
    span_id="b7ad6b7169203331",
    metadata={"team": "search"},
)
EVENT: Final = AuditEvent(
    event_id="00000000-0000-4000-9000-000000000001",
    action="REQUEST_ALLOWED",
    actor="key_1",
    entity_type="request",
    entity_id="req-1",
    timestamp=START_S,
    organization_id="acme",
    request_id="req-1",
    context={"api_key_id": "key_1", "model": "gpt-4o", "tokens": 150},
)


def usage(**changes: Any) -> dict[str, Any]:
    """A usage record as a sink reads it, with an id of its own."""
    changes.setdefault("record_id", str(uuid.uuid4()))
    decoded: dict[str, Any] = orjson.loads(encode_usage(replace(RECORD, **changes)))
    return decoded


def event(**changes: Any) -> AuditEvent:
    """An event that belongs to no chain yet, with an id of its own."""
    changes.setdefault("event_id", str(uuid.uuid4()))
    return replace(EVENT, **changes)


def linked(chain: AuditChain, **changes: Any) -> dict[str, Any]:
    """The next event of a chain as a sink reads it."""
    decoded: dict[str, Any] = orjson.loads(chain.link(event(**changes)))
    return decoded


def chained(writer_id: str, count: int, **changes: Any) -> list[dict[str, Any]]:
    """The first ``count`` events of a writer, a second apart."""
    chain = AuditChain(writer_id)
    return [linked(chain, timestamp=START_S + number, **changes) for number in range(count)]


def different_calls(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Calls that differ in whatever a question can ask for, over some days."""
    chance = random.Random(seed)
    for number in range(count):
        outcome = chance.choice(OUTCOMES)
        rejected = outcome == "rejected"
        yield usage(
            record_id=str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            request_id=f"req-{number}",
            timestamp=START_S + chance.randrange(3 * 86_400) + chance.random(),
            organization_id=chance.choice(("acme", "beta", "Émile & Söhne", None)),
            api_key_id=chance.choice(("key_1", "key_2", "KEY_1", None)),
            model=chance.choice(("gpt-4o", "claude", "Zeta", None)),
            backend_id=None if rejected else chance.choice(("east", "west-1", "west_1")),
            outcome=outcome,
            usage_source=chance.choice(("reported", "estimated", "none")),
            tokens_input=chance.randrange(5000),
            tokens_output=chance.randrange(500),
            tokens_cached=chance.randrange(50),
            usage_classes={"cache_write_1h": chance.randrange(9), "web_searches": 1},
            cost_nanos=chance.choice((None, 0, chance.randrange(10**10))),
            latency_ms=chance.choice((250.0, round(chance.random() * 2000, 3))),
            retry_count=chance.randrange(3),
        )
