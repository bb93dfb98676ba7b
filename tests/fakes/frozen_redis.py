"""Redis for routers in this process: the real scripts, at the time of the test's clock."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis as redis_library
from redis.crc import key_slot

from router.breaker import Reason, Unavailable
from router.clock import Clock
from router.redis.scripts import Script, ScriptCall, script
from tests.fakes.redis_server import BINARY, running

# The server's own time would let expire what lives in the test's time: here nothing expires.
_PRELUDE = """
local virtual_us = table.remove(ARGV)
local real_call = redis.call
local redis = { call = function(command, ...)
  local given = { ... }
  if command == 'TIME' then
    return { string.sub(virtual_us, 1, -7), string.sub(virtual_us, -6) }
  elseif command == 'SET' then
    return real_call('SET', given[1], given[2])
  elseif command == 'PEXPIRE' or command == 'PEXPIREAT' then
    return 1
  elseif command == 'PTTL' then
    return 60000
  end
  return real_call(command, ...)
end }
"""


@lru_cache(maxsize=64)
def _frozen(original: Script) -> Script:
    return script(_PRELUDE + original.source)


class FrozenRedis:
    """Runs the router's scripts. ``away`` is why it does not; ``asked`` counts round trips."""

    def __init__(self, client: Any, clock: Clock) -> None:
        self._client = client
        self.clock = clock
        self.away: Reason | None = None
        self.asked = 0

    @property
    def is_unavailable(self) -> bool:
        return self.away == "breaker_open"

    def run(self, call: ScriptCall) -> object:
        return self.run_all((call,))[0]

    def run_all(self, calls: Sequence[ScriptCall]) -> list[object]:
        self.asked += 1
        if self.away is not None:
            raise Unavailable("redis", self.away)
        return [self._run(call) for call in calls]

    def _run(self, call: ScriptCall) -> object:
        assert len({key_slot(key.encode()) for key in call.keys}) == 1, "R5: keys of one slot"
        command = (len(call.keys), *call.keys, *call.arguments, round(self.clock.now_s() * 1e6))
        found = _frozen(call.script)
        try:
            return self._client.execute_command("EVALSHA", found.sha, *command)
        except redis_library.exceptions.NoScriptError:
            return self._client.execute_command("EVAL", found.source, *command)

    def reset(self) -> None:
        """Forget everything."""
        self.away, self.asked = None, 0
        self._client.execute_command("FLUSHALL")


@contextmanager
def frozen_redis(directory: Path, clock: Clock) -> Iterator[FrozenRedis]:
    """A real server where there is one, else a fake that runs scripts."""
    if BINARY is not None:
        with running(directory, unix=True) as server:
            client = redis_library.Redis(unix_socket_path=server.path, protocol=2)
            client.response_callbacks.clear()
            yield FrozenRedis(client, clock)
            client.close()
        return
    if importlib.util.find_spec("lupa") is None:
        pytest.skip("NEITHER A REDIS SERVER NOR LUPA IS INSTALLED: no script runs")
    fake: Any = fakeredis.FakeRedis(protocol=2)
    fake.response_callbacks.clear()
    yield FrozenRedis(fake, clock)
