"""The tables of the record store and how a database gets them.

What is asked for often stands in columns; the record itself stands beside them as the JSON it was
shipped as, in a table of its own, so that a sum over a million calls reads no JSON. Texts compare
byte by byte on every database: an order must not depend on a locale.
"""

from __future__ import annotations

from collections.abc import Callable
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

from router.store.store_errors import StoreUnavailable

metadata: Final = MetaData()

_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")


_ID: Final = BigInteger().with_variant(Integer, "sqlite")  # only so does SQLite use its row id


def _text(name: str, **options: Any) -> Column[str]:
    return Column(name, _TEXT, **options)


def _number(name: str, **options: Any) -> Column[int]:
    return Column(name, BigInteger, **options)


usage: Final = Table(
    "usage_records",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    _text("record_id", nullable=False, unique=True),
    _text("request_id", nullable=False),
    _number("timestamp_us", nullable=False),
    _text("organization_id"),
    _text("api_key_id"),
    _text("model"),
    _text("backend_id"),
    Column("status", Integer, nullable=False),
    _text("outcome"),
    _text("limit_state"),
    _text("decision_reason"),
    _text("usage_source"),
    _number("tokens_input"),
    _number("tokens_output"),
    _number("tokens_cached"),
    _number("cost_nanos"),
    _number("latency_us"),
    _number("retry_count"),
)
usage_ids: Final = Sequence("usage_ids", metadata=metadata, data_type=BigInteger)
"""PostgreSQL's source of ids; SQLite has one writer, which counts."""

usage_documents: Final = Table(
    "usage_documents",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    _text("document", nullable=False),
)

audit: Final = Table(
    "audit_events",
    metadata,
    Column("id", _ID, primary_key=True),
    _text("event_id", nullable=False, unique=True),
    _text("writer_id", nullable=False),
    _number("sequence", nullable=False),
    _number("timestamp_us", nullable=False),
    _text("action", nullable=False),
    _text("actor", nullable=False),
    _text("entity_type", nullable=False),
    _text("entity_id", nullable=False),
    _text("organization_id"),
    _text("request_id"),
    _text("api_key_id"),
    _text("model"),
    _text("document", nullable=False),
)
heads: Final = Table(
    "audit_heads",
    metadata,
    _text("writer_id", primary_key=True),
    _number("sequence", nullable=False),
    _text("hash", nullable=False),
    Column("closed", Boolean, nullable=False),
    _text("signature", nullable=False),
)
anchors: Final = Table(
    "audit_anchors",
    metadata,
    _text("writer_id", primary_key=True),
    _number("sequence", nullable=False),
    _text("hash", nullable=False),
    _text("signature", nullable=False),
)

# Every question comes with an organization or is an operator's over all of them, and with a period.
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


MIGRATIONS: Final[tuple[Callable[[Connection], None], ...]] = (_create_tables,)
"""Each brings a database from the version that is its index to the next. Never edit one that was
released: append."""

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
