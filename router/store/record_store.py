"""The record store: every usage record and audit event once, and the answers made from them.

One agent writes, anyone may read. While the store is unavailable, records wait in the spool and
queries fail; nothing is lost by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection

from router.records.audit_chain import newest_tips
from router.store import trail as store_trail
from router.store.engine import Database
from router.store.failures import RecordKind, StoreUnavailable
from router.store.queries.record_queries import RecordQueries
from router.store.tables.inserts import (
    Inserted,
    Written,
    find_unstorable,
    insert_audit,
    insert_usage,
    is_unstorable,
    rows_of,
)
from router.store.tables.rows import Row
from router.store.tables.sql_tables import migrate


class RecordStore(RecordQueries):
    """A SQLite file or a PostgreSQL database with the records of all calls."""

    def __init__(
        self,
        url: str,
        *,
        read_only: bool = False,
        audit_key: bytes | None = None,
        query_timeout_s: float | None = None,
    ) -> None:
        """Connect with the first query.

        ``audit_key`` (see ``derive_audit_key``) signs the tips of audit chains; it is needed to
        write audit events, to close writers and to prune.
        """
        super().__init__(Database(url, read_only=read_only, query_timeout_s=query_timeout_s))
        self._audit_key = audit_key
        self._is_migrated = False
        self._is_doubtful = False

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; a SQLite file may then be written by another process."""
        self._database.close()

    def migrate(self) -> None:
        """Make the tables, or bring older ones up to date; hosts that share a database may race."""
        with self._database.writing(no_timeout=True) as connection:
            migrate(connection)
        self._is_migrated, self._is_doubtful = True, False

    def write(
        self, usage: Sequence[Mapping[str, Any]], audit: Sequence[Mapping[str, Any]] = ()
    ) -> Written:
        """Store decoded records, all or nothing; those that are there already change nothing.

        The tips of the audit chains move in the same transaction. Raises
        :class:`UnstorableRecord` for a record that no repetition will get stored, and
        :class:`StoreUnavailable` when the same batch should be tried again.
        """
        usage_rows, audit_rows = rows_of("usage", usage), rows_of("audit", audit)
        tips = newest_tips(audit, self._key()) if audit else []
        try:
            with self._writing() as connection:
                records = insert_usage(connection, usage_rows)
                events = insert_audit(connection, audit_rows)
                store_trail.advance_tips(connection, tips)
        except StoreUnavailable as error:
            if is_unstorable(error.__cause__):
                self._name_unstorable("usage", usage_rows, insert_usage)
                self._name_unstorable("audit", audit_rows, insert_audit)
            raise
        return Written(
            usage=records.new,
            audit=events.new,
            repeated=records.repeated + events.repeated,
            conflicts=records.conflicts + events.conflicts,
        )

    def close_writers(self, writer_ids: Sequence[str]) -> None:
        """Sign that these writers have ended and everything they wrote was stored."""
        with self._writing() as connection:
            store_trail.close_tips(connection, writer_ids, self._key())

    def prune(self, before_s: float) -> int:
        """Remove audit events from before a timestamp and sign where each chain now begins.

        Returns how many were removed. Usage records stay: they are the books.
        """
        key, removed = self._key(), 0
        with self._database.reading() as connection:
            writer_ids = store_trail.old_writers(connection, before_s)
        for writer_id in writer_ids:
            removed_now = 1
            while removed_now:
                with self._writing() as connection:
                    removed_now = store_trail.prune_slice(connection, writer_id, before_s, key)
                removed += removed_now
        with self._writing() as connection:
            store_trail.forget_pruned(connection)
        return removed

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction, on the tables that this program has migrated.

        After any trouble they may be others: of a backup that was restored, or of an empty file.
        """
        if self._is_doubtful:
            self.migrate()
        try:
            with self._database.writing() as connection:
                yield connection
        except StoreUnavailable:
            self._is_doubtful = self._is_migrated
            raise

    def _key(self) -> bytes:
        if self._audit_key is None:
            raise ValueError("this store was opened without the key that signs audit chains")
        return self._audit_key

    def _name_unstorable(
        self,
        kind: RecordKind,
        rows: Sequence[Row],
        insert: Callable[[Connection, Sequence[Row]], Inserted],
    ) -> None:
        with self._database.writing() as connection:
            culprit = find_unstorable(connection, kind, rows, insert)
        if culprit is not None:
            raise culprit
