"""A backend that is faster than the router does not keep the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from router.upstream import transport
from router.upstream.connection_pool import ConnectionPool
from tests.fakes.backend.scripts import answer, reply
from tests.fakes.backend.server import FakeServer
from tests.unit.upstream.builders import begin

SIZE = 2 * 1024 * 1024


def test_other_calls_get_a_turn(
    serve: Callable[..., FakeServer],
    pool_to: Callable[..., ConnectionPool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It rests after each 64 KiB, and for more than 0 s: gevent looks at no socket for less."""
    exchange = begin(pool_to(serve(answer(reply(b"x" * SIZE)))))
    rests: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(transport.time, "sleep", lambda s: (rests.append(s), sleep(s)))
    assert len(exchange.read_all(SIZE)) == SIZE
    # A read may bring up to 32 KiB more than what a turn is long.
    assert len(rests) >= SIZE // (96 * 1024)
    assert min(rests) > 0
