"""A call that only running calls keep out of a budget waits a moment for them to settle."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from typing import Final, Protocol

WAIT_S: Final = 0.05
MOST_WAITING: Final = 64
"""In one worker, so that the rest of its calls stays unaffected."""
MOST_OF_ONE: Final = 8
"""Of one organization: each waiting call asks the counters again a few times."""
FIRST_PAUSE_S: Final = 0.005


class Event(Protocol):
    """What the wait uses of :class:`threading.Event`."""

    def wait(self, timeout: float) -> bool:
        """Whether it was set within ``timeout`` seconds."""

    def set(self) -> None:
        """Wake the waiter."""

    def clear(self) -> None:
        """Be ready for the next."""


class SettlementWait:
    """Bounded in time, and in how many calls wait: what does not find a place is refused at once.

    A settlement of this worker wakes one waiter of its organization, in turn. Those of other
    workers are found by asking again, after pauses that double.
    """

    def __init__(
        self,
        wait_s: float = WAIT_S,
        *,
        most_waiting: int = MOST_WAITING,
        most_of_one: int = MOST_OF_ONE,
        monotonic_s: Callable[[], float] = time.monotonic,
        event: Callable[[], Event] = threading.Event,
    ) -> None:
        self._wait_s = wait_s
        self._most_waiting = most_waiting
        self._most_of_one = most_of_one
        self._monotonic_s = monotonic_s
        self._event = event
        self._waiting: dict[str, deque[Event]] = {}
        self._count = 0
        self.outcomes: Final[Counter[str]] = Counter()
        """What became of calls that could have waited: ``admitted``, ``refused`` after all, or
        ``full`` when too many waited already."""

    def turns(self, organization_id: str) -> Generator[None, None, None]:
        """Yields whenever it is worth asking again, until the time is up. To be closed."""
        if self._wait_s <= 0:
            return
        waiting = self._waiting.get(organization_id, ())
        if self._count >= self._most_waiting or len(waiting) >= self._most_of_one:
            self.outcomes["full"] += 1
            return
        event = self._event()
        self._count += 1
        self._waiting.setdefault(organization_id, deque()).append(event)
        try:
            yield from self._pauses(event)
        finally:
            self._leave(organization_id, event)

    def settled(self, organization_id: str) -> None:
        """A call of this organization has settled, so that one that waits may fit now."""
        waiting = self._waiting.get(organization_id)
        if waiting:
            waiting[0].set()
            waiting.rotate(-1)

    def _pauses(self, event: Event) -> Iterator[None]:
        until_s = self._monotonic_s() + self._wait_s
        pause_s = FIRST_PAUSE_S
        while (left_s := until_s - self._monotonic_s()) > 0:
            if not event.wait(min(pause_s, left_s)):
                pause_s *= 2
            event.clear()
            yield

    def _leave(self, organization_id: str, event: Event) -> None:
        self._count -= 1
        waiting = self._waiting[organization_id]
        waiting.remove(event)
        if not waiting:
            del self._waiting[organization_id]
