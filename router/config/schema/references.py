"""Rules between the parts of a document: every reference leads to exactly one part.

It reads the serialized document rather than its parts, so that a wrong shape in one place and a
dangling reference in another are reported together. What has the wrong shape is skipped here,
because the schema reports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from router.config.schema.fields import is_id
from router.config.schema.parts import DEFAULT_WEIGHT

_Entry = tuple[str, dict[str, Any]]


def reference_problems(serialized: dict[str, Any]) -> list[str]:
    """All inconsistencies of a document, each beginning with the path of the field."""
    return [*_Check(serialized).problems()]


class _Check:
    def __init__(self, serialized: dict[str, Any]) -> None:
        self._serialized = serialized
        self._organizations = self._ids("organizations")
        self._models = self._ids("models")
        self._backends = self._ids("backends")
        self._alias_owner = {
            alias: str(model.get("id"))
            for _, model in self._entries("models")
            for _, alias in _texts(model, "aliases")
        }

    def problems(self) -> Iterator[str]:
        for section in ("organizations", "keys", "models", "backends"):
            yield from _duplicates(self._entries(section), "id")
        yield from _duplicates(self._entries("keys"), "hash")
        yield from _duplicates(self._entries("keys"), "demo_secret")
        yield from self._aliases()
        yield from self._limits()
        yield from self._keys()
        for path, backend in self._entries("backends"):
            for field in ("models", "prices"):
                names = backend.get(field)
                for model in names if isinstance(names, dict) else ():
                    yield from self._unknown_model(f"{path}.{field}.{model}", model)
        yield from self._policies()

    def _entries(self, section: str) -> Iterator[_Entry]:
        yield from _mappings(section, self._serialized.get(section))

    def _ids(self, section: str) -> frozenset[str]:
        return frozenset(
            entry["id"] for _, entry in self._entries(section) if isinstance(entry.get("id"), str)
        )

    def _aliases(self) -> Iterator[str]:
        seen: dict[str, str] = {}
        for path, model in self._entries("models"):
            for index, alias in _texts(model, "aliases"):
                here = f"{path}.aliases[{index}]"
                if alias in self._models:
                    yield f"{here}: '{alias}' is the id of a model"
                elif alias in seen:
                    yield f"{here}: '{alias}' is already at {seen[alias]}"
                seen.setdefault(alias, here)

    def _limits(self) -> Iterator[str]:
        for path, organization in self._entries("organizations"):
            names = organization.get("model_rate_limits")
            for model in names if isinstance(names, dict) else ():
                yield from self._unknown_model(f"{path}.model_rate_limits.{model}", model)
        for section in ("organizations", "keys"):
            for path, owner in self._entries(section):
                yield from _duplicates(_mappings(f"{path}.budgets", owner.get("budgets")), "name")

    def _keys(self) -> Iterator[str]:
        for path, key in self._entries("keys"):
            organization = key.get("organization")
            yield from self._unknown_organization(f"{path}.organization", organization)
            for index, model in _texts(key, "models"):
                yield from self._unknown_model(f"{path}.models[{index}]", model)

    def _policies(self) -> Iterator[str]:
        pairs: dict[tuple[str, str], str] = {}
        for path, policy in self._entries("policies"):
            organization, model = policy.get("organization"), policy.get("model")
            yield from self._unknown_organization(f"{path}.organization", organization)
            yield from self._unknown_model(f"{path}.model", model)
            yield from self._shares(f"{path}.backends", policy.get("backends"))
            if not isinstance(organization, str) or not isinstance(model, str):
                continue
            if (organization, model) in pairs:
                yield f"{path}: the same organization and model as {pairs[organization, model]}"
            pairs.setdefault((organization, model), path)

    def _shares(self, path: str, shares: Any) -> Iterator[str]:
        entries = [*_mappings(path, shares)]
        seen: set[str] = set()
        for here, share in entries:
            backend = share.get("id")
            if not is_id(backend):
                continue
            if backend not in self._backends:
                yield f"{here}.id: no backend has the id '{backend}'"
            if backend in seen:
                yield f"{here}.id: '{backend}' is already in this policy"
            seen.add(backend)
        weights = [share.get("weight", DEFAULT_WEIGHT) for _, share in entries]
        if weights and all(isinstance(weight, int) and weight == 0 for weight in weights):
            yield f"{path}: all weights are 0, so nothing would be served"

    def _unknown_organization(self, path: str, organization: Any) -> Iterator[str]:
        if is_id(organization) and organization not in self._organizations:
            yield f"{path}: no organization has the id '{organization}'"

    def _unknown_model(self, path: str, model: Any) -> Iterator[str]:
        if not is_id(model) or model in self._models:
            return
        owner = self._alias_owner.get(model)
        hint = f"; it is an alias, write '{owner}'" if owner is not None else ""
        yield f"{path}: no model has the id '{model}'{hint}"


def _duplicates(entries: Iterator[_Entry], name: str) -> Iterator[str]:
    first: dict[str, str] = {}
    for path, entry in entries:
        value = entry.get(name)
        if not isinstance(value, str):
            continue
        if value in first:
            yield f"{path}.{name}: the same as {first[value]}.{name}"
        first.setdefault(value, path)


def _mappings(path: str, entries: Any) -> Iterator[_Entry]:
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, dict):
            yield f"{path}[{index}]", entry


def _texts(entry: dict[str, Any], name: str) -> Iterator[tuple[int, str]]:
    values = entry.get(name)
    for index, value in enumerate(values if isinstance(values, list) else ()):
        if is_id(value):
            yield index, value
