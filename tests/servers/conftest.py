"""One router for all tests that do not end it; whoever does starts another. Redis the same way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.redis_server import RedisServer, running
from tests.servers.deployment import Deployment, deploy


@pytest.fixture(scope="session")
def shared_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two workers with default settings, for the whole run."""
    with deploy(tmp_path_factory.mktemp("router")) as deployment:
        yield deployment
        router = deployment.router
        assert router.faults() == [], "the router logged errors"
        assert router.leaks() == [], "K6: a secret was written down"
        assert router.stop() == 0


@pytest.fixture
def deployed(shared_deployment: Deployment) -> Deployment:
    """The shared router, its backends as new."""
    shared_deployment.reset()
    return shared_deployment


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Empty when the tests of a module begin."""
    with running(tmp_path_factory.mktemp("redis"), unix=True) as server:
        yield server


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Empty, and this test's own: it may stop it."""
    with running(tmp_path / "redis", unix=True) as server:
        yield server
