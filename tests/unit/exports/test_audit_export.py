"""An exported audit trail: what it says, and that nothing in it can be changed unseen."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from router.exports.audit_contents import Position
from router.exports.audit_export import (
    ChainFault,
    StoreState,
    Trail,
    WriterMarks,
    export_lines,
)
from router.exports.audit_verification import Verdict, verify_export
from router.records.audit_chain import (
    AuditChain,
    ChainTip,
    PrunePoint,
    chain_hash,
    derive_audit_key,
    with_signature,
)
from router.records.record_types import canonical, seal
from tests.unit.records import samples
from tests.unit.records.samples import KEY, START_S

OTHER_KEY = derive_audit_key(b"another pepper of at least 32 bytes")
ROUNDS = 1000


@dataclass
class FakeTrail:
    """Chains as a record store would hold them."""

    chains: dict[str, list[dict[str, Any]]]
    marks: dict[str, WriterMarks]
    from_s: float | None = None
    to_s: float | None = None

    def trail(self) -> Trail:
        marks = [self.marks[name] for name in sorted(self.marks)]
        return Trail(marks, self.lines, self.from_s, self.to_s)

    def lines(self) -> Iterator[bytes]:
        for name in sorted(self.chains):
            for event in self.chains[name]:
                yield encoded(event)


def encoded(event: dict[str, Any]) -> bytes:
    body = canonical({name: value for name, value in event.items() if name != "hash"})
    return seal(body, event["hash"])


def rehashed(event: dict[str, Any]) -> dict[str, Any]:
    """The event with a hash that fits, as a forger would write it."""
    body = canonical({name: value for name, value in event.items() if name != "hash"})
    return {**event, "hash": chain_hash(event["previous_hash"], body)}


def marks_of(
    name: str, events: list[dict[str, Any]], *, pruned: int = 0, closed: bool = False
) -> WriterMarks:
    last = events[-1]
    head = ChainTip(writer_id=name, sequence=last["sequence"], hash=last["hash"], closed=closed)
    anchor = None
    if pruned:
        before = events[pruned - 1]
        anchor = PrunePoint(writer_id=name, sequence=pruned, hash=before["hash"])
    return WriterMarks(
        name, with_signature(head, KEY), None if anchor is None else with_signature(anchor, KEY)
    )


def sample_trail() -> FakeTrail:
    """Writers that run, that have ended, whose beginning was pruned, and all of whose was."""
    whole = {name: samples.chained(name, count) for name, count in SIZES.items()}
    return FakeTrail(
        chains={
            name: events[PRUNED.get(name, 0) :]
            for name, events in whole.items()
            if PRUNED.get(name, 0) < len(events)
        },
        marks={
            name: marks_of(name, events, pruned=PRUNED.get(name, 0), closed=name == "w-1")
            for name, events in whole.items()
        },
    )


SIZES = {"a": 1, "w-1": 9, "w-2": 12, "w-3": 6, "w-4": 4, "z": 2}
PRUNED = {"w-2": 5, "w-3": 6}
EVENTS = 1 + 9 + 7 + 4 + 2


def exported(trail: FakeTrail, key: bytes = KEY) -> list[bytes]:
    return list(export_lines(trail.trail(), key, START_S))


@pytest.fixture(scope="module")
def whole() -> list[bytes]:
    return exported(sample_trail())


def found(lines: list[bytes]) -> Verdict:
    return verify_export(lines, KEY)


# --- what is right ------------------------------------------------------------------------------


def test_a_trail_verifies(whole: list[bytes]) -> None:
    """Events and writers are counted; the lines are JSON (P20)."""
    assert found(whole) == Verdict(True, EVENTS, 5)
    assert all(orjson.loads(line) for line in whole)


def test_the_last_line_says_what_the_file_holds(whole: list[bytes]) -> None:
    """Readable without the key: period, number, digest, and each writer's links."""
    head = orjson.loads(whole[-1])["trail"]
    assert head["events"] == EVENTS
    assert (head["from"], head["to"], head["complete_to"]) == (None, None, None)
    assert head["exported_at"] == "2027-01-15T08:00:00.000000Z"
    by_name = {writer["writer_id"]: writer for writer in head["writers"]}
    assert list(by_name) == sorted(SIZES)
    assert by_name["w-2"]["first"][0] == 6
    assert by_name["w-2"]["anchor"][:2] == [5, by_name["w-2"]["first"][1]]
    assert by_name["w-3"]["first"] is None
    assert by_name["w-1"]["head"][2] is True


def test_an_empty_trail_verifies() -> None:
    """Nothing happened, and that is signed too."""
    lines = exported(FakeTrail({}, {}))
    assert len(lines) == 1
    assert found(lines) == Verdict(True, 0, 0)


def test_up_to_when_it_is_complete_is_signed() -> None:
    """Signed, for whoever gets the file."""
    stock = StoreState(complete_to_s=START_S + 1)
    lines = list(export_lines(sample_trail().trail(), KEY, START_S, stock))
    assert orjson.loads(lines[-1])["trail"]["complete_to"] == "2027-01-15T08:00:01.000000Z"
    assert found(lines).ok


def test_a_store_that_was_damaged_cannot_export_a_good_part() -> None:
    """The last line of a period tells of holes that lie outside the period."""
    stock = StoreState(faults=[ChainFault("w-9", 4, "a hole")])
    verdict = found(list(export_lines(sample_trail().trail(), KEY, START_S, stock)))
    assert verdict.position == Position(EVENTS + 1, "w-9", 4)
    assert verdict.reason == "damaged when it was exported: a hole"


# --- 1 000 random changes -----------------------------------------------------------------------

Change = Callable[[random.Random, list[bytes]], list[bytes]]


def edit_byte(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    """Any byte of any line, the last one's and the newlines included."""
    number = chance.randrange(len(lines))
    line = bytearray(lines[number])
    line[chance.randrange(len(line))] ^= 1 << chance.randrange(8)
    return [*lines[:number], bytes(line), *lines[number + 1 :]]


def remove_byte(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    data = b"".join(lines)
    at = chance.randrange(len(data))
    return [data[:at] + data[at + 1 :]]


def insert_byte(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    data = b"".join(lines)
    at = chance.randrange(len(data) + 1)
    return [data[:at] + chance.choice((b"\n", b" ", b"0", b"}")) + data[at:]]


def edit_field(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    """A fact is changed, its hash is not."""
    number = chance.randrange(len(lines) - 1)
    changed = encoded(changed_event(chance, lines[number])) + b"\n"
    return [*lines[:number], changed, *lines[number + 1 :]]


def forge_event(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    """A fact is changed and the hash of this event is made to fit."""
    number = chance.randrange(len(lines) - 1)
    event = {**changed_event(chance, lines[number])}
    return [*lines[:number], encoded(rehashed(event)) + b"\n", *lines[number + 1 :]]


def changed_event(chance: random.Random, line: bytes) -> dict[str, Any]:
    event: dict[str, Any] = orjson.loads(line)
    name = chance.choice(("action", "actor", "organization_id", "timestamp", "context", "reason"))
    return {**event, name: f"forged {chance.random()}"}


def delete_line(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    number = chance.randrange(len(lines))
    return lines[:number] + lines[number + 1 :]


def delete_range(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    first, last = sorted(chance.sample(range(len(lines) + 1), 2))
    return lines[:first] + lines[last:]


def delete_writer(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    first, last = chance.choice(blocks_of(lines))
    return lines[:first] + lines[last:]


def swap_lines(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    one, other = chance.sample(range(len(lines)), 2)
    changed = list(lines)
    changed[one], changed[other] = lines[other], lines[one]
    return changed


def swap_writers(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    one, other = sorted(chance.sample(blocks_of(lines), 2))
    return [
        *lines[: one[0]],
        *lines[slice(*other)],
        *lines[one[1] : other[0]],
        *lines[slice(*one)],
        *lines[other[1] :],
    ]


def move_range(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    first, last = sorted(chance.sample(range(len(lines) + 1), 2))
    rest = lines[:first] + lines[last:]
    at = chance.randrange(len(rest) + 1)
    return rest[:at] + lines[first:last] + rest[at:]


def duplicate_line(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    number, at = chance.randrange(len(lines)), chance.randrange(len(lines) + 1)
    return [*lines[:at], lines[number], *lines[at:]]


def duplicate_range(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    first, last = sorted(chance.sample(range(len(lines) + 1), 2))
    return lines[:last] + lines[first:last] + lines[last:]


def insert_forged_event(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    """Of a writer that is there, of one that was pruned, or of one that never was."""
    at = chance.randrange(len(lines) + 1)
    name = chance.choice((*SIZES, "w-0", "zz"))
    forged = samples.chained(name, chance.randrange(1, 9))[-1]
    return [*lines[:at], encoded(forged) + b"\n", *lines[at:]]


def insert_rubbish(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    at = chance.randrange(len(lines) + 1)
    rubbish = chance.choice(
        (b"\n", b"{}\n", b"[]\n", b"null\n", b"1\n", b'"x"\n', b"\xff\n", b'{"trail":{}}\n')
    )
    return [*lines[:at], rubbish, *lines[at:]]


def cut_lines(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    return lines[: chance.randrange(len(lines))]


def cut_bytes(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    data = b"".join(lines)
    return [data[: chance.randrange(len(data))]]


def cut_before_last_line(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    """The tail goes, the last line stays."""
    return [*lines[: chance.randrange(len(lines) - 1)], lines[-1]]


CHANGES: tuple[Change, ...] = (
    edit_byte,
    remove_byte,
    insert_byte,
    edit_field,
    forge_event,
    delete_line,
    delete_range,
    delete_writer,
    swap_lines,
    swap_writers,
    move_range,
    duplicate_line,
    duplicate_range,
    insert_forged_event,
    insert_rubbish,
    cut_lines,
    cut_bytes,
    cut_before_last_line,
)


def blocks_of(lines: list[bytes]) -> list[tuple[int, int]]:
    """Where each writer's events begin and end."""
    names = [orjson.loads(line)["writer_id"] for line in lines[:-1]]
    return [
        (names.index(name), names.index(name) + names.count(name)) for name in sorted(set(names))
    ]


def first_difference(one: list[bytes], other: list[bytes]) -> int:
    """The number of the first line that is not the same, from 1."""
    for number, (left, right) in enumerate(zip(one, other, strict=False), 1):
        if left != right:
            return number
    return min(len(one), len(other)) + 1


def changed_trails(whole: list[bytes], seed: int, rounds: int) -> Iterator[tuple[str, list[bytes]]]:
    """Each kind of change in turn, as somebody would read the file; none that changes nothing."""
    chance = random.Random(seed)
    number = 0
    while number < rounds:
        change = CHANGES[number % len(CHANGES)]
        lines = io.BytesIO(b"".join(change(chance, list(whole)))).readlines()
        if lines != whole:
            number += 1
            yield change.__name__, lines


def test_a_thousand_random_changes_are_all_found_where_they_are(whole: list[bytes]) -> None:
    """Edits, deletions, swaps, moves, copies, forgeries, cuts: first bad line, truly (P20)."""
    places = {line: orjson.loads(line) for line in whole[:-1]}
    wrong = []
    for number, (kind, lines) in enumerate(changed_trails(whole, 20, ROUNDS)):
        verdict, truth = found(lines), first_difference(whole, lines)
        if verdict.ok or verdict.position is None or not verdict.reason:
            wrong.append(f"{number} {kind}: not found")
        elif verdict.position.line != truth:
            wrong.append(f"{number} {kind}: line {truth} is changed, named: {verdict}")
        elif verdict.position.writer_id is not None:
            # Either what belongs there, or what stands there instead.
            here = {
                (event["writer_id"], event["sequence"])
                for event in map(places.get, whole[truth - 1 : truth])
                if event is not None
            } | claimed(lines[truth - 1 : truth])
            if (verdict.position.writer_id, verdict.position.sequence) not in here | expected_after(
                whole, truth
            ):
                wrong.append(f"{number} {kind}: {verdict} at a line of {here}")
    assert wrong == []


def claimed(lines: list[bytes]) -> set[tuple[Any, Any]]:
    """Which place in a chain a line says it has."""
    try:
        return {(event["writer_id"], event["sequence"]) for event in map(orjson.loads, lines)}
    except (ValueError, KeyError, TypeError):
        return set()


def expected_after(whole: list[bytes], line: int) -> set[tuple[Any, Any]]:
    """The place that would come behind the event before this line."""
    return {(name, sequence + 1) for name, sequence in claimed(whole[max(0, line - 2) : line - 1])}


def test_every_single_byte_counts() -> None:
    """One changed bit of any byte of any line is found, and its line named."""
    events = samples.chained("w-1", 3)
    lines = exported(FakeTrail({"w-1": events}, {"w-1": marks_of("w-1", events)}))
    data = b"".join(lines)
    ends = [sum(map(len, lines[:number])) for number in range(1, 5)]
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        verdict = found(io.BytesIO(changed).readlines())
        assert verdict.position is not None, at
        line = 1 + sum(end <= at for end in ends)
        assert (verdict.ok, verdict.position.line) == (False, line), at


def test_every_cut_is_found(whole: list[bytes]) -> None:
    """However many bytes are missing at the end, from one to all."""
    data = b"".join(whole)
    for length in [*range(0, len(data), 37), *range(len(data) - 200, len(data))]:
        assert not found(io.BytesIO(data[:length]).readlines()).ok, length


# --- forgers with knowledge ---------------------------------------------------------------------


@pytest.mark.parametrize("sequence", [1, 5, 9])
def test_a_chain_that_is_hashed_anew_is_found(sequence: int) -> None:
    """From the changed event to the end everything fits, but not the signed last link."""
    trail = sample_trail()
    lines = exported(trail)
    forged = trail.chains["w-1"]
    previous = forged[sequence - 1]["previous_hash"]
    for index in range(sequence - 1, len(forged)):
        event = {**forged[index], "previous_hash": previous}
        if index == sequence - 1:
            event["reason"] = "forged"
        forged[index] = rehashed(event)
        previous = forged[index]["hash"]
    verdict = found([*(line + b"\n" for line in trail.lines()), lines[-1]])
    assert not verdict.ok
    assert verdict.position == Position(10, "w-1", 9)
    assert verdict.reason == "the last event is another one"


def test_a_beginning_that_is_hashed_anew_is_found() -> None:
    """The last forged event is named: the one behind it is proved by the signed end."""
    trail = sample_trail()
    head = exported(trail)[-1]
    forged, previous = trail.chains["w-1"], trail.chains["w-1"][0]["previous_hash"]
    for index in range(4):
        event = {**forged[index], "previous_hash": previous, "actor": "forged"}
        forged[index] = rehashed(event)
        previous = forged[index]["hash"]
    verdict = found([*(line + b"\n" for line in trail.lines()), head])
    assert verdict.position == Position(1 + 4, "w-1", 4)
    assert verdict.reason == "the event is not the one that belongs before the next"


@pytest.mark.parametrize("sequence", [1, 5, 9])
def test_a_forged_event_before_the_real_one_is_named(sequence: int) -> None:
    """It has the number and the predecessor of the real one, which used to be blamed."""
    lines = exported(sample_trail())
    forged = rehashed({**orjson.loads(lines[sequence]), "actor": "forged"})
    verdict = found([*lines[:sequence], encoded(forged) + b"\n", *lines[sequence:]])
    assert verdict.position == Position(1 + sequence, "w-1", sequence)
    verdict = found([*lines[: sequence + 1], encoded(forged) + b"\n", *lines[sequence + 1 :]])
    assert verdict.position == Position(2 + sequence, "w-1", sequence + 1)


def test_a_file_that_was_signed_with_another_key_is_refused(whole: list[bytes]) -> None:
    """Its last line is not ours, whatever it says."""
    for lines in (exported(sample_trail(), OTHER_KEY), [*whole[:-1], b'{"trail":{}}\n']):
        verdict = found(lines)
        assert verdict.position == Position(EVENTS + 1)
        assert verdict.reason == "the last line is not what was signed"


def test_the_last_line_of_another_export_does_not_fit() -> None:
    """An authentic last line for fewer events does not cover more, nor the other way round."""
    trail = sample_trail()
    newer = exported(trail)
    trail.chains["z"] = trail.chains["z"][:1]
    trail.marks["z"] = marks_of("z", trail.chains["z"])
    older = exported(trail)
    assert found(older).ok
    assert found([*newer[:-1], older[-1]]).position == Position(EVENTS, "z", 2)
    assert found([*older[:-1], newer[-1]]).position == Position(EVENTS, "z", 2)


def test_an_event_of_a_writer_without_events_is_named() -> None:
    """It used to be laid at the door of the last line."""
    lines = exported(sample_trail())
    at = 1 + 9 + 7
    forged = encoded(samples.chained("w-3", 7)[-1]) + b"\n"
    verdict = found([*lines[:at], forged, *lines[at:]])
    assert verdict.position == Position(at + 1, "w-3", 7)


def test_writers_that_were_exchanged_are_named_at_the_first_line(whole: list[bytes]) -> None:
    """The second of them used to be named, where the order shows."""
    (_, end), *_ = blocks_of(whole)
    other = blocks_of(whole)[1]
    lines = [*whole[slice(*other)], *whole[:end], *whole[other[1] :]]
    verdict = found(lines)
    assert verdict.position is not None
    assert verdict.position.line == 1


def test_a_name_that_is_no_writer_is_not_repeated() -> None:
    """What is reported may be shown on a terminal, which would obey it."""
    event = {**samples.chained("w-1", 1)[0], "writer_id": "\x1b[2J"}
    verdict = found([encoded(rehashed(event)) + b"\n"])
    assert "\x1b" not in f"{verdict.position} {verdict.reason}"
    assert verdict.position == Position(1)


# --- a store that was changed before the export -------------------------------------------------


def test_events_missing_in_the_store_are_missing_in_its_export() -> None:
    """An export signs what it finds; the chain tips in it say what should be there."""
    for name, sequence, line in (("w-1", 9, 10), ("w-1", 1, 2), ("w-1", 5, 6), ("a", 1, 1)):
        trail = sample_trail()
        trail.chains[name] = [
            event for event in trail.chains[name] if event["sequence"] != sequence
        ]
        verdict = found(exported(trail))
        assert not verdict.ok
        assert verdict.position == Position(line, name, sequence), (name, sequence)


def test_a_writer_whose_tip_is_missing_is_found() -> None:
    """A forged chain has no signed tip, and a real one cannot do without."""
    trail = sample_trail()
    trail.marks["w-1"] = WriterMarks("w-1", None, None)
    assert found(exported(trail)).reason == "the chain has no signed tip"


def test_a_pruned_trail_verifies() -> None:
    """Retention signs where the rest begins; what is left is whole."""
    events = samples.chained("w-1", 9)
    trail = FakeTrail({"w-1": events[4:]}, {"w-1": marks_of("w-1", events, pruned=4)})
    assert found(exported(trail)) == Verdict(True, 5, 1)
    everything = FakeTrail({}, {"w-1": marks_of("w-1", events, pruned=9)})
    assert found(exported(everything)).ok


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"signature": "0" * 64}, "the prune point is not what was signed"),
        ({"signature": ""}, "the prune point is not what was signed"),
        ({"sequence": 5}, "the prune point is not what was signed"),
        ({"hash": "f" * 64}, "the prune point is not what was signed"),
    ],
)
def test_a_forged_prune_point_is_found(changes: dict[str, Any], reason: str) -> None:
    """Removing a beginning does not pass for retention."""
    events = samples.chained("w-1", 9)
    marks = marks_of("w-1", events, pruned=4)
    assert marks.prune_point is not None
    forged = replace(marks, prune_point=replace(marks.prune_point, **changes))
    verdict = found(exported(FakeTrail({"w-1": events[4:]}, {"w-1": forged})))
    assert (verdict.ok, verdict.reason) == (False, reason)


def test_the_prune_point_of_another_writer_is_found() -> None:
    """A signature is good for one writer."""
    events = samples.chained("w-1", 9)
    marks, other = marks_of("w-1", events, pruned=4), marks_of("w-2", events, pruned=4)
    forged = replace(marks, prune_point=other.prune_point)
    verdict = found(exported(FakeTrail({"w-1": events[4:]}, {"w-1": forged})))
    assert verdict.reason == "the prune point is not what was signed"


def test_more_removed_than_the_prune_point_says_is_found() -> None:
    """The first missing event is named; an older prune point, kept by a forger, does not fit."""
    events = samples.chained("w-1", 9)
    trail = FakeTrail({"w-1": events[6:]}, {"w-1": marks_of("w-1", events, pruned=4)})
    verdict = found(exported(trail))
    assert verdict.position == Position(1, "w-1", 5)
    assert verdict.reason == "the events begin with 7, not with 5"


def test_a_first_event_that_does_not_follow_the_prune_point_is_found() -> None:
    """Its number fits, its hash does not."""
    events, other = samples.chained("w-1", 9), samples.chained("w-1", 9, reason="other")
    trail = FakeTrail({"w-1": other[4:]}, {"w-1": marks_of("w-1", events, pruned=4)})
    verdict = found(exported(trail))
    assert verdict.position == Position(1, "w-1", 5)
    assert verdict.reason == "the event does not follow the beginning of its chain"


def test_a_chain_that_goes_on_behind_its_tip_is_found() -> None:
    """Events that the agent never vouched for are not part of the trail."""
    events = samples.chained("w-1", 9)
    trail = FakeTrail({"w-1": events}, {"w-1": marks_of("w-1", events[:7])})
    verdict = found(exported(trail))
    assert verdict.position == Position(8, "w-1", 8)


def test_a_last_event_that_was_replaced_is_named() -> None:
    """Rewritten with a hash that fits before the export: the tip was signed for another one."""
    trail = sample_trail()
    trail.chains["w-1"][-1] = rehashed({**trail.chains["w-1"][-1], "actor": "forged"})
    verdict = found(exported(trail))
    assert verdict.position == Position(10, "w-1", 9)
    assert verdict.reason == "the last event is not the one that the signed tip names"


@pytest.mark.parametrize(("first", "last"), [(1, 9), (3, 9), (1, 6), (4, 6), (5, 5)])
def test_a_period_is_a_part_of_each_chain(first: int, last: int) -> None:
    """It needs neither the beginning nor the end of a chain, and no hole is allowed."""
    events = samples.chained("w-1", 9)
    part = FakeTrail(
        {"w-1": events[first - 1 : last]},
        {"w-1": marks_of("w-1", events)},
        from_s=None if first == 1 else START_S + first - 1,
        to_s=None if last == 9 else START_S + last,
    )
    assert found(exported(part)).ok
    if last - first > 1:
        del part.chains["w-1"][1]
        assert found(exported(part)).position == Position(2, "w-1", first + 1)


def test_a_trail_is_checked_while_it_is_read() -> None:
    """Neither side holds the events: a line is gone when the next one comes."""
    chain = AuditChain("w-1")
    alive: list[int] = []

    def lines() -> Iterator[bytes]:
        for _ in range(3):
            alive.append(1)
            yield chain.link(samples.event())
            alive.pop()

    trail = FakeTrail({}, {})
    trail.lines = lines  # type: ignore[method-assign]
    stream = export_lines(trail.trail(), KEY, START_S)
    next(stream)
    assert alive == [1]
    next(stream)
    assert alive == [1]


@pytest.mark.parametrize(("name", "events"), [("trail", 5), ("selection", 3)])
def test_a_file_of_an_earlier_version_verifies(name: str, events: int) -> None:
    """Exports are kept for years; a cut still shows."""
    path = Path(__file__).parent / "old_files" / f"{name}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert found(lines) == Verdict(True, events, 2 if name == "trail" else 1)
    assert not found([*lines[:2], *lines[3:]]).ok
