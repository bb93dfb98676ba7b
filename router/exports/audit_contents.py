"""What the lines of an exported audit trail say of themselves, whatever was signed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from router.records.audit_chain import chain_hash, unseal

BLOCK_LINES: Final = 100
"""A selection has a signed digest for so many events."""
OPENING: Final = b'{"selection":'
"""How the first line of a selection begins; a file without one holds whole chains."""
_WRITER: Final = re.compile("[a-z0-9-]{1,64}")


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


Fault = tuple[Position, str]
"""Where and what."""


@dataclass(slots=True)
class Run:
    """The events of one writer, as far as they were read."""

    writer_id: str
    first_line: int
    first_sequence: int
    previous_hash: str
    last_line: int
    sequence: int
    hash: str = ""
    is_broken: bool = False
    """Something was wrong before its end, so its end proves nothing more."""
    torn_before: int | None = None
    """The line of the only event that does not follow the one before it."""


@dataclass(slots=True)
class Contents:
    """The opening line and the events of a file, line by line; no event is kept."""

    opening: bytes | None = None
    lines: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    blocks: list[str] = field(default_factory=list)
    """Of a selection: the digest after each ``BLOCK_LINES`` events."""
    runs: dict[str, Run] = field(default_factory=dict)
    """By writer; a selection has gaps, so there a run is no more than its last event."""
    fault: Fault | None = None
    """The first one."""
    _run: Run | None = None

    @property
    def events(self) -> int:
        """How many lines were events, or should have been."""
        return self.lines - (self.opening is not None)

    def take(self, line: bytes) -> bytes:
        """Read the next line, which comes with its newline, and give it back."""
        self.lines += 1
        self.digest.update(line)
        if self.lines == 1 and line.startswith(OPENING):
            self.opening = line
            return line
        if self.opening is not None and self.events % BLOCK_LINES == 0:
            self.blocks.append(self.digest.hexdigest())
        if not line.endswith(b"\n"):
            self._note("the line is cut off")
        try:
            writer_id, sequence, previous_hash, found, expected = _read_event(
                line.removesuffix(b"\n")
            )
        except (ValueError, KeyError, TypeError) as error:
            self._note(f"not an audit event: {error}")
            return line
        if found != expected:
            self._note("the event is not the one that was hashed", writer_id, sequence)
        self._place(writer_id, sequence, previous_hash, found)
        return line

    def _place(self, writer_id: str, sequence: int, previous_hash: str, found: str) -> None:
        run = self._run
        if self.opening is not None or run is None or run.writer_id != writer_id:
            if self.opening is None and run is not None and writer_id <= run.writer_id:
                self._note("the writers are out of order", writer_id, sequence)
            run = Run(writer_id, self.lines, sequence, previous_hash, self.lines, sequence)
            self._run = run
            self.runs.setdefault(writer_id, run)
        else:
            self._follow(run, sequence, previous_hash, found)
        run.last_line, run.sequence, run.hash = self.lines, sequence, found

    def _follow(self, run: Run, sequence: int, previous_hash: str, found: str) -> None:
        wanted = run.sequence + 1
        if sequence == wanted and previous_hash == run.hash:
            return
        # One of two neighbours is wrong; which of them, the end of the chain may show.
        is_torn = self.fault is None and (
            sequence == wanted or (sequence == run.sequence and found != run.hash)
        )
        reason = f"sequence {sequence} stands where {wanted} belongs"
        if sequence == wanted:
            reason = "the event does not follow the one before it"
        self._note(reason, run.writer_id, wanted)
        run.torn_before = self.lines if is_torn else None

    def _note(self, reason: str, writer_id: str | None = None, sequence: int | None = None) -> None:
        if self._run is not None:
            self._run.is_broken, self._run.torn_before = True, None
        if self.fault is None:
            self.fault = Position(self.lines, writer_id, sequence), reason


def _read_event(line: bytes) -> tuple[str, int, str, str, str]:
    """Writer, sequence, previous hash, hash, and the hash that it should have.

    Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what is no event.
    """
    body, found = unseal(line)
    event = orjson.loads(body)
    writer_id, sequence = event["writer_id"], event["sequence"]
    previous_hash = event["previous_hash"]
    if type(writer_id) is not str or type(sequence) is not int or type(previous_hash) is not str:
        raise ValueError("its position in the chain is none")
    # What is reported goes to a terminal, which would obey control characters in a name.
    if _WRITER.fullmatch(writer_id) is None:
        raise ValueError("its writer is no writer")
    return writer_id, sequence, previous_hash, found, chain_hash(previous_hash, body)
