"""The merged stream: order, what waits, what is remembered."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from router.agent.reading.merge import (
    LISTED_EVERY_S,
    LONGEST_WAIT_S,
    READ_AHEAD_BYTES,
    SETTLED_S,
    MergedFrames,
)
from router.clock import FrozenClock
from router.spool.frames import USAGE, Frame, Position
from router.spool.reader import Batch, SpoolReader, WriterInfo
from router.spool.writer import SpoolWriter
from tests.fakes.shipping import SPOOL, append, ids, open_spool, usage
from tests.fakes.spool_io import MemoryDisk


class Desk:
    """A disk, two writers, a reader, and a clock that stands at second 1000."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.clock = FrozenClock(wall_s=1000.0)
        self.one = open_spool(self.disk, self.clock)
        self.two = open_spool(self.disk, self.clock)
        self.reader = SpoolReader(SPOOL, self.disk)
        self.merged = MergedFrames(self.reader, {}, clock=self.clock)

    def take(self, most: int = 100, most_bytes: int = 1 << 20) -> list[str | None]:
        """Take and acknowledge."""
        taken = self.merged.take(most, most_bytes)
        self.merged.acknowledge(taken)
        return ids(taken)


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- order ----------------------------------------------------------------------------------


def test_the_order_is_that_in_which_the_calls_ended(desk: Desk) -> None:
    """P4: what one organization did through two workers arrives in order, also when late."""
    for number in range(10):
        writer = desk.one if number % 3 else desk.two
        append(writer, number, ended_s=900.0 + number)
    assert desk.take() == [f"r{number}" for number in range(10)]


def test_within_a_writer_the_file_is_the_order(desk: Desk) -> None:
    """What stands behind a record never overtakes it, whatever their clocks say."""
    append(desk.one, 1, ended_s=950.0)
    append(desk.one, 2, ended_s=900.0)
    append(desk.two, 3, ended_s=920.0)
    assert desk.take() == ["r3", "r1", "r2"]


def test_a_fresh_record_waits_for_those_on_their_way(desk: Desk) -> None:
    """One that ended before it may be in another worker's hands still."""
    append(desk.one, 2, ended_s=1000.0)
    assert desk.take() == []
    append(desk.two, 1, ended_s=999.99)
    desk.clock.advance(SETTLED_S + 0.001)
    assert desk.take() == ["r1", "r2"]


def test_no_record_waits_long_for_a_clock_that_was_set_back(desk: Desk) -> None:
    """It would otherwise stay for as long as other workers write younger ones."""
    append(desk.one, 1, ended_s=5000.0)
    assert desk.take() == []
    desk.clock.advance(LONGEST_WAIT_S + 0.001)
    append(desk.two, 2, ended_s=desk.clock.now_s())
    assert desk.take() == ["r1"]


def test_records_of_a_dead_writer_do_not_wait(desk: Desk) -> None:
    """Nobody is going to write beside them."""
    append(desk.one, 1, ended_s=1000.0)
    desk.one.close()
    assert desk.take() == ["r1"]


def test_a_new_writer_is_noticed_soon(desk: Desk) -> None:
    """A worker was recycled; its successor's records do not wait for the next one."""
    assert desk.take() == []
    append(open_spool(desk.disk, desk.clock), 1, ended_s=900.0)
    desk.clock.advance(LISTED_EVERY_S)
    assert desk.take() == ["r1"]


def test_looking_for_new_writers_is_not_done_all_the_time(desk: Desk) -> None:
    """Q1: it is most of what an idle agent would do."""
    listings = []

    class Counting:
        first_position = desk.reader.first_position
        read = desk.reader.read

        def writers(self) -> list[WriterInfo]:
            listings.append(desk.clock.monotonic_s())
            return desk.reader.writers()

    merged = MergedFrames(Counting(), {}, clock=desk.clock)
    for _ in range(16):
        merged.take(10, 1 << 20)
        desk.clock.advance(0.125)
    assert len(listings) == 4


# --- amounts --------------------------------------------------------------------------------


def test_a_batch_has_a_limit_in_records_and_in_bytes(desk: Desk) -> None:
    """Q6: memory and un-acknowledged bytes are bounded; nothing is left out."""
    append(desk.one, *range(10))
    size = len(usage(1))
    assert desk.take(most=3) == ["r0", "r1", "r2"]
    assert desk.take(most_bytes=2 * size) == ["r3", "r4"]
    assert desk.take(most_bytes=1) == ["r5"]
    assert desk.take() == ["r6", "r7", "r8", "r9"]
    assert desk.take() == []


def test_many_writers_share_the_read_ahead() -> None:
    """Q6: two hundred workers that died in an outage are not read all at once."""
    asked: list[int] = []

    class Crowd:
        def writers(self) -> list[WriterInfo]:
            return [WriterInfo(f"w{n:03}", False, (1,)) for n in range(200)]

        def first_position(self, writer_id: str) -> Position:
            return Position(writer_id, 1, 0)

        def read(self, position: Position, max_bytes: int) -> Batch:
            asked.append(max_bytes)
            after = position._replace(offset=position.offset + 1)
            return Batch([Frame(USAGE, usage(1), after)], after)

    MergedFrames(Crowd(), {}, clock=FrozenClock()).take(1, 1)
    assert len(asked) <= 201
    assert sum(asked) <= 2 * READ_AHEAD_BYTES


# --- what is remembered ---------------------------------------------------------------------


def test_only_what_was_acknowledged_is_remembered(desk: Desk) -> None:
    """U3: a batch that was taken and not delivered comes again after a restart."""
    append(desk.one, 1, 2)
    assert ids(desk.merged.take(1, 1 << 20)) == ["r1"]
    assert desk.merged.positions == {}
    again = MergedFrames(desk.reader, desk.merged.positions, clock=desk.clock)
    assert ids(again.take(10, 1 << 20)) == ["r1", "r2"]


def test_who_starts_again_goes_on_behind_what_was_acknowledged(desk: Desk) -> None:
    """Between any two records."""
    append(desk.one, 1, 2, 3)
    assert desk.take(most=2) == ["r1", "r2"]
    again = MergedFrames(desk.reader, desk.merged.positions, clock=desk.clock)
    assert ids(again.take(10, 1 << 20)) == ["r3"]


def test_without_positions_everything_comes_again(desk: Desk) -> None:
    """A lost checkpoint repeats records and loses none."""
    append(desk.one, 1, 2)
    assert desk.take() == ["r1", "r2"]
    assert ids(MergedFrames(desk.reader, {}, clock=desk.clock).take(10, 1 << 20)) == ["r1", "r2"]


def test_the_end_of_a_dead_writer_is_passed_only_when_it_is_retired(desk: Desk) -> None:
    """Its last segment must stay until the sink knows that there is no more."""
    append(desk.one, 1)
    append(desk.two, 2)
    desk.one.close()
    one = desk.one.writer_id
    assert sorted(filter(None, desk.take())) == ["r1", "r2"]
    assert desk.merged.ended() == [one]
    assert desk.merged.positions[one].segment == 1
    desk.merged.finalize(one)
    assert desk.merged.positions[one] == Position(one, 2, 0)
    assert desk.merged.ended() == []


def test_a_writer_is_not_at_its_end_while_records_are_left(desk: Desk) -> None:
    """Read is not delivered."""
    append(desk.one, 1, 2)
    desk.one.close()
    assert desk.take(most=1) == ["r1"]
    assert desk.merged.ended() == []


def test_positions_of_writers_that_are_gone_are_forgotten(desk: Desk) -> None:
    """A checkpoint does not grow with every worker that ever was."""
    append(desk.one, 1)
    desk.one.close()
    desk.take()
    one = desk.one.writer_id
    desk.merged.finalize(one)
    desk.reader.remove_segment(one, 1)
    desk.clock.advance(LISTED_EVERY_S)
    desk.take()
    assert set(desk.merged.positions) == {desk.two.writer_id}


def test_rotation_is_followed(desk: Desk) -> None:
    """Records go on in the next segment, and the position says so."""
    writer = open_spool(desk.disk, desk.clock, segment_bytes=300)
    for number in range(6):
        append(writer, number, ended_s=900.0 + number)
        desk.clock.advance(1.0)
        writer.tick()
    assert desk.take() == [f"r{number}" for number in range(6)]
    assert desk.merged.positions[writer.writer_id].segment > 1


# --- trouble --------------------------------------------------------------------------------


class Sick:
    """A reader of whose writers one cannot be read."""

    def __init__(self, reader: SpoolReader, sick: str, trouble: Callable[[Batch], Batch]) -> None:
        self._reader = reader
        self._sick = sick
        self._trouble = trouble

    def writers(self) -> list[WriterInfo]:
        return self._reader.writers()

    def first_position(self, writer_id: str) -> Position:
        return self._reader.first_position(writer_id)

    def read(self, position: Position, max_bytes: int) -> Batch:
        batch = self._reader.read(position, max_bytes)
        return self._trouble(batch) if position.writer_id == self._sick else batch


def _io_error(_batch: Batch) -> Batch:
    raise OSError(errno.EIO, "Input/output error")


def _too_new(batch: Batch) -> Batch:
    return replace(batch, frames=[], position_after=batch.position_after, unreadable_format=2)


@pytest.mark.parametrize("trouble", [_io_error, _too_new])
def test_a_writer_that_cannot_be_read_does_not_hold_the_others(
    desk: Desk, trouble: Callable[[Batch], Batch], caplog: pytest.LogCaptureFixture
) -> None:
    """Q7: it is reported once, and tried again all the time."""
    sick: SpoolWriter = desk.one
    append(sick, 1)
    append(desk.two, 2)

    def apply(batch: Batch) -> Batch:
        found = trouble(batch)
        return replace(found, position_after=desk.reader.first_position(sick.writer_id))

    merged = MergedFrames(Sick(desk.reader, sick.writer_id, apply), {}, clock=desk.clock)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            taken = merged.take(10, 1 << 20)
            merged.acknowledge(taken)
    assert ids(merged.take(10, 1 << 20)) == []
    assert [record.message for record in caplog.records] == ["spool unreadable"]
    assert merged.positions[desk.two.writer_id].offset > 0
    assert merged.positions.get(sick.writer_id, Position("", 1, 0)).offset == 0
    healed = MergedFrames(desk.reader, merged.positions, clock=desk.clock)
    assert ids(healed.take(10, 1 << 20)) == ["r1"]


class Failing(SpoolReader):
    """A reader that fails at one reading, once."""

    fails_at = 0
    fault: BaseException = RuntimeError()

    def read(self, position: Position, max_bytes: int) -> Batch:
        self.fails_at -= 1
        if self.fails_at == 0:
            raise self.fault
        return super().read(position, max_bytes)


@pytest.mark.parametrize("fault", [RuntimeError("odd"), MemoryError()])
@pytest.mark.parametrize("step", range(1, 12))
def test_what_was_taken_when_a_reading_failed_is_taken_again(
    desk: Desk, fault: BaseException, step: int
) -> None:
    """P1: whichever reading it is, nothing is passed that nobody got, and order holds."""
    for number in range(10):
        append(desk.one if number % 2 else desk.two, number, ended_s=900.0 + number)
    desk.one.close()
    reader = Failing(SPOOL, desk.disk)
    reader.fails_at, reader.fault = step, fault
    merged = MergedFrames(reader, {}, clock=desk.clock)
    got: list[str | None] = []
    faults = 0
    for _ in range(12):
        try:
            taken = merged.take(3, 1 << 20)
        except (RuntimeError, MemoryError):
            faults += 1
            continue
        merged.acknowledge(taken)
        got += ids(taken)
    assert faults == (1 if reader.fails_at <= 0 else 0)
    assert got == [f"r{number}" for number in range(10)]
    assert merged.ended() == [desk.one.writer_id]


class Closed(MemoryDisk):
    """A disk with one directory that is another user's."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: Path | None = None

    def list_dir(self, path: Path) -> list[str]:
        if path == self.closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return super().list_dir(path)

    def open(self, path: Path, flags: int) -> int:
        if path.parent == self.closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return super().open(path, flags)


def test_a_directory_that_cannot_be_opened_keeps_nobody_from_the_others() -> None:
    """Q7: the rest is delivered, and what is behind the door when somebody has opened it."""
    disk, clock = Closed(), FrozenClock(wall_s=1000.0)
    one, two = open_spool(disk, clock), open_spool(disk, clock)
    append(one, 1)
    append(two, 2)
    one.close()
    disk.closed = SPOOL / one.writer_id
    merged = MergedFrames(SpoolReader(SPOOL, disk), {}, clock=clock)
    taken = merged.take(10, 1 << 20)
    merged.acknowledge(taken)
    assert ids(taken) == ["r2"]
    assert one.writer_id not in merged.positions
    disk.closed = None
    clock.advance(LISTED_EVERY_S)
    assert ids(merged.take(10, 1 << 20)) == ["r1"]


def test_a_door_that_closes_for_a_while_changes_no_position() -> None:
    """What was acknowledged does not come again, and a dead writer's end is not passed."""
    disk, clock = Closed(), FrozenClock(wall_s=1000.0)
    one = open_spool(disk, clock)
    append(one, 1, 2)
    one.close()
    merged = MergedFrames(SpoolReader(SPOOL, disk), {}, clock=clock)
    taken = merged.take(1, 1 << 20)
    merged.acknowledge(taken)
    before = dict(merged.positions)
    disk.closed = SPOOL / one.writer_id
    clock.advance(LISTED_EVERY_S)
    taken += merged.take(10, 1 << 20)
    assert merged.positions == before
    disk.closed = None
    clock.advance(LISTED_EVERY_S)
    taken += merged.take(10, 1 << 20)
    assert ids(taken) == ["r1", "r2"]


def test_a_spool_that_cannot_be_listed_is_not_forgotten(desk: Desk) -> None:
    """Each round fails until it can: a sink that delivers in between would only look well."""
    disk = Closed()
    disk.make_dir(SPOOL)
    disk.closed = SPOOL
    merged = MergedFrames(SpoolReader(SPOOL, disk), {}, clock=desk.clock)
    for _ in range(3):
        with pytest.raises(PermissionError):
            merged.take(10, 1 << 20)
