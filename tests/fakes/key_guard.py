"""Redis that lets a script touch the keys that its caller declared, and no other.

A script that builds the name of a key works on a single server and fails on a cluster, where that
key may lie elsewhere. Here it fails at once.
"""

from __future__ import annotations

import re
import threading
from typing import Any

import redis as redis_library

_USER = "scripts"

PRELUDE = """
local declared = {}
for _, key in ipairs(KEYS) do
  declared[key] = true
end
local unguarded = redis
local redis = { call = function(command, ...)
  local keys = { ... }
  if command == 'TIME' then
    keys = {}
  elseif command ~= 'MGET' and command ~= 'DEL' and command ~= 'EXISTS' then
    keys = { keys[1] }
  end
  for _, key in ipairs(keys) do
    assert(declared[key], command .. ' touches a key that is not declared: ' .. key)
  end
  return unguarded.call(command, ...)
end }
"""
"""What does the same in front of a script, for servers without users. Every command of the scripts
names one key, as its first argument, or keys only."""


class GuardedClient:
    """A client of a real server at ``path`` whose scripts run as a user with access to their keys.

    All other commands, and scripts without keys, run without restrictions.
    """

    def __init__(self, path: str) -> None:
        self._admin = redis_library.Redis(unix_socket_path=path, protocol=2)
        rules = (_USER, "reset", "on", "nopass", "+@all", "allchannels")
        self._admin.execute_command("ACL", "SETUSER", *rules)
        self._user = redis_library.Redis(
            unix_socket_path=path, protocol=2, username=_USER, password="any"
        )
        self._one_script = threading.Lock()
        for client in (self._admin, self._user):
            client.response_callbacks.clear()

    def execute_command(self, *arguments: Any) -> Any:
        """The reply; raises ``redis.ResponseError`` when a script touches another key."""
        if arguments[0] not in ("EVAL", "EVALSHA") or not int(arguments[2]):
            return self._admin.execute_command(*arguments)
        declared = arguments[3 : 3 + int(arguments[2])]
        patterns = ["~" + _pattern(key) for key in declared]
        with self._one_script:
            self._admin.execute_command("ACL", "SETUSER", _USER, "resetkeys", *patterns)
            return self._user.execute_command(*arguments)

    def close(self) -> None:
        """Close both connections."""
        self._admin.close()
        self._user.close()


def _pattern(key: str) -> str:
    """A pattern that fits this key: special characters stand for themselves behind a backslash; an
    access list takes no spaces."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", key).replace(" ", "?")
