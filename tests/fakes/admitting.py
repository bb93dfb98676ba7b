"""Admission as a call sees it whose rates were taken before: what tests of budgets need."""

from __future__ import annotations

from typing import Any

from router.breaker import Unavailable
from router.limits.admission import Admission
from router.limits.budgets.rebuilding import Rebuilder, SumRecords
from router.limits.budgets.windows import NOTHING
from router.limits.idempotency.entries import Entry
from router.limits.outcome import Admitted, Request
from router.limits.rates.decision import RateDecision, decide
from router.limits.retry_queue import RetryQueue

TAKEN = decide(())
"""Redis has decided about the rates, and there were none."""


class Budgets:
    """Admits over ``exchange``; what nobody can know is raised here."""

    def __init__(
        self,
        exchange: Any,
        maintenance: Any,
        retry_queue: RetryQueue,
        *,
        sum_records: SumRecords,
        **policies: Any,
    ) -> None:
        self.retry_queue = retry_queue
        self.rebuilder = Rebuilder(maintenance, sum_records)
        rates: Any = None  # they are never asked
        self.admission = Admission(rates, exchange, self.rebuilder, retry_queue, **policies)

    def admit(
        self, request: Request, entry: Entry | None = None, *, rates: RateDecision = TAKEN
    ) -> Any:
        result = self.admission.admit(rates, request, entry).result
        if isinstance(result, Unavailable):
            raise result
        return result

    def settle(self, admitted: Admitted, *how: Any) -> None:
        self.admission.settle(admitted, *how)

    def release(self, admitted: Admitted) -> None:
        self.admission.settle(admitted, NOTHING)
