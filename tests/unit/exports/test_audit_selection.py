"""One organization's events as a file: what it proves, and what it says it does not."""

from __future__ import annotations

import io
import random

import orjson
import pytest

from router.exports.audit_contents import BLOCK_LINES, Position
from router.exports.audit_export import ChainFault, StoreState, Trail, export_lines
from router.exports.audit_verification import Verdict, verify_export
from router.records.audit_chain import AuditChain, derive_audit_key
from tests.unit.records import samples
from tests.unit.records.samples import KEY, START_S

COUNT = 2 * BLOCK_LINES + 50


def selected(count: int, state: StoreState | None = None, key: bytes = KEY) -> list[bytes]:
    """Every second event of a chain."""
    chain = AuditChain("w-1")
    events = [chain.link(samples.event(timestamp=START_S + number)) for number in range(2 * count)]
    trail = Trail((), lambda: events[::2], START_S, START_S + 3600, "acme")
    return list(export_lines(trail, key, START_S, state or StoreState()))


def found(lines: list[bytes]) -> Verdict:
    return verify_export(lines, KEY)


@pytest.fixture(scope="module")
def whole() -> list[bytes]:
    return selected(COUNT)


@pytest.mark.parametrize("count", [0, 1, BLOCK_LINES, COUNT])
def test_a_selection_verifies(count: int) -> None:
    """Also one without events, and one that fills its last hundred."""
    assert found(selected(count)) == Verdict(True, count, min(count, 1))


def test_it_says_what_it_is(whole: list[bytes]) -> None:
    """In the first line for readers, in the last one signed."""
    first = orjson.loads(whole[0])["selection"]
    assert first == {
        "organization_id": "acme",
        "from": "2027-01-15T08:00:00.000000Z",
        "to": "2027-01-15T09:00:00.000000Z",
    }
    head = orjson.loads(whole[-1])["selection_head"]
    assert (head["selection"], head["events"]) == (first, COUNT)
    assert len(head["blocks"]) == COUNT // BLOCK_LINES


def test_every_change_is_found_in_its_hundred(whole: list[bytes]) -> None:
    """Edits, deletions, copies, swaps and cuts; an edited line by its own number (P20)."""
    chance = random.Random(7)
    for number in range(300):
        lines, kind = list(whole), number % 6
        at = chance.randrange(len(lines))
        if kind == 0:
            changed = bytearray(lines[at])
            changed[chance.randrange(len(changed))] ^= 1
            lines[at] = bytes(changed)
        elif kind == 1:
            del lines[at]
        elif kind == 2:
            lines.insert(at, lines[chance.randrange(len(lines))])
        elif kind == 3:
            lines = lines[:at]
        elif kind == 4:
            other = chance.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines = [b"".join(lines)[: chance.randrange(sum(map(len, lines)))]]
        lines = io.BytesIO(b"".join(lines)).readlines()
        if lines == whole:
            continue
        pairs = enumerate(zip(lines, whole, strict=False), 1)
        truth = next((line for line, (one, other_) in pairs if one != other_), len(lines) + 1)
        verdict = found(lines)
        assert verdict.position is not None, (number, truth)
        assert not verdict.ok
        if kind == 0:
            assert verdict.position.line == truth, (number, verdict)
        elif kind not in (3, 5):
            assert truth - BLOCK_LINES < verdict.position.line <= truth + 1, (number, verdict)


def test_an_edited_event_is_named(whole: list[bytes]) -> None:
    """With the place in its chain."""
    lines = list(whole)
    lines[120] = lines[120].replace(b'"REQUEST_ALLOWED"', b'"REQUEST_DENIED"')
    assert found(lines).position == Position(121, "w-1", 239)


def test_a_missing_event_is_found_though_chains_have_gaps_here(whole: list[bytes]) -> None:
    """The digest of its hundred lines is not the one that was signed."""
    verdict = found([*whole[:130], *whole[131:]])
    assert verdict.position == Position(102)
    assert verdict.reason == "lines 102 to 201 are not all that was signed"


def test_a_forged_event_with_a_hash_that_fits_is_found(whole: list[bytes]) -> None:
    """It is not among what was signed."""
    forged = AuditChain("w-1").link(samples.event(reason="forged")) + b"\n"
    assert found([*whole[:5], forged, *whole[6:]]).position == Position(2)


def test_what_was_selected_cannot_be_changed(whole: list[bytes]) -> None:
    """Another organization's name over the same events is a lie."""
    verdict = found([whole[0].replace(b"acme", b"beta"), *whole[1:]])
    assert (verdict.position, verdict.reason) == (Position(1), "this is not what was selected")


def test_a_cut_selection_is_found(whole: list[bytes]) -> None:
    """The last line is missing, or it speaks of more."""
    assert found(whole[:-1]).position == Position(COUNT + 2)
    assert found([*whole[:-2], whole[-1]]).position == Position(2 + 2 * BLOCK_LINES)
    assert not found([]).ok
    assert not found(whole[:1]).ok


def test_a_selection_does_not_pass_for_a_trail(whole: list[bytes]) -> None:
    """Nor a trail for a selection: the first line is covered by the signature of the last."""
    assert found(whole[1:]).position == Position(1)
    trail = list(export_lines(Trail((), lambda: ()), KEY, START_S))
    verdict = found([whole[0], *trail])
    assert (verdict.position, verdict.reason) == (Position(1), "this is not what was selected")


def test_another_key_is_refused() -> None:
    """Its last line is not ours."""
    other = derive_audit_key(b"another pepper of at least 32 bytes")
    verdict = found(selected(1, key=other))
    assert verdict.reason == "the last line is not what was signed"


def test_what_follows_the_last_line_is_found(whole: list[bytes]) -> None:
    """The signed line is the end."""
    assert found([*whole, whole[3]]).position == Position(COUNT + 3)


def test_a_store_that_was_damaged_is_told_of() -> None:
    """Whoever verifies the selection learns that its source had a hole."""
    state = StoreState(faults=[ChainFault("w-9", 4, "a hole")])
    verdict = found(selected(3, state))
    assert verdict.position == Position(5, "w-9", 4)
    assert verdict.reason == "damaged when it was exported: a hole"
