"""Which records are missing or differ, told from everything that was met."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import pytest

from router.exports.reconciliation import (
    KAFKA,
    SPOOL,
    STORE,
    Judgement,
    Met,
    Scope,
    judge,
    missing_somewhere,
    sight,
)
from router.records.record_types import degraded_usage
from tests.unit.records import samples
from tests.unit.records.samples import START_S

SINKS = (STORE, KAFKA)
EVERYTHING = Scope()


def call(number: int, **changes: Any) -> dict[str, Any]:
    return samples.usage(record_id=f"r{number}", request_id=f"q{number}", **changes)


def met(
    record: dict[str, Any],
    *sources: str,
    late: bool = False,
    waiting_for: Sequence[str] = (),
    scope: Scope = EVERYTHING,
) -> list[bytes]:
    """A record as it was met in some places."""
    found = []
    for source in sources:
        waiting = waiting_for if source == SPOOL else ()
        seen = sight(orjson.dumps(record), source, scope, is_late=late, waiting_for=waiting)
        assert seen is not None
        found.append(seen.line())
    return found


def judged(lines: Iterable[bytes], *, looks: int = 1, limit: int = 100) -> Judgement:
    return judge(sorted(lines), SINKS, looks=looks, limit=limit)


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
    lines = sorted(
        [*met(call(1), *SINKS), *met(call(2), STORE), *met(call(3), SPOOL, waiting_for=SINKS)]
    )
    assert list(missing_somewhere(lines, SINKS)) == ["r2", "r3"]


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
    seen = sight(orjson.dumps(call(1)), STORE, scope)
    assert (None if seen is None else seen.is_inside) is place


def test_what_is_in_the_margin_is_told_and_not_judged() -> None:
    """A client may list it; the period does not have it."""
    scope = Scope(from_s=START_S + 1, margin_s=10.0)
    told: list[Met] = []
    lines = met(call(1), STORE, scope=scope)
    found = judge(lines, SINKS, looks=1, limit=9, tell=told.append)
    assert (found.differences.counts, found.tallies[STORE].records) == ({}, 0)
    assert [one.record_id for one in told] == ["r1"]


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
    ],
)
def test_what_is_no_record_is_refused(payload: bytes) -> None:
    """The caller counts it."""
    with pytest.raises(ValueError, match=r"."):
        sight(payload, KAFKA, EVERYTHING)


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
    lines: list[bytes] = []
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
    known = {orjson.loads(line)[0] for line in lines}
    per_record = {
        name: {orjson.loads(line)[4] for line in lines if orjson.loads(line)[0] == name}
        for name in known
    }
    expected = {
        (kind, name)
        for kind, name in expected
        if name in known and (kind == "missing" or len(per_record[name]) > 1)
    }
    found = judged(lines, limit=1000).differences
    assert {(one["kind"], one["record_id"]) for one in found.first} == expected
