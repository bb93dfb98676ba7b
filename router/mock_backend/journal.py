"""What a mock backend has seen: the latest requests and a few counts."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from router.mock_backend.received import ReceivedRequest

KEPT_REQUESTS = 200


@dataclass(frozen=True)
class Stats:
    """Counts since the start or the last reset; `in_flight` and `connections_open` are of now.

    `requests` counts by path, unknown paths together under `other`. `aborted` counts clients that
    left before they had their whole answer, `malformed` requests that were no HTTP or ended early.
    Calls to the control paths are in none of them.
    """

    connections_accepted: int = 0
    connections_open: int = 0
    in_flight: int = 0
    aborted: int = 0
    malformed: int = 0
    requests: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Return the number of requests on all paths."""
        return sum(self.requests.values())

    def as_record(self) -> dict[str, Any]:
        """Return the counts as JSON can carry them."""
        return dataclasses.asdict(self)


class Journal:
    """Counts events and keeps the latest requests; safe for use by many threads."""

    def __init__(self, known_paths: frozenset[str]) -> None:
        self._known_paths = known_paths
        self._changed = threading.Condition()
        self._counts: Counter[str] = Counter()
        self._paths: Counter[str] = Counter()
        self._requests: deque[ReceivedRequest] = deque(maxlen=KEPT_REQUESTS)

    def count(self, name: str, change: int = 1) -> None:
        """Move one of the counts of `Stats`."""
        with self._changed:
            self._counts[name] += change
            self._changed.notify_all()

    @contextmanager
    def answering(self, request: ReceivedRequest) -> Iterator[None]:
        """Keep a request and count it as in flight until it is dealt with."""
        path = request.path if request.path in self._known_paths else "other"
        with self._changed:
            self._requests.append(request)
            self._paths[path] += 1
            self._counts["in_flight"] += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            self.count("in_flight", -1)

    def requests(self) -> list[ReceivedRequest]:
        """Return the latest requests, the oldest first."""
        with self._changed:
            return list(self._requests)

    def forget_requests(self) -> int:
        """Drop the kept requests and return how many there were."""
        with self._changed:
            forgotten = len(self._requests)
            self._requests.clear()
            return forgotten

    def reset(self) -> None:
        """Drop the kept requests and set to zero whatever is not a count of now."""
        with self._changed:
            self._requests.clear()
            self._paths.clear()
            for name in ("connections_accepted", "aborted", "malformed"):
                self._counts[name] = 0
            self._changed.notify_all()

    def stats(self) -> Stats:
        """Return the counts."""
        with self._changed:
            return self._stats()

    def wait_for(self, condition: Callable[[Stats], bool], timeout_s: float) -> Stats:
        """Return the counts as soon as they meet a condition; TimeoutError when they do not."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self._stats()), timeout_s):
                raise TimeoutError(f"after {timeout_s:g} s still {self._stats()}")
            return self._stats()

    def _stats(self) -> Stats:
        return Stats(**self._counts, requests=dict(self._paths))
