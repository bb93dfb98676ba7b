"""Small checks of request fields. Each raises ``InvalidRequest`` that names the field."""

from __future__ import annotations

from typing import Any, Final

from router.errors import InvalidRequest

MAX_NAME_CHARS: Final = 256


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
