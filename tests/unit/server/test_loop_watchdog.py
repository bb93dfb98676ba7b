"""A greenlet that does not let go is counted, and the log says where it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import gevent
import pytest

from router.server import loop_watchdog
from router.server.loop_watchdog import LoopWatchdog


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopWatchdog]:
    monkeypatch.setattr(loop_watchdog, "BLOCK_S", 0.02)
    monkeypatch.setattr(loop_watchdog, "BEAT_S", 0.005)
    watchdog = LoopWatchdog()
    watchdog.start()
    yield watchdog
    watchdog.stop()


def hold_the_loop_up(seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


def test_a_block_is_counted_and_its_place_is_logged(
    watchdog: LoopWatchdog, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, however long it lasts; a second one in the same moment is only counted."""
    gevent.sleep(0.01)
    with caplog.at_level(logging.WARNING, "router.server"):
        for _ in range(2):
            hold_the_loop_up(0.2)
            gevent.sleep(0.01)
    assert watchdog.blocks >= 2
    first = caplog.records[0]
    assert first.getMessage() == "the event loop was blocked"
    assert vars(first)["seconds"] >= 0.05
    assert "hold_the_loop_up" in " ".join(vars(first)["stack"])
    assert len(caplog.records) == 1


def test_a_loop_that_only_waits_is_not_blocked(watchdog: LoopWatchdog) -> None:
    """However long nobody calls."""
    gevent.sleep(0.01)
    before = watchdog.blocks
    gevent.sleep(0.001)
    assert watchdog.blocks == before
