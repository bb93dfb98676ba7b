"""`routerctl budget-service` as an operator runs it: real Redis, real sockets, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.config.loader import load_serialized
from router.config.state.state_writer import StateWriter
from router.limits.budgets.windows import Amounts, Denied, NotReserved, Reservation, WindowSpec
from router.limits.remote.budget_client import BudgetClient
from router.limits.remote.budget_session import BudgetSession
from router.store.record_store import RecordStore
from tests.fakes.redis_server import BINARY, RedisServer, free_port
from tests.servers.router_process import clean_environment, run_routerctl, wait_until

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

TOKEN = "token-of-these-tests"
START_S = 20.0
DOCUMENT = {
    "version": 1,
    "organizations": [
        {
            "id": "acme",
            "budgets": [{"name": "spend", "unit": "usd", "period": "daily", "limit": "0.000001"}],
        }
    ],
    "keys": [
        {
            "id": "k1",
            "organization": "acme",
            "hash": "ab" * 32,
            "budgets": [{"name": "calls", "unit": "requests", "period": "total", "limit": 3}],
        }
    ],
}
SPEND = WindowSpec("spend", "usd", "daily", 1000, thresholds=(80, 95))


class Program:
    """The service as a process of its own."""

    def __init__(self, data_dir: Path, redis: str, *options: str, **environ: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {
            "ROUTER_DATA_DIR": str(data_dir),
            "RATE_LIMIT_REDIS_ADDR": redis,
            "BUDGET_SERVICE_BIND": f"127.0.0.1:{self.port}",
            "BUDGET_SERVICE_TOKEN": TOKEN,
            # A busy machine is not what is tested here.
            "ROUTER_REDIS_TIMEOUT": "1s",
            **environ,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "router.cli.main", "budget-service", *options],
            env=clean_environment(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.client = BudgetClient(self.url, BudgetSession(timeout_s=5, token=TOKEN))

    def get(self, path: str) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.url + path, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answered:
                return answered.status, json.load(answered)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            assert self.process.poll() is None, self.process.communicate()[0].decode()
            return 0, None

    def reserve(self, lease: str, cost: int = 100, windows: Any = (SPEND,), **more: Any) -> Any:
        return self.client.reserve("acme", lease, windows, Amounts(cost, 1), ttl_ms=60_000, **more)

    def signal_workers(self, number: int) -> None:
        pid = self.process.pid
        for worker in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(worker), number)

    def stop(self) -> tuple[int, str]:
        self.client.close()
        self.process.terminate()
        output, _ = self.process.communicate(timeout=15)
        return self.process.returncode, output.decode()


@contextlib.contextmanager
def serving(*facts: Any, **more: Any) -> Iterator[Program]:
    program = Program(*facts, **more)
    try:
        wait_until(lambda: program.get("/healthz")[0] == 200, START_S, "the service answers")
        yield program
    finally:
        program.client.close()
        if program.process.poll() is None:
            program.process.kill()
            program.process.communicate()


def test_it_serves_until_it_is_told_to_end(tmp_path: Path, redis: RedisServer) -> None:
    """B1: as many as fit, of 60 at once; TERM ends it with 0, and what was held is in Redis."""
    with serving(tmp_path, redis.url, "--no-records") as program:
        outcomes: list[Any] = []
        threads = [
            threading.Thread(target=lambda n=n: outcomes.append(program.reserve(f"lease {n}")))
            for n in range(60)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert [type(outcome) for outcome in outcomes].count(Reservation) == 10
        assert [type(outcome) for outcome in outcomes].count(Denied) == 50
        code, output = program.stop()
    assert (code, "Traceback" in output) == (0, False), output
    with serving(tmp_path, redis.url, "--no-records") as program:
        [state] = program.client.read("acme", (SPEND,))
        assert (state.settled, state.reserved) == (0, 1000)


def test_it_knows_the_document_of_its_data_directory(tmp_path: Path, redis: RedisServer) -> None:
    """Whoever sends no windows is held to those; B17: and sees them."""
    StateWriter(tmp_path / "state").apply(load_serialized(DOCUMENT))
    with serving(tmp_path, redis.url, "--no-records") as program:
        held = program.reserve("a", 400, windows=(), key_id="k1")
        assert [entry.window.name for entry in held.windows] == ["spend", "calls"]
        program.client.settle(held, Amounts(950, 1))
        denied = program.reserve("b", windows=(), key_id="k1")
        assert denied.binding.window.name == "spend"
        status, found = program.get("/v1/budget/windows?organization_id=acme&key_id=k1")
        figures = [(row["name"], row["settled"], row["limit"]) for row in found["windows"]]
        assert (status, figures) == (200, [("spend", 950, 1000), ("calls", 1, 3)])
        assert program.get("/v1/budget/windows?organization_id=acme&key_id=k2")[0] == 404


def test_without_records_that_can_be_asked_nothing_is_admitted(
    tmp_path: Path, redis: RedisServer
) -> None:
    """B3: a window that Redis does not know is not begun at 0 by accident. An empty store is one
    that knows of nothing; the service asks it again after the pause of its breaker."""
    with serving(tmp_path, redis.url) as program:
        with pytest.raises(NotReserved):
            program.reserve("a")
        with RecordStore(f"sqlite:///{tmp_path / 'records.db'}") as store:
            store.migrate()

        def is_reserved() -> bool:
            try:
                return isinstance(program.reserve("b"), Reservation)
            except NotReserved:
                return False

        wait_until(is_reserved, 5, "the store is asked again")


def test_redis_that_is_away_is_told_and_comes_back(tmp_path: Path, redis: RedisServer) -> None:
    """P9: paused, the service answers 503 in time; resumed, it goes on by itself."""
    with serving(tmp_path, redis.url, "--no-records", ROUTER_REDIS_TIMEOUT="100ms") as program:
        assert isinstance(program.reserve("a"), Reservation)
        redis.pause()
        started_s = time.monotonic()
        with pytest.raises(NotReserved, match="answered 503"):
            program.reserve("b")
        assert time.monotonic() - started_s < 1.0
        assert program.get("/readyz")[0] == 503
        assert program.get("/healthz")[0] == 200
        redis.resume()
        wait_until(lambda: program.get("/readyz")[0] == 200, 5, "redis is found back")
        wait_until(lambda: program.client.breaker.state == "closed", 5, "calls go on")
        assert isinstance(program.reserve("c"), Reservation)


def test_a_service_that_hangs_is_away(tmp_path: Path, redis: RedisServer) -> None:
    """BUDGET_SERVICE_TIMEOUT: stopped in its tracks it costs that long, then nothing; and it is
    found again when it goes on."""
    with serving(tmp_path, redis.url, "--no-records") as program:
        client = BudgetClient(program.url, BudgetSession(timeout_s=0.2, token=TOKEN))
        client.check("acme", (SPEND,), Amounts(1, 1))
        program.signal_workers(signal.SIGSTOP)
        try:
            for _ in range(3):
                started_s = time.monotonic()
                with pytest.raises(NotReserved):
                    client.reserve("acme", "a", (SPEND,), Amounts(1, 1), ttl_ms=60_000)
                assert time.monotonic() - started_s < 0.7
            with pytest.raises(NotReserved, match="breaker_open"):
                client.reserve("acme", "a", (SPEND,), Amounts(1, 1), ttl_ms=60_000)
        finally:
            program.signal_workers(signal.SIGCONT)
        wait_until(lambda: client.breaker.state == "closed", 5, "the service is found back")
        client.close()


def exchange(port: int, head: str, body: str) -> tuple[str, dict[str, str], Any]:
    """One request as bytes on a socket: status line, headers and body of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        text = f"{head} HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {TOKEN}\r\n"
        text += f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        connection.sendall(text.encode())
        answered = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, found = answered.decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), json.loads(found)


AMOUNTS = '"amounts": {"cost_nanos": 100, "tokens": 1}'


@pytest.mark.parametrize(
    "caller", ['"organization_id": "other"', '"organization_id": "acme", "key_id": "k2"']
)
def test_an_unknown_caller_gets_404(tmp_path: Path, redis: RedisServer, caller: str) -> None:
    """An unknown organization was once reserved for, without any limit: 200. gunicorn answers."""
    StateWriter(tmp_path / "state").apply(load_serialized(DOCUMENT))
    with serving(tmp_path, redis.url, "--no-records") as program:
        for path, more in (("reserve", ', "lease_id": "a", "ttl_ms": 1000'), ("check", "")):
            status, headers, body = exchange(
                program.port, f"POST /v1/budget/{path}", f"{{{caller}, {AMOUNTS}{more}}}"
            )
            assert (status, body["code"]) == ("HTTP/1.1 404 NOT FOUND", "UNKNOWN_ORGANIZATION")
            assert headers["Server"] == "router"


def start_off_loopback(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    settings = {"ROUTER_DATA_DIR": str(tmp_path), "BUDGET_SERVICE_BIND": f"0.0.0.0:{free_port()}"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        env=clean_environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_token_it_starts_on_loopback_only(tmp_path: Path) -> None:
    """Anybody who reached it could change budgets; also when gunicorn is started by hand."""
    by_hand = ("gunicorn", "-c", "python:router.budget_service.serving")
    refused = start_off_loopback(tmp_path, "router.cli.main", "budget-service")
    assert refused.returncode == 2
    assert "Error: BUDGET_SERVICE_TOKEN: must be set" in refused.stderr
    refused = start_off_loopback(tmp_path, *by_hand)
    assert refused.returncode != 0
    assert "BUDGET_SERVICE_TOKEN: must be set" in refused.stderr


def test_its_changes_are_in_the_audit_trail(tmp_path: Path, redis: RedisServer) -> None:
    """Shipped like every other event, and the trail verifies."""
    StateWriter(tmp_path / "state").apply(load_serialized(DOCUMENT))

    def routerctl(*arguments: str) -> str:
        settings = {"ROUTER_DATA_DIR": str(tmp_path)}
        done = run_routerctl(*arguments, environment=settings, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with serving(tmp_path, redis.url, "--no-records") as program:
        held = program.reserve("a", 400, windows=(), key_id="k1")
        program.client.settle(held, Amounts(250, 1))
        program.client.release(program.reserve("b", 300))
        assert program.stop()[0] == 0
    file = tmp_path / "trail.jsonl"
    routerctl("spool", "drain")
    routerctl("audit", "export", "--file", str(file))
    routerctl("audit", "verify")
    events = [json.loads(line) for line in file.read_text().splitlines()[:-1]]
    spend, calls = "org::spend:usd:daily", "key:k1:calls:requests:total"
    told = [(event["action"], event["entity_id"], event["after"]["windows"]) for event in events]
    assert sorted(told, key=lambda found: found[1]) == [
        ("BUDGET_RESERVED", "a", {spend: 400, calls: 1}),
        ("BUDGET_SETTLED", "a", {spend: 250, calls: 1}),
        ("BUDGET_RESERVED", "b", {spend: 300}),
        ("BUDGET_RELEASED", "b", {spend: 0}),
    ]
