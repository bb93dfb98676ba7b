"""What an organization can ask about its calls, and what it cannot see."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Iterator
from threading import get_native_id
from typing import Any

import gevent
import pytest

from router import errors
from router.store.queries.record_queries import HISTORY_LENGTH
from router.store.queries.sql_queries import cursor_after
from router.store.queries.usage_totals import UsageTotals
from router.store.query_pool import MAX_WAITING, THREADS, Queries
from tests.fakes.router_stand import RouterStand, World

STORY = "/v1/audit/requests/"
LIST = "/v1/audit/requests"
USAGE = "/v1/usage"


@pytest.fixture
def other(world: World) -> Iterator[RouterStand]:
    """A router whose record store holds nothing yet."""
    with world.other_stand(
        record_store_url=f"sqlite:///{world.settings.data_dir}/{uuid.uuid4()}"
    ) as stand:
        yield stand


def served(stand: RouterStand, **body: Any) -> str:
    """Make a call, have it stored; its id."""
    request_id = str(uuid.uuid4())
    stand.inference(request_id=request_id, **body)
    stand.store_records()
    return request_id


def test_the_story_of_a_call(stand: RouterStand) -> None:
    """T023: times, decision, tries, limit state, cost and trace ids, and the event beside them."""
    request_id = served(stand)
    story = stand.call("GET", STORY + request_id).json
    [record], [event] = story["records"], story["events"]
    assert record == stand.record
    assert event == stand.event
    assert story["request_id"] == record["request_id"] == event["request_id"] == request_id
    assert (record["outcome"], record["decision_reason"]) == ("completed", "PRIMARY")
    assert record["limit_state"] == "WITHIN_LIMIT"
    assert [attempt["backend_id"] for attempt in record["attempts"]] == [record["backend_id"]]
    assert record["trace_id"] == event["trace_id"] == stand.lines[0]["trace_id"]
    assert event["action"] == "REQUEST_ALLOWED"


def test_an_id_used_again_tells_both_calls(stand: RouterStand) -> None:
    """The newest first."""
    request_id = str(uuid.uuid4())
    for text in ("one", "two"):
        stand.inference(text=text, request_id=request_id)
        stand.clock.advance(1)
    stand.store_records()
    records = stand.call("GET", STORY + request_id).json["records"]
    assert records == stand.spool.records[::-1]


def test_a_refused_call_has_a_story_too(stand: RouterStand) -> None:
    """Who was denied what, and why."""
    request_id = served(stand, model="nowhere")
    story = stand.call("GET", STORY + request_id).json
    assert story["records"][0]["outcome"] == "rejected"
    [event] = story["events"]
    assert (event["action"], event["reason"]) == ("REQUEST_DENIED", "MODEL_NOT_FOUND")


def test_others_see_nothing_of_it(stand: RouterStand) -> None:
    """A21: another organization gets the answer that it gets for what never happened."""
    request_id = served(stand)
    never = stand.call("GET", STORY + str(uuid.uuid4()), key="narrow_reader")
    found = stand.call("GET", STORY + request_id, key="narrow_reader")
    assert (found.status, found.json["code"]) == (404, "REQUEST_NOT_FOUND")
    assert {**found.json, "trace_id": ""} == {**never.json, "trace_id": ""}
    assert stand.call("GET", LIST, key="narrow_reader").json["events"] == []
    [row] = stand.call("GET", USAGE, key="narrow_reader").json["data"]
    assert row["requests"] == 0


@pytest.mark.parametrize("path", [STORY + "x", LIST, USAGE])
def test_the_scope_is_needed(stand: RouterStand, path: str) -> None:
    """A key that makes calls does not read records."""
    reply = stand.call("GET", path, key="spare")
    assert (reply.status, reply.json["code"]) == (403, "SCOPE_MISSING")


def test_pages_hold_each_event_once(other: RouterStand) -> None:
    """Newest first, also when several have the same time, and while more arrive."""
    for _ in range(7):
        other.inference()
    other.store_records()
    wanted = [event["event_id"] for event in other.spool.events]
    found, cursor = [], ""
    while cursor is not None:
        page = other.call("GET", f"{LIST}?limit=3&cursor={cursor}").json
        found += [event["event_id"] for event in page["events"]]
        cursor = page["next_cursor"]
        other.clock.advance(1)
        other.inference()
        other.store_records()
    assert sorted(found) == sorted(wanted)


def test_only_a_cursor_that_was_given_out_leads_on(other: RouterStand) -> None:
    """Not a changed one, nor one of the store, nor that of another organization."""
    for _ in range(3):
        other.inference()
    other.store_records()
    cursor = other.call("GET", f"{LIST}?limit=1").json["next_cursor"]
    position, _, signature = cursor.rpartition(".")
    other_signature = ("B" if signature[0] == "A" else "A") + signature[1:]
    assert other.call("GET", f"{LIST}?cursor={cursor}").status == 200
    of_store = cursor_after((10**15, 1))
    for wrong in (
        of_store,
        position,
        f"x{cursor}",
        f"{position}.{other_signature}",
        "%C3%BC.%C3%BC",
    ):
        reply = other.call("GET", f"{LIST}?cursor={wrong}")
        assert (reply.status, reply.json["details"]) == (400, {"field": "cursor"}), wrong
    assert other.call("GET", f"{LIST}?cursor={cursor}", key="narrow_reader").status == 400


def test_events_are_found_by_what_they_are_about(other: RouterStand) -> None:
    """Action, model, key and time, alone and together."""
    served(other)
    served(other, model="unpriced")
    other.clock.advance(3600)
    other.spool.tick()  # else its disk seems to have hung for an hour
    served(other, model="nowhere")

    def found(query: str) -> int:
        return len(other.call("GET", f"{LIST}?{query}").json["events"])

    assert found("") == 3
    assert found("action=REQUEST_DENIED") == 1
    assert found("model=unpriced") == 1
    assert found("model=unpriced&action=REQUEST_DENIED") == 0
    assert found("key=key-main") == 3
    assert found("key=key-spare") == 0
    assert found("to=2027-01-15T08:30:00Z") == 2
    assert found("from=2027-01-15T08:30:00%2B00:00") == 1
    assert found("from=2027-01-15T09:30:00+01:00") == 1
    assert found("from=2027-01-16") == 0


def test_usage_adds_up(other: RouterStand) -> None:
    """U1: the sums are those of the records, the cost to the last billionth."""
    for model in ("gpt-4o", "gpt-4o", "unpriced"):
        other.inference(model=model)
    other.inference(model="nowhere")
    other.store_records()
    records = other.spool.records
    [row] = other.call("GET", USAGE).json["data"]
    assert row["requests"] == 4
    assert (row["errors"], row["rejected"]) == (0, 1)
    for name in ("tokens_input", "tokens_output"):
        assert row[name] == sum(record[name] for record in records)
    cost_nanos = sum(record["cost_nanos"] or 0 for record in records)
    assert row["cost_nanos"] == cost_nanos > 0
    assert row["cost_usd"] == f"{cost_nanos / 10**9:.9f}".rstrip("0")
    rows = other.call("GET", f"{USAGE}?group_by=model,day&key=key-main").json
    assert rows["group_by"] == ["model", "day"]
    assert [(one["model"], one["day"], one["requests"]) for one in rows["data"]] == [
        (None, "2027-01-15", 1),
        ("gpt-4o", "2027-01-15", 2),
        ("unpriced", "2027-01-15", 1),
    ]


def test_usage_as_a_table(other: RouterStand) -> None:
    """The same rows, in the same order, in what a spreadsheet opens."""
    served(other)
    data = other.call("GET", f"{USAGE}?group_by=model").json["data"]
    reply = other.call("GET", f"{USAGE}?group_by=model&format=csv")
    assert reply.header("Content-Type") == "text/csv; charset=utf-8"
    [row] = csv.DictReader(io.StringIO(reply.body.decode()))
    assert row == {name: "" if value is None else str(value) for name, value in data[0].items()}


def test_a_table_without_rows_has_its_head(other: RouterStand) -> None:
    """The same as with rows, for whoever reads it by names."""
    other.store_records()
    query = f"{USAGE}?group_by=model,day&format=csv"
    head = other.call("GET", query).body
    served(other)
    assert head == other.call("GET", query).body.partition(b"\r\n")[0] + b"\r\n"


def test_a_story_that_is_cut_says_so(other: RouterStand) -> None:
    """The newest of both are told, newest first."""
    request_id = str(uuid.uuid4())
    other.inference(request_id=request_id)
    other.store_records()
    assert other.call("GET", STORY + request_id).json["truncated"] is False
    for _ in range(HISTORY_LENGTH):
        other.clock.advance(1)
        other.spool.tick()
        other.inference(request_id=request_id)
    other.store_records()
    story = other.call("GET", STORY + request_id).json
    assert story["truncated"] is True
    assert story["records"] == other.spool.records[:0:-1]
    assert story["events"] == other.spool.events[:0:-1]


def test_answers_are_written_beside_the_loop(
    other: RouterStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report of ten thousand rows would hold up every call of the worker."""
    served(other)
    threads = []
    plain = UsageTotals.plain

    def noting(totals: UsageTotals) -> dict[str, Any]:
        threads.append(get_native_id())
        return plain(totals)

    monkeypatch.setattr(UsageTotals, "plain", noting)
    for shown in ("json", "csv"):
        assert other.call("GET", f"{USAGE}?format={shown}").status == 200
    assert len(threads) == 2
    assert get_native_id() not in threads


@pytest.mark.parametrize(
    ("target", "field"),
    [
        (f"{LIST}?actoin=x", "actoin"),
        (f"{LIST}?model=a&model=b", "model"),
        (f"{LIST}?action=NOPE", "action"),
        (f"{LIST}?limit=0", "limit"),
        (f"{LIST}?limit=501", "limit"),
        (f"{LIST}?limit=%EF%BC%91", "limit"),
        (f"{LIST}?limit={'9' * 5000}", "limit"),
        (f"{LIST}?limit=000000001999999999", "limit"),
        (f"{LIST}?cursor=nonsense", "cursor"),
        (f"{LIST}?from=yesterday", "from"),
        (f"{LIST}?from=20261101", "from"),
        (f"{LIST}?from=2026-W44-1", "from"),
        (f"{LIST}?from=2026-11-01T00Z", "from"),
        (f"{LIST}?from=2027-01-15T08:00:00", "from"),
        (f"{LIST}?from=2027-01-16&to=2027-01-15", "from"),
        (f"{USAGE}?group_by=colour", "group_by"),
        (f"{USAGE}?group_by=day,day", "group_by"),
        (f"{USAGE}?format=xml", "format"),
        (f"{USAGE}?to=2027-13-01", "to"),
        (f"{STORY}x?verbose=1", "verbose"),
    ],
)
def test_what_cannot_be_understood_is_named(stand: RouterStand, target: str, field: str) -> None:
    """400 with the parameter at fault."""
    stand.store_records()
    reply = stand.call("GET", target)
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert reply.json["details"] == {"field": field}


def test_a_store_that_is_not_there_yet(world: World) -> None:
    """Nothing was recorded since the installation: that is said, and calls are served."""
    with world.other_stand(record_store_url=f"sqlite:////nowhere/{uuid.uuid4()}") as stand:
        assert stand.chat().status == 200
        reply = stand.call("GET", USAGE)
        assert (reply.status, reply.json["code"]) == (503, "RECORD_STORE_UNAVAILABLE")
        assert "is not there yet" in stand.lines[-1]["reason"]
        assert "nowhere" not in reply.body.decode()


class TestQueries:
    """Questions run beside the calls and never in their way."""

    def ask(self, seconds: float, timeout_s: float = 5.0, many: int = 1) -> list[Any]:
        """The outcomes of so many slow questions at once."""
        queries = Queries(_NoStore(), timeout_s=timeout_s)  # type: ignore[arg-type]

        def one() -> Any:
            try:
                return queries.run(lambda _: _sleep(seconds))
            except errors.RouterError as error:
                return type(error)

        outcomes = gevent.joinall([gevent.spawn(one) for _ in range(many)])
        return [outcome.value for outcome in outcomes]

    def test_too_many_are_refused(self) -> None:
        """B5: a queue without an end would be worse."""
        allowed = THREADS + MAX_WAITING
        outcomes = self.ask(0.02, many=allowed + 3)
        assert outcomes.count("done") == allowed
        assert outcomes.count(errors.QueriesBusy) == 3


class _NoStore:
    """Nobody asks it anything."""

    def close(self) -> None:
        """Nothing is open."""


def _sleep(seconds: float) -> str:
    import time

    time.sleep(seconds)
    return "done"
