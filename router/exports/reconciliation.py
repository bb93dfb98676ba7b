"""Whether the same records stand wherever they must stand, and which ones do not.

A record may be met in the spool, in the record store and in Kafka. Each meeting is a line. Lines
are sorted outside, for there may be more than fit into memory, and judged here, all of a record at
once.

The places are read one after the other while calls go on, so they are looked at twice: first all of
them, then the spool, the end of the topic and whatever was missing, in this order. A record that
was known after the first look is then in every sink, or still in the spool and under way there; if
neither, it is lost. What appears only in the second look began too late to be judged.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, NamedTuple

import orjson

from router.records.record_types import format_timestamp, format_usd, parse_timestamp_us

SPOOL: Final = "spool"
STORE: Final = "store"
KAFKA: Final = "kafka"
ANSWERED: Final = "completed"

_MICROS_PER_S: Final = 1_000_000
_COMPARED: Final = (
    "request_id",
    "organization_id",
    "timestamp",
    "status",
    "outcome",
    "tokens_input",
    "tokens_output",
    "cost_nanos",
)
"""Fields that are kept, so that a difference can be named; the digest covers all of them."""
_ADDED: Final = ("tokens_input", "tokens_output", "cost_nanos")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which records are compared."""

    from_s: float | None = None
    to_s: float | None = None
    organization_id: str | None = None
    api_key_id: str | None = None
    margin_s: float = 0.0
    """So much earlier and later a record may have begun that a client lists for the period."""

    def holds(self, record: Mapping[str, Any], timestamp_us: int) -> bool | None:
        """True within the period, False within the margin around it, else ``None``."""
        if self.organization_id not in (None, record.get("organization_id")):
            return None
        if self.api_key_id not in (None, record.get("api_key_id")):
            return None
        if self._within(timestamp_us, 0.0):
            return True
        return False if self._within(timestamp_us, self.margin_s) else None

    def _within(self, timestamp_us: int, margin_s: float) -> bool:
        if self.from_s is not None and timestamp_us < _micros(self.from_s - margin_s):
            return False
        return self.to_s is None or timestamp_us < _micros(self.to_s + margin_s)


class Sighting(NamedTuple):
    """A record, met in one place."""

    record_id: str
    source: str
    is_late: bool
    """Met in the second look."""
    waiting_for: list[str]
    """Met in the spool: the sinks that had not acknowledged it."""
    digest: str
    is_inside: bool
    values: list[Any]
    """Those of ``_COMPARED``."""

    def line(self) -> bytes:
        """As it is sorted: all lines of a record are neighbours."""
        return orjson.dumps(tuple(self))

    def value(self, name: str) -> Any:
        """A field of the record."""
        return self.values[_COMPARED.index(name)]


def sight(
    payload: bytes,
    source: str,
    scope: Scope,
    *,
    is_late: bool = False,
    waiting_for: Sequence[str] = (),
) -> Sighting | None:
    """A usage record that was met; ``None`` when it is not compared.

    Raises ``ValueError`` for what is no usage record.
    """
    record = orjson.loads(payload)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    for name in ("record_id", "request_id", "timestamp"):
        if not isinstance(record.get(name), str):
            raise ValueError(f"{name}: missing or not a text")
    for name in _ADDED:
        if not isinstance(record.get(name), (int, type(None))):
            raise ValueError(f"{name}: not a whole number")
    is_inside = scope.holds(record, parse_timestamp_us(record["timestamp"]))
    if is_inside is None:
        return None
    canonical = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    return Sighting(
        record["record_id"],
        source,
        is_late,
        list(waiting_for),
        hashlib.blake2b(canonical, digest_size=16).hexdigest(),
        is_inside,
        [record.get(name) for name in _COMPARED],
    )


@dataclass(slots=True)
class Tally:
    """What the records of one place come to, each counted once."""

    records: int = 0
    repeated: int = 0
    unreadable: int = 0
    unpriced: int = 0
    tokens_input: int = 0
    tokens_output: int = 0
    cost_nanos: int = 0

    def add(self, seen: Sighting) -> None:
        """Count a record."""
        self.records += 1
        self.tokens_input += seen.value("tokens_input") or 0
        self.tokens_output += seen.value("tokens_output") or 0
        cost = seen.value("cost_nanos")
        self.unpriced += cost is None
        self.cost_nanos += cost or 0

    def plain(self) -> dict[str, Any]:
        """As JSON can carry it, the cost also in USD."""
        return {
            "records": self.records,
            "repeated": self.repeated,
            "unreadable": self.unreadable,
            "unpriced": self.unpriced,
            "tokens_input": self.tokens_input,
            "tokens_output": self.tokens_output,
            "cost_nanos": self.cost_nanos,
            "cost_usd": format_usd(self.cost_nanos),
        }


@dataclass(slots=True)
class Differences:
    """All are counted, the first ones are kept."""

    limit: int
    counts: Counter[str] = field(default_factory=Counter)
    first: list[dict[str, Any]] = field(default_factory=list)

    def add(self, kind: str, **facts: Any) -> None:
        """Note a difference."""
        self.counts[kind] += 1
        if len(self.first) < self.limit:
            self.first.append({"kind": kind, **facts})


@dataclass(slots=True)
class Judgement:
    """What came of comparing the records of spool and sinks."""

    tallies: dict[str, Tally]
    under_way: dict[str, Tally]
    """By sink: what is in the spool and not yet acknowledged."""
    differences: Differences


class Met(NamedTuple):
    """All that was seen of one record that is compared."""

    record_id: str
    sightings: list[Sighting]

    @property
    def is_inside(self) -> bool:
        """Whether it belongs to the period, wherever it says so."""
        return any(seen.is_inside for seen in self.sightings)

    @property
    def sources(self) -> set[str]:
        """Where it stands."""
        return {seen.source for seen in self.sightings}


def met_records(lines: Iterable[bytes]) -> Iterator[Met]:
    """Records that were known after the first look, from sorted lines."""
    decoded = (Sighting(*orjson.loads(line)) for line in lines)
    for record_id, group in groupby(decoded, key=lambda seen: seen.record_id):
        sightings = list(group)
        if not all(seen.is_late for seen in sightings):
            yield Met(record_id, sightings)


def missing_somewhere(lines: Iterable[bytes], sinks: Sequence[str]) -> Iterator[str]:
    """Records of which the second look has to tell what became of them."""
    for met in met_records(lines):
        if not met.sources.issuperset(sinks):
            yield met.record_id


def judge(
    lines: Iterable[bytes],
    sinks: Sequence[str],
    *,
    looks: int,
    limit: int,
    tell: Callable[[Met], None] | None = None,
) -> Judgement:
    """Compare the records of sorted lines; ``tell`` gets each of them, margin included."""
    found = Judgement(
        {name: Tally() for name in (SPOOL, *sinks)},
        {name: Tally() for name in sinks},
        Differences(limit),
    )
    for met in met_records(lines):
        if tell is not None:
            tell(met)
        if met.is_inside:
            _count(met, found)
            _judge(met, sinks, found, looks)
    return found


def _count(met: Met, found: Judgement) -> None:
    for source in sorted(met.sources & found.tallies.keys()):
        # The second look at the spool meets the same frame again.
        seen = [
            one
            for one in met.sightings
            if one.source == source and not (one.is_late and source == SPOOL)
        ]
        if seen:
            found.tallies[source].add(seen[0])
            found.tallies[source].repeated += len(seen) - 1


def _judge(met: Met, sinks: Sequence[str], found: Judgement, looks: int) -> None:
    waiting = {
        sink
        for seen in met.sightings
        if seen.source == SPOOL and (seen.is_late or looks == 1)
        for sink in seen.waiting_for
    }
    missing = [sink for sink in sinks if sink not in met.sources]
    for sink in missing:
        if sink in waiting:
            found.under_way[sink].add(met.sightings[0])
    lost = [sink for sink in missing if sink not in waiting]
    if lost:
        found.differences.add(
            "missing", **_about(met), seen_in=sorted(met.sources), missing_from=lost
        )
    if len({seen.digest for seen in met.sightings}) > 1:
        found.differences.add("contents", **_about(met), **_unlike(met))


def _about(met: Met) -> dict[str, Any]:
    seen = met.sightings[0]
    return {
        "record_id": met.record_id,
        **{name: seen.value(name) for name in ("request_id", "organization_id", "timestamp")},
    }


def _unlike(met: Met) -> dict[str, Any]:
    """The fields in which a record differs, and what each place says."""
    names = [
        name
        for place, name in enumerate(_COMPARED)
        if any(seen.values[place] != met.sightings[0].values[place] for seen in met.sightings)
    ]
    said: dict[str, list[dict[str, Any]]] = {}
    for seen in met.sightings:
        version = {name: seen.value(name) for name in names}
        if version not in said.setdefault(seen.source, []):
            said[seen.source].append(version)
    return {"fields": names or ["other"], "values": said if names else {}}


def format_moment(seconds: float | None) -> str | None:
    """A bound of the period."""
    return None if seconds is None else format_timestamp(seconds)


def _micros(seconds: float) -> int:
    return round(seconds * _MICROS_PER_S)
