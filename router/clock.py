"""Time as a value that can be injected."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


class Clock:
    """Tells the time of this host: wall clock for records, monotonic clock for durations."""

    __slots__ = ()

    def now_s(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""
        return time.monotonic()


@dataclass
class FrozenClock(Clock):
    """A clock that stands still until a test moves it."""

    wall_s: float = 1_800_000_000.0
    mono_s: float = field(default=1_000.0)

    def now_s(self) -> float:
        return self.wall_s

    def monotonic_s(self) -> float:
        return self.mono_s

    def advance(self, seconds: float) -> None:
        """Move both clocks forward by ``seconds``."""
        self.wall_s += seconds
        self.mono_s += seconds
