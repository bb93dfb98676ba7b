"""Opening frames: what they say, and what is no record."""

from __future__ import annotations

import tracemalloc

import pytest

from router.spool.frames import AUDIT, USAGE
from tests.fakes.shipping import decoded, event, usage


def test_a_usage_record_ended_when_its_call_did() -> None:
    """The record has the beginning and the duration; order is by the end."""
    found = decoded(usage(1, ended_s=1000.5))
    assert (found.id, found.writer_id, found.ended_us) == ("r1", "w", 1_000_500_000)
    assert found.fault is None
    assert found.fields["organization_id"] == "acme"


def test_an_event_has_no_duration() -> None:
    """It happened at its timestamp."""
    found = decoded(event(1, ended_s=1000.5), AUDIT)
    assert (found.id, found.ended_us, found.fault) == ("e1", 1_000_500_000, None)


@pytest.mark.parametrize(
    ("kind", "payload", "fault"),
    [
        (7, b"{}", "unknown kind of frame: 7"),
        (USAGE, b"{", "not JSON: unexpected end of data"),
        (USAGE, b"\xff\xfe", "not JSON: str is not valid UTF-8: surrogates not allowed"),
        (USAGE, b"[]", "not a JSON object"),
        (USAGE, b'{"event_id":"e1"}', "record_id: missing or not a text"),
        (AUDIT, b'{"record_id":"r1"}', "event_id: missing or not a text"),
        (USAGE, b'{"record_id":7}', "record_id: missing or not a text"),
    ],
)
def test_what_is_no_record_has_a_fault(kind: int, payload: bytes, fault: str) -> None:
    """P5: it goes to the dead letters, with a reason; its neighbours are not touched."""
    found = decoded(payload, kind)
    assert (found.fault, found.id, found.payload) == (fault, None, payload)


@pytest.mark.parametrize(
    "more",
    [
        {"timestamp": None},
        {"timestamp": "yesterday"},
        {"latency_ms": "long"},
        {"latency_ms": 1e308},
        {"latency_ms": "1" * 1000},
        {"latency_ms": [0]},
        {"latency_ms": True},
        {"latency_ms": -1},
        {"latency_ms": 2**63},
        {"timestamp": 7},
        {"timestamp": "2026-01-01T00:00:00.000000Z" * 1000},
    ],
)
def test_a_record_without_a_moment_is_still_a_record(more: dict[str, object]) -> None:
    """It goes first; whether it is acceptable is for the sinks to say."""
    found = decoded(usage(1, **more))
    assert (found.id, found.ended_us, found.fault) == ("r1", 0, None)


def test_a_text_for_a_duration_takes_no_memory() -> None:
    """A text of 1 MB used to be repeated a thousand times before it was refused."""
    payload = usage(1, latency_ms="1" * 1_000_000)
    tracemalloc.start()
    try:
        decoded(payload)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
