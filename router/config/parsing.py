"""The text of a document → data: strict YAML or JSON, bounded in depth, size and numbers.

YAML here is the part of it that JSON could also say: no aliases, no tags, no duplicate keys, and
scalars by the rules of YAML 1.2 (``no`` is a word, ``1:30`` is not a number, dates stay text).
Numbers with a fraction become :class:`~decimal.Decimal`, so that a price is what was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import yaml

from router.config.config_errors import DocumentError

MAX_BYTES: Final = 8 * 1024 * 1024
MAX_DEPTH: Final = 32
_MAX_NUMBER_LENGTH: Final = 40
_MAX_EXPONENT: Final = 40

NULL_SHAPE: Final = re.compile(r"(?:~|null|Null|NULL|)\Z")
BOOL_SHAPE: Final = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
INT_SHAPE: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
FLOAT_SHAPE: Final = re.compile(
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"
)

# libyaml where it is there: the parser in Python takes half a minute for the largest document.
_YAML_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Parsed:
    """The data, and the mistakes after which reading could go on."""

    data: Any
    problems: list[str]


def read_text(path: Path) -> str:
    """Read a document's file; raises :class:`DocumentError` when it is too large or not UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DocumentError([f"{path}: {error.strerror or error}"]) from None
    if len(raw) > MAX_BYTES:
        raise DocumentError([f"{path}: larger than the limit of {MAX_BYTES} bytes"])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError([f"{path}: not UTF-8 at byte {error.start}"]) from None


def parse_json(text: str) -> Parsed:
    """Parse JSON; raises :class:`DocumentError` where reading cannot go on."""
    problems: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                problems.append(f"duplicate key {key!r}")
            found[key] = value
        return found

    def constant(name: str) -> None:
        problems.append(f"{name} is not a number that JSON knows")

    try:
        data = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_float=_decimal,
            parse_int=_integer,
            parse_constant=constant,
        )
    except json.JSONDecodeError as error:
        raise DocumentError([f"line {error.lineno}: not JSON: {error.msg}"]) from None
    except RecursionError:
        raise DocumentError([f"nested deeper than {MAX_DEPTH} levels"]) from None
    except _BadNumberError as error:
        raise DocumentError([str(error)]) from None
    return Parsed(data, problems)


def parse_yaml(text: str) -> Parsed:
    """Parse YAML; raises :class:`DocumentError` where reading cannot go on."""
    builder = _Builder()
    try:
        return builder.build(yaml.parse(text, Loader=_YAML_LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise DocumentError([f"{where}not YAML: {error.problem or error.context}"]) from None
    except yaml.reader.ReaderError as error:
        raise DocumentError([f"not YAML: {error.reason}"]) from None


class _BadNumberError(ValueError):
    pass


def _integer(text: str) -> int:
    if len(text) > _MAX_NUMBER_LENGTH:
        raise _BadNumberError(f"a number has more than {_MAX_NUMBER_LENGTH} digits")
    return int(text)


def _decimal(text: str) -> Decimal:
    if len(text) > _MAX_NUMBER_LENGTH:
        raise _BadNumberError(f"a number has more than {_MAX_NUMBER_LENGTH} digits")
    exponent = re.search(r"[eE]([-+]?[0-9]+)\Z", text)
    # Beyond this, arithmetic on the number would cost more memory than there is.
    if exponent and abs(int(exponent[1])) > _MAX_EXPONENT:
        raise _BadNumberError(f"a number has an exponent beyond {_MAX_EXPONENT}")
    return Decimal(text)


def scalar_value(text: str) -> Any:
    """What an unquoted YAML scalar means."""
    if NULL_SHAPE.match(text):
        return None
    if BOOL_SHAPE.match(text):
        return text.lower() == "true"
    if INT_SHAPE.match(text):
        return _integer(text)
    if FLOAT_SHAPE.match(text):
        return _decimal(text)
    return text


@dataclass
class _Frame:
    """A list or mapping under construction; ``key`` waits for its value."""

    container: list[Any] | dict[str, Any]
    key: str | None = None


@dataclass
class _Builder:
    """Builds data from YAML events without recursion, so depth cannot exhaust the stack."""

    frames: list[_Frame] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    documents: list[Any] = field(default_factory=list)

    def build(self, events: Iterable[Any]) -> Parsed:
        for event in events:
            self._take(event)
        if len(self.documents) > 1:
            self.problems.append("holds more than one YAML document")
        return Parsed(self.documents[0] if self.documents else None, self.problems)

    def _take(self, event: Any) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.frames.pop()
        elif isinstance(event, yaml.AliasEvent):
            self._note(event, f"the alias *{event.anchor} is not allowed; write the value out")
            self._place(event, None)

    def _open(self, event: Any) -> None:
        if len(self.frames) >= MAX_DEPTH:
            raise DocumentError(
                [f"line {_line(event)}: nested deeper than {MAX_DEPTH} levels"],
            )
        self._refuse_tag(event)
        container: list[Any] | dict[str, Any]
        container = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._place(event, container)
        self.frames.append(_Frame(container))

    def _scalar(self, event: Any) -> None:
        self._refuse_tag(event)
        frame = self.frames[-1] if self.frames else None
        if frame is not None and isinstance(frame.container, dict) and frame.key is None:
            if event.value in frame.container:
                self._note(event, f"duplicate key {event.value!r}")
            frame.key = event.value
            return
        try:
            value = event.value if event.style else scalar_value(event.value)
        except _BadNumberError as error:
            self._note(event, str(error))
            value = None
        self._place(event, value)

    def _place(self, event: Any, value: Any) -> None:
        if not self.frames:
            self.documents.append(value)
            return
        frame = self.frames[-1]
        if isinstance(frame.container, list):
            frame.container.append(value)
        elif frame.key is None:
            self._note(event, "a key must be a plain word")
            frame.key = ""
        else:
            frame.container[frame.key] = value
            frame.key = None

    def _refuse_tag(self, event: Any) -> None:
        if event.tag is not None:
            self._note(event, f"the tag {event.tag!r} is not allowed")

    def _note(self, event: Any, problem: str) -> None:
        self.problems.append(f"line {_line(event)}: {problem}")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1
