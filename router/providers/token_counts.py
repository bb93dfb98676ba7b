"""Numbers of tokens as backends write them: whole floats, strings and nulls are among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from router.call import Usage

Json = Mapping[str, Any]

MAX_TOKENS: Final = 1_000_000_000
"""A count above this makes no sense, and its cost would not fit a 64-bit number."""
_MAX_DIGITS: Final = len(str(MAX_TOKENS))
_DIGITS: Final = frozenset("0123456789")
_STANDARD_TIERS: Final = frozenset({"default", "standard", "on_demand"})
_ASKED: Final = "auto"
"""What a client asks for; a reply that repeats it does not say which tier served the call."""
_MAX_TIER_CHARS: Final = 32
_NOTHING: Final[Json] = {}


def count(value: Any) -> int | None:
    """A natural number, however it is spelled; ``None`` for what is absent or makes no sense."""
    if isinstance(value, str):
        value = int(value) if len(value) <= _MAX_DIGITS and _DIGITS.issuperset(value or "-") else -1
    elif isinstance(value, float):
        value = int(value) if value.is_integer() else -1
    elif type(value) is not int:
        return None
    return value if 0 <= value <= MAX_TOKENS else None


def first_count(fields: Json, names: Iterable[str]) -> int | None:
    """The count under the first of these names that has one; a 0 only if no other has more."""
    found = None
    for name in names:
        if name in fields and (number := count(fields[name])) is not None:
            if number:
                return number
            found = 0
    return found


def inner(fields: Json, *path: str) -> Json:
    """The object at this path; an empty one where there is none."""
    for name in path:
        value = fields.get(name)
        if not isinstance(value, dict):
            return _NOTHING
        fields = value
    return fields


def note_tier(usage: Usage, value: Any) -> None:
    """Take over the service tier that a backend names, unless the usage has one."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TIER_CHARS:
        return
    if usage.service_tier is None and not usage.at_standard_tier and value != _ASKED:
        usage.at_standard_tier = value in _STANDARD_TIERS
        usage.service_tier = None if usage.at_standard_tier else value
