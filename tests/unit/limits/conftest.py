"""The scripts on fakeredis, and on a real redis-server where tests with servers run.

Time stands still on both until a test moves it. On both a script fails when it touches a key that
its caller has not declared (R5).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import fakeredis
import pytest
from redis.crc import key_slot

from router.clock import FrozenClock
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.idempotency.entries import Idempotency
from router.limits.idempotency.nonces import Nonces
from router.limits.rates.limiter import RateLimiter
from router.redis.scripts import Script, ScriptCall, load_script, script
from tests.fakes.key_guard import PRELUDE, GuardedClient
from tests.fakes.redis_server import BINARY, running

# In the future, so that what expires by Redis' own clock does not expire during a test.
START_S = 2_000_000_000.0


class Client(Protocol):
    """What the tests use of redis-py's own client."""

    def execute_command(self, *arguments: Any) -> Any: ...


def frozen_script(*files: str, **parts: Sequence[str]) -> Script:
    """A script of the router that is told the time, as its last two arguments, and may touch the
    declared keys only."""
    source = load_script(*files, **parts).source
    frozen = "local frozen = { ARGV[#ARGV - 1], ARGV[#ARGV] }\n"
    return script(PRELUDE + frozen + source.replace("redis.call('TIME')", "frozen"))


@dataclass
class Stand:
    """Redis with a clock that can be moved, and everything that runs scripts on it.

    ``clock`` is the one of the router's host; ``skew_s`` is how far Redis' clock is ahead of it.
    """

    client: Client
    clock: FrozenClock = field(default_factory=lambda: FrozenClock(START_S))
    skew_s: float = 0.0
    is_unavailable: bool = False
    calls: int = 0

    def run(self, call: ScriptCall) -> object:
        self.calls += 1
        assert len({key_slot(key.encode()) for key in call.keys}) == 1, "R5: keys of one slot"
        now_us = round((self.clock.wall_s + self.skew_s) * 1_000_000)
        time = divmod(now_us, 1_000_000)
        return self.client.execute_command(
            "EVAL", call.script.source, len(call.keys), *call.keys, *call.arguments, *time
        )

    def run_all(self, calls: Sequence[ScriptCall]) -> list[object]:
        return [self.run(call) for call in calls]

    def limiter(self) -> RateLimiter:
        return RateLimiter(self, load=frozen_script)

    def ledger(self) -> Ledger:
        return Ledger(self, clock=self.clock, load=frozen_script)

    def maintenance(self) -> LedgerMaintenance:
        return LedgerMaintenance(self, clock=self.clock, load=frozen_script)

    def idempotency(self, **options: Any) -> Idempotency:
        return Idempotency(self, load=frozen_script, **options)

    def nonces(self, **options: Any) -> Nonces:
        return Nonces(self, **{"clock": self.clock, "load": frozen_script, **options})

    def key_names(self) -> list[str]:
        return sorted(key.decode() for key in self.client.execute_command("KEYS", "*"))

    def dump(self) -> dict[str, Any]:
        """Every key with what it holds, to see that nothing has changed."""
        return {key: self._content(key) for key in self.key_names()}

    def _content(self, key: str) -> Any:
        reading = {
            b"string": ("GET", key),
            b"hash": ("HGETALL", key),
            b"zset": ("ZRANGE", key, 0, -1, "WITHSCORES"),
        }
        kind = self.client.execute_command("TYPE", key)
        return self.client.execute_command(*reading[kind])


def lua_is_missing() -> bool:
    return importlib.util.find_spec("lupa") is None


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The path of a real server's socket."""
    if BINARY is None:
        pytest.skip("REDIS-SERVER IS NOT INSTALLED: the scripts run on fakeredis only")
    directory: Path = tmp_path_factory.mktemp("redis")
    with running(directory, unix=True) as server:
        yield server.path


@pytest.fixture(
    params=["fakeredis", pytest.param("redis-server", marks=pytest.mark.servers)],
)
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    """An empty Redis, fake and real."""
    if request.param == "fakeredis":
        if lua_is_missing():
            pytest.skip("LUPA IS NOT INSTALLED: no script runs on fakeredis")
        client: Any = fakeredis.FakeRedis(protocol=2)
        client.response_callbacks.clear()  # replies as Redis sends them, as in production
    else:
        client = GuardedClient(request.getfixturevalue("redis_server"))
    client.execute_command("FLUSHALL")
    yield Stand(client)
    client.close()
