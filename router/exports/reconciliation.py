"""Whether the same records are in the spool, the store and Kafka, and which ones are missing.

A record may have copies in the spool, in the record store and in Kafka. All copies are collected in
a temporary SQLite database, because there may be more than fit into memory; it sorts and groups
them, and what differs is explained here.

The sources are read one after the other while calls are served, so there are two passes: first
all of them, then the spool, the end of the topic and whatever was missing, in this order. A record
of the first pass is then in every sink, or still in the spool and under way there; if neither, it
is lost. A record that appears only in the second pass began too late to be compared.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson

from router.exports.comparison import (
    FIGURES,
    INT64,
    SPOOL,
    Comparison,
    Differences,
    Figures,
    Scope,
    Tally,
)
from router.records.record_types import parse_timestamp_us

DATABASE_ERRORS: Final = (sqlite3.Error,)
"""What every method of :class:`Reconciliation` may raise, for example on a full disk."""

_PAGE: Final = 5000
_COMPARED: Final = ("request_id", "organization_id", "timestamp", "status", "outcome", *FIGURES)
"""Fields that are kept, so that a difference can be named; the digest covers all of them."""

_SCHEMA: Final = """
PRAGMA cache_size = -65536;
PRAGMA journal_mode = OFF;
CREATE TABLE copies (
    record_id TEXT, source TEXT, is_second INTEGER, waiting_for TEXT, digest TEXT,
    is_inside INTEGER, request_id TEXT, is_answer INTEGER,
    tokens_input INTEGER, tokens_output INTEGER, cost_nanos INTEGER, facts TEXT
);
CREATE TABLE answers (
    request_id TEXT, tokens_input INTEGER, tokens_output INTEGER, cost_nanos INTEGER
);
BEGIN
"""
# One transaction that never ends: nobody else reads the database, and it is gone with it.
_INDEX: Final = "CREATE INDEX IF NOT EXISTS copies_by_record ON copies (record_id, source)"
_ADD_COPY: Final = """
INSERT INTO copies
WITH given (record_id, source, is_second, waiting_for, digest, is_inside, request_id, is_answer,
            tokens_input, tokens_output, cost_nanos, facts)
  AS (VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?))
SELECT * FROM given
WHERE NOT is_second OR EXISTS (SELECT 1 FROM copies WHERE copies.record_id = given.record_id)
"""
_SINKS_OF_COPIES: Final = "count(DISTINCT CASE WHEN source <> 'spool' THEN source END)"
_MISSING: Final = f"""
SELECT record_id FROM copies WHERE record_id > ? GROUP BY record_id
HAVING {_SINKS_OF_COPIES} < ? ORDER BY record_id LIMIT ?
"""
# The second pass reads the same frames of the spool again. Of several copies, `min(rowid)` makes
# SQLite take the other columns from the first.
_TALLIES: Final = """
SELECT source, count(*), tokens_input, tokens_output, cost_nanos, min(rowid) FROM copies
WHERE NOT (is_second AND source = 'spool') AND EXISTS (
    SELECT 1 FROM copies other WHERE other.record_id = copies.record_id AND other.is_inside
)
GROUP BY record_id, source
"""
_SUSPICIOUS: Final = f"""
SELECT record_id FROM copies GROUP BY record_id
HAVING max(is_inside) AND (min(digest) <> max(digest) OR {_SINKS_OF_COPIES} < ?)
ORDER BY record_id
"""
_COPIES: Final = """
SELECT source, is_second, waiting_for, digest, facts FROM copies
WHERE record_id = ? ORDER BY source, is_second, rowid
"""
_BY_REQUEST: Final = """
SELECT request_id, 1, 0, tokens_input, tokens_output, cost_nanos FROM answers
UNION ALL
SELECT request_id, 0, is_answer AND EXISTS (
        SELECT 1 FROM copies other WHERE other.record_id = copies.record_id AND other.is_inside
    ), tokens_input, tokens_output, cost_nanos
FROM copies WHERE rowid IN (SELECT min(rowid) FROM copies GROUP BY record_id)
ORDER BY 1
"""


class _Copy(NamedTuple):
    source: str
    is_second: int
    waiting_for: list[str]
    digest: str
    facts: dict[str, Any]


class RequestRow(NamedTuple):
    """A record, or an answer that a client lists."""

    request_id: str
    is_listed: int
    """It is an answer of the client's list."""
    is_due: int
    """It is the record of an answer of the period, which a complete list has."""
    figures: Figures


class Reconciliation:
    """Collects copies of records and a client's answers, and compares them."""

    def __init__(self, scope: Scope, sinks: Sequence[str]) -> None:
        self.scope = scope
        self.is_second_pass = False
        self._sinks = sinks
        self._unreadable: Counter[str] = Counter()
        # Without a name it is a file below TMPDIR that is unlinked as soon as it is open.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Give the memory and the disk back."""
        self._database.close()

    def observe(self, payload: bytes, source: str, waiting_for: Sequence[str] = ()) -> None:
        """Take a copy of a usage record; what is no usage record is counted.

        ``waiting_for``: of a copy in the spool, the sinks that had not acknowledged it.
        """
        try:
            values = _read_copy(payload, self.scope)
        except ValueError:
            # The second pass reads what is in the spool once more.
            self._unreadable[source] += not (self.is_second_pass and source == SPOOL)
            return
        if values is not None:
            record_id, *rest = values
            waiting = orjson.dumps(list(waiting_for)).decode()
            row = (record_id, source, self.is_second_pass, waiting, *rest)
            self._database.execute(_ADD_COPY, row)

    def add_answers(self, answers: Iterable[tuple[str, Figures]]) -> None:
        """Take the answers that a client lists: request id and figures of each."""
        rows = ((request_id, *figures) for request_id, figures in answers)
        self._database.executemany("INSERT INTO answers VALUES (?, ?, ?, ?)", rows)

    def missing_records(self) -> Iterator[list[str]]:
        """Pages of ids of records that are not in every sink, also when they are under way."""
        self._database.execute(_INDEX)
        after = ""
        while True:
            rows = self._database.execute(_MISSING, (after, len(self._sinks), _PAGE)).fetchall()
            if not rows:
                return
            yield [record_id for (record_id,) in rows]
            after = rows[-1][0]

    def begin_second_pass(self) -> None:
        """Take what is observed from now on as observed again."""
        self.is_second_pass = True

    def compare(self, limit: int) -> Comparison:
        """Compare the copies of each record; keep the first ``limit`` differences."""
        self._database.execute(_INDEX)
        found = Comparison(
            {name: Tally(unreadable=self._unreadable[name]) for name in (SPOOL, *self._sinks)},
            {name: Tally() for name in self._sinks},
            Differences(limit),
        )
        for source, count, *figures, _ in self._database.execute(_TALLIES):
            found.tallies[source].add(tuple(figures))
            found.tallies[source].repeated += count - 1
        for (record_id,) in self._database.execute(_SUSPICIOUS, (len(self._sinks),)):
            self._explain(record_id, found)
        return found

    def by_request(self) -> Iterator[RequestRow]:
        """Records and answers, sorted by request id."""
        for request_id, is_listed, is_due, *figures in self._database.execute(_BY_REQUEST):
            yield RequestRow(request_id, is_listed, is_due, tuple(figures))

    def _explain(self, record_id: str, found: Comparison) -> None:
        """Say of a record that is not equal in every sink what is the matter."""
        copies = [
            _Copy(source, is_second, orjson.loads(waiting), digest, orjson.loads(facts))
            for source, is_second, waiting, digest, facts in self._database.execute(
                _COPIES, (record_id,)
            )
        ]
        facts = copies[0].facts
        sources = {copy.source for copy in copies}
        waiting = {
            sink
            for copy in copies
            if copy.source == SPOOL and copy.is_second == self.is_second_pass
            for sink in copy.waiting_for
        }
        missing = [sink for sink in self._sinks if sink not in sources]
        lost = [sink for sink in missing if sink not in waiting]
        about = {"record_id": record_id}
        about |= {name: facts[name] for name in ("request_id", "organization_id", "timestamp")}
        for sink in waiting.intersection(missing):
            found.under_way[sink].add(tuple(facts[name] for name in FIGURES))
        if lost:
            places = {"seen_in": sorted(sources), "missing_from": lost}
            found.differences.add("missing", **about, **places)
        if len({copy.digest for copy in copies}) > 1:
            found.differences.add("contents", **about, **_unlike(copies))


def _read_copy(payload: bytes, scope: Scope) -> tuple[Any, ...] | None:
    """The columns of a copy but for where it was found; ``None`` when it is not compared.

    Raises ``ValueError`` for what is no usage record.
    """
    record = orjson.loads(payload)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    for name in ("record_id", "request_id", "timestamp"):
        if not isinstance(record.get(name), str) or not record[name]:
            raise ValueError(f"{name}: missing or not a text")
    figures = [record.get(name) for name in FIGURES]
    if not all(one is None or (isinstance(one, int) and abs(one) <= INT64) for one in figures):
        raise ValueError("a figure is not a whole number")
    is_inside = scope.holds(record, parse_timestamp_us(record["timestamp"]))
    if is_inside is None:
        return None
    canonical = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    facts = {name: record.get(name) for name in _COMPARED}
    status = facts["status"]
    is_answer = facts["outcome"] == "completed" and status in range(200, 300)
    return (
        record["record_id"],
        hashlib.blake2b(canonical, digest_size=16).hexdigest(),
        is_inside,
        record["request_id"],
        is_answer,
        *figures,
        orjson.dumps(facts).decode(),
    )


def _unlike(copies: Sequence[_Copy]) -> dict[str, Any]:
    """The fields in which a record differs, and what each source says."""
    first = copies[0].facts
    names = [name for name in _COMPARED if any(copy.facts[name] != first[name] for copy in copies)]
    said: dict[str, list[dict[str, Any]]] = {}
    for copy in copies:
        version = {name: copy.facts[name] for name in names}
        if version not in said.setdefault(copy.source, []):
            said[copy.source].append(version)
    return {"fields": names or ["other"], "values": said if names else {}}
