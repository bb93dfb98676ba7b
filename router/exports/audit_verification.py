"""Checks an exported audit trail, the whole trail and a selection alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from router.exports.audit_contents import BLOCK_LINES, Contents, Fault, Position, Run
from router.exports.audit_export import is_closing, open_closing, opening_line
from router.records.audit_chain import ChainTip, Link, PrunePoint, genesis, is_signed

NOT_SIGNED: Final = "is not what was signed"
"""How the reason ends when a signature is not that of the key."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check; ``position`` and ``reason`` name the first thing that is wrong."""

    ok: bool
    events: int
    writers: int
    position: Position | None = None
    reason: str | None = None


def verify_export(lines: Iterable[bytes], key: bytes) -> Verdict:
    """Check a file line by line; each line comes with its newline, as a binary file gives it."""
    verification = Verification(key)
    for line in lines:
        verification.take(line)
    return verification.verdict()


class Verification:
    """A check that is fed with lines; its memory does not grow with the number of events."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._contents = Contents()
        self._closing: bytes | None = None
        self._has_more = False
        self.facts: dict[str, Any] | None = None
        """What the last line says, once the verdict was asked for and that line is authentic."""

    def take(self, line: bytes) -> None:
        """Read the next line."""
        if self._closing is not None:
            self._has_more = True
        elif is_closing(line):
            self._closing = line
        else:
            self._contents.take(line)

    def verdict(self) -> Verdict:
        """What is wrong first, once all lines were taken."""
        contents = self._contents
        position, reason = min(
            self._faults(), key=lambda fault: fault[0].line, default=(None, None)
        )
        return Verdict(position is None, contents.events, len(contents.runs), position, reason)

    def _faults(self) -> Iterator[Fault]:
        contents = self._contents
        if contents.fault is not None:
            yield contents.fault
        end = Position(contents.lines + 1)
        if self._closing is None:
            yield end, "the signed last line is missing: the file is cut off"
            return
        if self._has_more:
            yield Position(end.line + 1), "something follows the signed last line"
        facts = self.facts = open_closing(self._closing, self._key)
        if facts is None:
            yield end, f"the last line {NOT_SIGNED}"
            return
        if "selection" in facts or contents.opening is not None:
            yield from _compare_selection(facts, contents)
        else:
            yield from _compare_chains(facts, contents, self._key)
            if (contents.lines, contents.digest.hexdigest()) != (facts["events"], facts["digest"]):
                yield end, "the last line was signed for other lines"
        for writer_id, sequence, why in facts["faults"]:
            position = Position(end.line, writer_id, sequence)
            yield position, f"damaged when it was exported: {why}"


def _compare_selection(facts: dict[str, Any], contents: Contents) -> Iterator[Fault]:
    """Where the lines are not those that an authentic last line was signed for."""
    selection = facts.get("selection")
    if selection is None or contents.opening != opening_line(selection):
        yield Position(1), "this is not what was selected"
        return
    found = list(contents.blocks)
    if contents.events == facts["events"]:
        found[len(facts["blocks"]) :] = [contents.digest.hexdigest()]
    for number, digest in enumerate([*facts["blocks"], facts["digest"]]):
        if number >= len(found) or found[number] != digest:
            first = 2 + number * BLOCK_LINES
            last = first + BLOCK_LINES - 1
            # A line that is broken by itself says more exactly where.
            if contents.fault is None or not first <= contents.fault[0].line <= last:
                yield Position(first), f"lines {first} to {last} are not all that was signed"
            return


def _compare_chains(facts: dict[str, Any], contents: Contents, key: bytes) -> Iterator[Fault]:
    line = 1
    unknown = dict(contents.runs)
    for entry in facts["writers"]:
        run = unknown.pop(entry["writer_id"], None)
        yield from _compare_run(entry, run, line)
        yield from _compare_ends(facts, entry, line, key)
        if entry["first"] is not None:
            line += entry["last"][0] - entry["first"][0] + 1
    for run in unknown.values():
        position = Position(run.first_line, run.writer_id, run.first_sequence)
        yield position, "the last line does not list this writer"


def _compare_run(entry: dict[str, Any], run: Run | None, line: int) -> Iterator[Fault]:
    """Where a writer's events are not the ones from ``first`` to ``last``."""
    writer_id, first, last = entry["writer_id"], entry["first"], entry["last"]
    if first is None:
        if run is not None:
            position = Position(run.first_line, writer_id, run.first_sequence)
            yield position, "the last line lists no event of this writer"
        return
    if run is None:
        yield Position(line, writer_id, first[0]), "the events of this writer are missing"
        return
    if run.first_line != line:
        position = Position(min(line, run.first_line), writer_id, first[0])
        yield position, f"the events of this writer begin in line {run.first_line}, not in {line}"
    if [run.first_sequence, run.previous_hash] != first:
        yield Position(run.first_line, writer_id, first[0]), "the first event is another one"
    if run.torn_before is not None and run.hash == last[1]:
        # From there on all is what was signed, so it is the one before that was changed.
        line = run.torn_before - 1
        position = Position(line, writer_id, run.first_sequence + line - run.first_line)
        yield position, "the event is not the one that belongs before the next"
    if run.is_broken:
        return
    if run.sequence != last[0]:
        missing = min(run.sequence, last[0]) + 1
        position = Position(line + missing - first[0], writer_id, missing)
        yield position, f"the events end with {run.sequence}, the last line says {last[0]}"
    elif run.hash != last[1]:
        yield Position(run.last_line, writer_id, last[0]), "the last event is another one"


def _compare_ends(
    facts: dict[str, Any], entry: dict[str, Any], line: int, key: bytes
) -> Iterator[Fault]:
    """Where the exported events are not all that the record store had vouched for."""
    writer_id, first, last = entry["writer_id"], entry["first"], entry["last"]

    def at(sequence: int) -> Position:
        return Position(line if first is None else line + sequence - first[0], writer_id, sequence)

    start = genesis(writer_id)
    if entry["anchor"] is not None:
        sequence, digest, signature = entry["anchor"]
        start = Link(sequence, digest)
        point = PrunePoint(writer_id=writer_id, sequence=sequence, hash=digest, signature=signature)
        if not is_signed(point, key):
            yield Position(line, writer_id, sequence), f"the prune point {NOT_SIGNED}"
    begins_it = first is not None and (facts["from"] is None or first[0] <= start.sequence + 1)
    if begins_it and first != [start.sequence + 1, start.hash]:
        reason = f"the events begin with {first[0]}, not with {start.sequence + 1}"
        if first[0] == start.sequence + 1:
            reason = "the event does not follow the beginning of its chain"
        yield Position(line, writer_id, start.sequence + 1), reason
    end = start if last is None else Link(*last)
    if entry["head"] is None:
        yield Position(line, writer_id, end.sequence), "the chain has no signed tip"
        return
    sequence, digest, closed, signature = entry["head"]
    tip = ChainTip(
        writer_id=writer_id, sequence=sequence, hash=digest, closed=closed, signature=signature
    )
    if not is_signed(tip, key):
        yield Position(line, writer_id, sequence), f"the chain tip {NOT_SIGNED}"
    elif end.sequence > sequence or (facts["to"] is None and end.sequence < sequence):
        reason = f"the chain ends with {end.sequence}, its signed tip says {sequence}"
        yield at(min(end.sequence, sequence) + 1), reason
    elif end.sequence == sequence and end.hash != digest:
        yield at(end.sequence), "the last event is not the one that the signed tip names"
