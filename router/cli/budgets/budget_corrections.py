"""Corrections of budgets by hand: in the audit trail first, then in Redis, each exactly once."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import NamedTuple

import click

from router.breaker import Unavailable
from router.cli.budgets.ledger_session import LedgerSession, ledger_session, sums_of_records
from router.cli.operator_audit import OperatorAuditLog
from router.cli.output import CannotFindOut
from router.config.settings import Settings
from router.limits.budgets.maintenance import correction_key
from router.limits.budgets.rebuilding import Rebuilder, RebuildingLedger
from router.limits.budgets.windows import (
    MAX_AMOUNT,
    Adjustment,
    WindowLost,
    WindowSpec,
    WindowState,
)


class Correction(NamedTuple):
    """What to change; ``amount`` is in nano-USD, tokens or requests, ``None`` resets to 0."""

    organization_id: str
    window: WindowSpec
    amount: int | None
    reason: str
    correction_id: str


def parse_amount(text: str, unit: str) -> int:
    """Nano-USD, tokens or requests; raises ``click.BadParameter`` for what cannot be counted."""
    try:
        amount = Decimal(text).scaleb(9 if unit == "usd" else 0)
        whole = int(amount)
    except (InvalidOperation, OverflowError, ValueError):
        raise click.BadParameter(f"{text!r} is no number", param_hint="--amount") from None
    problem = None
    if amount != whole:
        problem = f"is finer than {'0.000000001 USD' if unit == 'usd' else f'one of {unit}'}"
    elif abs(whole) > MAX_AMOUNT:
        problem = "is more than can be counted"
    elif whole == 0:
        problem = "changes nothing"
    if problem:
        raise click.BadParameter(problem, param_hint="--amount")
    return whole


def make_correction(settings: Settings, correction: Correction) -> Adjustment | None:
    """Make a correction, unless it was made before: then ``None``, and nothing changes."""
    log = OperatorAuditLog(settings)
    organization_id = correction.organization_id
    with ledger_session(settings) as session:
        key = correction_key(organization_id, correction.correction_id)
        if session.client.command("EXISTS", key, key=key):
            return None
        before = _rebuilt(settings, session, log, correction).settled
        after = 0 if correction.amount is None else max(0, before + correction.amount)
        _note(log, correction, before, after)
        done = _apply(session, correction)
    log.note_thresholds(organization_id, done.threshold_events)
    if done.done_before:
        return None
    if (done.before, done.after) != (before, after):
        # Calls were settled in between: the trail has what was meant, and now what was done.
        _note(log, correction, done.before, done.after)
    return done


def _rebuilt(
    settings: Settings, session: LedgerSession, log: OperatorAuditLog, correction: Correction
) -> WindowState:
    """The window, rebuilt from the records if Redis has lost it."""
    organization_id = correction.organization_id
    with sums_of_records(settings) as sum_records:
        ledger = RebuildingLedger(session.ledger, Rebuilder(session.maintenance, sum_records))
        [state], reached = ledger.read(organization_id, [correction.window])
    log.note_thresholds(organization_id, reached)
    return state


def _note(log: OperatorAuditLog, correction: Correction, before: int, after: int) -> None:
    log.note_correction(
        correction.organization_id,
        correction.window,
        "LIMIT_RESET" if correction.amount is None else "BUDGET_ADJUSTED",
        reason=correction.reason,
        correction_id=correction.correction_id,
        settled=(before, after),
    )


def _apply(session: LedgerSession, correction: Correction) -> Adjustment:
    organization_id, window, amount, reason, correction_id = correction
    why = {"reason": reason, "correction_id": correction_id}
    try:
        if amount is None:
            return session.maintenance.reset(organization_id, window, **why)
        return session.maintenance.adjust(organization_id, window, amount, **why)
    except Unavailable as error:
        raise CannotFindOut(
            f"no answer ({error}): nobody knows whether it was made; the same command with"
            f" --correction-id {correction.correction_id} makes it once"
        ) from None
    except WindowLost:
        raise CannotFindOut(
            f"nothing was changed: {window.name} was lost in this moment; try once more"
        ) from None
