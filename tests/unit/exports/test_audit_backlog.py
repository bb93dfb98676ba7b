"""Up to when the store has all audit events of this host."""

from __future__ import annotations

from pathlib import Path

from router.exports.audit_backlog import SETTLED_S, complete_to
from router.records.audit_chain import AuditChain
from router.spool.frames import (
    AUDIT,
    USAGE,
    Position,
    encode_frame,
    header_frame,
    segment_name,
)
from router.spool.reader import SpoolReader
from tests.unit.records import samples
from tests.unit.records.samples import START_S

NOW_S = START_S + 1000


def spool_of(directory: Path, writer_id: str, moments: list[float]) -> list[Position]:
    """A dead writer with a usage record and an event for each moment; where each begins."""
    (directory / writer_id).mkdir(parents=True)
    (directory / writer_id / "lock").touch()
    content, chain, places = header_frame(writer_id, 1), AuditChain(writer_id), []
    for moment_s in moments:
        places.append(Position(writer_id, 1, len(content)))
        content += encode_frame(USAGE, b"{}")
        content += encode_frame(AUDIT, chain.link(samples.event(timestamp=moment_s)))
    places.append(Position(writer_id, 1, len(content)))
    (directory / writer_id / segment_name(1)).write_bytes(content)
    return places


def found(directory: Path, stored: dict[str, Position]) -> float | None:
    return complete_to(SpoolReader(directory, observe=True), stored, NOW_S)


def test_an_empty_spool_is_complete_up_to_now(tmp_path: Path) -> None:
    """But for the instant between a call's end and its record."""
    assert found(tmp_path, {}) == NOW_S - SETTLED_S


def test_the_first_event_that_is_not_stored_is_the_limit(tmp_path: Path) -> None:
    """Of all writers the one that is behind most; stored events do not count."""
    one = spool_of(tmp_path, "w-1", [START_S + 1, START_S + 20, START_S + 30])
    other = spool_of(tmp_path, "w-2", [START_S + 5, START_S + 40])
    assert found(tmp_path, {"w-1": one[1], "w-2": other[1]}) == START_S + 20
    assert found(tmp_path, {"w-1": one[3], "w-2": other[1]}) == START_S + 40
    assert found(tmp_path, {"w-1": one[3]}) == START_S + 5
    assert found(tmp_path, {"w-1": one[3], "w-2": other[2]}) == NOW_S - SETTLED_S


def test_what_cannot_be_read_is_no_event(tmp_path: Path) -> None:
    """The store will not take it either, so nobody waits for it."""
    directory = tmp_path / "w-1"
    directory.mkdir()
    (directory / "lock").touch()
    frames = [encode_frame(AUDIT, payload) for payload in (b"no json", b"{}", b'{"timestamp":1}')]
    (directory / segment_name(1)).write_bytes(header_frame("w-1", 1) + b"".join(frames))
    assert found(tmp_path, {}) == NOW_S - SETTLED_S


def test_a_spool_of_a_newer_router_is_not_known(tmp_path: Path) -> None:
    """What stands in it may be older than anything."""
    directory = tmp_path / "w-1"
    directory.mkdir()
    (directory / "lock").touch()
    (directory / segment_name(1)).write_bytes(encode_frame(0, b'{"format":9}'))
    assert found(tmp_path, {}) is None
