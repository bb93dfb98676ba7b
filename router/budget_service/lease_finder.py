"""What a lease has reserved, for a caller who never learned it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from router.breaker import Unavailable
from router.limits.budgets.ledger import LATE_S
from router.limits.budgets.rebuilding import RebuildingLedger
from router.limits.budgets.window_keys import window_keys
from router.limits.budgets.windows import NOTHING, Closed, Reservation, WindowSpec
from router.limits.redis_keys import tag
from router.limits.remote.messages import MAX_LEASE_MS
from router.redis.scripts import Loader, Runner, ScriptCall, load_script

_LONGEST_MS: Final = MAX_LEASE_MS + int(LATE_S * 1000)
"""As long as any lease is known, expired ones too."""


class LeaseFinder:
    """Finds a lease by its id, in the windows that its caller has now.

    A router whose reservation was never answered, where the service alone knows the windows, can
    name the lease and nothing else.
    """

    def __init__(
        self, ledger: RebuildingLedger, redis: Runner, *, load: Loader = load_script
    ) -> None:
        self._ledger = ledger
        self._redis = redis
        self._script = load("remote/lease_amounts.lua")

    def find(
        self, organization_id: str, lease_id: str, windows: Sequence[WindowSpec]
    ) -> Reservation | Closed:
        """The reservation as it was answered. A lease that was never reserved has reserved nothing,
        now. Raises :class:`Unavailable`."""
        # A second reservation of a live lease changes nothing and tells the first one's period; an
        # amount of 0 always fits.
        outcome, _ = self._ledger.reserve(
            organization_id, lease_id, windows, NOTHING, ttl_ms=_LONGEST_MS
        )
        if isinstance(outcome, Closed):
            return outcome
        if not isinstance(outcome, Reservation):
            raise Unavailable("ledger", "lost")
        if not outcome.windows:
            return outcome
        prefix = tag(organization_id)
        keys = [window_keys(prefix, entry.window, entry.period)[1] for entry in outcome.windows]
        amounts: list[int] = self._redis.run(ScriptCall(self._script, keys, [lease_id]))
        found = zip(outcome.windows, amounts, strict=True)
        return replace(
            outcome, windows=tuple([replace(entry, amount=amount) for entry, amount in found])
        )
