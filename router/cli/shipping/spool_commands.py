"""``routerctl spool``: shows what waits to be shipped, checks that it is whole, ships it now."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import click

from router.agent.lock import AgentLock
from router.agent.status import read_report
from router.cli.options import Noun, output_option
from router.cli.output import CannotFindOut, end_with_difference, finding_out, progress_bar
from router.cli.shipping.sink_choice import check_sinks, configured_sinks
from router.cli.shipping.spool_findings import read_findings
from router.cli.shipping.spool_status import print_status, read_status, saved_positions
from router.cli.trail_pepper import trail_pepper
from router.clock import Clock
from router.config.settings import Settings, load_settings
from router.records.record_types import parse_timestamp_us
from router.spool.frames import Position
from router.spool.reader import SpoolReader

Positions = Mapping[str, "Position"]
Agent = subprocess.Popen[bytes]

_POLL_S: Final = 0.2
_REPORT_AGE_S: Final = 5.0
"""An agent reports once a second; an older report is that of an agent that has ended."""
_FIRST_TERM_S: Final = 1.0
_AGENT_EXIT_S: Final = 30.0


@click.group("spool", cls=Noun)
def spool() -> None:
    """Show or check the records that wait in the data directory, or have them shipped.

    'status' and 'verify' change nothing and may run at any time.
    """


@spool.command(
    "status",
    example="routerctl spool status -o json",
)
@output_option()
def status(output: str) -> None:
    """Show each writer's segments, and how many bytes each sink has not acknowledged yet.

    CSV has the writers only.
    """
    with finding_out():
        found = read_status(load_settings())
    print_status(output, found)


@spool.command(
    "verify",
    example="routerctl spool verify && echo whole",
)
@output_option()
def verify(output: str) -> None:
    """Read everything that waits and name what is damaged or missing.

    Exits with 1 if anything is. An unfinished record at the end of a dead writer is reported and
    is no damage: its call was never answered.
    """
    with finding_out():
        found = read_findings(_reader(load_settings()))
    found.print(output)
    if found.is_damaged():
        end_with_difference()


@spool.command("drain", example="routerctl spool drain --timeout 60")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up after this.",
)
@click.option(
    "--accept-sinks",
    is_flag=True,
    help="Ship to the configured sinks even if records wait for others, which never get them.",
)
def drain(timeout_s: float, accept_sinks: bool) -> None:
    """Wait until every sink has acknowledged what is in the spool now.

    Starts an agent if none runs, and ends it again; so it needs the environment of the service, and
    refuses to start while records wait for a sink that its own does not have. Exits with 1 if
    something is left. Standard output is the agent's: without Kafka, audit events go there.
    """
    settings = load_settings()
    reader = _reader(settings)
    with finding_out():
        goal = {info.writer_id: reader.end_of(info.writer_id) for info in reader.writers()}
        deadline_s = time.monotonic() + timeout_s
        if not goal:
            click.echo("the spool is empty", err=True)
            return
        with _agent(settings, accept_sinks=accept_sinks) as started:
            left_bytes = _wait_for(settings, reader, goal, deadline_s, started)
    if left_bytes:
        raise click.ClickException(f"{left_bytes} bytes were not acknowledged in time")
    click.echo("everything that was in the spool has been acknowledged", err=True)


def _reader(settings: Settings) -> SpoolReader:
    return SpoolReader(settings.spool_dir, observe=True)


def _wait_for(
    settings: Settings,
    reader: SpoolReader,
    goal: Positions,
    deadline_s: float,
    started: Agent | None,
) -> int:
    """Wait until every sink acknowledged the goal; returns what one lacks at the deadline."""
    left_bytes = total = _left(reader, goal, None)
    with progress_bar("shipping", total, in_bytes=True) as advance:
        while left_bytes and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
            if started is not None and started.poll():
                raise CannotFindOut(f"the agent ended with code {started.returncode}")
            sinks = _sinks_of_agent(settings)
            if sinks:
                saved = saved_positions(settings.data_dir)
                now_left = max(_left(reader, goal, saved.get(sink, {})) for sink in sinks)
                advance(left_bytes - now_left)
                left_bytes = now_left
    return left_bytes


def _left(reader: SpoolReader, goal: Positions, saved: Positions | None) -> int:
    """Bytes between what a sink has acknowledged and the goal."""
    return sum(
        reader.bytes_of(writer_id, None if saved is None else saved.get(writer_id), end)
        for writer_id, end in goal.items()
    )


def _sinks_of_agent(settings: Settings) -> list[str]:
    """The sinks that the running agent ships to; none until it reports them."""
    report = read_report(settings.data_dir)
    if report is None or not AgentLock(settings.data_dir).is_held():
        return []
    age_s = Clock().now_s() - parse_timestamp_us(report["updated_at"]) / 1e6
    return list(report["sinks"]) if age_s < _REPORT_AGE_S else []


@contextmanager
def _agent(settings: Settings, *, accept_sinks: bool) -> Iterator[Agent | None]:
    """Yield an agent that ends with the block, or ``None`` where one runs already."""
    if AgentLock(settings.data_dir).is_held():
        yield None
        return
    sinks = configured_sinks(settings) if accept_sinks else check_sinks(settings)
    click.echo(f"ships to: {sinks}", err=True)
    trail_pepper(settings, create=True)
    accepting = ["--accept-sinks"] if accept_sinks else []
    started = subprocess.Popen([sys.executable, "-m", "router.cli.main", "agent", *accepting])
    try:
        yield started
    finally:
        _end(started)


def _end(started: Agent) -> None:
    """Send TERM twice: after the first one the agent waits for the workers to end."""
    for wait_s in (_FIRST_TERM_S, _AGENT_EXIT_S):
        started.terminate()
        try:
            started.wait(wait_s)
            return
        except subprocess.TimeoutExpired:
            pass
    started.kill()
    started.wait()
