"""Clients that call and call again, on connections that they keep, and note what they got."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 15.0
CALLS_A_CONNECTION = 40
"""Enough to keep connections alive, few enough to meet every worker soon."""


@dataclass(frozen=True)
class Result:
    """One call: when it began and ended, and its status, or what broke instead."""

    request_id: str
    started_s: float
    ended_s: float
    status: int = 0
    error: str | None = None
    fresh: bool = True
    """Whether it was the first call on its connection."""


@dataclass
class Load:
    """What the clients have met so far; safe to read while they go on."""

    results: list[Result] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def since(self, moment_s: float) -> list[Result]:
        """Calls that began after a moment of the monotonic clock."""
        return [result for result in list(self.results) if result.started_s > moment_s]


@contextmanager
def running_load(
    port: int, call: Callable[[str], tuple[str, Any, dict[str, str]]], *, clients: int, name: str
) -> Iterator[Load]:
    """`clients` threads that call until the block ends.

    ``call`` makes path, body and headers of the call with a given id.
    """
    load = Load()
    numbers = itertools.count()
    threads = [
        threading.Thread(target=_client, args=(load, port, call, numbers, name))
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stopping.set()
        for thread in threads:
            thread.join()


def _client(
    load: Load,
    port: int,
    call: Callable[[str], tuple[str, Any, dict[str, str]]],
    numbers: Iterator[int],
    name: str,
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    served = itertools.count(1)
    while not load.stopping.is_set():
        request_id = f"{name}-{next(numbers)}"
        load.results.append(_call(connection, request_id, *call(request_id)))
        broken = load.results[-1].error is not None
        if broken or next(served) % CALLS_A_CONNECTION == 0:
            connection.close()
        if broken:
            time.sleep(0.01)
    connection.close()


def _call(
    connection: http.client.HTTPConnection,
    request_id: str,
    path: str,
    fields: Any,
    headers: dict[str, str],
) -> Result:
    fresh, started_s = connection.sock is None, time.monotonic()
    sent = {"Content-Type": "application/json", "X-Request-ID": request_id, **headers}
    try:
        connection.request("POST", path, json.dumps(fields).encode(), sent)
        reply = connection.getresponse()
        reply.read()
    except (OSError, http.client.HTTPException) as error:
        ended_s, what = time.monotonic(), type(error).__name__
        return Result(request_id, started_s, ended_s, error=what, fresh=fresh)
    return Result(request_id, started_s, time.monotonic(), reply.status, fresh=fresh)
