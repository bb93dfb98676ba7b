"""What one sink reads for the other."""

from __future__ import annotations

import pytest

from router.agent.reading.merge import MergedFrames
from router.agent.reading.read_ahead import CACHE_BYTES, ReadAhead, Reading
from router.clock import FrozenClock
from router.spool.frames import Position
from router.spool.reader import Batch, SpoolReader
from tests.fakes.shipping import SPOOL, append, decoded, ids, open_spool, usage
from tests.fakes.spool_io import MemoryDisk


def at(offset: int, writer: str = "w") -> Position:
    return Position(writer, 1, offset)


def reading(end: int, *, size: int = 0, writer: str = "w") -> Reading:
    """One record that ends there."""
    return Reading([decoded(usage(end, filler="x" * size))], at(end, writer))


class Counting(SpoolReader):
    """Counts the readings that gave frames."""

    useful = 0

    def read(self, position: Position, max_bytes: int) -> Batch:
        batch = super().read(position, max_bytes)
        self.useful += bool(batch.frames)
        return batch


def test_two_sinks_that_keep_up_read_once() -> None:
    """Q1: the second one gets the same records, decoded already, whoever comes first."""
    disk, clock = MemoryDisk(), FrozenClock(wall_s=1000.0)
    writer, reader, read_ahead = open_spool(disk, clock), Counting(SPOOL, disk), ReadAhead(2)
    sinks = [MergedFrames(reader, {}, clock=clock, read_ahead=read_ahead) for _ in range(2)]
    for number in range(10):
        append(writer, number, ended_s=900.0)
        first, second = sinks[number % 2], sinks[1 - number % 2]
        taken = [sink.take(10, 1 << 20) for sink in (first, second)]
        assert [ids(found) for found in taken] == [[f"r{number}"]] * 2
        assert taken[0][0] is taken[1][0]
        for sink, found in zip((first, second), taken, strict=True):
            sink.acknowledge(found)
    assert reader.useful == 10
    assert sinks[0].positions == sinks[1].positions


def test_a_sink_that_is_far_behind_reads_for_itself() -> None:
    """And gets everything; what the other reads meanwhile is bounded in memory."""
    disk, clock = MemoryDisk(), FrozenClock(wall_s=1000.0)
    writer, reader, read_ahead = open_spool(disk, clock), SpoolReader(SPOOL, disk), ReadAhead(2)
    ahead, behind = (MergedFrames(reader, {}, clock=clock, read_ahead=read_ahead) for _ in range(2))
    filler = "x" * (CACHE_BYTES // 8)
    for number in range(20):
        writer.append([(1, usage(number, ended_s=900.0, filler=filler))])
        assert ids(ahead.take(10, 1 << 20)) == [f"r{number}"]
    found = [one for _ in range(20) for one in behind.take(1, 1 << 20)]
    assert ids(found) == [f"r{number}" for number in range(20)]


def test_what_was_read_goes_to_the_other_sink_once() -> None:
    """Two sinks: who has not read it takes it, and then nobody needs it."""
    read_ahead = ReadAhead(2)
    read_ahead.put(at(0), reading(10))
    found = read_ahead.take(at(0))
    assert found is not None
    assert found.position_after == at(10)
    assert read_ahead.take(at(0)) is None


def test_what_the_other_sink_has_passed_is_not_kept() -> None:
    """It would push out what is needed next."""
    read_ahead = ReadAhead(2)
    read_ahead.put(at(10), reading(20))
    read_ahead.put(at(0), reading(10))
    assert read_ahead.take(at(0)) is None
    assert read_ahead.take(at(10)) is not None


@pytest.mark.parametrize("what", [Reading([], at(10)), reading(10)])
def test_nothing_is_kept_without_need(what: Reading) -> None:
    """Neither an empty stretch nor anything for a sink that is the only one."""
    read_ahead = ReadAhead(2 if not what.decoded_frames else 1)
    read_ahead.put(at(0), what)
    assert read_ahead.take(at(0)) is None


def test_the_oldest_goes_when_the_shelf_is_full() -> None:
    """The sink that comes second reads that for itself."""
    read_ahead = ReadAhead(2)
    for start in range(5):
        read_ahead.put(at(start), reading(start + 1, size=CACHE_BYTES // 4))
    assert [read_ahead.take(at(start)) is not None for start in range(5)] == [False, False] + [
        True
    ] * 3


def test_a_writer_that_is_gone_takes_no_room() -> None:
    """Nor does it take the others' records along."""
    read_ahead = ReadAhead(2)
    read_ahead.put(at(0), reading(10))
    read_ahead.put(at(0, "v"), reading(10, writer="v"))
    read_ahead.forget("w")
    assert read_ahead.take(at(0)) is None
    assert read_ahead.take(at(0, "v")) is not None
