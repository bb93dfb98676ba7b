"""Rate limits without Redis while workers are recycled and killed: a slot has one share, whoever
works in it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.limited_routers import LimitedRouters, body, key, limited_routers, post, rate
from tests.servers.router_process import children, free_port

WORKERS = 2
RATE, BURST = 1, 60
MAX_REQUESTS = 25
SUCCESSORS = 5
GIVE_UP_S = 90.0


@pytest.fixture
def without_redis(tmp_path: Path) -> Iterator[LimitedRouters]:
    """Nothing listens where Redis is said to be."""
    with limited_routers(
        tmp_path,
        f"redis://127.0.0.1:{free_port()}",
        [key("metered", rate_limit=rate(RATE, BURST))],
        workers=WORKERS,
        ROUTER_MAX_REQUESTS=str(MAX_REQUESTS),
    ) as limited:
        yield limited


def started(limited: LimitedRouters) -> int:
    return sum(line["event"].startswith("Booting") for line in limited.router.log())


@pytest.mark.parametrize("ends", ["recycled", "killed"])
def test_recycled_workers_admit_what_the_limit_allows(
    without_redis: LimitedRouters, ends: str
) -> None:
    """P9: each worker of a slot used to begin with a fresh share: 707 calls were admitted for a
    bound of 300."""
    limited = without_redis
    began_s = time.monotonic()
    admitted = calls = 0
    while started(limited) < WORKERS + SUCCESSORS:
        assert time.monotonic() < began_s + GIVE_UP_S
        for _ in range(MAX_REQUESTS):
            admitted += post(limited.router.port, "metered", body()).status == 200
        calls += MAX_REQUESTS
        if ends == "killed":
            os.kill(children(limited.router.pid)[calls // MAX_REQUESTS % WORKERS], signal.SIGKILL)
    lasted_s = time.monotonic() - began_s
    assert BURST * 0.5 <= admitted <= BURST + RATE * lasted_s + WORKERS
