"""``routerctl usage``: what calls used and cost, as a file for programs or a table for people."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from router.cli import output as out
from router.cli.options import (
    Noun,
    check_period,
    file_option,
    filter_options,
    output_option,
    period_options,
)
from router.clock import Clock
from router.config.settings import load_settings

if TYPE_CHECKING:
    from router.exports.export_file import ExportFile
    from router.store.record_store import RecordStore

PAGE: Final = 5000
_DAY_S: Final = 86_400
_REPORT_DAYS: Final = 30
_GROUPS: Final = ("organization", "model", "key", "backend", "day", "hour")


@click.group("usage", cls=Noun)
def usage() -> None:
    """Export usage records, or report what they come to.

    Both read the record store; what waits in the spool is not in it yet.
    """


@usage.command(
    "export",
    example="routerctl usage export --from 2026-11-01 --to 2026-12-01 --file nov.csv",
    old_options={"--format": "--output", "--output": "--file"},
)
@period_options("the first record")
@filter_options("model", "key", "backend")
@output_option("csv", "jsonl", "parquet")
@file_option(
    "Appears when it is complete; replaced if it is there. '-': standard output.", required=True
)
@click.option("--restart", is_flag=True, help="Do not continue an export that broke off.")
def export(
    from_s: float | None,
    to_s: float | None,
    organization: str | None,
    output: str,
    file: Path,
    restart: bool,
    **filters: str | None,
) -> None:
    """Write every usage record of a period to a file, oldest first.

    The file holds what is stored when the export begins. If the export breaks off, the same
    command continues where it stopped, and the file is the same as without the break. Parquet
    needs api-router[parquet].
    """
    check_period(from_s, to_s)
    to_stdout = os.fspath(file) == "-"
    if output == "parquet":
        if to_stdout:
            raise click.BadParameter("Parquet needs a file", param_hint="--file")
        _require_pyarrow()
    url = load_settings().store_url
    request = {
        "format": output,
        "from_s": from_s,
        "to_s": to_s,
        "organization": organization,
        "filters": _given(filters),
        # Not the URL itself, which may hold a password.
        "store": hashlib.sha256(url.encode()).hexdigest(),
    }
    with _reading(url) as store:
        if to_stdout:
            click.echo(f"{_print_all(store, request)} records", err=True)
        else:
            count = _write_file(store, file, request, restart=restart)
            click.echo(f"{file}: {count} records", err=True)


@usage.command(
    "report",
    example="routerctl usage report --from 2026-11-01 --group-by organization,day",
    old_options={"--format": "--output"},
)
@period_options(f"{_REPORT_DAYS} days ago, at 00:00 UTC")
@filter_options("model", "key", "backend")
@click.option(
    "--group-by",
    default="organization,model",
    show_default=True,
    metavar="NAMES",
    help=f"Any of {', '.join(_GROUPS)}, separated by commas; '' for the total only.",
)
@output_option()
def report(
    from_s: float | None,
    to_s: float | None,
    organization: str | None,
    group_by: str,
    output: str,
    **filters: str | None,
) -> None:
    """Print requests, errors, tokens, cost and latency by group.

    Errors are calls that backends failed. Latencies are of calls that were not rejected. Days and
    hours are those of UTC.
    """
    from router.cli.records import usage_report

    if to_s is None:
        to_s = Clock().now_s()
    if from_s is None:
        from_s = (to_s // _DAY_S - _REPORT_DAYS) * _DAY_S
    check_period(from_s, to_s)
    names = _group_names(group_by)
    with _reading(load_settings().store_url) as store:
        found = usage_report.read(store, organization, names, (from_s, to_s), _given(filters))
    usage_report.print_report(found, output)


def _write_file(
    store: RecordStore, path: Path, request: Mapping[str, Any], *, restart: bool
) -> int:
    """Export to a file, or say in one line why not; how many records it holds."""
    from router.exports.export_file import ExportFile, ExportRefused

    with ExportFile(path) as file:
        try:
            _export(store, file, request, restart=restart)
        except ExportRefused as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            error.filename = error.filename or os.fspath(path)
            raise
        except KeyboardInterrupt:
            raise click.ClickException(
                f"broken off after {file.progress.records} records:"
                " the same command continues from there"
            ) from None
        return file.progress.records


def _export(
    store: RecordStore, file: ExportFile, request: Mapping[str, Any], *, restart: bool
) -> None:
    """Write the pages that are left; a bar shows them on a terminal."""
    from router.exports.usage_columns import CSV_HEADER, write_parquet

    progress = file.begin(
        request,
        lambda: {"newest_id": store.newest_usage_id()},
        header=CSV_HEADER if request["format"] == "csv" else b"",
        restart=restart,
    )
    if progress.records:
        click.echo(f"continues after {progress.records} records", err=True)
    chosen = _chosen(request, progress.bounds["newest_id"])
    total = store.count_usage(**chosen) if sys.stderr.isatty() else None
    encode = _encoder(request["format"])
    with out.progress_bar("records", total, done=progress.records) as advance:
        for page in store.read_records(**chosen, after=progress.after, batch=PAGE):
            file.append(encode([document for _, document in page]), page[-1][0], len(page))
            advance(len(page))
    file.finish(write_parquet if request["format"] == "parquet" else None)


def _print_all(store: RecordStore, request: Mapping[str, Any]) -> int:
    """The same as a file would hold, to standard output; how many records."""
    from router.exports.usage_columns import CSV_HEADER

    stdout = sys.stdout.buffer
    count, encode = 0, _encoder(request["format"])
    if request["format"] == "csv":
        stdout.write(CSV_HEADER)
    for page in store.read_records(**_chosen(request, store.newest_usage_id()), batch=PAGE):
        stdout.write(encode([document for _, document in page]))
        count += len(page)
    stdout.flush()
    return count


def _chosen(request: Mapping[str, Any], newest_id: Any) -> dict[str, Any]:
    return {
        "organization_id": request["organization"],
        "from_s": request["from_s"],
        "to_s": request["to_s"],
        "filters": request["filters"],
        "newest_id": newest_id,
    }


def _encoder(file_format: str) -> Callable[[list[bytes]], bytes]:
    """What makes the lines of a file of stored records."""
    import orjson

    from router.exports import usage_columns

    if file_format == "csv":
        return lambda lines: usage_columns.csv_lines(map(orjson.loads, lines))
    return lambda lines: b"\n".join(lines) + b"\n"


@contextmanager
def _reading(url: str) -> Iterator[RecordStore]:
    """The store; what keeps it from answering ends the command with one line."""
    from router.store.failures import StoreError
    from router.store.record_store import RecordStore

    with out.finding_out(StoreError), RecordStore(url, read_only=True) as store:
        yield store


def _require_pyarrow() -> None:
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise click.ClickException(
            "--output parquet needs the package pyarrow: install api-router[parquet]"
        )


def _given(filters: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in filters.items() if value is not None}


def _group_names(raw: str) -> list[str]:
    names = [name.strip() for name in raw.split(",") if name.strip()]
    for name in names:
        if name not in _GROUPS:
            raise click.BadParameter(
                f"{name!r} is not one of {', '.join(_GROUPS)}", param_hint="--group-by"
            )
    if len(set(names)) != len(names):
        raise click.BadParameter("names a group twice", param_hint="--group-by")
    return names
