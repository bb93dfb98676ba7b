"""``routerctl usage`` as an operator meets it."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from router.cli.main import cli
from router.cli.records import usage_commands as command
from router.clock import FrozenClock
from router.records.record_types import NANOS_PER_USD, degraded_usage, format_timestamp
from router.store.record_store import RecordStore
from tests.unit.cli.operator_stand import succeeded
from tests.unit.records import samples
from tests.unit.records.samples import KEY, START_S

Run = Callable[..., Result]
START = "2027-01-15T08:00:00Z"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with RecordStore(f"sqlite:///{tmp_path}/records.db", audit_key=KEY) as opened:
        opened.migrate()
        yield opened


@pytest.fixture
def run(tmp_path: Path, store: RecordStore) -> Run:
    def call(*arguments: str) -> Result:
        env = {"ROUTER_DATA_DIR": str(tmp_path), "ROUTER_RECORD_STORE": None}
        return CliRunner().invoke(cli, ["usage", *arguments], env=env, prog_name="routerctl")

    return call


@pytest.fixture
def calls(store: RecordStore) -> list[dict[str, Any]]:
    """Records of all kinds, as they are exported: by time."""
    odd = samples.usage(
        timestamp=START_S + 5,
        model="=HYPERLINK(1)",
        metadata={"team": 'a "quoted", one\nof two lines'},
        cost_nanos=1,
    )
    least = orjson.loads(degraded_usage("req-d", "key_1", "native", START_S + 7, 200))
    found = [odd, least, *samples.different_calls(3, 60)]
    store.write(found)
    return sorted(found, key=lambda record: record["timestamp"])


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


# --- export ---------------------------------------------------------------------------------


def test_json_lines_are_the_records_themselves(
    run: Run, tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    """Every field of every record, oldest first."""
    target = tmp_path / "usage.jsonl"
    result = run("export", "--output", "jsonl", "--file", str(target))
    assert succeeded(result) == ""
    assert result.stderr == f"{target}: {len(calls)} records\n"
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert found == calls


def test_csv_has_exact_figures_and_no_formulas(
    run: Run, tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    """Whole nano-USD beside decimal USD; what nobody knows is empty, not 0."""
    target = tmp_path / "usage.csv"
    succeeded(run("export", "--file", str(target)))
    rows = rows_of(target)
    assert [row["record_id"] for row in rows] == [call["record_id"] for call in calls]
    for row, call in zip(rows, calls, strict=True):
        cost = call.get("cost_nanos")
        assert row["cost_nanos"] == ("" if cost is None else str(cost))
        assert row["cost_usd"] == ("" if cost is None else call["cost_usd"])
        assert row["degraded"] == ("true" if call.get("degraded") else "false")
        if cost is not None:
            assert Decimal(row["cost_usd"]) * NANOS_PER_USD == cost
    [odd] = [row for row in rows if row["model"].startswith("'")]
    assert odd["model"] == "'=HYPERLINK(1)"
    assert json.loads(odd["metadata"]) == {"team": 'a "quoted", one\nof two lines'}
    assert [one["backend_id"] for one in json.loads(odd["attempts"])] == ["east"]


def test_parquet_keeps_types_and_money(
    run: Run, tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    """Decimals stay decimals, moments moments, lists lists."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="PYARROW IS NOT INSTALLED")
    target = tmp_path / "usage.parquet"
    succeeded(run("export", "--output", "parquet", "--file", str(target)))
    rows = parquet.read_table(target).to_pylist()
    for row, call in zip(rows, calls, strict=True):
        cost = call.get("cost_nanos")
        assert row["cost_nanos"] == cost
        assert row["cost_usd"] == (None if cost is None else Decimal(call["cost_usd"]))
        assert format_timestamp(row["timestamp"].timestamp()) == call["timestamp"]
        assert row["attempts"] == call.get("attempts")
        assert row["metadata"] == (list(call["metadata"].items()) if "metadata" in call else None)


def test_parquet_without_its_package_names_the_extra(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("export", "--output", "parquet", "--file", str(tmp_path / "x.parquet"))
    assert result.exit_code == 1
    assert "install api-router[parquet]" in result.stderr
    assert list(tmp_path.glob("x.*")) == []


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (("--organization", "acme"), lambda call: call["organization_id"] == "acme"),
        (("--model", "gpt-4o"), lambda call: call.get("model") == "gpt-4o"),
        (("--key", "KEY_1"), lambda call: call["api_key_id"] == "KEY_1"),
        (("--backend", "west_1"), lambda call: call.get("backend_id") == "west_1"),
        (
            ("--from", "2027-01-16", "--to", "2027-01-17T00:00:00+00:00"),
            lambda call: call["timestamp"].startswith("2027-01-16"),
        ),
    ],
)
def test_an_export_can_be_narrowed(
    run: Run,
    tmp_path: Path,
    calls: list[dict[str, Any]],
    options: tuple[str, ...],
    chosen: Callable[[Mapping[str, Any]], bool],
) -> None:
    """By who, what and when."""
    succeeded(run("export", *options, "--file", str(tmp_path / "x.csv")))
    expected = [call["record_id"] for call in calls if chosen(call)]
    assert expected
    assert [row["record_id"] for row in rows_of(tmp_path / "x.csv")] == expected


@pytest.mark.parametrize("shape", ["csv", "jsonl", "parquet"])
def test_a_broken_export_goes_on_and_is_the_same(
    run: Run,
    tmp_path: Path,
    store: RecordStore,
    calls: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    shape: str,
) -> None:
    """However often it breaks off; what was stored meanwhile is not in it."""
    if shape == "parquet":
        pytest.importorskip("pyarrow", reason="PYARROW IS NOT INSTALLED")
    monkeypatch.setattr(command, "PAGE", 7)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = ("export", "--output", shape, "--file")
    succeeded(run(*options, str(whole)))
    read, breaks = RecordStore.read_records, 0

    def failing(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, page in enumerate(read(*arguments, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield page

    monkeypatch.setattr(RecordStore, "read_records", failing)
    while True:
        result = run(*options, str(broken))
        if result.exit_code == 0:
            break
        breaks += 1
        assert f"broken off after {14 * breaks} records" in result.stderr
        assert not broken.exists()
        store.write([samples.usage(timestamp=START_S + 100_000)])
    assert breaks == 4
    assert broken.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("broken.*"))


def test_an_export_with_other_options_does_not_go_on(
    run: Run, tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and what it would take."""
    target = tmp_path / "x.csv"

    def fail(_rows: Any) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("router.exports.usage_columns.csv_lines", fail)
        assert run("export", "--file", str(target)).exit_code == 1
    result = run("export", "--model", "gpt-4o", "--file", str(target))
    assert result.exit_code == 1
    assert "--restart" in result.stderr
    succeeded(run("export", "--model", "gpt-4o", "--restart", "--file", str(target)))
    assert {row["model"] for row in rows_of(target)} == {"gpt-4o"}


@pytest.mark.parametrize(
    "options",
    [
        ("--from", "yesterday"),
        ("--from", "2027-01-15T08:00"),
        ("--from", "2027-02-01", "--to", START),
    ],
)
def test_a_period_that_is_none_is_refused(
    run: Run, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """As a wrong command line."""
    for name in ("export", "report"):
        more = ("--file", str(tmp_path / "x")) if name == "export" else ()
        assert run(name, *options, *more).exit_code == 2


def test_without_a_store_there_is_a_sentence(tmp_path: Path) -> None:
    """No traceback when no agent has ever run here."""
    env = {"ROUTER_DATA_DIR": str(tmp_path), "ROUTER_RECORD_STORE": None}
    for arguments in (["export", "--file", str(tmp_path / "x")], ["report"]):
        result = CliRunner().invoke(cli, ["usage", *arguments], env=env)
        assert result.exit_code == 3
        assert result.stderr.startswith("Error: the record store: ")


def test_former_options_say_the_present_ones(
    run: Run, tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    """They work for one release."""
    target = tmp_path / "usage.jsonl"
    result = run("export", "--format", "jsonl", "--output", str(target))
    succeeded(result)
    assert "'--format' is deprecated and will be removed: use '--output'" in result.stderr
    assert "'--output' is deprecated and will be removed: use '--file'" in result.stderr
    assert len(target.read_bytes().splitlines()) == len(calls)
    result = run("report", "--format", "json")
    assert json.loads(succeeded(result))["group_by"] == ["organization", "model"]
    assert "use '--output'" in result.stderr


def test_a_full_disk_is_one_line_with_the_file(
    run: Run, tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failing call itself does not know the file's name."""

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("router.exports.export_file.os.fsync", refuse)
    target = tmp_path / "usage.csv"
    result = run("export", "--file", str(target))
    assert (result.exit_code, result.stderr) == (3, f"Error: {target}: No space left on device\n")


# --- report ---------------------------------------------------------------------------------

PERIOD = ("--from", "2027-01-15", "--to", "2027-01-16")
TABLE = """\
2027-01-15T00:00:00Z to 2027-01-16T00:00:00Z

MODEL   REQUESTS  ERRORS  REJECTED  TOKENS IN  TOKENS OUT         COST USD  P50 MS  P95 MS  P99 MS
a              2       0         0        240          60  1,236.500000001     100     300     300
bücher         1       1         0        120          30      0.00            200     200     200
--------------------------------------------------------------------------------------------------
TOTAL          3       1         0        360          90  1,236.500000001     200     300     300

calls with estimated tokens, as no backend reported them: 1
"""


@pytest.fixture
def few(store: RecordStore) -> None:
    """Two models, one of them twice."""
    store.write(
        [
            samples.usage(model="a", cost_nanos=1_234_000_000_001, latency_ms=100.0),
            samples.usage(model="a", cost_nanos=2_500_000_000, latency_ms=300.0),
            samples.usage(
                model="bücher",
                outcome="upstream_error",
                usage_source="estimated",
                cost_nanos=None,
                latency_ms=200.0,
            ),
        ]
    )


def test_the_table_can_be_read(run: Run, few: None) -> None:
    """Money stands at its decimal point, to the last nano-USD; the total is below."""
    printed = succeeded(run("report", "--group-by", "model", *PERIOD))
    assert printed == TABLE


def test_control_characters_do_not_reach_the_terminal(run: Run, store: RecordStore) -> None:
    """A model's name cannot move the cursor."""
    store.write([samples.usage(model="\x1b[2J\nTOTAL")])
    printed = succeeded(run("report", "--group-by", "model", *PERIOD))
    assert "\\x1b[2J\\nTOTAL" in printed
    assert "\x1b" not in printed


def test_wide_characters_keep_their_columns(run: Run, store: RecordStore) -> None:
    """A terminal gives two columns to each of them."""
    store.write([samples.usage(model="模型"), samples.usage(model="u\u0308-1")])
    lines = succeeded(run("report", "--group-by", "model", *PERIOD)).splitlines()
    wide = next(line for line in lines if line.startswith("模型"))
    narrow = next(line for line in lines if line.startswith("u\u0308"))
    assert (len(wide) + 2, len(narrow) - 1) == (len(lines[2]), len(lines[2]))


def test_json_and_csv_have_the_figures_of_the_api(run: Run, store: RecordStore, few: None) -> None:
    """One row for each group, exact; CSV leaves the total to whoever adds up."""
    found = json.loads(
        succeeded(run("report", "--group-by", "model,day", "--output", "json", *PERIOD))
    )
    assert (found["from"], found["to"]) == ("2027-01-15T00:00:00Z", "2027-01-16T00:00:00Z")
    assert found["group_by"] == ["model", "day"]
    assert found["data"] == [row.plain() for row in store.usage(None, group_by=["model", "day"])]
    assert found["total"]["cost_nanos"] == 1_236_500_000_001
    assert found["total"]["cost_usd"] == "1236.500000001"
    assert found["total"]["latency_ms_p95"] == 300.0
    printed = succeeded(run("report", "--group-by", "model,day", "--output", "csv", *PERIOD))
    rows = list(csv.DictReader(io.StringIO(printed, newline="")))
    assert [row["model"] for row in rows] == ["a", "bücher"]
    assert [row["cost_usd"] for row in rows] == ["1236.500000001", "0.00"]


def test_the_total_is_the_sum_of_its_rows(
    run: Run, store: RecordStore, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a record is stored between the two questions that make the report."""
    ask = RecordStore.usage

    def answer(self: RecordStore, *arguments: Any, **options: Any) -> Any:
        found = ask(self, *arguments, **options)
        store.write([samples.usage(cost_nanos=1)])
        return found

    monkeypatch.setattr(RecordStore, "usage", answer)
    found = json.loads(succeeded(run("report", "--output", "json", *PERIOD)))
    for name in ("requests", "cost_nanos", "tokens_input"):
        assert found["total"][name] == sum(row[name] for row in found["data"])


def test_the_total_alone(run: Run, few: None) -> None:
    """No groups: one row."""
    table = succeeded(run("report", "--group-by", "", *PERIOD)).splitlines()
    assert table[-3].split()[0] == "3"
    printed = succeeded(run("report", "--group-by", "", "--output", "csv", *PERIOD))
    [row] = csv.DictReader(io.StringIO(printed, newline=""))
    assert row["requests"] == "3"


def test_the_default_period_is_the_last_30_days(
    run: Run, store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole days of UTC, up to now."""
    now_s = START_S + 10 * 86_400
    monkeypatch.setattr(command, "Clock", lambda: FrozenClock(now_s))
    first_s = START_S // 86_400 * 86_400 - 20 * 86_400
    store.write(
        [samples.usage(timestamp=moment) for moment in (first_s - 1, first_s, now_s - 1, now_s)]
    )
    found = json.loads(succeeded(run("report", "--output", "json")))
    assert (found["from"], found["to"]) == ("2026-12-26T00:00:00Z", "2027-01-25T08:00:00Z")
    assert found["total"]["requests"] == 2


def test_a_group_that_is_none_is_refused(run: Run) -> None:
    """The names are told."""
    result = run("report", "--group-by", "model,colour")
    assert result.exit_code == 2
    assert "organization, model, key, backend, day, hour" in result.stderr


# --- standard output, mistakes --------------------------------------------------------------


@pytest.mark.parametrize("shape", ["csv", "jsonl"])
def test_a_dash_is_standard_output(
    run: Run,
    tmp_path: Path,
    calls: list[dict[str, Any]],
    shape: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The very bytes that a file would hold, and no file named '-'."""
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "usage"
    succeeded(run("export", "--output", shape, "--file", str(target)))
    result = run("export", "--output", shape, "--file", "-")
    succeeded(result)
    assert result.stdout_bytes == target.read_bytes()
    assert result.stderr == f"{len(calls)} records\n"
    assert not (tmp_path / "-").exists()


def test_parquet_needs_a_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is written before its beginning."""
    monkeypatch.chdir(tmp_path)
    result = run("export", "--output", "parquet", "--file", "-")
    assert (result.exit_code, "Parquet needs a file" in result.stderr) == (2, True)
    assert not (tmp_path / "-").exists()


def test_a_group_is_named_once(run: Run) -> None:
    """As GET /v1/usage has it."""
    result = run("report", "--group-by", "model,model")
    assert (result.exit_code, "names a group twice" in result.stderr) == (2, True)


def test_a_store_of_another_user_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the path that may not be read."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", "/data/records.db")

    monkeypatch.setattr(RecordStore, "usage", refuse)
    result = run("report")
    assert (result.exit_code, result.stderr) == (3, "Error: /data/records.db: Permission denied\n")
