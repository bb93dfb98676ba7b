"""``routerctl usage``: what calls used and cost, as a file for programs or a table for people."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from router.cli.time_range import check_period, filter_options, period_options
from router.clock import Clock
from router.config.settings import load_settings

if TYPE_CHECKING:
    from router.exports.export_file import ExportFile, Progress
    from router.store.record_store import RecordStore

PAGE: Final = 5000
_DAY_S: Final = 86_400
_REPORT_DAYS: Final = 30
_GROUPS: Final = ("organization", "model", "key", "backend", "day", "hour")


@click.group("usage")
def usage() -> None:
    """Export usage records, or report what they come to.

    Both read the record store; what waits in the spool is not in it yet.
    """


@usage.command("export")
@period_options("the first record")
@filter_options("model", "key", "backend")
@click.option(
    "--format",
    "shape",
    type=click.Choice(["csv", "jsonl", "parquet"]),
    default="csv",
    show_default=True,
    help="Parquet needs api-router[parquet].",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Appears when it is complete; replaced if it is there. '-': standard output.",
)
@click.option("--restart", is_flag=True, help="Do not go on with what broke off.")
def export(
    from_s: float | None,
    to_s: float | None,
    organization: str | None,
    shape: str,
    output: Path,
    restart: bool,
    **filters: str | None,
) -> None:
    """Write every usage record of a period to a file, oldest first.

    The file holds what is stored when the export begins. If the export breaks off, the same
    command goes on where it stopped, and the file is the same as without the break.
    """
    from router.exports.export_file import ExportFile

    check_period(from_s, to_s)
    to_stdout = os.fspath(output) == "-"
    if shape == "parquet":
        if to_stdout:
            raise click.BadParameter("Parquet needs a file", param_hint="--output")
        _require_pyarrow()
    url = load_settings().store_url
    asked = {
        "format": shape,
        "from_s": from_s,
        "to_s": to_s,
        "organization": organization,
        "filters": _given(filters),
        # Not the URL itself, which may hold a password.
        "store": hashlib.sha256(url.encode()).hexdigest(),
    }
    if to_stdout:
        with _explained(), _opened(url) as store:
            count = _print_all(store, asked)
        click.echo(f"{count} records", err=True)
        return
    with _explained(output), _opened(url) as store, ExportFile(output) as file:
        try:
            _export(store, file, asked, restart=restart)
        except KeyboardInterrupt:
            raise click.ClickException(
                f"broken off after {file.progress.records} records:"
                " the same command goes on from there"
            ) from None
        click.echo(f"{output}: {file.progress.records} records", err=True)


@usage.command("report")
@period_options(f"{_REPORT_DAYS} days ago, at 00:00 UTC")
@filter_options("model", "key", "backend")
@click.option(
    "--group-by",
    default="organization,model",
    show_default=True,
    metavar="NAMES",
    help=f"Any of {', '.join(_GROUPS)}, separated by commas; '' for the total only.",
)
@click.option(
    "--format",
    "shape",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="How to print.",
)
def report(
    from_s: float | None,
    to_s: float | None,
    organization: str | None,
    group_by: str,
    shape: str,
    **filters: str | None,
) -> None:
    """Print requests, errors, tokens, cost and latency, by whatever they shall be told apart.

    Errors are calls that backends failed. Latencies are of calls that were not rejected. Days and
    hours are those of UTC.
    """
    from router.cli import usage_report

    if to_s is None:
        to_s = Clock().now_s()
    if from_s is None:
        from_s = (to_s // _DAY_S - _REPORT_DAYS) * _DAY_S
    check_period(from_s, to_s)
    names = _group_names(group_by)
    with _explained(), _opened(load_settings().store_url) as store:
        found = usage_report.read(store, organization, names, (from_s, to_s), _given(filters))
    click.echo(usage_report.SHAPES[shape](found), nl=False)


def _export(
    store: RecordStore, file: ExportFile, asked: Mapping[str, Any], *, restart: bool
) -> None:
    from router.exports.usage_columns import CSV_HEADER, write_parquet

    shape = asked["format"]
    progress = file.begin(
        asked,
        lambda: {"newest_id": store.newest_usage_id()},
        header=CSV_HEADER if shape == "csv" else b"",
        restart=restart,
    )
    if progress.records:
        click.echo(f"goes on after {progress.records} records", err=True)
    _append_all(store, file, progress)
    file.finish(write_parquet if shape == "parquet" else None)


def _append_all(store: RecordStore, file: ExportFile, progress: Progress) -> None:
    """Write the pages that are left; a bar shows them on a terminal."""
    from tqdm import tqdm

    chosen = _chosen(progress.asked, progress.bounds["newest_id"])
    on_terminal = sys.stderr.isatty()
    with tqdm(
        total=store.count_usage(**chosen) if on_terminal else None,
        initial=progress.records,
        disable=not on_terminal,
        unit=" records",
        file=sys.stderr,
    ) as bar:
        for page in store.read_records(**chosen, after=progress.after, batch=PAGE):
            lines = [document for _, document in page]
            file.append(_content(progress.asked["format"], lines), page[-1][0], len(page))
            bar.update(len(page))


def _print_all(store: RecordStore, asked: Mapping[str, Any]) -> int:
    """The same as a file would hold, to standard output; how many records."""
    from router.exports.usage_columns import CSV_HEADER

    out = sys.stdout.buffer
    count = 0
    chosen = _chosen(asked, store.newest_usage_id())
    if asked["format"] == "csv":
        out.write(CSV_HEADER)
    for page in store.read_records(**chosen, batch=PAGE):
        out.write(_content(asked["format"], [document for _, document in page]))
        count += len(page)
    out.flush()
    return count


def _chosen(asked: Mapping[str, Any], newest_id: Any) -> dict[str, Any]:
    return {
        "organization_id": asked["organization"],
        "from_s": asked["from_s"],
        "to_s": asked["to_s"],
        "filters": asked["filters"],
        "newest_id": newest_id,
    }


def _content(shape: str, lines: list[bytes]) -> bytes:
    import orjson

    from router.exports.usage_columns import csv_lines

    if shape == "csv":
        return csv_lines(map(orjson.loads, lines))
    return b"\n".join(lines) + b"\n"


@contextmanager
def _opened(url: str) -> Iterator[RecordStore]:
    from router.store.record_store import RecordStore

    with RecordStore(url, read_only=True) as store:
        yield store


@contextmanager
def _explained(output: Path | None = None) -> Iterator[None]:
    """What an operator can mend ends without a traceback; what was exported so far is kept."""
    from router.exports.export_file import ExportRefused
    from router.store.store_errors import StoreError

    try:
        yield
    except (StoreError, ExportRefused) as error:
        raise click.ClickException(str(error)) from None
    except BrokenPipeError:
        raise  # whoever read our output has enough
    except OSError as error:
        path = error.filename or output
        why = error.strerror or str(error)
        raise click.ClickException(f"{path}: {why}" if path else why) from None


def _require_pyarrow() -> None:
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise click.ClickException(
            "--format parquet needs the package pyarrow: install api-router[parquet]"
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
