"""Lua scripts as values: their source, their name in Redis, and one call of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

import hiredis

Argument = str | bytes | int
Reply = object
"""What Redis answered: ``int``, ``bytes``, ``None`` or lists of them."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest by which Redis knows it."""

    source: str
    sha: str


Loader = Callable[..., Script]


def load_script(*files: str, **parts: Sequence[str]) -> Script:
    """The script made of these files of this folder, one after the other.

    Each of ``parts`` is a script too, which they can call as a function of that name: with its own
    KEYS and ARGV, and the reply as its result.
    """
    functions = [
        f"local function {name}(KEYS, ARGV)\n{_text(made_of)}\nend\n"
        for name, made_of in parts.items()
    ]
    return script("".join(functions) + _text(files))


def _text(files: Sequence[str]) -> str:
    folder = Path(__file__).parents[1] / "limits"
    return "\n".join([(folder / file).read_text("utf-8") for file in files])


def script(source: str) -> Script:
    """The script with this source."""
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


_ONE_KEY: Final = """local count = tonumber(ARGV[1])
local keys, arguments = {{ KEYS[1], unpack(ARGV, 2, count) }}, {{ unpack(ARGV, count + 1) }}
local function call(KEYS, ARGV)
{}
end
return call(keys, arguments)
"""


@dataclass(slots=True)
class ScriptCall:
    """One call of a script. All its keys must carry the same hash tag."""

    script: Script
    keys: list[str]
    arguments: Sequence[Argument]

    def by_digest(self) -> bytes:
        """The command as Redis reads it, for a script that it already knows."""
        return self._packed("EVALSHA", self.script.sha)

    def by_source(self) -> bytes:
        """The command that also teaches Redis the script."""
        return self._packed("EVAL", self.script.source)

    def in_one_key(self) -> bytes:
        """The command with all keys but the first as arguments.

        A master that imports the slot of the keys refuses a command of several keys, one of which
        is not there; a command of one key it executes.
        """
        source = _ONE_KEY.format(self.script.source)
        given = (len(self.keys), *self.keys[1:], *self.arguments)
        return packed(("EVAL", source, 1, self.keys[0], *given))

    def _packed(self, command: str, what: str) -> bytes:
        return packed((command, what, len(self.keys), *self.keys, *self.arguments))


class Runner(Protocol):
    """Runs scripts; ``RedisClient`` does in production."""

    @property
    def is_unavailable(self) -> bool:
        """Whether calls to Redis fail at once at present, because its breaker is open."""

    def run(self, call: ScriptCall) -> Any:
        """The reply of one script: whole numbers, bytes, ``None``, lists of them."""

    def run_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """The replies of several scripts, sent together."""


def packed(arguments: Sequence[Argument]) -> bytes:
    """A command in the format that Redis reads."""
    return _pack(tuple(arguments))


# Its own types know of no whole numbers.
_pack: Final = cast("Callable[[tuple[Argument, ...]], bytes]", hiredis.pack_command)
