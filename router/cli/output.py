"""How every command prints, names its options and ends.

* ``-o/--output`` is always a format, ``--file`` always a file.
* Exit codes: 0 fine, 1 differs or damaged or refused, 2 wrong usage, 3 could not find out.
* Results go to standard output; remarks, progress and deprecations to standard error.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

DIFFERS: Final = 1
"""The exit code of an answer that is "no": something differs, is damaged or was refused."""
USAGE: Final = 2
"""The exit code of a wrong command line or environment variable."""
UNKNOWN: Final = 3
"""The exit code when there is no answer because its source is unavailable."""
_UNLIMITED: Final = 1_000_000
"""Characters of a line of a table."""


class CannotFindOut(click.ClickException):
    """Redis, the record store, Kafka or a file is unavailable; the exit code is 3."""

    exit_code = UNKNOWN


def end_with_difference() -> NoReturn:
    """End the command with exit code 1; what differs or is damaged has been printed."""
    raise click.exceptions.Exit(DIFFERS)


@contextmanager
def finding_out(*errors: type[Exception]) -> Iterator[None]:
    """Turn ``OSError`` and the given errors into :class:`CannotFindOut`, one line each."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output has enough
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotFindOut(f"{error.filename}: {reason}" if error.filename else reason) from None
    except errors as error:
        raise CannotFindOut(str(error)) from None


# --- values ---------------------------------------------------------------------------------


def shown(value: object) -> str:
    """A value as a cell of a table; nothing is ``-``; what could steer a terminal is escaped."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(map(shown, value)) or "none"
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def count(value: float | str | None) -> str:
    """A number, or an exact decimal text, with commas: ``1234567`` → ``1,234,567``."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}"
    sign, digits = ("-", str(value)[1:]) if str(value).startswith("-") else ("", str(value))
    whole, point, fraction = digits.partition(".")
    return f"{sign}{int(whole):,}{point}{fraction}"


def size(value: int | None) -> str:
    """Bytes: ``1536`` → ``1.5 KiB``."""
    if value is None:
        return "-"
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{value} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


# --- tables, JSON and CSV ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: which value of a row it shows, and how.

    ``align="point"`` lines numbers up at their decimal points.
    """

    name: str
    title: str = ""
    show: Callable[[Any], str] = shown
    align: Literal["left", "right", "point"] = "left"

    def heading(self) -> str:
        """``title``, or else the name in capitals."""
        return self.title or self.name.replace("_", " ").upper()


Row = Mapping[str, Any]


def print_rows(
    output: str, columns: Sequence[Column], rows: Sequence[Row], *, empty: str = "nothing"
) -> None:
    """Print rows of JSON values in a format of :func:`output_option`.

    A table and CSV have the columns; JSON has all that is in the rows. A table without rows is the
    line ``empty``.
    """
    if output == "json":
        print_json(rows)
    elif output == "csv":
        print_csv([column.name for column in columns], rows)
    elif rows:
        print_table(columns, rows)
    else:
        click.echo(empty)


def print_facts(output: str, facts: Row) -> None:
    """Print one thing: a line for each fact, an object of JSON, or a CSV file of one row."""
    if output == "json":
        print_json(facts)
    elif output == "csv":
        print_csv(list(facts), [facts])
    else:
        width = max(map(len, facts), default=0) + 2
        for name, value in facts.items():
            click.echo(f"{name.replace('_', ' ') + ':':<{width}}{shown(value)}")


def print_json(value: Any) -> None:
    """Print JSON for programs, indented by two."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_csv(names: Sequence[str], rows: Iterable[Row]) -> None:
    """Print CSV with a head; lists are joined by spaces, and no cell is taken for a formula."""
    from router.exports.csv_cells import safe_cell

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([safe_cell(_csv_value(row.get(name))) for name in names])
    click.echo(text.getvalue(), nl=False)


def _csv_value(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def print_table(
    columns: Sequence[Column], rows: Sequence[Row], *, total: Row | None = None
) -> None:
    """Print a table, with ``total`` as its last line below a rule.

    Every row is one line, so that ids can be copied and programs can read lines; a terminal that is
    too narrow wraps it.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    cells = []
    for column in columns:
        shown_cells = [column.show(row.get(column.name)) for row in rows]
        if total is not None:
            shown_cells.append(column.show(total[column.name]) if column.name in total else "")
        heading = column.heading()
        if column.align == "point":
            heading, shown_cells = _at_points(heading, shown_cells)
        table.add_column(
            Text(heading),
            justify="right" if column.align == "right" else "left",
            no_wrap=True,
        )
        cells.append(shown_cells)
    for row_cells in zip(*cells, strict=True):
        table.add_row(*map(Text, row_cells))
    console = Console(file=sys.stdout, highlight=False, width=_UNLIMITED)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    if total is not None:
        lines[-1:-1] = ["-" * max(map(len, lines))]
    click.echo("\n".join(lines))


def _at_points(heading: str, cells: Sequence[str]) -> tuple[str, list[str]]:
    """Heading and cells of one width, the decimal points below one another."""
    fraction = max((len(cell.partition(".")[2]) for cell in cells), default=0)
    fraction += any("." in cell for cell in cells)
    padded = [cell + " " * (fraction - len("".join(cell.partition(".")[1:]))) for cell in cells]
    width = max(len(heading), *map(len, padded)) if padded else len(heading)
    return heading.rjust(width), [cell.rjust(width) for cell in padded]


# --- progress -------------------------------------------------------------------------------


@contextmanager
def progress_bar(
    label: str, total: float | None, *, done: float = 0, in_bytes: bool = False
) -> Iterator[Callable[[float], None]]:
    """Yield a function that adds to what is done; a bar is shown if standard error is a terminal.

    ``total`` is ``None`` if it is unknown.
    """
    if not sys.stderr.isatty():
        yield lambda _amount: None
        return
    from rich import progress
    from rich.console import Console

    amount: progress.ProgressColumn = (
        progress.DownloadColumn(binary_units=True) if in_bytes else progress.MofNCompleteColumn()
    )
    with progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        amount,
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bars:
        bar = bars.add_task(label, total=total, completed=done)  # type: ignore[arg-type]
        yield lambda amount: bars.advance(bar, amount)
