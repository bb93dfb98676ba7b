"""What the agent's tests ship: records that tell their number, and a sink that keeps or refuses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from router.agent.reading.decoded_frames import DecodedFrame, decode_frame
from router.agent.sinks import Refused, SinkUnavailable
from router.clock import Clock, FrozenClock
from router.records.record_types import format_timestamp
from router.spool.disk import SpoolIO
from router.spool.frames import AUDIT, USAGE, Frame, Position
from router.spool.writer import SpoolWriter

SPOOL = Path("/data/spool")


def usage(number: int, *, ended_s: float = 0.0, organization: str = "acme", **more: Any) -> bytes:
    """A usage record as small as the agent takes it; its call took 250 ms."""
    return orjson.dumps(
        {
            "record_id": f"r{number}",
            "request_id": f"q{number}",
            "organization_id": organization,
            "timestamp": format_timestamp(ended_s - 0.25),
            "latency_ms": 250.0,
            **more,
        }
    )


def event(number: int, *, ended_s: float = 0.0, organization: str | None = "acme") -> bytes:
    """An audit event as small as the agent takes it."""
    return orjson.dumps(
        {
            "event_id": f"e{number}",
            "organization_id": organization,
            "entity_id": "key_1",
            "timestamp": format_timestamp(ended_s),
        }
    )


def decoded(payload: bytes, kind: int = USAGE, end: int = 100) -> DecodedFrame:
    """A frame of writer `w`, opened."""
    return decode_frame(Frame(kind, payload, Position("w", 1, end)))


def decoded_frames(numbers: Iterable[int], **more: Any) -> list[DecodedFrame]:
    """Usage records of writer `w`, one behind the other."""
    return [decoded(usage(n, **more), end=100 * (place + 1)) for place, n in enumerate(numbers)]


def events(numbers: Iterable[int]) -> list[DecodedFrame]:
    """Audit events of writer `w`."""
    return [decoded(event(n), AUDIT, 100 * (place + 1)) for place, n in enumerate(numbers)]


def ids(found: Iterable[DecodedFrame]) -> list[str | None]:
    """What they are known by."""
    return [one.id for one in found]


def open_spool(io: SpoolIO, clock: Clock, **sizes: int) -> SpoolWriter:
    """A writer without a thread."""
    return SpoolWriter(SPOOL, io=io, clock=clock, background=False, max_bytes=8 << 20, **sizes)


def append(writer: SpoolWriter, *numbers: int, ended_s: float = 0.0) -> None:
    """One append for each record."""
    for number in numbers:
        writer.append([(USAGE, usage(number, ended_s=ended_s))])
    writer.tick()


class ListSink:
    """Keeps what it gets. What it does with it is a matter of its script."""

    def __init__(self, name: str = "list", clock: FrozenClock | None = None) -> None:
        self.name = name
        self.got: list[str] = []
        self.batches: list[list[str]] = []
        self.finished: list[str] = []
        self.poison: set[str] = set()
        self.down = False
        self.crash: Exception | None = None
        self.maintained = 0
        self._clock = clock

    def deliver(self, batch: Sequence[DecodedFrame]) -> list[Refused]:
        """Take the batch as it is told to."""
        if self.crash is not None:
            raise self.crash
        if self.down:
            raise SinkUnavailable("it is down")
        known = [one.id or "" for one in batch]
        self.batches.append(known)
        self.got += [name for name in known if name not in self.poison]
        return [Refused(n, "poison") for n, name in enumerate(known) if name in self.poison]

    def finish_writer(self, writer_id: str) -> None:
        """Remember it."""
        if self.down:
            raise SinkUnavailable("it is down")
        self.finished.append(writer_id)

    def maintain(self) -> None:
        """Count it."""
        self.maintained += 1

    def close(self) -> None:
        """Nothing is open."""
