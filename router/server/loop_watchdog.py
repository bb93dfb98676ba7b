"""Notices when one greenlet keeps the event loop for itself: all other calls of the worker wait."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from types import FrameType
from typing import Any, Final

import gevent
from gevent.monkey import get_original

BLOCK_S: Final = 0.1
"""A longer silence of the loop is counted and logged."""

BEAT_S: Final = 0.02
LOG_EVERY_S: Final = 1.0
"""A client that can cause a block shall not fill the log."""

_FRAMES: Final = 12

_log = logging.getLogger("router.server")


class LoopWatchdog:
    """Counts blocks of the event loop of this thread; ``blocks`` is how many there were.

    A timer notes that the loop goes round. A native thread looks at the note, and when it is old
    takes down what the loop's thread is doing. Neither costs a call anything.
    """

    def __init__(self) -> None:
        self.blocks = 0
        self._watched: int = get_original("_thread", "get_ident")()  # of the thread, no greenlet's
        self._beat_s = time.monotonic()
        self._stack: list[str] = []
        self._logged_s = float("-inf")
        self._is_stopped = False
        self._timer: Any = gevent.get_hub().loop.timer(BEAT_S, BEAT_S)

    def start(self) -> None:
        """Watch until :meth:`stop`."""
        self._beat_s = time.monotonic()
        self._timer.start(self._beat)
        get_original("_thread", "start_new_thread")(self._watch, ())

    def stop(self) -> None:
        """The thread ends soon."""
        self._is_stopped = True
        self._timer.stop()
        self._timer.close()

    def _beat(self) -> None:
        now_s = time.monotonic()
        silent_s, self._beat_s = now_s - self._beat_s, now_s
        if silent_s <= BLOCK_S:
            return
        self.blocks += 1
        stack, self._stack = self._stack, []
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            _log.warning(
                "the event loop was blocked", extra={"seconds": round(silent_s, 3), "stack": stack}
            )

    def _watch(self) -> None:
        sleep = get_original("time", "sleep")
        while not self._is_stopped:
            sleep(BEAT_S)
            if time.monotonic() - self._beat_s > BLOCK_S - BEAT_S and not self._stack:
                self._stack = _lines(sys._current_frames().get(self._watched))


def _lines(frame: FrameType | None) -> list[str]:
    """Where the thread is, the innermost call last; without any value."""
    found = traceback.extract_stack(frame, limit=None)[-_FRAMES:] if frame else []
    return [f"{each.filename}:{each.lineno} {each.name}" for each in found]
