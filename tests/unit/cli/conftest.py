"""A Redis for commands that read and change counters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from router.redis.address import parse_address
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from tests.fakes.redis_server import BINARY, running


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a real server."""
    if BINARY is None:
        pytest.skip("REDIS-SERVER IS NOT INSTALLED")
    with running(tmp_path_factory.mktemp("redis"), unix=True) as server:
        yield server.url


@pytest.fixture
def client(redis_url: str) -> Iterator[RedisClient]:
    """Of the server, which is empty."""
    address = parse_address(redis_url)
    made = RedisClient(address, ConnectionOptions(login=address.login, timeout_s=5.0))
    made.command("FLUSHALL")
    yield made
    made.close()
