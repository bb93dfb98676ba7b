"""The agent dies at each single step that it asks of the disk; the next one finishes its work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest

from router.agent.dead_letters import DeadLetters
from router.agent.reading.merge import MergedFrames
from router.agent.service import remove_acknowledged
from router.agent.shipper import Shipper
from router.agent.sinks import Sink, StoreSink
from router.clock import FrozenClock
from router.exports.audit_export import export_lines
from router.exports.audit_verification import verify_export
from router.records.record_types import encode_usage
from router.records.recorder import Recorder
from router.spool.checkpoints import Checkpoints
from router.spool.disk import APPEND
from router.spool.frames import USAGE, encode_frame
from router.spool.reader import SpoolReader
from router.store.record_store import RecordStore
from tests.fakes.shipping import SPOOL, ListSink, append, open_spool, usage
from tests.fakes.spool_io import Died, Fault, FaultyIO, MemoryDisk, Plan, fail_at
from tests.unit.records import samples

T = TypeVar("T")

RECORDS = 12
ROUNDS = 8
GARBAGE = b"no frame"
HALF_FRAME = encode_frame(USAGE, b"x" * 40)[:-20]


class Life:
    """An agent with its sinks, from its start to its death, on a disk that outlives it."""

    def __init__(
        self, io: FaultyIO, sinks: Sequence[Sink], clock: FrozenClock, dead_letters: Path
    ) -> None:
        self._clock = clock
        self._reader = SpoolReader(SPOOL, io)
        self._shippers = []
        for sink in sinks:
            checkpoints = Checkpoints(Path("/data/checkpoints") / sink.name, io)
            self._shippers.append(
                Shipper(
                    sink,
                    MergedFrames(self._reader, checkpoints.load(), clock=clock),
                    checkpoints,
                    DeadLetters(dead_letters, sink.name),
                    stop=threading.Event(),
                    clock=clock,
                )
            )

    def work(self) -> None:
        """Deliver, save and remove, a few times."""
        for _ in range(ROUNDS):
            for shipper in self._shippers:
                shipper.step()
                shipper.save()
            remove_acknowledged(self._reader, [shipper.saved for shipper in self._shippers])
            self._clock.advance(1.0)


def prepare() -> tuple[MemoryDisk, FrozenClock]:
    """A worker that was killed, and one that ended in order, each with several segments.

    The killed one's last segment is damaged in the middle, and ends in the middle of a frame.
    """
    disk, clock = MemoryDisk(), FrozenClock(wall_s=1000.0)
    killed = FaultyIO(disk)
    for io, numbers in ((killed, range(RECORDS)), (disk, range(RECORDS, 2 * RECORDS))):
        writer = open_spool(io, clock, segment_bytes=400)
        for number in numbers:
            append(writer, number, ended_s=900.0 + number)
            clock.advance(1.0)
            writer.tick()
        if io is disk:
            writer.close()
        else:
            place = max(path for path, _ in disk.files() if path.suffix == ".seg")
            last = encode_frame(USAGE, usage(RECORDS - 1, ended_s=900.0 + RECORDS - 1))
            disk.write(disk.open(place, APPEND), GARBAGE + last + HALF_FRAME)
    disk.lose_power("all", names=True)  # from here on all of it is as good as synced
    return disk, clock


def steps_of_a_whole_life(tmp_path: Path) -> list[str]:
    disk, clock = prepare()
    io = FaultyIO(disk)
    Life(io, [ListSink("a"), ListSink("b")], clock, tmp_path).work()
    return io.steps


def test_the_scene_has_all_kinds_of_steps(tmp_path: Path) -> None:
    """Otherwise the next test would show less than it says."""
    steps = steps_of_a_whole_life(tmp_path)
    assert {"write", "sync", "sync_dir", "rename", "unlink", "remove_dir"} <= set(steps)


@pytest.mark.parametrize("when", ["before", "torn", "after"])
def test_wherever_the_agent_dies_every_record_arrives(tmp_path: Path, when: str) -> None:
    """Must show 2, P1: at both sinks, in order, twice by the same id only; the spool is empty.

    What is no frame is set aside, each stretch once.
    """
    expected = [f"r{number}" for number in range(2 * RECORDS)]
    steps = len(steps_of_a_whole_life(tmp_path))
    assert steps > 20
    for step in range(1, steps + 1):
        disk, clock = prepare()
        sinks = [ListSink("a"), ListSink("b")]
        io = FaultyIO(disk, fail_at(step, Fault(Died(), when)))  # type: ignore[arg-type]
        with pytest.raises(Died):
            Life(io, sinks, clock, tmp_path).work()
        io.die()
        Life(FaultyIO(disk), sinks, clock, tmp_path).work()
        for sink in sinks:
            assert list(dict.fromkeys(sink.got)) == expected, f"step {step}"
        left = {path: file for path, file in disk.files() if path.is_relative_to(SPOOL)}
        assert {path.parent for path in left} == {SPOOL / "quarantine"}, f"step {step}"
        kept = sorted(bytes(file.data) for file in left.values())
        assert kept == sorted([GARBAGE, HALF_FRAME]), f"step {step}"


@pytest.mark.parametrize("kept", ["synced", "all", "half", "zeros"])
def test_wherever_the_power_fails_every_record_arrives(tmp_path: Path, kept: str) -> None:
    """Must show 2: nothing was removed from the spool on the strength of what the disk forgot."""
    expected = {f"r{number}" for number in range(2 * RECORDS)}
    for step in range(1, len(steps_of_a_whole_life(tmp_path)) + 1):
        disk, clock = prepare()
        sinks = [ListSink("a"), ListSink("b")]
        io = FaultyIO(disk, fail_at(step, Fault(Died(), "after")))
        with pytest.raises(Died):
            Life(io, sinks, clock, tmp_path).work()
        disk.lose_power(kept, names=False)  # type: ignore[arg-type]
        Life(FaultyIO(disk), sinks, clock, tmp_path).work()
        for sink in sinks:
            assert set(sink.got) == expected, f"step {step}"


# --- with the real record store -----------------------------------------------------------------

WORKERS = 2
CALLS = 4
BATCH = 5
"""So small that several transactions and checkpoints follow one another."""


class StoreThatDies:
    """The record store, with each of its transactions as one more step at which to die."""

    def __init__(self, io: FaultyIO, store: RecordStore) -> None:
        self._io = io
        self._inner = store

    def migrate(self) -> None:
        self._step(self._inner.migrate)

    def write(
        self, usage: Sequence[Mapping[str, Any]], audit: Sequence[Mapping[str, Any]] = ()
    ) -> Any:
        return self._step(lambda: self._inner.write(usage, audit))

    def close_writers(self, writer_ids: Sequence[str]) -> None:
        self._step(lambda: self._inner.close_writers(writer_ids))

    def prune(self, before_s: float) -> int:
        return self._step(lambda: self._inner.prune(before_s))

    def close(self) -> None:
        """Opening it again takes longer than all the rest, so it stays open for the next one."""

    def _step(self, work: Callable[[], T]) -> T:
        return self._io._step("commit", work)


class Calls:
    """The spool of workers that were killed after some calls; each call has its record and event.

    Every scene has ids of its own, so that all of them can share a store.
    """

    def __init__(self, scene: int) -> None:
        self.disk = MemoryDisk()
        self.clock = FrozenClock(wall_s=samples.START_S + 1000.0 * scene)
        self.records = [f"{scene}-{worker}-{n}" for worker in range(WORKERS) for n in range(CALLS)]
        for worker in range(WORKERS):
            recorder = Recorder(open_spool(FaultyIO(self.disk), self.clock, segment_bytes=3000))
            for record_id in self.records[worker * CALLS : (worker + 1) * CALLS]:
                record = replace(samples.RECORD, record_id=record_id, request_id=record_id)
                event = samples.event(event_id=record_id)
                assert recorder.record(encode_usage(record), event) is None
                self.clock.advance(1.0)
                recorder.spool.tick()
        self.disk.lose_power("all", names=True)

    def ship(self, store: RecordStore, dead_letters: Path, plan: Plan | None = None) -> list[str]:
        """The life of one agent, until it dies or has nothing left to do; its steps."""
        io = FaultyIO(self.disk, plan)
        wrapped = StoreThatDies(io, store)
        sink = StoreSink(wrapped, audit_retention_days=0, clock=self.clock)
        try:
            Life(io, [sink], self.clock, dead_letters).work()
        finally:
            io.die()
        return io.steps


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with RecordStore(f"sqlite:///{tmp_path / 'records.db'}", audit_key=samples.KEY) as store:
        yield store


@pytest.mark.parametrize("when", ["before", "after"])
def test_wherever_the_agent_dies_the_store_has_each_record_once(
    tmp_path: Path, store: RecordStore, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Must show 2: also between a transaction and the checkpoint, and between that and removing.

    The audit trail verifies to the end of every chain, each of which is closed.
    """
    monkeypatch.setattr("router.agent.shipper.MAX_RECORDS", BATCH)
    undisturbed = Calls(0)
    steps = undisturbed.ship(store, tmp_path)
    assert steps.count("commit") >= 6
    assert {"write", "sync", "unlink", "remove_dir"} <= set(steps)
    expected = list(undisturbed.records)
    for step, name in enumerate(steps, start=1):
        if name in ("open", "make_dir", "allocate"):
            continue  # of these the cheaper test above makes sure
        calls = Calls(step)
        with pytest.raises(Died):
            calls.ship(store, tmp_path, fail_at(step, Fault(Died(), when)))  # type: ignore[arg-type]
        calls.ship(store, tmp_path)
        left = [path for path, _ in calls.disk.files() if path.is_relative_to(SPOOL)]
        assert left == [], f"step {step}"
        expected += calls.records
    check_store(store, expected)


def check_store(store: RecordStore, expected: list[str]) -> None:
    """All records, and a trail whose every chain is closed and whole."""
    documents = [found for batch in store.read_records("usage") for _, found in batch]
    stored = [orjson.loads(document)["record_id"] for document in documents]
    assert sorted(stored) == sorted(expected)
    with store.audit_trail() as trail:
        tips = [marks.tip for marks in trail.writers]
        ends = [(tip.sequence, tip.closed) for tip in tips if tip is not None]
        assert ends == [(CALLS, True)] * (len(expected) // CALLS)
        verdict = verify_export(export_lines(trail, samples.KEY, 0.0), samples.KEY)
    assert verdict.ok, verdict
    assert verdict.events == len(expected)
