"""The record store in a SQLite file."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

pytest.register_assert_rewrite("tests.unit.store.store_contract", "tests.unit.store.spend_contract")

from router.store.failures import StoreInUse, StoreUnavailable  # noqa: E402
from router.store.queries.sql_queries import cursor_after  # noqa: E402
from router.store.record_store import RecordStore  # noqa: E402
from tests.unit.records import samples  # noqa: E402
from tests.unit.records.samples import KEY, START_S  # noqa: E402
from tests.unit.store.spend_contract import SpendContract  # noqa: E402
from tests.unit.store.store_contract import StoreContract  # noqa: E402


class TestSqlite(SpendContract, StoreContract):
    """The contract, and what only a file has to keep."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "data dir #1?%20" / "records.db"

    @pytest.fixture
    def usual_umask(self) -> Iterator[None]:
        before = os.umask(0o022)
        yield
        os.umask(before)

    @pytest.fixture
    def store_url(self, path: Path) -> str:
        return f"sqlite:///{path}"

    def test_a_file_has_one_writer(self, store_url: str, store: RecordStore) -> None:
        """A second writer is refused as long as the first is there; anybody may read."""
        with RecordStore(store_url) as second:
            with pytest.raises(StoreInUse):
                second.write([samples.usage()])
            assert second.count_usage() == 0
            store.close()
            assert second.write([samples.usage()]).usage == 1

    def test_new_files_are_not_for_everybody(
        self, path: Path, store: RecordStore, usual_umask: None
    ) -> None:
        """What they tell of calls is for their user, and as far as the umask says for the group."""
        store.write([samples.usage()])
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        names = ["records.db", "records.db-shm", "records.db-wal", "records.db.writer"]
        assert modes == dict.fromkeys(names, 0o640)

    def test_a_file_keeps_its_mode(
        self, path: Path, store_url: str, store: RecordStore, usual_umask: None
    ) -> None:
        """An operator may have chosen it."""
        store.write([samples.usage()])
        store.close()
        path.chmod(0o604)
        with RecordStore(store_url, audit_key=KEY) as again:
            again.write([samples.usage()])
        assert path.stat().st_mode & 0o777 == 0o604

    def test_readers_leave_the_files_alone(
        self, path: Path, store: RecordStore, reader: RecordStore
    ) -> None:
        """A reader neither writes nor checkpoints, whether it comes last or not."""
        store.write([samples.usage()])
        before = {file.name: file.read_bytes() for file in path.parent.glob("records.db*")}
        assert reader.count_usage() == 1
        reader.close()
        del before["records.db-shm"]  # where readers say what they read
        assert {name: path.with_name(name).read_bytes() for name in before} == before
        assert before["records.db-wal"]

    def test_what_was_committed_survives_its_writer(
        self, path: Path, tmp_path: Path, store: RecordStore
    ) -> None:
        """The files as a killed process leaves them hold every record that was acknowledged."""
        store.write([samples.usage()], samples.chained("w-1", 1))
        killed = tmp_path / "killed"
        shutil.copytree(path.parent, killed)
        with RecordStore(f"sqlite:///{killed / path.name}", audit_key=KEY) as survivor:
            assert survivor.count_usage() == 1
            assert survivor.write([samples.usage()]).usage == 1

    def test_a_commit_is_on_disk_when_it_is_over(self, store: RecordStore) -> None:
        """The spool is removed after a commit, so a commit must outlive a loss of power (P1)."""
        with store._database.writing() as connection:
            modes = [
                connection.scalar(text(f"PRAGMA {name}"))
                for name in ("journal_mode", "synchronous")
            ]
        assert modes == ["wal", 2]

    def test_reading_makes_no_file(self, path: Path, store_url: str) -> None:
        """Before the agent has written anything there is nothing to read, and that is said."""
        with (
            RecordStore(store_url, read_only=True) as reader,
            pytest.raises(StoreUnavailable, match="not there yet"),
        ):
            reader.count_usage()
        assert not path.parent.exists()

    def test_a_damaged_file_is_unavailable(self, path: Path, store_url: str) -> None:
        """What is no database is reported as any other trouble of the store."""
        path.parent.mkdir()
        path.write_bytes(b"no database at all" * 100)
        with RecordStore(store_url) as store, pytest.raises(StoreUnavailable):
            store.migrate()

    @pytest.mark.parametrize("read_only", [False, True])
    def test_a_damaged_file_is_not_left_open(
        self, path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch, read_only: bool
    ) -> None:
        """An agent tries again each second; with SQLAlchemy 2.0 each try used to leave one open."""
        open_now: list[sqlite3.Connection] = []

        class Watched(sqlite3.Connection):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                open_now.append(self)

            def close(self) -> None:
                super().close()
                open_now.remove(self)

        monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Watched))
        path.parent.mkdir()
        path.write_bytes(b"no database at all" * 100)
        with RecordStore(store_url, read_only=read_only) as store:
            with pytest.raises(StoreUnavailable):
                store.count_usage() if read_only else store.migrate()
            assert open_now == []

    @pytest.mark.parametrize("replaced", [False, True])
    def test_a_file_that_was_taken_away_is_noticed(
        self, path: Path, store: RecordStore, reader: RecordStore, replaced: bool
    ) -> None:
        """Nothing is reported as stored that went into a file which nobody can open any more."""
        store.write([samples.usage()])
        store.close()
        backup = path.read_bytes()
        store.write([samples.usage()])
        for file in path.parent.glob("records.db*"):
            file.unlink()
        if replaced:
            path.write_bytes(backup)
        with pytest.raises(StoreUnavailable, match="deleted or replaced"):
            store.write([samples.usage()])
        assert store.write([samples.usage()]).usage == 1
        assert reader.count_usage() == (2 if replaced else 1)

    def test_a_full_disk_is_survived(self, store: RecordStore) -> None:
        """A batch that finds no room is refused whole, and is stored when there is room again."""
        store.write([samples.usage()])
        batch = list(samples.different_calls(1, 400))
        pages = text("PRAGMA page_count")
        with store._database.writing() as connection:
            connection.execute(text(f"PRAGMA max_page_count = {connection.scalar(pages)}"))
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="full"):
                store.write(batch, samples.chained("w-1", 1))
        assert (store.count_usage(), store.list_audit(None).events) == (1, ())
        with store._database.writing() as connection:
            connection.execute(text("PRAGMA max_page_count = 1000000"))
        assert store.write(batch, samples.chained("w-1", 1)).usage == 400

    def test_damage_within_a_file_is_no_answer(
        self, path: Path, store: RecordStore, store_url: str
    ) -> None:
        """Pages that were overwritten are reported; with a sound file in place it goes on."""
        store.write(list(samples.different_calls(1, 400)))
        store.close()
        sound = path.read_bytes()
        path.write_bytes(sound[:4096] + b"\xff" * (len(sound) - 4096))
        with RecordStore(store_url, read_only=True) as reader:
            with pytest.raises(StoreUnavailable):
                reader.usage(None)
            with pytest.raises(StoreUnavailable):
                store.write([samples.usage()])
            store.close()
            path.write_bytes(sound)
            assert store.write([samples.usage()]).usage == 1
            assert reader.count_usage() == 401

    def test_a_place_that_cannot_be_written_is_unavailable(self, path: Path) -> None:
        """A directory that cannot be made is reported as any other trouble of the store."""
        path.parent.write_bytes(b"")
        with RecordStore(f"sqlite:///{path}") as store, pytest.raises(StoreUnavailable):
            store.migrate()

    @pytest.mark.parametrize("url", ["sqlite:///", "sqlite:///:memory:", "sqlite://", "", "x"])
    def test_a_store_has_to_be_somewhere(self, url: str) -> None:
        """Memory that ends with the process is no record store."""
        with pytest.raises(StoreUnavailable):
            RecordStore(url)

    @pytest.mark.parametrize(
        ("index", "ask"),
        [
            ("usage_by_request", lambda store: store.find_request("acme", "req-1")),
            ("audit_by_request", lambda store: store.find_request("acme", "req-1")),
            ("usage_by_organization", lambda store: store.usage("acme", from_s=1.0)),
            ("usage_by_organization", lambda store: store.usage("acme", group_by=["day"])),
            ("usage_by_organization", lambda store: store.spend("acme", None, from_s=1.0)),
            ("usage_by_key", lambda store: store.spend("acme", "key_1", from_s=1.0)),
            (
                "sqlite_autoindex_usage_records_1",
                lambda store: store.spend("acme", "key_1", from_s=START_S, without=["r-1", "r-2"]),
            ),
            ("usage_by_key", lambda store: store.usage("acme", filters={"key": "key_1"})),
            ("usage_by_time", lambda store: store.count_usage(from_s=1.0, to_s=2.0)),
            ("usage_by_time", lambda store: next(store.read_records(after=(1, 1)), None)),
            ("audit_by_time", lambda store: next(store.read_records("audit", after=(1, 1)), None)),
            ("audit_by_organization", lambda store: store.list_audit("acme")),
            (
                "audit_by_organization",
                lambda store: store.list_audit("acme", cursor=cursor_after((1, 1))),
            ),
            ("audit_by_action", lambda store: store.list_audit("acme", filters={"action": "A"})),
            ("audit_by_time", lambda store: store.list_audit(None)),
            ("audit_by_place", lambda store: store.prune(START_S + 1)),
        ],
    )
    def test_a_question_goes_through_an_index(
        self, store: RecordStore, index: str, ask: Callable[[RecordStore], Any]
    ) -> None:
        """Whatever is asked often must not read a table from end to end."""
        store.write([], samples.chained("w-1", 2))
        plans: list[str] = []

        def explain(_connection: Any, cursor: Any, statement: str, values: Any, *_: Any) -> None:
            if statement.startswith("SELECT"):
                cursor.execute(f"EXPLAIN QUERY PLAN {statement}", values)
                plans.append("\n".join(row[3] for row in cursor.fetchall()))

        event.listen(store._database.engine, "before_cursor_execute", explain)
        ask(store)
        assert any(index in plan.split() for plan in plans), plans
        scanned = [plan for plan in plans if "SCAN usage_" in plan or "SCAN audit_e" in plan]
        assert [plan for plan in scanned if "INDEX audit_by_time" not in plan] == []
