"""Some events of the audit trail as a file: those of one organization.

What is selected has gaps, for other organizations' events stand between. So no chain can show that
nothing was left out: that is the word of the store, of which the file says whether its chains were
whole. What the file does prove is that nothing of it was changed, added or lost since. Its first
line says what was selected, its last one is signed and holds a digest for every hundred lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from router.exports.audit_export import (
    NOT_SURVEYED,
    Fault,
    Position,
    Stock,
    Verdict,
    Verification,
    moment,
    open_line,
    read_event,
    sign_line,
    stock_facts,
    stock_faults,
)
from router.records.record_types import canonical, format_timestamp

BLOCK_LINES: Final = 100
_VERSION: Final = 1
_OPENING: Final = b'{"selection":'
_CONTEXT: Final = "selection_head"
_HEAD: Final = b'{"selection_head":'


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events were asked for: from ``from_s`` on and before ``to_s``."""

    organization_id: str
    from_s: float | None
    to_s: float

    def facts(self) -> dict[str, Any]:
        """What the first line says."""
        return {
            "organization_id": self.organization_id,
            "from": moment(self.from_s),
            "to": moment(self.to_s),
        }


def selection_lines(
    events: Iterable[bytes],
    selection: Selection,
    key: bytes,
    exported_at_s: float,
    stock: Stock = NOT_SURVEYED,
) -> Iterator[bytes]:
    """The lines of the file, each with its newline: what was selected, the events, the head."""
    opening = _opening_line(selection.facts())
    yield opening
    digest, blocks, count = hashlib.sha256(opening), [], 0
    for event in events:
        line = event + b"\n"
        digest.update(line)
        count += 1
        if count % BLOCK_LINES == 0:
            blocks.append(digest.hexdigest())
        yield line
    facts = {
        "version": _VERSION,
        "exported_at": format_timestamp(exported_at_s),
        "selection": selection.facts(),
        **stock_facts(stock),
        "events": count,
        "digest": digest.hexdigest(),
        "blocks": blocks,
    }
    yield sign_line(_CONTEXT, facts, key)


def verification_of(first_line: bytes, key: bytes) -> Verification | SelectionVerification:
    """What can check the file that begins with this line."""
    if first_line.startswith(_OPENING):
        return SelectionVerification(key)
    return Verification(key)


class SelectionVerification:
    """A check that is fed with the lines of a selection, the first one included."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._opening: bytes | None = None
        self._head: bytes | None = None
        self._after_head = 0
        self._events = 0
        self._digest = hashlib.sha256()
        self._blocks: list[str] = []
        self._writers: set[str] = set()
        self._fault: Fault | None = None
        self.facts: dict[str, Any] | None = None
        """What the head says, once the verdict was asked for and the head is authentic."""

    def take(self, line: bytes) -> None:
        """Look at the next line."""
        if self._opening is None:
            self._opening = line
            self._digest.update(line)
        elif self._head is not None:
            self._after_head += 1
        elif line.startswith(_HEAD):
            self._head = line
        else:
            self._take_event(line)

    def verdict(self) -> Verdict:
        """What is wrong first, once all lines were taken."""
        end = Position(self._events + 2)
        faults = [] if self._fault is None else [self._fault]
        if self._head is None:
            faults.append((end, "the head is missing: the selection is cut off"))
        else:
            self.facts = open_line(_CONTEXT, self._head, self._key)
            if self.facts is None:
                faults.append((end, "the head is not what was signed"))
            else:
                faults += self._compare(self.facts)
        if self._after_head:
            faults.append((Position(end.line + 1), "something follows the head"))
        writers = len(self._writers)
        if not faults:
            return Verdict(True, self._events, writers)
        position, reason = min(faults, key=lambda fault: fault[0].line)
        return Verdict(False, self._events, writers, position, reason)

    def _take_event(self, line: bytes) -> None:
        self._events += 1
        self._digest.update(line)
        if self._events % BLOCK_LINES == 0:
            self._blocks.append(self._digest.hexdigest())
        if self._fault is not None:
            return
        place = Position(self._events + 1)
        if not line.endswith(b"\n"):
            self._fault = place, "the line is cut off"
            return
        try:
            writer_id, sequence, _, found, expected = read_event(line.removesuffix(b"\n"))
        except (ValueError, KeyError, TypeError) as error:
            self._fault = place, f"not an audit event: {error}"
            return
        self._writers.add(writer_id)
        if found != expected:
            place = Position(place.line, writer_id, sequence)
            self._fault = place, "the event is not the one that was hashed"

    def _compare(self, facts: dict[str, Any]) -> Iterator[Fault]:
        """Where the lines are not those that an authentic head speaks of."""
        if self._opening != _opening_line(facts["selection"]):
            yield Position(1), "this is not what was selected"
            return
        first = self._first_other_block(facts)
        if first is not None:
            last = first + BLOCK_LINES - 1
            # A line that is broken by itself says more exactly where.
            if self._fault is None or not first <= self._fault[0].line <= last:
                reason = f"lines {first} to {last} are not all that was signed"
                yield Position(first), reason
        yield from stock_faults(facts, self._events + 2)

    def _first_other_block(self, facts: dict[str, Any]) -> int | None:
        """The first line of the first hundred that differ from what was signed."""
        signed = [*facts["blocks"], facts["digest"]]
        for number, digest in enumerate(signed):
            found = self._blocks[number] if number < len(self._blocks) else None
            if number == len(signed) - 1 and self._events == facts["events"]:
                found = self._digest.hexdigest()
            if found != digest:
                return 2 + number * BLOCK_LINES
        return None


def _opening_line(facts: dict[str, Any]) -> bytes:
    return canonical({"selection": facts}) + b"\n"
