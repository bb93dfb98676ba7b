"""What router and budget service say to one another: values → JSON, as ``budget_wire`` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router.limits.budgets.windows import (
    Amounts,
    Denied,
    Reservation,
    ThresholdEvent,
    WindowSpec,
    WindowState,
)
from router.limits.remote.wire import Check


def plain_amounts(amounts: Amounts) -> dict[str, Any]:
    """An ``AmountsSchema``."""
    return {
        "cost_nanos": amounts.cost_nanos,
        "tokens": amounts.tokens,
        "requests": amounts.requests,
    }


def plain_window(window: WindowSpec) -> dict[str, Any]:
    """A ``WindowSchema``."""
    return {
        "name": window.name,
        "unit": window.unit,
        "period": window.period,
        "limit": window.limit,
        "timezone": window.timezone,
        "scope": window.scope,
        "subject": window.subject,
        "thresholds": window.thresholds,
        "enforced": window.enforced,
    }


def plain_windows(windows: Sequence[WindowSpec]) -> list[dict[str, Any]] | None:
    """Those of a request; ``None`` leaves them to the service."""
    return [plain_window(window) for window in windows] or None


def plain_state(state: WindowState) -> dict[str, Any]:
    """A ``StateSchema``."""
    return {
        **plain_window(state.window),
        "start_ms": state.period.start_ms,
        "end_ms": state.period.end_ms,
        "settled": state.settled,
        "reserved": state.reserved,
    }


def plain_reservation(reservation: Reservation) -> dict[str, Any]:
    """A ``ReservationSchema``."""
    return {
        "lease_id": reservation.lease_id,
        "organization_id": reservation.organization_id,
        "windows": [
            {
                "window": plain_window(held.window),
                "start_ms": held.period.start_ms,
                "end_ms": held.period.end_ms,
                "amount": held.amount,
            }
            for held in reservation.windows
        ],
        "reserved_at_ms": reservation.reserved_at_ms,
        "epoch": reservation.epoch,
        "dropped": reservation.dropped,
        "shadow_denied": [plain_state(state) for state in reservation.shadow_denied],
    }


def plain_threshold_events(threshold_events: Sequence[ThresholdEvent]) -> list[dict[str, Any]]:
    """Some ``ThresholdEventSchema``."""
    return [
        {"window": plain_window(found.window), "percent": found.percent}
        for found in threshold_events
    ]


def plain_check(check: Check) -> dict[str, Any]:
    """A ``CheckReply``."""
    return {
        "allowed": check.allowed,
        "binding": check.binding and plain_state(check.binding),
        "this_request": check.this_request,
        "windows": [plain_state(state) for state in check.states],
    }


def plain_denied(denied: Denied, threshold_events: Sequence[ThresholdEvent]) -> dict[str, Any]:
    """A ``DeniedReply``."""
    window = denied.binding.window
    is_budget = window.unit == "usd"
    return {
        "error": f"the {'budget' if is_budget else 'quota'} '{window.name}' is exhausted",
        "code": "BUDGET_EXCEEDED" if is_budget else "QUOTA_EXCEEDED",
        "binding": plain_state(denied.binding),
        "this_request": denied.this_request,
        "windows": [plain_state(state) for state in denied.states],
        "dropped": denied.dropped,
        "crossings": plain_threshold_events(threshold_events),
    }
