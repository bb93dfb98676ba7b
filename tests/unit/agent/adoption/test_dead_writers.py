"""What dead writers leave open: one record for each call, one settlement for each lease."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import pytest

from router.agent.adoption.dead_writers import NAME, Adoption
from router.agent.adoption.unsent_reservations import UnsentReservations
from router.agent.service import remove_acknowledged
from router.auth.keys import generate_key
from router.clock import FrozenClock
from router.errors import RecordsUnavailable
from router.limits.budgets.lease_notation import lease_of, reservation_of
from router.limits.budgets.periods import Period
from router.limits.budgets.windows import Amounts, Reservation, ReservedWindow, WindowSpec
from router.limits.leases.unsent_calls import UnsentCalls
from router.limits.outcome import Request
from router.records.dispatches import Dispatch, decode_dispatch, encode_dispatch
from router.records.open_calls import OpenCalls, Unsettled
from router.records.recorder import Recorder
from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.frames import AUDIT, DISPATCH, UNSETTLED, USAGE, Position
from router.spool.reader import SpoolReader, read_batches
from router.spool.writer import SpoolWriter

WINDOW = WindowSpec("pocket", "usd", "daily", 10**9, "Asia/Tokyo", "key", "key_1", (50,), False)
RESERVATION = Reservation(
    "lease-1",
    "acme",
    (ReservedWindow(WINDOW, Period(1_000, 2_000), 700),),
    reserved_at_ms=1_234,
    epoch="77",
)


def dispatch(record_id: str, *, leased: bool = True, cost: int | None = 250) -> Dispatch:
    """A call that was sent; 100 tokens of input are its estimate."""
    return Dispatch(
        record_id=record_id,
        request_id=f"request-{record_id}",
        timestamp=1_800_000_000.25,
        organization_id="acme",
        api_key_id="key_1",
        endpoint="openai.chat_completions",
        operation="chat",
        model="gpt-4o",
        model_requested="gpt",
        backend_id="primary",
        stream=True,
        decision_reason="PRIMARY",
        trace_id=None,
        span_id=None,
        metadata={"team": "a"},
        usage_source="estimated",
        tokens_input=100,
        tokens_output=0,
        cost_nanos=cost,
        service_tier=None,
        reserved=(700, 900, 1),
        lease=lease_of(RESERVATION, 900_000) if leased else None,
    )


def usage(record_id: str, outcome: str = "completed", cost: int | None = 60) -> bytes:
    facts = {
        "record_id": record_id,
        "outcome": outcome,
        "cost_nanos": cost,
        "backend_id": "primary",
        "tokens_input": 4,
        "tokens_output": 5,
    }
    return json.dumps(facts).encode()


class Host:
    """A data directory with workers that die, and agents that adopt them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FrozenClock()
        self.handed_over: list[Unsettled] = []
        self._ids = count()
        self._agents: list[tuple[Recorder, SpoolReader]] = []

    def worker(self) -> Recorder:
        return Recorder(self._writer())

    def agent(self) -> tuple[Adoption, SpoolReader]:
        """A new one; it may be killed at any time."""
        reader, recorder = SpoolReader(self.directory / "spool"), Recorder(self._writer())
        self._agents.append((recorder, reader))
        checkpoints = Checkpoints(checkpoint_path(self.directory, NAME))
        adoption = Adoption(
            reader,
            checkpoints,
            lambda: recorder,
            self.handed_over.extend,
            lambda: f"event-{next(self._ids)}",
            UnsentReservations(self.directory / "unsent", self.windows_of),
            clock=self.clock,
        )
        return adoption, reader

    @staticmethod
    def windows_of(organization_id: str, key_id: str | None) -> tuple[WindowSpec, ...]:
        """The document has one organization, whose key has one budget."""
        return {"acme": {None: (), "key_1": (WINDOW,)}[key_id]}[organization_id]

    def unsent(self, writer_id: str, *record_ids: str, organization: str = "acme") -> UnsentCalls:
        """What a worker has reserved for calls that it has not sent."""
        calls = UnsentCalls(self.directory / "unsent" / writer_id, self.clock)
        for record_id in record_ids:
            amounts = Amounts(700, 900)
            calls.begin(Request(organization, record_id, (WINDOW,), amounts, 900_000, "key_1"))
        return calls

    def kill_agents(self) -> None:
        for recorder, reader in self._agents:
            recorder.spool.close()
            reader.close()
        self._agents.clear()

    def records(self) -> list[dict[str, object]]:
        """All usage records that are in the spool."""
        reader = SpoolReader(self.directory / "spool", observe=True)
        return [
            json.loads(frame.payload)
            for info in reader.writers()
            for batch in read_batches(reader, info.writer_id)
            for frame in batch.frames
            if frame.kind == USAGE
        ]

    def events(self) -> list[dict[str, object]]:
        """All events that are in the spool, without repetitions of the same bytes."""
        reader = SpoolReader(self.directory / "spool", observe=True)
        lines = [
            frame.payload
            for info in reader.writers()
            for batch in read_batches(reader, info.writer_id)
            for frame in batch.frames
            if frame.kind == AUDIT
        ]
        return [json.loads(line) for line in dict.fromkeys(lines)]

    def interrupted(self) -> list[object]:
        return [one["record_id"] for one in self.records() if one["outcome"] == "interrupted"]

    def settlements(self) -> dict[str, tuple[int, int, int]]:
        """Lease → nano-USD, tokens, calls."""
        return {
            one.record_id: (one.cost_nanos, one.tokens, one.requests) for one in self.handed_over
        }

    def _writer(self) -> SpoolWriter:
        return SpoolWriter(
            self.directory / "spool", max_bytes=1 << 30, background=False, clock=self.clock
        )


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.kill_agents()


def test_a_dispatch_is_what_it_was() -> None:
    """Its lease, too, becomes the reservation again."""
    sent = dispatch("a")
    read = decode_dispatch(encode_dispatch(sent))
    assert read._replace(reserved=None, lease=None) == sent._replace(reserved=None, lease=None)
    assert read.lease is not None
    assert reservation_of("lease-1", "acme", read.lease) == RESERVATION
    with pytest.raises(ValueError, match="not a dispatch"):
        decode_dispatch(b"[1]")


def test_secrets_in_a_dispatch_are_redacted() -> None:
    """K6: what a client puts into its metadata is on the disk like any record."""
    secret = generate_key("test")
    line = encode_dispatch(dispatch("a")._replace(metadata={"key": secret}))
    assert secret.encode() not in line
    assert decode_dispatch(line).record_id == "a"


# What a killed worker has written → who was interrupted, and what its leases are settled with.
ABANDONED, RECORDED = (250, 100, 1), (60, 9, 1)
STAGES = {
    "sent": ([(DISPATCH, "a")], ["a"], {"a": ABANDONED}),
    "sent to a second backend": ([(DISPATCH, "a"), (DISPATCH, "a")], ["a"], {"a": ABANDONED}),
    "recorded": ([(DISPATCH, "a"), (USAGE, "a")], [], {"a": RECORDED}),
    "settled": ([(DISPATCH, "a"), (USAGE, "a"), (0, "")], [], {}),
    "settled, another sent": (
        [(DISPATCH, "a"), (DISPATCH, "b"), (USAGE, "a"), (0, "")],
        ["b"],
        {"b": ABANDONED},
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_worker(host: Host, stage: str) -> None:
    """P6: by what it has noted, each call has one record and each lease one settlement."""
    steps, interrupted, settlements = STAGES[stage]
    worker = host.worker()
    for kind, record_id in steps:
        if kind == DISPATCH:
            worker.dispatched(dispatch(record_id))
        elif kind == USAGE:
            worker.open_calls.ended(record_id, cost_nanos=60, tokens=9, requests=1)
            worker.spool.append([(USAGE, usage(record_id))])
        else:
            worker.open_calls.settled("a")
            worker.mark_settled()
    worker.spool.close()
    adoption, _ = host.agent()
    assert adoption.step() == 1
    assert (host.interrupted(), host.settlements()) == (interrupted, settlements)
    assert adoption.step() == 0


def test_the_record_of_an_interrupted_call(host: Host) -> None:
    """U5: it says what is known, and what is charged."""
    worker = host.worker()
    worker.dispatched(dispatch("a", leased=False, cost=None))
    worker.spool.close()
    adoption, _ = host.agent()
    adoption.step()
    [record] = host.records()
    assert {
        "record_id": "a",
        "request_id": "request-a",
        "timestamp": "2027-01-15T08:00:00.250000Z",
        "organization_id": "acme",
        "model_requested": "gpt",
        "backend_id": "primary",
        "status": 0,
        "outcome": "interrupted",
        "usage_source": "estimated",
        "tokens_input": 100,
        "usage_classes": {"input": 100},
        "cost_nanos": None,
        "metadata": {"team": "a"},
    }.items() <= record.items()
    assert host.handed_over == []


@pytest.mark.parametrize("died", ["before the checkpoint", "after it"])
def test_an_agent_that_dies_leaves_no_second_record(
    host: Host, died: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6: exactly once, also when the next agent begins again."""
    worker = host.worker()
    worker.dispatched(dispatch("a"))
    worker.spool.close()
    first, _ = host.agent()
    if died == "after it":
        first.step()
    else:
        with monkeypatch.context() as broken:
            broken.setattr(Checkpoints, "save", lambda *_: (_ for _ in ()).throw(OSError("gone")))
            with pytest.raises(OSError, match="gone"):
                first.step()
    host.kill_agents()
    second, _ = host.agent()
    second.step()
    assert host.interrupted() == ["a"]
    assert host.settlements() == {"a": ABANDONED}


def test_a_dead_writer_is_not_removed_before_it_is_adopted(host: Host) -> None:
    """P6: all sinks have what it wrote, and its open calls are known from there only."""
    worker = host.worker()
    worker.dispatched(dispatch("a"))
    worker.spool.close()
    adoption, reader = host.agent()
    writer_id = worker.spool.writer_id
    saved = [{writer_id: Position(writer_id, 9, 0)}]
    assert remove_acknowledged(reader, saved, may_remove=adoption.is_adopted) == 0
    adoption.step()
    assert remove_acknowledged(reader, saved, may_remove=adoption.is_adopted) == 1


def test_a_new_segment_begins_with_the_calls_that_run(tmp_path: Path) -> None:
    """P6: a call that lasts longer than its segment is on disk must not be forgotten."""
    writer = SpoolWriter(
        tmp_path / "spool", max_bytes=1 << 30, background=False, segment_bytes=4_096
    )
    recorder = Recorder(writer)
    recorder.dispatched(dispatch("long"))
    recorder.dispatched(dispatch("ended"))
    recorder.dispatched(dispatch("gone"))
    recorder.open_calls.ended("ended", cost_nanos=60, tokens=9, requests=1)
    recorder.open_calls.ended("gone", cost_nanos=1, tokens=1, requests=1)
    recorder.open_calls.settled("gone")
    writer.append([(AUDIT, b"x" * 5_000)])
    writer.tick()
    writer.tick()
    reader = SpoolReader(tmp_path / "spool", observe=True)
    last = reader.segments(writer.writer_id)[-1]
    assert last > 1
    frames = reader.read(Position(writer.writer_id, last, 0), 1 << 20).frames
    found = [(frame.kind, json.loads(frame.payload)) for frame in frames]
    assert [kind for kind, _ in found] == [DISPATCH, UNSETTLED]
    assert found[0][1][0] == "long"
    assert (found[1][1]["record_id"], found[1][1]["cost_nanos"]) == ("ended", 60)
    writer.close()


def test_a_record_that_was_not_written_leaves_the_call_open() -> None:
    """P6: should the worker die before the disk recovers, the call has a record all the same."""
    calls = OpenCalls()
    calls.dispatched(dispatch("a"))
    before = calls.ended("a", cost_nanos=1, tokens=1, requests=1)
    assert before is not None
    calls.dispatched(before)
    assert [kind for kind, _ in calls.frames()] == [DISPATCH]
    calls.settled("a")
    assert list(calls.frames()) == []


def killed(calls: UnsentCalls) -> None:
    """The process is gone, its file is not."""
    assert calls._fd is not None
    assert calls._map is not None
    calls._map.close()
    os.close(calls._fd)


def test_what_was_reserved_and_never_sent_is_given_back(host: Host) -> None:
    """P6: a call that was killed before it was sent used to hold its budget until its lease ended;
    one that was sent is charged."""
    worker = host.worker()
    calls = host.unsent(worker.spool.writer_id, "waits", "sent", "over")
    worker.dispatched(dispatch("sent"))  # and was killed before it could say so
    calls.end("over")
    killed(calls)
    worker.spool.close()
    host.agent()[0].step()
    assert host.settlements() == {"sent": (250, 100, 1), "waits": (0, 0, 0)}
    [given_back] = [one for one in host.handed_over if one.record_id == "waits"]
    reservation = reservation_of("waits", "acme", given_back.lease)
    [held] = reservation.windows
    assert (held.window, held.amount) == (WINDOW, 700)
    # A day in Tokyo that holds the moment of the test's clock: 2027-01-15, 08:00 UTC.
    assert held.period == Period(1_799_938_800_000, 1_800_025_200_000)
    assert (reservation.reserved_at_ms, reservation.epoch) == (None, "")
    assert [*(host.directory / "unsent").iterdir()] == []
    assert host.interrupted() == ["sent"]


def test_what_a_living_worker_has_reserved_is_its_own(host: Host) -> None:
    """P6: whatever the agent thinks of its spool."""
    worker = host.worker()
    calls = host.unsent(worker.spool.writer_id, "waits")
    adoption, _ = host.agent()
    assert adoption.step() == 0
    worker.spool.close()
    adoption.step()
    assert host.settlements() == {}
    killed(calls)
    adoption.step()
    assert host.settlements() == {"waits": (0, 0, 0)}
    adoption.step()
    assert len(host.handed_over) == 1


def test_a_worker_that_left_nothing_else(host: Host) -> None:
    """P6: its first call was killed before it had written anything."""
    killed(host.unsent("01a20b13a811-4141-23c9ccd0", "waits"))
    host.agent()[0].step()
    assert host.settlements() == {"waits": (0, 0, 0)}


def test_a_budget_that_is_gone_has_nothing_to_give_back(host: Host) -> None:
    """And keeps no other from it."""
    worker = host.worker()
    calls = host.unsent(worker.spool.writer_id, "theirs", organization="gone")
    killed(calls)
    killed(host.unsent("01a20b13a811-4141-23c9ccd1", "ours"))
    host.agent()[0].step()
    assert host.settlements() == {"ours": (0, 0, 0)}


@pytest.mark.parametrize("is_written", [False, True])
def test_a_refused_record_is_not_another_one_later(
    host: Host, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    """P20: it used to be buffered and made once more, with two events for one call. And nothing is
    adopted before the record is on the disk."""
    worker = host.worker()
    worker.dispatched(dispatch("r-1"))
    worker.spool.close()
    adoption, _ = host.agent()
    [(recorder, _)] = host._agents
    append = recorder.spool.append

    def refuse(frames: Iterable[tuple[int, bytes]]) -> None:
        if is_written:
            append(frames)
        raise RecordsUnavailable("disk_slow", nothing_written=not is_written)

    with monkeypatch.context() as refusing:
        refusing.setattr(recorder.spool, "append", refuse)
        for _ in range(2):
            with pytest.raises(RecordsUnavailable):
                adoption.step()
    assert host.handed_over == []
    recorder.spool.tick()
    recorder.spool.tick()
    assert adoption.step() == 1
    assert set(host.interrupted()) == {"r-1"}
    events = host.events()
    assert [(event["sequence"], event["entity_id"]) for event in events] == [(1, "request-r-1")]
