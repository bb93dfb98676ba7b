"""The embedded Redis: comes up, keeps its data, ends with whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from router.limits.address import parse_address
from router.limits.connection import ConnectionOptions
from router.limits.embedded import EmbeddedRedisError, running_url, start_embedded
from router.limits.redis_client import RedisClient
from tests.fakes.redis_server import BINARY

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

ROOT = Path(__file__).resolve().parents[2]


def ask(url: str, *command: str) -> object:
    client = RedisClient(parse_address(url), ConnectionOptions(timeout_s=5))
    try:
        return client.command(*command)
    finally:
        client.close()


def is_gone(url: str) -> bool:
    give_up_s = time.monotonic() + 10
    while time.monotonic() < give_up_s:
        try:
            ask(url, "PING")
        except Exception:
            return True
        time.sleep(0.02)
    return False


def test_it_keeps_its_data(tmp_path: Path) -> None:
    """Budgets survive a restart of the router; while it runs, the command line finds it."""
    first = start_embedded(tmp_path)
    assert first.engine == "redis-server"
    assert running_url(tmp_path) == first.url
    ask(first.url, "SET", "k", "v")
    first.stop()
    assert not first.is_running
    assert running_url(tmp_path) is None
    second = start_embedded(tmp_path)
    assert ask(second.url, "GET", "k") == b"v"
    second.stop()


def test_it_never_evicts(tmp_path: Path) -> None:
    """D10: one eviction would be a free budget."""
    embedded = start_embedded(tmp_path)
    client = RedisClient(parse_address(embedded.url), ConnectionOptions(timeout_s=5))
    assert client.eviction_policy() == "noeviction"
    client.close()
    embedded.stop()


def test_it_ends_with_a_router_that_was_killed(tmp_path: Path) -> None:
    """kill -9 leaves no server behind, and the next router starts on the same data."""
    program = (
        "import sys, time; from pathlib import Path;"
        "from router.limits.embedded import start_embedded;"
        "print(start_embedded(Path(sys.argv[1])).url, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=ROOT,
    )
    with starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip().decode()
        assert ask(url, "PING") == b"PONG"
        starter.send_signal(signal.SIGKILL)
    assert is_gone(url)
    start_embedded(tmp_path).stop()


def test_a_server_that_cannot_start_is_told_at_once(tmp_path: Path) -> None:
    """It used to take ten seconds: its guard went on waiting for us."""
    (tmp_path / "appendonlydir").write_text("not a directory")
    begun_s = time.monotonic()
    with pytest.raises(EmbeddedRedisError, match="does not start"):
        start_embedded(tmp_path, engines=("redis-server",))
    assert time.monotonic() - begun_s < 5


def test_a_server_that_died_is_seen(tmp_path: Path) -> None:
    """`is_running` is about the server, not about its guard."""
    embedded = start_embedded(tmp_path)
    with pytest.raises(Exception, match="redis"):
        ask(embedded.url, "SHUTDOWN", "NOSAVE")
    give_up_s = time.monotonic() + 5
    while embedded.is_running:
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
    embedded.stop()
