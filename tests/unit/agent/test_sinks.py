"""The store sink and the log sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from router.agent.sinks import LogSink, Refused, SinkUnavailable, StoreSink
from router.clock import FrozenClock
from router.spool.frames import USAGE
from router.store.failures import StoreUnavailable, UnstorableRecord
from tests.fakes.shipping import decoded, decoded_frames, event, events, ids

DAY_S = 86_400.0


@dataclass(frozen=True)
class Written:
    conflicts: tuple[str, ...] = ()


@dataclass
class FakeStore:
    """All or nothing, like the real one; what it cannot store is known by its id."""

    unstorable: set[str] = field(default_factory=set)
    conflicts: tuple[str, ...] = ()
    down: bool = False
    stored: list[str] = field(default_factory=list)
    tries: int = 0
    migrations: int = 0
    closed_writers: list[str] = field(default_factory=list)
    pruned_before_s: list[float] = field(default_factory=list)
    closed: bool = False

    def migrate(self) -> None:
        self._answer()
        self.migrations += 1

    def write(
        self, usage: Sequence[Mapping[str, Any]], audit: Sequence[Mapping[str, Any]] = ()
    ) -> Written:
        self._answer()
        assert self.migrations == 1
        self.tries += 1
        taken = []
        for kind, name, records in (("usage", "record_id", usage), ("audit", "event_id", audit)):
            for index, record in enumerate(records):
                if record[name] in self.unstorable:
                    raise UnstorableRecord(kind, index, "no")  # type: ignore[arg-type]
                taken.append(record[name])
        self.stored += taken
        return Written(self.conflicts)

    def close_writers(self, writer_ids: Sequence[str]) -> None:
        self._answer()
        self.closed_writers += writer_ids

    def prune(self, before_s: float) -> int:
        self._answer()
        self.pruned_before_s.append(before_s)
        return 0

    def close(self) -> None:
        self.closed = True

    def _answer(self) -> None:
        if self.down:
            raise StoreUnavailable("the record store: no route to host")


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock(wall_s=100 * DAY_S)


@pytest.fixture
def sink(store: FakeStore, clock: FrozenClock) -> StoreSink:
    return StoreSink(store, audit_retention_days=90, clock=clock)


# --- the store ------------------------------------------------------------------------------


def test_a_batch_is_one_transaction(sink: StoreSink, store: FakeStore) -> None:
    """Usage records and audit events together, into tables that are there."""
    batch = [*decoded_frames(range(3)), *events(range(2))]
    assert sink.deliver(batch) == []
    assert sink.deliver([]) == []
    assert store.stored == ids(batch)
    assert (store.tries, store.migrations) == (1, 1)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 20])
def test_what_cannot_be_stored_is_refused_and_the_rest_stored(
    sink: StoreSink, store: FakeStore, count: int
) -> None:
    """P5: however many there are and wherever they stand."""
    batch = [*decoded_frames(range(20)), *events(range(20))]
    bad = {name for name in ids(batch)[:: 40 // count] if name} if count else set()
    store.unstorable = bad
    refused = sink.deliver(batch)
    assert sorted(batch[one.batch_index].id or "" for one in refused) == sorted(bad)
    assert {one.reason for one in refused} <= {"no"}
    assert sorted(store.stored) == sorted({name for name in ids(batch) if name} - bad)


def test_one_bad_record_costs_one_more_try(sink: StoreSink, store: FakeStore) -> None:
    """P5: its neighbours are there within a second."""
    store.unstorable = {"r1234"}
    assert sink.deliver(decoded_frames(range(2000))) == [Refused(1234, "no")]
    assert store.tries == 2


def test_many_bad_records_cost_no_try_over_everything_each(
    sink: StoreSink, store: FakeStore
) -> None:
    """A worker that writes nothing but nonsense does not stop the books."""
    store.unstorable = {f"r{number}" for number in range(512)}
    assert len(sink.deliver(decoded_frames(range(1024)))) == 512
    assert store.tries < 3 * 512


def test_what_no_sink_can_take_does_not_reach_the_store(sink: StoreSink, store: FakeStore) -> None:
    """It is refused with the fault that it came with."""
    good = decoded_frames([1])[0]
    assert sink.deliver([good, decoded(b"{", USAGE)]) == [
        Refused(1, "not JSON: unexpected end of data")
    ]
    assert store.stored == ["r1"]


def test_a_store_that_is_away_makes_the_sink_unavailable(
    sink: StoreSink, store: FakeStore, clock: FrozenClock
) -> None:
    """Whatever it is asked, and for the store's own reason."""
    clock.advance(3600)
    store.down = True
    for question in (lambda: sink.deliver(decoded_frames([1])), sink.maintain):
        with pytest.raises(SinkUnavailable, match="no route to host"):
            question()
    with pytest.raises(SinkUnavailable):
        sink.finish_writer("w")
    store.down = False
    sink.maintain()
    sink.finish_writer("w")
    assert sink.deliver(decoded_frames([1])) == []
    assert store.closed_writers == ["w"]


def test_two_records_of_one_id_are_reported(
    sink: StoreSink, store: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one stays; that there was another is nothing to be silent about."""
    store.conflicts = ("r1",)
    assert sink.deliver(decoded_frames([1])) == []
    assert [(r.message, vars(r)["record_id"]) for r in caplog.records] == [
        ("another record has this id", "r1")
    ]


def test_tables_are_there_before_the_first_record(sink: StoreSink, store: FakeStore) -> None:
    """Questions to a new router get an empty answer, not an error."""
    sink.maintain()
    assert (store.migrations, store.stored) == (1, [])


def test_old_audit_events_are_pruned_a_little_at_a_time(
    sink: StoreSink, store: FakeStore, clock: FrozenClock
) -> None:
    """Every minute, those that are older than the retention time."""
    sink.maintain()
    assert store.pruned_before_s == []
    for _ in range(180):
        clock.advance(1.0)
        sink.maintain()
    assert store.pruned_before_s == [10 * DAY_S + 60, 10 * DAY_S + 120, 10 * DAY_S + 180]


def test_a_retention_of_0_days_keeps_events_for_ever(store: FakeStore, clock: FrozenClock) -> None:
    """Nothing is pruned."""
    sink = StoreSink(store, audit_retention_days=0, clock=clock)
    clock.advance(DAY_S)
    sink.maintain()
    assert store.pruned_before_s == []


def test_closing_the_sink_closes_the_store(sink: StoreSink, store: FakeStore) -> None:
    """A SQLite file may then be written by the next agent."""
    sink.close()
    assert store.closed


# --- the log --------------------------------------------------------------------------------


class Lines:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.room = 1000
        self.closed = False

    def write(self, found: Sequence[bytes]) -> int:
        self.events += found[: self.room]
        return max(0, len(found) - self.room)

    def close(self) -> None:
        self.closed = True


def test_the_log_gets_each_audit_event_once() -> None:
    """As it was written. Usage records are not for the log; faults are the store's to refuse."""
    log = Lines()
    sink = LogSink(log)
    assert sink.deliver([*decoded_frames([1]), *events([2, 3]), decoded(b"{")]) == []
    assert sink.deliver(decoded_frames([4])) == []
    sink.maintain()
    sink.finish_writer("w")
    sink.close()
    assert log.events == [event(2), event(3)]
    assert log.closed


def test_what_the_log_did_not_take_is_counted_and_told_when_it_takes_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Q2: the checkpoint moves on, for the store has the events; the line waits for a reader."""
    log = Lines()
    sink = LogSink(log)
    log.room = 1
    assert sink.deliver(events([1, 2, 3])) == []
    assert sink.deliver(events([4, 5])) == []
    assert (sink.dropped, caplog.records) == (3, [])
    log.room = 1000
    sink.deliver(events([6]))
    sink.deliver(events([7]))
    (line,) = caplog.records
    assert line.message == "audit events are missing in the log"
    assert line.__dict__["events"] == 3
    assert sink.dropped == 3


@pytest.mark.parametrize(
    ("directory", "chain"),
    [
        ("01a20b13a811-4141-23c9ccd0", "01a20b13a811-4141-23c9ccd0"),
        ("01a20b13a811-4141-23c9ccd0-1", "01a20b13a811-4141-23c9ccd0"),
        ("01a20b13a811-4141-23c9ccd0-12", "01a20b13a811-4141-23c9ccd0"),
        ("w-1", "w-1"),
    ],
)
def test_a_writer_that_moved_is_signed_off_under_its_first_name(
    sink: StoreSink, store: FakeStore, directory: str, chain: str
) -> None:
    """K9: its chain goes on in the directory that it begins when the first one is removed."""
    sink.finish_writer(directory)
    assert store.closed_writers == [chain]
