"""Workers read keys and document from ``state/`` through the memory map.

A key is looked up on each call, so a revocation takes effect with the next call. Everything else is
one document, read as a frozen snapshot when its revision changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import lmdb
import orjson

from router.clock import Clock
from router.config.config_errors import DocumentError
from router.config.document import Document, KeyRecord
from router.config.loader import load_serialized
from router.config.state.environment import (
    DOCUMENT,
    PEPPER_FINGERPRINT,
    REVISION,
    UnreadableError,
    View,
    budgets_added,
    decode_key,
    decode_number,
    open_view,
)
from router.errors import NotConfigured

T = TypeVar("T")

_RECHECK_S: Final = 0.2
_UNREADABLE: Final = "the configuration store cannot be read"
_log: Final = logging.getLogger(__name__)


class StateReader:
    """Reads ``state/``; opens it on first use, which must come after ``fork``, and when it appears.

    Every method raises :class:`NotConfigured` as long as nothing was applied or the store cannot be
    read. Why it cannot be read is logged, once for each change of the reason; :attr:`fault` says it
    in words fit for a health check.
    """

    def __init__(self, state_dir: Path, clock: Clock | None = None) -> None:
        self._state_dir = state_dir
        self._now_s = (clock or Clock()).monotonic_s
        self._view: View | None = None
        self._recheck_at_s = float("-inf")
        self._document: Document | None = None
        self._document_revision: bytes | None = None
        self._budgets_added: dict[str, int] = {}
        self._unread: str | None = None
        self._refused: str | None = None

    @property
    def fault(self) -> str | None:
        """What is wrong with the store or its newest document; ``None`` when all is well."""
        return _UNREADABLE if self._unread else self._refused

    def find_key(self, hash: bytes) -> KeyRecord | None:
        """The key with this 32-byte hash as it is stored at this moment."""
        raw = self._read(lambda view: view.get(view.keys, hash)) if hash else None
        if raw is None:
            # Only a store that has a document can say that there is no such key.
            self._stored_revision()
            return None
        try:
            return decode_key(raw)
        except (ValueError, KeyError, TypeError):
            self._report(ValueError("a stored key is damaged"))
            raise NotConfigured(_UNREADABLE) from None

    def find_key_with_id(self, key_id: str) -> KeyRecord | None:
        """The key with this id, for callers that do not have the key itself."""
        raw = self._read(lambda view: view.get(view.key_ids, key_id.encode()))
        return self.find_key(bytes(raw or b""))

    def revision(self) -> int:
        """The revision of the stored document."""
        return decode_number(self._stored_revision())

    def pepper_matches(self, fingerprint: str) -> bool | None:
        """Whether the stored keys were hashed with this pepper; ``None`` when that is not known."""
        stored = self._read(lambda view: view.get(view.meta, PEPPER_FINGERPRINT))
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

    def budgets_added_ms(self, organization_id: str) -> int:
        """When the organization, or one of its keys, last got a budget; 0 if never.

        While the store cannot be read it is what was read last.
        """
        try:
            raw = self._read(lambda view: view.get(view.meta, budgets_added(organization_id)))
        except NotConfigured:
            return self._budgets_added.get(organization_id, 0)
        found = self._budgets_added[organization_id] = decode_number(raw)
        return found

    def close(self) -> None:
        """Close the store; the next read opens it again."""
        view = self._view
        self.forget()
        if view is not None:
            view.close()

    def forget(self) -> None:
        """Drop the handle that a parent process opened; the next read opens another."""
        self._view = None
        self._recheck_at_s = float("-inf")

    def _stored_revision(self) -> bytes:
        raw = self._read(lambda view: view.get(view.meta, REVISION))
        if raw is None:
            raise NotConfigured
        return raw

    def _rebuild(self) -> None:
        revision, raw = self._read(lambda view: view.get_all(view.meta, REVISION, DOCUMENT))
        # Also when it fails: one attempt and one log line for each bad revision.
        self._document_revision = revision
        try:
            document = load_serialized(orjson.loads(raw or b"")).build(decode_number(revision))
        except (ValueError, DocumentError) as error:
            self._refused = f"revision {decode_number(revision)} cannot be used"
            _log.error("%s: %s", self._refused, error)
        else:
            self._document, self._refused = document, None

    def _read(self, read: Callable[[View], T]) -> T:
        now_s = self._now_s()
        if now_s >= self._recheck_at_s:
            self._recheck(now_s)
        if self._view is None:
            raise NotConfigured(_UNREADABLE) if self._unread else NotConfigured()
        try:
            found = read(self._view)
        except lmdb.Error as error:
            found = self._retry(self._view, read, error)
        if self._unread is not None:
            self._unread = None
        return found

    def _retry(self, view: View, read: Callable[[View], T], error: lmdb.Error) -> T:
        """Read once more after a repair; a lasting error is an outage, never an absent value."""
        try:
            if isinstance(error, lmdb.ReadersFullError):
                # Workers that were killed may have left their slots behind.
                view.clear_dead_readers()
            else:
                # Closed by a writer on another thread, or damaged: a new handle shows which.
                self._view = None
                self._open()
            if self._view is not None:
                return read(self._view)
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
