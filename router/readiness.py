"""What a worker should know of those who take its records on; looked at beside the calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gevent
from gevent.threadpool import ThreadPool

from router.agent.status import Shipping, look_at_shipping
from router.clock import Clock
from router.errors import QueriesBusy, RecordStoreUnavailable, RouterError

LOOK_S: Final = 2.0

_logger = logging.getLogger("router.records")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was seen at the last look. Calls are served whatever it is."""

    shipping: Shipping
    store_fault: str | None
    """Why the record store gives no answers, fit to be shown; ``None`` when it does."""


class Watch:
    """Looks at the agent and at the record store every two seconds, on native threads.

    A dependency that hangs holds up the next look and nothing else.
    """

    def __init__(
        self,
        look: Callable[[], Shipping],
        ask_store: Callable[[], object],
        *,
        clock: Clock | None = None,
        spawn: Callable[[Callable[[], None]], object] = gevent.spawn,
    ) -> None:
        """``ask_store`` raises a :class:`RouterError` when it gets no answer."""
        self._look = look
        self._ask_store = ask_store
        self._clock = clock or Clock()
        self._spawn = spawn
        self._is_looking = False
        self._next_look_s = 0.0
        self.seen: Surroundings | None = None
        """``None`` before the first look has ended."""

    def tick(self) -> None:
        """Begin a look if it is time; returns at once. To be called about once a second."""
        if self._is_looking or self._clock.monotonic_s() < self._next_look_s:
            return
        self._is_looking = True
        self._spawn(self._see)

    def _see(self) -> None:
        try:
            shipping = self._shipping()
            known = None if self.seen is None else self.seen.store_fault
            # What is known of the agent does not wait for a store that hangs.
            self.seen = Surroundings(shipping, known)
            self.seen = Surroundings(shipping, self._store_fault(known))
        finally:
            self._next_look_s = self._clock.monotonic_s() + LOOK_S
            self._is_looking = False

    def _shipping(self) -> Shipping:
        try:
            return self._look()
        except OSError:
            return Shipping(is_running=False)

    def _store_fault(self, known: str | None) -> str | None:
        """Why the store gives no answers, also to the log when that has changed."""
        try:
            self._ask_store()
        except QueriesBusy:  # which says nothing of the store
            return known
        except RecordStoreUnavailable as error:
            fault, why = f"the record store is {error.condition}", error.reason
        except RouterError as error:
            fault = why = error.message
        else:
            if known is not None:
                _logger.info("record store answers again", extra={"was": known})
            return None
        if fault != known:
            _logger.warning("record store gives no answers", extra={"fault": fault, "why": why})
        return fault


def looking_at(data_dir: Path, spool_dir: Path) -> Callable[[], Shipping]:
    """A look on a native thread: not even a disk that hangs may stop the loop."""
    threads = ThreadPool(1)

    def attempt() -> Shipping | OSError:
        try:
            return look_at_shipping(data_dir, spool_dir)
        except OSError as error:  # as a value: gevent prints what a pool's thread raises
            return error

    def look() -> Shipping:
        found = threads.apply(attempt)
        if isinstance(found, OSError):
            raise found
        return found  # type: ignore[no-any-return]

    return look
