"""Budgets that a refusal shows where the service names none."""

from __future__ import annotations

from typing import Final

from router.limits.budgets.periods import TOTAL
from router.limits.budgets.windows import Reservation, WindowSpec, WindowState

UNKNOWN: Final = WindowState(
    WindowSpec("unknown-to-budget-service", "usd", "total", 0), TOTAL, 0, 0
)
"""Of a caller whom the service does not know: nothing may be spent."""


def unnamed(presumed: Reservation) -> WindowState:
    """The budget that is shown where a service says no and nothing else: the first one in USD, or
    one without figures where the router knows of none."""
    reserved = sorted(presumed.windows, key=lambda entry: entry.window.unit != "usd")
    if reserved:
        return WindowState(reserved[0].window, reserved[0].period, 0, 0)
    return WindowState(WindowSpec("budget", "usd", "total", None), TOTAL, 0, 0)
