"""The recorder: appends as one, buffers what is refused, cuts what is too long."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator

from router.errors import RecordsUnavailable
from router.records.audit_chain import chain_hash, encode_event, unseal
from router.records.record_schemas import audit_event_schema, usage_record_schema
from router.records.record_types import AuditEvent
from router.records.recorder import Recorder
from router.spool.frames import AUDIT, MAX_PAYLOAD_BYTES, USAGE, encode_frame
from router.spool.writer import SpoolStatus, SpoolWriter

Frames = list[tuple[int, bytes]]
EVENT = AuditEvent(
    event_id="e-1",
    action="REQUEST_ALLOWED",
    actor="key:k",
    entity_type="request",
    entity_id="r-1",
    timestamp=1_800_000_000.5,
    request_id="r-1",
    context={"api_key_id": "k"},
)


class Spool:
    """Takes frames as the spool does, or refuses them."""

    writer_id = "w-1"

    def __init__(self) -> None:
        self.reason: str | None = None
        self.nothing_written = False
        self.defect: Exception | None = None
        self.appended: Frames = []
        self.buffered: Frames = []
        self.has_memory = True
        self.used_bytes = 0
        self.max_bytes = 1000

    def status(self) -> SpoolStatus:
        return SpoolStatus(None, self.used_bytes, self.max_bytes, 0, 0, 0, 0, 0)

    def check(self) -> None:
        if self.reason is not None:
            raise RecordsUnavailable(self.reason, nothing_written=self.nothing_written)

    def append(self, frames: Iterable[tuple[int, bytes]]) -> None:
        self.check()
        if self.defect is not None:
            raise self.defect
        self.appended += self._encodable(frames)

    def buffer(self, frames: Iterable[tuple[int, bytes]]) -> bool:
        if self.has_memory:
            self.buffered += self._encodable(frames)
        return self.has_memory

    @staticmethod
    def _encodable(frames: Iterable[tuple[int, bytes]]) -> Frames:
        return [(kind, payload) for kind, payload in frames if encode_frame(kind, payload)]


@pytest.fixture
def spool() -> Spool:
    return Spool()


@pytest.fixture
def recorder(spool: Spool) -> Recorder:
    return Recorder(cast(SpoolWriter, spool))


def usage(**fields: Any) -> bytes:
    """As much of a usage record as matters here."""
    facts = {
        "request_id": "r-1",
        "api_key_id": "k",
        "organization_id": "acme",
        "endpoint": "native.inference",
        "timestamp": "2027-01-15T08:00:00.123457Z",
        "status": 200,
    }
    return json.dumps({**facts, **fields}).encode()


def sequences(frames: Frames) -> list[int]:
    return [json.loads(payload)["sequence"] for kind, payload in frames if kind == AUDIT]


def test_both_are_appended_as_one(spool: Spool, recorder: Recorder) -> None:
    """The record as it is, then its event as the next of the chain."""
    recorder.record(usage(), EVENT)
    recorder.record(None, EVENT)
    assert [kind for kind, _ in spool.appended] == [USAGE, AUDIT, AUDIT]
    assert spool.appended[0][1] == usage()
    assert sequences(spool.appended) == [1, 2]
    assert recorder.taken == 3


def test_what_the_spool_refuses_is_held(spool: Spool, recorder: Recorder) -> None:
    """P3: the caller gets it back with the reason; buffered, nothing is dropped."""
    spool.reason = "disk_error"
    for _ in range(2):
        unwritten = recorder.record(usage(), EVENT)
        assert unwritten is not None
        assert unwritten.error.reason == "disk_error"
        unwritten.buffer()
    assert sequences(spool.buffered) == [1, 2]


def buffer_changed(recorder: Recorder) -> None:
    """Record a call whose answer is withheld, because of what the spool says."""
    unwritten = recorder.record(usage(), EVENT)
    assert unwritten is not None
    unwritten.buffer((usage(status=503), replace(EVENT, reason=unwritten.error.reason)))


def test_what_was_refused_can_be_buffered_changed(spool: Spool, recorder: Recorder) -> None:
    """P3: in the same place of the chain, as nobody has seen what stood there."""
    recorder.record(None, EVENT)
    spool.reason, spool.nothing_written = "disk_error", True
    buffer_changed(recorder)
    spool.reason = None
    recorder.record(None, EVENT)
    (_, held), (_, event) = spool.buffered
    first, last = (json.loads(payload) for _, payload in spool.appended)
    assert (json.loads(held)["status"], json.loads(event)["reason"]) == (503, "disk_error")
    assert sequences(spool.buffered) == [2]
    assert json.loads(event)["previous_hash"] == first["hash"]
    assert last["previous_hash"] == json.loads(event)["hash"]
    assert recorder.taken == 4


def test_what_may_be_written_is_buffered_as_it_is(spool: Spool, recorder: Recorder) -> None:
    """P2: two contents under one id would be two truths."""
    spool.reason = "disk_slow"
    buffer_changed(recorder)
    assert spool.buffered[0][1] == usage()


def test_a_defect_of_the_spool_is_a_refusal(spool: Spool, recorder: Recorder) -> None:
    """P3: what is raised as anything else was not taken; this was."""
    spool.defect = KeyError("x")
    buffer_changed(recorder)
    assert spool.buffered[0][1] == usage()


def test_events_that_were_not_written_can_be_noted_again(spool: Spool, recorder: Recorder) -> None:
    """P20: nobody misses a number of the chain, however often the spool had no room."""
    recorder.note([EVENT])
    spool.reason, spool.nothing_written = "spool_full", True
    for _ in range(3):
        with pytest.raises(RecordsUnavailable):
            recorder.note([EVENT, EVENT])
    spool.reason = None
    recorder.note([EVENT, EVENT])
    found = [json.loads(payload) for _, payload in spool.appended]
    assert [event["sequence"] for event in found] == [1, 2, 3]
    assert [event["previous_hash"] for event in found[1:]] == [event["hash"] for event in found[:2]]
    assert recorder.taken == 3


@pytest.mark.parametrize("trouble", ["disk_slow", "a defect"])
def test_events_that_may_be_written_keep_their_places(
    spool: Spool, recorder: Recorder, trouble: str
) -> None:
    """P20: what a sync did not confirm may be on the disk. It is buffered with the same bytes, for
    other events under its numbers would break the chain, and none would leave a hole."""
    if trouble == "a defect":
        spool.defect = KeyError("x")
    else:
        spool.reason = trouble
    with pytest.raises(RecordsUnavailable) as refused:
        recorder.note([EVENT, replace(EVENT, event_id="e-2")])
    assert not refused.value.nothing_written
    spool.reason = spool.defect = None
    recorder.note([replace(EVENT, event_id="e-3")])
    assert sequences(spool.buffered + spool.appended) == [1, 2, 3]
    assert recorder.taken == 3


def chain_on_meanwhile(spool: Spool, recorder: Recorder) -> None:
    """Let the next append find out that it has no room after another one has chained on."""
    append = spool.append

    def late(_frames: Iterable[tuple[int, bytes]]) -> None:
        spool.append = append  # type: ignore[method-assign]
        recorder.note([replace(EVENT, event_id="e-2")])
        raise RecordsUnavailable("spool_full", nothing_written=True)

    spool.append = late  # type: ignore[method-assign]


def test_what_others_are_chained_on_keeps_its_place(spool: Spool, recorder: Recorder) -> None:
    """P20: also where nothing of it is written; it used to leave a hole."""
    chain_on_meanwhile(spool, recorder)
    with pytest.raises(RecordsUnavailable) as refused:
        recorder.note([EVENT])
    assert not refused.value.nothing_written
    assert sequences(spool.buffered + spool.appended) == [1, 2]


def test_a_withheld_record_does_not_take_anothers_place(spool: Spool, recorder: Recorder) -> None:
    """P20: another call may end between the refusal and the moment at which it is buffered."""
    spool.reason, spool.nothing_written = "spool_full", True
    unwritten = recorder.record(usage(), EVENT)
    spool.reason = None
    recorder.note([replace(EVENT, event_id="e-2")])
    assert unwritten is not None
    unwritten.buffer((usage(status=503), replace(EVENT, reason="spool_full")))
    assert sequences(spool.buffered + spool.appended) == [1, 2]


@pytest.mark.parametrize("changed", [None, (b"{}", EVENT)])
def test_what_no_memory_is_left_for_leaves_no_hole(
    spool: Spool, recorder: Recorder, changed: Any
) -> None:
    """P20: its loss is counted by the spool, and the chain goes on as if it had never been."""
    spool.reason, spool.nothing_written, spool.has_memory = "disk_full", True, False
    unwritten = recorder.record(usage(), EVENT)
    assert unwritten is not None
    unwritten.buffer(changed)
    spool.reason = None
    recorder.note([EVENT])
    assert sequences(spool.buffered + spool.appended) == [1]


def test_a_record_without_an_event(spool: Spool, recorder: Recorder) -> None:
    """U4: the chain goes on behind it."""
    recorder.record(usage(), None)
    recorder.record(None, EVENT)
    assert [kind for kind, _ in spool.appended] == [USAGE, AUDIT]
    assert sequences(spool.appended) == [1]


def test_an_event_is_chained_without_the_secrets_in_it(spool: Spool, recorder: Recorder) -> None:
    """P17: the hash is that of what is kept, and its names are sorted as everywhere."""
    key = "rtr_test_" + "k" * 32
    details = {key: 1, "~": f"by {key}", "a": 3}
    recorder.record(None, replace(EVENT, reason=key, before=details))
    [(_, line)] = spool.appended
    body, digest = unseal(line)
    event = json.loads(line)
    assert key.encode() not in line
    assert (event["reason"], event["before"]) == ("…", {"…": 1, "~": "by …", "a": 3})
    assert digest == chain_hash(event["previous_hash"], body)
    assert encode_event(event) == line


def test_refusals_leave_the_room_to_calls(spool: Spool, recorder: Recorder) -> None:
    """P3: they used to fill the room that is set aside for calls in flight."""
    assert recorder.admits_refusals()
    spool.reason = "disk_full"
    assert [recorder.admits_refusals() for _ in range(3)] == [False] * 3
    spool.reason = "spool_full"
    assert not recorder.admits_refusals()
    assert recorder.refused == {"disk_full": 3, "spool_full": 1}
    assert spool.appended == spool.buffered == []


def test_refusals_may_use_half_of_the_spool(spool: Spool, recorder: Recorder) -> None:
    """P3: a caller that may do nothing cannot fill the spool of those that may."""
    spool.used_bytes = spool.max_bytes // 2
    assert recorder.admits_refusals()
    spool.used_bytes += 1
    assert not recorder.admits_refusals()
    recorder.check()
    assert recorder.refused == {"reserved": 1}


@pytest.mark.parametrize("over", [0, 1, 100_000])
def test_a_record_that_no_frame_can_carry_is_degraded(
    spool: Spool, recorder: Recorder, over: int
) -> None:
    """U4: it used to be an error, for the client and for ever; now the call is known."""
    room = MAX_PAYLOAD_BYTES - len(usage(metadata=""))
    recorder.record(usage(metadata="x" * (room + over)), EVENT)
    written = json.loads(spool.appended[0][1])
    assert ("degraded" in written) is (over > 0)
    assert recorder.degraded == (over > 0)
    if over:
        Draft202012Validator(usage_record_schema()).validate(written)
        assert json.loads(usage()).items() <= written.items()


@pytest.mark.parametrize(
    "details",
    [
        {"before": "x" * MAX_PAYLOAD_BYTES},
        {"after": ["y" * 600_000, "z" * 600_000]},
        {"context": {"api_key_id": object()}},
        {"after": 2**70},
    ],
    ids=["too long", "too long together", "no JSON", "no number"],
)
def test_an_event_that_cannot_be_written_loses_its_details(
    spool: Spool, recorder: Recorder, details: dict[str, Any]
) -> None:
    """U4, P20: what happened is still told, and the chain has no gap."""
    recorder.record(None, EVENT)
    recorder.record(None, replace(EVENT, event_id="e-2", **details))
    recorder.record(None, replace(EVENT, event_id="e-3"))
    first, cut, last = (json.loads(payload) for _, payload in spool.appended)
    Draft202012Validator(audit_event_schema()).validate(cut)
    assert (cut["event_id"], cut["action"], cut["context"]) == (
        "e-2",
        "REQUEST_ALLOWED",
        {"degraded": True},
    )
    assert cut["before"] is cut["after"] is None
    assert (cut["previous_hash"], last["previous_hash"]) == (first["hash"], cut["hash"])
    assert recorder.degraded == 1
