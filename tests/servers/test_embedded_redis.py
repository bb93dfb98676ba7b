"""The private Redis of a router that was given none: one server, for as long as anybody uses it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.config.settings import load_settings
from router.redis.embedded.embedded_redis import redis_address
from tests.fakes.redis_server import BINARY
from tests.servers.router_process import (
    RouterProcess,
    children,
    clean_environment,
    free_port,
    is_running,
    wait_until,
)

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

END_S = 10.0
START_S = 30.0
BACK_S = 5.0
DOCUMENT = {"version": 1, "organizations": [{"id": "acme"}]}


def servers(router: RouterProcess) -> list[int]:
    """The redis-servers whose socket is in this router's data directory."""
    wanted = os.fsencode(redis_socket(router))
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # Redis writes what it listens on into its title.
            title = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if title.split(b" ")[0].endswith((b"redis-server", b"valkey-server")) and wanted in title:
            found.append(int(entry.name))
    return found


def guards(router: RouterProcess) -> list[int]:
    """Whoever watches over those servers."""
    wanted = os.fsencode(router.data_dir / "redis" / "redis.users")
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and wanted in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def redis_socket(router: RouterProcess) -> str:
    path = redis_address(load_settings(router.settings)).path
    assert path is not None
    return path


def ask(router: RouterProcess, *command: str) -> str:
    """The reply to one command, as it is on the wire."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(2.0)
        sock.connect(redis_socket(router))
        parts = "".join(f"${len(part)}\r\n{part}\r\n" for part in command)
        sock.sendall(f"*{len(command)}\r\n{parts}".encode())
        return sock.recv(65536).decode()


def answers(router: RouterProcess) -> bool:
    try:
        return ask(router, "PING") == "+PONG\r\n"
    except OSError:
        return False


@pytest.fixture
def router(tmp_path: Path) -> Iterator[RouterProcess]:
    made = RouterProcess(tmp_path)
    yield made
    made.kill()
    wait_until(lambda: not servers(made) and not guards(made), END_S, "no Redis is left behind")


def test_it_begins_and_ends_with_the_router(router: RouterProcess) -> None:
    """One server from before the first worker until after the last, and its data is kept."""
    router.start(DOCUMENT)
    assert len(servers(router)) == len(guards(router)) == 1
    assert ask(router, "SET", "kept", "1") == "+OK\r\n"
    assert "noeviction" in ask(router, "CONFIG", "GET", "maxmemory-policy")
    assert router.stop() == 0
    assert servers(router) == guards(router) == []

    router.start()
    assert ask(router, "GET", "kept") == "$1\r\n1\r\n"
    assert (router.data_dir / "redis").stat().st_mode & 0o077 == 0
    assert router.faults() == []


def test_a_reload_keeps_it(router: RouterProcess) -> None:
    """HUP replaces the workers and nothing else."""
    router.start(DOCUMENT)
    before, workers = servers(router), router.worker_pids()
    router.signal(signal.SIGHUP)
    wait_until(
        lambda: not set(workers) & set(router.worker_pids()) and len(router.worker_pids()) == 2,
        START_S,
        "other workers",
    )
    assert servers(router) == before
    assert answers(router)


def test_an_upgrade_keeps_it(router: RouterProcess) -> None:
    """USR2: the new master uses the same server, which outlives the old one."""
    # As `python -m gunicorn` it cannot execute itself again.
    router.program = (str(Path(sys.executable).with_name("gunicorn")),)
    router.start(DOCUMENT)
    before, old = servers(router), router.worker_pids()
    router.signal(signal.SIGUSR2)
    wait_until(lambda: len(router.worker_pids()) > len(old), START_S, "another master")
    [new] = set(router.worker_pids()) - set(old)
    wait_until(lambda: len(children(new)) >= 2, START_S, "its workers")
    try:
        assert router.stop() == 0
        time.sleep(0.5)
        assert servers(router) == before
        assert answers(router)
    finally:
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not is_running(new), END_S * 5, "the new master ends")
    wait_until(lambda: servers(router) == [], END_S, "Redis ends with it")


def test_it_ends_when_the_master_was_killed(router: RouterProcess) -> None:
    """kill -9 of the master: the workers go, and with the last of them the server."""
    router.start(DOCUMENT)
    assert ask(router, "SET", "kept", "2") == "+OK\r\n"
    workers = router.worker_pids()
    os.kill(router.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, workers)), END_S * 2, "the workers go")
    wait_until(lambda: servers(router) == [], END_S, "Redis ends")
    router.wait()

    router.start()
    assert ask(router, "GET", "kept") == "$1\r\n2\r\n"
    assert len(servers(router)) == 1


def test_a_restart_while_the_old_router_ends(router: RouterProcess, tmp_path: Path) -> None:
    """The new router does not wait for the old one's drain: both use one server."""
    router.start(DOCUMENT)
    before = servers(router)
    worker = router.worker_pids()[0]
    os.kill(worker, signal.SIGSTOP)  # it takes its time to drain
    router.signal(signal.SIGTERM)
    other = RouterProcess(tmp_path / "other", environment={"ROUTER_DATA_DIR": str(router.data_dir)})
    try:
        other.start()
        assert is_running(router.pid), "the old router has ended too early for this test"
        assert servers(router) == before
        os.kill(worker, signal.SIGCONT)
        assert router.wait() == 0
        assert servers(router) == before
        assert answers(router)
        assert other.stop() == 0
        assert servers(router) == []
    finally:
        other.kill()


@pytest.mark.parametrize("victim", ["server", "guard"])
def test_one_that_dies_comes_back(router: RouterProcess, victim: str) -> None:
    """A worker starts another; what was written to disk is still there."""
    router.start(DOCUMENT)
    assert ask(router, "SET", "kept", "3") == "+OK\r\n"
    time.sleep(1.5)  # appendfsync everysec
    [dead] = servers(router) if victim == "server" else guards(router)
    [server] = servers(router)
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: servers(router) not in ([], [server]), BACK_S, "another server")
    wait_until(lambda: answers(router), BACK_S, "it answers")
    assert ask(router, "GET", "kept") == "$1\r\n3\r\n"
    assert len(servers(router)) == len(guards(router)) == 1
    wait_until(
        lambda: any("started again" in line["event"] for line in router.log()), 2, "a line of it"
    )


def test_a_router_without_any_redis_serves(router: RouterProcess) -> None:
    """None can be started: one clear line, and the behaviour that is configured for Redis away."""
    (router.data_dir / "redis").mkdir(parents=True)
    (router.data_dir / "redis" / "appendonlydir").write_text("not a directory")
    router.start(DOCUMENT)
    lines = [line for line in router.faults() if "Redis" in line["event"]]
    assert len(lines) == 1
    assert "redis.log" in lines[0]["event"]
    assert router.request("GET", "/healthz").status == 200


def test_two_commands_share_the_gateways_server(router: RouterProcess) -> None:
    """The budget service beside a gateway uses the same server, and leaves it when it ends."""
    router.start(DOCUMENT)
    before = servers(router)
    settings = {**router.settings, "BUDGET_SERVICE_BIND": f"127.0.0.1:{free_port()}"}
    service = subprocess.Popen(
        [sys.executable, "-m", "router.cli.main", "budget-service"],
        env=clean_environment(settings),
        stdout=subprocess.PIPE,
    )
    try:
        assert service.stdout is not None
        assert any(b"budget service on" in line for line in service.stdout)
        assert servers(router) == before
        assert router.stop() == 0
        assert servers(router) == before
    finally:
        service.terminate()
        service.communicate(timeout=15)
    assert service.returncode == 0
    assert servers(router) == []
