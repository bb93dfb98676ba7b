"""H2: a router whose Redis is killed says what it does meanwhile, and serves or refuses so."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.redis_server import BINARY, running
from tests.servers.limited_routers import LimitedRouters, budget, key, limited_routers, rate
from tests.servers.router_process import wait_until

pytestmark = pytest.mark.skipif(BINARY is None, reason="REDIS-SERVER IS NOT INSTALLED")

KEYS = [
    key("metered", rate_limit=rate(1000, 1000)),
    key("paying", budgets=[budget("calls", "requests", 1000)]),
]


def limits(limited: LimitedRouters) -> dict[str, Any]:
    """The component as one worker sees it."""
    shown: dict[str, Any] = limited.router.request("GET", "/readyz", ops=True).json["components"][
        "limits"
    ]
    return shown


@pytest.mark.parametrize(
    ("rates", "ready", "state", "meanwhile", "served"),
    [
        (
            "local",
            (200, "degraded"),
            "degraded",
            "calls with budgets are refused, each worker enforces its share of the rate limits,"
            " duplicate calls are not recognized",
            {"metered": 200, "paying": 503},
        ),
        (
            "closed",
            (503, "not_ready"),
            "unavailable",
            "every call is refused",
            {"metered": 503, "paying": 503},
        ),
    ],
)
def test_readiness_while_redis_is_killed(
    tmp_path: Path,
    rates: str,
    ready: tuple[int, str],
    state: str,
    meanwhile: str,
    served: dict[str, int],
) -> None:
    """What it says is what calls meet; when Redis is back, it says so."""
    settings = {"ROUTER_RATE_LIMIT_FALLBACK": rates}
    with (
        running(tmp_path / "redis") as redis,
        limited_routers(tmp_path, redis.url, KEYS, workers=1, **settings) as limited,
    ):
        wait_until(lambda: limited.call("paying").status == 200, 10.0, "it serves")
        before = limits(limited)
        assert before["state"] == "ok"
        time.sleep(1.0)  # moments are shown in whole seconds
        redis.kill()
        wait_until(
            lambda: limited.call("paying") and limits(limited)["state"] == state, 10.0, state
        )
        reply = limited.router.request("GET", "/readyz", ops=True)
        assert (reply.status, reply.json["status"]) == ready
        shown = reply.json["components"]["limits"]
        assert shown["detail"] == f"Redis is unavailable; {meanwhile}"
        assert shown["since"] > before["since"]
        assert {name: limited.call(name).status for name in served} == served

        redis.start()
        wait_until(lambda: limits(limited)["state"] == "ok", 10.0, "Redis is back")
        assert limited.router.request("GET", "/readyz").status == 200
        assert limits(limited)["since"] >= shown["since"]
