"""The record store: every usage record and audit event once, and the answers made from them.

One agent writes, anyone may read. Every method raises a :class:`StoreError` and nothing of the
database library beneath it. While the store is unavailable, records wait in the spool and queries
fail; nothing is lost by it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import orjson
from sqlalchemy import Connection, Select, func, select

from router.exports.audit_export import ChainFault, Trail
from router.records.audit_chain import ChainTip, newest_tips
from router.store import trail as store_trail
from router.store.engine import Database
from router.store.inserts import (
    USAGE_DOCUMENTS,
    Inserted,
    Written,
    find_unstorable,
    insert_audit,
    insert_usage,
    is_unstorable,
    rows_of,
    stored_by_id,
)
from router.store.rows import Row, storable
from router.store.sql_queries import (
    AUDIT_FILTERS,
    FILTERS,
    Keyset,
    Spend,
    UsageTotals,
    cursor_after,
    in_period,
    matching,
    newer_than,
    older_than,
    read_spend,
    read_totals,
    spend_of,
    stored_up_to,
    usage_totals,
)
from router.store.sql_tables import audit, current_version, migrate, usage, usage_documents
from router.store.store_errors import (
    RecordKind,
    ResultTooLarge,
    StoreAbsent,
    StoreUnavailable,
)

MAX_ROWS: Final = 10_000
MAX_PAGE: Final = 1000
MOST_LEFT_OUT: Final = 20_000
"""SQLite takes 32 766 values in a statement."""
HISTORY_LENGTH: Final = 100
HISTORY_BYTES: Final = 4 * 1024 * 1024
"""A request history has at most so many records, as many events, and so many bytes of each."""
_HISTORY_FETCH: Final = 8
_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class RequestHistory:
    """Everything that is recorded of one request id within one organization."""

    records: tuple[dict[str, Any], ...]
    """Usage records, newest first: a client may send the same request id again."""
    events: tuple[dict[str, Any], ...]
    """Audit events, newest first."""
    truncated: bool = False
    """There are more than these, older ones."""


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Some audit events, newest first."""

    events: tuple[dict[str, Any], ...]
    next_cursor: str | None
    """Where the next page begins; ``None`` when this is the last."""


class RecordStore:
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
        self._database = Database(url, read_only=read_only, query_timeout_s=query_timeout_s)
        self._audit_key = audit_key
        self._is_migrated = False
        self._is_doubtful = False

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; a SQLite file may then be written by another process."""
        self._database.close()

    def migrate(self) -> None:
        """Make the tables, or bring older ones up to date; hosts that share a database may race."""
        with self._database.writing(no_timeout=True) as connection:
            migrate(connection)
        self._is_migrated, self._is_doubtful = True, False

    # --- writing ---------------------------------------------------------------------------

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

    # --- queries ---------------------------------------------------------------------------

    def check(self) -> None:
        """Raise a :class:`StoreError` unless queries are answered now."""
        with self._database.reading() as connection:
            connection.execute(select(usage.c.id).limit(1)).first()

    def find_request(self, organization_id: str, request_id: str) -> RequestHistory | None:
        """The history of a request of this organization; ``None`` when there is none."""
        records_query = (
            select(usage_documents.c.document)
            .join(usage, usage.c.id == usage_documents.c.id)
            .where(*in_period(organization_id, None, None))
            .where(usage.c.request_id == storable(request_id))
            .order_by(usage.c.timestamp_us.desc(), usage.c.id.desc())
        )
        events_query = (
            select(audit.c.document)
            .where(*in_period(organization_id, None, None, audit))
            .where(audit.c.request_id == storable(request_id))
            .order_by(audit.c.timestamp_us.desc(), audit.c.id.desc())
        )
        with self._database.reading(snapshot=True) as connection:
            records, more_records = _first_documents(connection, records_query)
            events, more_events = _first_documents(connection, events_query)
        if not records and not events:
            return None
        return RequestHistory(records, events, more_records or more_events)

    def list_audit(
        self,
        organization_id: str | None,
        *,
        from_s: float | None = None,
        to_s: float | None = None,
        filters: Mapping[str, str] | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> AuditPage:
        """A page of events, newest first; ``filters`` has names of ``AUDIT_FILTERS``.

        Raises :class:`BadQuery` for a filter or a cursor that is none.
        """
        wanted = max(1, min(limit, MAX_PAGE))
        chosen = (
            select(audit.c.timestamp_us, audit.c.id, audit.c.document)
            .where(*in_period(organization_id, from_s, to_s, audit))
            .where(*matching(filters, AUDIT_FILTERS))
            .order_by(audit.c.timestamp_us.desc(), audit.c.id.desc())
            .limit(wanted + 1)
        )
        if cursor is not None:
            chosen = chosen.where(older_than(cursor))
        with self._database.reading() as connection:
            rows = connection.execute(chosen).all()
        last = rows[wanted - 1] if len(rows) > wanted else None
        return AuditPage(
            tuple(orjson.loads(row.document) for row in rows[:wanted]),
            None if last is None else cursor_after((last.timestamp_us, last.id)),
        )

    def usage(
        self,
        organization_id: str | None,
        *,
        group_by: Sequence[str] = (),
        from_s: float | None = None,
        to_s: float | None = None,
        filters: Mapping[str, str] | None = None,
        limit: int = MAX_ROWS,
    ) -> list[UsageTotals]:
        """What the calls come to, one row for each group, sorted by the groups' values.

        ``group_by`` has names of ``GROUPS``, ``filters`` names of ``FILTERS``. Raises
        :class:`ResultTooLarge` beyond ``limit`` rows, :class:`BadQuery` for unknown names.
        """
        names = tuple(dict.fromkeys(group_by))
        conditions = [*in_period(organization_id, from_s, to_s), *matching(filters, FILTERS)]
        with self._database.reading() as connection:
            chosen = usage_totals(names, conditions).limit(limit + 1)
            rows = connection.execute(chosen).mappings().all()
        if len(rows) > limit:
            raise ResultTooLarge(limit)
        return [read_totals(names, row) for row in rows]

    def spend(
        self,
        organization_id: str,
        api_key_id: str | None,
        *,
        from_s: float | None = None,
        to_s: float | None = None,
        without: Collection[str] = (),
    ) -> Spend:
        """Exact sums of an organization or of one of its keys, to rebuild a budget window from.

        ``without``: ids of records to leave out, at most :data:`MOST_LEFT_OUT`.
        """
        filters = None if api_key_id is None else {"key": api_key_id}
        conditions = [*in_period(organization_id, from_s, to_s), *matching(filters, FILTERS)]
        if without:
            conditions.append(usage.c.record_id.not_in([storable(one) for one in without]))
        with self._database.reading() as connection:
            return read_spend(connection.execute(spend_of(conditions)).mappings().one())

    def is_new(self) -> bool:
        """Whether nothing was ever stored, because no agent has made the tables yet."""
        try:
            with self._database.reading() as connection:
                return current_version(connection) == 0
        except StoreAbsent:
            return True

    # --- reading all of it -----------------------------------------------------------------

    def count_usage(
        self,
        organization_id: str | None = None,
        *,
        from_s: float | None = None,
        to_s: float | None = None,
        filters: Mapping[str, str] | None = None,
        newest_id: int | None = None,
    ) -> int:
        """How many usage records there are; the arguments are those of :meth:`read_records`."""
        chosen = (
            select(func.count())
            .where(*in_period(organization_id, from_s, to_s))
            .where(*matching(filters, FILTERS), *stored_up_to(newest_id))
        )
        with self._database.reading() as connection:
            return connection.scalar(chosen.select_from(usage)) or 0

    def newest_usage_id(self) -> int:
        """The row of the usage record that was stored last; 0 when there is none."""
        with self._database.reading() as connection:
            return connection.scalar(select(func.max(usage.c.id))) or 0

    def find_usage(self, record_ids: Sequence[str]) -> dict[str, bytes]:
        """Those of some usage records that are stored, encoded, by their ids."""
        ids = [one for one in record_ids if one == storable(one)]
        with self._database.reading() as connection:
            stored = stored_by_id(connection, USAGE_DOCUMENTS, ids)
        return {record_id: document.encode() for record_id, document in stored.items()}

    def read_records(
        self,
        kind: RecordKind = "usage",
        organization_id: str | None = None,
        *,
        from_s: float | None = None,
        to_s: float | None = None,
        filters: Mapping[str, str] | None = None,
        newest_id: int | None = None,
        after: Keyset | None = None,
        batch: int = _BATCH,
    ) -> Iterator[list[tuple[Keyset, bytes]]]:
        """Encoded records in batches, in the order of time, beginning behind ``after``.

        Each batch is a query of its own, so a reader of millions holds up nobody. What is stored
        meanwhile may be among them, unless ``newest_id`` is what :meth:`newest_usage_id` said.
        Raises :class:`BadQuery` for an unknown filter.
        """
        table, document, columns = usage, usage_documents.c.document, FILTERS
        if kind == "audit":
            table, document, columns = audit, audit.c.document, AUDIT_FILTERS
        chosen = (
            select(table.c.timestamp_us, table.c.id, document)
            .where(*in_period(organization_id, from_s, to_s, table))
            .where(*matching(filters, columns), *stored_up_to(newest_id, table))
            .order_by(table.c.timestamp_us, table.c.id)
            .limit(batch)
        )
        if kind == "usage":
            chosen = chosen.join(usage_documents, usage_documents.c.id == usage.c.id)
        while True:
            part = chosen if after is None else chosen.where(newer_than(table, after))
            with self._database.reading() as connection:
                rows = connection.execute(part).all()
            if rows:
                after = (rows[-1][0], rows[-1][1])
                yield [((row[0], row[1]), row[2].encode()) for row in rows]
            if len(rows) < batch:
                return

    @contextmanager
    def audit_trail(
        self,
        from_s: float | None = None,
        to_s: float | None = None,
        organization_id: str | None = None,
    ) -> Iterator[Trail]:
        """The audit trail, or a selection of it, as it is at this moment, for ``export_lines``."""
        with self._database.reading(snapshot=True) as connection:
            yield store_trail.read_trail(connection, from_s, to_s, organization_id)

    def survey_trail(self, key: bytes) -> list[ChainFault]:
        """The chains that lack a part by their numbers alone, which costs little."""
        with self._database.reading(snapshot=True) as connection:
            return list(store_trail.survey(connection, key))

    def first_misplaced(self) -> ChainFault | None:
        """The first audit event that is not found as what it is: a column differs from it."""
        with self._database.reading(snapshot=True) as connection:
            return store_trail.first_misplaced(connection)

    def prunable(self, before_s: float) -> dict[str, int]:
        """How many events of each writer :meth:`prune` would remove, if any."""
        with self._database.reading(snapshot=True) as connection:
            return store_trail.prunable(connection, before_s)

    def chain_tips(self) -> list[ChainTip]:
        """The signed tips of all chains."""
        with self._database.reading() as connection:
            marks = store_trail.read_marks(connection).values()
        return [one.tip for one in marks if one.tip is not None]

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


def _first_documents(
    connection: Connection, chosen: Select[Any]
) -> tuple[tuple[dict[str, Any], ...], bool]:
    """As many as a history may hold, one at least if there is any; and whether there are more."""
    found: list[dict[str, Any]] = []
    size_bytes = 0
    chosen = chosen.limit(HISTORY_LENGTH + 1).execution_options(yield_per=_HISTORY_FETCH)
    with connection.execute(chosen) as rows:
        for document in rows.scalars():
            encoded = document.encode()
            size_bytes += len(encoded)
            if found and (len(found) == HISTORY_LENGTH or size_bytes > HISTORY_BYTES):
                return tuple(found), True
            found.append(orjson.loads(encoded))
    return tuple(found), False
