"""How much a spool holds, all writers together."""

from __future__ import annotations

from pathlib import Path

from router.spool.disk import SpoolIO
from router.spool.frames import is_writer_id, segment_name, segment_numbers


def spool_bytes(io: SpoolIO, spool: Path) -> int:
    """Bytes in the segments of all writers; raises ``OSError`` when the spool cannot be listed.

    A writer of which the disk does not tell counts with what can be seen of it.
    """
    writers = filter(is_writer_id, _names(io, spool))
    return sum(_writer_bytes(io, spool / writer_id) for writer_id in writers)


def _writer_bytes(io: SpoolIO, directory: Path) -> int:
    """What vanishes while we look was removed, and counts as nothing."""
    total = 0
    try:
        for number in segment_numbers(_names(io, directory)):
            try:
                total += io.file_size(directory / segment_name(number))
            except FileNotFoundError:
                pass
    except OSError:
        pass  # the agent names the directory; one that cannot be read must not stop all calls
    return total


def _names(io: SpoolIO, directory: Path) -> list[str]:
    try:
        return io.list_dir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
