"""Circuit breaker: nobody asks a dependency that fails until a probe finds that it is back."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final, Literal

logger = logging.getLogger(__name__)

State = Literal["closed", "open", "half_open"]
Reason = Literal["connect", "timeout", "lost", "pool_wait", "script", "topology", "breaker_open"]

NOT_SENT: Final = frozenset({"breaker_open", "connect", "pool_wait"})
"""Reasons that mean: the dependency never got the request, so there is nothing to undo."""

FAILURES: Final = 3
"""So many failures in a row open the breaker; a success in between starts the count again."""

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 1.0
JITTER: Final = 0.25


class Unavailable(Exception):
    """The dependency was not asked, or gave no usable answer."""

    def __init__(self, name: str, reason: Reason, detail: str = "", *, counts: bool = True) -> None:
        super().__init__(f"{name}: {reason}" + (f" ({detail})" if detail else ""))
        self.name = name
        self.reason = reason
        self.detail = detail
        self.counts = counts
        """Whether a breaker counts it: not where another caller reports the very same failure, nor
        where the dependency itself is well."""


class Refused(Unavailable):
    """The dependency refuses this request for good, so that asking again is of no use."""


class Breaker:
    """Opens after some failures in a row, and closes when a probe succeeds; logs one line each.

    While it is open, calls are refused at once. ``probe`` runs in a thread of its own after pauses
    that double up to ``LONGEST_PAUSE_S``, with jitter so that many workers do not come back in the
    same moment; it raises while the dependency is unavailable. So no call pays for finding out.
    Without a ``probe``, the breaker lets one call through after each pause, which decides (half
    open).

    ``on_change`` is called with ``"open"`` and ``"closed"``, once each for every outage.
    """

    def __init__(
        self,
        name: str,
        *,
        probe: Callable[[], None] | None = None,
        failures: int = FAILURES,
        on_change: Callable[[str, State], None] | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.state: State = "closed"
        self._probe = probe
        self._failures_to_open = failures
        self._on_change = on_change
        self._monotonic_s = monotonic_s
        self._jitter = jitter
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._opened_s = 0.0
        self._next_try_s = 0.0
        self._unavailable_s = 0.0
        self._lock = threading.Lock()
        self._stopped = False
        self._wake = threading.Event()

    @property
    def unavailable_s(self) -> float:
        """Seconds that the dependency was unavailable, all outages of this process together."""
        if self.state == "closed":
            return self._unavailable_s
        return self._unavailable_s + self._monotonic_s() - self._opened_s

    def allows(self) -> bool:
        """Whether the caller may ask the dependency now. It must report how that went."""
        if self.state == "closed":
            return True
        if self._probe is not None:
            return False
        with self._lock:
            now_s = self._monotonic_s()
            if now_s < self._next_try_s:
                return False
            # Should this call never report, another one may try after the same pause.
            self._next_try_s = now_s + self._longer_pause_s()
            self.state = "half_open"
            return True

    def succeeded(self) -> None:
        """The dependency answered."""
        if self._failures == 0:
            return
        with self._lock:
            # A call from before the outage may still succeed. Only a probe, or the one call that
            # was let through, closes the breaker again.
            if self.state == "closed":
                self._failures = 0
            if self.state != "half_open":
                return
            unavailable_s = self._closed()
        self._announce("closed", unavailable_s=round(unavailable_s, 3))

    def failed(self, reason: Reason, detail: str = "") -> None:
        """The dependency gave no usable answer."""
        with self._lock:
            self._failures += 1
            if self.state == "half_open":
                self.state = "open"
            if self.state == "open" or self._failures < self._failures_to_open:
                return
            self._opened_s = self._monotonic_s()
            self._pause_s = FIRST_PAUSE_S
            self._next_try_s = self._opened_s + self._jittered_s()
            self.state = "open"
        self._announce("open", reason=reason, detail=detail)
        if self._probe is not None:
            threading.Thread(
                target=self._probe_until_back,
                args=(self._probe,),
                name=f"{self.name}-probe",
                daemon=True,
            ).start()

    def stop(self) -> None:
        """End the probes; the breaker keeps its state."""
        self._stopped = True
        self._wake.set()

    def probe_now(self) -> None:
        """End the pause before the next probe, if there is one: the dependency may be back."""
        if self.state == "open":
            self._wake.set()

    def _probe_until_back(self, probe: Callable[[], None]) -> None:
        pause_s = self._jittered_s()
        while True:
            self._wake.wait(pause_s)
            self._wake.clear()
            if self._stopped:
                return
            try:
                probe()
            except Exception:
                pause_s = self._longer_pause_s()
                continue
            with self._lock:
                unavailable_s = self._closed()
            self._announce("closed", unavailable_s=round(unavailable_s, 3))
            return

    def _closed(self) -> float:
        unavailable_s = self._monotonic_s() - self._opened_s
        self._unavailable_s += unavailable_s
        self._failures = 0
        self.state = "closed"
        return unavailable_s

    def _longer_pause_s(self) -> float:
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)
        return self._jittered_s()

    def _jittered_s(self) -> float:
        return self._pause_s * (1 - JITTER + 2 * JITTER * self._jitter())

    def _announce(self, state: State, **facts: object) -> None:
        logger.warning("%s breaker %s", self.name, state, extra={"breaker": self.name, **facts})
        if self._on_change is not None:
            self._on_change(self.name, state)
