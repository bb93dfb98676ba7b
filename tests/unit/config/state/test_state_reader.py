"""The store as a worker reads it: fresh keys, frozen documents, and every way it can be away."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from router.clock import FrozenClock
from router.config.document import LoadedDocument
from router.config.state import environment as storage
from router.config.state.environment import (
    DOCUMENT,
    KEYS,
    META,
    REVISION,
    encode_number,
    open_for_writing,
)
from router.config.state.state_reader import StateReader
from router.config.state.state_writer import StateWriter
from router.errors import NotConfigured

KEY_HASH = bytes.fromhex("ab" * 32)
NamedDocument = Callable[[str], LoadedDocument]


def put_raw(state_dir: Path, table: bytes, entries: dict[bytes, bytes]) -> None:
    """Write to the store behind the writer's back."""
    with open_for_writing(state_dir, create=True) as env:
        handle = env.open_db(table)
        with env.begin(write=True) as transaction:
            for name, value in entries.items():
                transaction.put(name, value, db=handle)


QUESTIONS: list[Callable[[StateReader], object]] = [
    StateReader.revision,
    StateReader.document,
    lambda reader: reader.find_key(KEY_HASH),
    lambda reader: reader.find_key_with_id("key-a"),
]


@pytest.mark.parametrize("ask", QUESTIONS)
def test_an_empty_router_says_so(reader: StateReader, ask: Callable[[StateReader], object]) -> None:
    """Before anything was applied nobody is called unauthorized (K5)."""
    with pytest.raises(NotConfigured, match="has no configuration yet"):
        ask(reader)
    assert reader.fault is None


def test_a_store_without_a_document_knows_no_key(
    reader: StateReader, writer: StateWriter, state_dir: Path
) -> None:
    """A store that was created and never filled is no reason to refuse a key (K5)."""
    with open_for_writing(state_dir, create=True) as env:
        for table in storage.TABLES:
            env.open_db(table)
    with pytest.raises(NotConfigured):
        reader.find_key(KEY_HASH)


def test_what_was_applied_is_read(
    reader: StateReader, writer: StateWriter, loaded: LoadedDocument
) -> None:
    """The document, its revision and its keys arrive as they were loaded."""
    assert writer.apply(loaded) == 1
    assert reader.revision() == 1
    assert reader.document() == loaded.build(1)
    assert reader.find_key(KEY_HASH) == loaded.keys[0]
    assert reader.find_key_with_id("key-a") == loaded.keys[0]
    assert reader.find_key_with_id("key-b") is None
    assert reader.fault is None


@pytest.mark.parametrize("key_hash", [b"", b"short", b"\0" * 32, b"x" * 600])
def test_an_unknown_key_is_nobody(
    reader: StateReader, writer: StateWriter, loaded: LoadedDocument, key_hash: bytes
) -> None:
    """Only a look-up that took place says that there is no such key."""
    writer.apply(loaded)
    assert reader.find_key(key_hash) is None


def test_a_store_that_appears_is_found(
    reader: StateReader, writer: StateWriter, clock: FrozenClock, loaded: LoadedDocument
) -> None:
    """A worker that started first tries again, at most every 0.2 s (D6)."""
    with pytest.raises(NotConfigured):
        reader.revision()
    writer.apply(loaded)
    with pytest.raises(NotConfigured):
        reader.revision()
    clock.advance(0.2)
    assert reader.revision() == 1


def test_the_snapshot_changes_with_the_revision_only(
    reader: StateReader, writer: StateWriter, named: NamedDocument
) -> None:
    """Between two revisions every call gets the same object; an old one stays as it was (C2)."""
    writer.apply(named("first"))
    first = reader.document()
    assert reader.document() is first
    writer.apply(named("second"))
    second = reader.document()
    assert [first.organizations["acme"].name, second.organizations["acme"].name] == [
        "first",
        "second",
    ]
    assert [first.revision, second.revision] == [1, 2]


def test_a_revocation_holds_at_once(
    reader: StateReader, writer: StateWriter, loaded: LoadedDocument
) -> None:
    """No key is cached, so the next look-up after a change sees it (K1, P18)."""
    writer.apply(loaded)
    before = reader.find_key(KEY_HASH)
    document = reader.document()
    writer.revoke_key("key-a")
    assert reader.find_key(KEY_HASH) == replace(before, status="revoked")
    assert reader.document() == document
    assert reader.revision() == 1


@pytest.mark.parametrize("stored", [b"{not json", b"[]", b'{"version": 2}', b""])
def test_a_bad_document_leaves_the_old_one(
    reader: StateReader,
    writer: StateWriter,
    state_dir: Path,
    named: NamedDocument,
    caplog: pytest.LogCaptureFixture,
    stored: bytes,
) -> None:
    """What cannot be built is remembered and logged once, and calls go on (C2, P18)."""
    writer.apply(named("good"))
    good = reader.document()
    put_raw(state_dir, META, {DOCUMENT: stored, REVISION: encode_number(2)})
    with caplog.at_level(logging.ERROR):
        assert [reader.document() for _ in range(3)] == [good] * 3
    assert reader.fault == "revision 2 cannot be used"
    assert len(caplog.records) == 1
    assert reader.find_key(KEY_HASH) is not None


def test_a_good_document_ends_the_fault(
    reader: StateReader, writer: StateWriter, state_dir: Path, named: NamedDocument
) -> None:
    """The next good revision takes over without a restart."""
    writer.apply(named("good"))
    reader.document()
    put_raw(state_dir, META, {DOCUMENT: b"{", REVISION: encode_number(3)})
    reader.document()
    assert reader.fault is not None
    put_raw(state_dir, META, {DOCUMENT: b'{"version": 1}', REVISION: encode_number(4)})
    assert reader.document().revision == 4
    assert reader.fault is None


def test_a_first_document_that_is_bad_is_no_configuration(
    reader: StateReader, state_dir: Path
) -> None:
    """Without an old document there is nothing to go on with."""
    put_raw(state_dir, META, {DOCUMENT: b"{", REVISION: encode_number(1)})
    put_raw(state_dir, KEYS, {})
    with pytest.raises(NotConfigured, match="cannot be read"):
        reader.document()
    assert reader.fault == "revision 1 cannot be used"


def test_a_damaged_key_is_an_outage(
    reader: StateReader, writer: StateWriter, state_dir: Path, loaded: LoadedDocument
) -> None:
    """A record that cannot be decoded is never taken for a wrong key (K5)."""
    writer.apply(loaded)
    put_raw(state_dir, KEYS, {KEY_HASH: b'{"id": "key-a"}'})
    with pytest.raises(NotConfigured, match="cannot be read"):
        reader.find_key(KEY_HASH)


# --- a store that cannot be read ------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 10_000])
def test_a_corrupt_file_is_an_outage(
    reader: StateReader,
    state_dir: Path,
    clock: FrozenClock,
    caplog: pytest.LogCaptureFixture,
    content: bytes,
) -> None:
    """What is no store is reported in one log line and in words without paths (K5)."""
    state_dir.mkdir(parents=True)
    (state_dir / "data.mdb").write_bytes(content)
    for _ in range(3):
        with pytest.raises(NotConfigured, match="the configuration store cannot be read"):
            reader.find_key(KEY_HASH)
        clock.advance(1)
    assert reader.fault == "the configuration store cannot be read"
    assert [record.getMessage().count(str(state_dir)) > 0 for record in caplog.records] == [True]


def test_a_truncated_file_is_an_outage(
    reader: StateReader, writer: StateWriter, state_dir: Path, loaded: LoadedDocument
) -> None:
    """Reading a missing page of the map used to kill the process with SIGBUS."""
    writer.apply(loaded)
    os.truncate(state_dir / "data.mdb", 2 * lmdb_page_size())
    with pytest.raises(NotConfigured, match="cannot be read"):
        reader.find_key(KEY_HASH)


def test_a_file_that_shrinks_is_let_go(
    reader: StateReader,
    writer: StateWriter,
    state_dir: Path,
    clock: FrozenClock,
    loaded: LoadedDocument,
) -> None:
    """A worker notices within 0.2 s that its store was cut off, and keeps its document (P18)."""
    writer.apply(loaded)
    document = reader.document()
    os.truncate(state_dir / "data.mdb", 2 * lmdb_page_size())
    clock.advance(0.2)
    with pytest.raises(NotConfigured):
        reader.find_key(KEY_HASH)
    assert reader.document() is document
    assert reader.fault is not None


def test_a_file_is_never_shorter_than_it_says(
    writer: StateWriter, state_dir: Path, loaded: LoadedDocument
) -> None:
    """LMDB may leave out pages at the end that it gave back; that used to look like damage."""
    many = replace(
        loaded,
        keys=tuple(
            replace(loaded.keys[0], id=f"key-{number}", hash=f"{number:064x}", name="x" * 200)
            for number in range(500)
        ),
    )
    reader = StateReader(state_dir)
    for document in (many, replace(loaded, keys=())):
        writer.apply(document, prune_keys=True)
        assert reader.revision() == 1
        reader.close()


def test_a_deleted_store_is_remembered(
    reader: StateReader,
    writer: StateWriter,
    state_dir: Path,
    clock: FrozenClock,
    loaded: LoadedDocument,
) -> None:
    """A directory that disappears takes nothing from a running worker (P18)."""
    writer.apply(loaded)
    document = reader.document()
    shutil.rmtree(state_dir)
    clock.advance(1)
    assert reader.document() is document
    assert reader.find_key(KEY_HASH) == loaded.keys[0]


def test_a_replaced_store_is_noticed(
    reader: StateReader,
    writer: StateWriter,
    state_dir: Path,
    clock: FrozenClock,
    named: NamedDocument,
) -> None:
    """A restored store holds within 0.2 s, even with the very same revision number."""
    other = StateWriter(state_dir.with_name("other"))
    other.apply(replace(named("restored"), keys=()))
    writer.apply(named("old"))
    assert reader.document().organizations["acme"].name == "old"
    state_dir.rename(state_dir.with_name("away"))
    state_dir.with_name("other").rename(state_dir)
    clock.advance(0.2)
    assert reader.document().organizations["acme"].name == "restored"
    assert reader.find_key(KEY_HASH) is None


def test_full_reader_slots_are_an_outage_that_passes(
    writer: StateWriter,
    state_dir: Path,
    loaded: LoadedDocument,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """MDB_READERS_FULL is an outage, not a refusal; the document stays and keys come back (K5)."""
    monkeypatch.setattr(storage, "MAX_READERS", 4)
    writer.apply(loaded)
    reader = StateReader(state_dir)
    document = reader.document()
    holder = reader._view._env
    taken = [holder.begin() for _ in range(4)]
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with pytest.raises(NotConfigured, match="cannot be read"):
                reader.find_key(KEY_HASH)
    assert reader.document() is document
    assert (len(caplog.records), reader.fault is not None) == (1, True)
    while taken:
        taken.pop().abort()
    assert reader.find_key(KEY_HASH) == loaded.keys[0]
    assert reader.fault is None


# --- other processes ------------------------------------------------------------------------


def in_child(task: Callable[[], None]) -> int:
    """Run a task in a forked process; its exit code, 0 if nothing was raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            task()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_another_process_writes(
    reader: StateReader, writer: StateWriter, named: NamedDocument
) -> None:
    """A change by the command line is seen by a worker that has the store open (P13)."""
    writer.apply(named("first"))
    assert reader.document().revision == 1

    def write() -> None:
        writer.apply(named("second"))
        writer.revoke_key("key-a")

    assert in_child(write) == 0
    assert reader.document().organizations["acme"].name == "second"
    assert reader.find_key(KEY_HASH).status == "revoked"


def test_a_fork_opens_its_own_store(
    reader: StateReader, writer: StateWriter, loaded: LoadedDocument
) -> None:
    """A worker whose parent had the store open neither uses nor harms the parent's handle."""
    writer.apply(loaded)
    reader.document()

    def read() -> None:
        assert reader.find_key(KEY_HASH) == loaded.keys[0]
        assert reader.document().revision == 1

    assert in_child(read) == 0
    assert reader.find_key(KEY_HASH) == loaded.keys[0]


def test_readers_never_see_half_a_change(
    reader: StateReader, writer: StateWriter, named: NamedDocument
) -> None:
    """While another process applies, revision and content always belong together (C2)."""
    writer.apply(named("1"))
    reader.document()
    child = os.fork()
    if child == 0:
        try:
            for revision in range(2, 12):
                writer.apply(named(str(revision)))
        finally:
            os._exit(0)
    seen = []
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        document = reader.document()
        seen.append((document.revision, int(document.organizations["acme"].name)))
    assert all(revision == name for revision, name in seen)
    assert seen == sorted(seen)
    assert reader.document().revision == 11


def test_slots_of_killed_workers_are_freed(
    writer: StateWriter,
    state_dir: Path,
    loaded: LoadedDocument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers that die while they read leave slots behind, and a reader cleans up after them."""
    monkeypatch.setattr(storage, "MAX_READERS", 2)
    writer.apply(loaded)

    def die_reading() -> None:
        victim = StateReader(state_dir)
        victim.revision()
        kept = [victim._view._env.begin() for _ in range(2)]
        assert len(kept) == 2
        os._exit(0)

    assert in_child(die_reading) == 0
    assert StateReader(state_dir).find_key(KEY_HASH) == loaded.keys[0]


def test_reading_needs_no_right_to_write_the_data(loaded: LoadedDocument) -> None:
    """A worker under another account needs the lock file, and reads all the same."""
    base = Path(tempfile.mkdtemp())  # pytest's own place is closed to other accounts
    state_dir = base / "state"
    try:
        StateWriter(state_dir).apply(loaded)
        (state_dir / "data.mdb").chmod(0o444)
        (state_dir / "lock.mdb").chmod(0o666)
        state_dir.chmod(0o555)
        base.chmod(0o755)

        def read() -> None:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            assert not os.access(state_dir / "data.mdb", os.W_OK)
            assert StateReader(state_dir).find_key(KEY_HASH) == loaded.keys[0]

        assert in_child(read) == 0
    finally:
        base.chmod(0o755)
        state_dir.chmod(0o755)
        shutil.rmtree(base)


def lmdb_page_size() -> int:
    return os.sysconf("SC_PAGE_SIZE")
