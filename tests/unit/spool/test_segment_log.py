"""The log's state and the files below it, where the writer's own steps do not lead easily."""

from __future__ import annotations

import errno

import pytest

from router.spool.frames import USAGE, encode_frame, segment_name
from router.spool.reader import SpoolReader
from router.spool.segment_log import SegmentLog
from router.spool.segments import SegmentFiles
from tests.fakes.spool_io import Died, Fault, FaultyIO, MemoryDisk, error, fail_at
from tests.fakes.spool_parties import SPOOL, new_disk, put_segment, read_all, record, segment


@pytest.fixture
def disk() -> MemoryDisk:
    return new_disk()


@pytest.fixture
def io(disk: MemoryDisk) -> FaultyIO:
    return FaultyIO(disk)


@pytest.fixture
def files(io: FaultyIO) -> SegmentFiles:
    files = SegmentFiles(io, SPOOL, "w", 512)
    files.open()
    return files


def frame(number: int) -> bytes:
    return encode_frame(USAGE, record(number))


def read(disk: MemoryDisk) -> list[int]:
    return list(dict.fromkeys(read_all(SpoolReader(SPOOL, disk)).numbers))


def test_a_draft_left_over_when_the_log_broke_harms_nobody(
    files: SegmentFiles, disk: MemoryDisk
) -> None:
    """The recovered segment takes the draft's file; closing the draft must not cut it."""
    log = SegmentLog(files, segment_bytes=1, reserve_bytes=512)
    log.begin_again(log.recover(b""), 0)
    for number in (1, 2):
        log.set_preallocated(log.make_room()[0])
        log.put(frame(number))
        covered = log.begin_sync()
        if number == 2:
            log.set_preallocated(log.make_room()[0])
        assert not log.end_sync(covered, error(errno.EIO))
    assert log.broken == "disk_error"
    replayed = log.begin_recovery()
    log.begin_again(log.recover(b"".join(replayed)), len(replayed))
    log.put(frame(3))
    log.rotate()
    assert log.broken is None
    log.close()
    assert read(disk) == [1, 2, 3]


def test_a_preallocated_segment_that_comes_too_late_is_not_used(
    files: SegmentFiles, disk: MemoryDisk
) -> None:
    """While it was made the log broke; recovery makes its own."""
    log = SegmentLog(files, segment_bytes=600, reserve_bytes=512)
    log.begin_again(log.recover(b""), 0)
    preallocated, failed = log.make_room()
    assert failed is None
    log.abandon_files()
    log.set_preallocated(preallocated)
    assert log.needs_room()


@pytest.mark.parametrize(("when", "following"), [("before", 1), ("after", 2)])
def test_a_number_that_may_be_taken_is_not_given_again(
    files: SegmentFiles, io: FaultyIO, when: str, following: int
) -> None:
    """A rename that reports an error may have happened, and a reader may have begun that file."""
    draft = files.draft(frame(1))
    io.plan = fail_at(len(io.steps) + 1, Fault(error(errno.EIO), when))  # type: ignore[arg-type]
    with pytest.raises(OSError, match="Input/output"):
        files.publish(draft)
    assert files.draft().number == following


def test_the_lock_goes_last(io: FaultyIO, disk: MemoryDisk) -> None:
    """Of a removal that was cut short, what is left is still somebody's."""
    put_segment(disk, segment(1))
    disk.close(disk.open(SPOOL / "w" / "000000000002.new", 0o100))
    reader = SpoolReader(SPOOL, io)
    io.plan = fail_at(4, Fault(Died()))
    with pytest.raises(Died):
        reader.remove_segment("w", 1)
    assert io.steps[1:] == ["unlink", "unlink", "unlink"]
    assert disk.list_dir(SPOOL / "w") == ["lock"]
    assert segment_name(1) not in disk.list_dir(SPOOL / "w")


def test_a_directory_whose_renaming_is_in_doubt_is_left_to_the_readers(
    io: FaultyIO, disk: MemoryDisk
) -> None:
    """It may be there under its final name, without anybody who holds its lock; so take another."""
    files = SegmentFiles(io, SPOOL, "w", 512)
    io.plan = lambda _step, name: Fault(error(errno.EIO), "after") if name == "rename" else None
    with pytest.raises(OSError, match="Input/output"):
        files.open()
    io.plan = None
    files.open()
    assert sorted(disk.list_dir(SPOOL)) == ["w", "w-1"]
    assert [info.writer_id for info in SpoolReader(SPOOL, disk).writers()] == ["w-1"]
