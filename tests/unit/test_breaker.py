"""The breaker: when it opens, how it comes back, what it tells."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from router.breaker import FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker, State
from router.clock import FrozenClock


def breaker(clock: FrozenClock, **options: object) -> Breaker:
    options = {"jitter": lambda: 0.5, **options}
    return Breaker("redis", monotonic_s=clock.monotonic_s, **options)  # type: ignore[arg-type]


def fail(subject: Breaker, times: int = 3) -> None:
    for _ in range(times):
        subject.failed("timeout", "no reply")


def test_failures_in_a_row_open_it() -> None:
    """D3: two failures are bad luck, the third is an outage."""
    subject = breaker(FrozenClock())
    fail(subject, 2)
    assert subject.allows()
    fail(subject, 1)
    assert not subject.allows()
    assert subject.state == "open"


def test_a_success_in_between_starts_the_count_again() -> None:
    """Every tenth call failing is no outage."""
    subject = breaker(FrozenClock())
    for _ in range(10):
        fail(subject, 2)
        subject.succeeded()
    assert subject.allows()


def test_one_call_at_a_time_tries_after_the_pause() -> None:
    """Half open: the first caller after the pause decides for all."""
    clock = FrozenClock()
    subject = breaker(clock)
    fail(subject)
    clock.advance(FIRST_PAUSE_S * 0.99)
    assert not subject.allows()
    clock.advance(FIRST_PAUSE_S * 0.02)
    assert [subject.allows() for _ in range(3)] == [True, False, False]
    subject.succeeded()
    assert subject.state == "closed"
    assert subject.allows()


def test_pauses_double_up_to_a_second() -> None:
    """D7: fewer attempts the longer it lasts, and still back within two seconds."""
    clock = FrozenClock()
    subject = breaker(clock)
    fail(subject)
    pauses_s = []
    for _ in range(6):
        waited_s = 0.0
        while not subject.allows():
            clock.advance(0.01)
            waited_s += 0.01
        subject.failed("connect")
        pauses_s.append(waited_s)
    assert pauses_s == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0], abs=0.03)
    assert LONGEST_PAUSE_S * 1.25 < 2


def test_a_trial_that_never_reports_does_not_keep_it_open() -> None:
    """The greenlet of the one call was killed: another one may try."""
    clock = FrozenClock()
    subject = breaker(clock)
    fail(subject)
    clock.advance(1)
    assert subject.allows()
    clock.advance(1)
    assert subject.allows()


def test_a_late_success_from_before_the_outage_does_not_close_it() -> None:
    """Only who was sent to try may tell that it is over."""
    subject = breaker(FrozenClock())
    fail(subject)
    subject.succeeded()
    assert subject.state == "open"


def test_jitter_spreads_the_attempts_of_many_workers() -> None:
    """D7: the pause is a quarter shorter to a quarter longer."""
    for chance, pause_s in ((0.0, 0.075), (1.0, 0.125)):
        clock = FrozenClock()
        subject = breaker(clock, jitter=lambda chance=chance: chance)
        fail(subject)
        clock.advance(pause_s - 0.001)
        assert not subject.allows()
        clock.advance(0.002)
        assert subject.allows()


def test_each_transition_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """D3, D4: one log line and one notice each way, however many calls fail."""
    caplog.set_level(logging.INFO)
    clock = FrozenClock()
    heard: list[tuple[str, State]] = []
    subject = breaker(clock, on_change=lambda name, state: heard.append((name, state)))
    fail(subject, 50)
    clock.advance(2)
    assert subject.allows()
    subject.failed("timeout")
    clock.advance(2)
    assert subject.allows()
    subject.succeeded()
    assert heard == [("redis", "open"), ("redis", "closed")]
    assert [record.getMessage() for record in caplog.records] == [
        "redis breaker open",
        "redis breaker closed",
    ]
    assert vars(caplog.records[0])["reason"] == "timeout"


def test_the_time_away_adds_up() -> None:
    """The metric of degraded seconds counts while it is open, and stops when it is not."""
    clock = FrozenClock()
    subject = breaker(clock)
    for _ in range(2):
        fail(subject)
        clock.advance(3)
        assert subject.allows()
        subject.succeeded()
        clock.advance(100)
    assert subject.unavailable_s == 6
    fail(subject)
    clock.advance(1)
    assert subject.unavailable_s == 7


class ProbeStand:
    """A probe that fails until it is told otherwise, and events instead of waits."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.probed = threading.Event()
        self.closed = threading.Event()

    def probe(self) -> None:
        self.probed.set()
        if not self.back.is_set():
            raise ConnectionError

    def heard(self, name: str, state: State) -> None:
        if state == "closed":
            self.closed.set()


@pytest.fixture
def probed() -> Callable[[ProbeStand], Breaker]:
    def build(stand: ProbeStand) -> Breaker:
        return Breaker("redis", probe=stand.probe, on_change=stand.heard, jitter=lambda: 0.0)

    return build


def test_a_probe_finds_it_back_and_no_call_pays(
    probed: Callable[[ProbeStand], Breaker],
) -> None:
    """P9: with a probe every call is refused at once until the probe succeeds."""
    stand = ProbeStand()
    subject = probed(stand)
    fail(subject)
    assert stand.probed.wait(5)
    assert not subject.allows()
    stand.back.set()
    assert stand.closed.wait(5)
    assert subject.allows()


def test_stop_ends_the_probing(probed: Callable[[ProbeStand], Breaker]) -> None:
    """A closed client leaves no thread behind."""
    stand = ProbeStand()
    subject = probed(stand)
    fail(subject)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "redis-probe"]
    subject.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert subject.state == "open"
