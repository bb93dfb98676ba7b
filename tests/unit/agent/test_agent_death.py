"""The agent dies at each single step that it asks of the disk; the next one finishes its work."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from router.accounting.checkpoints import Checkpoints
from router.accounting.spool_reader import SpoolReader
from router.agent.dead_letters import DeadLetters
from router.agent.housekeeping import remove_acknowledged
from router.agent.inflow import Inflow
from router.agent.shipper import Shipper
from router.clock import FrozenClock
from tests.fakes.shipping import SPOOL, ListSink, append, open_spool
from tests.fakes.spool_io import Died, Fault, FaultyIO, MemoryDisk, fail_at

RECORDS = 12
ROUNDS = 8


class Life:
    """An agent with two sinks, from its start to its death, on a disk that outlives it."""

    def __init__(self, io: FaultyIO, sinks: list[ListSink], clock: FrozenClock, letters: Path):
        self._clock = clock
        self._reader = SpoolReader(SPOOL, io)
        self._shippers = []
        for sink in sinks:
            checkpoints = Checkpoints(Path("/data/checkpoints") / sink.name, io)
            self._shippers.append(
                Shipper(
                    sink,
                    Inflow(self._reader, checkpoints.load(), clock=clock),
                    checkpoints,
                    DeadLetters(letters, sink.name),
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
    """A worker that was killed, and one that ended in order, each with several segments."""
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
    disk.lose_power("all", names=True)  # from here on all of it is as good as synced
    return disk, clock


def steps_of_a_whole_life(tmp_path: Path) -> list[str]:
    disk, clock = prepare()
    io = FaultyIO(disk)
    Life(io, [ListSink("a"), ListSink("b")], clock, tmp_path).work()
    return io.steps


def test_the_scene_has_all_kinds_of_steps(tmp_path: Path) -> None:
    """Otherwise the next test would show less than it says."""
    assert {"write", "sync", "sync_dir", "unlink", "remove_dir"} <= set(
        steps_of_a_whole_life(tmp_path)
    )


@pytest.mark.parametrize("when", ["before", "torn", "after"])
def test_wherever_the_agent_dies_every_record_arrives(tmp_path: Path, when: str) -> None:
    """Must show 2, P1: at both sinks, in order, twice by the same id only; the spool is empty."""
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
        left = [path for path, _ in disk.files() if path.is_relative_to(SPOOL)]
        assert left == [], f"step {step}"


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
