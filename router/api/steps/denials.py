"""Limits as the caller sees them: the one that refused, and the ``RateLimit`` headers."""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Final

from flask import Response

from router.errors import Denial
from router.limits.budgets.windows import Denied
from router.limits.rates.decision import LimitStatus, RateDecision

_UNITS: Final = {"concurrent": "concurrent-requests", "tokens": "tokens"}


def rate_denial(status: LimitStatus, tokens: int) -> Denial:
    """The refusal of a rate limit; ``tokens`` is what the call was estimated to use."""
    return Denial(
        limit_type="rate_limit",
        name=status.name,
        scope=status.scope,
        unit=status.unit,
        limit=status.limit,
        usage=max(0, status.limit - status.remaining),
        this_request=tokens if status.unit == "tokens" else 1,
        retry_after_s=status.retry_after_s,
    )


def budget_denial(denied: Denied, *, now_s: float) -> Denial:
    """The refusal of a budget or quota, in the window's unit. ``retry_after_s`` is set only where
    the call has to wait for the next period, and that covers it; by the clock of the counters, or
    by ``now_s`` where that is not known."""
    state, this_request = denied.binding, denied.this_request
    window, limit = state.window, state.window.limit or 0
    wait_s = None
    if state.resets_at_s is not None and this_request <= limit and not denied.is_by_reservations:
        counters_s = now_s if denied.at_ms is None else denied.at_ms / 1000
        wait_s = max(1, ceil(state.resets_at_s - counters_s))
    return Denial(
        limit_type="budget" if window.unit == "usd" else "quota",
        name=window.name,
        scope=window.scope,
        unit=window.unit,
        limit=limit,
        usage=state.settled + state.reserved,
        this_request=this_request,
        retry_after_s=wait_s,
        period=window.period,
        settled=state.settled,
        reserved=state.reserved,
        resets_at_s=state.resets_at_s,
    )


def add_rate_headers(response: Response, decision: RateDecision) -> None:
    """``RateLimit-Policy`` and ``RateLimit`` of draft-ietf-httpapi-ratelimit-headers-10."""
    shown = [status for status in decision.statuses if status.enforced]
    if not shown:
        return
    policies = [_policy(status.name, status.limit, status.window_s) for status in shown]
    states = [f'"{status.name}";r={status.remaining};t={status.reset_after_s}' for status in shown]
    response.headers.add("RateLimit-Policy", ", ".join(policies))
    response.headers.add("RateLimit", ", ".join(states))


@lru_cache(maxsize=1024)
def _policy(name: str, limit: int, window_s: int | None) -> str:
    unit = _UNITS.get(name.partition("-")[2])
    window = "" if window_s is None else f";w={window_s}"
    return f'"{name}";q={limit}{window}' + (f';qu="{unit}"' if unit else "")
