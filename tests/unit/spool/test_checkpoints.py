"""Checkpoints: what was saved last, or what was saved before it, and never anything else."""

from __future__ import annotations

import errno
import logging
import re
from pathlib import Path

import pytest

from router.clock import FrozenClock
from router.spool.checkpoints import Checkpoints, checkpoint_path, sinks_with_checkpoints
from router.spool.frames import Position
from tests.fakes.spool_io import Died, Fault, FaultyIO, File, MemoryDisk, error, fail_at
from tests.fakes.spool_parties import (
    CHECKPOINTS,
    Agent,
    Worker,
    is_ready,
    new_disk,
    put_segment,
    segment,
)

OLD = {"a": Position("a", 1, 100)}
NEW = {"a": Position("a", 2, 0), "b": Position("b", 7, 12345)}


@pytest.fixture
def disk() -> MemoryDisk:
    return new_disk()


def load(disk: MemoryDisk) -> dict[str, Position]:
    return Checkpoints(CHECKPOINTS, disk).load()


def saved(disk: MemoryDisk, *states: dict[str, Position]) -> Checkpoints:
    checkpoints = Checkpoints(CHECKPOINTS, disk)
    for state in states:
        checkpoints.save(state)
    return checkpoints


def file(disk: MemoryDisk, suffix: str) -> File:
    return dict(disk.files())[Path(f"{CHECKPOINTS}{suffix}")]


def test_what_was_saved_last_is_loaded(disk: MemoryDisk) -> None:
    """Also after many saves, by whoever opens them."""
    assert load(disk) == {}
    checkpoints = saved(disk, OLD, NEW)
    assert load(disk) == checkpoints.load() == NEW
    for number in range(5):
        saved(disk, {"a": Position("a", number, 0)})
        assert load(disk) == {"a": Position("a", number, 0)}


def test_a_shorter_text_over_a_longer_one_is_read_right(disk: MemoryDisk) -> None:
    """What the longer one leaves behind does not count."""
    many = {f"w{number}": Position(f"w{number}", 1, number) for number in range(50)}
    saved(disk, many, many, {}, OLD)
    assert load(disk) == OLD
    assert len(file(disk, ".0").data) > 500


def test_the_bytes_are_plain_to_read(disk: MemoryDisk) -> None:
    """Someone may have to look at them; the format is pinned."""
    saved(disk, OLD)
    text = file(disk, ".1").data
    assert re.fullmatch(
        rb'\{"format":1,"generation":1,"positions":\{"a":\[1,100\]\}\}\n[0-9a-f]{8}\n', text
    )


@pytest.mark.parametrize("torn", [False, True])
def test_death_at_each_step_of_saving_leaves_the_old_or_the_new(torn: bool) -> None:
    """Requirement P1: neither the first save, nor the second, nor the third can be half done."""
    for earlier in (0, 1, 2):
        io = FaultyIO(prepared(earlier))
        Checkpoints(CHECKPOINTS, io).save(NEW)
        for step in range(1, len(io.steps) + 1):
            for when in ("before", "after", "torn"):
                disk = prepared(earlier)
                dying = FaultyIO(disk, fail_at(step, Fault(Died(), when)))  # type: ignore[arg-type]
                with pytest.raises(Died):
                    Checkpoints(CHECKPOINTS, dying).save(NEW)
                dying.die()
                if torn:
                    disk.lose_power("half", names=False)
                assert load(disk) in (OLD if earlier else {}, NEW)
                saved(disk, NEW)
                assert load(disk) == NEW


def prepared(earlier: int) -> MemoryDisk:
    disk = new_disk()
    saved(disk, *[OLD] * earlier)
    return disk


@pytest.mark.parametrize("kept", ["synced", "zeros"])
def test_what_was_saved_survives_a_power_failure(disk: MemoryDisk, kept: str) -> None:
    """A save that returned is on the disk, under names that are."""
    for state in (OLD, NEW, OLD):
        saved(disk, state)
        disk.lose_power(kept, names=False)  # type: ignore[arg-type]
        assert load(disk) == state


@pytest.mark.parametrize("suffix", [".0", ".1"])
def test_every_changed_byte_of_one_file_leaves_the_other(suffix: str) -> None:
    """Damage costs one save at most; no position is ever made up."""
    disk = new_disk()
    saved(disk, OLD, NEW)
    other = OLD if suffix == ".0" else NEW
    content = bytes(file(disk, suffix).data)
    for index in range(len(content)):
        for change in (0x01, 0x80, 0xFF):
            file(disk, suffix).data[index] ^= change
            assert load(disk) == other
            file(disk, suffix).data[:] = content


def test_both_files_cut_at_every_byte() -> None:
    """Lost checkpoints are no checkpoints: reading starts at the beginning."""
    disk = new_disk()
    saved(disk, OLD, OLD)
    content = bytes(file(disk, ".0").data), bytes(file(disk, ".1").data)
    for cut in range(len(content[0])):
        file(disk, ".0").data[:], file(disk, ".1").data[:] = content[0][:cut], content[1][:cut]
        assert load(disk) == {}
    saved(disk, NEW)
    assert load(disk) == NEW


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"format":2,"generation":9,"positions":{}}'])
def test_what_is_no_checkpoint_is_none(disk: MemoryDisk, text: bytes) -> None:
    """Also when its CRC is right."""
    import zlib

    saved(disk, OLD)
    disk.make_dir(CHECKPOINTS.parent)
    fd = disk.open(Path(f"{CHECKPOINTS}.0"), 0o102)
    disk.write(fd, b"%b\n%08x\n" % (text, zlib.crc32(text)))
    disk.close(fd)
    assert load(disk) == OLD


def test_damage_is_told(disk: MemoryDisk, caplog: pytest.LogCaptureFixture) -> None:
    """Someone should look at a disk that changes bytes."""
    saved(disk, OLD)
    file(disk, ".1").data[3] ^= 1
    with caplog.at_level(logging.WARNING, "router.spool"):
        assert load(disk) == {}
    assert [line.getMessage() for line in caplog.records] == ["checkpoint damaged"]


def test_an_unreadable_file_is_a_lost_one(disk: MemoryDisk) -> None:
    """A disk error costs a delivery too many, not the start of the agent."""

    class Unreadable(FaultyIO):
        def read(self, fd: int, length: int, offset: int) -> bytes:
            raise error(errno.EIO)

    saved(disk, OLD)
    assert Checkpoints(CHECKPOINTS, Unreadable(disk)).load() == {}


def test_a_failed_save_is_raised_and_can_be_repeated(disk: MemoryDisk) -> None:
    """Nobody may remove segments on the strength of a save that did not happen."""
    io = FaultyIO(disk)
    checkpoints = Checkpoints(CHECKPOINTS, io)
    checkpoints.save(OLD)
    io.plan = lambda _step, name: Fault(error(errno.EIO)) if name == "sync" else None
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            checkpoints.save(NEW)
    assert load(disk) in (OLD, NEW)
    file(disk, ".0").data[:] = b""
    assert load(disk) == OLD
    io.plan = None
    checkpoints.save(NEW)
    assert load(disk) == NEW


def test_saving_needs_no_space_on_a_full_disk(disk: MemoryDisk) -> None:
    """Else a spool that fills the disk could never be emptied again."""
    checkpoints = saved(disk, OLD, OLD)
    disk.capacity = disk.used()
    many = {f"writer-{number}": Position("", 1, number) for number in range(200)}
    checkpoints.save(many)
    checkpoints.save(NEW)
    assert load(disk) == NEW


def test_a_spool_that_fills_the_disk_is_emptied(disk: MemoryDisk) -> None:
    """The agent ships, acknowledges and removes without a byte of free space."""
    clock, delivered = FrozenClock(), []
    worker = Worker(disk, clock)
    agent = Agent(disk, delivered)
    worker.work(0, 5)
    agent.run()
    disk.capacity = disk.used() + 5_000
    number = 100
    while worker.append(number):
        worker.tick()
        number += 1
    assert not is_ready(worker.writer)
    agent.run()
    worker.tick(0.3)
    assert is_ready(worker.writer)
    assert set(worker.taken) <= set(delivered)


@pytest.mark.parametrize("lost", ["lost", "damaged"])
def test_without_checkpoints_everything_that_is_there_is_delivered_again(
    disk: MemoryDisk, lost: str
) -> None:
    """From the oldest segment on; what was removed before is not missed."""
    put_segment(disk, segment(1), 1)
    put_segment(disk, segment(2), 2)
    first: list[int] = []
    agent = Agent(disk, first)
    for info in agent.reader.writers():
        agent._finish(None, info.writer_id, 600)
    agent.reader.close()
    for suffix in (".0", ".1"):
        if lost == "lost":
            disk.unlink(Path(f"{CHECKPOINTS}{suffix}"))
        else:
            file(disk, suffix).data[5] ^= 0xFF
    again: list[int] = []
    successor = Agent(disk, again)
    successor.run()
    assert first == again == [1, 2]
    assert successor.reader.damage.missing_segments == 0


def test_sinks_are_told_by_their_files(tmp_path: Path) -> None:
    """Each sink has its own checkpoints, so that a slow one does not hold the other."""
    assert sinks_with_checkpoints(tmp_path) == []
    for sink in ("store", "kafka"):
        for _ in range(2):
            Checkpoints(checkpoint_path(tmp_path, sink)).save(NEW)
    assert sinks_with_checkpoints(tmp_path) == ["kafka", "store"]
    assert Checkpoints(checkpoint_path(tmp_path, "kafka")).load() == NEW
