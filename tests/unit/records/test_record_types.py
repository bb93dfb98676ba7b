"""Usage records and audit events as JSON, against their published schemas."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from router.call import (
    INPUT_CLASSES,
    OUTCOMES,
    OUTPUT_CLASSES,
    UNITS,
    Decision,
    LimitState,
    Outcome,
    UsageSource,
)
from router.records import record_types as records
from router.records.audit_chain import AuditChain, encode_event, unseal
from router.records.record_schemas import audit_event_schema, usage_record_schema
from router.records.record_types import (
    AUDIT_ACTIONS,
    DECISION_REASONS,
    AttemptRecord,
    AuditEvent,
    DecisionReason,
    UsageRecord,
    degraded_usage,
    encode_usage,
    format_timestamp,
    format_usd,
    parse_timestamp_us,
)
from tests.unit.records.samples import EVENT, RECORD, START_S

USAGE_SCHEMA = Draft202012Validator(
    usage_record_schema(), format_checker=Draft202012Validator.FORMAT_CHECKER
)
AUDIT_SCHEMA = Draft202012Validator(
    audit_event_schema(), format_checker=Draft202012Validator.FORMAT_CHECKER
)
INT64 = 2**63 - 1

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = texts.filter(bool)
counts = st.integers(0, INT64)
durations = st.floats(0, 1e9, allow_nan=False)
moments = st.floats(0, 4e9, allow_nan=False)


def sometimes(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


attempts = st.builds(
    AttemptRecord,
    attempt=st.integers(1, 10),
    backend_id=names,
    status=sometimes(st.integers(0, 599)),
    error=sometimes(texts),
    latency_ms=durations,
    billed=st.booleans(),
)
usage_records = st.builds(
    UsageRecord,
    record_id=st.uuids(version=4).map(str),
    request_id=names,
    timestamp=moments,
    organization_id=sometimes(names),
    api_key_id=sometimes(names),
    endpoint=names,
    operation=sometimes(texts),
    model=sometimes(texts),
    model_requested=sometimes(texts),
    backend_id=sometimes(texts),
    stream=st.booleans(),
    status=st.integers(0, 599),
    outcome=st.sampled_from(OUTCOMES),
    limit_state=st.sampled_from(get_args(LimitState)),
    decision_reason=sometimes(st.sampled_from(DECISION_REASONS)),
    usage_source=st.sampled_from(get_args(UsageSource)),
    tokens_input=counts,
    tokens_output=counts,
    tokens_cached=counts,
    usage_classes=st.dictionaries(
        st.sampled_from((*INPUT_CLASSES, *OUTPUT_CLASSES, *UNITS)), counts
    ),
    service_tier=sometimes(texts),
    reserved_nanos=sometimes(counts),
    reserved_tokens=sometimes(counts),
    over_reservation=st.booleans(),
    cost_nanos=sometimes(st.integers(-INT64, INT64)),
    latency_ms=durations,
    bytes_sent=counts,
    attempts=st.lists(attempts, max_size=3).map(tuple),
    retry_count=counts,
    trace_id=sometimes(texts),
    span_id=sometimes(texts),
    metadata=st.dictionaries(texts, texts, max_size=3),
)
scalars = st.none() | st.booleans() | st.integers(-INT64, INT64) | durations | texts
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
audit_events = st.builds(
    AuditEvent,
    event_id=st.uuids(version=4).map(str),
    action=st.sampled_from(AUDIT_ACTIONS),
    actor=names,
    entity_type=names,
    entity_id=texts,
    timestamp=moments,
    organization_id=sometimes(names),
    reason=sometimes(texts),
    request_id=sometimes(names),
    context=st.dictionaries(
        texts.filter(lambda name: name not in ("api_key_id", "model")), scalars, max_size=3
    ),
    before=documents,
    after=documents,
    trace_id=sometimes(texts),
)


def problems(schema: Draft202012Validator, line: bytes) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in schema.iter_errors(decoded(line))]


def decoded(line: bytes) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(line)
    return found


@pytest.mark.parametrize("schema", [usage_record_schema(), audit_event_schema()])
def test_schemas_are_schemas(schema: dict[str, Any]) -> None:
    """Both are valid drafts of 2020-12 that allow no field they do not name."""
    Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False


@settings(max_examples=150, deadline=None)
@given(record=usage_records)
def test_every_usage_record_keeps_to_its_schema(record: UsageRecord) -> None:
    """Whatever stands in the fields, the line is valid JSON of the schema and one line."""
    line = encode_usage(record)
    assert problems(USAGE_SCHEMA, line) == []
    assert b"\n" not in line
    found = decoded(line)
    assert found["metadata"] == record.metadata
    assert found["tokens_input"] == record.tokens_input
    assert [attempt["billed"] for attempt in found["attempts"]] == [
        attempt.billed for attempt in record.attempts
    ]


@settings(max_examples=150, deadline=None)
@given(event=audit_events)
def test_every_audit_event_keeps_to_its_schema(event: AuditEvent) -> None:
    """A linked event is valid, one line, and encodes to the same bytes after decoding."""
    line = AuditChain("w-1").link(event)
    assert problems(AUDIT_SCHEMA, line) == []
    assert b"\n" not in line
    assert encode_event(decoded(line)) == line


def test_all_fields_are_in_the_json() -> None:
    """No field of a value is forgotten; only the decimal cost and the chain are added."""
    names_of_usage = {field.name for field in fields(UsageRecord)}
    assert set(decoded(encode_usage(RECORD))) == names_of_usage | {"cost_usd"}
    names_of_event = {field.name for field in fields(AuditEvent)}
    chained = {"writer_id", "sequence", "previous_hash", "hash"}
    assert set(decoded(AuditChain("w").link(EVENT))) == names_of_event | chained
    [attempt] = decoded(encode_usage(RECORD))["attempts"]
    assert set(attempt) == {field.name for field in fields(AttemptRecord)}


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("source", get_args(UsageSource))
def test_outcomes_and_sources(outcome: Outcome, source: UsageSource) -> None:
    """Each member of both sets is written as it is named."""
    line = encode_usage(replace(RECORD, outcome=outcome, usage_source=source))
    assert problems(USAGE_SCHEMA, line) == []
    assert (decoded(line)["outcome"], decoded(line)["usage_source"]) == (outcome, source)


@pytest.mark.parametrize("state", get_args(LimitState))
@pytest.mark.parametrize("reason", [*DECISION_REASONS, None])
def test_states_and_reasons(state: LimitState, reason: DecisionReason | None) -> None:
    """Each member of both sets is written as it is named; no decision is null."""
    line = encode_usage(replace(RECORD, limit_state=state, decision_reason=reason))
    assert problems(USAGE_SCHEMA, line) == []
    assert (decoded(line)["limit_state"], decoded(line)["decision_reason"]) == (state, reason)


@pytest.mark.parametrize("action", AUDIT_ACTIONS)
def test_actions(action: records.AuditAction) -> None:
    """Each audit action is valid and written as it is named."""
    line = AuditChain("w").link(replace(EVENT, action=action))
    assert problems(AUDIT_SCHEMA, line) == []
    assert decoded(line)["action"] == action


def test_reasons_are_the_decisions_and_the_limit() -> None:
    """What routing can decide can be recorded."""
    assert set(DECISION_REASONS) == {*get_args(Decision), "RATE_LIMIT"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outcome", "done"),
        ("limit_state", "OK"),
        ("decision_reason", "primary"),
        ("usage_source", ""),
        ("timestamp", "2027-01-15T08:00:00Z"),
        ("cost_usd", "1e-9"),
        ("cost_nanos", 1.5),
        ("tokens_input", -1),
        ("record_id", "1"),
        ("metadata", {"a": 1}),
        ("prompt", "must never be here"),
    ],
)
def test_the_usage_schema_refuses_what_is_none(field: str, value: Any) -> None:
    """The sets are closed, figures are whole, and no field can be smuggled in."""
    found = {**decoded(encode_usage(RECORD)), field: value}
    assert not USAGE_SCHEMA.is_valid(found)


FIRST_RELEASE = orjson.loads(
    b'{"schema_version":1,"record_id":"00000000-0000-4000-8000-000000000001","request_id":"req-1",'
    b'"timestamp":"2027-01-15T08:00:00.000000Z","organization_id":"acme","api_key_id":"key-1",'
    b'"endpoint":"openai.chat_completions","operation":"chat","model":"m","model_requested":"m",'
    b'"backend_id":"b-1","stream":false,"status":200,"outcome":"completed",'
    b'"limit_state":"WITHIN_LIMIT","decision_reason":"PRIMARY","usage_source":"reported",'
    b'"tokens_input":120,"tokens_output":30,"tokens_cached":20,"cost_nanos":7,'
    b'"cost_usd":"0.000000007","latency_ms":1.5,"bytes_sent":10,"attempts":[],"retry_count":0,'
    b'"trace_id":null,"span_id":null,"metadata":{}}'
)
"""As records were first written; the spool and the stores of operators are full of them."""


def test_records_of_the_first_release_are_valid() -> None:
    """What was added since is optional to those who read."""
    assert USAGE_SCHEMA.is_valid(FIRST_RELEASE)


@pytest.mark.parametrize("field", sorted(FIRST_RELEASE))
def test_no_usage_field_may_be_missing(field: str) -> None:
    """Consumers need not ask whether a field is there."""
    found = decoded(encode_usage(RECORD))
    del found[field]
    assert not USAGE_SCHEMA.is_valid(found)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("action", "REQUEST_SEEN"),
        ("sequence", 0),
        ("hash", "0" * 63),
        ("previous_hash", "A" * 64),
        ("writer_id", "w 1"),
        ("actor", ""),
        ("context", {"deep": {}}),
        ("secret", "x"),
    ],
)
def test_the_audit_schema_refuses_what_is_none(field: str, value: Any) -> None:
    """The sets are closed and a place in a chain has one form."""
    found = {**decoded(AuditChain("w").link(EVENT)), field: value}
    assert not AUDIT_SCHEMA.is_valid(found)


@settings(max_examples=300, deadline=None)
@given(nanos=st.integers(-INT64, INT64))
def test_usd_is_the_cost_to_the_last_digit(nanos: int) -> None:
    """The decimal is the same number, never through a float, with two to nine places."""
    text = format_usd(nanos)
    assert Decimal(text) * 10**9 == nanos
    places = len(text.partition(".")[2])
    assert 2 <= places <= 9
    assert places == 2 or not text.endswith("0")


@pytest.mark.parametrize(
    ("nanos", "usd"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (-1, "-0.000000001"),
        (10_000_000, "0.01"),
        (2_500_000_000, "2.50"),
        (-2_500_000_000, "-2.50"),
        (1_234_567_890_123, "1234.567890123"),
        (INT64, "9223372036.854775807"),
        (None, None),
    ],
)
def test_cost_stands_beside_its_decimal(nanos: int | None, usd: str | None) -> None:
    """An unknown price is null twice, not 0."""
    found = decoded(encode_usage(replace(RECORD, cost_nanos=nanos)))
    assert (found["cost_nanos"], found["cost_usd"]) == (nanos, usd)


@settings(max_examples=200, deadline=None)
@given(micros=st.integers(0, 4_000_000_000_000_000))
def test_timestamps_are_read_back_to_the_microsecond(micros: int) -> None:
    """A moment survives being a float, a text and a number again, and is UTC."""
    text = format_timestamp(micros / 1_000_000)
    assert parse_timestamp_us(text) == micros
    expected = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=micros)
    assert datetime.fromisoformat(text.replace("Z", "+00:00")) == expected


@settings(max_examples=100, deadline=None)
@given(one=moments, other=moments)
def test_timestamps_sort_as_moments_do(one: float, other: float) -> None:
    """Texts of one length in one zone: a consumer may compare them as texts."""
    if round(one * 1_000_000) < round(other * 1_000_000):
        assert format_timestamp(one) < format_timestamp(other)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (START_S, "2027-01-15T08:00:00.000000Z"),
        (START_S + 0.9999996, "2027-01-15T08:00:01.000000Z"),
        (START_S - 0.000001, "2027-01-15T07:59:59.999999Z"),
        (-0.5, "1969-12-31T23:59:59.500000Z"),
    ],
)
def test_timestamps_have_one_form(seconds: float, text: str) -> None:
    """Microseconds are always written and roundings carry into the second."""
    assert format_timestamp(seconds) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2027-01-15T08:00:00Z",
        "2027-01-15T08:00:00.000000+00:00",
        "2027-01-15 08:00:00.000000Z",
        "2027-01-15T08:00:00,000000Z",
        "2027-13-15T08:00:00.000000Z",
        "2027-01-15T08:00:00.00000xZ",
    ],
)
def test_another_form_of_time_is_refused(text: str) -> None:
    """What would not sort as text, such as a blank for the T, used to pass."""
    with pytest.raises(ValueError, match=r".+"):
        parse_timestamp_us(text)


@settings(max_examples=100, deadline=None)
@given(
    request_id=st.text(min_size=1, max_size=10),
    key_id=sometimes(st.text(max_size=10)),
    endpoint=st.text(min_size=1, max_size=10),
    organization_id=sometimes(st.text(max_size=10)),
    status=st.integers(0, 599),
)
def test_a_degraded_record_is_always_possible(
    request_id: str, key_id: str | None, endpoint: str, organization_id: str | None, status: int
) -> None:
    """Also with text that UTF-8 cannot carry, it is valid and says that it is degraded (U4)."""
    line = degraded_usage(
        request_id, key_id, endpoint, START_S, status, organization_id=organization_id
    )
    assert problems(USAGE_SCHEMA, line) == []
    assert decoded(line)["degraded"] is True
    assert decoded(line)["status"] == status


def test_a_degraded_record_claims_nothing_else() -> None:
    """Figures that nobody knows must not be there, not even as 0 (U4)."""
    found = decoded(degraded_usage("req-1", "key_1", "openai.chat", START_S, 500))
    assert not USAGE_SCHEMA.is_valid({**found, "tokens_input": 0})
    assert not USAGE_SCHEMA.is_valid({**found, "degraded": False})
    assert not USAGE_SCHEMA.is_valid({**decoded(encode_usage(RECORD)), "degraded": True})


def test_what_json_cannot_carry_is_an_error() -> None:
    """The caller is told, and falls back to a degraded record."""
    for changes in ({"model": "\ud800"}, {"tokens_input": 2**64}, {"metadata": {1: "a"}}):
        with pytest.raises(TypeError):
            encode_usage(replace(RECORD, **changes))


def test_a_dataclass_within_an_event_is_refused() -> None:
    """Its fields used to be hashed unsorted, and the stored event then looked forged."""

    @dataclass
    class Policy:
        name: str = "b"
        limit: int = 1

    chain = AuditChain("w-1")
    with pytest.raises(TypeError):
        chain.link(replace(EVENT, after={"policy": Policy()}))
    assert decoded(chain.link(EVENT))["sequence"] == 1


def test_the_hash_stands_last() -> None:
    """So that what was hashed can be cut out again, also when a value looks like a hash."""
    event = replace(EVENT, reason='","hash":"' + "0" * 64 + '"}')
    line = AuditChain("w-1").link(event)
    body, digest = unseal(line)
    assert decoded(line)["hash"] == digest
    assert "hash" not in decoded(body)
