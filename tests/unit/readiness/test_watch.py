"""When a worker looks at those who take its records on, and what it does about trouble."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from router.agent.status import Shipping
from router.clock import FrozenClock
from router.config.document import Backend, LoadedDocument
from router.errors import QueriesBusy, QueryTimeout, RecordStoreUnavailable
from router.readiness.watch import OBSERVE_EVERY_S, Observation, Watch, missing_credentials

FINE = Shipping(is_running=True)


class Bench:
    """A watch whose looks begin when the test says so."""

    def __init__(self) -> None:
        self.clock = FrozenClock()
        self.begun: list[Callable[[], None]] = []
        self.shipping: Shipping | OSError = FINE
        self.store_error: Exception | None = None
        self.missing: frozenset[str] = frozenset()
        self.watch = Watch(
            self._look,
            self._ask,
            find_missing_credentials=lambda: self.missing,
            clock=self.clock,
            spawn=self.begun.append,
        )

    def _look(self) -> Shipping:
        if isinstance(self.shipping, OSError):
            raise self.shipping
        return self.shipping

    def _ask(self) -> None:
        if self.store_error is not None:
            raise self.store_error

    def look(self) -> Observation | None:
        self.watch.tick()
        self.begun.pop()()
        self.clock.advance(OBSERVE_EVERY_S)
        return self.watch.observed


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_tick_looks_and_nothing_is_known_before(bench: Bench) -> None:
    """H2: a tick begins a look and does not wait for it."""
    bench.watch.tick()
    assert (len(bench.begun), bench.watch.observed) == (1, None)
    bench.begun[0]()
    assert bench.watch.observed == Observation(FINE, None)


def test_looks_are_two_seconds_apart(bench: Bench) -> None:
    """Many workers on one host ask the store no more than that."""
    bench.watch.tick()
    bench.begun.pop()()
    bench.clock.advance(OBSERVE_EVERY_S - 0.1)
    bench.watch.tick()
    assert bench.begun == []
    bench.clock.advance(0.1)
    bench.watch.tick()
    assert len(bench.begun) == 1


def test_a_look_that_hangs_is_not_joined_by_another(bench: Bench) -> None:
    """D1: a store that does not answer costs one greenlet."""
    for _ in range(5):
        bench.watch.tick()
        bench.clock.advance(OBSERVE_EVERY_S)
    assert len(bench.begun) == 1


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (RecordStoreUnavailable("no route to 10.0.0.7"), "the record store is unavailable"),
        (RecordStoreUnavailable("locked", condition="busy"), "the record store is busy"),
        (RecordStoreUnavailable("malformed", condition="damaged"), "the record store is damaged"),
        (QueryTimeout(10), "the record store did not answer within 10 s"),
    ],
)
def test_a_store_that_gives_no_answer_is_a_fault(
    bench: Bench, error: RecordStoreUnavailable | QueryTimeout, fault: str
) -> None:
    """It is over when the store answers again."""
    bench.store_error = error
    assert bench.look() == Observation(FINE, fault)
    bench.store_error = None
    assert bench.look() == Observation(FINE, None)


def test_a_disk_that_tells_nothing_is_no_agent(bench: Bench) -> None:
    """The look ends, and the next one is made."""
    bench.shipping = OSError(5, "input/output error")
    assert bench.look() == Observation(Shipping(is_running=False), None)
    bench.shipping = FINE
    assert bench.look() == Observation(FINE, None)


def test_a_defect_ends_one_look_only(bench: Bench) -> None:
    """The watch goes on."""
    bench.store_error = KeyError("a defect")
    with pytest.raises(KeyError):
        bench.look()
    bench.store_error = None
    bench.clock.advance(OBSERVE_EVERY_S)
    assert bench.look() == Observation(FINE, None)


def test_a_busy_pool_is_no_outage(bench: Bench) -> None:
    """It says nothing of the store: what was known stays."""
    bench.store_error = QueriesBusy()
    assert bench.look() == Observation(FINE, None)
    bench.store_error = RecordStoreUnavailable("no such file")
    known = bench.look()
    bench.store_error = QueriesBusy()
    assert bench.look() == known == Observation(FINE, "the record store is unavailable")


def test_the_log_says_why_once_at_each_change(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """`readyz` shows anybody one word; who mends the store needs its own."""
    caplog.set_level(logging.INFO, "router.records")
    away, damaged = (
        RecordStoreUnavailable("no such file"),
        RecordStoreUnavailable("malformed", condition="damaged"),
    )
    for error in (None, away, away, damaged, damaged, None, None):
        bench.store_error = error
        bench.look()
    told = [(line.message, getattr(line, "why", None)) for line in caplog.records]
    assert told == [
        ("record store gives no answers", "no such file"),
        ("record store gives no answers", "malformed"),
        ("record store answers again", None),
    ]


def test_credentials_are_seen_before_the_store_is_asked(bench: Bench) -> None:
    """H2: a store that hangs does not hide that a backend cannot be used."""
    bench.missing = frozenset({"env:KEY"})
    bench.store_error = KeyError("in place of a store that never answers")
    with pytest.raises(KeyError):
        bench.look()
    assert bench.watch.observed == Observation(FINE, None, frozenset({"env:KEY"}))


def test_which_credentials_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables and files that are not there or empty; a backend without a reference needs none."""
    monkeypatch.setenv("PRESENT", "secret")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("ABSENT", raising=False)
    (tmp_path / "present").write_text("secret")
    references = [
        None, "env:PRESENT", f"file:{tmp_path}/present",
        "env:EMPTY", "env:ABSENT", f"file:{tmp_path}/absent",
    ]  # fmt: skip
    document = LoadedDocument(
        backends=tuple(
            Backend(str(number), "openai", "http://x/v1", reference)
            for number, reference in enumerate(references)
        ),
    ).build(1)
    assert missing_credentials(document) == set(references[3:])
