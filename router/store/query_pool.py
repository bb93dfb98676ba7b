"""Questions to the record store, on native threads: bounded, with a deadline, never on the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, TypeVar

import gevent
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

from router.errors import (
    InvalidRequest,
    QueriesBusy,
    QueryTimeout,
    RecordStoreUnavailable,
    StoreCondition,
)
from router.store.record_store import RecordStore
from router.store.store_errors import BadQuery, ResultTooLarge, StoreError, StoreTimeout
from router.telemetry.redaction import redact

T = TypeVar("T")

THREADS: Final = 4
MAX_WAITING: Final = 16
ORGANIZATION_THREADS: Final = 2
ORGANIZATION_WAITING: Final = 4
_REASON_CHARS: Final = 300
_SIGNS: Final[tuple[tuple[StoreCondition, tuple[str, ...]], ...]] = (
    ("damaged", ("malformed", "not a database", "corrupt", "invalid page")),
    ("busy", ("locked", "connection slots", "too many clients", "too many connections")),
)
"""How the databases word it; a store that says anything else counts as away."""


class _Asked:
    """The questions of one organization that are not over, and how many of them may run."""

    def __init__(self) -> None:
        self.number = 0
        self.threads = BoundedSemaphore(ORGANIZATION_THREADS)


class Queries:
    """Runs queries for the views of one worker."""

    def __init__(self, store: RecordStore, *, timeout_s: float) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._threads = ThreadPool(THREADS)
        self._own_thread = ThreadPool(1)
        self._asked = 0
        self._asked_by: dict[str, _Asked] = {}

    def run(self, question: Callable[[RecordStore], T], *, organization_id: str | None = None) -> T:
        """The answer; an organization gets a part of the threads, so that others get theirs.

        Raises ``QueriesBusy``, ``QueryTimeout``, ``RecordStoreUnavailable`` or ``InvalidRequest``.
        """
        return self._answer(lambda: self._among_others(question, organization_id))

    def check(self) -> None:
        """Raise unless the store answers now; waits for nobody's question and is never busy."""
        self._answer(
            lambda: self._own_thread.spawn(self._attempt, lambda store: store.check()).get()
        )

    def close(self) -> None:
        """Close the connections."""
        self._store.close()

    def _answer(self, ask: Callable[[], T | StoreError]) -> T:
        try:
            with gevent.Timeout(self._timeout_s + 1):
                answer = ask()
            if isinstance(answer, StoreError):
                raise answer
            return answer
        except gevent.Timeout:
            raise QueryTimeout(self._timeout_s) from None
        except StoreTimeout as error:
            raise QueryTimeout(error.timeout_s) from None
        except BadQuery as error:
            raise InvalidRequest(str(error), field=error.field) from None
        except ResultTooLarge as error:
            raise InvalidRequest(str(error), field="group_by") from None
        except StoreError as error:
            raise _unavailable(error) from None

    def _among_others(
        self, question: Callable[[RecordStore], T], organization_id: str | None
    ) -> T | StoreError:
        with ExitStack() as places:
            places.enter_context(self._place())
            if organization_id is not None:
                places.enter_context(self._place_of(organization_id))
            asked = self._threads.spawn(self._attempt, question)
            # A thread cannot be stopped: it has its places until it ends, wanted or not.
            taken = places.pop_all()
            asked.rawlink(lambda _: taken.close())
        return asked.get()  # type: ignore[no-any-return]

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._asked >= THREADS + MAX_WAITING:
            raise QueriesBusy
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1

    @contextmanager
    def _place_of(self, organization_id: str) -> Iterator[None]:
        asked = self._asked_by.setdefault(organization_id, _Asked())
        if asked.number >= ORGANIZATION_THREADS + ORGANIZATION_WAITING:
            raise QueriesBusy
        asked.number += 1
        try:
            with asked.threads:
                yield
        finally:
            asked.number -= 1
            if not asked.number:
                del self._asked_by[organization_id]

    def _attempt(self, question: Callable[[RecordStore], T]) -> T | StoreError:
        try:
            return question(self._store)
        except StoreError as error:  # as a value: gevent prints what a pool's thread raises
            return error


def _unavailable(error: StoreError) -> RecordStoreUnavailable:
    said = str(error)
    found = [name for name, signs in _SIGNS if any(sign in said.lower() for sign in signs)]
    reason = redact(said)[:_REASON_CHARS]
    return RecordStoreUnavailable(reason, condition=found[0] if found else "away")
