"""A reservation as plain JSON in the spool, so that another process can settle it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router.limits.budgets.periods import Period
from router.limits.budgets.windows import (
    Reservation,
    ReservedWindow,
    ServiceReservation,
    WindowSpec,
)


def lease_of(reservation: Reservation, ttl_ms: int) -> tuple[Any, ...] | None:
    """The lease without its id and its organization: when it was reserved, the epoch, its lifetime
    and its windows, or the key by which a budget service finds them; ``None`` for one that holds
    nothing."""
    if isinstance(reservation, ServiceReservation):
        return reservation.reserved_at_ms, reservation.epoch, ttl_ms, (), reservation.key_id
    if not reservation.windows:
        return None
    windows = tuple([_window(reserved) for reserved in reservation.windows])
    return reservation.reserved_at_ms, reservation.epoch, ttl_ms, windows


def reservation_of(lease_id: str, organization_id: str, lease: Sequence[Any]) -> Reservation:
    """The reservation of a lease; raises ``ValueError`` or ``TypeError``."""
    reserved_at_ms, epoch, _, windows, *key = lease
    if key:
        return ServiceReservation(
            lease_id, organization_id, (), reserved_at_ms, epoch, key_id=key[0]
        )
    return Reservation(
        lease_id,
        organization_id,
        tuple([_reserved_window(*values) for values in windows]),
        reserved_at_ms=reserved_at_ms,
        epoch=epoch,
    )


def _window(reserved: ReservedWindow) -> tuple[Any, ...]:
    window, period = reserved.window, reserved.period
    return (
        window.name,
        window.unit,
        window.period,
        window.limit,
        window.timezone,
        window.scope,
        window.subject,
        window.thresholds,
        window.enforced,
        period.start_ms,
        period.end_ms,
        reserved.amount,
    )


def _reserved_window(*values: Any) -> ReservedWindow:
    name, unit, period, limit, timezone, scope, subject, thresholds, enforced, *rest = values
    window = WindowSpec(
        name=name,
        unit=unit,
        period=period,
        limit=limit,
        timezone=timezone,
        scope=scope,
        subject=subject,
        thresholds=tuple(thresholds),
        enforced=enforced,
    )
    start_ms, end_ms, amount = rest
    return ReservedWindow(window, Period(start_ms, end_ms), amount)
