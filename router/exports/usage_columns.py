"""Usage records as rows of CSV and Parquet files: the columns, and what a record puts into them.

What a degraded record does not know is empty. The cost has two columns: whole nano-USD, and exact
decimal USD.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from router.exports.csv_cells import safe_cell
from router.records.record_types import format_usd, parse_timestamp_us

COLUMNS: Final = {
    "record_id": "text",
    "request_id": "text",
    "timestamp": "timestamp",
    "organization_id": "text",
    "api_key_id": "text",
    "model": "text",
    "model_requested": "text",
    "backend_id": "text",
    "endpoint": "text",
    "operation": "text",
    "stream": "bool",
    "status": "integer",
    "outcome": "text",
    "limit_state": "text",
    "decision_reason": "text",
    "usage_source": "text",
    "tokens_input": "integer",
    "tokens_output": "integer",
    "tokens_cached": "integer",
    "usage_classes": "counts",
    "service_tier": "text",
    "cost_nanos": "integer",
    "cost_usd": "usd",
    "reserved_nanos": "integer",
    "reserved_tokens": "integer",
    "over_reservation": "bool",
    "latency_ms": "float",
    "bytes_sent": "integer",
    "retry_count": "integer",
    "attempts": "attempts",
    "trace_id": "text",
    "span_id": "text",
    "metadata": "map",
    "degraded": "bool",
    "schema_version": "integer",
}
"""Names in order, and the type of each."""
CSV_HEADER: Final = (",".join(COLUMNS) + "\r\n").encode()

_GROUP_ROWS: Final = 10_000
_USD_DIGITS: Final = 28
_USD_PLACES: Final = 9


def csv_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """One line for each record; lists and maps are JSON in their cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerows([_cell(record, name) for name in COLUMNS] for record in records)
    return text.getvalue().encode("utf-8", "replace")


def write_parquet(lines: Path, target: Path) -> None:
    """Turn JSON Lines into a Parquet file; memory holds a group of rows at a time.

    Raises ``ModuleNotFoundError`` without pyarrow.
    """
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    types = _arrow_types(arrow)
    schema = arrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    with lines.open("rb") as source, parquet.ParquetWriter(target, schema) as writer:
        for group in _groups(source):
            columns = [
                arrow.array([_typed(record, name) for record in group], type=types[kind])
                for name, kind in COLUMNS.items()
            ]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))


def _groups(lines: Iterable[bytes]) -> Iterator[list[dict[str, Any]]]:
    records = map(orjson.loads, lines)
    while group := list(islice(records, _GROUP_ROWS)):
        yield group


def _cell(record: Mapping[str, Any], name: str) -> Any:
    value = _value(record, name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return orjson.dumps(value).decode()
    return safe_cell(value)


def _typed(record: Mapping[str, Any], name: str) -> Any:
    value, kind = _value(record, name), COLUMNS[name]
    if value is None:
        return None
    if kind == "timestamp":
        return parse_timestamp_us(value)
    if kind == "usd":
        return Decimal(value)
    if kind in ("map", "counts"):
        return list(value.items())
    return value


def _value(record: Mapping[str, Any], name: str) -> Any:
    if name == "cost_usd":
        nanos = record.get("cost_nanos")
        return None if nanos is None else format_usd(nanos)
    if name == "degraded":
        return bool(record.get(name))
    return record.get(name)


def _arrow_types(arrow: Any) -> dict[str, Any]:
    text, integer = arrow.string(), arrow.int64()
    attempt = (
        ("attempt", integer),
        ("backend_id", text),
        ("status", integer),
        ("error", text),
        ("latency_ms", arrow.float64()),
        ("billed", arrow.bool_()),
    )
    return {
        "text": text,
        "integer": integer,
        "bool": arrow.bool_(),
        "float": arrow.float64(),
        "timestamp": arrow.timestamp("us", tz="UTC"),
        "usd": arrow.decimal128(_USD_DIGITS, _USD_PLACES),
        "attempts": arrow.list_(arrow.struct(attempt)),
        "map": arrow.map_(text, text),
        "counts": arrow.map_(text, integer),
    }
