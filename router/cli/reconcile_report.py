"""What ``routerctl reconcile`` found, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from router.cli.tables import aligned, shown

if TYPE_CHECKING:
    from router.exports.client_list import ClientTally
    from router.exports.reconciliation import Judgement, Scope, Tally

_HEAD: Final = ["SOURCE", "RECORDS", "REPEATED", "TOKENS IN", "TOKENS OUT", "COST USD"]
_KINDS: Final = {
    "missing": "records are missing somewhere",
    "contents": "records differ from place to place",
    "unrecorded": "requests that the client saw answered have no record",
    "client_contents": "requests have other figures at the client",
    "unlisted": "requests are not in the client's file",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a comparison."""

    scope: Scope
    judgement: Judgement
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
        faults = sum(tally.unreadable for tally in self.judgement.tallies.values())
        faults += self.damaged + self.missing_segments + self.too_new
        return not faults and not self.judgement.differences.counts


def as_json(answer: Answer) -> str:
    """For programs."""
    from router.exports.reconciliation import format_moment

    found = answer.judgement
    sources = {name: tally.plain() for name, tally in found.tallies.items()}
    if answer.client is not None:
        sources["client"] = answer.client.listed.plain()
    body = {
        "agreement": answer.agrees(),
        "from": format_moment(answer.scope.from_s),
        "to": format_moment(answer.scope.to_s),
        "sources": sources,
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
    return json.dumps(body, indent=2)


def as_text(answer: Answer) -> str:
    """For people: figures by source, what is under way, each difference, and the verdict."""
    from router.exports.reconciliation import format_moment

    bounds = (format_moment(answer.scope.from_s), format_moment(answer.scope.to_s))
    parts = [[" to ".join(filter(None, bounds))], _table(answer), _remarks(answer)]
    differences = answer.judgement.differences
    parts.append([_line(one) for one in differences.first])
    rest = sum(differences.counts.values()) - len(differences.first)
    if rest:
        parts[-1].append(f"and {rest} more: see --limit")
    parts.append(_verdict(answer))
    return "\n\n".join("\n".join(part) for part in parts if part)


def _table(answer: Answer) -> list[str]:
    rows = [_row(name, tally) for name, tally in answer.judgement.tallies.items()]
    if answer.client is not None:
        rows.append(_row("client", answer.client.listed))
    return aligned([_HEAD, *rows], left=1, points={len(_HEAD) - 1})


def _row(name: str, tally: Tally) -> list[str]:
    plain = tally.plain()
    names = ("records", "repeated", "tokens_input", "tokens_output", "cost_usd")
    return [name, *(str(plain[one]) for one in names)]


def _remarks(answer: Answer) -> list[str]:
    """What is no difference and has to be known all the same, and what is broken."""
    found = answer.judgement
    lines = [
        f"under way to {sink}: {tally.records} records, {tally.plain()['cost_usd']} USD"
        for sink, tally in found.under_way.items()
        if tally.records
    ]
    if answer.client is not None and answer.client.unlisted.records:
        left = answer.client.unlisted
        cost = left.plain()["cost_usd"]
        lines.append(f"answered, not in the client's file: {left.records} records, {cost} USD")
    if answer.topic_begins_late:
        lines.append(
            f"kafka: the oldest messages of {answer.topic_begins_late} partitions are gone:"
            " a later --from may leave out what they held"
        )
    lines += [
        f"{name}: {tally.unreadable} messages are no usage records"
        for name, tally in found.tallies.items()
        if tally.unreadable
    ]
    if answer.damaged or answer.missing_segments or answer.too_new:
        lines.append(
            f"spool: {answer.damaged} damaged pieces, {answer.missing_segments} missing segments,"
            f" {answer.too_new} writers of a newer version: see 'routerctl spool verify'"
        )
    return lines


def _line(difference: dict[str, Any]) -> str:
    facts = []
    for name, value in difference.items():
        if value is None or name == "kind":
            continue
        if isinstance(value, list):
            value = ",".join(value)
        if isinstance(value, dict):
            value = json.dumps(value)
        facts.append(f"{name}={shown(str(value))}")
    return " ".join([difference["kind"], *facts])


def _verdict(answer: Answer) -> list[str]:
    counts = answer.judgement.differences.counts
    if answer.agrees():
        return ["exact agreement"]
    return [f"{counts[kind]} {text}" for kind, text in _KINDS.items() if counts[kind]] or [
        "no agreement: not everything can be read"
    ]
