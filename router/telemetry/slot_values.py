"""Metric values in memory-mapped files, one set of files per worker slot.

The same file format as ``prometheus_client``'s own multi-process values, so its collector reads
them. What differs: files are named by slot, and there is neither a lock nor a look at the pid on
each increment. A worker has one thread, and nothing here lets another greenlet run.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client.mmap_dict import MmapedDict, mmap_key

INITIAL_BYTES: Final = 1 << 16
_HEADER_BYTES: Final = 8
_VALUE: Final = struct.Struct("dd")
"""Value and timestamp, as the library packs them."""
_MIN_ENTRY_BYTES: Final = 24
_MAX_PADDING_BYTES: Final = 8

_log = logging.getLogger(__name__)


class _NoFile:
    """Replaces a file that cannot be opened: its values exist in this process only."""

    def __init__(self) -> None:
        self._m = bytearray(_VALUE.size)
        """A buffer that no scrape reads."""


class _SlotFiles:
    """The files of one slot. No page of them is written before the file system has reserved it.

    A mapped page that turns out to have no room on the disk kills the process (SIGBUS).
    """

    def __init__(self, slot: str, directory: Path) -> None:
        self._slot = slot
        self._directory = directory
        self._files: dict[str, MmapedDict | _NoFile] = {}
        self._warned: set[str] = set()

    def with_room_for(self, prefix: str, key: str) -> MmapedDict | _NoFile:
        """The file for this value, grown if necessary; a replacement when there is no room."""
        if prefix not in self._files:
            self._files[prefix] = self._open(self._directory / f"{prefix}_{self._slot}.db")
        file = self._files[prefix]
        if isinstance(file, _NoFile) or key in file._positions:
            return file
        entry_bytes = 4 + len(key.encode()) + _MAX_PADDING_BYTES + 16
        capacity = file._capacity
        while file._used + entry_bytes > capacity:
            capacity *= 2
        try:
            if capacity > file._capacity:
                _allocate(file._f.fileno(), capacity)
        except OSError as error:
            self._warn("metrics are not exported: %s", error.strerror or error)
            return _NoFile()
        return file

    def _open(self, path: Path) -> MmapedDict | _NoFile:
        try:
            if _is_corrupt(path):
                self._warn("a corrupt file of metrics was put aside: %s", path.name)
                path.unlink()
            with path.open("ab") as file:
                _allocate(file.fileno(), max(INITIAL_BYTES, os.fstat(file.fileno()).st_size))
            return MmapedDict(str(path))  # type: ignore[no-untyped-call]
        except OSError as error:
            self._warn("metrics are not exported: %s", error.strerror or error)
            return _NoFile()

    def _warn(self, message: str, reason: object) -> None:
        """Log once for each kind of problem: the other files are likely to have the same."""
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message, reason)


def _allocate(descriptor: int, size_bytes: int) -> None:
    """Reserve disk blocks where the file system can; raises ``OSError`` when there are none."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise


def _is_corrupt(path: Path) -> bool:
    """Whether the library would fail to read the file, or loop for ever."""
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        return False
    if size_bytes == 0:
        return False
    try:
        with path.open("rb") as file:
            (used_bytes,) = struct.unpack("i", file.read(4))
        if used_bytes and not _HEADER_BYTES <= used_bytes <= size_bytes:
            return True
        entries = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
        return any(at * _MIN_ENTRY_BYTES > size_bytes for at, _ in enumerate(entries))
    except (RuntimeError, ValueError, struct.error):
        return True


def slot_value_class(slot: str, directory: Path) -> type:
    """A class for ``prometheus_client.values.ValueClass``, with its files in ``directory``."""
    files = _SlotFiles(slot, directory)

    class SlotValue:
        """One number; it continues from the value of an earlier worker in the slot."""

        _multiprocess = True

        def __init__(
            self,
            typ: str,
            metric_name: str,
            name: str,
            labelnames: Sequence[str],
            labelvalues: Sequence[str],
            help_text: str,
            multiprocess_mode: str = "",
            **_: Any,
        ) -> None:
            prefix = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
            self._key = mmap_key(metric_name, name, list(labelnames), list(labelvalues), help_text)
            self._file = file = files.with_room_for(prefix, self._key)
            self._value, self._at = 0.0, 0
            if isinstance(file, MmapedDict):
                self._value, _ = file.read_value(self._key)  # type: ignore[no-untyped-call]
                self._at = file._positions[self._key]

        def inc(self, amount: float) -> None:
            self._value += amount
            # The map itself may be another one by now: it grows.
            _VALUE.pack_into(self._file._m, self._at, self._value, 0.0)

        def set(self, value: float, timestamp: float | None = None) -> None:
            self._value = value
            _VALUE.pack_into(self._file._m, self._at, value, timestamp or 0.0)

        def get(self) -> float:
            return float(self._value)

        def set_exemplar(self, exemplar: object) -> None:
            """The files have no exemplars."""

        def get_exemplar(self) -> None:
            """The files have no exemplars."""

    return SlotValue
