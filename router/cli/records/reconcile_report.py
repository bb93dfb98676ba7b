"""What ``routerctl records reconcile`` found, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from router.cli import output as out

if TYPE_CHECKING:
    from router.exports.client_list import ClientTally
    from router.exports.comparison import Comparison, Scope

_COLUMNS: Final = (
    out.Column("source"),
    out.Column("records", align="right"),
    out.Column("repeated", align="right"),
    out.Column("tokens_input", "TOKENS IN", align="right"),
    out.Column("tokens_output", "TOKENS OUT", align="right"),
    out.Column("cost_usd", "COST USD", align="point"),
)
_KINDS: Final = {
    "missing": "records are missing somewhere",
    "contents": "records differ from source to source",
    "unrecorded": "requests that the client saw answered have no record",
    "client_contents": "requests have other figures at the client",
    "unlisted": "requests are not in the client's file",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a comparison."""

    scope: Scope
    comparison: Comparison
    client: ClientTally | None
    damaged: int
    """Stretches of the spool that hold no record any more."""
    missing_segments: int
    too_new: int
    """Writers whose segments cannot be read by this version."""
    topic_begins_late: int
    """Partitions of the topic whose oldest messages are gone already."""

    def agrees(self) -> bool:
        """Whether nothing is missing, unlike, unreadable or damaged."""
        faults = sum(tally.unreadable for tally in self.comparison.tallies.values())
        faults += self.damaged + self.missing_segments + self.too_new
        return not faults and not self.comparison.differences.counts

    def sources(self) -> dict[str, dict[str, Any]]:
        """The figures of each source, and of the client's file."""
        tallies = dict(self.comparison.tallies)
        if self.client is not None:
            tallies["client"] = self.client.listed
        return {name: tally.plain() for name, tally in tallies.items()}

    def period(self) -> tuple[str | None, str | None]:
        """Its bounds as timestamps."""
        from router.records.record_types import format_timestamp

        from_s, to_s = self.scope.from_s, self.scope.to_s
        return (
            None if from_s is None else format_timestamp(from_s),
            None if to_s is None else format_timestamp(to_s),
        )


def print_answer(answer: Answer, output: str) -> None:
    """Print as ``json``, or as ``table`` for people."""
    if output == "json":
        out.print_json(_plain(answer))
        return
    click.echo(" to ".join(filter(None, answer.period())) + "\n")
    rows = [{"source": name, **figures} for name, figures in answer.sources().items()]
    out.print_table(_COLUMNS, rows)
    for part in (_remarks(answer), _differences(answer), _verdict(answer)):
        lines = list(part)
        if lines:
            click.echo("\n" + "\n".join(lines))


def _plain(answer: Answer) -> dict[str, Any]:
    found = answer.comparison
    from_time, to_time = answer.period()
    return {
        "agreement": answer.agrees(),
        "from": from_time,
        "to": to_time,
        "sources": answer.sources(),
        "under_way": {name: tally.plain() for name, tally in found.under_way.items()},
        "not_in_client_file": None if answer.client is None else answer.client.unlisted.plain(),
        "spool_damage": {
            "pieces": answer.damaged,
            "missing_segments": answer.missing_segments,
            "writers_too_new": answer.too_new,
        },
        "kafka_partitions_without_their_oldest": answer.topic_begins_late,
        "differences": {"counts": dict(found.differences.counts), "first": found.differences.first},
    }


def _remarks(answer: Answer) -> Iterable[str]:
    """What is no difference and has to be known all the same, and what is broken."""
    found = answer.comparison
    for sink, tally in found.under_way.items():
        if tally.records:
            cost_usd = tally.plain()["cost_usd"]
            yield f"under way to {sink}: {tally.records} records, {cost_usd} USD"
    if answer.client is not None and answer.client.unlisted.records:
        left = answer.client.unlisted.plain()
        amount = f"{left['records']} records, {left['cost_usd']} USD"
        yield f"answered, not in the client's file: {amount}"
    if answer.topic_begins_late:
        yield (
            f"kafka: the oldest messages of {answer.topic_begins_late} partitions are gone:"
            " a later --from may leave out what they held"
        )
    for name, tally in found.tallies.items():
        if tally.unreadable:
            yield f"{name}: {tally.unreadable} messages are no usage records"
    if answer.damaged or answer.missing_segments or answer.too_new:
        yield (
            f"spool: {answer.damaged} damaged pieces, {answer.missing_segments} missing segments,"
            f" {answer.too_new} writers of a newer version: see 'routerctl spool verify'"
        )


def _differences(answer: Answer) -> Iterable[str]:
    differences = answer.comparison.differences
    for difference in differences.first:
        facts = [
            f"{name}={_fact(value)}"
            for name, value in difference.items()
            if value is not None and name != "kind"
        ]
        yield " ".join([difference["kind"], *facts])
    rest = sum(differences.counts.values()) - len(differences.first)
    if rest:
        yield f"and {rest} more: see --limit"


def _fact(value: Any) -> str:
    if isinstance(value, list):
        value = ",".join(value)
    return out.shown(json.dumps(value) if isinstance(value, dict) else value)


def _verdict(answer: Answer) -> Iterable[str]:
    counts = answer.comparison.differences.counts
    if answer.agrees():
        return ["exact agreement"]
    return [f"{counts[kind]} {text}" for kind, text in _KINDS.items() if counts[kind]] or [
        "no agreement: not everything can be read"
    ]
