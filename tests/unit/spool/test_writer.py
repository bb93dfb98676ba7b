"""The writer: what it promises when it takes a record, when it refuses, and how it recovers."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.api.error_specs import error_spec_of, retry_after_s
from router.clock import FrozenClock
from router.config.settings import load_settings
from router.errors import RecordsUnavailable
from router.spool.commits import STALLED_S
from router.spool.directory import SpoolDirectory
from router.spool.frame_buffer import BUFFER_BYTES
from router.spool.frames import AUDIT, MAGIC, USAGE, segment_name
from router.spool.reader import SpoolReader
from router.spool.writer import UNSYNCED_BYTES, SpoolWriter
from tests.fakes.spool_io import Fault, FaultyIO, MemoryDisk, error
from tests.fakes.spool_parties import (
    SPOOL,
    Agent,
    Worker,
    fresh,
    is_ready,
    new_disk,
    open_writer,
    record,
)

FRAME_BYTES = 12 + len(record(0))


@pytest.fixture
def disk() -> MemoryDisk:
    return new_disk()


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def io(disk: MemoryDisk) -> FaultyIO:
    return FaultyIO(disk)


def failing(*names: str, number: int = errno.EIO, times: int = 1 << 30) -> Callable[..., Any]:
    """Let steps of these names fail, so many times."""
    left = [times]

    def plan(_step: int, name: str) -> Fault | None:
        if name not in names or not left[0]:
            return None
        left[0] -= 1
        return Fault(error(number))

    return plan


def delivered(disk: MemoryDisk) -> list[int]:
    """What an agent finds; the writers may live on."""
    found: list[int] = []
    agent = Agent(disk, found)
    agent.run()
    agent.reader.close()
    return found


def test_one_append_is_one_write(io: FaultyIO, clock: FrozenClock) -> None:
    """Usage record and audit event of a call are there together or not at all."""
    writer = open_writer(io, clock)
    before = len(io.steps)
    writer.append([(USAGE, record(1)), (AUDIT, record(2))])
    assert io.steps[before:] == ["write"]


def test_checking_costs_no_step(io: FaultyIO, clock: FrozenClock) -> None:
    """Every call asks before it is forwarded."""
    writer = open_writer(io, clock)
    before = len(io.steps)
    writer.check()
    assert is_ready(writer)
    assert len(io.steps) == before


def test_fast_mode_syncs_with_the_next_tick(io: FaultyIO, clock: FrozenClock) -> None:
    """An append does not wait for the disk; the sync beside it does."""
    writer = open_writer(io, clock)
    writer.append([(USAGE, record(1))])
    assert writer.status().unsynced_bytes > 0
    writer.tick()
    assert writer.status().unsynced_bytes == 0
    assert io.steps[-1] == "sync"


def test_durable_mode_returns_when_it_is_on_the_disk(io: FaultyIO, clock: FrozenClock) -> None:
    """Requirement P2: whatever an append took survives a power failure right after it."""
    writer = open_writer(io, clock, mode="durable")
    writer.append([(USAGE, record(1))])
    assert io.steps[-1] == "sync"
    assert writer.status().unsynced_bytes == 0


def test_an_idle_writer_takes_no_steps(io: FaultyIO, clock: FrozenClock) -> None:
    """Quiet hours cost no writes and no syncs."""
    writer = open_writer(io, clock)
    writer.tick()
    before = len(io.steps)
    for _ in range(10):
        clock.advance(1.0)
        writer.tick()
    assert len(io.steps) == before


def test_ids_sort_by_birth_and_differ(disk: MemoryDisk, clock: FrozenClock) -> None:
    """Two workers of the same moment have logs of their own, and the older one comes first."""
    old, twin = open_writer(disk, clock).writer_id, open_writer(disk, clock).writer_id
    clock.advance(0.002)
    young = open_writer(disk, clock).writer_id
    assert old != twin
    assert max(old, twin) < young
    listed = [info.writer_id for info in SpoolReader(SPOOL, disk).writers()]
    assert listed == sorted([old, twin, young])


# --- segments ---------------------------------------------------------------------------------


def test_segments_are_numbered_without_a_gap(disk: MemoryDisk, clock: FrozenClock) -> None:
    """So a hole means that somebody removed a file."""
    worker = Worker(disk, clock)
    worker.work(0, 40)
    [info] = SpoolReader(SPOOL, disk).writers()
    assert info.segments == tuple(range(1, len(info.segments) + 1))
    assert len(info.segments) > 4


def test_a_full_segment_gives_back_the_room_it_did_not_need(
    disk: MemoryDisk, clock: FrozenClock
) -> None:
    """What is set aside for calls in flight is set aside once, not for every old segment."""
    worker = Worker(disk, clock)
    worker.work(0, 40)
    worker.tick()
    numbered = {path.name: file for path, file in disk.files() if path.suffix == ".seg"}
    last = max(numbered)
    assert all(file.room_end == 0 for name, file in numbered.items() if name != last)
    assert numbered[last].room_end >= len(numbered[last].data) + 512


def test_closing_leaves_a_dead_writer_without_drafts(disk: MemoryDisk, clock: FrozenClock) -> None:
    """An orderly end is like any other for the agent, with nothing torn and nothing unsynced."""
    worker = Worker(disk, clock)
    worker.append(1)
    worker.writer.close()
    assert [path.suffix for path, _ in disk.files()] == ["", ".seg"]
    disk.lose_power("synced", names=False)
    assert delivered(disk) == [1]
    assert disk.list_dir(SPOOL) == []


def test_a_closed_writer_refuses(disk: MemoryDisk, clock: FrozenClock) -> None:
    """A record after the end is refused, not kept in a memory that goes away."""
    writer = open_writer(disk, clock)
    writer.close()
    with pytest.raises(RecordsUnavailable) as refused:
        writer.append([(USAGE, record(1))])
    assert refused.value.reason == "closed"
    assert not is_ready(writer)
    writer.buffer([(USAGE, record(1))])
    assert writer.status().lost_frames == 1


def test_a_payload_over_the_limit_is_the_callers_mistake(
    disk: MemoryDisk, clock: FrozenClock
) -> None:
    """It is no trouble of the disk, and takes nothing with it."""
    writer = open_writer(disk, clock)
    with pytest.raises(ValueError, match="at most"):
        writer.append([(USAGE, record(1)), (USAGE, bytes(1 << 21))])
    assert is_ready(writer)
    assert delivered(disk) == []


# --- refusals -----------------------------------------------------------------------------------


def test_a_refusal_is_a_503_worth_repeating() -> None:
    """Clients are told to come back in a second, and nothing about disks."""
    refusal = RecordsUnavailable("disk_full")
    face = error_spec_of(refusal)
    assert (face.status, face.code, face.retryable) == (503, "RECORDS_UNAVAILABLE", True)
    assert (face.openai_type, face.openai_code) == ("server_error", "records_unavailable")
    assert (face.outcome, retry_after_s(refusal)) == ("rejected", 1)
    assert "disk" not in refusal.message


def test_a_full_disk_refuses_calls_before_it_refuses_records(
    disk: MemoryDisk, clock: FrozenClock
) -> None:
    """Requirement P3: room was set aside, so calls that have passed the check are recorded."""
    worker = Worker(disk, clock, segment_bytes=1 << 20, reserve_bytes=4096)
    disk.capacity = disk.used()
    passed = 0
    while is_ready(worker.writer):
        assert worker.append(passed)
        worker.tick()
        passed += 1
    with pytest.raises(RecordsUnavailable) as refused:
        worker.writer.check()
    assert refused.value.reason == "disk_full"
    late = range(passed, passed + 4096 // (FRAME_BYTES + 90))
    assert all(worker.append(number) for number in late)
    disk.capacity = None
    assert delivered(disk) == [*range(passed), *late]


def test_calls_are_served_again_when_there_is_space_again(
    disk: MemoryDisk, clock: FrozenClock
) -> None:
    """Requirement P3: within 2 s of space coming back, also after records were refused."""
    worker = Worker(disk, clock, reserve_bytes=1024)
    disk.capacity = disk.used()
    number = 0
    while worker.append(number):
        number += 1
    assert not is_ready(worker.writer)
    worker.tick()
    assert not is_ready(worker.writer)
    disk.capacity = None
    worker.tick(0.3)
    assert is_ready(worker.writer)
    assert worker.append(number + 1)
    assert delivered(disk) == worker.taken


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "disk_full"),
        (errno.EDQUOT, "disk_full"),
        (errno.EIO, "disk_error"),
        (errno.EROFS, "disk_error"),
    ],
)
def test_a_failing_write_goes_to_another_segment_and_then_refuses(
    io: FaultyIO, disk: MemoryDisk, clock: FrozenClock, number: int, reason: str
) -> None:
    """One bad segment costs nothing; when the next one fails too, the record is refused."""
    worker = Worker(io, clock)
    io.plan = failing("write", number=number, times=1)
    assert worker.append(1)
    assert worker.writer.status().write_errors == 1
    io.plan = failing("write", "open", number=number)
    assert not worker.append(2)
    assert not worker.append(3)
    with pytest.raises(RecordsUnavailable) as refused:
        worker.writer.check()
    assert refused.value.reason == reason
    io.plan = None
    worker.tick()
    assert worker.append(4)
    assert delivered(disk) == [1, 4]


def test_a_write_cut_short_leaves_no_half_frame(io: FaultyIO, clock: FrozenClock) -> None:
    """Whole frames stay where they are, the rest is in the next segment, and nothing is damaged."""
    disk = io.inner
    assert isinstance(disk, MemoryDisk)
    worker = Worker(io, clock)
    io.plan = lambda _step, name: Fault(error(errno.EIO), "torn") if name == "write" else None
    io.plan = _once(io.plan)
    assert worker.append(1, 2, 3, 4)
    # A reader may have gone past the frames that were whole at the moment of the failure.
    contents = {path.name: bytes(file.data) for path, file in disk.files()}
    first = contents[segment_name(1)]
    assert first.count(MAGIC) == 1 + 1
    assert first.endswith(record(1))
    agent = Agent(disk, [])
    agent.run()
    assert agent.delivered == [1, 2, 3, 4]
    assert agent.reader.damage.bytes == 0


def _once(plan: Callable[[int, str], Fault | None]) -> Callable[[int, str], Fault | None]:
    done: list[Fault] = []

    def planned(step: int, name: str) -> Fault | None:
        fault = None if done else plan(step, name)
        if fault is not None:
            done.append(fault)
        return fault

    return planned


def test_a_writer_starts_on_a_disk_that_refuses_everything(
    io: FaultyIO, disk: MemoryDisk, clock: FrozenClock
) -> None:
    """Requirement D6: it is there, not ready, and becomes ready without a restart."""
    everything = ("make_dir", "open", "write", "sync", "sync_dir", "rename", "allocate")
    io.plan = failing(*everything, number=errno.EROFS)
    worker = Worker(io, clock)
    assert not worker.append(1)
    worker.tick()
    assert not is_ready(worker.writer)
    io.plan = None
    worker.tick()
    assert worker.append(2)
    assert delivered(disk) == [2]


def test_recovery_is_tried_no_more_than_five_times_a_second(
    io: FaultyIO, clock: FrozenClock
) -> None:
    """A disk in trouble is not kept busy by asking whether it is."""
    io.plan = failing("open", number=errno.ENOSPC)
    writer = open_writer(io, clock)
    before = io.steps.count("open")
    for _ in range(100):
        clock.advance(0.01)
        writer.tick()
    assert 4 <= io.steps.count("open") - before <= 5


def test_one_line_is_logged_for_each_change(
    io: FaultyIO, clock: FrozenClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Requirement D3: an outage is two lines, not one for each refused call."""
    caplog.set_level(logging.INFO, "router.spool")
    worker = Worker(io, clock)
    io.plan = failing("write", "open", "allocate", number=errno.ENOSPC)
    for number in range(20):
        worker.append(number)
        worker.tick()
    io.plan = None
    worker.tick()
    worker.tick()
    events = [(line.levelname, line.reason) for line in caplog.records]  # type: ignore[attr-defined]
    assert events == [("ERROR", "disk_full"), ("WARNING", "disk_full")]


def test_a_file_system_that_cannot_set_room_aside_serves_without(
    io: FaultyIO, disk: MemoryDisk, clock: FrozenClock
) -> None:
    """The room is a help, not a condition."""
    io.plan = failing("allocate", number=errno.EOPNOTSUPP)
    worker = Worker(io, clock)
    worker.work(0, 20)
    assert worker.taken == list(range(20))
    assert delivered(disk) == worker.taken


# --- failed syncs -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "durable"])
def test_one_failed_sync_refuses_nothing(
    io: FaultyIO, disk: MemoryDisk, clock: FrozenClock, mode: str
) -> None:
    """What the lost pages held is written and synced once more, elsewhere."""
    worker = Worker(io, clock, mode=mode)
    io.plan = _once(lambda _step, name: Fault(error(errno.EIO), "torn") if name == "sync" else None)
    assert worker.append(1, 2)
    worker.tick()
    assert is_ready(worker.writer)
    assert worker.writer.status().sync_errors == 1
    disk.lose_power("synced", names=False)
    assert fresh(delivered(disk)) == [1, 2]


def test_each_failed_sync_is_a_first_one_after_a_success(
    io: FaultyIO, disk: MemoryDisk, clock: FrozenClock
) -> None:
    """A disk that fails now and then is no disk that fails."""
    worker = Worker(io, clock)
    for number in range(3):
        io.plan = failing("sync", times=1)
        assert worker.append(number)
        worker.tick(0.01)
        assert is_ready(worker.writer)
    assert worker.writer.status().sync_errors == 3
    assert fresh(delivered(disk)) == [0, 1, 2]


def test_what_recovery_saved_is_durable_at_once(
    io: FaultyIO, disk: MemoryDisk, clock: FrozenClock
) -> None:
    """After two failed syncs the frames are in memory only, and then in a synced new segment."""
    worker = Worker(io, clock)
    worker.append(1, 2)
    io.plan = failing("sync", times=2)
    worker.tick()
    assert not is_ready(worker.writer)
    worker.tick()
    assert is_ready(worker.writer)
    assert worker.writer.status().unsynced_bytes == 0
    disk.lose_power("synced", names=False)
    assert fresh(delivered(disk)) == [1, 2]


def test_failing_syncs_refuse_until_one_succeeds(
    io: FaultyIO, disk: MemoryDisk, clock: FrozenClock
) -> None:
    """``durable`` raises for what it could not sync, and delivers it all the same if it can."""
    worker = Worker(io, clock, mode="durable")
    io.plan = failing("sync")
    assert not worker.append(1)
    assert not worker.append(2)
    io.plan = None
    worker.tick()
    assert worker.append(3)
    assert set(delivered(disk)) == {1, 3}


def test_no_segment_is_left_behind_for_each_failed_try(
    io: FaultyIO, disk: MemoryDisk, clock: FrozenClock
) -> None:
    """An outage of the disk does not fill it with copies."""
    worker = Worker(io, clock)
    worker.append(1)
    io.plan = failing("sync")
    for _ in range(100):
        worker.tick()
    io.plan = None
    worker.tick()
    assert worker.append(2)
    [info] = SpoolReader(SPOOL, disk).writers()
    assert len(info.segments) <= 3
    assert fresh(delivered(disk)) == [1, 2]


def test_a_disk_that_hangs_refuses_calls_after_two_seconds(clock: FrozenClock) -> None:
    """Requirement P2: what a power failure could take is bounded also when a sync does not end."""

    class Hanging(MemoryDisk):
        readiness: list[bool]

        def sync(self, fd: int) -> None:
            super().sync(fd)
            for _ in range(3 if self.readiness is not None else 0):
                clock.advance(STALLED_S / 2)
                self.readiness.append(is_ready(writer))

    Hanging.readiness = None  # type: ignore[assignment]
    disk = Hanging()
    writer = open_writer(disk, clock)
    disk.readiness = []
    writer.append([(USAGE, record(1))])
    writer.tick()
    assert disk.readiness == [True, True, False]
    assert is_ready(writer)


def test_a_busy_loop_is_no_slow_disk(disk: MemoryDisk, clock: FrozenClock) -> None:
    """P14: bursts of aborted calls kept the loop from looking at syncs that had ended in time."""
    busy_s, readiness = 0.0, []

    def offload(work: Callable[[], Any]) -> Any:
        clock.advance(busy_s)
        result = work()
        clock.advance(busy_s)
        if busy_s:
            readiness.append(is_ready(writer))
        return result

    writer = open_writer(disk, clock, offload=offload)
    busy_s = 3 * STALLED_S
    writer.append([(USAGE, record(1))])
    clock.advance(busy_s)
    assert is_ready(writer)
    writer.tick()
    assert readiness
    assert all(readiness)


def test_unsynced_records_are_bounded_in_memory(io: FaultyIO, clock: FrozenClock) -> None:
    """A sync that takes long lets no more than so many bytes pile up before calls are refused."""
    writer = open_writer(io, clock, max_bytes=1 << 30, segment_bytes=1 << 30)
    grown: list[str | None] = []

    def grow(_step: int, name: str) -> None:
        if name == "sync" and not grown:
            for _ in range(UNSYNCED_BYTES // (1 << 20) + 1):
                writer.append([(USAGE, bytes(1 << 20))])
            grown.append("once")

    io.plan = grow
    writer.append([(USAGE, record(1))])
    writer.tick()
    assert writer.status().refusal == "disk_slow"
    writer.tick()
    assert is_ready(writer)


# --- the size of the spool ----------------------------------------------------------------------


def test_a_full_spool_refuses_calls_and_then_records(disk: MemoryDisk, clock: FrozenClock) -> None:
    """The bound holds for all writers together, with room for calls in flight."""
    first = Worker(disk, clock, max_bytes=8_000, reserve_bytes=512)
    second = Worker(disk, clock, max_bytes=8_000, reserve_bytes=512)
    number = 0
    while is_ready(first.writer):
        assert first.append(number)
        first.tick(1.0)
        number += 1
    second.tick(1.0)
    with pytest.raises(RecordsUnavailable) as refused:
        second.writer.check()
    assert refused.value.reason == "spool_full"
    late = 0
    while second.append(1000 + late):
        late += 1
    assert late >= 512 * 2 // (FRAME_BYTES + 90) - 1
    assert sum(len(file.data) for path, file in disk.files() if path.suffix == ".seg") <= 8_000


def test_a_full_spool_serves_again_when_the_agent_has_shipped(
    disk: MemoryDisk, clock: FrozenClock
) -> None:
    """Requirement P3: within 2 s, nobody has to restart anything."""
    worker = Worker(disk, clock, max_bytes=8_000)
    number = 0
    while is_ready(worker.writer):
        worker.append(number)
        worker.tick(1.0)
        number += 1
    assert delivered(disk) == worker.taken
    worker.tick(0.3)
    assert is_ready(worker.writer)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("limit_mib", [1, 8, 64])
def test_what_is_shipped_frees_room(clock: FrozenClock, limit_mib: int, workers: int) -> None:
    """P3: with 8 MiB, 7 MiB shipped and 0 behind, calls used to be refused until a restart: all of
    it was in segments that were not full."""
    variables = {"ROUTER_SPOOL_MAX_BYTES": f"{limit_mib << 20}", "WEB_CONCURRENCY": f"{workers}"}
    settings, disk = load_settings(variables), new_disk()
    sizes = {"max_bytes": settings.spool_max_bytes, "segment_bytes": settings.spool_segment_bytes}
    writers = [open_writer(disk, clock, reserve_bytes=2 << 20, **sizes) for _ in range(workers)]
    payload, appended = bytes(limit_mib << 12), 0
    for _ in range(3):  # away and back
        while all(map(is_ready, writers)):
            for writer in writers:
                writer.append([(USAGE, payload)])
                appended += 1
            clock.advance(0.3)
            for writer in writers:
                writer.tick()
        assert ship_all(disk) > 0
        clock.advance(0.3)
        for writer in writers:
            writer.tick()
        ship_all(disk)
        assert SpoolDirectory(SPOOL, disk).total_bytes() <= settings.spool_max_bytes // 4
        clock.advance(0.3)
        for writer in writers:
            writer.tick()
            writer.check()
    assert appended * len(payload) > 2 * settings.spool_max_bytes


def ship_all(disk: MemoryDisk) -> int:
    """Remove whatever is closed, as an agent does that is behind by nothing; how many segments."""
    reader = SpoolReader(SPOOL, disk)
    removed = 0
    for info in reader.writers():
        for number in info.segments[:-1]:
            reader.remove_segment(info.writer_id, number)
            removed += 1
    return removed


def test_a_segment_that_stands_in_the_way_is_closed(disk: MemoryDisk, clock: FrozenClock) -> None:
    """P3: also one that is far from full, on a disk that is smaller than it."""
    disk.capacity = disk.used() + (1 << 20)
    writer = open_writer(
        disk, clock, max_bytes=1 << 40, segment_bytes=1 << 20, reserve_bytes=1 << 16
    )
    for _ in range(3):
        while is_ready(writer):
            writer.append([(USAGE, bytes(1 << 12))])
            clock.advance(0.3)
            writer.tick()
        assert writer.status().refusal == "disk_full"
        for _ in range(2):
            clock.advance(0.3)
            writer.tick()
            ship_all(disk)
        clock.advance(0.3)
        writer.tick()
        writer.check()


def test_a_segment_is_closed_after_a_minute(disk: MemoryDisk, clock: FrozenClock) -> None:
    """What was shipped long ago does not stay, unless it is too little to matter to anybody."""
    for size, closed in ((1 << 17, 2), (1 << 16, 1)):
        sizes = {"segment_bytes": 1 << 20, "max_bytes": 1 << 30, "reserve_bytes": 1 << 20}
        writer = open_writer(disk, clock, **sizes)
        writer.append([(USAGE, bytes(size))])
        for seconds, expected in ((1.0, 1), (58.0, 1), (2.0, closed), (600.0, closed)):
            clock.advance(seconds)
            writer.tick()
            assert len(SpoolDirectory(SPOOL, disk).segments(writer.writer_id)) == expected


def test_a_segment_of_calls_that_run_is_not_closed_for_them(
    disk: MemoryDisk, clock: FrozenClock
) -> None:
    """Frames that every next segment begins with free nothing: no file after file while full."""
    writer = open_writer(disk, clock, max_bytes=8_000, segment_bytes=1_000)
    writer.carried = lambda: [(USAGE, bytes(500))] * 4
    while is_ready(writer):
        writer.append([(USAGE, bytes(100))])
        clock.advance(0.3)
        writer.tick()
    before = SpoolDirectory(SPOOL, disk).segments(writer.writer_id)
    for _ in range(10):
        clock.advance(0.3)
        writer.tick()
    after = SpoolDirectory(SPOOL, disk).segments(writer.writer_id)
    assert len(after) <= len(before) + 1


# --- held records -------------------------------------------------------------------------------


def test_what_is_held_is_written_first_when_the_disk_recovers(
    io: FaultyIO, disk: MemoryDisk, clock: FrozenClock
) -> None:
    """The record of a reply that has begun is not lost because its append was refused."""
    worker = Worker(io, clock)
    worker.append(1)
    io.plan = failing("write", "open", number=errno.ENOSPC)
    for number in (2, 3):
        assert not worker.append(number)
        worker.writer.buffer([(USAGE, record(number))])
    assert worker.writer.status().buffered_bytes > 0
    io.plan = None
    worker.tick()
    assert worker.append(4)
    assert worker.writer.status().buffered_bytes == 0
    assert delivered(disk) == [1, 2, 3, 4]


def test_what_is_held_by_a_working_writer_goes_with_the_next_write(
    disk: MemoryDisk, clock: FrozenClock
) -> None:
    """Order is kept whether the next append or the next tick comes first."""
    worker = Worker(disk, clock)
    worker.writer.buffer([(USAGE, record(1))])
    worker.append(2)
    worker.writer.buffer([(USAGE, record(3))])
    worker.tick()
    assert delivered(disk) == [1, 2, 3]


def test_held_records_are_bounded_and_counted_when_lost(io: FaultyIO, clock: FrozenClock) -> None:
    """Memory does not grow without end, and nothing disappears without a number."""
    io.plan = failing("open", "make_dir")
    writer = open_writer(io, clock)
    payload = bytes(1 << 20)
    for _ in range(20):
        writer.buffer([(USAGE, payload), (AUDIT, b"{}")])
    status = writer.status()
    assert status.buffered_bytes <= BUFFER_BYTES
    assert status.lost_frames == 2 * (20 - status.buffered_bytes // (1 << 20))
    writer.close()
    assert writer.status().lost_frames == 40


def test_closing_writes_what_is_held(io: FaultyIO, disk: MemoryDisk, clock: FrozenClock) -> None:
    """Requirement U2: what can still go to the disk at the end goes there."""
    worker = Worker(io, clock)
    io.plan = failing("write", "open")
    assert not worker.append(1)
    worker.writer.buffer([(USAGE, record(1))])
    io.plan = None
    worker.writer.close()
    assert delivered(disk) == [1]


def test_closing_syncs_what_it_writes_at_the_last_moment(
    disk: MemoryDisk, clock: FrozenClock
) -> None:
    """Also into a spool that others have filled: there is no later."""
    other = Worker(disk, clock, max_bytes=1 << 20)
    other.work(0, 40)
    clock.advance(1.0)
    worker = Worker(disk, clock, max_bytes=2_000)
    assert not worker.append(40)
    worker.writer.buffer([(USAGE, record(40))])
    worker.tick()
    assert worker.writer.status().buffered_bytes > 0
    worker.writer.close()
    assert worker.writer.status().lost_frames == 0
    disk.lose_power("synced", names=False)
    assert delivered(disk) == list(range(41))


# --- files that somebody removes ------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["directory", "lock"])
def test_a_writer_whose_files_are_removed_begins_anew(
    disk: MemoryDisk, clock: FrozenClock, victim: str
) -> None:
    """A reader could not see, or would finish, what is written there; so it is left."""
    worker = Worker(disk, clock)
    worker.append(1)
    worker.tick(1.0)
    home = SPOOL / worker.writer.writer_id
    if victim == "lock":
        disk.unlink(home / "lock")
    else:
        for name in disk.list_dir(home):
            disk.unlink(home / name)
        disk.remove_dir(home)
    worker.append(2)
    worker.tick(1.0)
    worker.tick(0.3)
    assert worker.append(3)
    found = delivered(disk)
    assert found[-1] == 3
    assert found == ([1, 2, 3] if victim == "lock" else [3])
    assert disk.list_dir(SPOOL) == [f"{worker.writer.writer_id}-1"]


def test_a_spool_whose_size_is_unknown_is_told_once(
    disk: MemoryDisk, clock: FrozenClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time that it begins, and not at every look: the last size counts meanwhile."""
    worker = Worker(disk, clock)
    worker.append(1)
    listing = disk.list_dir
    before = worker.writer.status().total_bytes
    for _ in range(2):
        disk.list_dir = _refuse  # type: ignore[method-assign]
        for _ in range(3):
            worker.tick(1.5)
        disk.list_dir = listing  # type: ignore[method-assign]
        worker.tick(1.5)
    told = [one for one in caplog.records if one.message == "size of the spool unknown"]
    assert len(told) == 2
    assert worker.writer.status().total_bytes == before
    assert is_ready(worker.writer)


def _refuse(_path: Path) -> list[str]:
    raise error(errno.EACCES)


# --- with its own thread --------------------------------------------------------------------------


def test_the_background_syncs_within_100_ms(tmp_path: Any) -> None:
    """Requirement P2: in ``fast`` mode no record waits longer for its sync."""
    syncs = threading.Event()

    class Telling(FaultyIO):
        def sync(self, fd: int) -> None:
            super().sync(fd)
            syncs.set()

    from router.spool.disk import SpoolIO

    writer = SpoolWriter(tmp_path / "spool", max_bytes=1 << 30, io=Telling(SpoolIO()))
    try:
        syncs.clear()
        writer.append([(USAGE, record(1))])
        began_s = time.monotonic()
        assert syncs.wait(5.0)
        assert time.monotonic() - began_s < 0.1
    finally:
        writer.close()


@pytest.mark.parametrize("mode", ["fast", "durable"])
def test_many_threads_append_to_one_log(tmp_path: Any, mode: Any) -> None:
    """Each takes turns, each keeps its order, nothing is lost over rotations and shared syncs."""
    writer = SpoolWriter(tmp_path / "spool", max_bytes=1 << 30, mode=mode, segment_bytes=4096)
    count = 60

    def append(thread: int) -> None:
        for number in range(count):
            writer.append([(USAGE, record(1000 * thread + number))])

    threads = [threading.Thread(target=append, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    found: list[int] = []
    Agent(_os_io(), found, tmp_path / "spool", tmp_path / "checkpoint.json").run(5000)
    assert sorted(found) == [1000 * thread + n for thread in range(8) for n in range(count)]
    for thread in range(8):
        own = [number for number in found if number // 1000 == thread]
        assert own == sorted(own)
    assert os.listdir(tmp_path / "spool") == []


def _os_io() -> Any:
    from router.spool.disk import SpoolIO

    return SpoolIO()


def test_the_background_survives_its_own_mistakes(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it nothing is synced, so a defect in it must not end it."""
    failures = threading.Event()

    class Broken(FaultyIO):
        def sync(self, fd: int) -> None:
            if armed.is_set() and not failures.is_set():
                failures.set()
                raise RuntimeError("a defect")
            super().sync(fd)

    armed = threading.Event()
    writer = SpoolWriter(tmp_path / "spool", max_bytes=1 << 30, mode="durable", io=Broken(_os_io()))
    armed.set()
    writer.append([(USAGE, record(1))])
    assert failures.is_set()
    assert "spool maintenance failed" in caplog.text
    assert is_ready(writer)
    writer.close()


def test_segment_files_are_where_the_documentation_says(tmp_path: Any) -> None:
    """Operators find them by these names."""
    writer = SpoolWriter(tmp_path / "spool", max_bytes=1 << 30, background=False)
    home = tmp_path / "spool" / writer.writer_id
    assert sorted(os.listdir(home)) == [segment_name(1), "000000000002.new", "lock"]
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    writer.close()
