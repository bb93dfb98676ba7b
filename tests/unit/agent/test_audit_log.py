"""Audit events as lines of the log."""

from __future__ import annotations

import io
import json
from typing import Any

import orjson

from router.agent.audit_log import AuditLog
from router.clock import FrozenClock
from tests.fakes.shipping import event


class Pipe(io.BytesIO):
    """Keeps each piece that was written, and takes at most so many bytes at once."""

    def __init__(self, most: int = 1 << 20) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self._most = most

    def write(self, piece: Any) -> int:
        self.pieces.append(bytes(piece[: self._most]))
        return len(self.pieces[-1])


class Broken(io.BytesIO):
    """A full disk."""

    def write(self, piece: Any) -> int:
        raise OSError(28, "No space left on device")


def lines_of(pipe: Pipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(pipe.pieces).splitlines()]


def test_a_line_looks_like_every_line_of_the_log() -> None:
    """Time, level, logger and event; the audit event itself stands in it as it was written."""
    pipe = Pipe()
    assert AuditLog(pipe, FrozenClock(wall_s=1.5)).write([event(7)])
    assert lines_of(pipe) == [
        {
            "ts": "1970-01-01T00:00:01.500Z",
            "level": "info",
            "logger": "router.audit",
            "event": "audit",
            "audit": orjson.loads(event(7)),
        }
    ]


def test_lines_are_written_together_and_never_cut() -> None:
    """A pipe takes 4 096 bytes in one piece; more of them could mix with another process's."""
    pipe = Pipe()
    AuditLog(pipe).write([event(number) for number in range(100)])
    assert [line["audit"]["event_id"] for line in lines_of(pipe)] == [f"e{n}" for n in range(100)]
    assert 4 < len(pipe.pieces) < 20
    assert all(len(piece) <= 4096 and piece.endswith(b"}\n") for piece in pipe.pieces)


def test_a_line_that_is_too_long_for_one_piece_goes_alone() -> None:
    """Its neighbours keep theirs."""
    pipe = Pipe()
    long = orjson.dumps({"event_id": "long", "reason": "x" * 5000})
    AuditLog(pipe).write([event(1), long, event(2)])
    assert [line["audit"]["event_id"] for line in lines_of(pipe)] == ["e1", "long", "e2"]
    assert len(pipe.pieces) == 3


def test_what_is_taken_in_parts_is_written_whole() -> None:
    """A terminal takes what it likes."""
    pipe = Pipe(most=7)
    AuditLog(pipe).write([event(1), event(2)])
    assert [line["audit"]["event_id"] for line in lines_of(pipe)] == ["e1", "e2"]


def test_a_secret_does_not_reach_the_log() -> None:
    """K6: a client may put a key where none belongs."""
    pipe = Pipe()
    secret = f"rtr_live_{'a' * 32}_123456"
    AuditLog(pipe).write([orjson.dumps({"event_id": "e1", "reason": f"no such model: {secret}"})])
    assert lines_of(pipe)[0]["audit"]["reason"] == "no such model: …"


def test_a_log_that_cannot_be_written_raises_nothing() -> None:
    """The store has the events."""
    assert not AuditLog(Broken()).write([event(1)])
