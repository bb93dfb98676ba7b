"""The LMDB environment behind ``state/``: its layout, how it is opened, how a key is encoded.

One process may not open the same environment twice: closing one handle would drop the locks of the
other. Workers only read and the command line only writes, so this matters to a process that does
both; there, a writer closes the process's readers first and they open again by themselves.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import lmdb
import orjson

from router.config.document import Budget, BudgetReservation, KeyRecord, RateLimit

MAP_SIZE: Final = 1 << 30
"""Room for some million keys. The file is sparse: it uses only the space it needs."""
MAX_READERS: Final = 1024
DATA_FILE: Final = "data.mdb"

META: Final = b"meta"
KEYS: Final = b"keys"
KEY_IDS: Final = b"key_ids"
TABLES: Final = (META, KEYS, KEY_IDS)

REVISION: Final = b"revision"
APPLIED_AT: Final = b"applied_at"
DOCUMENT: Final = b"document"
PEPPER_FINGERPRINT: Final = b"pepper_fingerprint"
_BUDGETS_ADDED: Final = b"budgets_added:"

_DECODED_KEYS: Final = 4096
_NUMBER_BYTES: Final = 8
# Directories are for their owner alone; files follow the umask, so that a group can be let in.
_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o660


class UnreadableError(Exception):
    """The environment is there and cannot be used; the message is for the operator."""


class View:
    """An environment opened for reading, with its tables."""

    __slots__ = ("_env", "keys", "meta", "place")

    def __init__(self, state_dir: Path) -> None:
        """Raises ``FileNotFoundError`` when nothing was stored yet, else ``UnreadableError``."""
        place = _place(state_dir)
        try:
            self._env = lmdb.open(
                os.fspath(state_dir),
                readonly=True,
                create=False,
                map_size=MAP_SIZE,
                max_dbs=len(TABLES),
                max_readers=MAX_READERS,
            )
            _check_length(self._env, state_dir)
            self.meta = self._env.open_db(META, create=False)
            self.keys = self._env.open_db(KEYS, create=False)
        except lmdb.NotFoundError:
            raise FileNotFoundError(f"{state_dir} holds nothing yet") from None
        except lmdb.Error as error:
            raise UnreadableError(str(error)) from None
        self.place = place

    @property
    def key_ids(self) -> Any:
        """Id → hash; seldom used. Raises ``lmdb.Error``."""
        return self._env.open_db(KEY_IDS, create=False)

    def get(self, table: Any, key: bytes) -> bytes | None:
        """One value out of the newest committed state; raises ``lmdb.Error``."""
        # Not a `with` block: this is on the path of every call, and abort() is half the time.
        transaction = self._env.begin(table)
        try:
            return transaction.get(key)
        finally:
            transaction.abort()

    def get_all(self, table: Any, *keys: bytes) -> list[bytes | None]:
        """Several values out of one and the same state; raises ``lmdb.Error``."""
        with self._env.begin(table) as transaction:
            return [transaction.get(key) for key in keys]

    def clear_dead_readers(self) -> None:
        """Free the slots of processes that were killed; raises ``lmdb.Error``."""
        self._env.reader_check()

    def is_current(self, state_dir: Path) -> bool:
        """Tell whether the path still leads to this file, and to all of it.

        A directory that is gone is no reason to forget what was in it.
        """
        try:
            inode, size = _place(state_dir)
        except OSError:
            return True
        return inode == self.place[0] and size >= self.place[1]

    def close(self) -> None:
        """Close the environment; later reads raise ``lmdb.Error``."""
        self._env.close()


class Reader(Protocol):
    """An owner of an open view; a writer closes it, and the owner opens another."""

    def close(self) -> None:
        """Close the view; the next read opens another."""

    def forget(self) -> None:
        """Drop the view without closing it, because it belongs to the parent process."""


_opening = threading.RLock()
_readers: weakref.WeakSet[Reader] = weakref.WeakSet()


def open_view(state_dir: Path, reader: Reader) -> View:
    """Open for reading; raises like :class:`View`."""
    with _opening:
        view = View(state_dir)
        _readers.add(reader)
        return view


@contextmanager
def open_for_writing(state_dir: Path, *, create: bool) -> Iterator[lmdb.Environment]:
    """Open for one transaction; raises ``OSError`` or ``lmdb.Error``."""
    if create:
        # One by one: mkdir gives its mode to the last directory only.
        for place in (state_dir.parent, state_dir):
            place.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    with _opening:
        for reader in list(_readers):
            reader.close()
        env = lmdb.open(
            os.fspath(state_dir),
            create=create,
            mode=_FILE_MODE,
            map_size=MAP_SIZE,
            max_dbs=len(TABLES),
            max_readers=MAX_READERS,
        )
        try:
            env.reader_check()
            yield env
            _keep_length(env, state_dir)
        finally:
            env.close()


def _after_fork() -> None:
    global _opening
    _opening = threading.RLock()
    for reader in list(_readers):
        reader.forget()


os.register_at_fork(after_in_child=_after_fork)


def _place(state_dir: Path) -> tuple[tuple[int, int], int]:
    status = os.stat(state_dir / DATA_FILE)
    return (status.st_dev, status.st_ino), status.st_size


def _length(env: lmdb.Environment) -> int:
    return int((env.info()["last_pgno"] + 1) * env.stat()["psize"])


def _check_length(env: lmdb.Environment, state_dir: Path) -> None:
    """Refuse a truncated file: reading a mapped page that is not there kills the process."""
    expected = _length(env)
    _, size = _place(state_dir)
    if size < expected:
        raise UnreadableError(f"{DATA_FILE} is truncated: {size} of {expected} bytes")


def _keep_length(env: lmdb.Environment, state_dir: Path) -> None:
    """Make the file as long as it says it is, which LMDB itself does not promise.

    LMDB does not write pages at the end that the same transaction took and gave back. The empty
    transaction keeps other writers from growing the file meanwhile.
    """
    transaction = env.begin(write=True)
    try:
        expected = _length(env)
        if _place(state_dir)[1] < expected:
            os.truncate(state_dir / DATA_FILE, expected)
    finally:
        transaction.abort()


def budgets_added(organization_id: str) -> bytes:
    """Under which name it is stored when an organization last got a budget, in ms."""
    return _BUDGETS_ADDED + organization_id.encode()


def encode_number(number: int) -> bytes:
    """A revision or a time as it is stored."""
    return number.to_bytes(_NUMBER_BYTES, "big")


def decode_number(raw: bytes | None) -> int:
    """A stored revision or time; 0 when there is none."""
    return 0 if raw is None else int.from_bytes(raw, "big")


def encode_key(record: KeyRecord) -> bytes:
    """A key as it is stored under its hash."""
    return orjson.dumps(record, default=sorted)


@functools.lru_cache(maxsize=_DECODED_KEYS)
def decode_key(raw: bytes) -> KeyRecord:
    """A stored key; raises ``ValueError``, ``KeyError`` or ``TypeError`` when it is damaged.

    What is remembered is the meaning of these very bytes, not what is stored: the bytes are read
    anew for each call, and changed bytes are decoded anew.
    """
    found = orjson.loads(raw)
    models, rate_limit = found["models"], found.get("rate_limit")
    return KeyRecord(
        **{
            **found,
            "scopes": frozenset(found["scopes"]),
            "models": None if models is None else frozenset(models),
            # Keys that an older router stored have neither.
            "rate_limit": None if rate_limit is None else RateLimit(**rate_limit),
            "budgets": tuple(_budget(entry) for entry in found.get("budgets", ())),
        }
    )


def _budget(found: dict[str, Any]) -> Budget:
    reservation = found["reservation"]
    return Budget(
        **{
            **found,
            "thresholds": tuple(found["thresholds"]),
            "reservation": None if reservation is None else BudgetReservation(**reservation),
        }
    )
