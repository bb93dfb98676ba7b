"""The record store in PostgreSQL, a real server that the module starts and ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

pytest.register_assert_rewrite("tests.unit.store.store_contract", "tests.unit.store.spend_contract")

from router.store.failures import StoreUnavailable  # noqa: E402
from router.store.record_store import RecordStore  # noqa: E402
from tests.unit.records import samples  # noqa: E402
from tests.unit.records.samples import KEY  # noqa: E402
from tests.unit.store.spend_contract import SpendContract  # noqa: E402
from tests.unit.store.store_contract import StoreContract, verdict  # noqa: E402

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: no PostgreSQL tests")

UNPRIVILEGED = "nobody"
"""PostgreSQL refuses to run as root."""


def find_programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``; Debian keeps it off the PATH."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])
    )
    return versions[-1].parent if versions else None


class Server:
    """A PostgreSQL that listens on a unix socket in a directory of its own."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._user: str | None = None
        # Not pytest's directory: that one is for the user who runs the tests only.
        self.directory = Path(tempfile.mkdtemp(prefix="pg-"))
        if os.geteuid() == 0:
            self._user = UNPRIVILEGED
            shutil.chown(self.directory, UNPRIVILEGED)
        self.data = self.directory / "data"
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        options = ["--username=router", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
        self._run("initdb", "-D", str(self.data), "--no-sync", *options)

    def start(self) -> None:
        options = "-c fsync=off -c listen_addresses= -c max_connections=40"
        self._run(
            "pg_ctl",
            *("start", "-w", "-D", str(self.data), "-l", str(self.directory / "log")),
            *("-o", f"{options} -k {self.directory}"),
        )

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.data))

    def halt(self) -> None:
        """Stop all its processes where they are."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        shutil.rmtree(self.directory)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://router@/{database}?host={self.directory}"

    def empty(self) -> None:
        """Leave a database as it is when it was just created."""
        with psycopg.connect(
            host=str(self.directory), user="router", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")

    def _signal(self, number: signal.Signals) -> None:
        main = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        for process in (main, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):  # a child may end meanwhile
                os.kill(process, number)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._user,
            extra_groups=None if self._user is None else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server inherits it: a pipe would never end
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            check=False,
        )
        if done.returncode:
            log = self.directory / "log"
            said = log.read_text() if log.exists() else "nothing"
            raise AssertionError(f"{program} failed; the server said: {said}")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: its record store goes untested")
    server = Server(programs)
    server.create()
    server.start()
    yield server
    server.stop()
    server.remove()


class TestPostgres(SpendContract, StoreContract):
    """The contract, and what only a server has to stand."""

    @pytest.fixture
    def store_url(self, server: Server) -> str:
        server.empty()
        return server.url()

    def test_hosts_that_start_together_migrate_once(self, store_url: str) -> None:
        """Several agents on an empty database take turns, and all of them can go on."""
        failures: list[Exception] = []

        def migrate() -> None:
            with RecordStore(store_url) as store:
                try:
                    store.migrate()
                except Exception as error:
                    failures.append(error)

        _together(*[migrate] * 6)
        assert failures == []

    def test_hosts_that_deliver_the_same_store_it_once(
        self, store_url: str, store: RecordStore
    ) -> None:
        """Two agents that ship the same records at the same moment make no duplicate."""
        calls = list(samples.different_calls(5, 400))
        events = samples.chained("w-1", 400)
        with RecordStore(store_url, audit_key=KEY) as other:
            _together(
                *(
                    partial(either.write, calls[start : start + 100], events[start : start + 100])
                    for start in range(0, 400, 100)
                    for either in (store, other)
                )
            )
        documents = [record for part in store.read_records() for record in part]
        assert len(documents) == store.count_usage() == 400
        with store._database.reading() as connection:
            assert connection.scalar(text("SELECT count(*) FROM usage_documents")) == 400
        assert (verdict(store).ok, verdict(store).events) == (True, 400)

    def test_a_restarted_server_is_found_again(self, server: Server, store: RecordStore) -> None:
        """While the server is away the store is unavailable; afterwards it works by itself."""
        store.write([samples.usage()])
        server.stop()
        try:
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    store.write([samples.usage()])
        finally:
            server.start()
        assert store.write([samples.usage()]).usage == 1
        assert store.count_usage() == 2

    @pytest.mark.parametrize("read_only", [True, False])
    def test_a_server_that_stands_still_is_given_up(
        self, server: Server, store: RecordStore, monkeypatch: pytest.MonkeyPatch, read_only: bool
    ) -> None:
        """A server that accepts and never answers counts as away, and is found again."""
        monkeypatch.setattr("router.store.engine._MARGIN_S", 0.2)
        monkeypatch.setattr("router.store.engine._CONNECT_S", 2)
        hasty = RecordStore(server.url(), read_only=read_only, query_timeout_s=0.3)
        with hasty:
            assert hasty.count_usage() == 0
            server.halt()
            try:
                for _ in range(2):
                    began_s = time.monotonic()
                    with pytest.raises(StoreUnavailable):
                        hasty.count_usage()
                    assert time.monotonic() - began_s < 5
            finally:
                server.go_on()
            assert hasty.count_usage() == 0

    def test_a_statement_that_hangs_is_given_up(
        self, server: Server, store: RecordStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Writing waits for no lock longer than it may; afterwards it goes on."""
        monkeypatch.setattr("router.store.engine._WRITE_S", 0.3)
        with (
            RecordStore(server.url(), audit_key=KEY) as impatient,
            store._database.writing() as connection,
        ):
            connection.execute(text("LOCK TABLE usage_records"))
            with pytest.raises(StoreUnavailable, match="timeout"):
                impatient.write([samples.usage()])
            connection.rollback()
            assert impatient.write([samples.usage()]).usage == 1

    def test_numbers_that_were_given_before_blame_no_record(self, store: RecordStore) -> None:
        """A restored database whose sequence was not: the store is at fault, not the records."""
        store.write([samples.usage()])
        with store._database.writing() as connection:
            connection.execute(text("ALTER SEQUENCE usage_ids RESTART"))
        with pytest.raises(StoreUnavailable, match="usage_records_pkey"):
            store.write([samples.usage()])
        with store._database.writing() as connection:
            chosen = "SELECT setval('usage_ids', max(id)) FROM usage_records"
            connection.execute(text(chosen))
        assert store.write([samples.usage()]).usage == 1

    def test_a_password_stays_in_the_url(self, server: Server) -> None:
        """What goes wrong is told without the secret that the URL holds (P17)."""
        urls = [
            f"postgresql://router:canary@/nowhere?host={server.directory}",
            "postgresql://router:canary@127.0.0.1:1/nowhere",
            "postgresql://router:canary@127.0.0.1:port/nowhere",
            "mysql://router:canary@127.0.0.1/nowhere",
        ]
        for url in urls:
            with pytest.raises(StoreUnavailable) as raised, RecordStore(url) as store:
                store.count_usage()
            assert "canary" not in str(raised.value)


def _together(*works: Any) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
