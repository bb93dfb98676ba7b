"""Frames in memory that the disk has refused, until it takes them."""

from __future__ import annotations

from typing import Final

BUFFER_BYTES: Final = 8 * 1024 * 1024


class FrameBuffer:
    """Encoded frames in their order, at most 8 MiB. Used under the writer's lock."""

    __slots__ = ("_frames", "lost", "size")

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self.size = 0
        self.lost = 0
        """Frames that were never written: the buffer was full, or the process had to end."""

    def add(self, frames: list[bytes]) -> bool:
        """Keep frames, all or none; False, and counted as lost, where there is no room."""
        size = sum(map(len, frames))
        if self.size + size > BUFFER_BYTES:
            self.lost += len(frames)
            return False
        self._frames += frames
        self.size += size
        return True

    def content(self) -> list[bytes]:
        """The frames that wait, the oldest first."""
        return list(self._frames)

    def written(self, count: int) -> None:
        """The oldest ``count`` frames are in the log."""
        del self._frames[:count]
        self.size = sum(map(len, self._frames))

    def give_up(self) -> None:
        """The process ends, and what still waits is lost."""
        self.lost += len(self._frames)
        self.written(len(self._frames))
