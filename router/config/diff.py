"""What applying a document would change, entity by entity and field by field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

Verb = Literal["added", "changed", "removed"]

ABSENT: Final = object()
"""The side of a field change on which the field does not exist."""

_SECTIONS: Final = ("organizations", "keys", "models", "backends", "policies")
# Mappings that are compared field by field, with all that is in them.
_NESTED: Final = ("prices", "timeouts", "rate_limit", "model_rate_limits")


@dataclass(frozen=True)
class FieldChange:
    """One field with its value before and after; either may be :data:`ABSENT`."""

    path: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Change:
    """One entity that is added, changed or removed."""

    verb: Verb
    section: str
    entity: str
    """The id, or ``organization/model`` of a policy."""
    fields: tuple[FieldChange, ...]
    owner: str | None = None
    """The organization of a key or policy, as it was before the change."""


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """The changes between two serialized documents; the order of entities means nothing."""
    return [change for section in _SECTIONS for change in _section(section, old, new)]


def _section(section: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    before = {_identity(entry): entry for entry in old.get(section, ())}
    after = {_identity(entry): entry for entry in new.get(section, ())}
    for entity, entry in after.items():
        changes = tuple(_fields(before.get(entity, {}), entry))
        if entity not in before:
            yield Change("added", section, entity, changes, entry.get("organization"))
        elif changes:
            yield Change("changed", section, entity, changes, before[entity].get("organization"))
    for entity, entry in before.items():
        if entity not in after:
            fields = tuple(_fields(entry, {}))
            yield Change("removed", section, entity, fields, entry.get("organization"))


def _identity(entry: dict[str, Any]) -> str:
    return str(entry["id"]) if "id" in entry else f"{entry['organization']}/{entry['model']}"


def _fields(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[FieldChange]:
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name, ABSENT), new.get(name, ABSENT)
        if before == after:
            continue
        path = f"{prefix}{name}"
        nested = name in _NESTED or bool(prefix)
        if nested and isinstance(before, dict) and isinstance(after, dict):
            yield from _fields(before, after, f"{path}.")
        else:
            yield FieldChange(path, before, after)
