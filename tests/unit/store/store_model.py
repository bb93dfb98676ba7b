"""What the record store has to answer, worked out the long way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

CLASSES = (
    "tokens_cache_write_5m", "tokens_cache_write_1h", "tokens_input_audio", "tokens_input_image",
    "tokens_output_reasoning", "tokens_output_audio", "tokens_output_image",
    "web_searches", "characters", "seconds",
)  # fmt: skip
FAILED = ("upstream_error", "upstream_aborted", "timeout")


def totals(records: Sequence[dict[str, Any]], group_by: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each group, sorted, a group's missing value first."""
    groups: dict[tuple[str | None, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[tuple(_value(record, name) for name in group_by)].append(record)
    if not group_by and not records:
        groups[()] = []
    ordered = sorted(groups.items(), key=lambda item: [_sortable(value) for value in item[0]])
    return [
        {**dict(zip(group_by, values, strict=True)), **_figures(members)}
        for values, members in ordered
    ]


def _sortable(value: str | None) -> tuple[bool, bytes]:
    return (value is not None, (value or "").encode())


def _value(record: dict[str, Any], name: str) -> str | None:
    fields = {"organization": "organization_id", "key": "api_key_id", "backend": "backend_id"}
    if name not in ("day", "hour"):
        found: str | None = record.get(fields.get(name, name))
        return found
    moment = datetime.fromisoformat(record["timestamp"].replace("Z", "+00:00"))
    form = "%Y-%m-%d" if name == "day" else "%Y-%m-%dT%H:00:00Z"
    return moment.astimezone(timezone.utc).strftime(form)


def _figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    outcomes = [record.get("outcome") for record in records]
    latencies = sorted(
        record["latency_ms"]
        for record in records
        if record.get("outcome") not in (None, "rejected")
    )
    cost = sum(record.get("cost_nanos") or 0 for record in records)
    return {
        "requests": len(records),
        "errors": sum(outcome in FAILED for outcome in outcomes),
        "rejected": outcomes.count("rejected"),
        "client_aborted": outcomes.count("client_aborted"),
        "estimated": sum(record.get("usage_source") == "estimated" for record in records),
        "degraded": outcomes.count(None),
        "retries": sum(record.get("retry_count") or 0 for record in records),
        "tokens_input": sum(record.get("tokens_input") or 0 for record in records),
        "tokens_output": sum(record.get("tokens_output") or 0 for record in records),
        "tokens_cached": sum(record.get("tokens_cached") or 0 for record in records),
        **{
            name: sum(
                (record.get("usage_classes") or {}).get(name.removeprefix("tokens_")) or 0
                for record in records
            )
            for name in CLASSES
        },
        "cost_nanos": cost,
        "cost_usd": _usd(cost),
        **{f"latency_ms_p{p}": _percentile(latencies, p) for p in (50, 95, 99)},
    }


def _percentile(values: Sequence[float], percent: int) -> float | None:
    """The smallest value that at least so many percent do not exceed."""
    rank = -(-len(values) * percent // 100)
    return values[rank - 1] if values else None


def _usd(nanos: int) -> str:
    whole, fraction = f"{nanos:010d}"[:-9], f"{nanos:010d}"[-9:].rstrip("0")
    return f"{whole}.{fraction.ljust(2, '0')}"
