"""What a client says it was answered, and whether the records say the same.

The file has a line for each answer: JSON objects, CSV with a head, or bare request ids. Only the
request id is required; tokens and cost are compared where a line gives them. A line stands for one
answer, so an id on two lines wants two records.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from itertools import chain, groupby
from typing import Any, Final, NamedTuple

import orjson

from router.exports.reconciliation import ANSWERED, Differences, Met, Tally

FORMATS: Final = ("jsonl", "csv", "lines")
_NANOS_PER_USD: Final = 1_000_000_000
_RECORD: Final = 0
_LINE: Final = 1

Figures = tuple[Any, Any, Any]
"""Tokens given, tokens generated, cost in nano-USD; ``None`` is what nobody says."""
_FIGURES: Final = ("tokens_input", "tokens_output", "cost_nanos")
_OTHER_NAMES: Final = {
    "tokens_input": ("tokens_input", "prompt_tokens", "input_tokens"),
    "tokens_output": ("tokens_output", "completion_tokens", "output_tokens"),
}


class ClientFileError(Exception):
    """A line of the client's file cannot be read; the message names it."""


class ClientLine(NamedTuple):
    """One answer that the client saw."""

    request_id: str
    figures: Figures


def read_client_lines(lines: Iterable[str], shape: str | None = None) -> Iterator[ClientLine]:
    """The answers that a client lists; ``shape`` is one of ``FORMATS``, by default the head tells.

    Raises :class:`ClientFileError`.
    """
    rest = iter(lines)
    first = next((line for line in rest if line.strip()), "").lstrip("\ufeff")
    rows_of: dict[str, Any] = {"jsonl": _json_rows, "csv": csv.DictReader, "lines": _plain_rows}
    rows: Iterator[Any] = iter(rows_of[shape or _shape(first)](chain([first], rest)))
    number = 0
    while True:
        number += 1
        try:
            row = next(rows, None)
            if row is None:
                return
            told = _client_line(row)
        except (ValueError, InvalidOperation, csv.Error) as error:
            reason = "not a number" if isinstance(error, InvalidOperation) else error
            raise ClientFileError(f"entry {number} of the client's file: {reason}") from None
        yield told


def client_line(told: ClientLine) -> bytes:
    """As it is sorted, beside the records of the same request."""
    return orjson.dumps((told.request_id, _LINE, told.figures, True, True))


def record_line(met: Met) -> bytes:
    """A record as it is sorted."""
    seen = met.sightings[0]
    is_answer = seen.value("outcome") == ANSWERED and 200 <= (seen.value("status") or 0) < 300
    figures = tuple(seen.value(name) for name in _FIGURES)
    return orjson.dumps((seen.value("request_id"), _RECORD, figures, met.is_inside, is_answer))


class ClientTally(NamedTuple):
    """What the client's file and the records come to, side by side."""

    listed: Tally
    unlisted: Tally
    """Records of answered calls that the file does not have."""


def match_client(
    lines: Iterable[bytes], differences: Differences, *, is_complete: bool
) -> ClientTally:
    """Compare a client's answers with the records, from sorted lines.

    ``is_complete``: the file has every answer, so a record without a line is a difference too.
    """
    tally = ClientTally(Tally(), Tally())
    decoded = map(orjson.loads, lines)
    for request_id, group in groupby(decoded, key=lambda entry: entry[0]):
        records: Counter[Figures] = Counter()
        countable: Counter[Figures] = Counter()
        told: Counter[Figures] = Counter()
        for _, kind, figures, is_inside, is_answer in group:
            key = (figures[0], figures[1], figures[2])
            if kind == _LINE:
                told[key] += 1
                _add(tally.listed, key, 1)
            else:
                records[key] += 1
                countable[key] += is_inside and is_answer
        _match(request_id, records, told, countable, differences)
        for key, left in records.items():
            extra = min(left, countable[key])
            if extra > 0:
                _add(tally.unlisted, key, extra)
                if is_complete:
                    differences.add("unlisted", request_id=request_id, records=extra, **_named(key))
    return tally


def _match(
    request_id: str,
    records: Counter[Figures],
    told: Counter[Figures],
    countable: Counter[Figures],
    differences: Differences,
) -> None:
    """Give each line a record that says the same; what is used is taken out of ``records``.

    An answer that was completed is given before one that was not.
    """
    order = sorted(records, key=lambda known: -countable[known])
    left: list[tuple[Figures, int]] = []
    for figures in sorted(told, key=lambda one: one.count(None)):
        wanted = told[figures]
        for known in [one for one in order if _agrees(one, figures)]:
            used = min(wanted, records[known])
            records[known] -= used
            wanted -= used
        if wanted:
            left.append((figures, wanted))
    for figures, wanted in left:
        for known in order:
            used = min(wanted, records[known])
            if used > 0:
                records[known] -= used
                wanted -= used
                differences.add("client_contents", **_unlike(request_id, figures, known, used))
        if wanted:
            differences.add("unrecorded", request_id=request_id, answers=wanted, **_named(figures))


def _agrees(record: Figures, told: Figures) -> bool:
    return all(said is None or said == known for said, known in zip(told, record, strict=True))


def _unlike(request_id: str, told: Figures, record: Figures, answers: int) -> dict[str, Any]:
    names = [
        name
        for name, said, known in zip(_FIGURES, told, record, strict=True)
        if said is not None and said != known
    ]
    client, ours = (dict(zip(_FIGURES, figures, strict=True)) for figures in (told, record))
    return {
        "request_id": request_id,
        "answers": answers,
        "fields": names,
        "values": {
            "client": [{name: client[name] for name in names}],
            "records": [{name: ours[name] for name in names}],
        },
    }


def _named(figures: Figures) -> dict[str, Any]:
    pairs = zip(_FIGURES, figures, strict=True)
    return {name: value for name, value in pairs if value is not None}


def _add(tally: Tally, figures: Figures, count: int) -> None:
    tokens_input, tokens_output, cost = figures
    tally.records += count
    tally.tokens_input += (tokens_input or 0) * count
    tally.tokens_output += (tokens_output or 0) * count
    tally.unpriced += count if cost is None else 0
    tally.cost_nanos += (cost or 0) * count


def _shape(first: str) -> str:
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


def _client_line(row: Mapping[str, Any]) -> ClientLine:
    request_id = row.get("request_id")
    if not isinstance(request_id, str) or not request_id:
        raise ValueError("request_id: missing, empty or not a text")
    tokens = [_tokens(row, names) for names in _OTHER_NAMES.values()]
    return ClientLine(request_id, (tokens[0], tokens[1], _cost(row)))


def _tokens(row: Mapping[str, Any], names: Sequence[str]) -> int | None:
    for name in names:
        if row.get(name) not in (None, ""):
            return _whole(row[name], name)
    return None


def _cost(row: Mapping[str, Any]) -> int | None:
    if row.get("cost_nanos") not in (None, ""):
        return _whole(row["cost_nanos"], "cost_nanos")
    if row.get("cost_usd") in (None, ""):
        return None
    usd = Decimal(str(row["cost_usd"]))
    if not usd.is_finite():
        raise ValueError("cost_usd: not a number")
    return int((usd * _NANOS_PER_USD).to_integral_value())


def _whole(value: Any, name: str) -> int:
    try:
        number = Decimal(str(value))
        if number == number.to_integral_value():
            return int(number)
    except InvalidOperation:
        pass
    raise ValueError(f"{name}: not a whole number")
