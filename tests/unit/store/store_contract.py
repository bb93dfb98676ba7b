"""What every database must do under the record store: one contract, run on each of them.

A module that tests a database subclasses :class:`StoreContract` and provides ``store_url``: a
database without any tables.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, Table, delete, func, insert, inspect, select, text, update

from router.exports.audit_export import export_lines
from router.exports.audit_verification import Verdict, verify_export
from router.records.audit_chain import AuditChain
from router.records.record_types import degraded_usage, encode_usage, parse_timestamp_us
from router.store.failures import (
    BadQuery,
    ResultTooLarge,
    StoreAbsent,
    StoreTimeout,
    StoreUnavailable,
    UnstorableRecord,
)
from router.store.queries.budget_queries import MOST_LEFT_OUT
from router.store.queries.record_queries import (
    HISTORY_BYTES,
    HISTORY_LENGTH,
    AuditPage,
    RequestHistory,
)
from router.store.queries.usage_totals import GROUPS, Spend
from router.store.record_store import RecordStore
from router.store.tables.rows import CLASS_COLUMNS, SERVED
from router.store.tables.sql_tables import (
    MIGRATIONS,
    _versions,
    audit,
    chain_tips,
    current_version,
    metadata,
    prune_points,
    usage_documents,
)
from tests.unit.records import samples
from tests.unit.records.samples import KEY, RECORD, START_S
from tests.unit.store import store_model

HUGE = 2**62
DAY_S = 86_400.0


def verdict(store: RecordStore, from_s: float | None = None, to_s: float | None = None) -> Verdict:
    """What a check says of the trail as it is in the store."""
    with store.audit_trail(from_s, to_s) as trail:
        return verify_export(export_lines(trail, KEY, START_S), KEY)


def behind_the_back(store: RecordStore, statement: Any) -> None:
    """Change the database as somebody would who can write it and has no key."""
    with store._database.writing() as connection:
        connection.execute(statement)


class StoreContract:
    """The tests."""

    @pytest.fixture
    def store_url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def store(self, store_url: str) -> Iterator[RecordStore]:
        with RecordStore(store_url, audit_key=KEY) as opened:
            opened.migrate()
            yield opened

    @pytest.fixture
    def reader(self, store_url: str, store: RecordStore) -> Iterator[RecordStore]:
        with RecordStore(store_url, read_only=True) as opened:
            yield opened

    @pytest.fixture
    def calls(self, store: RecordStore) -> list[dict[str, Any]]:
        """Calls of several organizations, stored."""
        records = list(samples.different_calls(7, 400))
        records.append(_degraded("lost-1", "acme"))
        store.write(records)
        return records

    # --- tables -----------------------------------------------------------------------------

    def test_a_database_without_tables_is_no_broken_one(self, store_url: str) -> None:
        """Who asks while an agent makes its tables hears that they are not there yet."""
        if store_url.startswith("sqlite:///"):
            path = Path(store_url.removeprefix("sqlite:///"))
            path.parent.mkdir()
            path.touch()
        with RecordStore(store_url, read_only=True) as reader:
            with pytest.raises(StoreAbsent):
                reader.count_usage()
            with pytest.raises(StoreAbsent):
                list(reader.read_records("audit"))
            assert reader.is_new()

    def test_migrating_again_changes_nothing(self, store: RecordStore) -> None:
        """A database that is up to date stays as it is."""
        store.write([samples.usage()])
        store.migrate()
        assert store.count_usage() == 1

    def test_a_database_of_a_newer_program_is_left_alone(self, store: RecordStore) -> None:
        """An older program refuses what it cannot know how to write."""
        behind_the_back(store, insert(_versions).values(version=len(MIGRATIONS) + 1))
        with pytest.raises(StoreUnavailable, match="this program knows"):
            store.migrate()

    def test_an_older_database_is_brought_up_to_date(
        self, store_url: str, store: RecordStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A newer program adds its step to what is there, once, and loses nothing."""
        store.write([samples.usage()], samples.chained("w-1", 1))
        store.close()
        _add_migration(monkeypatch, "CREATE TABLE later (number INTEGER)")
        with RecordStore(store_url, audit_key=KEY) as newer:
            for _ in range(2):
                newer.migrate()
            with newer._database.reading() as connection:
                assert current_version(connection) == len(MIGRATIONS) + 1
                assert connection.scalar(text("SELECT count(*) FROM later")) == 0
            assert newer.count_usage() == 1
            assert verdict(newer).ok

    def test_a_database_of_the_first_version_learns_the_classes(
        self, store_url: str, store: RecordStore
    ) -> None:
        """It had no columns for them; records of then count as plain input and output."""
        store.write([samples.usage(usage_classes={})])
        for name in CLASS_COLUMNS:
            behind_the_back(store, text(f"ALTER TABLE usage_records DROP COLUMN {name}"))
        behind_the_back(store, text("DELETE FROM schema_versions WHERE version > 1"))
        store.close()
        with RecordStore(store_url, audit_key=KEY) as newer:
            newer.migrate()
            newer.write(
                [samples.usage(usage_classes={"input": 3, "cache_write_1h": 5, "web_searches": 2})]
            )
            [row] = newer.usage("acme")
        assert (row.requests, row.tokens_cache_write_1h, row.web_searches) == (2, 5, 2)
        assert (row.tokens_input, row.tokens_output_reasoning) == (240, 0)

    def test_a_migration_that_fails_changes_nothing(
        self, store: RecordStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The steps are one transaction: an update that broke off can be begun again."""
        _add_migration(monkeypatch, "CREATE TABLE later (number INTEGER)", "NONSENSE")
        with pytest.raises(StoreUnavailable):
            store.migrate()
        with store._database.reading() as connection:
            assert current_version(connection) == len(MIGRATIONS)
            assert not inspect(connection).has_table("later")

    def test_tables_that_were_lost_are_made_again(self, store: RecordStore) -> None:
        """After an empty database was put in its place, the store goes on by itself."""
        store.write([samples.usage()])
        for table in (*metadata.tables, _versions.name):
            behind_the_back(store, text(f"DROP TABLE {table}"))
        behind_the_back(store, _drop_sequence(store))
        with pytest.raises(StoreUnavailable):
            store.write([samples.usage()])
        assert store.write([samples.usage()]).usage == 1
        assert store.count_usage() == 1

    def test_a_database_without_tables_is_unavailable(self, store_url: str) -> None:
        """Before the first migration, questions fail as they do while the database is away."""
        with RecordStore(store_url, audit_key=KEY) as store:
            with pytest.raises(StoreUnavailable):
                store.usage("acme")
            with pytest.raises(StoreUnavailable):
                store.write([samples.usage()])

    # --- writing ----------------------------------------------------------------------------

    def test_what_was_written_is_what_is_found(
        self, store: RecordStore, reader: RecordStore
    ) -> None:
        """The story of a request holds its record and its events, field for field."""
        record, events = samples.usage(), samples.chained("w-1", 3)
        store.write([record], events)
        assert reader.find_request("acme", "req-1") == RequestHistory(
            (record,), tuple(events[::-1])
        )

    def test_another_organization_finds_nothing(self, store: RecordStore) -> None:
        """A request id leads nowhere outside the organization that sent it."""
        store.write([samples.usage()], samples.chained("w-1", 1))
        assert store.find_request("beta", "req-1") is None
        assert store.list_audit("beta") == AuditPage((), None)
        assert store.usage("beta")[0].requests == 0

    def test_a_request_id_used_twice_is_two_records(self, store: RecordStore) -> None:
        """Both calls are told of, the newer one first."""
        old, new = samples.usage(), samples.usage(timestamp=START_S + 1)
        store.write([old, new])
        assert store.find_request("acme", "req-1") == RequestHistory((new, old), ())

    def test_a_story_that_is_cut_keeps_the_newest(self, store: RecordStore) -> None:
        """And says so, whichever of the two there are too many of."""
        records = [samples.usage(timestamp=START_S + n) for n in range(HISTORY_LENGTH + 1)]
        chain = AuditChain("w-1")
        events = [samples.linked(chain, timestamp=START_S + n) for n in range(HISTORY_LENGTH + 1)]
        store.write(records[1:])
        whole = store.find_request("acme", "req-1")
        assert whole == RequestHistory(tuple(records[:0:-1]), (), truncated=False)
        store.write(records[:1], events)
        cut = store.find_request("acme", "req-1")
        assert cut == RequestHistory(tuple(records[:0:-1]), tuple(events[:0:-1]), truncated=True)

    def test_a_story_holds_so_many_bytes(self, store: RecordStore) -> None:
        """One record however large it is, and of more of them those that fit."""
        large = {"text": "ü" * (HISTORY_BYTES // 4)}
        records = [samples.usage(timestamp=START_S + n, metadata=large) for n in range(3)]
        store.write(records)
        story = store.find_request("acme", "req-1")
        assert story == RequestHistory((records[2],), (), truncated=True)

    def test_delivering_again_changes_nothing(self, store: RecordStore) -> None:
        """Records are stored once however often they arrive (U5): the sums stay."""
        records, events = list(samples.different_calls(1, 50)), samples.chained("w-1", 20)
        first = store.write(records, events)
        before = store.usage(None)
        again = store.write(records + records[:5], events)
        assert (first.usage, first.audit, first.repeated) == (50, 20, 0)
        assert (again.usage, again.audit, again.repeated) == (0, 0, 75)
        assert again.conflicts == ()
        assert store.usage(None) == before
        assert verdict(store).ok

    def test_one_record_twice_in_a_batch_is_one(self, store: RecordStore) -> None:
        """A batch may repeat itself."""
        record, [event] = samples.usage(), samples.chained("w-1", 1)
        written = store.write([record, dict(record)], [event, dict(event)])
        assert (written.usage, written.audit, written.repeated) == (1, 1, 2)
        assert store.find_request("acme", "req-1") == RequestHistory((record,), (event,))

    def test_the_same_id_with_other_content_is_reported(self, store: RecordStore) -> None:
        """What was stored first stays; the id of what differs is handed back."""
        record, [event] = samples.usage(), samples.chained("w-1", 1)
        store.write([record], [event])
        written = store.write([{**record, "tokens_output": 1}], [{**event, "reason": "another"}])
        assert written.conflicts == (record["record_id"], event["event_id"])
        assert (written.usage, written.audit, written.repeated) == (0, 0, 0)
        assert store.find_request("acme", "req-1") == RequestHistory((record,), (event,))

    def test_new_known_and_conflicting_records_share_a_batch(self, store: RecordStore) -> None:
        """Each is told from the others wherever it stands, and the new ones are stored whole."""
        old, new = samples.usage(), samples.usage(request_id="req-2")
        [old_event, new_event] = samples.chained("w-1", 2)
        store.write([old], [old_event])
        written = store.write(
            [{**old, "status": 500}, new, old, dict(new), {**new, "status": 500}],
            [{**old_event, "reason": "x"}, new_event, old_event, {**new_event, "reason": "x"}],
        )
        assert (written.usage, written.audit, written.repeated) == (1, 1, 3)
        assert sorted(written.conflicts) == sorted(
            [old["record_id"], new["record_id"], old_event["event_id"], new_event["event_id"]]
        )
        assert store.find_request("acme", "req-2") == RequestHistory((new,), ())
        assert (store.count_usage(), _count(store, usage_documents)) == (2, 2)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"record_id": None}, "record_id"),
            ({"record_id": "r" * 1000}, "record_id"),
            ({"record_id": "a\0b"}, "record_id"),
            ({"metadata": {"number": 2**70}}, "Integer"),
            ({"record_id": ""}, "record_id"),
            ({"tokens_input": 2**63}, "tokens_input"),
            ({"tokens_input": "5"}, "tokens_input"),
            ({"timestamp": "yesterday"}, "timestamp"),
            ({"timestamp": 5}, "timestamp"),
            ({"model": ["a"]}, "model"),
            ({"latency_ms": -1}, "latency_ms"),
        ],
    )
    def test_a_record_that_cannot_be_stored_is_named(
        self, store: RecordStore, change: dict[str, Any], reason: str
    ) -> None:
        """A poison record (P5) is named by its index, and nothing of its batch is stored."""
        batch = [samples.usage(), {**samples.usage(), **change}, samples.usage()]
        with pytest.raises(UnstorableRecord) as raised:
            store.write(batch, samples.chained("w-1", 1))
        assert (raised.value.kind, raised.value.index) == ("usage", 1)
        assert reason in raised.value.reason
        assert store.count_usage() == 0
        assert store.list_audit(None).events == ()

    def test_an_event_outside_any_chain_is_named(self, store: RecordStore) -> None:
        """An audit event needs its place in a chain."""
        good, bad = samples.chained("w-1", 2)
        del bad["previous_hash"]
        with pytest.raises(UnstorableRecord, match="previous_hash") as raised:
            store.write([], [good, bad])
        assert (raised.value.kind, raised.value.index) == ("audit", 1)

    def test_a_record_that_the_database_refuses_is_named(self, store: RecordStore) -> None:
        """What only the database finds wrong is found by trying each record alone."""
        refused = {**samples.usage(), "status": 99}
        behind_the_back(store, check_constraint(store))
        with pytest.raises(UnstorableRecord) as raised:
            store.write([samples.usage(), samples.usage(), refused, samples.usage()])
        assert (raised.value.kind, raised.value.index) == ("usage", 2)
        assert store.count_usage() == 0

    def test_any_text_survives(self, store: RecordStore) -> None:
        """NUL, quotes, emoji: the record comes back as it was, and is found by its id."""
        request_id = "a\0b'\"%;\\ 🙂\u2028"
        record = samples.usage(request_id=request_id, metadata={"\0": "\0", "ü": "%s :x"})
        [event] = samples.chained("w-1", 1, request_id=request_id, reason="\0")
        store.write([record], [event])
        assert store.find_request("acme", request_id) == RequestHistory((record,), (event,))

    @pytest.mark.parametrize("letter", ["r", "ü", "🙂"])
    def test_long_texts_are_kept_apart(self, store: RecordStore, letter: str) -> None:
        """No text is too long for an index, and two that differ at the end stay two."""
        ids = [letter * 100_000 + end for end in "ab"]
        records = [samples.usage(request_id=one, model=one, api_key_id=one) for one in ids]
        chain = AuditChain("w-1")
        events = [
            samples.linked(chain, request_id=one, actor=one, entity_id=one, context={"model": one})
            for one in ids
        ]
        store.write(records, events)
        for one, record, event in zip(ids, records, events, strict=True):
            assert store.find_request("acme", one) == RequestHistory((record,), (event,))
            assert store.usage("acme", filters={"model": one})[0].requests == 1
            assert store.list_audit("acme", filters={"model": one}).events == (event,)
        assert len(store.usage("acme", group_by=["model"])) == 2

    @pytest.mark.parametrize("odd", ["\ud800", "\0", "\udfff" * 9000, "x" * 10**6])
    def test_a_question_for_what_cannot_be_stored_finds_nothing(
        self, store: RecordStore, odd: str
    ) -> None:
        """Whatever a caller asks for is looked for, however odd it is."""
        store.write([samples.usage()], samples.chained("w-1", 1))
        assert store.find_request("acme", odd) is None
        assert store.find_request(odd, "req-1") is None
        assert store.list_audit("acme", filters={"actor": odd}).events == ()
        assert store.usage(odd, filters={"model": odd})[0].requests == 0

    def test_the_ends_of_time_can_be_asked_for(self, store: RecordStore) -> None:
        """A period may reach beyond every number that a database holds."""
        store.write([samples.usage()])
        assert store.count_usage(from_s=-1e300, to_s=1e300) == 1
        assert store.usage("acme", from_s=float("inf"))[0].requests == 0

    def test_events_need_the_key(self, store_url: str, store: RecordStore) -> None:
        """Without the key no head can be signed, so no event is taken."""
        store.close()
        with RecordStore(store_url) as keyless, pytest.raises(ValueError, match="key"):
            keyless.write([], samples.chained("w-1", 1))

    def test_a_reader_cannot_write(self, reader: RecordStore) -> None:
        """A store that was opened for reading stays read."""
        with pytest.raises(ValueError, match="for reading"):
            reader.write([samples.usage()])

    def test_a_reader_sees_what_was_committed(
        self, store: RecordStore, reader: RecordStore
    ) -> None:
        """A reader that was open before sees a record as soon as it is written."""
        assert reader.count_usage() == 0
        store.write([samples.usage()])
        assert reader.count_usage() == 1

    def test_threads_may_share_a_store(self, store: RecordStore) -> None:
        """Writing from several threads at once stores everything once."""
        batches = [list(samples.different_calls(seed, 40)) for seed in range(4)]
        threads = [
            threading.Thread(target=store.write, args=(batch,)) for batch in (*batches, *batches)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.count_usage() == 160

    # --- sums -------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", range(len(GROUPS) + 1))
    def test_any_groups_add_up(
        self, reader: RecordStore, calls: list[dict[str, Any]], size: int
    ) -> None:
        """Counts, sums and percentiles equal those of a plain model, for every set of groups."""
        for group_by in itertools.combinations(GROUPS, size):
            found = [row.plain() for row in reader.usage(None, group_by=group_by)]
            assert found == store_model.totals(calls, group_by)

    def test_totals_beyond_every_machine_number_are_exact(self, store: RecordStore) -> None:
        """Sums beyond 2^53 and beyond 2^63 are right to the last nano-USD (B9)."""
        store.write(
            [
                samples.usage(cost_nanos=HUGE + number, tokens_input=HUGE, tokens_output=1)
                for number in range(10)
            ]
        )
        [row] = store.usage("acme")
        assert row.cost_nanos == 10 * HUGE + 45
        assert (row.tokens_input, row.tokens_output) == (10 * HUGE, 10)
        assert store.spend("acme", None) == Spend(10, 10 * HUGE, 10, 10 * HUGE + 45)
        assert type(row.cost_nanos) is type(store.spend("acme", None).cost_nanos) is int

    def test_corrections_are_subtracted(self, store: RecordStore) -> None:
        """Negative costs take off exactly what they say."""
        costs = [10**18 + 1, -(10**18), -1_000_000_001, 5]
        store.write([samples.usage(cost_nanos=cost) for cost in costs])
        assert store.spend("acme", None).cost_nanos == sum(costs)

    def test_a_million_smallest_units_add_up(self, store: RecordStore) -> None:
        """Nothing is lost below a micro-USD: 1 000 nano-USD in single ones are 1 000 (B9)."""
        store.write([samples.usage(cost_nanos=1) for _ in range(1000)])
        assert store.spend("acme", None).cost_nanos == 1000

    @pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 99, 100, 101, 200])
    def test_a_percentile_is_a_value_that_occurred(self, store: RecordStore, count: int) -> None:
        """The nearest rank, exactly, also where 95 % of the calls is a whole number of them."""
        latencies = [float(number) for number in range(1, count + 1)]
        random.Random(count).shuffle(latencies)
        store.write([samples.usage(latency_ms=latency) for latency in latencies])
        [row] = store.usage("acme")
        found = (row.latency_ms_p50, row.latency_ms_p95, row.latency_ms_p99)
        assert found == tuple(float(-(-count * percent // 100)) for percent in (50, 95, 99))

    def test_rejected_calls_have_no_latency(self, store: RecordStore) -> None:
        """A refusal that took no time does not make the backends look fast."""
        store.write([samples.usage(outcome="rejected", latency_ms=0.1) for _ in range(50)])
        assert store.usage("acme")[0].latency_ms_p50 is None
        store.write([samples.usage(latency_ms=700.0)])
        assert store.usage("acme")[0].latency_ms_p50 == 700.0

    def test_spend_is_of_one_key_and_period(
        self, store: RecordStore, calls: list[dict[str, Any]]
    ) -> None:
        """What rebuilds a budget window counts exactly the calls in it."""
        from_s, to_s = START_S + 3600, START_S + DAY_S
        expected = [
            call
            for call in calls
            if (call["organization_id"], call["api_key_id"]) == ("acme", "key_1")
            and _within(call, from_s, to_s)
        ]
        assert expected
        served = [
            call
            for call in expected
            if call["backend_id"] is not None and call["outcome"] in SERVED
        ]
        assert 0 < len(served) < len(expected)
        assert store.spend("acme", "key_1", from_s=from_s, to_s=to_s) == Spend(
            len(served),
            sum(call["tokens_input"] for call in expected),
            sum(call["tokens_output"] for call in expected),
            sum(call["cost_nanos"] or 0 for call in expected),
        )

    def test_only_what_a_backend_served_counts_as_a_request(self, store: RecordStore) -> None:
        """Refusals, failures of backends and replays are recorded, and use up no quota."""
        store.write(
            [
                samples.usage(),
                samples.usage(outcome="client_aborted"),
                samples.usage(outcome="upstream_aborted"),
                samples.usage(outcome="rejected", backend_id=None),
                samples.usage(outcome="upstream_error"),
                samples.usage(outcome="timeout"),
                samples.usage(outcome="completed", backend_id=None),
            ]
        )
        assert store.spend("acme", None).requests == 4

    def test_records_are_left_out_of_a_spend(self, store: RecordStore) -> None:
        """What is added otherwise must not count twice."""
        first, second, third = (samples.usage(cost_nanos=cost) for cost in (1, 20, 300))
        store.write([first, second, third])
        without = [first["record_id"], third["record_id"], "unknown"]
        assert store.spend("acme", None, without=without).cost_nanos == 20
        assert store.spend("acme", None, without=without).requests == 1

    def test_as_many_records_as_are_allowed_are_left_out(self, store: RecordStore) -> None:
        """No database refuses the longest list."""
        without = [f"record-{number}" for number in range(MOST_LEFT_OUT)]
        store.write([samples.usage()])
        assert store.spend("acme", None, without=without).requests == 1

    def test_a_period_includes_its_start_and_not_its_end(self, store: RecordStore) -> None:
        """A call at the boundary belongs to exactly one period (B13)."""
        store.write([samples.usage(timestamp=START_S)])
        assert store.count_usage(from_s=START_S, to_s=START_S + 0.000001) == 1
        assert store.count_usage(from_s=START_S - 1, to_s=START_S) == 0

    @pytest.mark.parametrize(
        ("name", "field", "value"),
        [
            ("model", "model", "claude"),
            ("key", "api_key_id", "KEY_1"),
            ("backend", "backend_id", "west_1"),
            ("outcome", "outcome", "timeout"),
        ],
    )
    def test_filters_choose_exactly(
        self, store: RecordStore, calls: list[dict[str, Any]], name: str, field: str, value: str
    ) -> None:
        """A filter compares byte by byte: neither case nor a wildcard makes two things one."""
        expected = [call for call in calls if call.get(field) == value]
        found = [row.plain() for row in store.usage(None, filters={name: value})]
        assert found == store_model.totals(expected, ())

    def test_a_degraded_record_counts_as_a_call_without_figures(self, store: RecordStore) -> None:
        """Unknown figures are reported as unknown, never as zeros of a call (U4, U8)."""
        store.write([_degraded("lost", "acme")])
        [row] = store.usage("acme")
        assert (row.requests, row.degraded, row.tokens_input) == (1, 1, 0)
        assert row.latency_ms_p99 is None

    def test_too_many_rows_are_no_answer(
        self, store: RecordStore, calls: list[dict[str, Any]]
    ) -> None:
        """A part of the rows would look like all of them."""
        rows = len(store.usage(None, group_by=("hour", "key")))
        assert len(store.usage(None, group_by=("hour", "key"), limit=rows)) == rows
        with pytest.raises(ResultTooLarge):
            store.usage(None, group_by=("hour", "key"), limit=rows - 1)

    @pytest.mark.parametrize(
        "question",
        [
            {"group_by": ["week"]},
            {"group_by": ["model", "organization_id"]},
            {"filters": {"organization": "acme"}},
        ],
        ids=str,
    )
    def test_an_unknown_name_is_a_bad_question(
        self, store: RecordStore, question: dict[str, Any]
    ) -> None:
        """What cannot be grouped or filtered by is refused, not ignored."""
        with pytest.raises(BadQuery):
            store.usage("acme", **question)

    def test_a_slow_question_is_given_up(self, store_url: str, store: RecordStore) -> None:
        """A query ends when its time is up, and the next one is answered."""
        store.write(list(samples.different_calls(3, 3000)))
        groups = ("organization", "model", "key", "backend")
        hasty = RecordStore(store_url, read_only=True, query_timeout_s=0.001)
        with hasty, pytest.raises(StoreTimeout):
            for _ in range(20):
                hasty.usage(None, group_by=groups)
        with RecordStore(store_url, read_only=True, query_timeout_s=30) as patient:
            assert patient.usage(None, group_by=groups)

    # --- lists ------------------------------------------------------------------------------

    def test_pages_hold_every_event_once(self, store: RecordStore) -> None:
        """Following the cursors leads through all events, newest first, while more arrive."""
        chain = AuditChain("w-1")
        moments = [START_S + number // 3 for number in range(50)]
        events = [samples.linked(chain, timestamp=moment) for moment in moments]
        store.write([], events)
        seen, cursor = [], None
        while True:
            page = store.list_audit("acme", cursor=cursor, limit=7)
            seen += page.events
            store.write([], [samples.linked(chain, timestamp=START_S + 1000)])
            cursor = page.next_cursor
            if cursor is None:
                break
            assert len(page.events) == 7
        assert seen == events[::-1]

    @pytest.mark.parametrize(
        ("filters", "expected"),
        [
            ({"action": "REQUEST_DENIED"}, [2]),
            ({"model": "claude"}, [1]),
            ({"key": "key_9"}, [3]),
            ({"request_id": "req-7", "action": "REQUEST_ALLOWED"}, [1]),
            ({"actor": "nobody"}, []),
        ],
    )
    def test_events_are_found_by_what_they_say(
        self, store: RecordStore, filters: dict[str, str], expected: list[int]
    ) -> None:
        """Filters apply together; an event of a key is found by that key."""
        chain = AuditChain("w-1")
        events = [
            samples.linked(chain),
            samples.linked(chain, request_id="req-7", context={"model": "claude"}),
            samples.linked(chain, request_id="req-7", action="REQUEST_DENIED"),
            samples.linked(
                chain, action="KEY_REVOKED", entity_type="api_key", entity_id="key_9", context={}
            ),
        ]
        store.write([], events)
        found = store.list_audit("acme", filters=filters).events
        assert list(found) == [events[index] for index in reversed(expected)]

    def test_events_are_found_by_time(self, store: RecordStore) -> None:
        """A period is taken as everywhere: with its start, without its end."""
        events = samples.chained("w-1", 5)
        store.write([], events)
        page = store.list_audit(None, from_s=START_S + 1, to_s=START_S + 3)
        assert list(page.events) == [events[2], events[1]]

    @pytest.mark.parametrize("cursor", ["", "x", "AAAA", "ü", "../..", "A" * 23 + "="])
    def test_a_made_up_cursor_is_refused(self, store: RecordStore, cursor: str) -> None:
        """A cursor that was not handed out is a mistake of the caller, not of the store."""
        with pytest.raises(BadQuery) as raised:
            store.list_audit("acme", cursor=cursor)
        assert raised.value.field == "cursor"

    def test_reading_on_continues_where_it_stopped(
        self, store: RecordStore, calls: list[dict[str, Any]]
    ) -> None:
        """Batches are in the order of time, and any place is one to go on from."""
        parts = list(store.read_records(batch=64))
        everything = [record for part in parts for _, record in part]
        place = parts[2][-1][0]
        rest = [record for part in store.read_records(after=place) for _, record in part]
        assert rest == everything[3 * 64 :]
        assert sorted(everything) == sorted(orjson.dumps(call) for call in calls)
        moments = [orjson.loads(record)["timestamp"] for record in everything]
        assert moments == sorted(moments)

    def test_reading_can_be_narrowed(self, store: RecordStore, calls: list[dict[str, Any]]) -> None:
        """By filters, and to what was stored up to a moment; counting takes the same."""
        newest_id = store.newest_usage_id()
        store.write([samples.usage(model="gpt-4o")])
        filters = {"model": "gpt-4o", "key": "key_1"}
        parts = store.read_records(filters=filters, newest_id=newest_id, batch=5)
        found = [orjson.loads(record) for part in parts for _, record in part]
        expected = [
            call for call in calls if (call.get("model"), call["api_key_id"]) == ("gpt-4o", "key_1")
        ]
        assert expected
        assert found == sorted(expected, key=lambda call: call["timestamp"])
        assert store.count_usage(filters=filters, newest_id=newest_id) == len(expected)
        assert store.count_usage(filters=filters) == len(expected) + 1
        with pytest.raises(BadQuery):
            list(store.read_records(filters={"colour": "red"}))

    def test_records_are_found_by_their_ids(
        self, store: RecordStore, calls: list[dict[str, Any]]
    ) -> None:
        """Those that are there; more ids than fit into one statement are no obstacle."""
        ids = [call["record_id"] for call in calls[::2]]
        unknown = [f"no-{number}" for number in range(1200)]
        found = store.find_usage([*unknown, *ids])
        assert found == {call["record_id"]: orjson.dumps(call) for call in calls[::2]}
        assert store.find_usage([]) == {}

    def test_an_empty_store_has_no_newest_record(self, store: RecordStore) -> None:
        """Nothing is stored up to now."""
        assert store.newest_usage_id() == 0
        store.write([samples.usage()])
        assert store.count_usage(newest_id=0) == 0

    def test_a_record_is_stored_byte_for_byte(self, store: RecordStore) -> None:
        """What is read is what the worker wrote, so that copies can be compared."""
        payload = encode_usage(RECORD)
        event = AuditChain("w-1").link(samples.event())
        store.write([orjson.loads(payload)], [orjson.loads(event)])
        assert [record for [(_, record)] in store.read_records("usage")] == [payload]
        assert [record for [(_, record)] in store.read_records("audit")] == [event]

    # --- the trail --------------------------------------------------------------------------

    def test_a_trail_in_the_store_verifies(self, store: RecordStore, reader: RecordStore) -> None:
        """Several writers, batches in any cut: the exported trail is whole (P20)."""
        chains = {name: samples.chained(name, 30) for name in ("w-1", "w-2", "a")}
        for cut in range(0, 30, 7):
            store.write([], [event for part in chains.values() for event in part[cut : cut + 7]])
        store.close_writers(["a", "w-2", "unknown"])
        found = verdict(reader)
        assert (found.ok, found.events, found.writers) == (True, 90, 3)

    def test_an_empty_trail_verifies(self, store: RecordStore) -> None:
        """Nothing happened, and that is signed too."""
        found = verdict(store)
        assert (found.ok, found.events) == (True, 0)

    @pytest.mark.parametrize(
        ("from_s", "to_s", "events"),
        [
            (START_S + 10, None, 2 * 20),
            (None, START_S + 10, 2 * 10),
            (START_S + 5, START_S + 7, 2 * 2),
            (START_S + 100, None, 0),
        ],
    )
    def test_a_part_of_a_trail_verifies(
        self, store: RecordStore, from_s: float | None, to_s: float | None, events: int
    ) -> None:
        """The events of a period are a trail of their own."""
        store.write([], [*samples.chained("w-1", 30), *samples.chained("w-2", 30)])
        found = verdict(store, from_s, to_s)
        assert (found.ok, found.events) == (True, events)

    @pytest.mark.parametrize("sequence", [1, 2, 15, 29, 30])
    def test_an_event_deleted_from_the_store_is_missed(
        self, store: RecordStore, sequence: int
    ) -> None:
        """The check names the place that is empty, also when it was the last one."""
        store.write([], [*samples.chained("a", 5), *samples.chained("w-1", 30)])
        behind_the_back(
            store,
            delete(audit).where(audit.c.writer_id == "w-1", audit.c.sequence == sequence),
        )
        found = verdict(store)
        assert not found.ok
        assert found.position is not None
        assert found.position.line == 5 + sequence
        assert (found.position.writer_id, found.position.sequence) == ("w-1", sequence)

    def test_an_event_edited_in_the_store_is_found(self, store: RecordStore) -> None:
        """A changed word breaks the hash."""
        store.write([], samples.chained("w-1", 30, reason="limit"))
        changed = func.replace(audit.c.document, '"limit"', '"limes"')
        behind_the_back(store, update(audit).where(audit.c.sequence == 12).values(document=changed))
        found = verdict(store)
        assert found.position is not None
        assert (found.ok, found.position.sequence) == (False, 12)

    def test_a_chain_hashed_anew_is_found(self, store: RecordStore) -> None:
        """Who rewrites a chain from end to end still cannot sign its head."""
        store.write([], samples.chained("w-1", 10, reason="denied"))
        forged = samples.chained("w-1", 10, reason="allowed")
        for event in forged:
            line = orjson.dumps({key: event[key] for key in sorted(event) if key != "hash"})
            sealed = line[:-1] + b',"hash":"' + event["hash"].encode() + b'"}'
            behind_the_back(
                store,
                update(audit)
                .where(audit.c.sequence == event["sequence"])
                .values(document=sealed.decode()),
            )
        assert not verdict(store).ok

    @pytest.mark.parametrize(
        "damage",
        [
            delete(chain_tips),
            update(chain_tips).values(sequence=9),
            update(chain_tips).values(hash="0" * 64),
            update(chain_tips).values(closed=True),
            update(chain_tips).values(signature="0" * 64),
            delete(audit),
        ],
        ids=["deleted", "sequence", "hash", "closed", "signature", "all-events"],
    )
    def test_a_tip_without_its_signature_proves_nothing(
        self, store: RecordStore, damage: Any
    ) -> None:
        """Heads cannot be moved back to fit a shortened trail."""
        store.write([], samples.chained("w-1", 10))
        behind_the_back(store, damage)
        assert not verdict(store).ok

    # --- retention --------------------------------------------------------------------------

    def test_a_pruned_trail_verifies(self, store: RecordStore) -> None:
        """What is old goes, what is left hangs on a signed prune point, and the writer goes on."""
        chain = AuditChain("w-1")
        events = [samples.linked(chain, timestamp=START_S + number) for number in range(20)]
        store.write([samples.usage()], events[:15])
        assert store.prune(START_S + 12) == 12
        assert (verdict(store).ok, verdict(store).events) == (True, 3)
        store.write([], events[15:])
        assert (verdict(store).ok, verdict(store).events) == (True, 8)
        assert store.prune(START_S + 12) == 0
        assert store.count_usage() == 1

    def test_pruning_goes_slice_by_slice(
        self, store: RecordStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A long past is removed in many short transactions, with the same result."""
        monkeypatch.setattr("router.store.trail.PRUNE_SLICE", 7)
        store.write([], [*samples.chained("w-1", 50), *samples.chained("w-2", 3)])
        assert store.prune(START_S + 40) == 43
        found = verdict(store)
        assert (found.ok, found.events) == (True, 10)

    def test_only_a_beginning_is_pruned(self, store: RecordStore) -> None:
        """A clock that was set back does not tear a hole into the chain."""
        chain, offsets = AuditChain("w-1"), (0, 1, 50, 2, 3, 51)
        store.write([], [samples.linked(chain, timestamp=START_S + offset) for offset in offsets])
        assert store.prune(START_S + 10) == 2
        found = verdict(store)
        assert (found.ok, found.events) == (True, 4)

    def test_pruned_events_do_not_come_back(self, store: RecordStore) -> None:
        """After a lost checkpoint the spool delivers everything again; the past stays past."""
        events = samples.chained("w-1", 20)
        store.write([], events)
        store.prune(START_S + 15)
        written = store.write([], events)
        assert (written.audit, written.repeated, written.conflicts) == (0, 20, ())
        assert (verdict(store).ok, verdict(store).events) == (True, 5)

    def test_deleting_more_than_was_pruned_is_found(self, store: RecordStore) -> None:
        """A prune point says where the trail begins; what is missing behind it is missed."""
        store.write([], samples.chained("w-1", 20))
        store.prune(START_S + 10)
        behind_the_back(store, delete(audit).where(audit.c.sequence == 11))
        found = verdict(store)
        assert found.position is not None
        assert (found.ok, found.position.sequence) == (False, 11)

    def test_a_prune_point_that_nobody_signed_is_found(self, store: RecordStore) -> None:
        """Deleting a beginning and moving the prune point to it does not pass for retention."""
        events = samples.chained("w-1", 20)
        store.write([], events)
        store.prune(START_S + 5)
        behind_the_back(store, delete(audit).where(audit.c.sequence <= 10))
        behind_the_back(store, update(prune_points).values(sequence=10, hash=events[9]["hash"]))
        assert not verdict(store).ok

    def test_a_writer_that_is_over_and_pruned_is_forgotten(self, store: RecordStore) -> None:
        """Marks of the past do not pile up; a writer that may go on keeps them."""
        store.write([], [*samples.chained("w-1", 3), *samples.chained("w-2", 3)])
        store.close_writers(["w-1"])
        store.prune(START_S + 100)
        with store._database.reading() as connection:
            assert list(connection.scalars(select(chain_tips.c.writer_id))) == ["w-2"]
            assert list(connection.scalars(select(prune_points.c.writer_id))) == ["w-2"]
        assert (verdict(store).ok, verdict(store).events) == (True, 0)


def _degraded(request_id: str, organization_id: str) -> dict[str, Any]:
    decoded: dict[str, Any] = orjson.loads(
        degraded_usage(
            request_id, "key_1", "openai.chat", START_S, 500, organization_id=organization_id
        )
    )
    return decoded


def _within(call: dict[str, Any], from_s: float, to_s: float) -> bool:
    return from_s * 1e6 <= parse_timestamp_us(call["timestamp"]) < to_s * 1e6


def _count(store: RecordStore, table: Table) -> int:
    with store._database.reading() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def _add_migration(monkeypatch: pytest.MonkeyPatch, *statements: str) -> None:
    def step(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement))

    monkeypatch.setattr("router.store.tables.sql_tables.MIGRATIONS", (*MIGRATIONS, step))


def _drop_sequence(store: RecordStore) -> Any:
    return text("SELECT 1" if store._database.is_sqlite else "DROP SEQUENCE usage_ids")


def check_constraint(store: RecordStore) -> Any:
    """A rule that only the database knows, as different servers and versions have them."""
    if store._database.is_sqlite:
        return text(
            "CREATE TRIGGER refuse BEFORE INSERT ON usage_records WHEN NEW.status = 99 "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    return text("ALTER TABLE usage_records ADD CONSTRAINT refuse CHECK (status <> 99)")
