"""From the raw rounds to the figures, the table and the JSON document."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONTROL = "control"


@dataclass(frozen=True)
class Round:
    """What one subject did in one round."""

    calls: int
    elapsed_s: float
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_call: float | None
    others_busy: float | None


@dataclass(frozen=True)
class Ratio:
    """A subject's requests/s against the control's in the same run."""

    of_medians: float
    per_round: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """All rounds of one subject at one number of connections, and what they come to.

    Figures are medians over the rounds. `ratio` is None when the run had no control.
    """

    subject: str
    connections: int
    rounds: tuple[Round, ...]
    requests_per_s: float
    requests_per_s_min: float
    requests_per_s_max: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_call: float | None
    others_busy: float | None
    rss_mib: float | None
    errors: int
    ratio: Ratio | None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def round_of(
    latencies_ns: Sequence[int],
    elapsed_s: float,
    *,
    cpu_s: float | None,
    others_cpu_s: float | None,
) -> Round:
    """The figures of one round; CPU times are what was used between its start and its end."""
    ordered = sorted(latencies_ns)
    calls = len(ordered)
    return Round(
        calls=calls,
        elapsed_s=elapsed_s,
        requests_per_s=calls / elapsed_s,
        p50_ms=percentile(ordered, 0.50) / 1e6,
        p99_ms=percentile(ordered, 0.99) / 1e6,
        cpu_us_per_call=None if cpu_s is None else cpu_s * 1e6 / calls,
        others_busy=None if others_cpu_s is None else others_cpu_s / elapsed_s,
    )


def ratio_of(rounds: Sequence[Round], control: Sequence[Round]) -> Ratio:
    """Both ways to compare: median with median, and each round with the control's just before."""
    return Ratio(
        of_medians=_median(rounds, "requests_per_s") / _median(control, "requests_per_s"),
        per_round=tuple(
            ours.requests_per_s / theirs.requests_per_s
            for ours, theirs in zip(rounds, control, strict=True)
        ),
    )


def result_of(
    subject: str,
    connections: int,
    rounds: Sequence[Round],
    *,
    control: Sequence[Round] | None,
    rss_mib: float | None,
) -> Result:
    """Sum up one subject's rounds. Errors are 0 by construction: the first one ends the run."""
    rates = [each.requests_per_s for each in rounds]
    known_cpu = all(each.cpu_us_per_call is not None for each in rounds)
    known_busy = all(each.others_busy is not None for each in rounds)
    return Result(
        subject=subject,
        connections=connections,
        rounds=tuple(rounds),
        requests_per_s=statistics.median(rates),
        requests_per_s_min=min(rates),
        requests_per_s_max=max(rates),
        p50_ms=_median(rounds, "p50_ms"),
        p99_ms=_median(rounds, "p99_ms"),
        cpu_us_per_call=_median(rounds, "cpu_us_per_call") if known_cpu else None,
        others_busy=_median(rounds, "others_busy") if known_busy else None,
        rss_mib=rss_mib,
        errors=0,
        ratio=ratio_of(rounds, control) if control else None,
    )


def shortfall(results: Sequence[Result], subject: str, connections: int, least: float) -> str:
    """Why the subject's ratio is not good enough; empty when it is at least `least`."""
    for result in results:
        if (result.subject, result.connections) == (subject, connections) and result.ratio:
            reached = result.ratio.of_medians
            if reached >= least:
                return ""
            return f"{subject} reached {reached:.2f} x the control, {least:.2f} x is required"
    return f"{subject} was not measured against the control at {connections} connections"


_HEADINGS = (
    *("subject", "req/s", "min..max", "p50 ms", "p99 ms", "CPU us/call"),
    *("RSS MiB", "errors", "others busy", "ratio", "ratio per round"),
)


def table(results: Sequence[Result]) -> str:
    """The results as text, one block per number of connections."""
    blocks = []
    for connections in dict.fromkeys(result.connections for result in results):
        chosen = [result for result in results if result.connections == connections]
        first = chosen[0].rounds
        seconds = statistics.median(each.elapsed_s for each in first)
        title = f"{connections} connection(s), {len(first)} round(s) of {seconds:.1f} s"
        blocks.append("\n".join([title, *_aligned([_HEADINGS, *map(_row, chosen)])]))
    return "\n\n".join(blocks)


def document(
    results: Sequence[Result], *, machine: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """The run as a JSON-ready document."""
    return {
        "version": 1,
        "machine": machine,
        "settings": settings,
        "results": [asdict(result) for result in results],
    }


def _row(result: Result) -> tuple[str, ...]:
    ratio = result.ratio
    return (
        result.subject,
        f"{result.requests_per_s:.0f}",
        f"{result.requests_per_s_min:.0f}..{result.requests_per_s_max:.0f}",
        f"{result.p50_ms:.2f}",
        f"{result.p99_ms:.2f}",
        _known(result.cpu_us_per_call, "{:.0f}"),
        _known(result.rss_mib, "{:.1f}"),
        str(result.errors),
        _known(result.others_busy, "{:.0%}"),
        "n/a" if ratio is None else f"{ratio.of_medians:.2f}",
        "n/a" if ratio is None else " ".join(f"{each:.2f}" for each in ratio.per_round),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines; the first and the last column are flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0], cells[-1] = row[0].ljust(widths[0]), row[-1]
        lines.append("  ".join(cells).rstrip())
    return lines


def _known(value: float | None, pattern: str) -> str:
    return "n/a" if value is None else pattern.format(value)


def _median(rounds: Sequence[Round], name: str) -> float:
    return float(statistics.median(getattr(each, name) for each in rounds))
