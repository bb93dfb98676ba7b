"""How far a call has come in being admitted, so that all of it can be undone."""

from __future__ import annotations

from collections.abc import Callable

from router.limits.configured import RateSpecs
from router.limits.idempotency.entries import Entry
from router.limits.outcome import Request
from router.limits.rates.decision import RateDecision


class Asking:
    """How far a call has come in being admitted. As a context it undoes all of it when the call is
    killed: the end of a worker may throw at a call anywhere."""

    __slots__ = ("_give_back", "claimed", "decision", "entry", "request", "sent", "specs")

    def __init__(
        self,
        give_back: Callable[[Asking], None],
        rates: RateSpecs | RateDecision,
        request: Request,
        entry: Entry | None,
    ) -> None:
        self._give_back = give_back
        self.request = request
        self.entry = entry
        self.specs = rates if isinstance(rates, RateSpecs) else None
        """``None`` when the rates were taken before."""
        self.decision = rates if isinstance(rates, RateDecision) else None
        self.sent = False
        """Whether Redis or the budget service may have heard of its id and its budgets."""
        self.claimed = False
        """Whether the id is certainly this call's."""

    def __enter__(self) -> None:
        """Nothing is reserved yet."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Errors are part of admission; whatever else ends it leaves nothing reserved."""
        if kind is not None and not issubclass(kind, Exception):
            self._give_back(self)
