"""A record store with very many usage records, made within the database.

One record is stored as the agent stores it, then the database repeats its row with other ids, keys
and moments. The sums are made as an update makes them for records that were there before, because a
trigger would add them up one by one; the contract of the store shows that both make the same. The
JSON of the records is left out: no sum reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from router.records.record_types import format_timestamp
from router.store.record_store import RecordStore
from router.store.tables.sql_tables import usage
from router.store.tables.usage_sums import create_usage_sums
from tests.unit.records import samples
from tests.unit.records.samples import KEY

KEYS = 20
"""The records belong to so many keys of the organization."""


@dataclass(frozen=True)
class Filling:
    """``count`` records of an organization, one every ``step_us`` from ``first_us`` on."""

    organization_id: str
    count: int
    first_us: int
    step_us: int
    cost_nanos: int

    def since(self, moment_us: int) -> int:
        """How many of them are not older than a moment; counted by division alone."""
        before = -(-(moment_us - self.first_us) // self.step_us)
        return self.count - min(self.count, max(0, before))


def fill(url: str, filling: Filling) -> None:
    """Store all of it in an empty database."""
    with RecordStore(url, audit_key=KEY) as store:
        store.migrate()
        record = samples.usage(
            record_id="filled-0",
            organization_id=filling.organization_id,
            api_key_id="filled_0",
            timestamp=filling.first_us / 1e6,
            cost_nanos=filling.cost_nanos,
        )
        record["timestamp"] = format_timestamp(filling.first_us / 1e6)
        store.write([record])
        own = {
            "id": "series.n + first.id",
            "record_id": "'filled-' || series.n",
            "timestamp_us": "first.timestamp_us + series.n * :step_us",
            "api_key_id": f"'filled_' || (series.n % {KEYS})",
        }
        names = [str(column.name) for column in usage.columns]
        assert own.keys() <= set(names)
        chosen = ", ".join(own.get(name, f"first.{name}") for name in names)
        with store._database.writing(no_timeout=True) as connection:
            on_table = "" if store._database.is_sqlite else " ON usage_records"
            connection.execute(text(f"DROP TRIGGER usage_is_summed{on_table}"))
            connection.execute(
                text(
                    f"INSERT INTO usage_records ({', '.join(names)})"
                    " WITH RECURSIVE series(n) AS"
                    " (SELECT CAST(1 AS BIGINT) UNION ALL SELECT n + 1 FROM series WHERE n < :last)"
                    f" SELECT {chosen} FROM series, (SELECT * FROM usage_records) AS first"
                ),
                {"last": filling.count - 1, "step_us": filling.step_us},
            )
            create_usage_sums(connection)
            if not store._database.is_sqlite:
                connection.execute(text("SELECT setval('usage_ids', max(id)) FROM usage_records"))
