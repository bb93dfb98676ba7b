"""Questions to the record store from the loop: what is answered, and how failures come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import gevent
import pytest

from router.errors import InvalidRequest, QueriesBusy, QueryTimeout, RecordStoreUnavailable
from router.store.failures import BadQuery, ResultTooLarge, StoreTimeout, StoreUnavailable
from router.store.query_pool import (
    MAX_WAITING,
    ORGANIZATION_THREADS,
    ORGANIZATION_WAITING,
    THREADS,
    Queries,
)
from router.store.record_store import RecordStore


class Store:
    """A store that knows one thing."""

    answer = 42
    fault: StoreUnavailable | None = None

    def check(self) -> None:
        if self.fault is not None:
            raise self.fault

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


@pytest.mark.parametrize(
    ("said", "condition"),
    [
        ("the record store: database is locked", "busy"),
        ("the record store: FATAL: sorry, too many clients already", "busy"),
        ("the record store: database disk image is malformed", "damaged"),
        ("the record store: file is not a database", "damaged"),
        ("the record store: unable to open database file", "unavailable"),
        ("the record store: connection refused", "unavailable"),
    ],
)
def test_why_the_store_does_not_answer(queries: Queries, said: str, condition: str) -> None:
    """In the store's own words, for the log, and in one word for everybody."""

    def fail(_store: RecordStore) -> None:
        raise StoreUnavailable(said)

    with pytest.raises(RecordStoreUnavailable) as refusal:
        queries.run(fail)
    assert (refusal.value.reason, refusal.value.condition) == (said, condition)
    assert "store:" not in refusal.value.message


def test_what_the_store_says_is_shortened_and_no_secret(queries: Queries) -> None:
    """A database may repeat what a client sent."""
    key = "rtr_live_" + "a" * 32 + "_" + "b" * 6

    def fail(_store: RecordStore) -> None:
        raise StoreUnavailable(f"invalid value {key} " + "x" * 10_000)

    with pytest.raises(RecordStoreUnavailable) as refusal:
        queries.run(fail)
    assert key not in refusal.value.reason
    assert len(refusal.value.reason) <= 300


class Crowd:
    """Questions that are not answered before the test says so."""

    def __init__(self, queries: Queries) -> None:
        self.queries = queries
        self.go = threading.Event()
        self.running: list[str] = []
        self.greenlets: list[Any] = []

    def ask(self, organization_id: str, number: int) -> None:
        """So many at once."""
        self.greenlets += [gevent.spawn(self._one, organization_id) for _ in range(number)]
        gevent.sleep(0)

    def _one(self, organization_id: str) -> str:
        def query(_store: RecordStore) -> str:
            self.running.append(organization_id)
            assert self.go.wait(10.0)
            return "answered"

        try:
            return self.queries.run(query, organization_id=organization_id)
        except (QueriesBusy, QueryTimeout) as error:
            return type(error).__name__

    def await_running(self, expected: list[str]) -> None:
        """Threads need a moment to begin."""
        with gevent.Timeout(5.0):
            while sorted(self.running) != expected:
                gevent.sleep(0.001)

    def end(self) -> list[str]:
        """What became of all of them."""
        self.go.set()
        gevent.joinall(self.greenlets)
        return [greenlet.value for greenlet in self.greenlets]


@pytest.fixture
def crowd(queries: Queries) -> Iterator[Crowd]:
    made = Crowd(queries)
    yield made
    made.end()


def test_one_organization_leaves_room_for_the_others(crowd: Crowd) -> None:
    """It used to take all threads and all slots, and everybody else was told of an outage."""
    allowed = ORGANIZATION_THREADS + ORGANIZATION_WAITING
    crowd.ask("greedy", allowed + 3)
    crowd.ask("modest", 1)
    crowd.await_running(["greedy"] * ORGANIZATION_THREADS + ["modest"])
    outcomes = crowd.end()
    assert outcomes[:-1].count("QueriesBusy") == 3
    assert outcomes.count("answered") == allowed + 1


def test_slots_are_given_back(crowd: Crowd) -> None:
    """The same organization asks again, and nothing is kept of one that does not."""
    crowd.ask("greedy", ORGANIZATION_THREADS + ORGANIZATION_WAITING)
    assert set(crowd.end()) == {"answered"}
    assert crowd.queries.run(lambda _: "again", organization_id="greedy") == "again"
    assert crowd.queries._by_organization == {}
    assert crowd.queries._number == 0


def test_all_together_have_an_end_too(crowd: Crowd) -> None:
    """B5: a queue without an end would be worse."""
    for number in range(THREADS + MAX_WAITING):
        crowd.ask(f"org-{number}", 1)
    crowd.ask("late", 1)
    outcomes = crowd.end()
    assert outcomes[-1] == "QueriesBusy"
    assert set(outcomes[:-1]) == {"answered"}


def test_a_query_that_is_given_up_keeps_its_slot_until_it_ends() -> None:
    """Or an organization could fill all threads with queries that nobody waits for."""
    queries = Queries(cast(RecordStore, Store()), timeout_s=-0.98)
    crowd = Crowd(queries)
    crowd.ask("greedy", ORGANIZATION_THREADS + 1)
    gevent.joinall(crowd.greenlets)
    assert [greenlet.value for greenlet in crowd.greenlets] == ["QueryTimeout"] * 3
    assert len(crowd.running) == ORGANIZATION_THREADS
    assert queries._number == ORGANIZATION_THREADS
    crowd.go.set()
    with gevent.Timeout(5.0):
        while queries._number:
            gevent.sleep(0.001)
    assert queries._by_organization == {}
    queries.close()


def test_the_check_waits_for_nobody(crowd: Crowd) -> None:
    """Users' queries are no reason to say that the store is unavailable, and none not to say it."""
    for number in range(THREADS + MAX_WAITING):
        crowd.ask(f"org-{number}", 1)
    store = cast(Store, crowd.queries._store)
    crowd.queries.check()
    store.fault = StoreUnavailable("it is away")
    with pytest.raises(RecordStoreUnavailable, match="cannot be asked"):
        crowd.queries.check()
