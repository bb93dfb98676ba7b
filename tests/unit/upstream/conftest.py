"""Live servers and pools that are closed, and found in order, after each test."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from router.upstream import session as module
from router.upstream.connection_pool import ConnectionPool
from router.upstream.session import BackendSession
from tests.fakes.backend.server import FakeServer, Script
from tests.unit.upstream.builders import NO_TLS, new_pool


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    """Start servers that play the given scripts."""
    servers: list[FakeServer] = []

    def start(*scripts: Script, **options: Any) -> FakeServer:
        server = FakeServer(*scripts, **options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def pool_to() -> Iterator[Callable[..., ConnectionPool]]:
    """Make pools; a slot that is still taken when the test is over was leaked."""
    pools: list[ConnectionPool] = []

    def make(server: FakeServer, **options: Any) -> ConnectionPool:
        pool = new_pool(server.endpoint, **options)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()
    assert [pool.in_use for pool in pools] == [0] * len(pools)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[BackendSession]:
    """A worker's session with room for a few connections to each backend."""
    # Reading all the authorities anew would take most of a test's time.
    monkeypatch.setattr(module, "trusted_context", lambda: NO_TLS)
    opened = BackendSession(pool_size=4, idle_s=30.0)
    yield opened
    opened.close()
    taken = [pool.in_use for pool in opened.transport._pools.values()]
    assert taken == [0] * len(taken)


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that answers no attempt to connect: its queue of connections is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return int(gone.getsockname()[1])
