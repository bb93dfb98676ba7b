"""What a worker has of shared limits, in a mapped file that its successor reads.

After the magic word, one entry a bucket: its key, then the numbers of :class:`Entry`. Entries are
written in place, so that what a killed worker has admitted is there as well. Where the file cannot
be used, limits are enforced from memory alone.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

logger = logging.getLogger(__name__)

Key = tuple[str, str]
"""The organization, and the bucket's part of its key in Redis."""

_MAGIC: Final = b"shares1\n"
_HEAD: Final = struct.Struct("=HHH")
"""Length of the entry, of the organization and of the bucket; 0 ends the file."""
_NUMBERS: Final = struct.Struct("=5d")
_FIRST_BYTES: Final = 1 << 16
_MOST_BYTES: Final = 1 << 24


class Entry(NamedTuple):
    """A bucket as the worker had it."""

    level: float
    untouched: float
    at_s: float
    """Of the monotonic clock, which all processes of a host share; 0 when there is nothing."""
    capacity: float = 0.0
    rate_per_s: float = 0.0


NOTHING: Final = Entry(0.0, 0.0, 0.0)


class SlotFile:
    """The entries of one worker slot. A slot has one worker at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[Key, int] = {}
        self._size = len(_MAGIC)
        self._map: mmap.mmap | None = None
        self.left: dict[Key, Entry] = {}
        """What the predecessor has left."""
        try:
            self.left = _read(path)
            self._begin()
        except OSError as error:
            self._give_up(error)

    def write(self, key: Key, entry: Entry) -> None:
        """Replace the entry of a key."""
        if self._map is None:
            return
        place = self._places.get(key)
        if place is None:
            place = self._add(key)
        if place is not None:
            _NUMBERS.pack_into(self._map, place, *entry)

    def erase(self, key: Key) -> None:
        """There is nothing to know of this key any more."""
        if key in self._places:
            self.write(key, NOTHING)

    def close(self) -> None:
        """The file stays."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def _begin(self) -> None:
        """A new file with what is left takes the place of the old one."""
        path, self._path = self._path, self._path.with_suffix(".new")
        with self._path.open("w+b") as file:
            self._grow(file.fileno(), _FIRST_BYTES)
        assert self._map is not None
        self._map[: len(_MAGIC)] = _MAGIC
        for key, entry in self.left.items():
            self.write(key, entry)
        os.replace(self._path, path)
        self._path = path

    def _add(self, key: Key) -> int | None:
        assert self._map is not None
        first, second = key[0].encode(), key[1].encode()
        length = _HEAD.size + len(first) + len(second) + _NUMBERS.size
        while self._size + length + _HEAD.size > len(self._map):
            if len(self._map) >= _MOST_BYTES:
                return None
            try:
                with self._path.open("r+b") as file:
                    self._grow(file.fileno(), 2 * len(self._map))
            except OSError as error:
                self._give_up(error)
                return None
        place = self._size + _HEAD.size + len(first) + len(second)
        self._map[self._size + _HEAD.size : place] = first + second
        _NUMBERS.pack_into(self._map, place, *NOTHING)
        # Last, so that a worker that is killed in between leaves no half of an entry.
        _HEAD.pack_into(self._map, self._size, length, len(first), len(second))
        self._places[key] = place
        self._size += length
        return place

    def _grow(self, fd: int, size: int) -> None:
        # A mapped page that turns out to have no room kills the process (SIGBUS).
        os.posix_fallocate(fd, 0, size)
        if self._map is not None:
            self._map.close()
        self._map = mmap.mmap(fd, size)

    def _give_up(self, error: OSError) -> None:
        self.close()
        logger.warning(
            "a recycled worker will begin with a fresh share of limits",
            extra={"reason": error.strerror or str(error)},
        )


def _read(path: Path) -> dict[Key, Entry]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    found = {}
    place = len(_MAGIC) if data.startswith(_MAGIC) else len(data)
    while place + _HEAD.size <= len(data):
        length, first, second = _HEAD.unpack_from(data, place)
        names = place + _HEAD.size
        numbers = names + first + second
        if length != numbers + _NUMBERS.size - place or place + length > len(data):
            break
        entry = Entry(*_NUMBERS.unpack_from(data, numbers))
        if entry.at_s:
            organization, bucket = data[names : names + first], data[names + first : numbers]
            found[organization.decode(errors="replace"), bucket.decode(errors="replace")] = entry
        place += length
    return found
