"""One write transaction over the tables of ``state/``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import lmdb
import orjson

from router.config.config_errors import PepperError, StateError, StateUnavailable
from router.config.diff import Change, compare
from router.config.document import VERSION, KeyRecord, LoadedDocument
from router.config.serialized import serialize, serialize_keys
from router.config.state.environment import (
    APPLIED_AT,
    DOCUMENT,
    KEY_IDS,
    KEYS,
    META,
    PEPPER_FINGERPRINT,
    REVISION,
    TABLES,
    budgets_added,
    decode_key,
    decode_number,
    encode_key,
    encode_number,
    open_for_writing,
)

_NOTHING_APPLIED: Final = "nothing has been applied yet: run 'routerctl config apply FILE' first"
_OTHER_PEPPER: Final = "this ROUTER_KEY_PEPPER is not the one that the stored keys were made with"
_SHOWN_KEYS: Final = 3


@contextmanager
def open_tables(state_dir: Path, *, create: bool = False) -> Iterator[Tables]:
    """Run one transaction: committed when the block ends, dropped when it raises.

    Every failure of the store comes out as :class:`StateError`.
    """
    if not create and not state_dir.is_dir():
        raise StateUnavailable([_NOTHING_APPLIED])
    try:
        with open_for_writing(state_dir, create=create) as env:
            handles = {name: env.open_db(name, create=create) for name in TABLES}
            with env.begin(write=True) as transaction:
                yield Tables(transaction, handles)
    except lmdb.NotFoundError:
        raise StateUnavailable([_NOTHING_APPLIED]) from None
    except lmdb.Error as error:
        raise StateUnavailable([f"the configuration store: {error}"]) from None
    except OSError as error:
        raise StateUnavailable(
            [f"{error.filename or state_dir}: {error.strerror or error}"]
        ) from None


class Tables:
    """The tables within one transaction; a method that raises rolls it back."""

    def __init__(self, transaction: lmdb.Transaction, handles: dict[bytes, Any]) -> None:
        self._transaction = transaction
        self._meta = handles[META]
        self._keys = handles[KEYS]
        self._key_ids = handles[KEY_IDS]

    def revision(self) -> int:
        """The revision of the stored document; 0 when there is none."""
        return decode_number(self._get(self._meta, REVISION))

    def applied_at(self) -> str | None:
        """When the stored document was applied, ISO 8601 in UTC."""
        raw = self._get(self._meta, APPLIED_AT)
        return None if raw is None else raw.decode()

    def document(self) -> dict[str, Any]:
        """The stored document without keys, serialized; raises when nothing was applied."""
        raw = self._get(self._meta, DOCUMENT)
        if raw is None:
            raise StateUnavailable([_NOTHING_APPLIED])
        serialized: dict[str, Any] = orjson.loads(raw)
        return serialized

    def put_document(self, loaded: LoadedDocument, now_s: float) -> int:
        """Store all but the keys under the next revision, which is returned."""
        revision = self.revision() + 1
        serialized = serialize(loaded)
        del serialized["keys"]
        applied_at = datetime.fromtimestamp(now_s, timezone.utc).isoformat()
        for name, value in (
            (DOCUMENT, orjson.dumps(serialized)),
            (APPLIED_AT, applied_at.encode()),
            (REVISION, encode_number(revision)),
        ):
            self._transaction.put(name, value, db=self._meta)
        return revision

    def all_keys(self) -> list[KeyRecord]:
        """All stored keys, by id."""
        ids = self._transaction.cursor(db=self._key_ids)
        return [self._decode(bytes(key_hash)) for _, key_hash in ids]

    def key(self, key_id: str) -> KeyRecord | None:
        """The stored key with this id."""
        key_hash = self._get(self._key_ids, key_id.encode())
        return None if key_hash is None else self._decode(key_hash)

    def key_with_hash(self, key_hash: str) -> KeyRecord | None:
        """The stored key with this hash in hex."""
        raw = bytes.fromhex(key_hash)
        return None if self._get(self._keys, raw) is None else self._decode(raw)

    def replace_keys(self, *, old: Iterable[KeyRecord], new: Iterable[KeyRecord]) -> None:
        """Remove some keys, then write some, so that keys can swap hashes."""
        for record in old:
            self._transaction.delete(bytes.fromhex(record.hash), db=self._keys)
            self._transaction.delete(record.id.encode(), db=self._key_ids)
        for record in new:
            key_hash = bytes.fromhex(record.hash)
            self._transaction.put(key_hash, encode_key(record), db=self._keys)
            self._transaction.put(record.id.encode(), key_hash, db=self._key_ids)
        if not self._transaction.stat(self._key_ids)["entries"]:
            # Without keys there is nothing that another pepper could make unknown.
            self._transaction.delete(PEPPER_FINGERPRINT, db=self._meta)

    def pepper_fingerprint(self) -> str | None:
        """The pepper with which the stored keys were hashed; ``None`` when that is not known."""
        raw = self._get(self._meta, PEPPER_FINGERPRINT)
        return None if raw is None else raw.decode()

    def check_pepper(self, fingerprint: str | None) -> None:
        """Raise :class:`PepperError` for another pepper than that of the stored keys."""
        if fingerprint is not None and self.pepper_fingerprint() not in (None, fingerprint):
            raise PepperError([_OTHER_PEPPER])

    def store_pepper(self, fingerprint: str | None) -> None:
        """Store which pepper the keys were hashed with."""
        if fingerprint is not None and self._transaction.stat(self._key_ids)["entries"]:
            self._transaction.put(PEPPER_FINGERPRINT, fingerprint.encode(), db=self._meta)

    def note_added_budgets(self, organization_ids: Iterable[str], now_s: float) -> None:
        """Store that these organizations got a budget now, later than ever before."""
        for organization_id in organization_ids:
            name = budgets_added(organization_id)
            before_ms = decode_number(self._get(self._meta, name))
            at_ms = max(int(now_s * 1000), before_ms + 1)
            self._transaction.put(name, encode_number(at_ms), db=self._meta)

    def changes(
        self, loaded: LoadedDocument, *, prune_keys: bool, reactivate_keys: bool
    ) -> list[Change]:
        """What applying would change; raises :class:`StateError` where stored keys forbid it."""
        stored = self.all_keys()
        listed = {key.id for key in loaded.keys}
        kept = [] if prune_keys else [key for key in stored if key.id not in listed]
        problems = [*_orphaned(kept, loaded), *_duplicate_hashes(kept, loaded)]
        problems += () if reactivate_keys else _reactivated(stored, loaded)
        if problems:
            raise StateError(problems)
        compared = stored if prune_keys else [key for key in stored if key.id in listed]
        document = self.document() if self.revision() else {"version": VERSION}
        return compare({**document, "keys": serialize_keys(compared)}, serialize(loaded))

    def _get(self, table: Any, key: bytes) -> bytes | None:
        raw = self._transaction.get(key, db=table)
        return None if raw is None else bytes(raw)

    def _decode(self, key_hash: bytes) -> KeyRecord:
        try:
            return decode_key(self._get(self._keys, key_hash) or b"")
        except (ValueError, KeyError, TypeError):
            raise StateError(["the configuration store: a stored key is damaged"]) from None


def _orphaned(kept: list[KeyRecord], loaded: LoadedDocument) -> Iterator[str]:
    """Keys that stay while their organization goes."""
    known = {organization.id for organization in loaded.organizations}
    owners: dict[str, list[str]] = {}
    for key in kept:
        if key.organization_id not in known:
            owners.setdefault(key.organization_id, []).append(key.id)
    for organization, ids in owners.items():
        shown = ", ".join(ids[:_SHOWN_KEYS]) + (", ..." if len(ids) > _SHOWN_KEYS else "")
        yield (
            f"organizations: '{organization}' cannot be removed, it has {len(ids)} stored key(s)"
            f" ({shown}); list them elsewhere or remove unlisted keys with --prune-keys"
        )


def _duplicate_hashes(kept: list[KeyRecord], loaded: LoadedDocument) -> Iterator[str]:
    """Listed keys that are stored under another id."""
    owners = {key.hash: key.id for key in kept}
    for index, key in enumerate(loaded.keys):
        if key.hash in owners:
            yield f"keys[{index}].hash: already stored as the key '{owners[key.hash]}'"


def _reactivated(stored: list[KeyRecord], loaded: LoadedDocument) -> Iterator[str]:
    """Revoked keys that are active in the document, most likely because it is out of date.

    Demo keys are public anyway and come back with the demo.
    """
    revoked = {key.id for key in stored if key.status == "revoked" and not key.demo}
    for index, key in enumerate(loaded.keys):
        if key.id in revoked and key.status == "active":
            yield (
                f"keys[{index}].status: '{key.id}' has been revoked; write 'revoked' here,"
                " or make it valid again with --reactivate-keys"
            )
