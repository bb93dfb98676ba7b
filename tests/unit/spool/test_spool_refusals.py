"""What a refused append says of itself: whether something of it may be on the disk."""

from __future__ import annotations

import errno

import pytest

from router.clock import FrozenClock
from router.errors import RecordsUnavailable
from router.spool.frames import AUDIT, USAGE
from tests.fakes.spool_io import Fault, FaultyIO, error
from tests.fakes.spool_parties import new_disk, open_writer, record

FRAMES = [(USAGE, record(1)), (AUDIT, record(2))]


@pytest.fixture
def io() -> FaultyIO:
    return FaultyIO(new_disk())


def test_a_disk_that_takes_nothing(io: FaultyIO) -> None:
    """The write that finds it out, and those that are not even tried after it."""
    writer = open_writer(io, FrozenClock())
    io.plan = lambda _step, name: Fault(error(errno.EIO)) if name in ("write", "open") else None
    for _ in range(2):
        with pytest.raises(RecordsUnavailable) as refused:
            writer.append(FRAMES)
        assert refused.value.nothing_written


def test_a_write_cut_short(io: FaultyIO) -> None:
    """P2: the first frame is whole, so it will be delivered, whatever is appended later."""
    writer = open_writer(io, FrozenClock())
    io.plan = lambda _step, name: Fault(error(errno.EIO), "torn") if name == "write" else None
    with pytest.raises(RecordsUnavailable) as refused:
        writer.append([(USAGE, record(number)) for number in range(4)])
    assert not refused.value.nothing_written


def test_a_spool_that_is_full(io: FaultyIO) -> None:
    """Nothing is tried."""
    writer = open_writer(io, FrozenClock(), max_bytes=1)
    with pytest.raises(RecordsUnavailable) as refused:
        writer.append(FRAMES)
    assert (refused.value.reason, refused.value.nothing_written) == ("spool_full", True)


def test_a_sync_that_fails(io: FaultyIO) -> None:
    """P2: written it is, only not safe."""
    writer = open_writer(io, FrozenClock(), mode="durable")
    io.plan = lambda _step, name: Fault(error(errno.EIO)) if name in ("sync", "open") else None
    with pytest.raises(RecordsUnavailable) as refused:
        writer.append(FRAMES)
    assert not refused.value.nothing_written
