"""How commands print: tables, JSON and CSV of the same rows, exit codes, former option names."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from router.cli import output
from router.cli.options import Command, file_option, output_option
from router.cli.output import Column

COLUMNS = (
    Column("organization"),
    Column("requests", show=output.count, align="right"),
    Column("cost_usd", "COST USD", show=output.count, align="point"),
    Column("scopes"),
)
ROWS: list[dict[str, Any]] = [
    {"organization": "acme", "requests": 1200, "cost_usd": "1234.500000001", "scopes": ["a", "b"],
     "hidden": 1},
    {"organization": "日本", "requests": 7, "cost_usd": "0.25", "scopes": [], "hidden": None},
    {"organization": None, "requests": None, "cost_usd": "3", "scopes": None, "hidden": 2},
]  # fmt: skip


def test_a_table_lines_up_numbers_and_wide_letters(capsys: pytest.CaptureFixture[str]) -> None:
    """Counts end, and decimal points stand, below one another; a wide letter takes two columns."""
    output.print_rows("table", COLUMNS, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "ORGANIZATION  REQUESTS         COST USD  SCOPES",
        "acme             1,200  1,234.500000001  a, b",
        "日本                 7      0.25         none",
        "-                    -      3            -",
    ]


def test_a_total_stands_below_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """Its decimal point lines up with those of the rows."""
    output.print_table(COLUMNS[:3], ROWS[1:2], total={"organization": "TOTAL", "cost_usd": "10.5"})
    assert capsys.readouterr().out.splitlines() == [
        "ORGANIZATION  REQUESTS  COST USD",
        "日本                 7      0.25",
        "-" * 32,
        "TOTAL                      10.5",
    ]


def test_a_long_row_stays_one_line_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing wraps or is cut where standard output is no terminal."""
    long = "x" * 5000
    output.print_rows("table", [Column("name"), Column("id")], [{"name": long, "id": long}])
    assert capsys.readouterr().out.splitlines()[1] == f"{long}  {long}"


def test_a_cell_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences are shown escaped, and markup is text."""
    output.print_rows("table", [Column("name")], [{"name": "\x1b[2J[bold]a[/bold] :smile:"}])
    assert capsys.readouterr().out.splitlines()[1] == r"\x1b[2J[bold]a[/bold] :smile:"


def test_json_and_csv_hold_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has everything; CSV has the columns, plain numbers and no formula."""
    output.print_rows("json", COLUMNS, ROWS)
    assert json.loads(capsys.readouterr().out) == ROWS
    output.print_rows("csv", COLUMNS, [{**ROWS[0], "organization": "=1+1"}])
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [
        ["organization", "requests", "cost_usd", "scopes"],
        ["'=1+1", "1200", "1234.500000001", "a b"],
    ]


def test_no_rows_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A table without rows says so; a program gets an empty list."""
    output.print_rows("table", COLUMNS, [], empty="no keys")
    assert capsys.readouterr().out == "no keys\n"
    output.print_rows("json", COLUMNS, [], empty="no keys")
    assert capsys.readouterr().out == "[]\n"


def test_facts_are_lines_or_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    """One thing is printed in the same formats as many."""
    facts = {"id": "k1", "expires_at": None, "shadow": False, "scopes": ["a"]}
    output.print_facts("table", facts)
    assert capsys.readouterr().out.splitlines() == [
        "id:         k1",
        "expires at: -",
        "shadow:     no",
        "scopes:     a",
    ]
    output.print_facts("json", facts)
    assert json.loads(capsys.readouterr().out) == facts
    output.print_facts("csv", facts)
    assert capsys.readouterr().out == "id,expires_at,shadow,scopes\r\nk1,,false,a\r\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (None, "-"),
     (3 * 2**50, "3072.0 TiB")],
)  # fmt: skip
def test_sizes_are_readable(value: int | None, text: str) -> None:
    """Bytes come in the largest unit that leaves a whole part."""
    assert output.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), ("-0.5", "-0.5"), ("-1234.5", "-1,234.5"), (12.6, "13"), (None, "-")],
)
def test_numbers_have_commas(value: float | str | None, text: str) -> None:
    """The digits after the point stay as they are."""
    assert output.count(value) == text


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (OSError(28, "No space left on device", "/x"), 3, "Error: /x: No space left on device\n"),
        (OSError("odd"), 3, "Error: odd\n"),
        (KeyError("gone"), 3, "Error: 'gone'\n"),
        (None, 1, ""),
    ],
)
def test_no_answer_is_told_apart_from_a_bad_one(
    raised: Exception | None, code: int, said: str
) -> None:
    """What cannot be asked ends with 3, what differs or is damaged with 1."""

    @click.command()
    def command() -> None:
        with output.finding_out(KeyError):
            if raised is not None:
                raise raised
        output.end_with_difference()

    result = CliRunner().invoke(command)
    assert (result.exit_code, result.output) == (code, said)


@click.command(
    cls=Command,
    old_options={
        "--format": "--output",
        "--json": "--output json",
        "--output text": "--output table",
        "--output": "--file",
    },
)
@output_option()
@file_option("Where to write.")
@click.argument("words", nargs=-1)
def echo(output: str, file: Path | None, words: tuple[str, ...]) -> None:
    click.echo(f"{output} {file} {words}")


@pytest.mark.parametrize(
    ("line", "printed", "renamed"),
    [
        ("", "table None ()", None),
        ("-o csv --file x", "csv x ()", None),
        ("--output json", "json None ()", None),
        ("--format json", "json None ()", ("--format", "--output")),
        ("--format=csv", "csv None ()", ("--format", "--output")),
        ("--json", "json None ()", ("--json", "--output json")),
        ("--json a", "json None ('a',)", ("--json", "--output json")),
        ("--output text", "table None ()", ("--output text", "--output table")),
        ("--output=text a", "table None ('a',)", ("--output text", "--output table")),
        ("--output a.csv", "table a.csv ()", ("--output", "--file")),
        ("--output=- a", "table - ('a',)", ("--output", "--file")),
        ("a -- --json", "table None ('a', '--json')", None),
    ],
)
def test_former_options_work_and_name_their_successors(
    line: str, printed: str, renamed: tuple[str, str] | None
) -> None:
    """Each leaves one line on standard error; present spellings leave none."""
    result = CliRunner().invoke(echo, line.split())
    assert result.stdout == printed + "\n"
    expected = "" if renamed is None else (
        f"'{renamed[0]}' is deprecated and will be removed: use '{renamed[1]}'\n"
    )  # fmt: skip
    assert result.stderr == expected


def test_a_bar_is_shown_on_terminals_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log gets no bar, and standard output never."""
    with output.progress_bar("shipping", 10, done=4) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with output.progress_bar("shipping", 2048, in_bytes=True) as advance:
        advance(2048)
    out, err = capsys.readouterr()
    assert (out, "2.0/2.0 KiB" in err) == ("", True)
