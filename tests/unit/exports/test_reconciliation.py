"""Which records are missing or differ, told from everything that was observed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import orjson
import pytest

from router.exports.client_list import match_client
from router.exports.comparison import KAFKA, SPOOL, STORE, Comparison, Scope
from router.exports.reconciliation import Reconciliation
from router.records.record_types import degraded_usage
from tests.unit.records import samples
from tests.unit.records.samples import START_S

SINKS = (STORE, KAFKA)
EVERYTHING = Scope()


def call(number: int, **changes: Any) -> dict[str, Any]:
    return samples.usage(record_id=f"r{number}", request_id=f"q{number}", **changes)


class Copy(NamedTuple):
    payload: bytes
    source: str
    late: bool
    waiting_for: Sequence[str]


def met(
    record: dict[str, Any], *sources: str, late: bool = False, waiting_for: Sequence[str] = ()
) -> list[Copy]:
    """A record as it was observed in some sources, ``late`` in the second pass."""
    payload = orjson.dumps(record)
    return [
        Copy(payload, source, late, waiting_for if source == SPOOL else ()) for source in sources
    ]


def collected(
    copies: Iterable[Copy], *, looks: int = 1, scope: Scope = EVERYTHING
) -> Reconciliation:
    records = Reconciliation(scope, SINKS)
    copies = sorted(copies, key=lambda copy: copy.late)
    for copy in copies:
        if copy.late and not records.is_second_pass:
            records.begin_second_pass()
        records.observe(copy.payload, copy.source, copy.waiting_for)
    if looks == 2 and not records.is_second_pass:
        records.begin_second_pass()
    return records


def judged(
    copies: Iterable[Copy], *, looks: int = 1, limit: int = 100, scope: Scope = EVERYTHING
) -> Comparison:
    with closing(collected(copies, looks=looks, scope=scope)) as records:
        return records.compare(limit)


def test_the_same_everywhere_is_agreement() -> None:
    """Counts and sums are exact, by place."""
    lines = [line for n in range(5) for line in met(call(n, cost_nanos=10**9 + n), *SINKS)]
    found = judged(lines)
    assert found.differences.counts == {}
    for name in SINKS:
        tally = found.tallies[name]
        assert (tally.records, tally.repeated, tally.cost_nanos) == (5, 0, 5 * 10**9 + 10)
        assert (tally.tokens_input, tally.tokens_output) == (600, 150)
        assert tally.plain()["cost_usd"] == "5.00000001"
    assert found.tallies[SPOOL].records == 0


@pytest.mark.parametrize("missing", SINKS)
def test_what_a_sink_lacks_is_named(missing: str) -> None:
    """With where it is and where it is not."""
    [there] = [name for name in SINKS if name != missing]
    found = judged([*met(call(1), *SINKS), *met(call(2), there)])
    assert found.differences.counts == {"missing": 1}
    assert found.differences.first == [
        {
            "kind": "missing",
            "record_id": "r2",
            "request_id": "q2",
            "organization_id": "acme",
            "timestamp": "2027-01-15T08:00:00.000000Z",
            "seen_in": [there],
            "missing_from": [missing],
        }
    ]


def test_what_is_in_the_spool_is_under_way() -> None:
    """To the sinks that have not acknowledged it; for the others it is lost."""
    found = judged(
        [
            *met(call(1, cost_nanos=5), SPOOL, waiting_for=SINKS),
            *met(call(2, cost_nanos=7), SPOOL, STORE, waiting_for=[KAFKA]),
        ]
    )
    assert found.differences.counts == {}
    assert (found.under_way[STORE].records, found.under_way[STORE].cost_nanos) == (1, 5)
    assert (found.under_way[KAFKA].records, found.under_way[KAFKA].cost_nanos) == (2, 12)
    assert found.tallies[SPOOL].records == 2

    found = judged(met(call(3), SPOOL, waiting_for=[KAFKA]))
    assert found.under_way[KAFKA].records == 1
    assert [one["missing_from"] for one in found.differences.first] == [[STORE]]


def test_an_equal_record_twice_is_a_repetition() -> None:
    """Deliveries are at least once; the record counts once."""
    found = judged(met(call(1), *SINKS, KAFKA, KAFKA))
    assert found.differences.counts == {}
    assert (found.tallies[KAFKA].records, found.tallies[KAFKA].repeated) == (1, 2)
    assert found.tallies[STORE].repeated == 0


def test_other_contents_are_named_by_field() -> None:
    """What each place says of it, for what is kept; for the rest that there is something."""
    found = judged(
        [
            *met(call(1, cost_nanos=5), STORE),
            *met(call(1, cost_nanos=6), KAFKA),
            *met(call(2), STORE),
            *met(call(2, metadata={"team": "other"}), KAFKA),
            *met(call(3, status=200), *SINKS),
            *met(call(3, status=500), KAFKA),
        ]
    )
    cost, other, status = found.differences.first
    assert found.differences.counts == {"contents": 3}
    assert cost["fields"] == ["cost_nanos"]
    assert cost["values"] == {"store": [{"cost_nanos": 5}], "kafka": [{"cost_nanos": 6}]}
    assert (other["record_id"], other["fields"], other["values"]) == ("r2", ["other"], {})
    assert status["values"]["store"] == [{"status": 200}]
    assert sorted(one["status"] for one in status["values"]["kafka"]) == [200, 500]


def test_the_order_of_fields_is_no_content() -> None:
    """Places may write the same object differently."""
    record = call(1)
    turned = dict(reversed(record.items()))
    assert judged([*met(record, STORE), *met(turned, KAFKA)]).differences.counts == {}


# --- the second look ------------------------------------------------------------------------


def test_what_arrived_meanwhile_is_no_difference() -> None:
    """It was under way at the first look, and is in the sink at the second."""
    lines = [
        *met(call(1), SPOOL, STORE, waiting_for=[KAFKA]),
        *met(call(1), KAFKA, late=True),
        *met(call(2), STORE),
        *met(call(2), KAFKA, late=True),
    ]
    found = judged(lines, looks=2)
    assert found.differences.counts == {}
    assert found.under_way[KAFKA].records == 0
    assert (found.tallies[KAFKA].records, found.tallies[KAFKA].repeated) == (2, 0)


def test_what_left_the_spool_and_did_not_arrive_is_lost() -> None:
    """Under way is only what is still there at the second look."""
    lost = met(call(1), SPOOL, STORE, waiting_for=[KAFKA])
    slow = [
        *met(call(2), SPOOL, STORE, waiting_for=[KAFKA]),
        *met(call(2), SPOOL, late=True, waiting_for=[KAFKA]),
    ]
    found = judged([*lost, *slow], looks=2)
    assert [one["record_id"] for one in found.differences.first] == ["r1"]
    assert found.under_way[KAFKA].records == 1
    assert (found.tallies[SPOOL].records, found.tallies[SPOOL].repeated) == (2, 0)


def test_what_began_after_the_first_look_is_not_judged() -> None:
    """It may be anywhere yet."""
    lines = [*met(call(1), SPOOL, late=True), *met(call(2), KAFKA, late=True)]
    found = judged(lines, looks=2)
    assert found.differences.counts == {}
    assert {tally.records for tally in found.tallies.values()} == {0}


def test_the_second_look_is_for_what_is_missing() -> None:
    """In any sink, also when it is under way."""
    copies = [*met(call(1), *SINKS), *met(call(2), STORE), *met(call(3), SPOOL, waiting_for=SINKS)]
    with closing(collected(copies)) as records:
        assert list(records.missing_records()) == [["r2", "r3"]]


def test_missing_records_come_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be more than fit into memory; what is observed meanwhile disturbs nothing."""
    monkeypatch.setattr("router.exports.reconciliation._PAGE", 2)
    copies = [copy for number in range(5) for copy in met(call(number), STORE)]
    with closing(collected(copies, looks=2)) as records:
        pages = []
        for page in records.missing_records():
            pages.append(page)
            for record_id in page:
                [copy] = met(call(int(record_id[1:])), KAFKA)
                records.observe(copy.payload, copy.source)
        assert pages == [["r0", "r1"], ["r2", "r3"], ["r4"]]
        assert records.compare(9).differences.counts == {}


# --- which records --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "place"),
    [
        (Scope(), True),
        (Scope(from_s=START_S, to_s=START_S + 1), True),
        (Scope(from_s=START_S - 1, to_s=START_S), None),
        (Scope(from_s=START_S - 1, to_s=START_S, margin_s=0.5), False),
        (Scope(from_s=START_S + 1), None),
        (Scope(from_s=START_S + 1, margin_s=1.0), False),
        (Scope(organization_id="acme", api_key_id="key_1"), True),
        (Scope(organization_id="other"), None),
        (Scope(api_key_id="other"), None),
    ],
)
def test_a_scope_has_a_period_and_an_owner(scope: Scope, place: bool | None) -> None:
    """The beginning belongs to it, the end does not."""
    with closing(collected(met(call(1), STORE), scope=scope)) as records:
        assert [bool(row.is_due) for row in records.by_request()] == (
            [] if place is None else [place]
        )


def test_what_is_in_the_margin_is_told_and_not_judged() -> None:
    """A client may list it; the period does not have it."""
    scope = Scope(from_s=START_S + 1, margin_s=10.0)
    with closing(collected(met(call(1), STORE), scope=scope)) as records:
        records.add_answers([("q1", (None, None, None))])
        found = records.compare(9)
        client = match_client(records.by_request(), found.differences, is_complete=True)
    assert (found.differences.counts, found.tallies[STORE].records) == ({}, 0)
    assert (client.listed.records, client.unlisted.records) == (1, 0)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b'{"record_id":1,"request_id":"q","timestamp":"2027-01-15T08:00:00.000000Z"}',
        b'{"record_id":"r","request_id":"q","timestamp":"yesterday"}',
        b'{"record_id":"r","request_id":"q","timestamp":"2027-01-15T08:00:00.000000Z",'
        b'"cost_nanos":[]}',
        b'{"record_id":"r","request_id":"q","timestamp":"2027-01-15T08:00:00.000000Z",'
        b'"cost_nanos":9223372036854775808}',
    ],
)
def test_what_is_no_record_is_counted(payload: bytes) -> None:
    """And compared with nothing."""
    found = judged([Copy(payload, KAFKA, late=False, waiting_for=())])
    assert (found.tallies[KAFKA].unreadable, found.tallies[KAFKA].records) == (1, 0)
    assert found.differences.counts == {}


def test_a_degraded_record_is_one() -> None:
    """It has no figures, and is compared all the same."""
    payload = orjson.loads(degraded_usage("q", "key_1", "native", START_S, 200))
    found = judged(met(payload, STORE))
    assert found.differences.counts == {"missing": 1}
    assert (found.tallies[STORE].records, found.tallies[STORE].unpriced) == (1, 1)


def test_differences_beyond_the_limit_are_counted() -> None:
    """Memory does not grow with them."""
    found = judged([line for n in range(9) for line in met(call(n), STORE)], limit=4)
    assert found.differences.counts == {"missing": 9}
    assert [one["record_id"] for one in found.differences.first] == ["r0", "r1", "r2", "r3"]


@pytest.mark.parametrize("seed", range(20))
def test_every_loss_is_found_and_nothing_else(seed: int) -> None:
    """Random losses, repetitions and changes among records with awkward ids."""
    chance = random.Random(seed)
    lines: list[Copy] = []
    expected: set[tuple[str, str]] = set()
    for number in range(60):
        name = chance.choice(("", '"', "a", "a!", "ä\n", "\\")) + str(number % 40)
        record_id = f"{name}-{number}"
        record = samples.usage(record_id=record_id)
        for sink in SINKS:
            fate = chance.choice(("there", "there", "twice", "lost", "changed"))
            copies = {"lost": 0, "twice": 2}.get(fate, 1)
            if fate == "changed":
                lines += met({**record, "bytes_sent": -1 - SINKS.index(sink)}, sink)
                expected.add(("contents", record_id))
            else:
                lines += met(record, *[sink] * copies)
            if fate == "lost":
                expected.add(("missing", record_id))
    per_record: dict[str, set[bytes]] = {}
    for line in lines:
        record_id = orjson.loads(line.payload)["record_id"]
        per_record.setdefault(record_id, set()).add(line.payload)
    expected = {
        (kind, name)
        for kind, name in expected
        if name in per_record and (kind == "missing" or len(per_record[name]) > 1)
    }
    found = judged(lines, limit=1000).differences
    assert {(one["kind"], one["record_id"]) for one in found.first} == expected
