"""Questions to the record store from the loop: what is answered, and how failures come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from router.accounting.store import RecordStore
from router.accounting.store_errors import BadQuery, ResultTooLarge, StoreTimeout, StoreUnavailable
from router.errors import InvalidRequest, QueryTimeout, RecordStoreUnavailable
from router.queries import Queries


class Store:
    """A store that knows one thing."""

    answer = 42

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def queries() -> Iterator[Queries]:
    made = Queries(cast(RecordStore, Store()), timeout_s=5.0)
    yield made
    made.close()


def test_an_answer_comes_back(queries: Queries) -> None:
    """From a native thread, over the store that it was made with."""
    assert queries.run(lambda store: cast(Any, store).answer) == 42


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (StoreUnavailable("no such file"), RecordStoreUnavailable),
        (StoreTimeout(5.0), QueryTimeout),
        (BadQuery("group_by", "unknown"), InvalidRequest),
        (ResultTooLarge(10), InvalidRequest),
    ],
    ids=lambda value: getattr(type(value), "__name__", ""),
)
def test_a_failure_is_raised_and_not_printed(
    queries: Queries,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    becomes: type[Exception],
) -> None:
    """gevent used to print a traceback for each, into a log whose lines are JSON."""

    def fail(_store: RecordStore) -> None:
        raise error

    with pytest.raises(becomes):
        queries.run(fail)
    assert capfd.readouterr() == ("", "")
