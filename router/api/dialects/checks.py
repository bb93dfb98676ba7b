"""Small checks of request fields. Each raises ``InvalidRequest`` that names the field."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

from router.call import CHOICE_FIELDS, LIMIT_FIELDS
from router.errors import InvalidRequest
from router.pricing.selection import SELECTING

MAX_NAME_CHARS: Final = 256

READ_NAMES: Final = frozenset(
    {
        *("model", "messages", "prompt", "input", "system", "suffix", "instructions"),
        *("stream", "stream_options", "temperature", "top_p", "stop"),
        *("functions", "function_call", "tool_choice", "response_format", "prediction", "thinking"),
        *chain.from_iterable(LIMIT_FIELDS.values()),
        *CHOICE_FIELDS,
        *SELECTING,
    }
)
"""Names by which a call is checked, routed, bounded or priced, here and at backends."""
_OPTION_NAMES: Final = frozenset({"include_usage"})
_TOOL_NAMES: Final = frozenset({"type", "function", "input_schema", "max_uses"})


def check_spelling(fields: dict[str, Any], path: str = "") -> None:
    """No name differs from one that the router reads in its letters' case alone: servers in Go or
    .NET read ``Model`` as ``model``, and then serve another call than the one that is paid for."""
    _check_names(fields, READ_NAMES, path)
    options, tools = fields.get("stream_options"), fields.get("tools")
    if isinstance(options, dict):
        _check_names(options, _OPTION_NAMES, f"{path}stream_options.")
    if isinstance(tools, list):
        for index, tool in enumerate(tools):
            if isinstance(tool, dict):
                _check_names(tool, _TOOL_NAMES, f"{path}tools[{index}].")


def _check_names(names: Iterable[str], read: frozenset[str], path: str) -> None:
    joined = "".join(names)
    if joined.isascii() and joined.islower():
        return
    for name in names:
        meant = name.casefold()
        if meant != name and meant in read:
            raise InvalidRequest(f"'{name}' must be written '{meant}'", field=path + name)


def required_name(fields: dict[str, Any], name: str) -> str:
    """A non-empty string of at most 256 characters."""
    value = fields.get(name)
    if value is None:
        raise InvalidRequest(f"the field '{name}' is required", field=name)
    if not isinstance(value, str):
        raise InvalidRequest(f"'{name}' must be a string", field=name)
    if not value or len(value) > MAX_NAME_CHARS:
        raise InvalidRequest(
            f"'{name}' must have between 1 and {MAX_NAME_CHARS} characters", field=name
        )
    return value


def optional_flag(fields: dict[str, Any], name: str) -> bool:
    """A boolean; absent and null count as false."""
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidRequest(f"'{name}' must be a boolean", field=name)
    return value


def optional_count(fields: dict[str, Any], name: str, *, low: int = 1) -> None:
    """An integer of at least ``low``; absent and null pass."""
    value = fields.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"'{name}' must be an integer", field=name)
    if value < low:
        raise InvalidRequest(f"'{name}' must be at least {low}", field=name)


def optional_number(fields: dict[str, Any], name: str) -> None:
    """A number; absent and null pass."""
    value = fields.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise InvalidRequest(f"'{name}' must be a number", field=name)


def optional_object(fields: dict[str, Any], name: str) -> dict[str, Any] | None:
    """An object; absent and null pass as ``None``."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{name}' must be an object", field=name)
    return value


def required_list(fields: dict[str, Any], name: str) -> list[Any]:
    """An array with at least one element."""
    value = fields.get(name)
    if value is None:
        raise InvalidRequest(f"the field '{name}' is required", field=name)
    if not isinstance(value, list):
        raise InvalidRequest(f"'{name}' must be an array", field=name)
    if not value:
        raise InvalidRequest(f"'{name}' must not be empty", field=name)
    return value


def check_messages(messages: list[Any], name: str) -> None:
    """Each message is an object with a role; all else in it is the backend's business."""
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest("a message must be an object", field=f"{name}[{index}]")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidRequest(
                "a message needs a 'role', a string", field=f"{name}[{index}].role"
            )


def required_text_or_list(fields: dict[str, Any], name: str) -> None:
    """A string, or an array with at least one element."""
    value = fields.get(name)
    if isinstance(value, str):
        return
    if value is not None and not isinstance(value, list):
        raise InvalidRequest(f"'{name}' must be a string or an array", field=name)
    required_list(fields, name)
