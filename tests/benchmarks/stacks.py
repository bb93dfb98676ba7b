"""Collapsed stacks (`outer;...;inner count` per line) and what they say about one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# Below these, a package's folders say more than its name.
_SPLIT_PACKAGES = frozenset({"router"})


@dataclass(frozen=True)
class Cost:
    """A function's share of all samples, 0 to 1: by itself, and with everything it called."""

    name: str
    own: float
    total: float


def parse(lines: Iterable[str]) -> Counter[tuple[str, ...]]:
    """Stacks, outermost frame first, and how often each was seen."""
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        stacks[tuple(stack.split(";"))] += int(count)
    return stacks


def costs(stacks: Counter[tuple[str, ...]]) -> list[Cost]:
    """One cost per function, the largest by itself first."""
    return _costs(stacks)


def by_total(found: list[Cost]) -> list[Cost]:
    """The same costs, the largest with everything below it first."""
    return sorted(found, key=lambda cost: (-cost.total, -cost.own, cost.name))


def costs_by_package(stacks: Counter[tuple[str, ...]]) -> list[Cost]:
    """One cost per package (per folder within the router), the largest by itself first."""
    merged: Counter[tuple[str, ...]] = Counter()
    for stack, count in stacks.items():
        merged[tuple(map(package_of, stack))] += count
    return _costs(merged)


def package_of(label: str) -> str:
    """The package that a frame's `path:function` belongs to."""
    path = label.partition(":")[0]
    parts = path.removesuffix(".py").split("/")
    if parts[0] in _SPLIT_PACKAGES and len(parts) > 1:
        return "/".join(parts[:2])
    return parts[0]


def table(found: list[Cost], *, us_per_call: float | None, most: int) -> str:
    """The first `most` costs as text, in µs per call too where a call's CPU time is known."""
    lines = [f"{'own %':>6} {'total %':>8} {'own us':>7} {'total us':>9}  name"]
    for cost in found[:most]:
        own_us, total_us = (
            "n/a" if us_per_call is None else f"{share * us_per_call:.1f}"
            for share in (cost.own, cost.total)
        )
        lines.append(f"{cost.own:6.1%} {cost.total:8.1%} {own_us:>7} {total_us:>9}  {cost.name}")
    return "\n".join(lines)


def _costs(stacks: Counter[tuple[str, ...]]) -> list[Cost]:
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for stack, count in stacks.items():
        own[stack[-1]] += count
        # A function that calls itself is still counted once per sample.
        for name in set(stack):
            total[name] += count
    samples = sum(stacks.values())
    found = [Cost(name, own[name] / samples, total[name] / samples) for name in total]
    return sorted(found, key=lambda cost: (-cost.own, -cost.total, cost.name))
