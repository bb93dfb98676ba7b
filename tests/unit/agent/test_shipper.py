"""One sink's way through the spool: nothing is passed over, nothing waits for the wrong thing."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from router.agent.dead_letters import DeadLetters
from router.agent.reading.merge import LISTED_EVERY_S, MergedFrames
from router.agent.shipper import (
    LONGEST_DELAY_S,
    MAX_BATCH_BYTES,
    MAX_RECORDS,
    POLL_S,
    REMIND_EVERY_S,
    SAVE_EVERY_S,
    Shipper,
)
from router.agent.sinks import SinkUnavailable
from router.clock import FrozenClock
from router.spool.checkpoints import Checkpoints
from router.spool.frames import USAGE, Position
from router.spool.reader import SpoolReader
from tests.fakes.shipping import SPOOL, ListSink, append, open_spool, usage
from tests.fakes.spool_io import MemoryDisk

CHECKPOINT = Path("/data/checkpoints/list")


class CountedCheckpoints(Checkpoints):
    """Counts, and fails while it is told to."""

    saves = 0
    failing = False

    def save(self, positions: Mapping[str, Position]) -> None:
        if self.failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.saves += 1
        super().save(positions)


class Desk:
    """A writer, a sink, and the shipper between them."""

    def __init__(self, tmp_path: Path) -> None:
        self.disk = MemoryDisk()
        self.clock = FrozenClock(wall_s=1000.0)
        self.writer = open_spool(self.disk, self.clock)
        self.reader = SpoolReader(SPOOL, self.disk)
        self.sink = ListSink()
        self.checkpoints = CountedCheckpoints(CHECKPOINT, self.disk)
        self.dead_letters = tmp_path / "dead-letter" / "list.jsonl"
        self.dead_letter_file = DeadLetters(tmp_path, "list", self.clock)
        self.stop = threading.Event()
        self.shipper = self.restart()

    def restart(self) -> Shipper:
        """An agent that starts from what the last one has saved."""
        return Shipper(
            self.sink,
            MergedFrames(self.reader, self.checkpoints.load(), clock=self.clock),
            self.checkpoints,
            self.dead_letter_file,
            stop=self.stop,
            clock=self.clock,
            vary=lambda _low, _high: 1.0,
        )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def fail(shipper: Shipper) -> float:
    """A step that fails; how long the shipper wants to wait."""
    with pytest.raises(SinkUnavailable) as failure:
        shipper.step()
    return shipper.fail(str(failure.value))


# --- delivery -------------------------------------------------------------------------------


def test_everything_is_delivered_in_order(desk: Desk) -> None:
    """A step says whether there was something to do."""
    append(desk.writer, 1, 2, 3)
    assert desk.shipper.step()
    assert not desk.shipper.step()
    assert desk.sink.got == ["r1", "r2", "r3"]
    assert desk.shipper.progress.delivered == 3
    assert desk.shipper.progress.last_delivery_s == 1000.0


def test_a_batch_that_failed_comes_again_as_it_was(desk: Desk) -> None:
    """U3, P4: nothing is dropped, and nothing newer goes before it."""
    append(desk.writer, 1, 2)
    desk.sink.down = True
    for _ in range(3):
        fail(desk.shipper)
    append(desk.writer, 3)
    desk.sink.down = False
    assert desk.shipper.step()
    assert desk.shipper.step()
    assert desk.sink.batches == [["r1", "r2"], ["r3"]]


def test_a_failed_batch_is_not_in_the_checkpoint(desk: Desk) -> None:
    """U3: who starts again while the sink is unavailable loses nothing."""
    append(desk.writer, 1)
    desk.shipper.step()
    append(desk.writer, 2)
    desk.sink.down = True
    fail(desk.shipper)
    desk.shipper.save()
    desk.sink.down = False
    assert desk.restart().step()
    assert desk.sink.got == ["r1", "r2"]


def test_the_wait_between_tries_doubles_up_to_a_limit(desk: Desk) -> None:
    """A sink that comes back is noticed within two seconds."""
    append(desk.writer, 1)
    desk.sink.down = True
    waits = [fail(desk.shipper) for _ in range(8)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    assert max(waits) == LONGEST_DELAY_S
    desk.sink.down = False
    desk.shipper.step()
    append(desk.writer, 2)
    desk.sink.down = True
    assert fail(desk.shipper) == 0.1


def test_an_outage_is_logged_when_it_begins_now_and_then_and_when_it_ends(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Q1: log lines are bounded per minute."""
    append(desk.writer, 1)
    desk.sink.down = True
    with caplog.at_level(logging.INFO):
        for _ in range(60):
            fail(desk.shipper)
            desk.clock.advance(2.0)
        assert [record.message for record in caplog.records] == ["sink unavailable"] * 2
        assert desk.shipper.progress.failing == "it is down"
        assert desk.shipper.progress.failing_since_s == 1000.0
        assert REMIND_EVERY_S == 60.0
        desk.sink.down = False
        desk.shipper.step()
    assert caplog.records[-1].message == "sink available"
    assert vars(caplog.records[-1])["unavailable_s"] == 120.0
    assert desk.shipper.progress.failing is None


def test_records_that_come_in_an_outage_stay_in_the_spool(desk: Desk) -> None:
    """Q6: what is held in memory is one batch and one reading ahead, however long it takes."""
    payload = usage(1, filler="x" * 100_000)
    for _ in range(9):
        desk.writer.append([(USAGE, payload)])
    desk.sink.down = True
    fail(desk.shipper)
    held = sum(len(one.payload) for one in desk.shipper._pending or ())
    assert MAX_BATCH_BYTES <= held < MAX_BATCH_BYTES + len(payload)


# --- poison ---------------------------------------------------------------------------------


def test_a_refused_record_goes_to_the_dead_letters_and_is_passed(desk: Desk) -> None:
    """P5: its neighbours are delivered by the same step, and it does not come again."""
    append(desk.writer, 1, 2, 3)
    desk.sink.poison = {"r2"}
    desk.shipper.step()
    desk.shipper.save()
    assert desk.sink.got == ["r1", "r3"]
    assert '"id":"r2"' in desk.dead_letters.read_text()
    assert (desk.shipper.progress.delivered, desk.shipper.progress.dead_lettered) == (2, 1)
    assert not desk.restart().step()


def test_a_refused_record_is_not_passed_before_it_is_in_the_file(
    desk: Desk, tmp_path: Path
) -> None:
    """The file is tried until it is written; the batch, which used to, does not come again."""
    (tmp_path / "dead-letter").write_text("in the way")
    append(desk.writer, 1, 2)
    desk.sink.poison = {"r2"}
    fail(desk.shipper)
    (tmp_path / "dead-letter").unlink()
    desk.shipper.step()
    assert desk.sink.got == ["r1"]
    assert '"id":"r2"' in desk.dead_letters.read_text()
    assert (desk.shipper.progress.delivered, desk.shipper.progress.dead_lettered) == (1, 1)


# --- checkpoints ----------------------------------------------------------------------------


def test_checkpoints_are_saved_every_now_and_then(desk: Desk) -> None:
    """Not once a batch: each is two syncs."""
    for number in range(10):
        append(desk.writer, number)
        desk.shipper.step()
        desk.clock.advance(0.3 * SAVE_EVERY_S)
    assert desk.checkpoints.saves == 3


def test_much_that_was_delivered_is_saved_at_once(desk: Desk) -> None:
    """What has to come again after a crash is bounded in bytes too."""
    payload = usage(1, filler="x" * 250_000)
    desk.shipper.step()
    before = desk.checkpoints.saves
    for _ in range(3):
        desk.writer.append([(USAGE, payload)])
    desk.shipper.step()
    assert desk.checkpoints.saves == before
    for _ in range(2):
        desk.writer.append([(USAGE, payload)])
    desk.shipper.step()
    assert desk.checkpoints.saves == before + 1


def test_nothing_is_saved_when_nothing_moved(desk: Desk) -> None:
    """An idle agent does not wear out the disk."""
    append(desk.writer, 1)
    for _ in range(5):
        desk.shipper.step()
        desk.clock.advance(1.0)
    assert desk.checkpoints.saves == 1


def test_a_disk_that_takes_no_checkpoint_does_not_stop_deliveries(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """P3: it is saved once there is room; until then nothing is removed on the strength of it."""
    desk.checkpoints.failing = True
    for number in range(3):
        append(desk.writer, number)
        desk.shipper.step()
        desk.clock.advance(1.0)
    assert desk.sink.got == ["r0", "r1", "r2"]
    assert desk.shipper.saved == {}
    assert [record.message for record in caplog.records] == ["checkpoint not saved"]
    desk.checkpoints.failing = False
    desk.shipper.step()
    assert desk.shipper.saved == desk.checkpoints.load() != {}


def test_lost_checkpoints_repeat_and_lose_nothing(desk: Desk) -> None:
    """Must show 3: the sinks know what they have by its ids."""
    append(desk.writer, 1, 2)
    desk.shipper.step()
    desk.shipper.save()
    for suffix in (".0", ".1"):
        desk.disk.unlink(CHECKPOINT.with_suffix(suffix))
    desk.restart().step()
    assert desk.sink.got == ["r1", "r2", "r1", "r2"]


# --- the end --------------------------------------------------------------------------------


def test_a_sink_is_told_when_a_writer_is_finished(desk: Desk) -> None:
    """Once, after its last record, and before the checkpoint passes its end."""
    append(desk.writer, 1)
    desk.shipper.step()
    assert desk.sink.finished == []
    desk.writer.close()
    for _ in range(2):
        desk.clock.advance(LISTED_EVERY_S)
        desk.shipper.step()
    assert desk.sink.finished == [desk.writer.writer_id]
    desk.shipper.save()
    assert desk.shipper.saved[desk.writer.writer_id].segment == 2


def test_a_writer_is_not_finished_while_the_sink_cannot_hear_it(desk: Desk) -> None:
    """Its last segment stays, so that the sink is told in the end."""
    append(desk.writer, 1)
    desk.shipper.step()
    desk.writer.close()
    desk.clock.advance(LISTED_EVERY_S)
    desk.sink.down = True
    fail(desk.shipper)
    desk.shipper.save()
    assert desk.shipper.saved[desk.writer.writer_id].segment == 1
    desk.sink.down = False
    again = desk.restart()
    again.step()
    assert desk.sink.finished == [desk.writer.writer_id]
    assert desk.sink.got == ["r1"]


def test_a_run_ends_when_it_is_told_and_saves_where_it_was(desk: Desk) -> None:
    """The next agent goes on there."""
    append(desk.writer, 1)
    desk.shipper.step()
    desk.stop.set()
    append(desk.writer, 2)
    desk.shipper.run()
    assert desk.sink.got == ["r1"]
    assert desk.checkpoints.load() == desk.shipper.saved != {}


def test_a_fault_in_the_sink_does_not_end_the_run(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent that stops without dying would be worse than one that dies."""

    class Once(threading.Event):
        """Lets the sink heal at the first wait, and ends the run at the second."""

        waits = 0

        def wait(self, timeout: float | None = None) -> bool:
            desk.sink.crash = None
            self.waits += 1
            if self.waits == 2:
                self.set()
            return False

    desk.stop = Once()
    desk.sink.crash = ZeroDivisionError("a fault of ours")
    append(desk.writer, 1)
    desk.restart().run()
    assert desk.sink.got == ["r1"]
    assert vars(caplog.records[0])["reason"] == "ZeroDivisionError: a fault of ours"
    assert caplog.records[0].exc_info is not None


def test_upkeep_happens_between_deliveries(desk: Desk) -> None:
    """Also when there is nothing to deliver."""
    desk.shipper.step()
    append(desk.writer, 1)
    desk.shipper.step()
    assert desk.sink.maintained == 2


class Watched(threading.Event):
    """Notes for how long the shipper waits; after so many waits it is told to stop."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waited_s: list[float] = []
        self._left = waits

    def wait(self, timeout: float | None = None) -> bool:
        self.waited_s.append(timeout or 0.0)
        self._left -= 1
        if not self._left:
            self.set()
        return True


@pytest.mark.parametrize(("records", "deliveries"), [(3, 1), (MAX_RECORDS + 1, 2)])
def test_records_gather_before_they_are_delivered(
    desk: Desk, records: int, deliveries: int
) -> None:
    """Q1: a delivery costs the same syncs for one record as for many; a full one is not alone."""
    desk.writer.append([(USAGE, usage(number)) for number in range(records)])
    desk.stop = Watched(1)
    desk.restart().run()
    assert len(desk.sink.batches) == deliveries
    assert desk.stop.waited_s == [POLL_S]
