"""Audit events as lines of the log."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson
import pytest

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
    assert AuditLog(pipe, FrozenClock(wall_s=1.5)).write([event(7)]) == 0
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
    assert AuditLog(Broken()).write([event(1), event(2)]) == 2


@pytest.fixture(params=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[BinaryIO, int]]:
    """What the agent writes to, as it inherits it, and where somebody may read."""
    if request.param == "pipe":
        read_fd, write_fd = os.pipe()
    else:
        ours, theirs = socket.socketpair()
        read_fd, write_fd = theirs.detach(), ours.detach()
    with open(write_fd, "wb", buffering=0) as stream:
        yield stream, read_fd
    os.close(read_fd)


def drain(fd: int) -> bytes:
    """All that is there now."""
    os.set_blocking(fd, False)
    found = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(fd, 1 << 16):
            found += piece
    return found


def test_a_log_that_nobody_reads_holds_up_nothing(ends: tuple[BinaryIO, int]) -> None:
    """Q2: a pipe takes 64 KB; what does not fit is counted, and later batches do not wait."""
    stream, read_fd = ends
    log = AuditLog(stream, wait_s=0.001)
    batch = [event(number) for number in range(5000)]
    dropped = log.write(batch)
    assert 0 < dropped < len(batch)
    assert log.write(batch) == len(batch)
    whole = drain(read_fd).splitlines()
    assert [json.loads(line)["audit"]["event_id"] for line in whole] == [
        f"e{number}" for number in range(len(batch) - dropped)
    ]
    assert log.write([event(1)]) == 0
    assert json.loads(drain(read_fd))["audit"]["event_id"] == "e1"
    log.close()


def test_a_line_that_was_cut_does_not_spoil_the_next(ends: tuple[BinaryIO, int]) -> None:
    """A line that is longer than the room there is cannot be taken back."""
    stream, read_fd = ends
    log = AuditLog(stream, wait_s=0.001)
    assert log.write([orjson.dumps({"event_id": "long", "reason": "x" * 900_000})]) == 1
    cut = drain(read_fd)
    assert log.write([event(1)]) == 0
    *_, line = (cut + drain(read_fd)).splitlines()
    assert json.loads(line)["audit"]["event_id"] == "e1"
    log.close()


def test_whose_pipe_it_is_keeps_its_mode(ends: tuple[BinaryIO, int]) -> None:
    """Workers write to the same one and expect to wait for it."""
    stream, _ = ends
    log = AuditLog(stream)
    log.write([event(1)])
    log.close()
    assert os.get_blocking(stream.fileno())
    assert not stream.closed
