"""Counters of budgets made anew from the records and the corrections in the audit trail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from router.breaker import Unavailable
from router.cli.budgets.ledger_session import ledger_session, sums_of_records
from router.cli.operator_audit import OperatorAuditLog
from router.cli.output import CannotFindOut
from router.clock import Clock
from router.config.config_errors import StateUnavailable
from router.config.settings import Settings
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.rebuilding import Rebuilder, SumRecords
from router.limits.budgets.windows import LostWindow, Past, WindowSpec, WindowState

_TRAIL: Final = "audit trail"


class Rebuilt(NamedTuple):
    """A window before and after."""

    before: WindowState
    after: WindowState


def rebuild_windows(
    settings: Settings,
    windows_by_organization: Sequence[tuple[str, Sequence[WindowSpec]]],
    *,
    only_lost: bool,
) -> Iterator[tuple[str, Rebuilt]]:
    """Seed the windows of each organization, and tell of each what it had and what it has. Each is
    noted in the audit trail before it is seeded.

    Windows that are open are seeded as well, unless ``only_lost``. Calls go on all the while.
    """
    log = OperatorAuditLog(settings)
    with (
        ledger_session(settings) as session,
        sums_of_records(settings, may_be_new=False) as sum_records,
    ):
        # A window that was seeded before this moment has missed calls, so it is said here.
        now_ms = int(Clock().now_s() * 1000)
        anew = LedgerMaintenance(session.client, since_ms_of=lambda _organization_id: now_ms)
        maintenance = session.maintenance if only_lost else anew
        for organization_id, windows in windows_by_organization:
            before = session.ledger.read(organization_id, windows)
            chosen = [state.window for state in before if state.lost or not only_lost]
            if not chosen:
                continue
            rebuilder = Rebuilder(maintenance, _noting(log, before, sum_records))
            try:
                reached = rebuilder.rebuild(organization_id, chosen, windows)
            except Unavailable as error:
                if error.name not in ("record store", _TRAIL):
                    raise
                raise CannotFindOut(str(error)) from None
            log.note_thresholds(organization_id, reached)
            after = session.ledger.read(organization_id, windows)
            for old, new in zip(before, after, strict=True):
                if old.window in chosen:
                    yield organization_id, Rebuilt(old, new)


def _noting(
    log: OperatorAuditLog, states: Sequence[WindowState], sum_records: SumRecords
) -> SumRecords:
    """Sums that are in the audit trail before they are used."""
    before = {state.window: None if state.lost else state.settled for state in states}

    def sum_and_note(organization_id: str, lost: LostWindow) -> Past | int:
        past = sum_records(organization_id, lost)
        after = past if isinstance(past, int) else past.settled
        try:
            log.note_rebuild(organization_id, lost.window, before=before[lost.window], after=after)
        except StateUnavailable as error:
            raise Unavailable(_TRAIL, "lost", str(error)) from None
        return past

    return sum_and_note
