"""What a client says it was answered, and whether the records say the same.

The file has a line for each answer: JSON objects, CSV with a head, or bare request ids. Only the
request id is required; tokens and cost are compared where a line gives them. A line stands for one
answer, so an id on two lines wants two records.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from itertools import chain, groupby
from typing import Any, Final

import orjson

from router.exports.comparison import FIGURES, INT64, Differences, Figures, Tally
from router.exports.reconciliation import RequestRow

FORMATS: Final = ("jsonl", "csv", "lines")
_NANOS_PER_USD: Final = 1_000_000_000
_TOKEN_NAMES: Final = (
    ("tokens_input", "prompt_tokens", "input_tokens"),
    ("tokens_output", "completion_tokens", "output_tokens"),
)


class ClientFileError(Exception):
    """A line of the client's file cannot be read; the message names it."""


def read_answers(
    lines: Iterable[str], file_format: str | None = None
) -> Iterator[tuple[str, Figures]]:
    """Request id and figures of each answer that a client lists.

    ``file_format`` is one of ``FORMATS``; by default the first line tells. Raises
    :class:`ClientFileError`.
    """
    rows_of: dict[str, Any] = {"jsonl": _json_rows, "csv": csv.DictReader, "lines": _plain_rows}
    number = 1
    try:
        rest = iter(lines)
        first = next((line for line in rest if line.strip()), "").lstrip("\ufeff")
        rows = rows_of[file_format or _format(first)](chain([first], rest))
        for answer in map(_answer, rows):
            yield answer
            number += 1
    except UnicodeDecodeError:
        raise ClientFileError("the client's file is not UTF-8") from None
    except (ValueError, InvalidOperation, csv.Error) as error:
        reason = "not a number" if isinstance(error, InvalidOperation) else error
        raise ClientFileError(f"entry {number} of the client's file: {reason}") from None


@dataclass(slots=True)
class ClientTally:
    """What the client's file and the records come to, side by side."""

    listed: Tally = field(default_factory=Tally)
    unlisted: Tally = field(default_factory=Tally)
    """Records of answered calls that the file does not have."""


def match_client(
    rows: Iterable[RequestRow], differences: Differences, *, is_complete: bool
) -> ClientTally:
    """Compare a client's answers with the records, both sorted by request id.

    ``is_complete``: the file has every answer, so a record without a line is a difference too.
    """
    tally = ClientTally()
    for request_id, group in groupby(rows, key=lambda row: row.request_id):
        records: Counter[Figures] = Counter()
        due: Counter[Figures] = Counter()
        listed: Counter[Figures] = Counter()
        for row in group:
            if row.is_listed:
                listed[row.figures] += 1
                tally.listed.add(row.figures)
            else:
                records[row.figures] += 1
                due[row.figures] += row.is_due
        _match(request_id, records, listed, due, differences)
        for figures, left in records.items():
            count = min(left, due[figures])
            if count > 0:
                tally.unlisted.add(figures, count)
                if is_complete:
                    known = {"records": count, **_known(figures)}
                    differences.add("unlisted", request_id=request_id, **known)
    return tally


def _match(
    request_id: str,
    records: Counter[Figures],
    listed: Counter[Figures],
    due: Counter[Figures],
    differences: Differences,
) -> None:
    """Give each line a record that says the same; what is used is taken out of ``records``.

    A record that is due is given before one that is not.
    """
    order = sorted(records, key=lambda record: -due[record])
    left: list[tuple[Figures, int]] = []
    for line in sorted(listed, key=lambda one: one.count(None)):
        wanted = listed[line]
        for record in order:
            if not _differing(line, record):
                used = min(wanted, records[record])
                records[record] -= used
                wanted -= used
        if wanted:
            left.append((line, wanted))
    for line, wanted in left:
        for record in order:
            used = min(wanted, records[record])
            if used > 0:
                records[record] -= used
                wanted -= used
                unlike = _unlike(line, record)
                differences.add("client_contents", request_id=request_id, answers=used, **unlike)
        if wanted:
            known = {"answers": wanted, **_known(line)}
            differences.add("unrecorded", request_id=request_id, **known)


def _differing(line: Figures, record: Figures) -> list[int]:
    """Which figures that a line gives are not those of the record."""
    return [number for number, said in enumerate(line) if said not in (None, record[number])]


def _unlike(line: Figures, record: Figures) -> dict[str, Any]:
    numbers = _differing(line, record)
    client, ours = ({FIGURES[number]: one[number] for number in numbers} for one in (line, record))
    return {"fields": list(client), "values": {"client": [client], "records": [ours]}}


def _known(figures: Figures) -> dict[str, Any]:
    pairs = zip(FIGURES, figures, strict=True)
    return {name: value for name, value in pairs if value is not None}


def _format(first: str) -> str:
    if first.lstrip().startswith("{"):
        return "jsonl"
    names = [name.strip().strip('"') for name in first.split(",")]
    return "csv" if "request_id" in names else "lines"


def _json_rows(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        if line.strip():
            row = orjson.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            yield row


def _plain_rows(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    return ({"request_id": line.strip()} for line in lines if line.strip())


def _answer(row: Mapping[str, Any]) -> tuple[str, Figures]:
    request_id = row.get("request_id")
    if not isinstance(request_id, str) or not request_id:
        raise ValueError("request_id: missing, empty or not a text")
    return request_id, (*(_tokens(row, names) for names in _TOKEN_NAMES), _cost(row))


def _tokens(row: Mapping[str, Any], names: Sequence[str]) -> int | None:
    for name in names:
        if row.get(name) not in (None, ""):
            return _integer(row[name], name)
    return None


def _cost(row: Mapping[str, Any]) -> int | None:
    if row.get("cost_nanos") not in (None, ""):
        return _integer(row["cost_nanos"], "cost_nanos")
    if row.get("cost_usd") in (None, ""):
        return None
    usd = Decimal(str(row["cost_usd"]))
    if not usd.is_finite():
        raise ValueError("cost_usd: not a number")
    return _integer((usd * _NANOS_PER_USD).to_integral_value(), "cost_usd")


def _integer(value: Any, name: str) -> int:
    try:
        number = Decimal(str(value))
        if number == number.to_integral_value() and abs(number) <= INT64:
            return int(number)
    except InvalidOperation:
        pass
    raise ValueError(f"{name}: not a whole number within ±{INT64}")
