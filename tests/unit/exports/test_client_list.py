"""What a client says it was answered, against what was recorded."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import orjson
import pytest

from router.exports.client_list import ClientFileError, ClientTally, match_client, read_answers
from router.exports.comparison import STORE, Differences, Figures, Scope
from router.exports.reconciliation import Reconciliation
from tests.unit.records import samples
from tests.unit.records.samples import START_S

NOTHING = (None, None, None)


Answer = tuple[str, Figures]
SCOPE = Scope(from_s=START_S - 3600, margin_s=3600)


def record(request_id: str, *, inside: bool = True, **changes: Any) -> bytes:
    timestamp = START_S if inside else START_S - 3601
    return orjson.dumps(samples.usage(request_id=request_id, timestamp=timestamp, **changes))


def answer(request_id: str, *figures: int | None) -> Answer:
    told = (*figures, None, None, None)
    return request_id, (told[0], told[1], told[2])


def matched(*lines: bytes | Answer, complete: bool = False) -> tuple[ClientTally, Differences]:
    differences = Differences(100)
    with closing(Reconciliation(SCOPE, (STORE,))) as records:
        for line in lines:
            if isinstance(line, bytes):
                records.observe(line, STORE)
            else:
                records.add_answers([line])
        rows = records.by_request()
        return match_client(rows, differences, is_complete=complete), differences


# --- the file -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\n  b \na\n", [("a", NOTHING), ("b", NOTHING), ("a", NOTHING)]),
        ("", []),
        ("\n\n", []),
        ("request_id\na\n", [("a", NOTHING)]),
        (
            '\ufeffmodel,"request_id",cost_usd,tokens_input\r\nm,"a,b",0.000000001,5\r\nm,c,,\r\n',
            [("a,b", (5, None, 1)), ("c", NOTHING)],
        ),
        (
            '{"request_id":"a","cost_nanos":7,"prompt_tokens":1,"completion_tokens":2}\n\n'
            '{"request_id":"b","cost_usd":0.1,"model":"x"}\n{"request_id":"c","cost_usd":"2"}\n',
            [("a", (1, 2, 7)), ("b", (None, None, 10**8)), ("c", (None, None, 2 * 10**9))],
        ),
    ],
)
def test_the_form_of_the_file_is_seen_by_its_head(text: str, expected: list[Any]) -> None:
    """JSON Lines, CSV, or one id on each line; USD become whole nano-USD exactly."""
    lines = text.splitlines(keepends=True)
    assert list(read_answers(lines)) == expected


def test_the_form_can_be_said() -> None:
    """An id may look like anything."""
    lines = ['{"request_id"', "request_id,"]
    assert [request_id for request_id, _ in read_answers(lines, "lines")] == lines


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ('{"request_id":"a"}\n{"request_id":', 2),
        ('{"request_id":"a"}\n[]', 2),
        ('{"request_id":"a"}\n{"id":"b"}', 2),
        ('{"request_id":7}', 1),
        ('{"request_id":"a","tokens_input":1.5}', 1),
        ('{"request_id":"a","tokens_input":"many"}', 1),
        ('{"request_id":"a","cost_usd":"free"}', 1),
        ('{"request_id":"a","cost_usd":"NaN"}', 1),
        ("request_id,cost_nanos\na,1\nb,0.5", 2),
        ("request_id,cost_nanos\n,1", 1),
        ("request_id,cost_nanos\na,9223372036854775808", 1),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(text: str, entry: int) -> None:
    """A file that is half understood would be a half comparison."""
    with pytest.raises(ClientFileError, match=f"^entry {entry} of"):
        list(read_answers(text.splitlines(keepends=True)))


# --- the comparison -------------------------------------------------------------------------


def test_every_answer_has_its_record() -> None:
    """Compared is what the client tells, and nothing else."""
    tally, differences = matched(
        record("a"), answer("a", 120, 30, 1_500_000), record("b"), answer("b"), record("c"),
        answer("c", None, 30),
    )  # fmt: skip
    assert differences.counts == {}
    assert (tally.listed.records, tally.listed.cost_nanos, tally.listed.unpriced) == (
        3,
        1_500_000,
        2,
    )
    assert tally.unlisted.records == 0


def test_an_answer_without_a_record_is_found() -> None:
    """The one thing that must never be; twice answered and once recorded is the same."""
    _, differences = matched(answer("a", 1), record("b"), answer("b"), answer("b"))
    assert differences.first == [
        {"kind": "unrecorded", "request_id": "a", "answers": 1, "tokens_input": 1},
        {"kind": "unrecorded", "request_id": "b", "answers": 1},
    ]


def test_other_figures_are_found() -> None:
    """Both sides are told."""
    _, differences = matched(record("a"), answer("a", 120, 31, 1_500_001))
    assert differences.first == [
        {
            "kind": "client_contents",
            "request_id": "a",
            "answers": 1,
            "fields": ["tokens_output", "cost_nanos"],
            "values": {
                "client": [{"tokens_output": 31, "cost_nanos": 1_500_001}],
                "records": [{"tokens_output": 30, "cost_nanos": 1_500_000}],
            },
        }
    ]


def test_calls_with_one_id_are_told_apart_by_their_figures() -> None:
    """Whatever order they come in, each answer gets the record that fits it."""
    records = [record("a", tokens_input=n) for n in (1, 2, 3)]
    _, differences = matched(*records, answer("a"), answer("a", 1), answer("a", 2))
    assert differences.counts == {}
    _, differences = matched(*records, answer("a", 4), answer("a", 1), answer("a", 2))
    assert [one["values"]["records"] for one in differences.first] == [[{"tokens_input": 3}]]


def test_a_record_that_the_client_does_not_list() -> None:
    """Is told, with its cost; it is a difference where the file claims to have all."""
    lines = (record("a", cost_nanos=7), record("b"), answer("b"))
    tally, differences = matched(*lines)
    assert differences.counts == {}
    assert (tally.unlisted.records, tally.unlisted.cost_nanos) == (1, 7)
    _, differences = matched(*lines, complete=True)
    assert differences.counts == {"unlisted": 1}
    assert differences.first[0]["request_id"] == "a"


@pytest.mark.parametrize(
    "other",
    [{"outcome": "client_aborted"}, {"outcome": "rejected", "status": 429}, {"inside": False}],
)
def test_only_answers_of_the_period_must_be_listed(other: dict[str, Any]) -> None:
    """Not what the client did not wait for, was refused, or made at another time."""
    tally, differences = matched(record("a", **other), complete=True)
    assert (tally.unlisted.records, differences.counts) == (0, {})


def test_a_retry_that_succeeded_is_the_answer() -> None:
    """The refusal before it, with the same id, is not what the client saw answered."""
    lines = (record("a", outcome="rejected", status=429, tokens_input=0), record("a"), answer("a"))
    tally, differences = matched(*lines, complete=True)
    assert (tally.unlisted.records, differences.counts) == (0, {})


def test_a_call_at_the_edge_of_the_period_is_recorded() -> None:
    """The client's clock may say something else."""
    _, differences = matched(record("a", inside=False), answer("a"))
    assert differences.counts == {}
