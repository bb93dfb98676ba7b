"""Changes to the store: whole or not at all, and only what the document may say."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.clock import FrozenClock
from router.config.config_errors import PepperError, StateError
from router.config.diff import Change
from router.config.document import KeyRecord, LoadedDocument, Organization
from router.config.loader import load_serialized
from router.config.state.state_reader import StateReader
from router.config.state.state_writer import StateWriter

NamedDocument = Callable[[str], LoadedDocument]
NOTHING_APPLIED = "nothing has been applied yet: run 'routerctl config apply FILE' first"


def titles(changes: list[Change]) -> list[str]:
    return [f"{change.verb} {change.section} {change.entity}" for change in changes]


def key(key_id: str, number: int = 1, **fields: Any) -> KeyRecord:
    return KeyRecord(key_id, "acme", f"{number:064x}", **fields)


def refused(task: Callable[[], object]) -> list[str]:
    """The problems of a refused change."""
    with pytest.raises(StateError) as error:
        task()
    return error.value.problems


# --- apply ----------------------------------------------------------------------------------


def test_the_first_document_is_revision_one(writer: StateWriter, loaded: LoadedDocument) -> None:
    """Before it the revision is 0 and all of it is new."""
    assert writer.revision() == 0
    assert titles(writer.changes(loaded)) == [
        "added organizations acme",
        "added keys key-a",
        "added models gpt-4o",
        "added backends a",
        "added policies */*",
    ]
    assert writer.apply(loaded) == 1
    assert writer.revision() == 1


def test_an_empty_document_is_a_document(writer: StateWriter, reader: StateReader) -> None:
    """Nothing at all can be applied, and counts as applied."""
    assert writer.apply(LoadedDocument()) == 1
    assert reader.document().revision == 1


def test_an_equal_document_is_no_new_revision(writer: StateWriter, loaded: LoadedDocument) -> None:
    """Applying what is there already changes nothing."""
    writer.apply(loaded)
    assert writer.changes(loaded) == []
    assert writer.apply(loaded) == 1


def test_changed_keys_are_no_new_revision(
    writer: StateWriter, reader: StateReader, loaded: LoadedDocument
) -> None:
    """Keys are read through, so workers need not rebuild their documents."""
    writer.apply(loaded)
    renamed = replace(loaded, keys=(replace(loaded.keys[0], name="renamed"),))
    assert titles(writer.changes(renamed)) == ["changed keys key-a"]
    assert writer.apply(renamed) == 1
    assert writer.get_key("key-a").name == "renamed"


def test_the_time_of_a_change_is_kept(
    writer: StateWriter, state_dir: Path, loaded: LoadedDocument
) -> None:
    """The store knows since when its document holds."""
    from router.config.state.transaction import open_tables

    writer.apply(loaded)
    with open_tables(state_dir) as tables:
        assert tables.applied_at() == "2027-01-15T08:00:00+00:00"


def test_a_preview_changes_nothing(
    writer: StateWriter, state_dir: Path, loaded: LoadedDocument
) -> None:
    """Asking for the changes does not even create the store."""
    writer.changes(loaded)
    assert not state_dir.exists()


def test_unlisted_keys_stay(writer: StateWriter, loaded: LoadedDocument) -> None:
    """A key made by 'keys create' survives every apply."""
    writer.apply(loaded)
    writer.put_key(key("made"))
    assert writer.changes(loaded) == []
    writer.apply(loaded)
    assert [record.id for record in writer.list_keys()] == ["key-a", "made"]


def test_unlisted_keys_can_be_pruned(
    writer: StateWriter, reader: StateReader, loaded: LoadedDocument
) -> None:
    """On demand the document is all there is; a pruned key is gone for workers as well."""
    writer.apply(loaded)
    writer.put_key(key("made"))
    assert titles(writer.changes(loaded, prune_keys=True)) == ["removed keys made"]
    writer.apply(loaded, prune_keys=True)
    assert [record.id for record in writer.list_keys()] == ["key-a"]
    assert reader.find_key(bytes.fromhex(key("made").hash)) is None


def test_an_organization_with_keys_cannot_go(writer: StateWriter, loaded: LoadedDocument) -> None:
    """A stored key never belongs to nobody, and the refused document changes nothing."""
    writer.apply(loaded)
    for number in range(5):
        writer.put_key(key(f"made-{number}", number + 1))
    other = LoadedDocument(organizations=(Organization("other"),))
    before = writer.export()
    expected = [
        "organizations: 'acme' cannot be removed, it has 6 stored key(s)"
        " (key-a, made-0, made-1, ...);"
        " list them elsewhere or remove unlisted keys with --prune-keys"
    ]
    assert refused(lambda: writer.apply(other)) == expected
    assert refused(lambda: writer.changes(other)) == expected
    assert writer.export() == before
    assert writer.apply(other, prune_keys=True) == 2


def test_a_listed_key_moves_to_another_organization(
    writer: StateWriter, loaded: LoadedDocument
) -> None:
    """Listing a key elsewhere frees its old organization to go."""
    writer.apply(loaded)
    moved = replace(
        loaded,
        organizations=(Organization("other"),),
        keys=(replace(loaded.keys[0], organization_id="other"),),
    )
    assert writer.apply(moved) == 2
    assert writer.get_key("key-a").organization_id == "other"


def test_a_key_has_one_id(writer: StateWriter, loaded: LoadedDocument) -> None:
    """A key that is stored under another id is refused, unless that one goes."""
    writer.apply(loaded)
    renamed = replace(loaded, keys=(replace(loaded.keys[0], id="new"),))
    assert refused(lambda: writer.apply(renamed)) == [
        "keys[0].hash: already stored as the key 'key-a'"
    ]
    writer.apply(renamed, prune_keys=True)
    assert [record.id for record in writer.list_keys()] == ["new"]


def test_keys_can_swap_their_hashes(
    writer: StateWriter, reader: StateReader, loaded: LoadedDocument
) -> None:
    """A change of two keys used to lose one when each took the place of the other."""
    one, two = key("one", 1), key("two", 2)
    writer.apply(replace(loaded, keys=(one, two)))
    writer.apply(replace(loaded, keys=(key("one", 2), key("two", 1))))
    found = [reader.find_key(bytes.fromhex(record.hash)).id for record in (one, two)]
    assert found == ["two", "one"]


def test_a_replaced_hash_is_forgotten(
    writer: StateWriter, reader: StateReader, loaded: LoadedDocument
) -> None:
    """After a key's hash changed, the old key is nobody's."""
    writer.apply(replace(loaded, keys=(key("one", 1),)))
    writer.apply(replace(loaded, keys=(key("one", 2),)))
    assert reader.find_key(bytes.fromhex(key("one", 1).hash)) is None


def test_a_revoked_key_does_not_come_back_by_the_way(
    writer: StateWriter, loaded: LoadedDocument
) -> None:
    """The next routine apply used to undo a revocation that the document knew nothing of."""
    writer.apply(loaded)
    writer.revoke_key("key-a")
    assert refused(lambda: writer.apply(loaded)) == [
        "keys[0].status: 'key-a' has been revoked; write 'revoked' here,"
        " or make it valid again with --reactivate-keys"
    ]
    assert writer.get_key("key-a").status == "revoked"
    writer.apply(loaded, reactivate_keys=True)
    assert writer.get_key("key-a").status == "active"


def test_a_revoked_demo_key_comes_back_with_the_demo(
    writer: StateWriter, loaded: LoadedDocument
) -> None:
    """Everybody knows a demo key anyway; the demo must start again."""
    demo = replace(loaded, keys=(replace(loaded.keys[0], demo=True),))
    writer.apply(demo)
    writer.revoke_key("key-a")
    writer.apply(demo)
    assert writer.get_key("key-a").status == "active"


# --- single keys ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [
        StateWriter.export,
        StateWriter.list_keys,
        lambda writer: writer.get_key("a"),
        lambda writer: writer.revoke_key("a"),
        lambda writer: writer.put_key(key("a")),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_before_the_first_document_there_are_no_keys(
    writer: StateWriter, state_dir: Path, task: Callable[[StateWriter], object], exists: bool
) -> None:
    """The operator is told what to do first, and no store comes into being."""
    if exists:
        state_dir.mkdir(parents=True)
    assert refused(lambda: task(writer)) == [NOTHING_APPLIED]
    assert state_dir.exists() == exists


def test_a_key_is_put_found_and_revoked(writer: StateWriter, loaded: LoadedDocument) -> None:
    """A key's life; revoking twice is as good as once."""
    writer.apply(loaded)
    record = key("made", models=frozenset({"gpt-4o"}), expires_at_s=1_900_000_000.0)
    writer.put_key(record)
    assert writer.get_key("made") == record
    revoked = replace(record, status="revoked")
    assert [writer.revoke_key("made"), writer.revoke_key("made")] == [revoked, revoked]
    assert writer.get_key("made") == revoked


def test_a_key_can_be_overwritten_or_not(writer: StateWriter, loaded: LoadedDocument) -> None:
    """Creating never replaces; putting does, and leaves no second way in."""
    writer.apply(loaded)
    writer.put_key(key("made", 1))
    assert refused(lambda: writer.put_key(key("made", 2), overwrite=False)) == [
        "there is already a key 'made'"
    ]
    writer.put_key(key("made", 2))
    assert [record.hash for record in writer.list_keys()][1:] == [key("made", 2).hash]


@pytest.mark.parametrize(
    ("record", "problems"),
    [
        (
            KeyRecord("made", "nobody", "0" * 64, models=frozenset({"gpt", "gone"})),
            [
                "no organization has the id 'nobody'",
                "no model has the id 'gone'",
                "no model has the id 'gpt'",
            ],
        ),
        (key("made", int("ab" * 32, 16)), ["this key is already stored as 'key-a'"]),
        (
            key("a b", name="x\x1b[2J"),
            [
                "id: must be 1 to 128 of A-Z a-z 0-9 . _ : / - and begin with a letter or digit",
                "name: must not hold control characters",
            ],
        ),
    ],
)
def test_a_key_that_no_document_could_list_is_refused(
    writer: StateWriter, loaded: LoadedDocument, record: KeyRecord, problems: list[str]
) -> None:
    """Whatever is stored can be exported and applied again."""
    writer.apply(loaded)
    assert refused(lambda: writer.put_key(record)) == problems


@pytest.mark.parametrize("task", ["get_key", "revoke_key"])
def test_an_unknown_id_is_named(writer: StateWriter, loaded: LoadedDocument, task: str) -> None:
    """A typing error changes nothing and says so."""
    writer.apply(loaded)
    assert refused(lambda: getattr(writer, task)("gone")) == ["there is no key 'gone'"]


# --- export and failures --------------------------------------------------------------------


def test_an_export_can_be_applied(
    writer: StateWriter, tmp_path: Path, loaded: LoadedDocument
) -> None:
    """Another router that applies it holds the same, keys included."""
    writer.apply(loaded)
    writer.put_key(key("made", expires_at_s=1_900_000_000.5))
    writer.revoke_key("made")
    exported = writer.export()
    other = StateWriter(tmp_path / "other")
    other.apply(load_serialized(exported))
    assert other.export() == exported
    assert writer.changes(load_serialized(exported), prune_keys=True) == []


def test_a_corrupt_store_is_reported(
    writer: StateWriter, state_dir: Path, loaded: LoadedDocument
) -> None:
    """One line for the operator, and the file is not written over."""
    state_dir.mkdir(parents=True)
    (state_dir / "data.mdb").write_bytes(b"junk")
    [problem] = refused(lambda: writer.apply(loaded))
    assert problem.startswith("the configuration store: ")
    assert (state_dir / "data.mdb").read_bytes() == b"junk"


def test_a_place_that_cannot_be_made_is_reported(tmp_path: Path, loaded: LoadedDocument) -> None:
    """The system's reason comes without a traceback."""
    (tmp_path / "file").write_text("", encoding="ascii")
    [problem] = refused(lambda: StateWriter(tmp_path / "file" / "state").apply(loaded))
    assert problem == f"{tmp_path / 'file'}: File exists"


def test_the_store_is_for_its_owner(
    writer: StateWriter, state_dir: Path, loaded: LoadedDocument
) -> None:
    """Directories that the router makes are closed to others."""
    writer.apply(loaded)
    modes = [path.stat().st_mode & 0o777 for path in (state_dir.parent, state_dir)]
    assert modes == [0o700, 0o700]


def test_a_reader_of_the_same_process_goes_on(
    writer: StateWriter, reader: StateReader, named: NamedDocument
) -> None:
    """LMDB forbids a process to open a store twice; readers on other threads do not notice."""
    writer.apply(named("1"))
    seen: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(reader.document().organizations["acme"].name)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for number in range(2, 12):
            writer.apply(named(str(number)))
    finally:
        done.set()
        thread.join()
    assert seen == sorted(seen, key=int)
    assert reader.document().organizations["acme"].name == "11"


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), max_size=6))
def test_ids_and_hashes_stay_one_to_one(tmp_path: Path, steps: list[tuple[str, int]]) -> None:
    """Whatever is put in whatever order, each id has one hash and each hash one id."""
    state_dir = tmp_path / "state"
    writer = StateWriter(state_dir, FrozenClock())
    writer.apply(LoadedDocument(organizations=(Organization("acme"),)), prune_keys=True)
    expected: dict[str, str] = {}
    for name, number in steps:
        record = key(name, number)
        if record.hash in {held for owner, held in expected.items() if owner != name}:
            assert refused(lambda record=record: writer.put_key(record))
        else:
            writer.put_key(record)
            expected[name] = record.hash
    assert {record.id: record.hash for record in writer.list_keys()} == expected
    reader = StateReader(state_dir, FrozenClock())
    for number in range(1, 5):
        found = reader.find_key(bytes.fromhex(f"{number:064x}"))
        assert (found.id if found else None) == next(
            (name for name, held in expected.items() if held == f"{number:064x}"), None
        )
    reader.close()


def test_the_store_knows_its_pepper(
    writer: StateWriter, reader: StateReader, loaded: LoadedDocument
) -> None:
    """A store of before has no fingerprint and takes any; the first write notes it."""
    writer.apply(loaded)
    assert reader.pepper_matches("a" * 16) is None
    writer.put_key(writer.get_key("key-a", fingerprint="b" * 16), fingerprint="a" * 16)
    assert reader.pepper_matches("a" * 16) is True
    assert reader.pepper_matches("b" * 16) is False
    with pytest.raises(PepperError, match="not the one that the stored keys were made with"):
        writer.apply(loaded, fingerprint="b" * 16)
    writer.apply(replace(loaded, keys=()), prune_keys=True)
    assert reader.pepper_matches("a" * 16) is None
