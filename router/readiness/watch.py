"""What a worker sees of agent, credentials and record store; observed beside the calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import gevent
from gevent.threadpool import ThreadPool

from router.agent.status import Shipping, observe_shipping
from router.clock import Clock
from router.config.document import Document
from router.config.settings import Settings, resolve_credential
from router.config.state.state_reader import StateReader
from router.errors import NotConfigured, QueriesBusy, RecordStoreUnavailable, RouterError

T = TypeVar("T")

OBSERVE_EVERY_S: Final = 2.0

_logger = logging.getLogger("router.records")


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen last. Calls are served whatever it is."""

    shipping: Shipping
    store_error: str | None
    """Why the record store gives no answers, fit to be shown; ``None`` when it does."""
    missing_credentials: frozenset[str] = frozenset()
    """References of backends to credentials that are not there."""


class Watch:
    """Observes agent, credentials and record store every two seconds, on native threads.

    A dependency that hangs holds up the next observation and nothing else.
    """

    def __init__(
        self,
        observe_shipping: Callable[[], Shipping],
        ask_store: Callable[[], object],
        *,
        find_missing_credentials: Callable[[], frozenset[str]] = frozenset,
        clock: Clock | None = None,
        spawn: Callable[[Callable[[], None]], object] = gevent.spawn,
    ) -> None:
        """``ask_store`` raises a :class:`RouterError` when it gets no answer;
        ``find_missing_credentials`` returns the references behind which there is none."""
        self._observe_shipping = observe_shipping
        self._ask_store = ask_store
        self._find_missing_credentials = find_missing_credentials
        self._clock = clock or Clock()
        self._spawn = spawn
        self._is_observing = False
        self._next_s = 0.0
        self.observed: Observation | None = None
        """``None`` before the first observation has ended."""

    def tick(self) -> None:
        """Begin to observe if it is time; returns at once. To be called about once a second."""
        if self._is_observing or self._clock.monotonic_s() < self._next_s:
            return
        self._is_observing = True
        self._spawn(self._observe)

    def _observe(self) -> None:
        try:
            shipping = self._shipping()
            missing = self._find_missing_credentials()
            known = None if self.observed is None else self.observed.store_error
            # What is known of the rest does not wait for a store that hangs.
            self.observed = Observation(shipping, known, missing)
            self.observed = Observation(shipping, self._store_error(known), missing)
        finally:
            self._next_s = self._clock.monotonic_s() + OBSERVE_EVERY_S
            self._is_observing = False

    def _shipping(self) -> Shipping:
        try:
            return self._observe_shipping()
        except OSError:
            return Shipping(is_running=False)

    def _store_error(self, known: str | None) -> str | None:
        """Why the store gives no answers, also to the log when that has changed."""
        try:
            self._ask_store()
        except QueriesBusy:  # which says nothing of the store
            return known
        except RecordStoreUnavailable as error:
            problem, why = f"the record store is {error.condition}", error.reason
        except RouterError as error:
            problem = why = error.message
        else:
            if known is not None:
                _logger.info("record store answers again", extra={"was": known})
            return None
        if problem != known:
            _logger.warning("record store gives no answers", extra={"problem": problem, "why": why})
        return problem


def watch_host(
    settings: Settings, state: StateReader, ask_store: Callable[[], object], clock: Clock
) -> Watch:
    """A watch of this host's agent, files and store: not even a disk that hangs stops the loop."""
    threads = ThreadPool(1)

    def off_loop(work: Callable[[], T]) -> T:
        def attempt() -> T | OSError:
            try:
                return work()
            except OSError as error:  # as a value: gevent prints what a pool's thread raises
                return error

        found = threads.apply(attempt)
        if isinstance(found, OSError):
            raise found
        return found  # type: ignore[no-any-return]

    def missing() -> frozenset[str]:
        try:
            document = state.document()
        except NotConfigured:
            return frozenset()
        return off_loop(lambda: missing_credentials(document))

    return Watch(
        lambda: off_loop(lambda: observe_shipping(settings.data_dir, settings.spool_dir)),
        ask_store,
        find_missing_credentials=missing,
        clock=clock,
    )


def missing_credentials(document: Document) -> frozenset[str]:
    """The references of backends behind which no credential is; reads files."""
    references = {backend.credential for backend in document.backends.values()}
    return frozenset(
        reference for reference in references if reference and resolve_credential(reference) is None
    )
