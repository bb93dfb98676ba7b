"""How far a sink has come, on disk, in two files that take turns.

One file is overwritten while the other stays as it is, so there is a good one at every moment. In
place and not by renaming, because that needs no space: on a full disk what was delivered can still
be acknowledged and removed, which is what makes space.
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
_ROOM_BYTES: Final = 16 * 1024
_logger = logging.getLogger("router.spool")


def checkpoint_path(data_dir: Path, sink: str) -> Path:
    """Where a sink's checkpoints are, but for the suffixes ``.0`` and ``.1``."""
    return data_dir / DIRECTORY_NAME / sink


def sinks_with_checkpoints(data_dir: Path) -> list[str]:
    """The sinks that have ever saved a position."""
    found = (data_dir / DIRECTORY_NAME).glob("*.[01]")
    return sorted({path.name[: -len(_SUFFIXES[0])] for path in found})


class _Saved(NamedTuple):
    """What one of the two files says; the greater generation is the later one."""

    generation: int
    positions: dict[str, Position]


class Checkpoints:
    """The positions of one sink, one for each writer. One process saves them.

    When both files are lost or damaged, reading starts at the oldest segment that is there; what
    is delivered again carries the same ids. When one is, at the position before the last.
    """

    def __init__(self, path: Path, io: SpoolIO | None = None) -> None:
        self._path = path
        self._io = io or SpoolIO()
        self._generation: int | None = None
        self._prepared = False

    def load(self) -> dict[str, Position]:
        """The positions that were saved last; none when they were lost."""
        found = [saved for saved in map(self._read, _SUFFIXES) if saved is not None]
        if not found:
            self._generation = 0
            return {}
        latest = max(found, key=lambda saved: saved.generation)
        self._generation = latest.generation
        return latest.positions

    def save(self, positions: Mapping[str, Position]) -> None:
        """Replace all positions; on return they survive a power failure. Raises ``OSError``.

        The first one sets room aside for the later ones, so it is best made early.
        """
        if self._generation is None:
            self.load()
        if not self._prepared:
            self._prepare()
        generation = (self._generation or 0) + 1
        fd = self._io.open(self._place(_SUFFIXES[generation % 2]), OVERWRITE)
        try:
            data = _encode(generation, positions)
            while data:
                data = data[self._io.write(fd, data) :]
            self._io.sync(fd)
        finally:
            self._io.close(fd)
        self._generation = generation

    def _prepare(self) -> None:
        """Have both files there under names that last, with room for what will be written."""
        self._io.make_dir(self._path.parent)
        for suffix in _SUFFIXES:
            fd = self._io.open(self._place(suffix), OVERWRITE)
            try:
                self._io.allocate(fd, 0, _ROOM_BYTES)
            except OSError:
                pass  # then a full disk may refuse a save
            finally:
                self._io.close(fd)
        for directory in (self._path.parent, self._path.parent.parent):
            self._io.sync_dir(directory)
        self._prepared = True

    def _read(self, suffix: str) -> _Saved | None:
        path = self._place(suffix)
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

    def _place(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)


def _encode(generation: int, positions: Mapping[str, Position]) -> bytes:
    """A line of JSON and a line with its CRC; what an earlier, longer text left behind follows."""
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
