"""Lua scripts as values: their source, their name in Redis, and one call of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, cast

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


class Blank(NamedTuple):
    """A place in a template, for one of the values."""

    number: int


class Template:
    """Calls of a script of which most is always the same. That is packed once, since packing fifty
    words takes longer than all else that a decision costs here."""

    __slots__ = ("_format", "_order", "arguments", "keys", "script")

    def __init__(
        self,
        script: Script,
        keys: Sequence[str | Blank],
        arguments: Sequence[Argument | Blank],
    ) -> None:
        self.script, self.keys, self.arguments = script, keys, arguments
        words = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
        self._order = tuple([word.number for word in words if isinstance(word, Blank)])
        pieces = [
            b"%b" if isinstance(word, Blank) else _word(word).replace(b"%", b"%%") for word in words
        ]
        self._format = b"*%d\r\n" % len(words) + b"".join(pieces)

    def filled(self, values: Sequence[str]) -> ScriptCall:
        """The call with these values in the blanks."""
        return FilledCall(self, values)

    def packed(self, values: Sequence[str]) -> bytes:
        """As :meth:`ScriptCall.by_digest`."""
        found = [b"$%d\r\n%b\r\n" % (len(value), value) for value in map(str.encode, values)]
        return self._format % tuple([found[number] for number in self._order])


class ScriptCall:
    """One call of a script. All its keys must carry the same hash tag."""

    __slots__ = ("arguments", "keys", "script")

    template: Template | None = None
    """What it was made from, with :attr:`values`."""
    values: Sequence[str] = ()

    def __init__(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> None:
        self.script = script
        self.keys = keys
        self.arguments = arguments

    @property
    def key(self) -> str:
        """One of the keys: all of them are on the same server."""
        return self.keys[0]

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


class FilledCall(ScriptCall):
    """A call that was made from a template, as a list of words only where somebody asks for it."""

    __slots__ = ("template", "values")

    template: Template

    def __init__(self, template: Template, values: Sequence[str]) -> None:
        self.template = template
        self.values = values

    @property
    def script(self) -> Script:  # type: ignore[override]
        return self.template.script

    @property
    def keys(self) -> list[str]:  # type: ignore[override]
        return self._filled(self.template.keys)

    @property
    def arguments(self) -> list[Argument]:  # type: ignore[override]
        return self._filled(self.template.arguments)

    @property
    def key(self) -> str:
        word = self.template.keys[0]
        return self.values[word.number] if isinstance(word, Blank) else word

    def by_digest(self) -> bytes:
        return self.template.packed(self.values)

    def _filled(self, words: Sequence[Any]) -> list[Any]:
        values = self.values
        return [values[word.number] if isinstance(word, Blank) else word for word in words]


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


def _word(word: Argument) -> bytes:
    packed_alone = packed((word,))
    return packed_alone[packed_alone.index(b"$") :]


# Its own types know of no whole numbers.
_pack: Final = cast("Callable[[tuple[Argument, ...]], bytes]", hiredis.pack_command)
