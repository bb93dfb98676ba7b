"""The audit trail as a file that proves itself: its events, then a signed line about all of them.

Events are sorted by writer and, within a writer, by sequence. The signed last line
says which links of which chains the file holds, together with the signed chain tips and prune
points of the record store. So a change of any byte shows, and so does a missing line, wherever it
was.

A *selection* holds the events of one organization, in the order of time. Other organizations'
events are missing between them, so no chain can show that nothing was left out: that is the word
of the store, of which the last line says whether its chains were whole. The file proves that
nothing in it was changed, added or lost since. Its first line says what was selected, and its last
line holds a digest for every hundred events.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from router.exports.audit_contents import Contents, Run
from router.records.audit_chain import ChainTip, PrunePoint, sign
from router.records.record_types import canonical, format_timestamp

_VERSION: Final = 1
_CONTEXTS: Final = ("trail", "selection_head")
_SIGNATURE: Final = b',"signature":"'
_CLOSINGS: Final = tuple(b'{"%b":' % context.encode() for context in _CONTEXTS)


@dataclass(frozen=True, slots=True)
class WriterMarks:
    """What the record store has signed of a writer's chain."""

    writer_id: str
    tip: ChainTip | None
    prune_point: PrunePoint | None


@dataclass(frozen=True, slots=True)
class ChainFault:
    """Where a chain of the record store is not what was signed of it."""

    writer_id: str
    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class StoreState:
    """What is known of the whole record store when a part of its trail is exported."""

    complete_to_s: float | None = None
    """No event from before this moment was still to come from this host; ``None``: not known."""
    faults: Sequence[ChainFault] = ()
    """What is wrong with chains by their numbers, also outside the exported part."""


NOT_SURVEYED: Final = StoreState()


@dataclass(slots=True)
class Trail:
    """The part of an audit trail that is to be exported, as one state of the store."""

    writers: Sequence[WriterMarks]
    """Every writer of the part, sorted by id; none for a selection."""
    lines: Callable[[], Iterable[bytes]]
    """The encoded events without newlines; sorted by writer and sequence, or by time."""
    from_s: float | None = None
    """``None``: from the oldest event on."""
    to_s: float | None = None
    """``None``: up to the newest event."""
    organization_id: str | None = None
    """Makes it a selection."""

    def selection(self) -> dict[str, Any]:
        """What the first line of a selection says."""
        return {"organization_id": self.organization_id, **_period(self)}


def export_lines(
    trail: Trail, key: bytes, exported_at_s: float, state: StoreState = NOT_SURVEYED
) -> Iterator[bytes]:
    """The lines of the file, each with its newline, the signed line last.

    It signs what it finds. Whether that is whole is for ``verify_export`` to say, which also
    compares it with the chain tips that were signed when the events arrived.
    """
    contents = Contents()
    is_selection = trail.organization_id is not None
    if is_selection:
        yield contents.take(opening_line(trail.selection()))
    for document in trail.lines():
        yield contents.take(document + b"\n")
    facts: dict[str, Any] = {
        "version": _VERSION,
        "exported_at": format_timestamp(exported_at_s),
        "complete_to": _timestamp(state.complete_to_s),
        "faults": [[fault.writer_id, fault.sequence, fault.reason] for fault in state.faults],
        "events": contents.events,
        "digest": contents.digest.hexdigest(),
    }
    if is_selection:
        facts |= {"selection": trail.selection(), "blocks": contents.blocks}
    else:
        entries = [_entry(marks, contents.runs.get(marks.writer_id)) for marks in trail.writers]
        facts |= {**_period(trail), "writers": entries}
    context = _CONTEXTS[is_selection]
    body = canonical({context: facts})
    yield b'%b%b%b"}\n' % (body[:-1], _SIGNATURE, sign(context, body, key).encode())


def opening_line(selection: dict[str, Any]) -> bytes:
    """The first line of a selection."""
    return canonical({"selection": selection}) + b"\n"


def is_closing(line: bytes) -> bool:
    """Whether this is the signed last line, going by how it begins."""
    return line.startswith(_CLOSINGS)


def open_closing(line: bytes, key: bytes) -> dict[str, Any] | None:
    """The facts of a closing line that is ours to the last byte, else ``None``."""
    context = _CONTEXTS[line.startswith(_CLOSINGS[1])]
    body, separator, rest = line.rpartition(_SIGNATURE)
    if not separator or not rest.endswith(b'"}\n'):
        return None
    body += b"}"
    if not hmac.compare_digest(rest[:-3], sign(context, body, key).encode()):
        return None
    facts: dict[str, Any] = orjson.loads(body)[context]
    return facts if facts["version"] == _VERSION else None


def _period(trail: Trail) -> dict[str, Any]:
    return {"from": _timestamp(trail.from_s), "to": _timestamp(trail.to_s)}


def _timestamp(seconds: float | None) -> str | None:
    return None if seconds is None else format_timestamp(seconds)


def _entry(marks: WriterMarks, run: Run | None) -> dict[str, Any]:
    tip, point = marks.tip, marks.prune_point
    return {
        "writer_id": marks.writer_id,
        "first": None if run is None else [run.first_sequence, run.previous_hash],
        "last": None if run is None else [run.sequence, run.hash],
        "head": None if tip is None else [tip.sequence, tip.hash, tip.closed, tip.signature],
        "anchor": None if point is None else [point.sequence, point.hash, point.signature],
    }
