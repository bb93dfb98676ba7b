"""What is compared, and what comes of it: sums by source, and differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from router.records.record_types import format_usd

SPOOL: Final = "spool"
STORE: Final = "store"
KAFKA: Final = "kafka"
FIGURES: Final = ("tokens_input", "tokens_output", "cost_nanos")
Figures = tuple[int | None, ...]
"""Values of ``FIGURES``; ``None`` is what nobody says."""
INT64: Final = 2**63 - 1
"""No figure is larger."""
_MICROS_PER_S: Final = 1_000_000


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


@dataclass(slots=True)
class Tally:
    """What the records of one source come to, each counted once."""

    records: int = 0
    repeated: int = 0
    unreadable: int = 0
    unpriced: int = 0
    tokens_input: int = 0
    tokens_output: int = 0
    cost_nanos: int = 0

    def add(self, figures: Figures, count: int = 1) -> None:
        """Count records with these figures; what nobody knows adds nothing."""
        tokens_input, tokens_output, cost_nanos = figures
        self.records += count
        self.unpriced += count * (cost_nanos is None)
        self.tokens_input += count * (tokens_input or 0)
        self.tokens_output += count * (tokens_output or 0)
        self.cost_nanos += count * (cost_nanos or 0)

    def plain(self) -> dict[str, Any]:
        """As JSON can carry it, the cost also in USD."""
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**facts, "cost_usd": format_usd(self.cost_nanos)}


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
class Comparison:
    """What came of comparing the records of spool and sinks."""

    tallies: dict[str, Tally]
    under_way: dict[str, Tally]
    """By sink: what is in the spool and not yet acknowledged."""
    differences: Differences


def _micros(seconds: float) -> int:
    return round(seconds * _MICROS_PER_S)
