"""Questions to the record store, on native threads: bounded, with a deadline, never on the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import gevent
from gevent.threadpool import ThreadPool

from router.accounting.store import RecordStore
from router.accounting.store_errors import BadQuery, ResultTooLarge, StoreError, StoreTimeout
from router.errors import InvalidRequest, QueryTimeout, RecordStoreUnavailable

T = TypeVar("T")

THREADS: Final = 4
MAX_WAITING: Final = 16


class Queries:
    """Runs queries for the views of one worker."""

    def __init__(self, store: RecordStore, *, timeout_s: float) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._threads = ThreadPool(THREADS)
        self._asked = 0

    def run(self, question: Callable[[RecordStore], T]) -> T:
        """The answer; raises ``QueryTimeout``, ``RecordStoreUnavailable`` or ``InvalidRequest``."""
        if self._asked >= THREADS + MAX_WAITING:
            raise RecordStoreUnavailable("too many queries at once")
        self._asked += 1
        try:
            with gevent.Timeout(self._timeout_s + 1):
                answer = self._threads.apply(self._attempt, (question,))
            if isinstance(answer, StoreError):
                raise answer
            return answer  # type: ignore[no-any-return]
        except gevent.Timeout:
            raise QueryTimeout(self._timeout_s) from None
        except StoreTimeout as error:
            raise QueryTimeout(error.timeout_s) from None
        except BadQuery as error:
            raise InvalidRequest(str(error), field=error.field) from None
        except ResultTooLarge as error:
            raise InvalidRequest(str(error), field="group_by") from None
        except StoreError as error:
            raise RecordStoreUnavailable(type(error).__name__) from None
        finally:
            self._asked -= 1

    def _attempt(self, question: Callable[[RecordStore], T]) -> T | StoreError:
        try:
            return question(self._store)
        except StoreError as error:  # as a value: gevent prints what a pool's thread raises
            return error

    def close(self) -> None:
        """Close the connections."""
        self._store.close()
