"""Connections to the record store: opening each kind of database, and deadlines.

SQLite is a file that one process writes and any number read. The writer holds an advisory lock
beside the file, because SQLite before 3.51.3 can destroy a database in WAL mode that two
connections write or checkpoint at once; readers open it read-only, so they never do either.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from router.store.failures import (
    StoreAbsent,
    StoreError,
    StoreInUse,
    StoreTimeout,
    StoreUnavailable,
)

_SQLITE: Final = "sqlite:///"
_BUSY_S: Final = 5.0
_CONNECT_S: Final = 5
_WRITE_S: Final = 60.0
"""A server that takes longer to store a batch counts as unavailable."""
_MARGIN_S: Final = 2.0
"""The client gives up so much later than the server, which can say why."""
_STEPS_BETWEEN_CHECKS: Final = 10_000
"""SQLite checks a deadline after so many of its steps for each second that it lasts. Each check
waits for Python's lock, which takes milliseconds where a worker is busy."""
_JOURNAL_LIMIT_BYTES: Final = 64 * 1024 * 1024
_CHECKPOINT_PAGES: Final = 8000
"""A batch touches pages all over the indexes; they are checkpointed once for many batches."""
_CACHE_KIB: Final = 64 * 1024
_QUERY_CANCELED: Final = "57014"
_UNDEFINED_TABLE: Final = "42P01"
_READ_POOL: Final = 4
FILE_MODE: Final = 0o660
"""Of new files, less the umask: records are confidential."""


class Database:
    """One database, opened for writing or only for reading."""

    def __init__(self, url: str, *, read_only: bool, query_timeout_s: float | None) -> None:
        """Prepare connections; raises :class:`StoreUnavailable` for a URL that cannot be used."""
        self.read_only = read_only
        self._query_timeout_s = query_timeout_s
        self._lock: IO[bytes] | None = None
        self._locking = threading.Lock()
        self._path: Path | None = None
        self._file: tuple[int, int] | None = None
        try:
            if url.startswith(_SQLITE):
                self._path = _sqlite_path(url)
                self.engine = self._open_sqlite(self._path)
            else:
                self.engine = self._open_postgresql(_postgresql_url(url))
        except ModuleNotFoundError as error:
            raise StoreUnavailable(
                f"the record store needs the package {error.name}: install api-router[postgres]"
            ) from None
        self.is_sqlite = self._path is not None

    @contextmanager
    def reading(self, *, snapshot: bool = False) -> Iterator[Connection]:
        """A connection for reading; with ``snapshot`` several queries see the same state."""
        with self._translated(), self.engine.connect() as connection:
            if snapshot and not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with self._deadline(connection):
                yield connection

    @contextmanager
    def writing(self, *, no_timeout: bool = False) -> Iterator[Connection]:
        """A transaction that is committed at the end, or rolled back on an exception.

        ``no_timeout``: it may take, and wait for locks, as long as it needs.
        """
        if self.read_only:
            raise ValueError("this store was opened for reading")
        self._take_lock()
        self._close_lost_file()
        with (
            self._translated(),
            self.engine.begin() as connection,
            _without_timeout(connection) if no_timeout else nullcontext(),
        ):
            yield connection

    def close(self) -> None:
        """Close all connections and let another process write."""
        self.engine.dispose()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _open_sqlite(self, path: Path) -> Engine:
        mode = "ro" if self.read_only else "rwc"
        location = f"file:{quote(os.fspath(path))}?mode={mode}"

        def connect() -> sqlite3.Connection:
            if self.read_only and not path.exists():
                raise StoreAbsent(f"the record store: {path} is not there yet, an agent makes it")
            if not self.read_only:
                _make_private(path)
            # Without an isolation level the driver leaves BEGIN to us: see _begin.
            driver = sqlite3.connect(
                location, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            if not self.read_only:
                try:
                    _prepare_writer(driver)
                except BaseException:
                    # SQLAlchemy would leave it open, and the file with it, for each attempt.
                    driver.close()
                    raise
                self._file = _identity(path)
            return driver

        if self.read_only:
            engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
            _begin_with(engine, "BEGIN")
        else:
            # One connection that stays: the last one to close would checkpoint the whole journal.
            engine = create_engine(
                "sqlite://", creator=connect, poolclass=QueuePool, pool_size=1, max_overflow=0
            )
            _begin_with(engine, "BEGIN IMMEDIATE")
        return engine

    def _open_postgresql(self, url: URL) -> Engine:
        timeout_s = self._query_timeout_s if self.read_only else self._query_timeout_s or _WRITE_S
        options = ["-c timezone=UTC"]
        if self.read_only:
            options.append("-c default_transaction_read_only=on")
        engine = create_engine(
            url,
            pool_size=_READ_POOL,
            pool_pre_ping=True,
            pool_timeout=_CONNECT_S,
            connect_args={
                "connect_timeout": _CONNECT_S,
                "application_name": "api-router",
                "options": " ".join(options),
            },
        )
        from router.store.postgres import connecting, limiting

        answer_s = None if timeout_s is None else timeout_s + _MARGIN_S
        event.listen(engine, "do_connect", connecting(answer_s))
        if timeout_s is not None:
            event.listen(engine, "connect", limiting(timeout_s))
        return engine

    def _close_lost_file(self) -> None:
        """Close a file that was deleted or replaced: nobody could read what is written there."""
        if self._path is None or self._file is None or self._file == _identity(self._path):
            return
        self.engine.dispose()
        self._file = None
        raise StoreUnavailable(f"{self._path} was deleted or replaced while it was open")

    def _take_lock(self) -> None:
        if self._path is None or self._lock is not None:
            return
        with self._locking:
            if self._lock is None:
                self._lock = _lock_beside(self._path)

    @contextmanager
    def _deadline(self, connection: Connection) -> Iterator[None]:
        """Interrupt SQLite when the time is up; PostgreSQL has its own statement timeout."""
        if not self.is_sqlite or self._query_timeout_s is None:
            yield
            return
        driver: Any = connection.connection.driver_connection
        ends_s = time.monotonic() + self._query_timeout_s
        steps = max(1_000, int(self._query_timeout_s * _STEPS_BETWEEN_CHECKS))
        driver.set_progress_handler(lambda: time.monotonic() > ends_s, steps)
        try:
            yield
        finally:
            driver.set_progress_handler(None, 0)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._explain(error) from error
        except SQLAlchemyError as error:
            raise StoreUnavailable(f"the record store: {_first_line(error)}") from error

    def _explain(self, error: DBAPIError) -> StoreError:
        cause = error.orig
        canceled = getattr(cause, "sqlstate", None) == _QUERY_CANCELED
        if self._query_timeout_s is not None and (canceled or str(cause) == "interrupted"):
            return StoreTimeout(self._query_timeout_s)
        if _lacks_table(cause):
            return StoreAbsent("the record store lacks a table, an agent makes it")
        return StoreUnavailable(f"the record store: {_first_line(cause)}")


@contextmanager
def _without_timeout(connection: Connection) -> Iterator[None]:
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name != "postgresql":
        yield
        return
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    usual_s, driver.answer_within_s = driver.answer_within_s, None
    try:
        yield
    finally:
        driver.answer_within_s = usual_s


def _lacks_table(cause: object) -> bool:
    # SQLite has no code of its own for it.
    return getattr(cause, "sqlstate", None) == _UNDEFINED_TABLE or str(cause).startswith(
        "no such table: "
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _sqlite_path(url: str) -> Path:
    # Taken literally: characters of a path may have a meaning in other URLs.
    path = url.removeprefix(_SQLITE)
    if path in ("", ":memory:"):
        raise StoreUnavailable("the record store needs a file: sqlite:////path/to/records.db")
    return Path(path).absolute()


def _postgresql_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The text may hold a password.
        raise StoreUnavailable("the record store's URL cannot be read") from None
    if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
        raise StoreUnavailable(
            f"the record store can be sqlite:/// or postgresql://, not {parsed.drivername}"
        )
    return parsed.set(drivername="postgresql+psycopg")


def _begin_with(engine: Engine, statement: str) -> None:
    # By itself the driver begins no transaction before a SELECT, and two SELECTs of one query could
    # see two states.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(statement))


def _prepare_writer(driver: sqlite3.Connection) -> None:
    driver.execute("PRAGMA journal_mode=WAL")
    # What is committed is deleted from the spool, so it must survive a loss of power.
    driver.execute("PRAGMA synchronous=FULL")
    driver.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
    driver.execute(f"PRAGMA journal_size_limit={_JOURNAL_LIMIT_BYTES}")
    driver.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")


def _make_private(path: Path) -> None:
    """Make an empty file that others cannot read, unless there is one; SQLite's would be 0644.

    The journal inherits the mode. An existing file is not opened: closing it again would release
    the locks of every connection of this process.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
    except OSError:
        pass  # it exists, or SQLite will say why it cannot be made


def _lock_beside(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        wanted = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        lock = os.fdopen(os.open(path.with_name(f"{path.name}.writer"), wanted, FILE_MODE), "ab")
    except OSError as error:
        raise StoreUnavailable(f"the record store: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise StoreInUse(f"{path} is being written by another process (the agent)") from None
    return lock


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
