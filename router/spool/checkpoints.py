"""The positions that a sink has acknowledged, on disk, in two files that are written in turn.

While one file is overwritten the other one stays as it is, so there is a valid one at every moment.
Overwriting in place needs no space, as renaming would: on a full disk, delivered segments can still
be acknowledged and removed, which frees space.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from router.spool.disk import OVERWRITE, READ, SpoolIO
from router.spool.frames import Position

FORMAT: Final = 1
DIRECTORY_NAME: Final = "checkpoints"
_SUFFIXES: Final = (".0", ".1")
_RESERVED_BYTES: Final = 16 * 1024
_logger = logging.getLogger("router.spool")


def checkpoint_path(data_dir: Path, sink: str) -> Path:
    """The path of a sink's checkpoints without the suffixes ``.0`` and ``.1``."""
    return data_dir / DIRECTORY_NAME / sink


def sinks_with_checkpoints(data_dir: Path) -> list[str]:
    """The sinks that have saved a position."""
    found = (data_dir / DIRECTORY_NAME).glob("*.[01]")
    return sorted({path.name[: -len(_SUFFIXES[0])] for path in found})


class _Saved(NamedTuple):
    """The content of one of the two files; the greater generation is the later one."""

    generation: int
    positions: dict[str, Position]


class Checkpoints:
    """The positions of one sink, one for each writer. One process saves them.

    When one file is lost or damaged, reading starts at the positions before the last; when both
    are, at the oldest segments. What is delivered again carries the same ids.
    """

    def __init__(self, path: Path, io: SpoolIO | None = None) -> None:
        self._path = path
        self._io = io or SpoolIO()
        self._generation: int | None = None
        self._prepared = False

    def load(self) -> dict[str, Position]:
        """The positions that were saved last; empty when they were lost."""
        found = [saved for saved in map(self._read, _SUFFIXES) if saved is not None]
        if not found:
            self._generation = 0
            return {}
        latest = max(found, key=lambda saved: saved.generation)
        self._generation = latest.generation
        return latest.positions

    def save(self, positions: Mapping[str, Position]) -> None:
        """Replace all positions; on return they survive a power failure. Raises ``OSError``.

        The first save reserves disk space for later ones, so it is best made early.
        """
        if self._generation is None:
            self.load()
        if not self._prepared:
            self._prepare()
        generation = (self._generation or 0) + 1
        fd = self._io.open(self._file(_SUFFIXES[generation % 2]), OVERWRITE)
        try:
            data = _encode(generation, positions)
            while data:
                data = data[self._io.write(fd, data) :]
            self._io.sync(fd)
        finally:
            self._io.close(fd)
        self._generation = generation

    def _prepare(self) -> None:
        """Create both files durably, with disk space reserved for later saves."""
        self._io.make_dir(self._path.parent)
        for suffix in _SUFFIXES:
            fd = self._io.open(self._file(suffix), OVERWRITE)
            try:
                self._io.allocate(fd, 0, _RESERVED_BYTES)
            except OSError:
                pass  # then a full disk may refuse a save
            finally:
                self._io.close(fd)
        for directory in (self._path.parent, self._path.parent.parent):
            self._io.sync_dir(directory)
        self._prepared = True

    def _read(self, suffix: str) -> _Saved | None:
        path = self._file(suffix)
        try:
            fd = self._io.open(path, READ)
            try:
                raw = self._io.read(fd, self._io.size(fd), 0)
            finally:
                self._io.close(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            _logger.warning("checkpoint unreadable", extra={"file": path.name, "why": str(error)})
            return None
        saved = _decode(raw)
        if saved is None and raw:
            _logger.warning("checkpoint damaged", extra={"file": path.name})
        return saved

    def _file(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)


def _encode(generation: int, positions: Mapping[str, Position]) -> bytes:
    """A line of JSON and a line with its CRC; the rest of an earlier, longer text may follow."""
    plain = {writer_id: [at.segment, at.offset] for writer_id, at in positions.items()}
    line = orjson.dumps({"format": FORMAT, "generation": generation, "positions": plain})
    return b"%b\n%08x\n" % (line, zlib.crc32(line))


def _decode(raw: bytes) -> _Saved | None:
    line, _, rest = raw.partition(b"\n")
    if not rest.startswith(b"%08x\n" % zlib.crc32(line)):
        return None
    try:
        found = orjson.loads(line)
        if found["format"] != FORMAT:
            return None
        positions = {
            writer_id: Position(writer_id, int(segment), int(offset))
            for writer_id, (segment, offset) in found["positions"].items()
        }
        return _Saved(int(found["generation"]), positions)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
