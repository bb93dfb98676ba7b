"""Everything that can be read from the record store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Connection, Select, func, select

from router.exports.audit_export import ChainFault, Trail
from router.records.audit_chain import ChainTip
from router.store import trail as store_trail
from router.store.engine import Database
from router.store.failures import RecordKind, ResultTooLarge, StoreAbsent
from router.store.queries.budget_queries import BudgetQueries
from router.store.queries.sql_queries import (
    FILTERS,
    TABLES,
    Keyset,
    cursor_after,
    in_period,
    matching,
    newer_than,
    older_than,
    select_documents,
    stored_up_to,
)
from router.store.queries.usage_totals import (
    UsageTotals,
    read_totals,
    usage_totals,
)
from router.store.tables.inserts import USAGE_DOCUMENTS, stored_by_id
from router.store.tables.rows import storable
from router.store.tables.sql_tables import audit, current_version, usage

MAX_ROWS: Final = 10_000
MAX_PAGE: Final = 1000
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


class RecordQueries(BudgetQueries):
    """The queries; methods raise a :class:`StoreError` and nothing of the database library."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def check(self) -> None:
        """Raise a :class:`StoreError` unless queries are answered now."""
        with self._database.reading() as connection:
            connection.execute(select(usage.c.id).limit(1)).first()

    def find_request(self, organization_id: str, request_id: str) -> RequestHistory | None:
        """The history of a request of this organization; ``None`` when there is none."""
        records_query, events_query = (
            select_documents(kind, organization_id)
            .where(table.c.request_id == storable(request_id))
            .order_by(table.c.timestamp_us.desc(), table.c.id.desc())
            for kind, table in TABLES.items()
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
            select_documents("audit", organization_id, from_s, to_s, filters)
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
        table = TABLES[kind]
        chosen = (
            select_documents(kind, organization_id, from_s, to_s, filters)
            .where(*stored_up_to(newest_id, table))
            .order_by(table.c.timestamp_us, table.c.id)
            .limit(batch)
        )
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


def _first_documents(
    connection: Connection, chosen: Select[Any]
) -> tuple[tuple[dict[str, Any], ...], bool]:
    """As many as a history may hold, one at least if there is any; and whether there are more."""
    found: list[dict[str, Any]] = []
    size_bytes = 0
    chosen = chosen.limit(HISTORY_LENGTH + 1).execution_options(yield_per=_HISTORY_FETCH)
    with connection.execute(chosen) as rows:
        for _, _, document in rows:
            encoded = document.encode()
            size_bytes += len(encoded)
            if found and (len(found) == HISTORY_LENGTH or size_bytes > HISTORY_BYTES):
                return tuple(found), True
            found.append(orjson.loads(encoded))
    return tuple(found), False
