"""Sums of usage by quarter of an hour, kept by the database itself.

A budget window is seeded from them, however many records its period has. A trigger adds up what is
inserted, in the same transaction and for every writer, the previous version of the agent included;
a record that is delivered twice is inserted once. Every time zone of today is a whole number of
quarters away from UTC, so periods begin and end between two sums.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from router.store.tables.rows import SERVED

QUARTER_US: Final = 900_000_000
HALF: Final = 1_000_000_000
"""Where a number is cut in two for adding up, so that neither half can overflow."""
SUMMED: Final = ("tokens_input", "tokens_output", "cost_nanos")

_GROUP: Final = ("organization_id", "api_key_id", "quarter")
_FIGURES: Final = ("requests", *(f"{name}_{half}" for name in SUMMED for half in ("high", "low")))
_COLUMNS: Final = ", ".join((*_GROUP, *_FIGURES))
_OUTCOMES: Final = ", ".join(f"'{outcome}'" for outcome in SERVED)
_MERGE: Final = f"ON CONFLICT ({', '.join(_GROUP)}) DO UPDATE SET " + ", ".join(
    f"{name} = usage_sums.{name} + excluded.{name}" for name in _FIGURES
)


def create_usage_sums(connection: Connection) -> None:
    """Sum up what is stored, anew, and from now on what comes. The table is there already."""
    is_postgresql = connection.dialect.name == "postgresql"
    on_table = " ON usage_records" if is_postgresql else ""
    connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS usage_is_summed{on_table}")
    if is_postgresql:
        connection.exec_driver_sql(
            "CREATE OR REPLACE FUNCTION sum_usage() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"{_add_up('added')}; RETURN NULL; END $$"
        )
        # This waits for the writers of this moment and keeps others out until the commit.
        connection.exec_driver_sql(
            "CREATE TRIGGER usage_is_summed AFTER INSERT ON usage_records"
            " REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION sum_usage()"
        )
    else:
        names = (*_GROUP[:2], "timestamp_us", "outcome", "backend_id", *SUMMED)
        row = ", ".join(f"NEW.{name} AS {name}" for name in names)
        connection.exec_driver_sql(
            "CREATE TRIGGER usage_is_summed AFTER INSERT ON usage_records BEGIN "
            f"{_add_up(f'(SELECT {row})')}; END"
        )
    connection.exec_driver_sql("DELETE FROM usage_sums")
    connection.exec_driver_sql(_add_up("usage_records"))


def _add_up(source: str) -> str:
    """SQL that adds rows of ``source`` to the sums, of their organization ('') and of their key."""
    served = f"outcome IS NULL OR backend_id IS NOT NULL AND outcome IN ({_OUTCOMES})"
    halves = [
        f"SUM(COALESCE({name}, 0) {part})"
        for name in SUMMED
        for part in (f"/ {HALF}", f"- COALESCE({name}, 0) / {HALF} * {HALF}")
    ]
    figures = ", ".join((f"SUM(CASE WHEN {served} THEN 1 ELSE 0 END)", *halves))
    counted = f"FROM {source} AS u WHERE organization_id IS NOT NULL AND timestamp_us >= 0"
    groups = [
        f"SELECT organization_id, {key_id} AS key_id, timestamp_us / {QUARTER_US} AS quarter,"
        f" {figures} {counted} AND {condition} GROUP BY 1, 2, 3"
        for key_id, condition in (("''", "TRUE"), ("api_key_id", "api_key_id <> ''"))
    ]
    rows = " UNION ALL ".join(groups)
    # In one order everywhere: writers that add to the same sums must not wait for each other.
    return (
        f"INSERT INTO usage_sums ({_COLUMNS}) SELECT * FROM ({rows}) AS found WHERE TRUE"
        f" ORDER BY organization_id, key_id, quarter {_MERGE}"
    )
