"""The reader: every whole frame, in order, once; damage set aside and counted."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from router.clock import FrozenClock
from router.spool.directory import SpoolDirectory
from router.spool.disk import REPLACE, TAKE_LOCK
from router.spool.frames import (
    AUDIT,
    HEAD_BYTES,
    LOCK_NAME,
    MAX_PAYLOAD_BYTES,
    USAGE,
    Position,
    encode_frame,
)
from router.spool.quarantine import Quarantine, Quarantined
from router.spool.reader import (
    UNSTARTED_S,
    Batch,
    DamageCounts,
    Missing,
    SpoolReader,
    WriterInfo,
)
from router.spool.writer import SpoolWriter
from router.spool.writer_locks import WriterLocks
from tests.fakes.spool_io import MemoryDisk, error
from tests.fakes.spool_parties import SPOOL, put_segment, read_all, record, segment

NUMBERS = (1, 2, 3, 4)


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


def frame_ends(*numbers: int) -> list[int]:
    """Where each frame of ``segment(*numbers)`` ends, the header's first."""
    return [len(segment(*numbers[:count])) for count in range(len(numbers) + 1)]


def names(disk: MemoryDisk) -> set[str]:
    return {str(path.relative_to(SPOOL)) for path, _ in disk.files()}


# --- whole spools ---------------------------------------------------------------------------


def test_frames_come_in_order_with_their_positions(disk: MemoryDisk) -> None:
    """Whoever stops after a frame can go on behind it."""
    put_segment(disk, segment(*NUMBERS))
    reader = SpoolReader(SPOOL, disk)
    batch = reader.read(Position("w", 1, 0), 10_000)
    assert [frame.payload for frame in batch.frames] == [record(number) for number in NUMBERS]
    ends = frame_ends(*NUMBERS)[1:]
    assert [frame.position_after for frame in batch.frames] == [
        Position("w", 1, end) for end in ends
    ]
    for index, frame in enumerate(batch.frames):
        assert read_all(reader, frame.position_after).numbers == list(NUMBERS[index + 1 :])


@pytest.mark.parametrize("max_bytes", [0, 1, 50, 300, 1 << 20])
def test_segments_are_read_one_after_the_other(disk: MemoryDisk, max_bytes: int) -> None:
    """However small a reading may be, it moves on, over the ends of segments too."""
    put_segment(disk, segment(1, 2), 1)
    put_segment(disk, segment(), 2)
    put_segment(disk, segment(3), 3)
    found = read_all(SpoolReader(SPOOL, disk), max_bytes=max_bytes)
    assert (found.numbers, found.skipped, found.missing) == ([1, 2, 3], [], [])
    assert found.position == Position("w", 4, 0)


def test_a_frame_that_is_larger_than_the_reading_is_read(disk: MemoryDisk) -> None:
    """The limit bounds memory, not what can be delivered."""
    large = encode_frame(USAGE, b"x" * MAX_PAYLOAD_BYTES)
    put_segment(disk, segment() + large + large)
    reader = SpoolReader(SPOOL, disk)
    position, sizes = Position("w", 1, 0), []
    while (batch := reader.read(position, 100)).position_after != position:
        sizes += [len(frame.payload) for frame in batch.frames]
        position = batch.position_after
    assert sizes == [MAX_PAYLOAD_BYTES] * 2


def test_a_living_writers_last_segment_ends_where_it_ends_now(disk: MemoryDisk) -> None:
    """What is appended later is found from the same position on."""
    file = put_segment(disk, segment(1), alive=True)
    reader = SpoolReader(SPOOL, disk)
    found = read_all(reader)
    assert (found.numbers, found.position) == ([1], Position("w", 1, len(segment(1))))
    file.data += encode_frame(USAGE, record(2))
    assert read_all(reader, found.position).numbers == [2]


def test_a_later_segment_closes_the_earlier_one_of_a_living_writer(disk: MemoryDisk) -> None:
    """After a rotation the old end is final."""
    put_segment(disk, segment(1), 1, alive=True)
    put_segment(disk, segment(2), 2)
    found = read_all(SpoolReader(SPOOL, disk))
    assert (found.numbers, found.position.segment) == ([1, 2], 2)


def test_kinds_nobody_knows_are_delivered(disk: MemoryDisk) -> None:
    """What to do with them is the sink's business, not the spool's."""
    put_segment(disk, segment() + encode_frame(77, b"?"))
    [frame] = SpoolReader(SPOOL, disk).read(Position("w", 1, 0), 1000).frames
    assert (frame.kind, frame.payload) == (77, b"?")


def test_a_segment_of_a_newer_format_is_waited_before(disk: MemoryDisk) -> None:
    """A router that was rolled back neither misreads nor throws away what the new one wrote."""
    put_segment(disk, encode_frame(0, b'{"format":2}') + encode_frame(USAGE, record(1)))
    start = Position("w", 1, 0)
    batch = SpoolReader(SPOOL, disk).read(start, 1000)
    assert (batch.unreadable_format, batch.frames, batch.position_after) == (2, [], start)
    assert names(disk) == {"w/lock", "w/000000000001.seg"}


# --- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("max_bytes", [60, 100_000])
def test_cut_at_every_byte(max_bytes: int) -> None:
    """Requirement Q7: of a segment cut anywhere, each frame before the cut is delivered."""
    content, ends = segment(*NUMBERS), frame_ends(*NUMBERS)
    for cut in range(len(content)):
        disk = MemoryDisk()
        put_segment(disk, content[:cut], 1)
        put_segment(disk, segment(9), 2)
        reader = SpoolReader(SPOOL, disk)
        found = read_all(reader, max_bytes=max_bytes)
        whole = [number for number, end in zip(NUMBERS, ends[1:], strict=True) if end <= cut]
        assert found.numbers == [*whole, 9]
        tail = cut - max([end for end in ends if end <= cut], default=0)
        assert [stretch.length for stretch in found.skipped] == ([tail] if tail else [])
        assert reader.damage == DamageCounts(torn=bool(tail), bytes=tail)


@pytest.mark.parametrize("alive", [False, True], ids=["dead", "alive"])
@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_every_byte_changed(change: int, alive: bool) -> None:
    """Requirement Q7: whichever byte is wrong, all frames but its own are delivered unharmed."""
    content, ends = segment(*NUMBERS), frame_ends(*NUMBERS)
    for index in range(ends[-2]):  # the last frame stays: behind it, a living writer may go on
        disk = MemoryDisk()
        damaged = bytearray(content)
        damaged[index] ^= change
        put_segment(disk, bytes(damaged), alive=alive)
        reader = SpoolReader(SPOOL, disk)
        found = read_all(reader)
        hit = next(place for place, end in enumerate(ends) if index < end)
        assert found.numbers == [number for number in NUMBERS if number != hit]
        assert reader.damage.damaged == 1
        assert reader.damage.bytes == ends[hit] - (ends[hit - 1] if hit else 0)


def test_an_unfinished_frame_of_a_living_writer_is_waited_for(disk: MemoryDisk) -> None:
    """Requirement Q7: what may still be completed is neither skipped nor counted, at every byte."""
    content = segment(1, 2)
    file = put_segment(disk, segment(1), alive=True)
    reader = SpoolReader(SPOOL, disk)
    position = read_all(reader).position
    for cut in range(len(segment(1)), len(content)):
        file.data[:] = content[:cut]
        assert read_all(reader, position).position == position
    file.data[:] = content
    assert read_all(reader, position).numbers == [2]
    assert reader.damage == DamageCounts()


def test_a_killed_writers_unfinished_frame_is_set_aside(disk: MemoryDisk) -> None:
    """Once nobody can complete it, it is kept for inspection and counted as torn."""
    tail = encode_frame(USAGE, record(2))[:-1]
    put_segment(disk, segment(1) + tail)
    reader = SpoolReader(SPOOL, disk)
    found = read_all(reader)
    offset = len(segment(1))
    assert found.skipped == [Quarantined("w", 1, offset, len(tail), True)]
    assert (reader.damage.torn, reader.damage.damaged, reader.damage.bytes) == (1, 0, len(tail))
    kept = dict(disk.files())[SPOOL / "quarantine" / f"w.000000000001.{offset}.torn"]
    assert kept.data == tail
    assert reader.quarantined() == (1, len(tail))


def test_zeros_are_damage_like_any_other(disk: MemoryDisk) -> None:
    """A power failure can leave a length without content."""
    put_segment(disk, segment(1) + bytes(5000) + encode_frame(USAGE, record(2)) + bytes(100))
    reader = SpoolReader(SPOOL, disk)
    assert read_all(reader).numbers == [1, 2]
    assert (reader.damage.damaged, reader.damage.bytes) == (2, 5100)


def test_an_absurd_length_does_not_hide_what_follows(disk: MemoryDisk) -> None:
    """A living writer's damaged length field is not waited for while whole frames follow."""
    broken = bytearray(encode_frame(USAGE, record(2)))
    broken[5] ^= 0x02  # claims 128 KiB more than there is
    put_segment(disk, segment(1) + bytes(broken) + encode_frame(USAGE, record(3)), alive=True)
    assert read_all(SpoolReader(SPOOL, disk)).numbers == [1, 3]


def test_damage_is_counted_once_for_all_readings_and_restarts(disk: MemoryDisk) -> None:
    """Two sinks meet the same damage, and each of them again after a lost checkpoint."""
    put_segment(disk, segment(1) + b"junk" + encode_frame(USAGE, record(2)))
    reader = SpoolReader(SPOOL, disk)
    for _ in range(3):
        assert read_all(reader, Position("w", 1, 0)).numbers == [1, 2]
    assert reader.damage == DamageCounts(damaged=1, bytes=4)
    reader.close()
    after_restart = SpoolReader(SPOOL, disk)
    assert len(read_all(after_restart).skipped) == 1
    assert after_restart.damage == DamageCounts()


def test_a_full_quarantine_counts_on_and_keeps_no_more(disk: MemoryDisk) -> None:
    """Damage does not fill the disk."""
    quarantine = Quarantine(SPOOL, disk, max_bytes=10)
    assert quarantine.put(Quarantined("w", 1, 0, 8, False), b"x" * 8)
    assert quarantine.put(Quarantined("w", 1, 9, 8, False), b"y" * 8)
    assert quarantine.put(Quarantined("w", 1, 20, 2, False), b"z" * 2)
    assert quarantine.stored() == (2, 10)


def test_a_disk_that_keeps_nothing_stops_no_delivery() -> None:
    """When the quarantine cannot be written, the frames behind the damage come all the same."""
    disk = MemoryDisk()
    put_segment(disk, segment(1) + b"junk" + encode_frame(USAGE, record(2)))
    disk.capacity = disk.used() + 2
    reader = SpoolReader(SPOOL, disk)
    assert read_all(reader).numbers == [1, 2]
    assert reader.damage == DamageCounts(damaged=1, bytes=4)
    assert reader.quarantined() == (0, 0)


# --- missing segments and lost positions -----------------------------------------------------


def test_missing_segments_are_reported_and_passed(disk: MemoryDisk) -> None:
    """A hole costs what was in it and nothing else, and is counted once."""
    put_segment(disk, segment(1), 1)
    put_segment(disk, segment(5), 5)
    reader = SpoolReader(SPOOL, disk)
    found = read_all(reader)
    assert (found.numbers, found.missing) == ([1, 5], [Missing("w", 2, 4)])
    read_all(reader, Position("w", 1, 0))
    assert reader.damage == DamageCounts(missing_segments=3)


def test_a_position_in_a_segment_that_is_gone_leads_to_the_next(disk: MemoryDisk) -> None:
    """Someone removed a segment that the checkpoint still points into."""
    put_segment(disk, segment(7), 3)
    found = read_all(SpoolReader(SPOOL, disk), Position("w", 2, 40))
    assert (found.numbers, found.missing) == ([7], [Missing("w", 2, 2)])


def test_without_a_checkpoint_reading_starts_at_the_oldest_segment(disk: MemoryDisk) -> None:
    """What was acknowledged and removed before is not missed."""
    put_segment(disk, segment(4), 4)
    put_segment(disk, segment(5), 5)
    found = read_all(SpoolReader(SPOOL, disk))
    assert (found.numbers, found.missing) == ([4, 5], [])


def test_a_position_behind_the_end_of_a_segment_is_its_end(disk: MemoryDisk) -> None:
    """A power failure can take what was delivered before it was synced."""
    put_segment(disk, segment(1), 1)
    put_segment(disk, segment(2), 2)
    assert read_all(SpoolReader(SPOOL, disk), Position("w", 1, 99_999)).numbers == [2]


class Overlapping(MemoryDisk):
    """Its first readings of a large frame pass some of it before the writer does."""

    def __init__(self, holes: list[int]) -> None:
        super().__init__()
        self.holes = holes

    def read(self, fd: int, length: int, offset: int) -> bytes:
        data = super().read(fd, length, offset)
        if length < 5_000 or not self.holes:
            return data
        hole = data.index(b"x" * 4_096, self.holes.pop(0))
        return data[:hole] + bytes(4_096) + data[hole + 4_096 :]


@pytest.mark.parametrize("max_bytes", [1, 100, 5_000, 1 << 20])
@pytest.mark.parametrize("holes", [[0], [0, 10_010], [10_010, 0], [0, 10_010, 0]])
def test_a_reading_that_overlaps_a_writing_is_no_damage(max_bytes: int, holes: list[int]) -> None:
    """P1: of two frames one is seen in part, and the one behind it whole. That is read again, also
    when a large frame has been read again already, or when the next reading overlaps as well."""
    disk = Overlapping(holes)
    writer = SpoolWriter(SPOOL, io=disk, clock=FrozenClock(), max_bytes=8 << 20, background=False)
    large = [letter.encode() + b"x" * 10_000 for letter in "ab"]
    writer.append([(USAGE, large[0]), (USAGE, large[1]), (AUDIT, b"behind them")])
    reader = SpoolReader(SPOOL, disk)
    payloads: list[bytes] = []
    position = reader.first_position(writer.writer_id)
    for _ in range(10):
        batch = reader.read(position, max_bytes)
        payloads += [frame.payload for frame in batch.frames]
        position = batch.position_after
    assert disk.holes == []
    assert payloads == [*large, b"behind them"]
    assert reader.damage == DamageCounts()


def test_a_name_that_one_listing_misses_is_no_missing_segment() -> None:
    """A segment gets its name while somebody looks: first it is not there, then a listing, which
    runs at the same moment, shows a later segment and not this one."""

    class Blinking(MemoryDisk):
        looks_unavailable = 0

        def open(self, path: Path, flags: int) -> int:
            if path.name == "000000000002.seg" and self.looks_unavailable == 0:
                self.looks_unavailable = 1
                raise error(errno.ENOENT)
            return super().open(path, flags)

        def list_dir(self, path: Path) -> list[str]:
            found = super().list_dir(path)
            if self.looks_unavailable == 1:
                self.looks_unavailable = 2
                found.remove("000000000002.seg")
            return found

    disk = Blinking()
    disk.looks_unavailable = 2
    put_segment(disk, segment(2), 2)
    put_segment(disk, segment(3), 3)
    disk.looks_unavailable = 0
    reader = SpoolReader(SPOOL, disk)
    assert reader.read(Position("w", 2, 0), 1000) == Batch([], Position("w", 2, 0))
    assert disk.looks_unavailable == 2
    assert read_all(reader, Position("w", 2, 0)).numbers == [2, 3]


def test_a_writer_that_is_gone_is_nothing_new(disk: MemoryDisk) -> None:
    """A checkpoint may outlive its writer's directory."""
    disk.make_dir(SPOOL)
    position = Position("gone", 3, 14)
    batch = SpoolReader(SPOOL, disk).read(position, 1000)
    assert (batch.frames, batch.position_after, batch.missing) == ([], position, None)


def test_a_spool_that_does_not_exist_is_empty(disk: MemoryDisk) -> None:
    """The agent may be there before the first worker."""
    reader = SpoolReader(SPOOL, disk)
    assert (reader.writers(), reader.backlog_bytes({})) == ([], 0)


# --- writers, alive and dead ------------------------------------------------------------------


def test_writers_are_listed_by_age_with_their_state(disk: MemoryDisk) -> None:
    """The oldest come first, so that their records do too."""
    put_segment(disk, segment(2), 2, "b")
    put_segment(disk, segment(1), 1, "a", alive=True)
    put_segment(disk, segment(1), 1, "b")
    disk.make_dir(SPOOL / "quarantine")
    assert SpoolReader(SPOOL, disk).writers() == [
        WriterInfo("a", True, (1,)),
        WriterInfo("b", False, (1, 2)),
    ]


def test_a_dead_writer_is_taken_over_exactly_once(disk: MemoryDisk) -> None:
    """Of two readers, the first to look finishes the dead writer's files."""
    put_segment(disk, segment(1))
    first, second = SpoolReader(SPOOL, disk), SpoolReader(SPOOL, disk)
    assert [info.alive for info in first.writers()] == [False]
    assert [info.alive for info in second.writers()] == [True]
    with pytest.raises(ValueError, match="still written"):
        second.remove_segment("w", 1)
    first.close()
    assert [info.alive for info in second.writers()] == [False]


def test_looking_takes_nothing_over_and_changes_nothing(disk: MemoryDisk) -> None:
    """The command line may look while an agent works."""
    put_segment(disk, segment(1) + b"junk")
    put_segment(disk, segment(), 1, ".starting")
    before = names(disk)
    looking = SpoolReader(SPOOL, disk, observe=True)
    assert [info.alive for info in looking.writers()] == [False]
    assert read_all(looking).numbers == [1]
    assert names(disk) == before
    assert [info.alive for info in SpoolReader(SPOOL, disk).writers()] == [False]


def test_only_closed_segments_can_be_removed(disk: MemoryDisk) -> None:
    """A living writer's last segment stays whatever the sinks say."""
    put_segment(disk, segment(1), 1, alive=True)
    put_segment(disk, segment(2), 2)
    reader = SpoolReader(SPOOL, disk)
    reader.remove_segment("w", 1)
    with pytest.raises(ValueError, match="segment 2 of w is still written"):
        reader.remove_segment("w", 2)
    assert names(disk) == {"w/lock", "w/000000000002.seg"}


def test_the_last_segment_of_a_dead_writer_takes_its_directory_along(disk: MemoryDisk) -> None:
    """Nothing piles up, drafts included; removing twice is no error."""
    put_segment(disk, segment(1))
    disk.close(disk.open(SPOOL / "w" / "000000000002.new", REPLACE))
    reader = SpoolReader(SPOOL, disk)
    reader.remove_segment("w", 1)
    reader.remove_segment("w", 1)
    assert disk.list_dir(SPOOL) == []


def test_what_a_dead_writer_left_empty_is_cleared(disk: MemoryDisk) -> None:
    """Writers that died before their first segment, or whose removal was cut short."""
    disk.make_dir(SPOOL / "empty")
    disk.make_dir(SPOOL / ".early")
    for name in ("locked", ".late"):
        disk.make_dir(SPOOL / name)
        disk.close(disk.open(SPOOL / name / LOCK_NAME, TAKE_LOCK))
    clock = FrozenClock()
    reader = SpoolReader(SPOOL, disk, clock=clock)
    assert reader.writers() == []
    # Somebody who starts at this very moment looks the same; so they are given time.
    clock.advance(UNSTARTED_S - 0.1)
    assert reader.writers() == []
    assert disk.list_dir(SPOOL) == [".early", ".late"]
    clock.advance(0.1)
    assert reader.writers() == []
    assert disk.list_dir(SPOOL) == []


def test_a_writer_that_is_just_starting_is_left_alone(disk: MemoryDisk) -> None:
    """Its directory is not cleared once it holds the lock, and lists as alive without segments."""
    for name in (".starting", "started"):
        disk.make_dir(SPOOL / name)
        assert disk.lock(disk.open(SPOOL / name / LOCK_NAME, TAKE_LOCK))
    clock = FrozenClock()
    reader = SpoolReader(SPOOL, disk, clock=clock)
    for _ in range(2):
        assert reader.writers() == [WriterInfo("started", True, ())]
        clock.advance(UNSTARTED_S)
    assert names(disk) == {".starting/lock", "started/lock"}


def test_segments_without_a_lock_file_can_still_be_finished(disk: MemoryDisk) -> None:
    """As restored from a backup: nobody holds what is not there."""
    put_segment(disk, segment(1))
    disk.unlink(SPOOL / "w" / LOCK_NAME)
    reader = SpoolReader(SPOOL, disk)
    assert reader.writers() == [WriterInfo("w", False, (1,))]
    assert WriterLocks(SPOOL, disk, keep=True).is_alive("w")


def test_the_backlog_is_what_lies_behind_the_positions(disk: MemoryDisk) -> None:
    """Counted over writers and segments; a writer without a position counts whole."""
    one, two = segment(1), segment(2, 3)
    put_segment(disk, one, 1, "a")
    put_segment(disk, two, 2, "a")
    put_segment(disk, one, 1, "b")
    reader = SpoolReader(SPOOL, disk)
    assert reader.backlog_bytes({}) == 2 * len(one) + len(two)
    assert reader.backlog_bytes({"a": Position("a", 2, 10)}) == len(two) - 10 + len(one)
    assert reader.backlog_bytes({"a": Position("a", 3, 0), "b": Position("b", 1, len(one))}) == 0
    assert reader.end_of("a") == Position("a", 2, len(two))
    assert reader.bytes_of("a", Position("a", 1, HEAD_BYTES), Position("a", 2, 5)) == (
        len(one) - HEAD_BYTES + 5
    )


# --- directories that cannot be opened ------------------------------------------------------------


class Closed(MemoryDisk):
    """A disk on which some places are another user's."""

    def __init__(self, *closed: str) -> None:
        super().__init__()
        self.closed = {SPOOL / name for name in closed}

    def _check(self, path: Path) -> None:
        if path in self.closed or path.parent in self.closed:
            raise error(errno.EACCES)

    def list_dir(self, path: Path) -> list[str]:
        self._check(path)
        return super().list_dir(path)

    def open(self, path: Path, flags: int) -> int:
        self._check(path)
        return super().open(path, flags)

    def file_size(self, path: Path) -> int:
        self._check(path)
        return super().file_size(path)


def test_a_directory_that_cannot_be_opened_hides_no_other() -> None:
    """Q7: adoption, sizes and removal go on; it counts as alive, so nothing of it is ended."""
    disk = Closed()
    for name in "a", "b", "c":
        put_segment(disk, segment(1), writer_id=name)
    disk.closed = {SPOOL / "b"}
    reader = SpoolReader(SPOOL, disk)
    first, second, third = reader.writers()
    assert (first, third) == (WriterInfo("a", False, (1,)), WriterInfo("c", False, (1,)))
    assert (second.writer_id, second.alive, second.segments) == ("b", True, ())
    assert list(reader.troubles) == ["b"]
    assert reader.backlog_bytes({}) == 2 * len(segment(1))
    assert SpoolDirectory(SPOOL, disk).total_bytes() == 2 * len(segment(1))
    reader.remove_segment("a", 1)
    disk.closed.clear()
    assert [info.writer_id for info in reader.writers()] == ["b", "c"]
    assert reader.troubles == {}
    assert reader.writers()[0] == WriterInfo("b", False, (1,))


def test_a_lock_that_cannot_be_tried_leaves_what_is_not_closed() -> None:
    """Nobody can tell whether its writer lives; all but its last segment is closed anyway."""
    disk = Closed()
    put_segment(disk, segment(1), 1)
    put_segment(disk, segment(2), 2)
    disk.closed = {SPOOL / "w" / LOCK_NAME}
    reader = SpoolReader(SPOOL, disk)
    [info] = reader.writers()
    assert (info.alive, info.segments) == (True, (1, 2))
    assert info.trouble == reader.troubles["w"]
    assert read_all(reader).numbers == [1, 2]
    reader.remove_segment("w", 1)
    with pytest.raises(ValueError, match="still written"):
        reader.remove_segment("w", 2)


def test_a_false_start_that_cannot_be_cleared_stops_nobody() -> None:
    """It is named, and the writers are listed."""
    disk, clock = Closed(".early"), FrozenClock()
    disk.make_dir(SPOOL / ".early")
    put_segment(disk, segment(1))
    reader = SpoolReader(SPOOL, disk, clock=clock)
    reader.writers()
    clock.advance(UNSTARTED_S)
    assert [info.writer_id for info in reader.writers()] == ["w"]
    assert list(reader.troubles) == [".early"]


def test_a_mere_look_raises_for_what_it_cannot_see() -> None:
    """Whoever asks whether all is well must not be told so."""
    disk = Closed()
    put_segment(disk, segment(1))
    disk.closed = {SPOOL / "w"}
    reader = SpoolReader(SPOOL, disk, observe=True)
    with pytest.raises(OSError, match="denied"):
        reader.writers()
    with pytest.raises(OSError, match="denied"):
        reader.backlog_bytes({})
