"""A call's request to its budgets, and the outcome of its admission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.breaker import Unavailable
from router.limits.budgets.windows import (
    Amounts,
    Closed,
    Denied,
    NeedsRebuild,
    Reservation,
    WindowSpec,
)
from router.limits.idempotency.entries import Entry, InFlight, Mismatch, NotStored, Replay
from router.limits.idempotency.nonces import Nonce, NonceRefused
from router.limits.rates.decision import RateDecision


@dataclass(slots=True)
class Request:
    """What a call wants to reserve in its budgets."""

    organization_id: str
    lease_id: str
    windows: Sequence[WindowSpec]
    amounts: Amounts
    ttl_ms: int
    key_id: str | None = None
    """Whose call it is: a budget service may know of budgets of this key."""
    nonce: Nonce | None = None
    """Of a signed call."""

    @property
    def is_limited(self) -> bool:
        """Whether one of its windows can refuse it."""
        return any(window.enforced and window.limit is not None for window in self.windows)


@dataclass(slots=True)
class Admitted:
    """A call that may go on. To be settled once, however it ends."""

    reservation: Reservation
    entry: Entry | None
    unprotected: bool = False
    """Nobody answered and the call was let through: without its budget, without replay protection,
    or without both."""
    waited_in_vain: bool = False
    """The call has waited for an answer that did not come, so its end is reported later."""


ExchangeReply = (
    Reservation
    | Denied
    | NeedsRebuild
    | Closed
    | InFlight
    | Replay
    | NotStored
    | Mismatch
    | NonceRefused
    | Unavailable
)
"""What Redis or a budget service makes of one request. :class:`Unavailable` refuses it whatever the
policy is: its charge could not be kept."""


@dataclass(slots=True)
class Outcome:
    """What the limits say of a call: first its rates, then everything else."""

    rates: RateDecision | None
    """``None`` when nobody could decide and the policy is ``closed``."""
    result: (
        Admitted
        | Denied
        | InFlight
        | Replay
        | NotStored
        | Mismatch
        | NonceRefused
        | Unavailable
        | None
    ) = None
    """``None`` when the rates refuse the call: nothing else was asked. :class:`Unavailable`, with
    nothing reserved, when nobody knows and the policy is ``closed``."""
