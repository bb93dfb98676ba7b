"""Keys, arguments and replies of the ledger's scripts, as far as they are about windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from router.limits.budgets.periods import Period
from router.limits.budgets.windows import ThresholdEvent, WindowSpec
from router.limits.redis_keys import quoted
from router.redis.scripts import Argument

KEEP_S: Final = 3 * 86_400.0
"""How long a counter outlives its period, for calls that are settled late."""


def opened_periods_key(prefix: str) -> str:
    """The hash of an organization's opened periods; ``prefix`` is its :func:`redis_keys.tag`."""
    return prefix + "marks"


def lease_key(prefix: str, lease_id: str) -> str:
    """What is there from a reservation until it is settled and forgotten."""
    return f"{prefix}lease:{quoted(lease_id)}"


def window_keys(prefix: str, window: WindowSpec, period: Period) -> tuple[str, str]:
    """The counter and the leases of a window in a period."""
    counter = f"{prefix}window:{window.identity}:{period.start_ms}"
    return counter, counter + ":leases"


def window_times(window: WindowSpec, period: Period) -> tuple[Argument, ...]:
    """Id, start, end and the moment at which the counter may go; 0 is never."""
    return window.identity, period.start_ms, period.end_ms or 0, gone_ms(period)


def gone_ms(period: Period) -> int:
    """When the counters of a period may go; 0 is never."""
    return 0 if period.end_ms is None else period.end_ms + int(KEEP_S * 1000)


def read_threshold_events(
    windows: Sequence[WindowSpec], reply: Sequence[int]
) -> tuple[ThresholdEvent, ...]:
    """The thresholds in a reply: the number of a window (1 is the first) and a percentage, by
    turns."""
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return tuple([ThresholdEvent(windows[number - 1], percent) for number, percent in pairs])
