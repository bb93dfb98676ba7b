"""A Redis whose time is the test's: for scripts, and for when keys expire.

Real time does not matter to it as long as the test's time lies in the future: what scripts let
expire is written with the moment in the test's time, and removed when a test moves past it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from redis.crc import key_slot

from router.redis.scripts import Script, ScriptCall, load_script, script

_PRELUDE = """
local virtual_us = ARGV[#ARGV]
local virtual_ms = math.floor(tonumber(virtual_us) / 1000)
local real_call = redis.call
local function moment(lifetime_ms)
  return string.format('%.0f', virtual_ms + tonumber(lifetime_ms))
end
local redis = { call = function(command, ...)
  local given = { ... }
  if command == 'TIME' then
    return { string.sub(virtual_us, 1, -7), string.sub(virtual_us, -6) }
  elseif command == 'SET' then
    assert(given[3] == 'PX')
    return real_call('SET', given[1], given[2], 'PXAT', moment(given[4]))
  elseif command == 'PEXPIRE' then
    return real_call('PEXPIREAT', given[1], moment(given[2]))
  elseif command == 'PTTL' then
    local at_ms = real_call('PEXPIRETIME', given[1])
    return at_ms < 0 and at_ms or at_ms - virtual_ms
  end
  return real_call(command, ...)
end }
"""

_PURGE = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local at_ms = redis.call('PEXPIRETIME', key)
  if at_ms >= 0 and at_ms <= tonumber(ARGV[1]) then
    redis.call('DEL', key)
  end
end
"""


class Client(Protocol):
    """What is used of redis-py's own client."""

    def execute_command(self, *arguments: Any) -> Any: ...


def virtual_script(*files: str, **parts: Sequence[str]) -> Script:
    """A script of the router that lives in the test's time, its last argument."""
    return script(_PRELUDE + load_script(*files, **parts).source)


class VirtualRedis:
    """Runs scripts made by :func:`virtual_script` on a server, at ``now_us``."""

    is_unavailable = False

    def __init__(self, client: Client, now_us: int) -> None:
        self.client = client
        self.now_us = now_us

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    def move(self, by_us: int) -> None:
        """Let time pass, or the clock go back."""
        self.now_us += by_us
        self.client.execute_command("EVAL", _PURGE, 0, self.now_ms)

    def run(self, call: ScriptCall) -> object:
        assert len({key_slot(key.encode()) for key in call.keys}) == 1, "R5: keys of one slot"
        arguments = (*call.keys, *call.arguments, self.now_us)
        return self.client.execute_command("EVAL", call.script.source, len(call.keys), *arguments)

    def run_all(self, calls: Sequence[ScriptCall]) -> list[object]:
        return [self.run(call) for call in calls]

    def dump(self) -> dict[bytes, bytes]:
        """Every key's content in Redis' own encoding."""
        names = self.client.execute_command("KEYS", "*")
        return {name: self.client.execute_command("DUMP", name) for name in names}
