"""Those who use a spool, as small as they can be: a worker that appends, an agent that delivers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.clock import FrozenClock
from router.errors import RecordsUnavailable
from router.spool.checkpoints import Checkpoints
from router.spool.disk import REPLACE, TAKE_LOCK, SpoolIO
from router.spool.frames import (
    LOCK_NAME,
    USAGE,
    Position,
    encode_frame,
    header_frame,
    segment_name,
)
from router.spool.quarantine import Quarantined
from router.spool.reader import Missing, SpoolReader
from router.spool.writer import SpoolWriter
from tests.fakes.spool_io import File, MemoryDisk

SPOOL = Path("/data/spool")
CHECKPOINTS = Path("/data/checkpoints/sink")


def new_disk(disk: MemoryDisk | None = None) -> MemoryDisk:
    """A disk on which the data directory has been for long."""
    disk = disk or MemoryDisk()
    disk.make_dir(SPOOL.parent)
    disk.sync_dir(SPOOL.parent.parent)
    return disk


def record(number: int) -> bytes:
    """A payload that tells its number, of varying length."""
    return b'{"record":%05d,"filler":"%b"}' % (number, b"x" * (number * 37 % 90))


def number_of(payload: bytes) -> int:
    """The number in a payload; raises when a single byte of it is not as it was."""
    number = int(payload[10:15])
    assert payload == record(number)
    return number


def fresh(numbers: Iterable[int]) -> list[int]:
    """The numbers in order of their first appearance."""
    return list(dict.fromkeys(numbers))


def open_writer(
    io: SpoolIO, clock: FrozenClock, spool: Path = SPOOL, **changes: Any
) -> SpoolWriter:
    """A writer with small segments and without a thread."""
    sizes = {"max_bytes": 1 << 20, "segment_bytes": 600, "reserve_bytes": 512}
    return SpoolWriter(spool, io=io, clock=clock, background=False, **{**sizes, **changes})


class Worker:
    """Appends numbered records and remembers which of them were taken."""

    def __init__(
        self, io: SpoolIO, clock: FrozenClock, spool: Path = SPOOL, **changes: Any
    ) -> None:
        self.offered: list[int] = []
        self.taken: list[int] = []
        self.synced: list[int] = []
        self.holds = False
        """Hold what is refused, as for a call whose reply has begun; then it counts as taken."""
        self.clock = clock
        self.writer = open_writer(io, clock, spool, **changes)

    def append(self, *numbers: int) -> bool:
        """One append of several records; False when it was refused."""
        self.offered += numbers
        frames = [(USAGE, record(number)) for number in numbers]
        try:
            self.writer.append(frames)
        except RecordsUnavailable:
            if not self.holds:
                return False
            self.writer.buffer(frames)
        self.taken += numbers
        return True

    def tick(self, seconds: float = 0.25) -> None:
        """Let time pass and the writer's background work happen."""
        self.clock.advance(seconds)
        self.writer.tick()
        if self.writer.status().unsynced_bytes == 0:
            self.synced = list(self.taken)

    def work(self, start: int, count: int) -> None:
        """Append ``count`` records, one to three at a time, with time passing in between."""
        number = start
        while number < start + count:
            size = 1 + number % 3
            self.append(*range(number, min(number + size, start + count)))
            self.tick()
            number += size


class Agent:
    """Delivers to a list, saves its checkpoint after each batch, removes what is delivered."""

    def __init__(
        self,
        io: SpoolIO,
        delivered: list[int],
        spool: Path = SPOOL,
        checkpoints: Path = CHECKPOINTS,
    ) -> None:
        self.delivered = delivered
        self.reader = SpoolReader(spool, io)
        self._checkpoints = Checkpoints(checkpoints, io)
        self._positions = self._checkpoints.load()

    def run(self, max_bytes: int = 600) -> None:
        """Deliver all that is there now."""
        for writer_id, _, segments, _ in self.reader.writers():
            self._finish(self._positions.get(writer_id), writer_id, max_bytes)
            for number in segments:
                if number < self._positions[writer_id].segment:
                    self.reader.remove_segment(writer_id, number)

    def _finish(self, position: Position | None, writer_id: str, max_bytes: int) -> None:
        position = position or self.reader.first_position(writer_id)
        while True:
            batch = self.reader.read(position, max_bytes)
            self.delivered += [number_of(frame.payload) for frame in batch.frames]
            self._positions[writer_id] = batch.position_after
            if batch.position_after == position:
                return
            self._checkpoints.save(self._positions)
            position = batch.position_after


def is_ready(writer: SpoolWriter) -> bool:
    """Tell whether a call that begins now could be recorded."""
    try:
        writer.check()
    except RecordsUnavailable:
        return False
    return True


def put_segment(
    disk: MemoryDisk, content: bytes, number: int = 1, writer_id: str = "w", *, alive: bool = False
) -> File:
    """Lay down a segment of a dead writer, or of one that holds its lock."""
    directory = SPOOL / writer_id
    disk.make_dir(directory)
    lock = disk.open(directory / LOCK_NAME, TAKE_LOCK)
    if not alive or not disk.lock(lock):
        disk.close(lock)
    fd = disk.open(directory / segment_name(number), REPLACE)
    disk.write(fd, content)
    disk.close(fd)
    return dict(disk.files())[directory / segment_name(number)]


def segment(*numbers: int, writer_id: str = "w", number: int = 1) -> bytes:
    """The bytes of a segment with these records."""
    frames = [encode_frame(USAGE, record(found)) for found in numbers]
    return b"".join([header_frame(writer_id, number), *frames])


@dataclass
class Read:
    """All that a reader gave of one writer."""

    position: Position
    numbers: list[int] = field(default_factory=list)
    skipped: list[Quarantined] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


def read_all(reader: SpoolReader, start: Position | None = None, max_bytes: int = 300) -> Read:
    """Read until nothing moves."""
    found = Read(start or reader.first_position("w"))
    while True:
        batch = reader.read(found.position, max_bytes)
        found.numbers += [number_of(frame.payload) for frame in batch.frames]
        found.skipped += batch.skipped
        found.missing += [batch.missing] if batch.missing else []
        if batch.position_after == found.position:
            return found
        assert batch.position_after > found.position
        found.position = batch.position_after
