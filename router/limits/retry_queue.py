"""Settlements and releases that wait until Redis or a budget service is back."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from router.breaker import Refused, Unavailable

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 20_000
MOST_FAILURES: Final = 3
"""In one run; as many open a breaker, and while one is open a failure costs next to nothing."""

Work = Callable[[], None]
"""Does one thing at the dependency, raises :class:`Unavailable` if it cannot. It may be done all
the same, so doing it twice must do no harm."""


class RetryQueue:
    """Work that waits for Redis or a budget service, in this worker's memory, bounded.

    What does not fit, and what a killed worker had queued, is not lost for ever: leases expire by
    themselves, and what was spent is in the record store, from which a window can be rebuilt.
    """

    def __init__(self, *, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[Work] = deque()
        self._running = False
        self.dropped = 0
        """How much did not fit, or was refused, since the worker began."""

    def __len__(self) -> int:
        return len(self._waiting)

    def later(self, work: Work) -> None:
        """Have ``work`` done by the next :meth:`run` that finds Redis there."""
        if len(self._waiting) >= self._max_waiting:
            if self.dropped == 0:
                logger.error("the retry queue is full; the oldest entries are dropped from now on")
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(work)

    def run(self) -> int:
        """Try all work once, until some of it has failed often; returns how much was done. Raises
        nothing. What failed waits behind the rest, which may be about another dependency.

        To be called about once a second, and once more before the worker ends.
        """
        if self._running:
            return 0
        self._running = True
        done = failed = 0
        try:
            for _ in range(len(self._waiting)):
                if not self._waiting or failed == MOST_FAILURES:
                    break
                work = self._waiting.popleft()
                if self._is_done(work):
                    done += 1
                else:
                    failed += 1
        finally:
            self._running = False
        return done

    def _is_done(self, work: Work) -> bool:
        done = False
        try:
            work()
            done = True
        except Refused as error:
            # It would be refused for ever.
            self.dropped += 1
            done = True
            logger.error("deferred work was refused: %s", error)
        except Unavailable:
            pass
        except Exception:
            done = True
            logger.exception("deferred work failed")
        finally:  # a killed greenlet does not take it along
            if not done:
                self._waiting.append(work)
        return done
