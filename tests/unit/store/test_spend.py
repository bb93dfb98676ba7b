"""What a lost budget window is rebuilt from: the record store, and what is under way there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from router.breaker import Unavailable
from router.clock import Clock
from router.config.settings import Settings
from router.exports.comparison import STORE
from router.limits.budgets.periods import TOTAL, Period
from router.limits.budgets.rebuilding import SumRecords
from router.limits.budgets.windows import (
    Amounts,
    LostWindow,
    Past,
    Reservation,
    ReservedWindow,
    WindowSpec,
)
from router.limits.leases.unsettled_leases import UnsettledLeases
from router.records.audit_chain import AuditChain, encode_event
from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.frames import AUDIT, USAGE
from router.spool.reader import SpoolReader
from router.spool.writer import SpoolWriter
from router.store import spool_tail
from router.store.queries import spend_query
from router.store.query_pool import Queries
from router.store.record_store import RecordStore
from router.store.spend import sum_records_of
from tests.unit.records import samples

DAY_MS = 86_400_000
START_MS = int(samples.START_S) * 1000 // DAY_MS * DAY_MS
PERIOD = Period(START_MS, START_MS + DAY_MS)
USD = WindowSpec("spend", "usd", "daily", 1000)
TOKENS = WindowSpec("tokens", "tokens", "daily", 1000)
REQUESTS = WindowSpec("calls", "requests", "daily", 1000)
OF_KEY = WindowSpec("mine", "usd", "daily", 1000, scope="key", subject="key_1")


def lost(window: WindowSpec = USD, *orphans: str) -> LostWindow:
    return LostWindow(window, PERIOD, 1, orphans)


class Records:
    """A data directory with a spool and a record store, and the answer under test."""

    def __init__(self, directory: Path) -> None:
        self.settings = Settings(data_dir=directory)
        self.spool = SpoolWriter(self.settings.spool_dir, max_bytes=64 << 20)
        self._reading = RecordStore(self.settings.store_url, read_only=True)
        self.queries = Queries(self._reading, timeout_s=5.0)
        self.ask: SumRecords = sum_records_of(self.queries, self.settings)

    def past(self, lost: LostWindow, organization_id: str = "acme") -> Past:
        found = self.ask(organization_id, lost)
        assert isinstance(found, Past)
        return found

    def sum(self, organization_id: str, lost: LostWindow) -> int:
        return self.past(lost, organization_id).settled

    def spooled(self, **fields: Any) -> dict[str, Any]:
        record = samples.usage(**fields)
        self.spool.append([(USAGE, orjson.dumps(record))])
        return record

    def stored(self, *records: dict[str, Any]) -> None:
        with RecordStore(self.settings.store_url) as store:
            store.migrate()
            store.write([*records] or [samples.usage(organization_id="other")])

    def acknowledge(self) -> None:
        """All that is spooled now has arrived in the store."""
        reader = SpoolReader(self.settings.spool_dir, observe=True)
        ends = {info.writer_id: reader.end_of(info.writer_id) for info in reader.writers()}
        path = checkpoint_path(self.settings.data_dir, STORE)
        path.parent.mkdir(parents=True, exist_ok=True)
        Checkpoints(path).save(ends)

    def close(self) -> None:
        self.queries.close()
        self.spool.close()


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("window", "expected"), [(USD, 70), (TOKENS, 2 * 11), (REQUESTS, 2), (OF_KEY, 30)]
)
def test_store_and_spool_are_added(records: Records, window: WindowSpec, expected: int) -> None:
    """In the unit of the window, of its organization and its key only, whatever has arrived."""
    figures = {"tokens_input": 10, "tokens_output": 1}
    arrived = records.spooled(cost_nanos=30, **figures)
    records.stored(arrived)
    records.acknowledge()
    records.spooled(cost_nanos=40, api_key_id="key_2", **figures)
    records.spooled(cost_nanos=500, organization_id="other", **figures)
    assert records.sum("acme", lost(window)) == expected


def test_a_record_on_its_way_counts_once(records: Records) -> None:
    """It is in the store already, and its acknowledgement is not written yet."""
    records.stored(records.spooled(cost_nanos=7), records.spooled(cost_nanos=20))
    assert records.sum("acme", lost()) == 27


@pytest.mark.parametrize("is_stored", [False, True])
def test_orphans_are_left_out(records: Records, is_stored: bool) -> None:
    """P6, P7: what was settled since the window was lost is added by the ledger itself."""
    orphan = records.spooled(cost_nanos=5)
    other = records.spooled(cost_nanos=60)
    if is_stored:
        records.stored(orphan, other)
        records.acknowledge()
    assert records.sum("acme", lost(USD, orphan["record_id"])) == 60


def test_the_period_begins_inside_and_ends_outside(records: Records) -> None:
    """B13: a call at the boundary is in exactly one period, stored or not."""
    start_s = START_MS / 1000
    for spooled in (True, False):
        for second, cost in ((start_s - 1, 1), (start_s, 20), (start_s + 86_400, 300)):
            record = records.spooled(timestamp=second, cost_nanos=cost)
            if not spooled:
                records.stored(record)
    assert records.sum("acme", lost()) == 40


def test_calls_that_no_backend_served_use_up_no_quota(records: Records) -> None:
    """Refusals and replays are recorded too; the store and the spool agree on them."""
    unserved = [
        {"outcome": "rejected", "backend_id": None},
        {"outcome": "upstream_error"},
        {"backend_id": None},
    ]
    for fields in unserved:
        records.spooled(**fields)
        records.stored(samples.usage(**fields))
    records.spooled(outcome="client_aborted")
    assert records.sum("acme", lost(REQUESTS)) == 1


def test_a_call_without_a_price_costs_nothing_here(records: Records) -> None:
    """An unknown cost cannot be added up."""
    records.spooled(cost_nanos=None)
    assert records.sum("acme", lost()) == 0


def test_a_new_router_needs_no_store(records: Records) -> None:
    """D6: the first call does not wait for the agent to have made the tables."""
    assert records.sum("acme", lost()) == 0
    records.spooled(cost_nanos=3)
    assert records.sum("acme", lost()) == 3


@pytest.mark.parametrize("ships", [False, True], ids=["made", "made, and shipped to"])
def test_a_store_that_is_made_meanwhile_is_asked(
    records: Records, monkeypatch: pytest.MonkeyPatch, ships: bool
) -> None:
    """The first calls of a new router used to get 503 when its agent began in the same moment."""
    own = records.spooled(cost_nanos=3)
    ask = RecordStore.settled_late
    asked = []

    def first_question(store: RecordStore, *args: Any, **options: Any) -> Any:
        asked.append(options)
        try:
            return ask(store, *args, **options)
        finally:
            if len(asked) == 1:
                records.stored(own)
                if ships:
                    records.acknowledge()

    monkeypatch.setattr(RecordStore, "settled_late", first_question)
    assert records.sum("acme", lost()) == 3
    assert len(asked) == 2


def test_who_is_no_router_needs_a_store(records: Records) -> None:
    """B3: a budget service that looks in the wrong place must not begin every window at 0."""
    ask = sum_records_of(records.queries, records.settings, may_be_new=False)
    with pytest.raises(Unavailable, match="record store"):
        ask("acme", lost())
    records.stored()
    assert ask("acme", lost()) == Past(0)


def test_a_store_that_was_there_is_needed(records: Records) -> None:
    """P6: what is in it cannot be known, so nobody may go on as if it were nothing."""
    records.spooled(cost_nanos=3)
    records.acknowledge()
    with pytest.raises(Unavailable, match="record store"):
        records.sum("acme", lost())


def test_too_much_under_way_is_no_answer(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take too long to read, and without it the sum is too small."""
    records.stored()
    monkeypatch.setattr(spool_tail, "MOST_UNSTORED_BYTES", 100)
    records.spooled()
    with pytest.raises(Unavailable, match="too far behind"):
        records.sum("acme", lost())


def test_what_is_no_record_counts_nothing(records: Records) -> None:
    """It is a dead letter for the store as well."""
    records.stored()
    for payload in (b"[]", b"{", b'{"organization_id":"acme","timestamp":7}'):
        records.spool.append([(USAGE, payload)])
    assert records.sum("acme", lost()) == 0


def test_what_may_be_settled_later_is_named(records: Records) -> None:
    """P6: its record is in the spool or in the store, and its settlement may still be on its way.
    Those whose records the store had acknowledged used to be booked twice."""
    stored, own = records.spooled(cost_nanos=3), records.spooled(cost_nanos=20)
    records.stored(stored)
    orphan = records.spooled(cost_nanos=5)
    unsettled = frozenset({stored["record_id"], own["record_id"]})
    assert records.past(lost(USD, orphan["record_id"])) == Past(23, unsettled=unsettled)
    records.stored(own, orphan)
    records.acknowledge()
    assert records.past(lost(USD, orphan["record_id"])) == Past(23, unsettled=unsettled)


def test_what_waits_on_this_host_is_named_however_old_it_is(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6: after a long outage of Redis, calls from before it are not the newest ones any more."""
    monkeypatch.setattr(spend_query, "_NEWEST", 1)
    waits, other, done, newest = (records.spooled(cost_nanos=cost) for cost in (1, 20, 300, 4000))
    records.stored(waits, done, newest)
    records.acknowledge()
    records.stored(other)
    leases = UnsettledLeases(records.settings.unsettled_dir, 900.0)
    for record in (waits, other):
        held = ReservedWindow(USD, PERIOD, 5)
        lease = Reservation(record["record_id"], record["organization_id"], (held,), START_MS, "e")
        leases.put(lease, Amounts(1, 0))
    absent = Reservation("no record", "acme", (ReservedWindow(USD, PERIOD, 5),), START_MS, "e")
    leases.put(absent, Amounts(1, 0))
    found = records.past(lost())
    named = {record["record_id"] for record in (waits, other)}
    assert found.settled == 4321
    # "other" is the newest one, and waits as well.
    assert found.unsettled == named
    leases.close()


# --- corrections by hand ----------------------------------------------------------------------

WEEK_S = 7 * 86_400


class Trail:
    """Corrections in the audit trail, in the store or in the spool."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.chain = AuditChain("w-1")

    def correct(
        self, before: int, after: int, *, spooled: bool = False, at_s: float = 0.0, **context: Any
    ) -> None:
        about = {"budget": "spend", "unit": "usd", "period": "daily", "api_key_id": None}
        event = samples.linked(
            self.chain,
            action="BUDGET_ADJUSTED" if after else "LIMIT_RESET",
            entity_type="budget",
            timestamp=START_MS / 1000 + at_s,
            context={**about, "correction_id": f"c{before}", **context},
            before={"settled": before},
            after={"settled": after},
        )
        if spooled:
            self.records.spool.append([(AUDIT, encode_event(event))])
            return
        key = samples.KEY
        with RecordStore(self.records.settings.store_url, audit_key=key) as store:
            store.migrate()
            store.write([], [event])


@pytest.fixture
def trail(records: Records) -> Trail:
    return Trail(records)


def test_a_correction_outlives_redis(records: Records, trail: Trail) -> None:
    """B10: adjusted by -0.5, then Redis was emptied: the correction was gone."""
    records.stored(samples.usage(cost_nanos=2_000_000_000))
    trail.correct(2_000_000_000, 1_500_000_000)
    assert records.past(lost()).settled == 1_500_000_000
    trail.correct(1_500_000_000, 0, spooled=True, at_s=5)
    trail.correct(7, 107, spooled=True, at_s=6)
    assert records.past(lost()).settled == 100


@pytest.mark.parametrize("spooled", [False, True])
@pytest.mark.parametrize(
    ("window", "context", "counts"),
    [
        (USD, {}, True),
        (USD, {"period": "monthly"}, True),
        (USD, {"budget": "spent"}, True),
        (USD, {"budget": "spent", "period": "monthly"}, False),
        (USD, {"budget": "other"}, False),
        (USD, {"unit": "tokens"}, False),
        (USD, {"api_key_id": "key_1"}, False),
        (USD, {"at_s": -1.0}, False),
        (USD, {"at_s": 86_400.0}, False),
        (OF_KEY, {"budget": "mine", "api_key_id": "key_1"}, True),
        (OF_KEY, {"budget": "mine", "api_key_id": "key_2"}, False),
    ],
    ids=str,
)
def test_whose_correction_it_is(
    records: Records,
    trail: Trail,
    window: WindowSpec,
    context: dict[str, Any],
    counts: bool,
    spooled: bool,
) -> None:
    """Of this owner, unit and period; a renamed or lengthened budget keeps what it was given."""
    records.stored()
    trail.correct(0, 40, spooled=spooled, **context)
    asked = replace(lost(window), other_names=frozenset({"other"}))
    assert records.past(asked).settled == (40 if counts else 0)


def test_a_correction_that_was_noted_twice_counts_once(records: Records, trail: Trail) -> None:
    """The trail has what was meant, then what was done; and both may be in the spool and stored."""
    records.stored()
    trail.correct(100, 150, correction_id="c")
    trail.correct(110, 155, correction_id="c", spooled=True, at_s=1)
    assert records.past(lost()).settled == 45


def test_an_id_that_was_forgotten_corrects_once_more(records: Records, trail: Trail) -> None:
    """It counts once within 7 days; a total lives longer than that."""
    records.stored()
    for at_s in (0, 1, WEEK_S + 1, WEEK_S + 2):
        trail.correct(100, 140, correction_id="c", at_s=at_s)
    total = LostWindow(WindowSpec("spend", "usd", "total", 1000), TOTAL, 1, ())
    assert records.past(total).settled == 80


def test_corrections_that_might_be_repeated_are_named(
    records: Records, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis has forgotten that they were made; after a week nobody may repeat them."""
    records.stored()
    monkeypatch.setattr(Clock, "now_s", lambda _: START_MS / 1000 + WEEK_S + 10)
    trail.correct(100, 140, correction_id="old", at_s=9)
    trail.correct(100, 140, correction_id="new", at_s=11, spooled=True)
    assert records.past(lost()).correction_ids == ("new",)


def test_settled_is_never_negative(records: Records, trail: Trail) -> None:
    """Records that another host has not shipped yet may be what was taken off."""
    records.stored()
    trail.correct(100, 40)
    assert records.past(lost()).settled == 0
