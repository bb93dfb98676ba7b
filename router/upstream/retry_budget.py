"""How many extra attempts a worker may make, so that failing backends meet no retry storm."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SHARE_OF_CALLS: Final = 0.2
PER_SECOND: Final = 10.0
MOST_SAVED: Final = 100.0


class RetryBudget:
    """20 % of the calls plus 10 a second, as Finagle and linkerd do it; savings are bounded."""

    def __init__(
        self,
        *,
        share: float = SHARE_OF_CALLS,
        per_second: float = PER_SECOND,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = share
        self._per_second = per_second
        self._monotonic_s = monotonic_s
        self._tokens = per_second
        self._seen_s = monotonic_s()

    def count_call(self) -> None:
        """A first attempt was made; it pays for a fraction of a retry."""
        self._tokens = min(MOST_SAVED, self._tokens + self._share)

    def take(self) -> bool:
        """Whether one more attempt may be made now."""
        now_s = self._monotonic_s()
        earned = (now_s - self._seen_s) * self._per_second
        self._tokens = min(MOST_SAVED, self._tokens + earned)
        self._seen_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
