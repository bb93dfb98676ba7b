"""Values put into the text of a document; all the rest, comments too, stays as it is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import yaml

from router.config.serialized import dump_yaml

Path = Sequence[str | int]

# libyaml where it is there: each value takes one reading of the text.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT_LOADER: Final[Any] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class CannotEdit(Exception):
    """The text is written in a way in which a value cannot be put into it."""


def with_values(text: str, values: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    """The text with each value at its path; what is missing on the way there is written, too.

    Raises :class:`CannotEdit` where the result would not be the same data with those values.
    """
    if "\r\n" in text:
        return with_values(text.replace("\r\n", "\n"), values).replace("\n", "\r\n")
    try:
        expected, edited = _data(text), text
        for path, value in values:
            root = yaml.compose(edited, Loader=_LOADER)
            expected = _placed(expected, path, value)
            edited = _edited(edited, root, list(path), value)
        found = _data(edited)
    except yaml.YAMLError:
        found = None
    if found is None or found != expected:
        raise CannotEdit("prices cannot be put into the text as it is written")
    return edited


def _edited(text: str, node: Any, path: list[str | int], value: Any) -> str:
    """Go down the nodes that are there; write the value, or what is missing of its path."""
    step = path.pop(0)
    if isinstance(step, int):
        return _edited(text, node.value[step], path, value)
    for key, inner in node.value:
        if key.value == step:
            if path and isinstance(inner, yaml.CollectionNode) and inner.value:
                return _edited(text, inner, path, value)
            return _replaced(text, node, key, inner, _nested(path, value))
    return _added(text, node, step, _nested(path, value))


def _nested(path: list[str | int], value: Any) -> Any:
    for step in reversed(path):
        value = {step: value}
    return value


def _replaced(text: str, node: Any, key: Any, old: Any, value: Any) -> str:
    if node.flow_style:
        written = f": {json.dumps(value, ensure_ascii=False)}"
    else:
        written = ":" + _block(value, key.start_mark.column)
    return text[: key.end_mark.index] + written + text[_end(old) :]


def _added(text: str, node: Any, name: str, value: Any) -> str:
    if node.flow_style:
        at = node.end_mark.index - 1
        written = f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
        body = text[node.start_mark.index + 1 : at]
        kept = body.rstrip()
        comma = ", " if kept and not kept.endswith(",") else " " if kept else ""
        return text[: at - len(body) + len(kept)] + comma + written + body[len(kept) :] + text[at:]
    column = node.value[0][0].start_mark.column
    end = _end(node)
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    written = f"\n{' ' * column}{name}:{_block(value, column)}"
    return text[:line_end] + written + text[line_end:]


def _block(value: Any, column: int) -> str:
    """What follows the colon of a key at ``column``."""
    lines = dump_yaml(value).rstrip("\n").split("\n")
    return "".join(f"\n{' ' * (column + 2)}{line}" for line in lines)


def _end(node: Any) -> int:
    """Where what is written of a node ends, comments and blank lines after it not included."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _data(text: str) -> Any:
    """What is written: every scalar is text."""
    return yaml.load(text, Loader=_TEXT_LOADER)


def _placed(data: Any, path: Path, value: Any) -> Any:
    """The data with the value as the document's reader would find it."""
    step, *rest = path
    at = data[step] if isinstance(step, int) or step in (data or {}) else None
    new = _placed(at, rest, value) if rest else _data(json.dumps(value))
    if isinstance(data, list):
        return [new if index == step else entry for index, entry in enumerate(data)]
    return {**(data or {}), step: new}
