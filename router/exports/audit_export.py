"""The audit trail as a file that proves itself: its events, then a signed line about all of them.

The events stand in the order of their writers and, within a writer, of its chain. The last line,
the trail's head, says which links of which chains the file holds, together with the signed heads
and anchors of the record store, and is signed as a whole. So a change of any byte shows, and so
does a missing line, wherever it was.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from router.records.audit_chain import (
    ChainTip,
    Link,
    PrunePoint,
    chain_hash,
    genesis,
    is_signed,
    sign,
    unseal,
)
from router.records.record_types import canonical, format_timestamp

_VERSION: Final = 1
_CONTEXT: Final = "trail"
_OPENING: Final = b'{"trail":'
_SIGNATURE: Final = b',"signature":"'
_WRITER: Final = re.compile("[a-z0-9-]{1,64}")


@dataclass(frozen=True, slots=True)
class WriterMarks:
    """What the record store has signed of a writer's chain."""

    writer_id: str
    head: ChainTip | None
    anchor: PrunePoint | None


@dataclass(frozen=True, slots=True)
class ChainFault:
    """Where a chain of the record store is not what was signed of it."""

    writer_id: str
    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stock:
    """What is known of the whole record store when a part of its trail is exported."""

    complete_to_s: float | None = None
    """No event from before this moment was still to come from this host; ``None``: not known."""
    faults: Sequence[ChainFault] = ()
    """What is wrong with chains by their numbers, also outside the exported part."""


NOT_SURVEYED: Final = Stock()


class Trail(Protocol):
    """The part of an audit trail that is to be exported, as one state of the store."""

    @property
    def writers(self) -> Sequence[WriterMarks]:
        """Every writer of the part, sorted by id."""

    @property
    def from_s(self) -> float | None:
        """Where the part begins; ``None`` means with the oldest event there is."""

    @property
    def to_s(self) -> float | None:
        """Where it ends; ``None`` means with the newest."""

    def lines(self) -> Iterator[bytes]:
        """The encoded events, sorted by writer and place in its chain, without newlines."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where something is wrong."""

    line: int
    """From 1."""
    writer_id: str | None = None
    sequence: int | None = None

    def __str__(self) -> str:
        if self.writer_id is None:
            return f"line {self.line}"
        return f"line {self.line}, writer {self.writer_id}, sequence {self.sequence}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found; ``position`` and ``reason`` tell of the first thing that is wrong."""

    ok: bool
    events: int
    writers: int
    position: Position | None = None
    reason: str | None = None


def export_lines(
    trail: Trail, key: bytes, exported_at_s: float, stock: Stock = NOT_SURVEYED
) -> Iterator[bytes]:
    """The lines of the file, each with its newline, the signed head last.

    It signs what it finds. Whether that is whole is for :func:`verify_export` to say, which also
    compares it with the heads that were signed when the events arrived.
    """
    reading = _Reading()
    for document in trail.lines():
        line = document + b"\n"
        reading.take(line)
        yield line
    facts = {
        "version": _VERSION,
        "exported_at": format_timestamp(exported_at_s),
        "from": moment(trail.from_s),
        "to": moment(trail.to_s),
        **stock_facts(stock),
        "events": reading.lines,
        "digest": reading.digest.hexdigest(),
        "writers": [_entry(marks, reading.runs.get(marks.writer_id)) for marks in trail.writers],
    }
    yield sign_line(_CONTEXT, facts, key)


def stock_facts(stock: Stock) -> dict[str, Any]:
    """What a signed line says of the store that it was made from."""
    return {
        "complete_to": moment(stock.complete_to_s),
        "faults": [[fault.writer_id, fault.sequence, fault.reason] for fault in stock.faults],
    }


def moment(seconds: float | None) -> str | None:
    """A timestamp, or nothing."""
    return None if seconds is None else format_timestamp(seconds)


def sign_line(context: str, facts: dict[str, Any], key: bytes) -> bytes:
    """A line ``{"<context>":{…},"signature":"…"}`` whose every byte the signature vouches for."""
    body = canonical({context: facts})
    signature = sign(context, body, key).encode()
    return b'%b%b%b"}\n' % (body[:-1], _SIGNATURE, signature)


def verify_export(lines: Iterable[bytes], key: bytes) -> Verdict:
    """Check a trail line by line; each line comes with its newline, as a binary file gives it."""
    verification = Verification(key)
    for line in lines:
        verification.take(line)
    return verification.verdict()


class Verification:
    """A check that is fed with lines; it keeps what it needs of each writer, not of each event."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._reading = _Reading()
        self._head: bytes | None = None
        self._after_head = 0
        self.facts: dict[str, Any] | None = None
        """What the head says, once the verdict was asked for and the head is authentic."""

    def take(self, line: bytes) -> None:
        """Look at the next line."""
        if self._head is not None:
            self._after_head += 1
        elif line.startswith(_OPENING):
            self._head = line
        else:
            self._reading.take(line)

    def verdict(self) -> Verdict:
        """What is wrong first, once all lines were taken."""
        reading = self._reading
        faults = list(reading.faults)
        end = reading.lines + 1
        if self._head is None:
            faults.append((Position(end), "the head is missing: the trail is cut off"))
        else:
            self.facts = open_line(_CONTEXT, self._head, self._key)
            if self.facts is None:
                faults.append((Position(end), "the head is not what was signed"))
            else:
                faults += _compare(self.facts, reading, self._key)
        if self._after_head:
            faults.append((Position(end + 1), "something follows the head"))
        writers = len(reading.runs)
        if not faults:
            return Verdict(True, reading.lines, writers)
        position, reason = min(faults, key=lambda fault: fault[0].line)
        return Verdict(False, reading.lines, writers, position, reason)


Fault = tuple[Position, str]


@dataclass(slots=True)
class _Run:
    """The events of one writer, as far as they were read."""

    writer_id: str
    first_line: int
    first_sequence: int
    previous_hash: str
    last_line: int
    sequence: int
    hash: str
    is_broken: bool = False
    """Something was wrong before its end, so where it ends tells nothing more."""
    torn_before: int | None = None
    """The line of the only event that does not fit behind the one before it."""


@dataclass(slots=True)
class _Reading:
    """What the event lines say of themselves."""

    lines: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    runs: dict[str, _Run] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    _run: _Run | None = None

    def take(self, line: bytes) -> None:
        self.lines += 1
        self.digest.update(line)
        if not line.endswith(b"\n"):
            self._fault("the line is cut off")
        try:
            writer_id, sequence, previous_hash, found, expected = read_event(
                line.removesuffix(b"\n")
            )
        except (ValueError, KeyError, TypeError) as error:
            self._fault(f"not an audit event: {error}")
            return
        if found != expected:
            self._fault("the event is not the one that was hashed", writer_id, sequence)
        if self._run is None or self._run.writer_id != writer_id:
            self._begin(writer_id, sequence, previous_hash)
        else:
            self._follow(self._run, sequence, previous_hash, found)
        assert self._run is not None
        self._run.last_line, self._run.sequence, self._run.hash = self.lines, sequence, found

    def _begin(self, writer_id: str, sequence: int, previous_hash: str) -> None:
        before = self._run
        if before is not None and writer_id <= before.writer_id:
            self._fault("the writers are out of order", writer_id, sequence)
        line = self.lines
        self._run = _Run(writer_id, line, sequence, previous_hash, line, sequence, "")
        self.runs.setdefault(writer_id, self._run)

    def _follow(self, run: _Run, sequence: int, previous_hash: str, found: str) -> None:
        wanted = run.sequence + 1
        if sequence == wanted and previous_hash == run.hash:
            return
        # One of two neighbours is wrong; which of them, the end of the chain may show.
        is_torn = not self.faults and (
            sequence == wanted or (sequence == run.sequence and found != run.hash)
        )
        if sequence == wanted:
            reason = "the event does not follow the one before it"
        else:
            reason = f"sequence {sequence} stands where {wanted} belongs"
        self._fault(reason, run.writer_id, wanted)
        run.torn_before = self.lines if is_torn else None

    def _fault(
        self, reason: str, writer_id: str | None = None, sequence: int | None = None
    ) -> None:
        if self._run is not None:
            self._run.is_broken, self._run.torn_before = True, None
        # Only the first can be the first; the others would take room for each line of a bad file.
        if not self.faults:
            self.faults.append((Position(self.lines, writer_id, sequence), reason))


def read_event(line: bytes) -> tuple[str, int, str, str, str]:
    """Writer, sequence, previous hash, hash, and the hash that it should have.

    Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what is no event.
    """
    body, found = unseal(line)
    event = orjson.loads(body)
    writer_id, sequence = event["writer_id"], event["sequence"]
    previous_hash = event["previous_hash"]
    if type(writer_id) is not str or type(sequence) is not int or type(previous_hash) is not str:
        raise ValueError("its place in the chain is no place")
    # What is reported goes to a terminal, which would obey a name that is none.
    if _WRITER.fullmatch(writer_id) is None:
        raise ValueError("its writer is no writer")
    return writer_id, sequence, previous_hash, found, chain_hash(previous_hash, body)


def _entry(marks: WriterMarks, run: _Run | None) -> dict[str, Any]:
    head, anchor = marks.head, marks.anchor
    return {
        "writer_id": marks.writer_id,
        "first": None if run is None else [run.first_sequence, run.previous_hash],
        "last": None if run is None else [run.sequence, run.hash],
        "head": None if head is None else [head.sequence, head.hash, head.closed, head.signature],
        "anchor": None if anchor is None else [anchor.sequence, anchor.hash, anchor.signature],
    }


def open_line(context: str, line: bytes, key: bytes) -> dict[str, Any] | None:
    """The facts of a line of :func:`sign_line` that is ours to the last byte, else ``None``."""
    body, separator, rest = line.rpartition(_SIGNATURE)
    if not separator or not rest.endswith(b'"}\n'):
        return None
    body += b"}"
    if not hmac.compare_digest(rest[:-3], sign(context, body, key).encode()):
        return None
    facts: dict[str, Any] = orjson.loads(body)[context]
    return facts if facts["version"] == _VERSION else None


def _compare(facts: dict[str, Any], reading: _Reading, key: bytes) -> Iterator[Fault]:
    """Where the lines are not those that an authentic head speaks of."""
    line, known = 1, set()
    for entry in facts["writers"]:
        known.add(entry["writer_id"])
        yield from _compare_run(entry, reading.runs.get(entry["writer_id"]), line)
        yield from _check_ends(facts, entry, line, key)
        if entry["first"] is not None:
            line += entry["last"][0] - entry["first"][0] + 1
    for run in reading.runs.values():
        if run.writer_id not in known:
            place = Position(run.first_line, run.writer_id, run.first_sequence)
            yield place, "the head knows nothing of this writer"
    end = reading.lines + 1
    if reading.lines != facts["events"] or reading.digest.hexdigest() != facts["digest"]:
        yield Position(end), "the head was signed for other lines"
    yield from stock_faults(facts, end)


def stock_faults(facts: dict[str, Any], line: int) -> Iterator[Fault]:
    """What was wrong with the store already when ``facts`` were signed; ``line`` says so."""
    for writer_id, sequence, reason in facts["faults"]:
        yield Position(line, writer_id, sequence), f"damaged when it was exported: {reason}"


def _compare_run(entry: dict[str, Any], run: _Run | None, line: int) -> Iterator[Fault]:
    """Where a writer's events are not the ones from ``first`` to ``last``."""
    writer_id, first, last = entry["writer_id"], entry["first"], entry["last"]
    if first is None:
        if run is not None:
            place = Position(run.first_line, writer_id, run.first_sequence)
            yield place, "the head knows of no event of this writer"
        return
    if run is None:
        yield Position(line, writer_id, first[0]), "the events of this writer are missing"
        return
    if run.first_line != line:
        place = Position(min(line, run.first_line), writer_id, first[0])
        yield place, f"the events of this writer begin in line {run.first_line}, not in {line}"
    if [run.first_sequence, run.previous_hash] != first:
        yield Position(run.first_line, writer_id, first[0]), "the first event is another one"
    if run.torn_before is not None and run.hash == last[1]:
        # From there on all is what was signed, so it is the one before that was changed.
        line = run.torn_before - 1
        place = Position(line, writer_id, run.first_sequence + line - run.first_line)
        yield place, "the event is not the one that belongs before the next"
    if run.is_broken:
        return
    if run.sequence != last[0]:
        missing = min(run.sequence, last[0]) + 1
        place = Position(line + missing - first[0], writer_id, missing)
        yield place, f"the events end with {run.sequence}, the head says {last[0]}"
    elif run.hash != last[1]:
        yield Position(run.last_line, writer_id, last[0]), "the last event is another one"


def _check_ends(
    facts: dict[str, Any], entry: dict[str, Any], line: int, key: bytes
) -> Iterator[Fault]:
    """Where the exported events are not all that the record store had vouched for."""
    writer_id, first, last = entry["writer_id"], entry["first"], entry["last"]
    head = ChainTip(writer_id=writer_id, **_named(entry["head"], "sequence", "hash", "closed"))
    anchor = PrunePoint(writer_id=writer_id, **_named(entry["anchor"], "sequence", "hash"))
    start = genesis(writer_id)
    if entry["anchor"] is not None:
        if not is_signed(anchor, key):
            yield Position(line, writer_id, anchor.sequence), "the anchor is not what was signed"
        start = Link(anchor.sequence, anchor.hash)
    if first is not None and (facts["from"] is None or first[0] <= start.sequence + 1):
        if first != [start.sequence + 1, start.hash]:
            place = Position(line, writer_id, start.sequence + 1)
            if first[0] == start.sequence + 1:
                yield place, "the event does not follow the beginning of its chain"
            else:
                yield place, f"the events begin with {first[0]}, not with {start.sequence + 1}"
    end = Link(*last) if last is not None else start
    if entry["head"] is None:
        yield Position(line, writer_id, end.sequence), "the chain has no signed head"
    elif not is_signed(head, key):
        yield Position(line, writer_id, head.sequence), "the chain's head is not what was signed"
    elif end.sequence > head.sequence or (facts["to"] is None and end.sequence < head.sequence):
        wrong = min(end.sequence, head.sequence) + 1
        place = Position(line if first is None else line + wrong - first[0], writer_id, wrong)
        yield place, f"the chain ends with {end.sequence}, its signed head says {head.sequence}"
    elif end.sequence == head.sequence and end.hash != head.hash:
        place = Position(
            line if first is None else line + end.sequence - first[0], writer_id, end.sequence
        )
        yield place, "the last event is not the one whose head was signed"


def _named(values: list[Any] | None, *names: str) -> dict[str, Any]:
    if values is None:
        return {"sequence": 0, "hash": ""}
    return dict(zip((*names, "signature"), values, strict=True))
