"""The command line changes ``state/`` in whole transactions, each written to a journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from router.clock import Clock
from router.config.config_errors import StateError
from router.config.diff import Change, compare
from router.config.document import KeyRecord, LoadedDocument
from router.config.loader import flatten_messages
from router.config.serialized import KEY_SCHEMA, serialize, serialize_key, serialize_keys
from router.config.state.added_budgets import with_added_budgets
from router.config.state.transaction import Tables, open_tables

Journal = Callable[[Sequence[Change], int], None]
"""Called with the changes and the revision they make, before the commit; raising stops them."""


class StateWriter:
    """Changes ``state/`` in short transactions: all of a change, or none of it.

    The store is open only while a method runs. Every method raises :class:`StateError`, and what
    raised has changed nothing. A method that is given the fingerprint of a pepper raises
    :class:`PepperError` when the stored keys were made with another one.
    """

    def __init__(
        self, state_dir: Path, clock: Clock | None = None, *, journal: Journal | None = None
    ) -> None:
        """``journal`` is called within each transaction that changes something, as its last step.

        So nothing changes that is not in the journal. The commit may still fail after that; then
        the method raises.
        """
        self._state_dir = state_dir
        self._clock = clock or Clock()
        self._journal: Journal = journal or (lambda _changes, _revision: None)

    def apply(
        self,
        loaded: LoadedDocument,
        *,
        prune_keys: bool = False,
        reactivate_keys: bool = False,
        fingerprint: str | None = None,
    ) -> int:
        """Make this the document; returns its revision, a new one only if it differs.

        Listed keys are written; others stay, unless ``prune_keys`` removes them. A key that has
        been revoked comes back only with ``reactivate_keys``.
        """
        with open_tables(self._state_dir, create=True) as tables:
            tables.check_pepper(fingerprint)
            changes = tables.changes(loaded, prune_keys=prune_keys, reactivate_keys=reactivate_keys)
            if tables.revision():
                stored = {**tables.document(), "keys": serialize_keys(tables.all_keys())}
                self._note_added_budgets(tables, stored, serialize(loaded))
            touched = {change.entity for change in changes if change.section == "keys"}
            if touched:
                tables.replace_keys(
                    old=[key for key in tables.all_keys() if key.id in touched],
                    new=[key for key in loaded.keys if key.id in touched],
                )
                tables.store_pepper(fingerprint)
            revision = tables.revision()
            if not revision or any(change.section != "keys" for change in changes):
                revision = tables.put_document(loaded, self._clock.now_s())
                self._journal(changes, revision)
            elif changes:
                self._journal(changes, revision)
            return revision

    def changes(
        self,
        loaded: LoadedDocument,
        *,
        prune_keys: bool = False,
        reactivate_keys: bool = False,
        fingerprint: str | None = None,
    ) -> list[Change]:
        """What :meth:`apply` would change now."""
        if not self._state_dir.is_dir():
            return compare({}, serialize(loaded))
        with open_tables(self._state_dir) as tables:
            tables.check_pepper(fingerprint)
            return tables.changes(loaded, prune_keys=prune_keys, reactivate_keys=reactivate_keys)

    def revision(self) -> int:
        """The revision of the stored document; 0 when nothing was applied."""
        if not self._state_dir.is_dir():
            return 0
        with open_tables(self._state_dir) as tables:
            return tables.revision()

    def export(self) -> dict[str, Any]:
        """The stored document with its keys serialized, fit to be applied again."""
        with open_tables(self._state_dir) as tables:
            document = tables.document()
            keys = serialize_keys(tables.all_keys())
        return {"version": document.pop("version"), "keys": keys, **document}

    def pepper_fingerprint(self) -> str | None:
        """The pepper with which the stored keys were hashed; ``None`` when that is not known."""
        if not self._state_dir.is_dir():
            return None
        with open_tables(self._state_dir) as tables:
            return tables.pepper_fingerprint()

    def check_new_key(self, record: KeyRecord) -> None:
        """Raise what :meth:`put_key` would for a new key, whatever its hash will be."""
        with open_tables(self._state_dir) as tables:
            _check_record(record, tables.document())
            if tables.key(record.id) is not None:
                raise StateError([f"there is already a key '{record.id}'"])

    def put_key(
        self, record: KeyRecord, *, overwrite: bool = True, fingerprint: str | None = None
    ) -> None:
        """Store a key; refused for an unknown organization or model and for a hash of another key.

        Without ``overwrite`` a key that is already there is refused, too.
        """
        with open_tables(self._state_dir) as tables:
            tables.check_pepper(fingerprint)
            _check_record(record, tables.document())
            old = tables.key(record.id)
            if old is not None and not overwrite:
                raise StateError([f"there is already a key '{record.id}'"])
            double = tables.key_with_hash(record.hash)
            if double is not None and double.id != record.id:
                raise StateError([f"this key is already stored as '{double.id}'"])
            before = {"keys": [serialize_key(old)] if old else []}
            self._note_added_budgets(tables, before, {"keys": [serialize_key(record)]})
            tables.replace_keys(old=[old] if old else [], new=[record])
            tables.store_pepper(fingerprint)
            self._write_journal(tables, old, record)

    def revoke_key(self, key_id: str) -> KeyRecord:
        """Revoke a key; it stays listed. Returns it as it is stored now."""
        with open_tables(self._state_dir) as tables:
            old = _found(tables, key_id)
            record = replace(old, status="revoked")
            tables.replace_keys(old=[], new=[record])
            self._write_journal(tables, old, record)
            return record

    def list_keys(self) -> list[KeyRecord]:
        """All stored keys, by id."""
        with open_tables(self._state_dir) as tables:
            return tables.all_keys()

    def get_key(self, key_id: str, *, fingerprint: str | None = None) -> KeyRecord:
        """The stored key with this id."""
        with open_tables(self._state_dir) as tables:
            tables.check_pepper(fingerprint)
            return _found(tables, key_id)

    def _note_added_budgets(self, tables: Tables, old: dict[str, Any], new: dict[str, Any]) -> None:
        tables.note_added_budgets(with_added_budgets(old, new), self._clock.now_s())

    def _write_journal(self, tables: Tables, old: KeyRecord | None, new: KeyRecord) -> None:
        before = [] if old is None else [serialize_key(old)]
        changes = compare({"keys": before}, {"keys": [serialize_key(new)]})
        if changes:
            self._journal(changes, tables.revision())


def _found(tables: Tables, key_id: str) -> KeyRecord:
    record = tables.key(key_id)
    if record is None:
        raise StateError([f"there is no key '{key_id}'"])
    return record


def _check_record(record: KeyRecord, document: dict[str, Any]) -> None:
    """Refuse a key that no document may have, so that every export can be applied."""
    problems = [*flatten_messages(KEY_SCHEMA.validate(serialize_key(record)))]
    organizations = {entry["id"] for entry in document["organizations"]}
    models = {entry["id"] for entry in document["models"]}
    if record.organization_id not in organizations:
        problems.append(f"no organization has the id '{record.organization_id}'")
    unknown = sorted((record.models or frozenset()) - models)
    problems += [f"no model has the id '{model}'" for model in unknown]
    if problems:
        raise StateError(problems)
