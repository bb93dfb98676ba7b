"""A frame of the spool, decoded: the record in it, its writer, and when its call ended."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import orjson

from router.records.record_types import parse_timestamp_us
from router.spool.frames import AUDIT, USAGE, Frame, Position

_LONGEST_MS: Final = 1e12
"""Thirty years; no call takes longer."""
_ID_FIELDS: Final = {USAGE: "record_id", AUDIT: "event_id"}


class DecodedFrame(NamedTuple):
    """One record on its way to a sink."""

    kind: int
    payload: bytes
    position_after: Position
    fields: dict[str, Any]
    """The record; empty where there is a fault."""
    ended_us: int
    """When the call ended or the event happened; 0 when the record does not tell."""
    fault: str | None = None
    """Why no sink can take it."""

    @property
    def writer_id(self) -> str:
        """The spool writer that appended it."""
        return self.position_after.writer_id

    @property
    def id(self) -> str | None:
        """The record's or event's id, the same whenever it is delivered again."""
        found = self.fields.get(_ID_FIELDS.get(self.kind, ""))
        return found if isinstance(found, str) else None


def decode_frame(frame: Frame) -> DecodedFrame:
    """Decode a frame; the result has a ``fault`` when the frame holds no record."""
    try:
        return DecodedFrame(*frame, *_read(frame.kind, frame.payload))
    except ValueError as error:
        return DecodedFrame(*frame, {}, 0, str(error))


def _read(kind: int, payload: bytes) -> tuple[dict[str, Any], int]:
    if kind not in _ID_FIELDS:
        raise ValueError(f"unknown kind of frame: {kind}")
    try:
        fields = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    if not isinstance(fields.get(_ID_FIELDS[kind]), str):
        raise ValueError(f"{_ID_FIELDS[kind]}: missing or not a text")
    return fields, _ended_us(fields)


def _ended_us(fields: dict[str, Any]) -> int:
    """The end of the call; a usage record has its beginning and its duration."""
    latency_ms = fields.get("latency_ms", 0.0)
    timestamp = fields.get("timestamp")
    # Multiplying a string instead of a number would take a thousand times its memory.
    if type(latency_ms) not in (int, float) or type(timestamp) is not str:
        return 0
    if not 0 <= latency_ms < _LONGEST_MS:
        return 0
    try:
        return parse_timestamp_us(timestamp) + int(latency_ms * 1000)
    except ValueError:
        return 0
