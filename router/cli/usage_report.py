"""The figures of ``routerctl usage report`` and the three ways to print them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from router.cli.tables import aligned, shown

if TYPE_CHECKING:
    from router.store.record_store import RecordStore
    from router.store.sql_queries import UsageTotals

_NOT_ADDED: Final = frozenset({"group", "latency_ms_p50", "latency_ms_p95", "latency_ms_p99"})
_FIGURES: Final = (
    ("REQUESTS", "requests"),
    ("ERRORS", "errors"),
    ("REJECTED", "rejected"),
    ("TOKENS IN", "tokens_input"),
    ("TOKENS OUT", "tokens_output"),
    ("COST USD", "cost_nanos"),
    ("P50 MS", "latency_ms_p50"),
    ("P95 MS", "latency_ms_p95"),
    ("P99 MS", "latency_ms_p99"),
)


@dataclass(frozen=True, slots=True)
class Report:
    """What was asked, the rows, and what they come to."""

    names: Sequence[str]
    from_s: float
    to_s: float
    rows: Sequence[UsageTotals]
    total: UsageTotals


def read(
    store: RecordStore,
    organization: str | None,
    names: Sequence[str],
    period: tuple[float, float],
    filters: Mapping[str, str],
) -> Report:
    """Ask the store; the total is the sum of the rows, its percentiles are those of all calls."""
    from_s, to_s = period
    rows, [total] = (
        store.usage(organization, group_by=by, from_s=from_s, to_s=to_s, filters=filters)
        for by in (names, ())
    )
    if names:
        # A record that came in between the two questions must not make them disagree.
        sums = {
            field.name: sum(getattr(row, field.name) for row in rows)
            for field in fields(total)
            if field.name not in _NOT_ADDED
        }
        total = replace(total, **sums)
    return Report(names, from_s, to_s, rows, total)


def as_table(report: Report) -> str:
    """For people: the figures right-aligned, money at its decimal point, a line for the total."""
    rows = report.rows if report.names else ()
    head = [*(name.upper() for name in report.names), *(title for title, _ in _FIGURES)]
    places = len(report.names)
    body = [[*_labels(report, row), *_figures(row)] for row in rows]
    label = ["TOTAL"] + [""] * (places - 1) if places else []
    total = [*label, *_figures(report.total)]
    lines = aligned([head, *body, total], left=places, points={places + _place("cost_nanos")})
    rule = "-" * max(map(len, lines))
    period = f"{_moment(report.from_s)} to {_moment(report.to_s)}"
    return "\n".join([period, "", *lines[:-1], rule, lines[-1], *_notes(report.total), ""])


def as_csv(report: Report) -> str:
    """For spreadsheets: exact integers beside decimal USD; no total, which a sum would count."""
    from router.exports.csv_cells import safe_cell

    text = io.StringIO()
    names = [*report.names, *_plain_figures(report.total)]
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(names)
    for row in report.rows:
        facts = row.plain()
        writer.writerow([safe_cell(facts[name]) for name in names])
    return text.getvalue()


def as_json(report: Report) -> str:
    """For programs."""
    found = {
        "from": _moment(report.from_s),
        "to": _moment(report.to_s),
        "group_by": list(report.names),
        "data": [row.plain() for row in report.rows],
        "total": _plain_figures(report.total),
    }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


SHAPES: Final[Mapping[str, Callable[[Report], str]]] = {
    "table": as_table,
    "csv": as_csv,
    "json": as_json,
}


def _labels(report: Report, row: UsageTotals) -> list[str]:
    return [shown(row.group[name]) for name in report.names]


def _figures(row: UsageTotals) -> list[str]:
    from router.records.record_types import format_usd

    cells = []
    for _, name in _FIGURES:
        value = getattr(row, name)
        if name == "cost_nanos":
            whole, _, rest = format_usd(value).partition(".")
            cells.append(f"{int(whole):,}.{rest}")
        elif value is None:
            cells.append("-")
        else:
            cells.append(f"{value:,.0f}" if isinstance(value, float) else f"{value:,}")
    return cells


def _notes(total: UsageTotals) -> list[str]:
    notes = []
    if total.estimated:
        notes.append(f"calls with estimated tokens, as no backend said: {total.estimated:,}")
    if total.degraded:
        notes.append(f"calls in no sum, for only the least is known of them: {total.degraded:,}")
    return ["", *notes] if notes else []


def _plain_figures(total: UsageTotals) -> dict[str, Any]:
    return {name: value for name, value in total.plain().items() if name not in total.group}


def _place(figure: str) -> int:
    return [name for _, name in _FIGURES].index(figure)


def _moment(epoch_s: float) -> str:
    return f"{datetime.fromtimestamp(epoch_s, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
