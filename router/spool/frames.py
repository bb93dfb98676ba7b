"""The format of spool segments: frames, positions, file names, and finding frames after damage.

A frame is ``magic(2) kind(1) flags(1) length(4) crc32(4) payload``, numbers big-endian; the CRC is
over kind, flags, length and payload. A segment is frames and nothing else; its first one is of kind
``HEADER``. Neither byte of the magic occurs in UTF-8, so that no text inside a payload is taken for
a frame when the reader searches for the next frame behind damage.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final, NamedTuple

import orjson

FORMAT: Final = 1
MAGIC: Final = b"\xff\xf8"
HEADER: Final = 0
USAGE: Final = 1
AUDIT: Final = 2
DISPATCH: Final = 3
"""A call is sent to a backend: what its record needs, should its worker die."""
UNSETTLED: Final = 4
"""A call has ended and is not charged yet: its lease, and the amounts."""
SETTLED: Final = 5
"""Empty. Every call that was recorded before is charged, or has an ``UNSETTLED`` frame."""
AGENT_ONLY: Final = frozenset({DISPATCH, UNSETTLED, SETTLED})
"""Kinds that no sink gets."""
MAX_PAYLOAD_BYTES: Final = 1024 * 1024

_HEAD: Final = struct.Struct(">2sBBII")
_CHECKED: Final = struct.Struct(">BBI")
HEAD_BYTES: Final = _HEAD.size
_CHECKED_FROM: Final = len(MAGIC)
_CHECKED_TO: Final = _CHECKED_FROM + _CHECKED.size

INCOMPLETE: Final = 0
CORRUPT: Final = -1

LOCK_NAME: Final = "lock"
QUARANTINE_NAME: Final = "quarantine"
_WRITER: Final = re.compile(r"[a-z0-9-]{1,64}")
_SEGMENT: Final = re.compile(r"(\d{12})\.seg")


class Position(NamedTuple):
    """A position in the spool; of one writer, the later position is the greater one."""

    writer_id: str
    segment: int
    offset: int


class Frame(NamedTuple):
    """One frame as it was appended, and the position behind it."""

    kind: int
    payload: bytes
    position_after: Position


class Gap(NamedTuple):
    """Bytes without a frame, as indices into the scanned data."""

    start: int
    end: int
    torn: bool
    """The file ends before the frame does, as a killed writer leaves it."""


class Scan(NamedTuple):
    """Frames and gaps, and the index at which to go on."""

    frames: list[Frame]
    gaps: list[Gap]
    stop: int


def encode_frame(kind: int, payload: bytes) -> bytes:
    """One encoded frame; raises ``ValueError`` for a payload over 1 MiB."""
    length = len(payload)
    if length > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame carries at most {MAX_PAYLOAD_BYTES} bytes, not {length}")
    checked = _CHECKED.pack(kind, 0, length)
    crc = zlib.crc32(payload, zlib.crc32(checked))
    return b"%b%b%b%b" % (MAGIC, checked, crc.to_bytes(4, "big"), payload)


def header_frame(writer_id: str, segment: int) -> bytes:
    """The first frame of a segment."""
    about = {"format": FORMAT, "writer_id": writer_id, "segment": segment}
    return encode_frame(HEADER, orjson.dumps(about))


def header_format(data: bytes) -> int | None:
    """The format number in a segment's header; ``None`` without a header."""
    length = measure(data, 0)
    if length <= 0 or data[len(MAGIC)] != HEADER:
        return None
    try:
        return int(orjson.loads(data[HEAD_BYTES:length])["format"])
    except (ValueError, KeyError, TypeError):
        return None


def measure(data: bytes, index: int) -> int:
    """The length of the whole frame at ``index``, else ``INCOMPLETE`` or ``CORRUPT``."""
    room = len(data) - index
    if room < HEAD_BYTES:
        return INCOMPLETE if MAGIC.startswith(data[index : index + len(MAGIC)]) else CORRUPT
    magic, _, _, length, crc = _HEAD.unpack_from(data, index)
    if magic != MAGIC or length > MAX_PAYLOAD_BYTES:
        return CORRUPT
    total = HEAD_BYTES + int(length)
    if room < total:
        return INCOMPLETE
    head_crc = zlib.crc32(data[index + _CHECKED_FROM : index + _CHECKED_TO])
    payload = memoryview(data)[index + HEAD_BYTES : index + total]
    return total if zlib.crc32(payload, head_crc) == crc else CORRUPT


def find_frame(data: bytes, start: int) -> int:
    """The index of the first whole frame at or after ``start``; -1 when there is none."""
    index = data.find(MAGIC, start)
    while index >= 0 and measure(data, index) <= 0:
        index = data.find(MAGIC, index + 1)
    return index


def whole_frames(data: bytes, end: int) -> int:
    """The length of the whole frames within the first ``end`` bytes of well-formed frames."""
    index = 0
    while index + HEAD_BYTES <= end:
        following = index + HEAD_BYTES + int(_HEAD.unpack_from(data, index)[3])
        if following > end:
            break
        index = following
    return index


def scan(data: bytes, start: Position, *, limit: int, complete: bool, final: bool) -> Scan:
    """Frames from ``start``, where ``data`` begins, until ``limit`` bytes are used up.

    ``complete``: ``data`` reaches the end of the file; if not, the scan stops where it would need
    to see more. ``final``: the file will not grow; if it may, an unfinished end is left alone.
    """
    frames: list[Frame] = []
    gaps: list[Gap] = []
    index = 0
    while index < min(len(data), limit):
        length = measure(data, index)
        if length > 0:
            if data[index + len(MAGIC)] != HEADER:
                frames.append(_frame(data, start, index, length))
            index += length
            continue
        if not complete:
            break
        following = find_frame(data, index + 1)
        if following < 0 and not final:
            break
        torn = following < 0 and length == INCOMPLETE
        gaps.append(Gap(index, len(data) if following < 0 else following, torn))
        index = gaps[-1].end
    return Scan(frames, gaps, index)


def confirmed(first: Scan, second: Scan, offset: int) -> Scan:
    """The second scan of a growing segment, up to damage that the first one did not find.

    A read that overlaps a write can miss a part of a frame and see the frame behind it. That frame
    was complete then, so damage that a second read finds at the same place is real.
    """
    known = {(gap.start, gap.end) for gap in first.gaps}
    unconfirmed = [gap.start for gap in second.gaps if (gap.start, gap.end) not in known]
    if not unconfirmed:
        return second
    stop = unconfirmed[0]
    return Scan(
        [frame for frame in second.frames if frame.position_after.offset <= offset + stop],
        [gap for gap in second.gaps if gap.end <= stop],
        stop,
    )


def _frame(data: bytes, start: Position, index: int, length: int) -> Frame:
    after = Position(start.writer_id, start.segment, start.offset + index + length)
    return Frame(data[index + len(MAGIC)], data[index + HEAD_BYTES : index + length], after)


def segment_name(number: int) -> str:
    """The file name of a segment."""
    return f"{number:012}.seg"


def draft_name(number: int) -> str:
    """The file name of a segment that is not in use yet; readers ignore it."""
    return f"{number:012}.new"


def segment_numbers(names: list[str]) -> list[int]:
    """The numbers of the segments among ``names``, in order."""
    return sorted(int(found[1]) for found in map(_SEGMENT.fullmatch, names) if found)


def is_writer_id(name: str) -> bool:
    """Tell whether a directory of this name belongs to a writer."""
    return name != QUARANTINE_NAME and _WRITER.fullmatch(name) is not None
