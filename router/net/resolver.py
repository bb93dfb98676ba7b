"""Host names to addresses, remembered for a while and never waited for without a deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from router.net.sockets import LATE_S

Resolve = Callable[[str, float], Sequence[str]]
"""Host and seconds that may pass → addresses, best first."""

FRESH_S: Final = 30.0
"""How long an answer is used before the name is looked up again."""


class Resolver:
    """Caches ``getaddrinfo``; while the name service is unavailable, the last answer serves on."""

    def __init__(self, fresh_s: float = FRESH_S) -> None:
        self._fresh_s = fresh_s
        self._known: dict[str, tuple[float, list[str]]] = {}
        self._lookups: dict[str, threading.Event] = {}

    def resolve(self, host: str, timeout_s: float) -> list[str]:
        """Addresses of ``host``, best first; empty when there are none within ``timeout_s``."""
        known = self._known.get(host)
        if known is not None and time.monotonic() - known[0] < self._fresh_s:
            return known[1]
        if _is_address(host):
            self._known[host] = (float("inf"), [host])
            return [host]
        done = self._start_lookup(host)
        if known is None or not known[1]:
            done.wait(timeout_s) or done.wait(LATE_S)  # the loop may be busy, not the lookup slow
        known = self._known.get(host, known)
        return known[1] if known is not None else []

    def _start_lookup(self, host: str) -> threading.Event:
        """Look ``host`` up beside the caller, once for all who wait for it."""
        done = self._lookups.get(host)
        if done is None:
            done = self._lookups[host] = threading.Event()
            threading.Thread(target=self._look_up, args=(host, done), daemon=True).start()
        return done

    def _look_up(self, host: str, done: threading.Event) -> None:
        try:
            self._known[host] = (time.monotonic(), system_resolve(host))
        except (OSError, UnicodeError):  # the latter for what cannot be a host name at all
            stale = self._known.get(host)
            if stale is not None:  # keep what worked, and look it up again in a while
                self._known[host] = (time.monotonic(), stale[1])
        finally:
            del self._lookups[host]
            done.set()


def system_resolve(host: str, _timeout_s: float = 0.0) -> list[str]:
    """The addresses that the system knows, however long it takes: a :class:`Resolver` bounds it.

    Raises ``OSError``, or ``UnicodeError`` for what cannot be a host name.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False
