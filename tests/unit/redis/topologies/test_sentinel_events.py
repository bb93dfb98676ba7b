"""The threads that listen to sentinels end when they are told to, whatever they wait for."""

from __future__ import annotations

import threading
import time

import pytest

from router.redis.address import Credentials, RedisAddress
from router.redis.connection import ConnectionOptions
from router.redis.topologies.sentinel_events import SentinelEvents
from tests.fakes.scripted_redis import ScriptedRedis


def listeners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sentinel-events"]


@pytest.mark.parametrize("answer", [b"*3\r\n$9\r\nsub", b"+OK\r\n", b"-NOPERM no\r\n", None])
@pytest.mark.parametrize("login", [Credentials(), Credentials(password="secret")])
def test_closing_ends_a_listener(answer: bytes | None, login: Credentials) -> None:
    """Neither a part of a message nor silence, nor a login without an answer, keeps it; and what
    arrives at that moment does not make the thread fail, which pytest would report."""
    sentinel = ScriptedRedis(lambda _command: answer)
    address = RedisAddress("sentinel", (("127.0.0.1", sentinel.port),), service="mymaster")
    for delay_us in range(0, 400, 20):
        events = SentinelEvents(
            address,
            ConnectionOptions(login=login),
            on_event=lambda _event, _server: None,
            on_return=lambda: None,
        )
        before = set(listeners())
        events.listen()
        time.sleep(delay_us / 1e6)
        events.close()
        for listener in set(listeners()) - before:
            listener.join(3)  # one that connects just then waits for a second
            assert not listener.is_alive()
    sentinel.close()
