"""Budgets that were added, renamed or moved while a call ran."""

from __future__ import annotations

from router import errors
from router.api.scope import Scope
from router.limits.budgets.periods import period_at
from router.limits.budgets.windows import NOTHING, Reservation, ReservedWindow
from router.limits.configured import window_specs


def new_windows(scope: Scope, reservation: Reservation) -> tuple[ReservedWindow, ...]:
    """The budgets that the caller has now and did not have when the call was admitted.

    A rebuild may have counted the call there as one that runs, with what it would have reserved.
    """
    state, key = scope.services.state, scope.key
    if key is None or scope.services.limits.admission.uses_budget_service:
        return ()
    try:
        document = state.document()
        if document is scope.document:
            return ()
        current = state.find_key_with_id(key.id)
    except errors.RouterError:  # the document cannot be read now: what was reserved is charged
        return ()
    organization = document.organizations.get(key.organization_id)
    if organization is None:
        return ()
    budgets = {held.window.identity for held in reservation.windows}
    began_ms = int((scope.services.clock.now_s() - scope.elapsed_s()) * 1000)
    at_ms, amounts = reservation.reserved_at_ms or began_ms, scope.limits.amounts or NOTHING
    return tuple(
        [
            ReservedWindow(
                window,
                period_at(window.period, window.timezone, at_ms),
                amounts.of(window.unit),
            )
            for window in window_specs(organization, current)
            if window.identity not in budgets
        ]
    )
