"""When a budget was last added: its counters, if there are any, have missed calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.clock import FrozenClock
from router.config.loader import load_serialized
from router.config.state.state_reader import StateReader
from router.config.state.state_writer import StateWriter

START_S = 1_900_000_000.0
LATER_MS = int(START_S * 1000) + 60_000
SPEND = {"name": "spend", "unit": "usd", "period": "monthly", "limit": "10"}
CALLS = {"name": "calls", "unit": "requests", "period": "daily"}
OF_ACME = {"acme": LATER_MS}


def document(budgets: list[Any], of_key: list[Any] | None = None) -> dict[str, Any]:
    organizations = [{"id": "acme", "budgets": budgets}, {"id": "other", "budgets": [CALLS]}]
    key = {"id": "batch", "organization": "acme", "hash": "ab" * 32, "budgets": of_key or []}
    return {"version": 1, "organizations": organizations, "keys": [] if of_key is None else [key]}


class State:
    def __init__(self, state_dir: Path) -> None:
        self.clock = FrozenClock(START_S)
        self.writer = StateWriter(state_dir, self.clock)
        self.reader = StateReader(state_dir)

    def apply(self, document: dict[str, Any], **options: Any) -> None:
        self.writer.apply(load_serialized(document, demo=False), **options)

    def added(self) -> dict[str, int]:
        found = {name: self.reader.budgets_added_ms(name) for name in ("acme", "other", "new")}
        return {name: at_ms for name, at_ms in found.items() if at_ms}


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


NEW = {"id": "new", "budgets": [SPEND]}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (document([SPEND]), document([SPEND]), {}),
        (document([SPEND]), document([{**SPEND, "limit": "20", "shadow": True}]), {}),
        (document([SPEND, CALLS]), document([SPEND]), {}),
        (document([]), document([SPEND]), OF_ACME),
        (document([SPEND]), document([SPEND, CALLS]), OF_ACME),
        (document([SPEND]), document([{**SPEND, "name": "spending"}]), OF_ACME),
        (document([SPEND]), document([{**SPEND, "unit": "tokens", "limit": 10}]), OF_ACME),
        (document([SPEND]), document([{**SPEND, "period": "daily"}]), OF_ACME),
        (document([SPEND]), document([{**SPEND, "timezone": "Asia/Tokyo"}]), OF_ACME),
        (document([], []), document([], [SPEND]), OF_ACME),
        (document([], [SPEND]), document([], []), {}),
        (document([]), document([], [SPEND]), {}),
        (
            document([]),
            {**document([]), "organizations": [*document([])["organizations"], NEW]},
            {},
        ),
    ],
)
def test_an_added_budget_is_noted(
    state: State, before: dict[str, Any], after: dict[str, Any], expected: dict[str, int]
) -> None:
    """Of the organization that made calls without it, be it the organization's or one of a key;
    a new organization and a new key have made none."""
    state.apply(before)
    assert state.added() == {}
    state.clock.advance(60)
    state.apply(after)
    assert state.added() == expected


def test_a_budget_that_is_put_back_is_added(state: State) -> None:
    """Each time later than before, whatever the clock of the host does."""
    found = []
    for step_s in (60, 0, -30):
        state.apply(document([]))
        state.clock.advance(step_s)
        state.apply(document([SPEND]))
        found.append(state.added()["acme"])
    assert found == [LATER_MS, LATER_MS + 1, LATER_MS + 2]


def test_the_budget_of_a_stored_key_is_noted(state: State) -> None:
    """`keys set` writes a key alone."""
    state.apply(document([], []))
    state.clock.advance(60)
    [with_budget] = load_serialized(document([], [SPEND]), demo=False).keys
    state.writer.put_key(with_budget)
    assert state.added() == OF_ACME


def test_what_is_not_committed_is_not_noted(state: State) -> None:
    """A change that its journal refuses leaves all as it was."""
    state.apply(document([]))

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    writer = StateWriter(state.reader._state_dir, state.clock, journal=refuse)
    with pytest.raises(Exception, match="disk full"):
        writer.apply(load_serialized(document([SPEND]), demo=False))
    assert state.added() == {}


def test_a_store_that_cannot_be_read_is_as_it_was(state: State) -> None:
    """Counters are not believed again because the store is away."""
    state.apply(document([]))
    state.clock.advance(60)
    state.apply(document([SPEND]))
    assert state.added() == OF_ACME
    damaged = state.reader._state_dir / "damaged"
    damaged.write_bytes(b"no database")
    # A file of its own: a mapped one that is cut would end this process.
    damaged.replace(state.reader._state_dir / "data.mdb")
    state.reader._recheck_at_s = float("-inf")
    assert state.added() == OF_ACME
    assert state.reader.fault is not None
