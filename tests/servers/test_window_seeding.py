"""A budget window that Redis does not know is seeded from very many records, soon and before it
admits, and nobody else notices.

20 000 records, or 2 million with ``ROUTER_TEST_PROOF=1``, in SQLite and in a real PostgreSQL.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis as redis_library

from tests.fakes.filled_store import Filling, fill
from tests.fakes.redis_server import BINARY, RedisServer, running
from tests.servers.limited_routers import (
    MODEL,
    NANOS_A_TOKEN,
    PATIENT,
    LimitedRouters,
    body,
    budget,
    key,
    limited_routers,
    post,
    secret,
)
from tests.servers.router_process import wait_until
from tests.servers.test_store_postgres import Server, server

__all__ = ["server"]

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

log = logging.getLogger(__name__)

PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))
RECORDS = 2_000_000 if PROOF else 20_000
SEEDS = 25 if PROOF else 8
"""How often a window is lost while another organization is watched."""
SEEDED_WITHIN_S = 2.0
EACH_NANOS = 1_234_567
YEAR_US = 365 * 86_400 * 10**6
TOKENS_OUTPUT = 3
CALL_NANOS = TOKENS_OUTPUT * NANOS_A_TOKEN
FLOOR = {"reservation": {"mode": "floor"}}


@dataclass
class Stand:
    """A router over a store that is full of the records of acme."""

    limited: LimitedRouters
    redis: redis_library.Redis
    filling: Filling
    made: int = 0
    """Calls of acme that were served."""
    took_s: list[float] = field(default_factory=list)
    said: bytes = b""
    """The last answer."""

    @property
    def requests(self) -> int:
        """All that acme ever called."""
        return self.filling.count + self.made

    def apply(self, *budgets: dict[str, Any]) -> None:
        """Give acme these budgets and no others."""
        path = self.limited.router.directory / "document.json"
        document = json.loads(path.read_text())
        for organization in document["organizations"]:
            if organization["id"] == "acme":
                organization["budgets"] = list(budgets)
        applied = self.limited.router.apply(document)
        assert applied.returncode == 0, applied.stderr

    def lose(self) -> None:
        """Redis forgets acme."""
        names = list(self.redis.scan_iter(match="router:{acme}:*", count=1000))
        assert names
        self.redis.delete(*names)

    def call(self) -> int:
        """One call of acme; its status."""
        began_s = time.monotonic()
        answer = post(self.limited.router.port, "of-acme", body())
        self.took_s.append(time.monotonic() - began_s)
        self.made += answer.status == 200
        self.said = answer.body
        return answer.status

    def exactly_one_fits(self) -> None:
        """The budget has room for one call: it is admitted at once, and the next one is not."""
        assert self.call() == 200, self.said
        assert self.took_s[-1] < SEEDED_WITHIN_S, self.took_s
        assert self.call() == 402

    def settled(self) -> dict[str, int]:
        """What the counters of acme's budgets say."""
        states = self.limited.states("of-acme")
        assert not any(state.lost for state in states)
        assert all(state.reserved == 0 for state in states)
        return {state.window.name: state.settled for state in states}


@contextmanager
def standing(directory: Path, redis: RedisServer, url: str, *, workers: int = 1) -> Iterator[Stand]:
    """One worker: whatever blocks it, blocks every call."""
    step_us = YEAR_US // RECORDS
    first_us = int(time.time() * 1e6) - RECORDS * step_us
    filling = Filling("acme", RECORDS, first_us, step_us, EACH_NANOS)
    fill(url, filling)
    unlimited = {"rate_limit": {"requests_per_second": None}}
    organizations = [
        {"id": "acme", **unlimited},
        {"id": "other", **unlimited, "budgets": [budget("spend", "usd", "1000000", **FLOOR)]},
    ]
    keys = [key("of-acme"), key("of-other", "other")]
    settings = {"ROUTER_RECORD_STORE": url, **PATIENT}
    client = redis_library.Redis(unix_socket_path=redis.path, protocol=2)
    with limited_routers(
        directory, redis.url, keys, organizations=organizations, workers=workers, **settings
    ) as limited:
        limited.backend.set(tokens_output=TOKENS_OUTPUT)
        yield Stand(limited, client, filling)
    client.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path / "redis", unix=True) as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'filled.db'}"
    postgres: Server = request.getfixturevalue("server")
    postgres.empty()
    return postgres.url()


def test_a_window_is_seeded_in_time_and_before_it_admits(
    tmp_path: Path, redis: RedisServer, url: str
) -> None:
    """Must show 6, B10: new, renamed, put back, corrected, lost, moved to another time zone. Each
    has room for one call more than what the records say, so it has to know all of them."""
    with standing(tmp_path, redis, url) as stand:

        def counted(name: str, more: int = 1, **changes: Any) -> dict[str, Any]:
            fields = {"limit": stand.requests + more, "period": "total", **changes}
            return budget(name, "requests", **fields)

        spend = budget("spend", "usd", None)
        stand.apply(counted("new"), spend)
        stand.exactly_one_fits()
        nanos = RECORDS * EACH_NANOS + CALL_NANOS
        assert stand.settled() == {"new": RECORDS + 1, "spend": nanos}

        stand.apply(counted("renamed"))
        stand.exactly_one_fits()

        stand.apply()
        assert [stand.call() for _ in range(5)] == [200] * 5
        stand.apply(counted("renamed"))
        stand.exactly_one_fits()
        assert stand.settled() == {"renamed": RECORDS + 8}

        adjust = ("budgets", "adjust", "acme", "renamed", "--amount", "-1", "--reason", "refund")
        assert stand.limited.router.ctl(*adjust).returncode == 0
        stand.exactly_one_fits()
        stand.lose()
        assert stand.call() == 402
        assert stand.settled() == {"renamed": stand.requests - 1}

        for zone in ("UTC", _zone_far_from_midnight()):
            stand.apply(budget("monthly", "requests", 10**9, "monthly", timezone=zone))
            assert stand.call() == 200
            begins = datetime.now(ZoneInfo(zone)).replace(
                day=1, hour=0, minute=0, second=0, microsecond=0
            )
            expected = stand.filling.since(int(begins.timestamp()) * 10**6) + stand.made
            assert stand.settled() == {"monthly": expected}
        log.info("slowest of %d calls: %.3f s", len(stand.took_s), max(stand.took_s))
        assert max(stand.took_s) < SEEDED_WITHIN_S


def _zone_far_from_midnight() -> str:
    """They are 17 hours apart, so that no month begins in both of them at about the same time."""
    hour = datetime.now(ZoneInfo("Asia/Tokyo")).hour
    return "Asia/Tokyo" if 2 <= hour < 22 else "America/Los_Angeles"


class Bystander:
    """Calls of another organization on one connection, with short pauses."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.calls: list[tuple[float, float, int]] = []
        """When each began and ended, and its status."""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"Content-Type": "application/json", "X-API-Key": secret("of-other")}
        while not self._stop.is_set():
            began_s = time.monotonic()
            connection.request("POST", "/v1/inference", json.dumps(body(model=MODEL)), headers)
            reply = connection.getresponse()
            reply.read()
            self.calls.append((began_s, time.monotonic(), reply.status))
            time.sleep(0.005)
        connection.close()

    def beside(self, spans: list[tuple[float, float]]) -> list[float]:
        """How long each call took that ran while one of these spans lasted."""
        found = [
            (ended_s - began_s, status)
            for began_s, ended_s, status in list(self.calls)
            if any(began_s < last_s and first_s < ended_s for first_s, last_s in spans)
        ]
        assert {status for _, status in found} == {200}
        return [took_s for took_s, _ in found]


def spans_of(act: Callable[[], None], times: int) -> list[tuple[float, float]]:
    """Act so often, and say when."""
    spans = []
    for _ in range(times):
        began_s = time.monotonic()
        act()
        spans.append((began_s, time.monotonic()))
        time.sleep(0.05)
    return spans


def compare(before: list[float], during: list[float]) -> None:
    """The same latencies, within what a busy machine makes of them."""
    medians = statistics.median(before), statistics.median(during)
    ratio = medians[1] / medians[0]
    log.info(
        "median %.2f ms before, %.2f ms meanwhile: %.2f; longest %.1f and %.1f ms; %d and %d calls",
        *(medians[0] * 1e3, medians[1] * 1e3, ratio, max(before) * 1e3, max(during) * 1e3),
        *(len(before), len(during)),
    )
    assert ratio < 2.0
    assert max(during) < max(0.25, 3 * max(before))


def test_other_organizations_do_not_notice_that_a_window_is_seeded(
    tmp_path: Path, redis: RedisServer, url: str
) -> None:
    """Must show 6, P7: in one worker, calls of another organization take as long as before."""
    with standing(tmp_path, redis, url) as stand, Bystander(stand.limited.router.port) as other:
        stand.apply(budget("calls", "requests", 10**9), budget("spend", "usd", None))

        def call() -> None:
            assert stand.call() == 200, stand.said

        def call_after_a_loss() -> None:
            stand.lose()
            call()

        call()
        spans_of(call_after_a_loss, 2)  # everything is warm
        before = other.beside(spans_of(call, SEEDS * 12))
        stand.took_s.clear()
        spans = spans_of(call_after_a_loss, SEEDS)
        compare(before, other.beside(spans))
        assert max(stand.took_s) < SEEDED_WITHIN_S
        nanos = RECORDS * EACH_NANOS + stand.made * CALL_NANOS
        assert stand.settled() == {"calls": stand.requests, "spend": nanos}


def test_a_store_that_does_not_answer_harms_only_who_needs_it(
    tmp_path: Path, redis: RedisServer, server: Server
) -> None:
    """P7, P8: a stopped PostgreSQL. The lost window refuses with 503, others are served as before,
    and when the server goes on the window is seeded."""
    server.empty()
    with (
        standing(tmp_path, redis, server.url()) as stand,
        Bystander(stand.limited.router.port) as other,
    ):
        stand.apply(budget("calls", "requests", 10**9))
        assert stand.call() == 200
        before = other.beside(spans_of(lambda: time.sleep(0.2), 5))
        server.halt()
        try:
            stand.lose()
            spans = spans_of(lambda: _is_unavailable(stand), 3)
        finally:
            server.go_on()
        compare(before, other.beside(spans))
        wait_until(lambda: stand.call() == 200, 90.0, "the window is seeded")
        assert stand.settled() == {"calls": stand.requests}


def _is_unavailable(stand: Stand) -> None:
    assert stand.call() == 503
