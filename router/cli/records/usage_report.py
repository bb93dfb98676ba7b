"""The figures of ``routerctl usage report`` and how they are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

import click

from router.cli import output as out

if TYPE_CHECKING:
    from router.store.queries.usage_totals import UsageTotals
    from router.store.record_store import RecordStore

_COLUMNS: Final = (
    out.Column("requests", show=out.count, align="right"),
    out.Column("errors", show=out.count, align="right"),
    out.Column("rejected", show=out.count, align="right"),
    out.Column("tokens_input", "TOKENS IN", out.count, "right"),
    out.Column("tokens_output", "TOKENS OUT", out.count, "right"),
    out.Column("cost_usd", show=out.count, align="point"),
    out.Column("latency_ms_p50", "P50 MS", out.count, "right"),
    out.Column("latency_ms_p95", "P95 MS", out.count, "right"),
    out.Column("latency_ms_p99", "P99 MS", out.count, "right"),
)


@dataclass(frozen=True, slots=True)
class Report:
    """The request, the rows, and their total."""

    group_by: Sequence[str]
    from_s: float
    to_s: float
    rows: Sequence[UsageTotals]
    total: UsageTotals


def read(
    store: RecordStore,
    organization: str | None,
    group_by: Sequence[str],
    period: tuple[float, float],
    filters: Mapping[str, str],
) -> Report:
    """Query the store; the total is the sum of the rows, its percentiles are those of all calls."""
    from router.store.queries.usage_totals import ADDITIVE

    from_s, to_s = period
    rows, [total] = (
        store.usage(organization, group_by=by, from_s=from_s, to_s=to_s, filters=filters)
        for by in (group_by, ())
    )
    # A record that came in between the two queries must not make them disagree.
    sums = {name: sum(getattr(row, name) for row in rows) for name in ADDITIVE}
    return Report(group_by, from_s, to_s, rows, replace(total, **sums))


def print_report(report: Report, output: str) -> None:
    """Print as ``table``, ``csv`` or ``json``.

    CSV has exact integers beside decimal USD, and no total, which a sum would count.
    """
    from router.store.queries.usage_totals import columns_of

    rows = [row.plain() for row in report.rows]
    from_time, to_time = _format(report.from_s), _format(report.to_s)
    if output == "csv":
        out.print_csv(columns_of(report.group_by), rows)
    elif output == "json":
        out.print_json(
            {
                "from": from_time,
                "to": to_time,
                "group_by": list(report.group_by),
                "data": rows,
                "total": report.total.plain(),
            }
        )
    else:
        click.echo(f"{from_time} to {to_time}\n")
        groups = [out.Column(name) for name in report.group_by]
        total = {**dict.fromkeys(report.group_by[:1], "TOTAL"), **report.total.plain()}
        out.print_table((*groups, *_COLUMNS), rows if groups else (), total=total)
        _print_notes(report.total.plain())


def _print_notes(total: Mapping[str, Any]) -> None:
    notes = {
        "calls with estimated tokens, as no backend reported them": total["estimated"],
        "calls in no sum, because only the least is known of them": total["degraded"],
    }
    lines = [f"{text}: {out.count(value)}" for text, value in notes.items() if value]
    if lines:
        click.echo("\n" + "\n".join(lines))


def _format(epoch_s: float) -> str:
    return f"{datetime.fromtimestamp(epoch_s, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
