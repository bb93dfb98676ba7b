"""What ``routerctl spool verify`` finds in a spool: whole records, and what is wrong where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import click

from router.cli.output import print_csv, print_json
from router.spool.reader import SpoolReader

_VERDICTS: Final[Mapping[str, str]] = {
    "torn": "unfinished",
    "damaged": "damaged",
    "missing": "missing",
    "too_new": "written by a newer version",
}
_CSV_NAMES: Final = (
    "finding", "writer_id", "segment", "offset", "length", "first", "last", "format",
)  # fmt: skip


@dataclass(slots=True)
class Findings:
    """Counts of what is whole, and the place of everything that is not."""

    writers: int = 0
    frames: int = 0
    torn: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[dict[str, Any]] = field(default_factory=list)
    missing: list[dict[str, Any]] = field(default_factory=list)
    too_new: list[dict[str, Any]] = field(default_factory=list)

    def is_damaged(self) -> bool:
        """Whether records are lost or out of reach."""
        return bool(self.damaged or self.missing or self.too_new)

    def print(self, output: str) -> None:
        """Print a line, or in CSV a row, for each place; JSON is the whole object."""
        if output == "json":
            print_json(asdict(self))
            return
        places = [(name, place) for name in _VERDICTS for place in getattr(self, name)]
        if output == "csv":
            print_csv(_CSV_NAMES, [{"finding": name, **place} for name, place in places])
            return
        click.echo(f"{self.frames} records of {self.writers} writers are whole")
        for name, place in places:
            facts = " ".join(f"{key}={value}" for key, value in place.items())
            click.echo(f"{_VERDICTS[name]}: {facts}")


def read_findings(reader: SpoolReader) -> Findings:
    """Read all segments of all writers; raises ``OSError``."""
    found = Findings()
    for info in reader.writers():
        found.writers += 1
        _read_writer(found, reader, info.writer_id)
    return found


def _read_writer(found: Findings, reader: SpoolReader, writer_id: str) -> None:
    from router.spool.reader import read_batches

    for batch in read_batches(reader, writer_id):
        found.frames += len(batch.frames)
        for stretch in batch.skipped:
            place = stretch._asdict()
            (found.torn if place.pop("torn") else found.damaged).append(place)
        if batch.missing is not None:
            found.missing.append(batch.missing._asdict())
        if batch.unreadable_format is not None:
            at = batch.position_after._asdict()
            found.too_new.append({**at, "format": batch.unreadable_format})
