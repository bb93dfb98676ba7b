"""What ``routerctl spool status`` finds and prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from router.agent.adoption import dead_writers, lease_settler
from router.agent.lock import taken_over
from router.agent.sink_set import load_sinks
from router.agent.status import Shipping, observe_shipping, read_report
from router.cli.output import Column, count, print_csv, print_json, print_table, size
from router.cli.shipping.sink_choice import configured_sinks
from router.config.settings import Settings
from router.spool.checkpoints import Checkpoints, checkpoint_path, sinks_with_checkpoints
from router.spool.frames import Position
from router.spool.reader import SpoolReader

_NO_SINKS: Final = (dead_writers.NAME, lease_settler.NAME)
"""The agent notes there what it has done about dead workers; it ships nothing."""


def saved_positions(data_dir: Path) -> dict[str, Mapping[str, Position]]:
    """How far each sink that ever saved its position has come."""
    return {
        sink: Checkpoints(checkpoint_path(data_dir, sink)).load()
        for sink in sinks_with_checkpoints(data_dir)
        if sink not in _NO_SINKS
    }


def read_status(settings: Settings) -> dict[str, Any]:
    """The spool, its writers, and each sink by its checkpoint and by the agent's report."""
    reader = SpoolReader(settings.spool_dir, observe=True)
    sinks = saved_positions(settings.data_dir)
    infos = reader.writers()
    living = [info.writer_id for info in infos if info.alive]
    claimed = taken_over(settings.data_dir, settings.spool_dir, living)
    writers = [
        {
            "writer_id": info.writer_id,
            "state": _state(info.alive, info.writer_id in claimed),
            "segments": len(info.segments),
            "bytes": reader.bytes_of(info.writer_id),
            "behind_bytes": {
                sink: reader.bytes_of(info.writer_id, positions.get(info.writer_id))
                for sink, positions in sinks.items()
            },
        }
        for info in infos
    ]
    pieces, quarantined_bytes = reader.quarantined()
    shipping = observe_shipping(settings.data_dir, settings.spool_dir)
    return {
        "bytes": sum(writer["bytes"] for writer in writers),
        "max_bytes": settings.spool_max_bytes,
        "agent": "running" if shipping.is_running else "not running",
        "sinks": _sinks(settings, list(sinks), shipping),
        "writers": writers,
        "quarantine": {"pieces": pieces, "bytes": quarantined_bytes},
    }


def print_status(output: str, found: Mapping[str, Any]) -> None:
    """Print the whole as JSON, the writers as CSV, or a table and a line for each other fact."""
    if output == "json":
        print_json(found)
        return
    sinks = found["sinks"]
    columns = [
        Column("writer_id", "WRITER"),
        Column("state"),
        Column("segments", show=count, align="right"),
        Column("bytes", "SIZE", show=size, align="right"),
        *(Column(f"behind_{sink}", show=size, align="right") for sink in sinks),
    ]
    rows = [
        {
            **writer,
            **{
                f"behind_{sink}": writer["behind_bytes"].get(sink, writer["bytes"])
                for sink in sinks
            },
        }
        for writer in found["writers"]
    ]
    if output == "csv":
        print_csv([column.name for column in columns], rows)
        return
    print_table(columns, rows)
    click.echo(f"{size(found['bytes'])} of at most {size(found['max_bytes'])}")
    click.echo(f"agent: {found['agent']}")
    for name, sink in sinks.items():
        if trouble := _trouble(sink):
            click.echo(f"{name}: {trouble}")
    quarantine = found["quarantine"]
    click.echo(f"quarantine: {quarantine['pieces']} pieces, {size(quarantine['bytes'])}")


def _state(alive: bool, taken_over: bool) -> str:
    if taken_over:
        return "taken over"
    return "alive" if alive else "dead"


def _sinks(settings: Settings, names: list[str], shipping: Shipping) -> dict[str, Any]:
    """Each sink by its name; what an ended agent reported does not count."""
    # What the agent noted, for this shell's environment may be another one.
    known = load_sinks(settings.data_dir) or configured_sinks(settings)
    reported = shipping.sinks if shipping.is_running else {}
    report = read_report(settings.data_dir) or {}
    found = {}
    for name in names:
        failing = reported[name].failing if name in reported else None
        since = report.get("sinks", {}).get(name, {}).get("failing_since")
        found[name] = {
            "configured": name in known.names,
            "failing": failing,
            "failing_since": None if failing is None else since,
        }
    return found


def _trouble(sink: Mapping[str, Any]) -> str:
    parts = [] if sink["configured"] else ["not configured"]
    if sink["failing"] is not None:
        since = f" since {sink['failing_since']}" if sink["failing_since"] else ""
        parts.append(f"failing{since}: {sink['failing']}")
    return "; ".join(parts)
