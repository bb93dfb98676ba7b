"""What the record store says to whoever rebuilds a budget window."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from router.store.corrections import Correction, stored_corrections
from router.store.engine import Database
from router.store.queries.spend_query import Span, settled_late, spent
from router.store.queries.sql_queries import micros
from router.store.queries.usage_totals import Spend

MOST_LEFT_OUT: Final = 20_000
"""SQLite takes 32 766 values in a statement."""


class BudgetQueries:
    """A part of ``RecordQueries``."""

    _database: Database

    def spend(
        self,
        organization_id: str,
        api_key_id: str | None,
        *,
        from_s: float | None = None,
        to_s: float | None = None,
        without: Collection[str] = (),
    ) -> Spend:
        """Exact sums of an organization or of one of its keys.

        ``without``: ids of records to leave out, at most :data:`MOST_LEFT_OUT`.
        """
        with self._database.reading(snapshot=True) as connection:
            return spent(connection, organization_id, api_key_id, _span(from_s, to_s), without)

    def corrections(
        self, organization_id: str, *, from_s: float | None = None, to_s: float | None = None
    ) -> list[Correction]:
        """Corrections by hand of the budgets of an organization and its keys, pruned ones too."""
        with self._database.reading(snapshot=True) as connection:
            return stored_corrections(connection, organization_id, from_s, to_s)

    def settled_late(
        self,
        organization_id: str,
        api_key_id: str | None,
        among: Sequence[str],
        *,
        from_s: float | None = None,
        to_s: float | None = None,
    ) -> set[str]:
        """Records whose calls may not be settled yet: the newest ones, for a settlement follows its
        record soon, and those ``among`` that are stored."""
        with self._database.reading(snapshot=True) as connection:
            return settled_late(connection, organization_id, api_key_id, _span(from_s, to_s), among)


def _span(from_s: float | None, to_s: float | None) -> Span:
    return Span(*(None if at_s is None else micros(at_s) for at_s in (from_s, to_s)))
