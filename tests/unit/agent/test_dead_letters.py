"""The dead-letter file: whole lines with everything that somebody needs to know."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from router.agent.dead_letters import DeadLetters
from router.clock import FrozenClock
from router.spool.frames import USAGE
from tests.fakes.shipping import decoded, usage


def lines(data_dir: Path) -> list[dict[str, object]]:
    text = (data_dir / "dead-letter" / "store.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_letter_tells_what_why_and_from_where(tmp_path: Path) -> None:
    """P5: dead-lettered with its reason, the record itself unchanged."""
    dead_letters = DeadLetters(tmp_path, "store", FrozenClock(wall_s=0.0))
    dead_letters.put(decoded(usage(7)), "too large")
    assert lines(tmp_path) == [
        {
            "ts": "1970-01-01T00:00:00.000000Z",
            "sink": "store",
            "reason": "too large",
            "kind": "usage",
            "id": "r7",
            "writer_id": "w",
            "segment": 1,
            "end_offset": 100,
            "payload": usage(7).decode(),
        }
    ]


def test_bytes_that_are_no_text_are_kept_too(tmp_path: Path) -> None:
    """Nothing is lost for being unreadable."""
    DeadLetters(tmp_path, "store").put(decoded(b"\xff\x00", 9), "unknown kind")
    (line,) = lines(tmp_path)
    assert base64.b64decode(str(line["payload_base64"])) == b"\xff\x00"
    assert (line["kind"], line["id"]) == (9, None)


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    """The disk was full in the middle of a line, which was then written again."""
    dead_letters = DeadLetters(tmp_path, "store")
    dead_letters.put(decoded(usage(1), USAGE), "first")
    path = tmp_path / "dead-letter" / "store.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    dead_letters.put(decoded(usage(2), USAGE), "second")
    *_, last = path.read_text().splitlines()
    assert json.loads(last)["reason"] == "second"


def test_a_letter_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """The shipper must know, or the record would be gone."""
    (tmp_path / "dead-letter").write_text("in the way")
    with pytest.raises(OSError, match="exists"):
        DeadLetters(tmp_path, "store").put(decoded(usage(1)), "reason")


def test_the_file_is_not_for_everybody(tmp_path: Path) -> None:
    """Its records are for their user, and as far as the umask says for the group."""
    before = os.umask(0o022)
    try:
        DeadLetters(tmp_path, "store").put(decoded(usage(7)), "too large")
    finally:
        os.umask(before)
    assert (tmp_path / "dead-letter" / "store.jsonl").stat().st_mode & 0o777 == 0o640
