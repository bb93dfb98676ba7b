"""Which organizations get a budget that they did not have the moment before.

Counters outlive the budget that they belong to. When it is put back they lack the calls that were
made meanwhile, and nothing in Redis shows it; so the moment of the addition is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_Identity = tuple[str, str, str, str]
Serialized = Mapping[str, Any]


def with_added_budgets(
    old: Mapping[str, Iterable[Serialized]], new: Mapping[str, Iterable[Serialized]]
) -> set[str]:
    """Organizations that have, or whose keys have, a budget in ``new`` and not in ``old``.

    Both have serialized ``organizations`` and ``keys``. An organization or key that was not there
    at all is not meant: it can have made no calls.
    """
    found = set()
    for section, owner in (("organizations", "id"), ("keys", "organization")):
        before = {entry["id"]: _identities(entry) for entry in old.get(section, ())}
        for entry in new.get(section, ()):
            known = before.get(entry["id"])
            if known is not None and _identities(entry) - known:
                found.add(entry[owner])
    return found


def _identities(entry: Serialized) -> set[_Identity]:
    return {
        (budget["name"], budget["unit"], budget["period"], budget.get("timezone", "UTC"))
        for budget in entry.get("budgets", ())
    }
