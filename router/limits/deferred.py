"""What Redis has to be told once it is back: settlements, releases, ids that are free again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from router.limits.breaker import Unavailable

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 20_000

Work = Callable[[], None]
"""Tells Redis something, raises :class:`Unavailable` if it cannot. It may have told it all the
same, so it must do no harm to tell it twice."""


class Deferred:
    """Work that waits for Redis, in this worker's memory, in order, bounded.

    What does not fit, and what a killed worker held, is not lost for ever: leases end by
    themselves, and what was spent is in the record store, from which a window can be rebuilt.
    """

    def __init__(self, *, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[Work] = deque()
        self._running = False
        self.dropped = 0
        """How much did not fit, since the worker began."""

    def __len__(self) -> int:
        return len(self._waiting)

    def later(self, work: Work) -> None:
        """Have ``work`` done by the next :meth:`run` that finds Redis there."""
        if len(self._waiting) >= self._max_waiting:
            if self.dropped == 0:
                logger.error("too much waits for redis; the oldest is dropped from now on")
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(work)

    def now_or_later(self, work: Work) -> None:
        """Have ``work`` done at once if Redis is there."""
        try:
            work()
        except Unavailable:
            self.later(work)

    def run(self) -> int:
        """Do what waits until Redis fails again; returns how much was done. Raises nothing.

        For whoever comes by about once a second, and once more before the worker ends.
        """
        if self._running:
            return 0
        self._running = True
        done = 0
        try:
            while self._waiting and self._is_done(self._waiting[0]):
                done += 1
        finally:
            self._running = False
        return done

    def _is_done(self, work: Work) -> bool:
        try:
            work()
        except Unavailable:
            return False
        except Exception:
            # It would fail for ever, and nothing behind it would ever be done.
            logger.exception("deferred work failed")
        # Another call may have dropped it meanwhile, being the oldest.
        if self._waiting and self._waiting[0] is work:
            self._waiting.popleft()
        return True
