"""A connection that is not made in time raises ``Unavailable``, whatever the library raises."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.breaker import Unavailable
from router.redis.address import parse_address
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions


@pytest.fixture
def listener() -> Iterator[str]:
    """A unix socket behind which nobody answers."""
    with (
        tempfile.TemporaryDirectory(prefix="rt-") as folder,
        socket.socket(socket.AF_UNIX) as server,
    ):
        path = str(Path(folder) / "s")
        server.bind(path)
        server.listen()
        yield path


@pytest.mark.parametrize("timeout_s", [1e-9, 0.01])
def test_a_unix_socket_that_does_not_answer_in_time(listener: str, timeout_s: float) -> None:
    """D1: also where the deadline has passed before the library begins, which once was a defect."""
    client = RedisClient(
        parse_address(f"unix://{listener}"), ConnectionOptions(timeout_s=timeout_s)
    )
    with pytest.raises(Unavailable):
        client.command("PING")
    client.close()
