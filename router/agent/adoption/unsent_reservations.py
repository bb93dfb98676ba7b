"""What dead workers had reserved for calls that they never sent: it is given back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from router.limits.budgets.lease_notation import lease_of
from router.limits.budgets.periods import period_at
from router.limits.budgets.windows import Amounts, Reservation, ReservedWindow, WindowSpec
from router.limits.leases.unsent_calls import UnsentCall, is_in_use, read_unsent
from router.records.open_calls import Unsettled

WindowsOf = Callable[[str, str | None], Sequence[WindowSpec]]
"""The budgets of an organization and one of its keys, by the document; raises ``RouterError`` or
``LookupError`` where there is no such thing any more."""

_logger = logging.getLogger("router.agent")


class UnsentReservations:
    """The files of a directory, one for each writer."""

    def __init__(self, directory: Path, windows_of: WindowsOf) -> None:
        self._directory = directory
        self._windows_of = windows_of

    def ended(self) -> list[str]:
        """The writers that have a file and are dead; raises ``OSError``."""
        try:
            paths = sorted(self._directory.iterdir())
        except FileNotFoundError:
            return []
        return [path.name for path in paths if not is_in_use(path)]

    def leases(self, writer_id: str, sent: Collection[str]) -> Iterator[Unsettled]:
        """What a dead writer had reserved, or was about to, but for the calls that it has ``sent``;
        each to be settled with nothing."""
        try:
            calls = read_unsent(self._directory / writer_id)
        except FileNotFoundError:
            return
        for call in calls:
            if call.record_id not in sent:
                yield from self._unsettled(call)

    def forget(self, writer_id: str) -> None:
        """What it had reserved is on its way back."""
        (self._directory / writer_id).unlink(missing_ok=True)

    def _unsettled(self, call: UnsentCall) -> Iterator[Unsettled]:
        try:
            specs = self._windows_of(call.organization_id, call.key_id)
        except Exception as error:  # its lease ends one day
            facts = {"record_id": call.record_id, "why": str(error)}
            _logger.warning("a reservation has to wait for its lease", extra=facts)
            return
        amounts = Amounts(call.cost_nanos, call.tokens, call.requests)
        windows = [
            ReservedWindow(
                spec, period_at(spec.period, spec.timezone, call.at_ms), amounts.of(spec.unit)
            )
            for spec in specs
        ]
        reservation = Reservation(call.record_id, call.organization_id, tuple(windows))
        lease = lease_of(reservation, call.ttl_ms)
        if lease is not None:
            yield Unsettled(call.record_id, call.organization_id, lease, 0, 0, 0)
