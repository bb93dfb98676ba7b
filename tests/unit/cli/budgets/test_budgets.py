"""`routerctl budgets` as an operator meets it, on a real redis-server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import Result

from router.cli.operator_audit import OperatorAuditLog
from router.clock import Clock
from router.config.config_errors import StateUnavailable
from router.config.loader import load_serialized
from router.config.settings import Settings
from router.config.state.state_writer import StateWriter
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import Amounts, Reservation, WindowSpec
from router.redis.client import RedisClient
from router.spool.frames import USAGE
from router.spool.writer import SpoolWriter
from router.store.record_store import RecordStore
from tests.unit.cli.operator_stand import Run, events, refused, routerctl, succeeded
from tests.unit.records import samples

DOCUMENT = {
    "version": 1,
    "organizations": [
        {
            "id": "acme",
            "budgets": [
                {"name": "spend", "unit": "usd", "period": "monthly", "limit": "10"},
                {"name": "calls", "unit": "requests", "period": "total"},
            ],
        },
        {"id": "other", "budgets": [{"name": "spend", "unit": "usd", "period": "daily"}]},
        {"id": "plain"},
    ],
    "keys": [
        {
            "id": "batch",
            "organization": "acme",
            "hash": "ab" * 32,
            "budgets": [{"name": "spend", "unit": "tokens", "period": "total", "limit": 100}],
        },
        {"id": "free", "organization": "acme", "hash": "cd" * 32},
    ],
}
SPEND = WindowSpec("spend", "usd", "monthly", 10 * 10**9, thresholds=(80, 95))
OF_KEY = WindowSpec("spend", "tokens", "total", 100, scope="key", subject="batch")


@pytest.fixture
def ledger(client: RedisClient) -> Ledger:
    """With the windows of the tests open and empty."""
    LedgerMaintenance(client).rebuild("acme", [SPEND, OF_KEY], lambda _lost: 0)
    return Ledger(client)


@pytest.fixture
def run(tmp_path: Path, redis_url: str, client: RedisClient) -> Run:
    return routerctl("budgets", tmp_path, redis_url, DOCUMENT)


def hold(ledger: Ledger, lease: str, amounts: Amounts) -> Reservation:
    held = ledger.reserve("acme", lease, [SPEND, OF_KEY], amounts, ttl_ms=60_000)
    assert isinstance(held, Reservation)
    return held


def spend(ledger: Ledger, lease: str, amounts: Amounts) -> None:
    assert ledger.settle(hold(ledger, lease, amounts), amounts).booked


def settled(ledger: Ledger, window: WindowSpec = SPEND) -> int:
    [state] = ledger.read("acme", [window])
    assert not state.lost
    return state.settled


def test_the_list_shows_the_enforcing_counters(run: Run, ledger: Ledger) -> None:
    """B17: settled and reserved as the next refusal would tell them, of every organization."""
    spend(ledger, "a", Amounts(1_250_000_000, 40))
    hold(ledger, "b", Amounts(500_000_000, 7))
    found = {
        (one["organization"], one["key"], one["budget"]): one
        for one in json.loads(succeeded(run("list", "--output", "json")))
    }
    assert len(found) == 4
    mine = found["acme", None, "spend"]
    assert (mine["settled"], mine["reserved"], mine["limit"]) == ("1.25", "0.50", "10.00")
    assert (mine["remaining"], mine["unit"], mine["period"]) == ("8.25", "usd", "monthly")
    keys = found["acme", "batch", "spend"]
    assert (keys["settled"], keys["reserved"], keys["remaining"]) == (40, 7, 53)
    assert found["other", None, "spend"]["settled"] is None
    assert found["other", None, "spend"]["counted"] is False

    text = succeeded(run("list", "--organization", "acme"))
    [head, *rows] = text.splitlines()
    assert head.split()[:4] == ["ORGANIZATION", "KEY", "BUDGET", "PERIOD"]
    assert [row.split()[:3] for row in rows] == [
        ["acme", "-", "spend"],
        ["acme", "-", "calls"],
        ["acme", "batch", "spend"],
    ]
    assert rows[0].split()[-3:] == ["1.25", "0.50", "10.00"]


def test_looking_changes_nothing(run: Run, client: RedisClient, tmp_path: Path) -> None:
    """A window that Redis does not know stays so, until a call rebuilds it."""
    before = client.command("DBSIZE")
    succeeded(run("list"))
    succeeded(run("show", "acme"))
    assert client.command("DBSIZE") == before
    assert events(tmp_path) == []


def test_one_organization_in_full(run: Run, ledger: Ledger) -> None:
    """All that is configured, and with a key what holds for its calls."""
    text = succeeded(run("show", "acme", "--key", "batch"))
    assert text.count("budget:") == 3
    assert "thresholds:   80, 95" in text
    assert "limit:        10.00" in text
    assert succeeded(run("show", "acme", "--key", "free")).count("budget:") == 2
    assert succeeded(run("show", "plain")) == ""
    assert succeeded(run("list", "--organization", "plain")) == "no budgets\n"


@pytest.mark.parametrize(
    ("amount", "left"), [("-1.25", 0), ("-0.000000001", 1_249_999_999), ("2", 3_250_000_000)]
)
def test_an_adjustment_is_exact_and_audited(
    run: Run, ledger: Ledger, tmp_path: Path, amount: str, left: int
) -> None:
    """B10: to the nano-USD, with its reason, who made it, and what it was before."""
    spend(ledger, "a", Amounts(1_250_000_000, 1))
    text = succeeded(run("adjust", "acme", "spend", "--amount", amount, "--reason", "a refund"))
    assert text.startswith("spend: settled 1.25 -> ")
    assert settled(ledger) == left
    [event] = events(tmp_path)
    assert (event["action"], event["reason"]) == ("BUDGET_ADJUSTED", "a refund")
    assert event["actor"].startswith("operator:")
    assert (event["organization_id"], event["entity_type"]) == ("acme", "budget")
    assert (event["before"], event["after"]) == ({"settled": 1_250_000_000}, {"settled": left})
    assert event["context"]["correction_id"] in text


def test_more_cannot_be_taken_off_than_was_settled(run: Run, ledger: Ledger) -> None:
    """Settled is never negative: that would raise the limit."""
    spend(ledger, "a", Amounts(5, 1))
    succeeded(run("adjust", "acme", "spend", "--amount=-9", "--reason", "r"))
    assert settled(ledger) == 0


def test_a_correction_counts_once(run: Run, ledger: Ledger, tmp_path: Path) -> None:
    """Repeated with its id it changes nothing, and the trail has it once."""
    once = ("adjust", "acme", "spend", "--amount", "1", "--reason", "r", "--correction-id", "c1")
    succeeded(run(*once))
    assert "made before: nothing changed" in succeeded(run(*once))
    assert settled(ledger) == 10**9
    assert len(events(tmp_path)) == 1
    succeeded(run(*once[:-1], "c2"))
    assert settled(ledger) == 2 * 10**9


def test_calls_settled_in_between_are_in_the_trail(
    run: Run, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B10: the trail has what was meant and, where it differs, what was done."""
    spend(ledger, "a", Amounts(10, 1))
    adjust = LedgerMaintenance.adjust

    def late(maintenance: Any, *args: Any, **options: Any) -> Any:
        spend(ledger, "b", Amounts(2, 1))
        return adjust(maintenance, *args, **options)

    monkeypatch.setattr(LedgerMaintenance, "adjust", late)
    succeeded(run("adjust", "acme", "spend", "--amount=-0.000000005", "--reason", "r"))
    found = [(event["before"], event["after"]) for event in events(tmp_path)]
    assert found == [
        ({"settled": 10}, {"settled": 5}),
        ({"settled": 12}, {"settled": 7}),
    ]
    assert settled(ledger) == 7


def test_a_window_that_is_lost_meanwhile_is_a_line(
    run: Run, ledger: Ledger, client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is changed, and it says so."""
    spend(ledger, "a", Amounts(10, 1))
    adjust = LedgerMaintenance.adjust

    def late(maintenance: Any, *args: Any, **options: Any) -> Any:
        client.command("FLUSHALL")
        return adjust(maintenance, *args, **options)

    monkeypatch.setattr(LedgerMaintenance, "adjust", late)
    text = refused(run("adjust", "acme", "spend", "--amount", "1", "--reason", "r"), 3)
    assert "nothing was changed" in text


def test_a_reset_begins_the_period_again(run: Run, ledger: Ledger, tmp_path: Path) -> None:
    """Of the key's own budget only; what is reserved stays."""
    spend(ledger, "a", Amounts(1000, 60))
    hold(ledger, "b", Amounts(1, 5))
    succeeded(run("reset", "acme", "spend", "--key", "batch", "--reason", "new contract"))
    [state] = ledger.read("acme", [OF_KEY])
    assert (state.settled, state.reserved) == (0, 5)
    assert settled(ledger) == 1000
    [event] = events(tmp_path)
    assert event["action"] == "LIMIT_RESET"
    assert event["context"]["api_key_id"] == "batch"
    assert (event["before"], event["after"]) == ({"settled": 60}, {"settled": 0})


def test_thresholds_that_it_reaches_are_told(run: Run, ledger: Ledger, tmp_path: Path) -> None:
    """B18: once each, whoever makes it happen."""
    succeeded(run("adjust", "acme", "spend", "--amount", "9", "--reason", "booked by hand"))
    assert [(event["action"], event["context"].get("percent")) for event in events(tmp_path)] == [
        ("BUDGET_ADJUSTED", None),
        ("BUDGET_THRESHOLD", 80),
    ]


def test_a_lost_window_is_rebuilt_first(run: Run, client: RedisClient, tmp_path: Path) -> None:
    """D10: what the records have is there before anything is taken off."""
    spool = SpoolWriter(tmp_path / "spool", max_bytes=1 << 30)
    record = samples.usage(timestamp=Clock().now_s(), cost_nanos=3 * 10**9)
    spool.append([(USAGE, orjson.dumps(record))])
    spool.close()
    text = succeeded(run("adjust", "acme", "spend", "--amount", "-1", "--reason", "r"))
    assert text.startswith("spend: settled 3.00 -> 2.00")
    assert settled(Ledger(client)) == 2 * 10**9


# --- rebuild ----------------------------------------------------------------------------------

NOW_S = Clock().now_s()


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., None]:
    """Puts a usage record of acme, of this moment, into the store and not into Redis."""

    def record(cost_nanos: int, **fields: Any) -> None:
        key = samples.KEY
        with RecordStore(Settings(data_dir=tmp_path).store_url, audit_key=key) as store:
            store.migrate()
            record = {"timestamp": NOW_S, "cost_nanos": cost_nanos, "api_key_id": "batch", **fields}
            store.write([samples.usage(**record)])

    return record


def rebuilt(result: Result) -> dict[tuple[str, str | None], tuple[Any, Any]]:
    """Of each budget of acme: what was settled before, and after."""
    rows = json.loads(succeeded(result))
    assert {row["organization"] for row in rows} <= {"acme", "other"}
    return {
        (row["budget"], row["key"]): (row["before"], row["settled"])
        for row in rows
        if row["organization"] == "acme"
    }


def test_counters_are_made_anew_from_the_records(
    run: Run, ledger: Ledger, recorded: Callable[..., None]
) -> None:
    """After a restore of Redis from an old copy: what is open is not what the records say."""
    spend(ledger, "a", Amounts(1_000_000_000, 20))
    held = hold(ledger, "b", Amounts(250_000_000, 5))
    recorded(3_000_000_000, tokens_input=30, tokens_output=3)
    found = rebuilt(run("rebuild", "-o", "json"))
    assert found == {
        ("spend", None): ("1.00", "3.00"),
        ("calls", None): (None, 1),
        ("spend", "batch"): (20, 33),
    }
    assert ledger.settle(held, Amounts(200_000_000, 4)).booked
    assert settled(ledger) == 3_200_000_000
    assert settled(ledger, OF_KEY) == 37


def test_a_rebuild_is_audited(
    run: Run, ledger: Ledger, recorded: Callable[..., None], tmp_path: Path
) -> None:
    """Who, which windows, from and to which amount; null for what Redis did not know."""
    spend(ledger, "a", Amounts(1_000_000_000, 20))
    recorded(3_000_000_000)
    succeeded(run("rebuild", "--organization", "acme"))
    found = [event for event in events(tmp_path) if event["action"] == "BUDGET_REBUILT"]
    assert all(event["actor"].startswith("operator:") for event in found)
    told = {
        (event["organization_id"], event["context"]["budget"], event["context"]["api_key_id"]): (
            event["before"],
            event["after"],
        )
        for event in found
    }
    tokens = samples.usage()["tokens_input"] + samples.usage()["tokens_output"]
    assert told == {
        ("acme", "spend", None): ({"settled": 1_000_000_000}, {"settled": 3_000_000_000}),
        ("acme", "calls", None): (None, {"settled": 1}),
        ("acme", "spend", "batch"): ({"settled": 20}, {"settled": tokens}),
    }


def test_no_trail_no_rebuild(
    run: Run, ledger: Ledger, recorded: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2: what cannot be written down is not done; the next call finds the window lost and seeds
    it."""
    spend(ledger, "a", Amounts(1_000_000_000, 20))
    recorded(3_000_000_000)

    def note(*_: Any, **__: Any) -> None:
        raise StateUnavailable(["the audit trail cannot be written (no_space)"])

    monkeypatch.setattr(OperatorAuditLog, "note_rebuild", note)
    assert "audit trail" in refused(run("rebuild", "--organization", "acme"), 3)
    [state] = ledger.read("acme", [SPEND])
    assert state.lost


def test_only_what_is_lost_is_rebuilt_on_request(
    run: Run, ledger: Ledger, recorded: Callable[..., None]
) -> None:
    """Before the first call after a loss; what is counted stays as it is."""
    spend(ledger, "a", Amounts(1_000_000_000, 20))
    recorded(3_000_000_000)
    assert rebuilt(run("rebuild", "--only-lost", "--organization", "acme", "-o", "json")) == {
        ("calls", None): (None, 1)
    }
    assert settled(ledger) == 1_000_000_000
    assert (
        json.loads(succeeded(run("rebuild", "--organization", "acme", "--only-lost", "-o", "json")))
        == []
    )


def test_a_rebuild_is_shown(run: Run, ledger: Ledger, recorded: Callable[..., None]) -> None:
    """One line a budget, '-' for what was not counted."""
    recorded(2_000_000_000)
    lines = [line.split() for line in succeeded(run("rebuild")).splitlines()]
    assert lines[0] == [
        "ORGANIZATION", "KEY", "BUDGET", "PERIOD", "UNIT", "BEFORE", "SETTLED", "RESERVED"
    ]  # fmt: skip
    assert ["acme", "-", "spend", "monthly", "usd", "0.00", "2.00", "0.00"] in lines
    assert ["other", "-", "spend", "daily", "usd", "-", "0.00", "0.00"] in lines


def test_a_budget_that_was_removed_and_put_back_counts_the_calls_in_between(
    run: Run, ledger: Ledger, recorded: Callable[..., None], tmp_path: Path
) -> None:
    """Five calls without the budget, of 0.50 each: they used to be free for ever."""
    spend(ledger, "a", Amounts(1_000_000_000, 1))
    recorded(1_000_000_000)
    writer = StateWriter(Settings(data_dir=tmp_path).state_dir)
    without = {**DOCUMENT, "organizations": [{"id": name} for name in ("acme", "other", "plain")]}
    writer.apply(load_serialized(without, demo=False))
    for _ in range(5):
        recorded(500_000_000)
    writer.apply(load_serialized(DOCUMENT, demo=False))
    [row] = [
        row
        for row in json.loads(succeeded(run("show", "acme", "-o", "json")))
        if (row["budget"], row["key"]) == ("spend", None)
    ]
    assert (row["counted"], row["settled"]) == (False, None)
    found = rebuilt(run("rebuild", "--only-lost", "-o", "json"))
    assert found["spend", None] == (None, "3.50")


def test_a_correction_outlives_redis(
    run: Run, ledger: Ledger, recorded: Callable[..., None], client: RedisClient
) -> None:
    """B10: adjusted by -0.5, then Redis was emptied; and its id still counts once."""
    spend(ledger, "a", Amounts(2_000_000_000, 1))
    recorded(2_000_000_000)
    adjust = ("adjust", "acme", "spend", "--amount", "-0.5", "--reason", "r")
    succeeded(run(*adjust, "--correction-id", "c1"))
    client.command("FLUSHALL")
    assert rebuilt(run("rebuild", "-o", "json"))["spend", None] == (None, "1.50")
    assert "made before" in succeeded(run(*adjust, "--correction-id", "c1"))
    assert settled(ledger) == 1_500_000_000


def test_without_records_nothing_is_rebuilt(run: Run, ledger: Ledger) -> None:
    """A command that looks in the wrong place must not set budgets to 0."""
    spend(ledger, "a", Amounts(5, 1))
    assert "record store" in refused(run("rebuild"), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nobody"), "no organization 'nobody'"),
        (("show", "acme", "--key", "nobody"), "has no key 'nobody'"),
        (("show", "other", "--key", "batch"), "has no key 'batch'"),
        (("reset", "acme", "missing", "--reason", "r"), "has no budget 'missing'"),
        (("reset", "acme", "calls", "--key", "batch", "--reason", "r"), "has no budget 'calls'"),
        (("reset", "acme", "spend"), "--reason"),
        (("reset", "acme", "spend", "--reason", " "), "must say something"),
        (("adjust", "acme", "spend", "--reason", "r"), "--amount"),
        (("adjust", "acme", "spend", "--reason", "r", "--amount", "x"), "no number"),
        (("adjust", "acme", "spend", "--reason", "r", "--amount", "NaN"), "no number"),
        (("adjust", "acme", "spend", "--reason", "r", "--amount", "1e99"), "can be counted"),
        (("adjust", "acme", "spend", "--reason", "r", "--amount", "0"), "changes nothing"),
        (("adjust", "acme", "spend", "--reason", "r", "--amount", "1e-10"), "finer than"),
        (("adjust", "acme", "calls", "--reason", "r", "--amount", "1.5"), "finer than"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """With a line that says what, and nothing in the trail."""
    result = run(*arguments)
    assert message in refused(result, 2 if "Usage:" in result.stderr else 1)
    assert events(tmp_path) == []


def test_redis_away_is_a_line(run: Run, tmp_path: Path) -> None:
    """And nothing is written down that was not done."""
    away = {"RATE_LIMIT_REDIS_ADDR": f"unix://{tmp_path}/nothing.sock"}
    assert "no answer from" in refused(run("list", **away), 3)
    assert "no answer from" in refused(run("reset", "acme", "spend", "--reason", "r", **away), 3)
    assert events(tmp_path) == []


def test_a_budget_service_is_left_alone(run: Run) -> None:
    """Its ledger is not in our Redis: figures from there would be wrong."""
    line = refused(run("list", BUDGET_SERVICE_ENDPOINT="http://127.0.0.1:1"))
    assert "BUDGET_SERVICE_ENDPOINT" in line


def test_no_trail_no_correction(run: Run, ledger: Ledger, tmp_path: Path) -> None:
    """A2: what cannot be written down is not done."""
    spend(ledger, "a", Amounts(7, 1))
    (tmp_path / "spool").write_text("no directory")
    assert "audit trail" in refused(run("reset", "acme", "spend", "--reason", "r"), 3)
    assert settled(ledger) == 7


def test_without_a_server_one_is_there_for_the_command(run: Run, tmp_path: Path) -> None:
    """embedded://: started for the command, its figures kept, gone afterwards."""
    private = {"RATE_LIMIT_REDIS_ADDR": "embedded://"}
    succeeded(run("adjust", "acme", "spend", "--amount", "1.5", "--reason", "r", **private))
    listed = json.loads(succeeded(run("list", "--output", "json", **private)))
    assert listed[0]["settled"] == "1.50"
