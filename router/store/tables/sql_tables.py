"""The tables of the record store and how a database gets them.

What is queried has columns. The JSON of usage records is in a table of its own, so that a sum over
a million calls reads no JSON. Texts compare byte by byte on every database: an order must not
depend on a locale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    Sequence,
    Table,
    Text,
    func,
    insert,
    inspect,
    select,
    text,
)

from router.store.failures import StoreUnavailable
from router.store.tables.rows import AUDIT_COLUMNS, CLASS_COLUMNS, USAGE_COLUMNS, StoredField
from router.store.tables.usage_sums import SUMMED, create_usage_sums

metadata: Final = MetaData()

_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")
_ID: Final = BigInteger().with_variant(Integer, "sqlite")  # only so does SQLite use its row id


_TYPES: Final[Mapping[str, Any]] = {"text": _TEXT, "int64": BigInteger, "int32": Integer}


def _columns(fields: Mapping[str, StoredField]) -> list[Column[Any]]:
    return [
        Column(
            name,
            _TYPES[field.type],
            nullable=field.nullable,
            unique=field.unique or None,
        )
        for name, field in fields.items()
    ]


def _text(name: str, *, primary_key: bool = False) -> Column[str]:
    return Column(name, _TEXT, primary_key=primary_key, nullable=False)


def _sequence() -> Column[int]:
    return Column("sequence", BigInteger, nullable=False)


usage: Final = Table(
    "usage_records",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    *_columns(USAGE_COLUMNS),
)
usage_ids: Final = Sequence("usage_ids", metadata=metadata, data_type=BigInteger)
"""PostgreSQL's source of ids; SQLite has one writer, which counts."""

usage_sums: Final = Table(
    "usage_sums",
    metadata,
    _text("organization_id", primary_key=True),
    _text("api_key_id", primary_key=True),
    Column("quarter", BigInteger, primary_key=True, autoincrement=False),
    Column("requests", BigInteger, nullable=False),
    *(
        Column(f"{name}_{half}", BigInteger, nullable=False)
        for name in SUMMED
        for half in ("high", "low")
    ),
    sqlite_with_rowid=False,
)
"""Kept by :mod:`router.store.tables.usage_sums`; a whole organization has '' as its key."""

usage_documents: Final = Table(
    "usage_documents",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    _text("document"),
)

audit: Final = Table(
    "audit_events",
    metadata,
    Column("id", _ID, primary_key=True),
    *_columns(AUDIT_COLUMNS),
    _text("document"),
)
# The columns of both tables are the fields of the dataclasses in `router.records.audit_chain`.
chain_tips: Final = Table(
    "audit_heads",
    metadata,
    _text("writer_id", primary_key=True),
    _sequence(),
    _text("hash"),
    Column("closed", Boolean, nullable=False),
    _text("signature"),
)
prune_points: Final = Table(
    "audit_anchors",
    metadata,
    _text("writer_id", primary_key=True),
    _sequence(),
    _text("hash"),
    _text("signature"),
)

pruned_corrections: Final = Table(
    "pruned_corrections",
    metadata,
    _text("event_id", primary_key=True),
    _text("organization_id"),
    Column("timestamp_us", BigInteger, nullable=False),
    *(_text(name) for name in ("api_key_id", "budget", "unit", "period", "correction_id")),
    Column("amount", BigInteger, nullable=False),
)
"""Corrections of budgets by hand whose audit events were pruned: budgets still count them. The
columns are the fields of :class:`router.store.corrections.Correction`."""

# Every query is about one organization, or is an operator's over all of them, and has a period.
Index("usage_by_time", usage.c.timestamp_us, usage.c.id)
Index("usage_by_organization", usage.c.organization_id, usage.c.timestamp_us)
Index("usage_by_key", usage.c.organization_id, usage.c.api_key_id, usage.c.timestamp_us)
Index("usage_by_request", usage.c.organization_id, usage.c.request_id, usage.c.timestamp_us)
Index("audit_by_time", audit.c.timestamp_us, audit.c.id)
Index("audit_by_organization", audit.c.organization_id, audit.c.timestamp_us, audit.c.id)
Index(
    "audit_by_action",
    audit.c.organization_id,
    audit.c.action,
    audit.c.timestamp_us,
    audit.c.id,
)
Index("audit_by_request", audit.c.organization_id, audit.c.request_id, audit.c.timestamp_us)
Index("audit_by_place", audit.c.writer_id, audit.c.sequence)

_versions: Final = Table(
    "schema_versions", MetaData(), Column("version", Integer, primary_key=True)
)


def _create_tables(connection: Connection) -> None:
    metadata.create_all(connection)


def _add_class_columns(connection: Connection) -> None:
    present = {column["name"] for column in inspect(connection).get_columns(usage.name)}
    for name in CLASS_COLUMNS:
        if name not in present:  # a new database has all of them
            connection.execute(text(f"ALTER TABLE {usage.name} ADD COLUMN {name} BIGINT"))


def _sum_usage(connection: Connection) -> None:
    for table in (usage_sums, pruned_corrections):
        table.create(connection, checkfirst=True)
    create_usage_sums(connection)


MIGRATIONS: Final[tuple[Callable[[Connection], None], ...]] = (
    _create_tables,
    _add_class_columns,
    _sum_usage,
)
"""Each brings a database from the version that is its index to the next. Never edit a released one:
append."""

_MIGRATION_LOCK: Final = 0x726F757465720001
"""Names the lock under which hosts that share a PostgreSQL take turns."""


def migrate(connection: Connection) -> None:
    """Bring the database to this program's version, within the connection's transaction.

    Raises :class:`StoreUnavailable` for a database that a newer program has migrated.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _MIGRATION_LOCK})
    version = current_version(connection)
    if version > len(MIGRATIONS):
        raise StoreUnavailable(
            f"the record store has schema version {version}, this program knows {len(MIGRATIONS)}"
        )
    _versions.create(connection, checkfirst=True)
    for number in range(version, len(MIGRATIONS)):
        MIGRATIONS[number](connection)
        connection.execute(insert(_versions).values(version=number + 1))


def current_version(connection: Connection) -> int:
    """The schema version of the database; 0 when it has none of our tables."""
    if not inspect(connection).has_table(_versions.name):
        return 0
    return connection.scalar(select(func.max(_versions.c.version))) or 0
