"""What is reserved for calls that are not sent yet, as another process finds it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from router.clock import FrozenClock
from router.limits.budgets.windows import Amounts, WindowSpec
from router.limits.leases.unsent_calls import UnsentCall, UnsentCalls, is_in_use, read_unsent
from router.limits.outcome import Request

WINDOW = WindowSpec("pocket", "usd", "daily", 10**9, "UTC", "org", "", (), True)
NOW_MS = 1_800_000_000_000


def request(lease_id: str, organization_id: str = "acme") -> Request:
    return Request(organization_id, lease_id, (WINDOW,), Amounts(7, 9, 1), 900_000, "key_1")


def call(record_id: str) -> UnsentCall:
    return UnsentCall(record_id, "acme", "key_1", NOW_MS, 900_000, 7, 9, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "unsent" / "writer"


def test_calls_from_their_reservation_until_they_are_sent(path: Path) -> None:
    """In any order, and each place is used again."""
    calls = UnsentCalls(path, FrozenClock())
    for name in ("a", "b", "c"):
        calls.begin(request(name))
    calls.end("b")
    calls.end("b")
    assert {*read_unsent(path)} == {call("a"), call("c")}
    calls.begin(request("d"))
    assert {*read_unsent(path)} == {call("a"), call("c"), call("d")}
    for name in ("a", "c", "d", "never begun"):
        calls.end(name)
    assert (read_unsent(path), len(calls)) == ([], 0)


def test_the_file_is_in_use_while_its_process_lives(path: Path) -> None:
    """And gone when that ends in good order."""
    calls = UnsentCalls(path)
    assert is_in_use(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        calls.close()  # as if it had been killed
    assert not is_in_use(path)
    UnsentCalls(path).close()
    assert not path.exists()
    assert is_in_use(path), "there is nothing to take from it"


def test_more_calls_than_there_is_room_for_go_on(path: Path) -> None:
    """What is not noted waits for its lease."""
    calls = UnsentCalls(path)
    calls.begin(request("long", "x" * 600))
    for number in range(1_030):
        calls.begin(request(str(number)))
    assert len(read_unsent(path)) == len(calls) == 1_024
    calls.end("1029")  # it was never noted
    assert len(calls) == 1_024


def test_a_file_that_cannot_be_made_stops_no_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once."""
    (tmp_path / "unsent").write_text("in the way")
    calls = UnsentCalls(tmp_path / "unsent" / "writer")
    calls.begin(request("a"))
    calls.end("a")
    calls.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_an_entry_that_makes_no_sense_is_left_out(path: Path) -> None:
    """P6: the others are given back all the same."""
    calls = UnsentCalls(path, FrozenClock())
    for name in ("a", "b"):
        calls.begin(request(name))
    assert calls._map is not None
    place = calls._places["a"] + 2
    calls._map[place : place + 3] = b"???"
    assert read_unsent(path) == [call("b")]
