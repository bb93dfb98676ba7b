"""Checks the shape of a request's fields; ``where`` is the dotted path that a refusal names.

Each function raises ``InvalidRequest`` for a value of another shape.
"""

from __future__ import annotations

from typing import Any

from router.errors import InvalidRequest

Json = dict[str, Any]


def items(value: Any, where: str) -> list[tuple[int, Json]]:
    """The objects of an array, each with its index."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{where} must be an array", field=where)
    return [(i, object_at(item, f"{where}[{i}]")) for i, item in enumerate(value)]


def object_at(value: Any, where: str) -> Json:
    """The value, known to be an object."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be an object", field=where)
    return value


def string_at(value: Any, where: str, *, empty: bool = False) -> str:
    """The value, known to be a string; ``empty`` allows an empty one."""
    if not isinstance(value, str) or not (value or empty):
        raise InvalidRequest(f"{where} must be a string", field=where)
    return value
