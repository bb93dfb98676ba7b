"""Queries of the record store on native threads: bounded, with a deadline, never on the loop."""

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
from router.store.failures import BadQuery, ResultTooLarge, StoreError, StoreTimeout
from router.store.record_store import RecordStore
from router.telemetry.redaction import redact

T = TypeVar("T")

THREADS: Final = 4
MAX_WAITING: Final = 16
ORGANIZATION_THREADS: Final = 2
ORGANIZATION_WAITING: Final = 4
_REASON_CHARS: Final = 300
_CONDITIONS: Final[tuple[tuple[StoreCondition, tuple[str, ...]], ...]] = (
    ("damaged", ("malformed", "not a database", "corrupt", "invalid page")),
    ("busy", ("locked", "connection slots", "too many clients", "too many connections")),
)
"""How the databases word it; a store that says anything else counts as ``away``."""


class _Running:
    """How many queries of an organization are not over, and how many of them may run."""

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
        self._number = 0
        self._by_organization: dict[str, _Running] = {}

    def run(self, query: Callable[[RecordStore], T], *, organization_id: str | None = None) -> T:
        """The answer; an organization gets a part of the threads, so that others get theirs.

        Raises ``QueriesBusy``, ``QueryTimeout``, ``RecordStoreUnavailable`` or ``InvalidRequest``,
        and what else the query raises.
        """
        return self._answer(lambda: self._run(query, organization_id))

    def check(self) -> None:
        """Raise unless the store answers now; waits for no other query and is never busy."""
        self._answer(
            lambda: self._own_thread.spawn(self._attempt, lambda store: store.check()).get()
        )

    def close(self) -> None:
        """Close the connections."""
        self._store.close()

    def _answer(self, get: Callable[[], T | Exception]) -> T:
        try:
            with gevent.Timeout(self._timeout_s + 1):
                answer = get()
            if isinstance(answer, Exception):
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

    def _run(self, query: Callable[[RecordStore], T], organization_id: str | None) -> T | Exception:
        with ExitStack() as slots:
            slots.enter_context(self._slot())
            if organization_id is not None:
                slots.enter_context(self._slot_of(organization_id))
            running = self._threads.spawn(self._attempt, query)
            # A thread cannot be stopped: it keeps its slots until it ends, wanted or not.
            kept = slots.pop_all()
            running.rawlink(lambda _: kept.close())
        return running.get()  # type: ignore[no-any-return]

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self._number >= THREADS + MAX_WAITING:
            raise QueriesBusy
        self._number += 1
        try:
            yield
        finally:
            self._number -= 1

    @contextmanager
    def _slot_of(self, organization_id: str) -> Iterator[None]:
        running = self._by_organization.setdefault(organization_id, _Running())
        if running.number >= ORGANIZATION_THREADS + ORGANIZATION_WAITING:
            raise QueriesBusy
        running.number += 1
        try:
            with running.threads:
                yield
        finally:
            running.number -= 1
            if not running.number:
                del self._by_organization[organization_id]

    def _attempt(self, query: Callable[[RecordStore], T]) -> T | Exception:
        try:
            return query(self._store)
        except Exception as error:  # as a value: gevent prints what a pool's thread raises
            return error


def _unavailable(error: StoreError) -> RecordStoreUnavailable:
    text = str(error)
    found = [name for name, words in _CONDITIONS if any(word in text.lower() for word in words)]
    reason = redact(text)[:_REASON_CHARS]
    return RecordStoreUnavailable(reason, condition=found[0] if found else "unavailable")
