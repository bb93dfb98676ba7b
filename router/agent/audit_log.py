"""Audit events as lines of the structured log, many at a time and without decoding them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import BinaryIO, Final

from router.accounting.records import format_timestamp
from router.clock import Clock
from router.telemetry.redaction import conceal_bytes

_ATOMIC_BYTES: Final = 4096
"""What a pipe takes in one piece, so that no other process's line gets in between."""


class AuditLog:
    """Writes to standard output. Not through ``logging``: it costs 2 µs an event instead of 20.

    Nor does the log level silence these lines: they are the product.
    """

    def __init__(self, stream: BinaryIO | None = None, clock: Clock | None = None) -> None:
        # Not the buffered stream: what that cannot write it keeps, and tries again with the next.
        self._stream: BinaryIO = _unbuffered(sys.stdout.buffer) if stream is None else stream
        self._clock = clock or Clock()

    def write(self, events: Sequence[bytes]) -> bool:
        """One line for each encoded event; False when they cannot all be written."""
        moment = f"{format_timestamp(self._clock.now_s())[:-4]}Z"  # to the millisecond, as all are
        head = (
            f'{{"ts":"{moment}","level":"info","logger":"router.audit","event":"audit","audit":'
        ).encode()
        piece = b""
        try:
            for event in events:
                line = b"%b%b}\n" % (head, conceal_bytes(event))
                if piece and len(piece) + len(line) > _ATOMIC_BYTES:
                    self._put(piece)
                    piece = b""
                piece += line
            self._put(piece)
        except (OSError, ValueError):
            return False
        return True

    def _put(self, piece: bytes) -> None:
        while piece:
            piece = piece[self._stream.write(piece) :]


def _unbuffered(stream: BinaryIO) -> BinaryIO:
    return getattr(stream, "raw", stream)
