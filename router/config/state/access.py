"""The store of the configuration: workers read it, the command line writes it.

A key is looked up in the memory map on each call, so a revocation holds from the next call on.
Everything else is one document, read back as a frozen snapshot when its revision changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import lmdb
import orjson

from router.clock import Clock
from router.config.diff import Change, compare
from router.config.document import Document, KeyRecord
from router.config.faults import DocumentError, StateError
from router.config.loader import LoadedDocument, flatten_messages, load_plain
from router.config.schema.parts import KeySchema
from router.config.state.environment import (
    DOCUMENT,
    KEYS_REVISION,
    PEPPER_FINGERPRINT,
    REVISION,
    UnreadableError,
    View,
    decode_key,
    decode_number,
    open_view,
)
from router.config.state.plain import plain_key, plain_keys, to_plain
from router.config.state.transaction import Tables, open_tables
from router.errors import NotConfigured

T = TypeVar("T")

Journal = Callable[[Sequence[Change], int], None]
"""Is told what is about to change and the revision that it makes; what raises stops the change."""

_RECHECK_S: Final = 0.2
_UNREADABLE: Final = "the configuration store cannot be read"
_KEY_SCHEMA: Final = KeySchema()
_log: Final = logging.getLogger(__name__)


class StateReader:
    """Reads ``state/``; opens it on first use, which must come after ``fork``, and when it appears.

    Every method raises :class:`NotConfigured` as long as nothing was applied or the store cannot be
    read. Why it cannot be read is logged, once for each change of the reason; :attr:`fault` says it
    in words that a health check may show.
    """

    def __init__(self, state_dir: Path, clock: Clock | None = None) -> None:
        self._state_dir = state_dir
        self._now_s = (clock or Clock()).monotonic_s
        self._view: View | None = None
        self._recheck_at_s = float("-inf")
        self._document: Document | None = None
        self._document_revision: bytes | None = None
        self._unread: str | None = None
        self._refused: str | None = None

    @property
    def fault(self) -> str | None:
        """What is wrong with the store or its newest document; ``None`` when all is well."""
        return _UNREADABLE if self._unread else self._refused

    def find_key(self, hash: bytes) -> KeyRecord | None:
        """The key with this 32-byte hash as it is stored at this moment."""
        raw = self._ask(lambda view: view.get(view.keys, hash)) if hash else None
        if raw is None:
            # "No such key" may only be said of a store in which keys would be.
            self._stored_revision()
            return None
        try:
            return decode_key(raw)
        except (ValueError, KeyError, TypeError):
            self._report(ValueError("a stored key is damaged"))
            raise NotConfigured(_UNREADABLE) from None

    def find_key_with_id(self, key_id: str) -> KeyRecord | None:
        """The key with this id; for whoever is not shown the key itself."""
        raw = self._ask(lambda view: view.get(view.key_ids, key_id.encode()))
        return self.find_key(bytes(raw or b""))

    def revision(self) -> int:
        """The revision of the stored document."""
        return decode_number(self._stored_revision())

    def keys_revision(self) -> int:
        """A number that grows with every change of any key."""
        return decode_number(self._ask(lambda view: view.get(view.meta, KEYS_REVISION)))

    def pepper_matches(self, fingerprint: str) -> bool | None:
        """Whether the stored keys were made with this pepper; ``None`` when nobody noted it."""
        stored = self._ask(lambda view: view.get(view.meta, PEPPER_FINGERPRINT))
        return None if stored is None else stored == fingerprint.encode()

    def document(self) -> Document:
        """The snapshot of the stored revision.

        While a newer one cannot be read or built the last good one stays, and ``fault`` is set.
        """
        try:
            if self._stored_revision() != self._document_revision:
                self._rebuild()
        except NotConfigured:
            if self._document is None:
                raise
        if self._document is None:
            raise NotConfigured(_UNREADABLE)
        return self._document

    def close(self) -> None:
        """Give the store back; the next question opens it again."""
        view = self._view
        self.forget()
        if view is not None:
            view.close()

    def forget(self) -> None:
        """Drop the handle that a parent process opened; the next question opens another."""
        self._view = None
        self._recheck_at_s = float("-inf")

    def _stored_revision(self) -> bytes:
        raw = self._ask(lambda view: view.get(view.meta, REVISION))
        if raw is None:
            raise NotConfigured
        return raw

    def _rebuild(self) -> None:
        revision, raw = self._ask(lambda view: view.get_all(view.meta, REVISION, DOCUMENT))
        # Also when it fails: one attempt and one log line for each bad revision.
        self._document_revision = revision
        try:
            document = load_plain(orjson.loads(raw or b"")).build(decode_number(revision))
        except (ValueError, DocumentError) as error:
            self._refused = f"revision {decode_number(revision)} cannot be used"
            _log.error("%s: %s", self._refused, error)
        else:
            self._document, self._refused = document, None

    def _ask(self, question: Callable[[View], T]) -> T:
        now_s = self._now_s()
        if now_s >= self._recheck_at_s:
            self._recheck(now_s)
        if self._view is None:
            raise NotConfigured(_UNREADABLE) if self._unread else NotConfigured()
        try:
            answer = question(self._view)
        except lmdb.Error as error:
            answer = self._ask_again(self._view, question, error)
        if self._unread is not None:
            self._unread = None
        return answer

    def _ask_again(self, view: View, question: Callable[[View], T], error: lmdb.Error) -> T:
        """Once, after doing what may help; a fault that stays is an outage, never an answer."""
        try:
            if isinstance(error, lmdb.ReadersFullError):
                # Workers that were killed may have left their slots behind.
                view.clear_dead_readers()
            else:
                # Closed by a writer on another thread, or worse: a new handle will tell.
                self._view = None
                self._open()
            if self._view is not None:
                return question(self._view)
        except lmdb.Error as again:
            self._report(again)
        raise NotConfigured(_UNREADABLE) from None

    def _recheck(self, now_s: float) -> None:
        """Notice a store that came into being or was replaced, at most every 0.2 s."""
        self._recheck_at_s = now_s + _RECHECK_S
        if self._view is not None and not self._view.is_current(self._state_dir):
            self._view = None
        if self._view is None:
            self._open()

    def _open(self) -> None:
        try:
            self._view = open_view(self._state_dir, self)
        except FileNotFoundError:
            return
        except (OSError, UnreadableError) as error:
            self._report(error)
            return
        # Another store may have another document under the same revision.
        self._document_revision = None

    def _report(self, error: Exception) -> None:
        reason = str(error)
        if reason != self._unread:
            self._unread = reason
            _log.error("%s: %s: %s", _UNREADABLE, self._state_dir, reason)


class StateWriter:
    """Changes ``state/`` in short transactions, each of them whole or not at all.

    The store is open only while a method runs. Every method raises :class:`StateError`, and what
    raised has changed nothing. A method that is given the fingerprint of a pepper raises
    :class:`PepperError` when the stored keys were made with another one.
    """

    def __init__(
        self, state_dir: Path, clock: Clock | None = None, *, journal: Journal | None = None
    ) -> None:
        """``journal`` is called within each transaction that changes something, as its last step.

        So nothing is changed that was not written down. What it was told may still fail to be
        committed; then the method raises.
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
            touched = {change.entity for change in changes if change.section == "keys"}
            if touched:
                tables.replace_keys(
                    old=[key for key in tables.all_keys() if key.id in touched],
                    new=[key for key in loaded.keys if key.id in touched],
                )
                tables.note_pepper(fingerprint)
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
            return compare({}, to_plain(loaded))
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
        """The stored document with its keys as plain data, fit to be applied again."""
        with open_tables(self._state_dir) as tables:
            plain = tables.document()
            keys = plain_keys(tables.all_keys())
        return {"version": plain.pop("version"), "keys": keys, **plain}

    def pepper_fingerprint(self) -> str | None:
        """Which pepper the stored keys were made with; ``None`` when nobody noted it."""
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
            tables.replace_keys(old=[old] if old else [], new=[record])
            tables.note_pepper(fingerprint)
            self._tell(tables, old, record)

    def revoke_key(self, key_id: str) -> KeyRecord:
        """Revoke a key; it stays listed. Returns it as it is stored now."""
        with open_tables(self._state_dir) as tables:
            old = _found(tables, key_id)
            record = replace(old, status="revoked")
            tables.replace_keys(old=[], new=[record])
            self._tell(tables, old, record)
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

    def _tell(self, tables: Tables, old: KeyRecord | None, new: KeyRecord) -> None:
        before = [] if old is None else [plain_key(old)]
        changes = compare({"keys": before}, {"keys": [plain_key(new)]})
        if changes:
            self._journal(changes, tables.revision())


def _found(tables: Tables, key_id: str) -> KeyRecord:
    record = tables.key(key_id)
    if record is None:
        raise StateError([f"there is no key '{key_id}'"])
    return record


def _check_record(record: KeyRecord, document: dict[str, Any]) -> None:
    """Refuse what the document could not say either, so that every export can be applied."""
    problems = [*flatten_messages(_KEY_SCHEMA.validate(plain_key(record)))]
    organizations = {entry["id"] for entry in document["organizations"]}
    models = {entry["id"] for entry in document["models"]}
    if record.organization_id not in organizations:
        problems.append(f"no organization has the id '{record.organization_id}'")
    unknown = sorted((record.models or frozenset()) - models)
    problems += [f"no model has the id '{model}'" for model in unknown]
    if problems:
        raise StateError(problems)
