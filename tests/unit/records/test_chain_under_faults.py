"""The audit chain while the spool is full, syncs fail, and the process dies around any event.

The expectation is the published rule: numbers from 1 without a gap, and each hash is the SHA-256 of
the hash before it and of the event without its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from router.clock import FrozenClock
from router.exports.audit_export import export_lines
from router.exports.audit_verification import verify_export
from router.limits.audit_outbox import AuditOutbox
from router.records.record_types import AuditEvent
from router.records.recorder import Recorder
from router.spool.frames import AUDIT
from router.spool.reader import SpoolReader, read_batches
from router.spool.writer import Mode
from router.store.record_store import RecordStore
from tests.fakes.spool_io import Died, Fault, FaultyIO, MemoryDisk, Plan, error, fail_at
from tests.fakes.spool_parties import SPOOL, new_disk, open_writer, put_segment

ROUNDS = 4
FULL_ROUNDS = range(1, 3)
LIMIT_BYTES = 100_000
KEY = b"k" * 32


@dataclass
class Story:
    """A worker notes what has changed and records calls; for two rounds there may be no room."""

    mode: Mode
    is_filled: bool
    plan: Plan | None = None
    disk: MemoryDisk = field(default_factory=new_disk)
    told: set[str] = field(default_factory=set)
    """The events that the process knew to be in the spool."""
    is_at_work: bool = True
    has_died: bool = False

    def play(self) -> FaultyIO:
        """The life of one worker, and of one after it; the steps of the first."""
        clock, io = FrozenClock(), FaultyIO(self.disk, self.plan)
        try:
            self._live(io, clock)
        except Died:
            self.has_died = True
            io.die()
        self._free()
        clock.advance(1.0)
        Recorder(open_writer(self.disk, clock)).note([_call("the next worker's")])
        return io

    def _live(self, io: FaultyIO, clock: FrozenClock) -> None:
        recorder = Recorder(open_writer(io, clock, mode=self.mode, max_bytes=LIMIT_BYTES))
        outbox = AuditOutbox(clock)
        for number in range(ROUNDS):
            if self.is_filled and number == FULL_ROUNDS.start:
                put_segment(self.disk, bytes(LIMIT_BYTES), writer_id="other")
            if self.is_filled and number == FULL_ROUNDS.stop:
                self._free()
            outbox.dependency_changed(f"first-{number}", "open")
            outbox.dependency_changed(f"second-{number}", "open")
            outbox.flush(recorder)
            self._look(recorder, outbox, number)
            unwritten = recorder.record(None, _call(f"call-{number}"))
            if unwritten is not None:
                unwritten.buffer()
            clock.advance(1.0)
            recorder.spool.tick()
        self.is_at_work = False
        for _ in range(3):
            clock.advance(1.0)
            recorder.spool.tick()
            outbox.flush(recorder)
        self._look(recorder, outbox, ROUNDS - 1)
        recorder.close()

    def _look(self, recorder: Recorder, outbox: AuditOutbox, number: int) -> None:
        if not len(outbox) and not recorder.spool.status().buffered_bytes:
            self.told |= {f"{name}-{n}" for n in range(number + 1) for name in ("first", "second")}

    def _free(self) -> None:
        """Remove what was in the way, if it is there."""
        for path, _ in list(self.disk.files()):
            if path.parent == SPOOL / "other":
                self.disk.unlink(path)
                if not self.disk.list_dir(path.parent):
                    self.disk.remove_dir(path.parent)

    def lines(self) -> list[bytes]:
        """All events in the spool, as they are delivered, without repetitions."""
        reader = SpoolReader(SPOOL, self.disk)
        found = [
            frame.payload
            for info in reader.writers()
            for batch in read_batches(reader, info.writer_id)
            for frame in batch.frames
            if frame.kind == AUDIT
        ]
        reader.close()
        return list(dict.fromkeys(found))


def _call(name: str) -> AuditEvent:
    return AuditEvent(
        event_id=str(uuid.uuid4()),
        action="REQUEST_ALLOWED",
        actor="key:k",
        entity_type="request",
        entity_id=name,
        timestamp=1_800_000_000.5,
        request_id=name,
        organization_id="acme",
        context={"api_key_id": "k"},
    )


def check(story: Story) -> None:
    """Each chain is whole, and each event there once."""
    lines = story.lines()
    chains: dict[str, list[bytes]] = {}
    for line in sorted(lines, key=lambda line: int(json.loads(line)["sequence"])):
        chains.setdefault(json.loads(line)["writer_id"], []).append(line)
    for writer_id, chain in chains.items():
        end = hashlib.sha256(f"genesis:{writer_id}".encode()).hexdigest()
        for number, line in enumerate(chain, start=1):
            event = json.loads(line)
            assert (event["sequence"], event["previous_hash"]) == (number, end)
            body = line[: line.rindex(b',"hash":"')] + b"}"
            end = hashlib.sha256(bytes.fromhex(end) + body).hexdigest()
            assert event["hash"] == end
    names = [json.loads(line)["entity_id"] for line in lines]
    assert len(names) == len(set(names))
    assert story.told <= set(names)
    assert "the next worker's" in names
    if not story.has_died:
        assert {f"call-{number}" for number in range(ROUNDS)} <= set(names)
        assert len(story.told) == 2 * ROUNDS


MAKERS: dict[str, Callable[[], BaseException]] = {
    "killed": Died,
    "EIO": lambda: error(errno.EIO),
}


def stories(mode: Mode, is_filled: bool, kind: str, when: str) -> Iterator[Story]:
    """One for each step that can go wrong."""
    for step in range(1, len(Story(mode, is_filled).play().steps) + 1):
        fault = Fault(MAKERS[kind](), when)  # type: ignore[arg-type]
        yield Story(mode, is_filled, fail_at(step, fault))


@pytest.mark.parametrize("mode", ["fast", "durable"])
@pytest.mark.parametrize("is_filled", [False, True], ids=["room", "full"])
@pytest.mark.parametrize("when", ["before", "torn", "after"])
@pytest.mark.parametrize("kind", list(MAKERS))
def test_one_fault_at_each_step(mode: Mode, is_filled: bool, kind: str, when: str) -> None:
    """P20: what may be on the disk keeps its number, and what is not gives it back."""
    for story in stories(mode, is_filled, kind, when):
        story.play()
        assert story.has_died is (kind == "killed")
        check(story)


@pytest.mark.parametrize("mode", ["fast", "durable"])
@pytest.mark.parametrize("is_filled", [False, True], ids=["room", "full"])
@pytest.mark.parametrize("names", ["sync", "write", "sync write open rename"])
def test_a_kind_of_step_that_fails_for_long(mode: Mode, is_filled: bool, names: str) -> None:
    """P20: two failed syncs in a row are no longer mended by another segment."""
    for first in range(1, len(Story(mode, is_filled).play().steps) + 1):
        story = Story(mode, is_filled)
        story.plan = lambda step, name, first=first, story=story: (  # type: ignore[misc]
            Fault(error(errno.EIO), "torn")
            if story.is_at_work and step >= first and name in names.split()
            else None
        )
        story.play()
        check(story)


@pytest.mark.parametrize("mode", ["fast", "durable"])
def test_the_trail_verifies(tmp_path: Path, mode: Mode) -> None:
    """P20: by the command that operators use, over what all of these lives have left."""
    with RecordStore(f"sqlite:///{tmp_path / 'records.db'}", audit_key=KEY) as store:
        store.migrate()
        lines: list[bytes] = []
        for kind in ("killed", "EIO"):
            for story in stories(mode, True, kind, "torn"):
                story.play()
                lines += story.lines()
        store.write([], [json.loads(line) for line in lines])
        with store.audit_trail() as trail:
            verdict = verify_export(export_lines(trail, KEY, 0.0), KEY)
    assert verdict.ok, verdict
    assert verdict.events == len(lines)
