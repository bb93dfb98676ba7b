"""What is in a spool: its writers, their segments, and how many bytes these have."""

from __future__ import annotations

import logging
from pathlib import Path

from router.spool.disk import SpoolIO
from router.spool.frames import Position, is_writer_id, segment_name, segment_numbers

_logger = logging.getLogger("router.spool")


class SpoolDirectory:
    """Lists and measures the files of all writers of one spool; raises ``OSError``."""

    def __init__(self, path: Path, io: SpoolIO | None = None) -> None:
        self.path = path
        self._io = io or SpoolIO()

    def writer_ids(self) -> list[str]:
        """All writers with a directory, the oldest first."""
        return sorted(filter(is_writer_id, self._names(self.path)))

    def segments(self, writer_id: str) -> list[int]:
        """The numbers of a writer's segments, in order."""
        return segment_numbers(self._names(self.path / writer_id))

    def total_bytes(self) -> int:
        """Bytes in the segments of all writers, as far as their directories can be read."""
        total = 0
        for writer_id in self.writer_ids():
            try:
                for number in self.segments(writer_id):
                    total += self._size(writer_id, number)
            except OSError:
                pass  # the agent logs the directory; it must not stop all calls
        return total

    def end_of(self, writer_id: str) -> Position:
        """The position at which a writer's files end now."""
        segments = self.segments(writer_id)
        last = segments[-1] if segments else 0
        return Position(writer_id, last, self._size(writer_id, last))

    def bytes_of(
        self, writer_id: str, start: Position | None = None, end: Position | None = None
    ) -> int:
        """Bytes of one writer between two positions; by default from its beginning to its end."""
        total = 0
        for number in self.segments(writer_id):
            size = self._size(writer_id, number)
            first, last = 0, size
            if start is not None and number <= start.segment:
                first = start.offset if number == start.segment else size
            if end is not None and number >= end.segment:
                last = end.offset if number == end.segment else 0
            total += max(0, last - first)
        return total

    def _size(self, writer_id: str, number: int) -> int:
        """0 for a segment that was removed meanwhile."""
        try:
            return self._io.file_size(self.path / writer_id / segment_name(number))
        except FileNotFoundError:
            return 0

    def _names(self, directory: Path) -> list[str]:
        try:
            return self._io.list_dir(directory)
        except (FileNotFoundError, NotADirectoryError):
            return []


class SpoolRoom:
    """How much of a spool's limit is used, by all its writers together."""

    def __init__(self, directory: SpoolDirectory, max_bytes: int, headroom_bytes: int) -> None:
        """``headroom_bytes`` are left to the records of calls that run already."""
        self._directory = directory
        self.max_bytes = max_bytes
        self._headroom_bytes = min(max_bytes // 8, headroom_bytes)
        self.used_bytes = 0
        """As measured last, and what this process has written since."""
        self._is_known = True

    def measure(self) -> int:
        """The size of the spool now; waits for the disk, and raises ``OSError``."""
        return self._directory.total_bytes()

    def take(self, measured: int | OSError) -> None:
        """Take what was measured; where nothing could be, the size known last counts."""
        if isinstance(measured, OSError):
            if self._is_known:
                _logger.error("size of the spool unknown", extra={"reason": str(measured)})
        else:
            self.used_bytes = measured
        self._is_known = not isinstance(measured, OSError)

    def has(self, size: int) -> bool:
        """Tell whether the limit allows ``size`` bytes more."""
        return self.used_bytes + size <= self.max_bytes

    def is_full(self) -> bool:
        """Tell whether only the headroom is left."""
        return self.used_bytes >= self.max_bytes - self._headroom_bytes
