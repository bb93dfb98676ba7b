"""Records that a sink can never take, kept in a file with the reason."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any, Final

import orjson

from router.agent.reading.decoded_frames import DecodedFrame
from router.clock import Clock
from router.records.record_types import format_timestamp
from router.spool.frames import AUDIT, USAGE

DIRECTORY_NAME: Final = "dead-letter"
_KINDS: Final = {USAGE: "usage", AUDIT: "audit"}


class DeadLetters:
    """The file ``dead-letter/<sink>.jsonl``. It only grows; a record may be in it twice."""

    def __init__(self, data_dir: Path, sink: str, clock: Clock | None = None) -> None:
        self._path = data_dir / DIRECTORY_NAME / f"{sink}.jsonl"
        self._sink = sink
        self._clock = clock or Clock()

    def put(self, decoded: DecodedFrame, reason: str) -> None:
        """Add a line that on return survives a power failure; raises ``OSError``."""
        line = orjson.dumps(self._line(decoded, reason), option=orjson.OPT_APPEND_NEWLINE)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Unbuffered, so that a full disk is an error here; the next line ends a torn one.
        with open(self._path, "ab+", buffering=0, opener=_open_private) as file:
            if file.tell() and not self._ends_line(file.fileno()):
                line = b"\n" + line
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())

    def _line(self, decoded: DecodedFrame, reason: str) -> dict[str, Any]:
        position = decoded.position_after
        return {
            "ts": format_timestamp(self._clock.now_s()),
            "sink": self._sink,
            "reason": reason,
            "kind": _KINDS.get(decoded.kind, decoded.kind),
            "id": decoded.id,
            "writer_id": position.writer_id,
            "segment": position.segment,
            "end_offset": position.offset,
            **_content(decoded.payload),
        }

    @staticmethod
    def _ends_line(fd: int) -> bool:
        return os.pread(fd, 1, os.fstat(fd).st_size - 1) == b"\n"


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o660)  # records are private


def _content(payload: bytes) -> dict[str, str]:
    try:
        return {"payload": payload.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode()}
