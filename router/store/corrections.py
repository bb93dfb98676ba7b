"""Corrections of budgets by hand, as the audit trail has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Connection, insert, inspect, select

from router.records.record_types import parse_timestamp_us
from router.store.queries.sql_queries import in_period
from router.store.tables.rows import storable
from router.store.tables.sql_tables import audit, pruned_corrections

ACTIONS: Final = ("BUDGET_ADJUSTED", "LIMIT_RESET")


@dataclass(frozen=True, slots=True)
class Correction:
    """One audit event. Events of one ``correction_id`` tell of one correction: the last is true."""

    event_id: str
    organization_id: str
    timestamp_us: int
    api_key_id: str
    """Empty for a budget of the organization."""
    budget: str
    unit: str
    period: str
    correction_id: str
    amount: int
    """What it added to what was settled, in the budget's unit."""


def correction_of(event: Mapping[str, Any]) -> Correction | None:
    """What a decoded audit event corrects; ``None`` when it is no correction of a budget."""
    if event.get("action") not in ACTIONS or event.get("entity_type") != "budget":
        return None
    context = event.get("context") or {}
    try:
        return Correction(
            event_id=event["event_id"],
            organization_id=event["organization_id"],
            timestamp_us=parse_timestamp_us(event["timestamp"]),
            api_key_id=context.get("api_key_id") or "",
            budget=context["budget"],
            unit=context["unit"],
            period=context["period"],
            correction_id=context["correction_id"],
            amount=event["after"]["settled"] - event["before"]["settled"],
        )
    except (KeyError, TypeError, ValueError):
        return None  # of a router that noted less


def stored_corrections(
    connection: Connection, organization_id: str, from_s: float | None, to_s: float | None
) -> list[Correction]:
    """Of an organization in a period, those included whose events were pruned."""
    documents = select(audit.c.document).where(
        *in_period(organization_id, from_s, to_s, audit), audit.c.action.in_(ACTIONS)
    )
    found = [correction_of(orjson.loads(one)) for one in connection.scalars(documents)]
    corrections = [one for one in found if one is not None]
    if not inspect(connection).has_table(pruned_corrections.name):
        return corrections  # the agent of the previous version has not been replaced yet
    pruned = select(pruned_corrections).where(
        *in_period(organization_id, from_s, to_s, pruned_corrections)
    )
    corrections += [Correction(**row) for row in connection.execute(pruned).mappings()]
    return corrections


def keep_pruned(connection: Connection, writer_id: str, sequence: int) -> None:
    """Keep the corrections among a writer's events up to ``sequence``, which are being pruned."""
    documents = select(audit.c.document).where(
        audit.c.writer_id == writer_id, audit.c.sequence <= sequence, audit.c.action.in_(ACTIONS)
    )
    found = [correction_of(orjson.loads(one)) for one in connection.scalars(documents)]
    rows = [
        {name: storable(v) if isinstance(v, str) else v for name, v in asdict(one).items()}
        for one in found
        if one is not None
    ]
    if rows:
        connection.execute(insert(pruned_corrections), rows)
