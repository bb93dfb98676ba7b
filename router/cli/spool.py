"""``routerctl spool``: what waits to be shipped, whether it is whole, and shipping it now."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from router.cli.file_errors import files_explained
from router.cli.sink_choice import check_sinks, configured_sinks
from router.cli.trail_pepper import trail_pepper
from router.config.settings import Settings, load_settings

if TYPE_CHECKING:
    from router.spool.frames import Position
    from router.spool.reader import SpoolReader

Positions = Mapping[str, "Position"]
Agent = subprocess.Popen[bytes]

_READ_BYTES: Final = 4 * 1024 * 1024
_LOOK_S: Final = 0.2
_PATIENCE_S: Final = 1.0
_AGENT_EXIT_S: Final = 30.0
_output = click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print.",
)


@click.group("spool")
def spool() -> None:
    """Look at the records that wait in the data directory, or have them shipped.

    'status' and 'verify' change nothing and may run at any time.
    """


@spool.command("status")
@_output
def status(output: str) -> None:
    """Show each writer's segments, and how many bytes each sink has not acknowledged yet."""
    from router.cli.spool_status import read_status, status_text

    with files_explained():
        found = read_status(load_settings())
    click.echo(json.dumps(found, indent=2) if output == "json" else status_text(found))


@spool.command("verify")
@_output
def verify(output: str) -> None:
    """Read everything that is there and name what is damaged or missing.

    Exits with 1 if anything is. An unfinished record at the end of a dead writer is reported and
    is no damage: its call was never answered.
    """
    found = _Findings()
    reader = _reader(load_settings())
    with files_explained():
        for info in reader.writers():
            found.read(reader, info.writer_id)
    click.echo(json.dumps(asdict(found), indent=2) if output == "json" else found.text())
    if found.is_damaged():
        raise click.exceptions.Exit(1)


@spool.command("drain")
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
    with files_explained():
        goal = {info.writer_id: reader.end_of(info.writer_id) for info in reader.writers()}
        ends_s = time.monotonic() + timeout_s
        if not goal:
            click.echo("the spool is empty", err=True)
            return
        with _agent(settings, accept_sinks=accept_sinks) as started:
            left_bytes = _wait_for(settings, reader, goal, ends_s, started)
    if left_bytes:
        raise click.ClickException(f"{left_bytes} bytes were not acknowledged in time")
    click.echo("everything that was in the spool has been acknowledged", err=True)


def _reader(settings: Settings) -> SpoolReader:
    from router.spool.reader import SpoolReader

    return SpoolReader(settings.spool_dir, observe=True)


def _wait_for(
    settings: Settings, reader: SpoolReader, goal: Positions, ends_s: float, started: Agent | None
) -> int:
    """Bytes that some sink has not acknowledged when it is over; a bar shows them on a terminal."""
    from router.cli.spool_status import saved_positions

    left_bytes = total = _left(reader, goal, None)
    with click.progressbar(length=total, label="shipping", file=sys.stderr) as bar:
        while left_bytes and time.monotonic() < ends_s:
            time.sleep(_LOOK_S)
            if started is not None and started.poll():
                raise click.ClickException(f"the agent ended with code {started.returncode}")
            sinks = _sinks_of_agent(settings)
            if sinks:
                saved = saved_positions(settings.data_dir)
                now_left = max(_left(reader, goal, saved.get(sink, {})) for sink in sinks)
                bar.update(left_bytes - now_left)
                left_bytes = now_left
    return left_bytes


def _left(reader: SpoolReader, goal: Positions, saved: Positions | None) -> int:
    """Bytes between what a sink has acknowledged and the goal."""
    return sum(
        reader.bytes_of(writer_id, None if saved is None else saved.get(writer_id), end)
        for writer_id, end in goal.items()
    )


def _sinks_of_agent(settings: Settings) -> list[str] | None:
    """What the running agent ships to; ``None`` until it says so."""
    from router.agent.lock import AgentLock
    from router.agent.status import read_report

    report = read_report(settings.data_dir)
    if report is None or not AgentLock(settings.data_dir).is_held():
        return None
    return list(report["sinks"]) if _is_of_running_agent(report) else None


def _is_of_running_agent(report: Mapping[str, Any]) -> bool:
    from datetime import datetime, timezone

    age = datetime.now(timezone.utc) - datetime.fromisoformat(
        report["updated_at"].replace("Z", "+00:00")
    )
    return age.total_seconds() < 5


@contextmanager
def _agent(settings: Settings, *, accept_sinks: bool) -> Iterator[Agent | None]:
    """Some agent: nobody's but ours, which ends with the block, or another that runs already."""
    from router.agent.lock import AgentLock

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
    """Said twice, for the first one waits for the workers to end."""
    for patience_s in (_PATIENCE_S, _AGENT_EXIT_S):
        started.terminate()
        try:
            started.wait(patience_s)
            return
        except subprocess.TimeoutExpired:
            pass
    started.kill()
    started.wait()


@dataclass(slots=True)
class _Findings:
    """What a spool holds and what is wrong with it."""

    writers: int = 0
    frames: int = 0
    torn: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[dict[str, Any]] = field(default_factory=list)
    missing: list[dict[str, Any]] = field(default_factory=list)
    too_new: list[dict[str, Any]] = field(default_factory=list)

    def read(self, reader: SpoolReader, writer_id: str) -> None:
        """Look at all segments of one writer."""
        self.writers += 1
        position = reader.first_position(writer_id)
        while True:
            batch = reader.read(position, _READ_BYTES)
            self.frames += len(batch.frames)
            for stretch in batch.skipped:
                place = stretch._asdict()
                (self.torn if place.pop("torn") else self.damaged).append(place)
            if batch.missing is not None:
                self.missing.append(batch.missing._asdict())
            if batch.unreadable_format is not None:
                self.too_new.append({**position._asdict(), "format": batch.unreadable_format})
            if batch.position_after == position:
                return
            position = batch.position_after

    def is_damaged(self) -> bool:
        """Tell whether records are lost or out of reach."""
        return bool(self.damaged or self.missing or self.too_new)

    def text(self) -> str:
        """For people."""
        lines = [f"{self.frames} records of {self.writers} writers are whole"]
        for name, verdict in (
            ("torn", "unfinished"),
            ("damaged", "damaged"),
            ("missing", "missing"),
            ("too_new", "written by a newer version"),
        ):
            for place in getattr(self, name):
                facts = " ".join(f"{key}={value}" for key, value in place.items())
                lines.append(f"{verdict}: {facts}")
        return "\n".join(lines)
