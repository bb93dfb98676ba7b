"""The interface of a sink, the record store as a sink, and the log as a sink."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from router.agent.audit_log import AuditLog
from router.agent.reading.decoded_frames import DecodedFrame
from router.clock import Clock
from router.spool.frames import AUDIT, USAGE
from router.store.failures import StoreError, UnstorableRecord
from router.store.record_store import RecordStore

Result = TypeVar("Result")

_MOVED: Final = re.compile(r"([0-9a-f]{12}-[0-9]+-[0-9a-f]{8})-[0-9]+")
"""A later directory of a writer whose first one was removed; group 1 names the writer's chain."""

_logger = logging.getLogger("router.agent")


class SinkUnavailable(Exception):
    """The sink may not have the whole batch: deliver all of it again, later."""


class Refused(NamedTuple):
    """A record that the sink can never take, and why."""

    batch_index: int
    reason: str


class Sink(Protocol):
    """A destination that every record must reach at least once."""

    @property
    def name(self) -> str:
        """Names its checkpoint and its dead letters."""

    def deliver(self, decoded_frames: Sequence[DecodedFrame]) -> list[Refused]:
        """Deliver all records durably; those that the sink refuses for ever are returned.

        Raises :class:`SinkUnavailable`.
        """

    def finish_writer(self, writer_id: str) -> None:
        """The writer is dead and everything it wrote was delivered. May be called again.

        Raises :class:`SinkUnavailable`.
        """

    def maintain(self) -> None:
        """Maintenance that must not run during a delivery; called several times a second.

        Raises :class:`SinkUnavailable`.
        """

    def close(self) -> None:
        """Close connections, within a bounded time."""


class StoreSink:
    """The record store. If it is a file, no other thread of any process writes to it."""

    name: Final = "store"

    _TRIES_AT_ONCE: Final = 3
    """So many bad records cost one attempt each; with more, the batch is halved."""
    _PRUNE_EVERY_S: Final = 60.0
    """Often, so that each time is short: deliveries wait meanwhile."""
    _DAY_S: Final = 86_400.0

    def __init__(self, store: RecordStore, *, audit_retention_days: int, clock: Clock) -> None:
        """``audit_retention_days``: 0 keeps audit events for ever."""
        self._store = store
        self._clock = clock
        self._retention_s = audit_retention_days * self._DAY_S
        self._migrated = False
        self._prune_at_s = clock.monotonic_s() + self._PRUNE_EVERY_S

    def deliver(self, decoded_frames: Sequence[DecodedFrame]) -> list[Refused]:
        """Store all records in one transaction, without those that cannot be stored."""
        self._migrate()
        readable = [
            (index, decoded)
            for index, decoded in enumerate(decoded_frames)
            if decoded.fault is None
        ]
        return [*unreadable(decoded_frames), *self._store_all(readable)]

    def finish_writer(self, writer_id: str) -> None:
        """Sign the tip of the writer's audit chain as closed: a cut-off end is now detected."""
        self._migrate()
        moved = _MOVED.fullmatch(writer_id)
        chain = moved[1] if moved else writer_id
        _call(lambda: self._store.close_writers([chain]))

    def maintain(self) -> None:
        """Create or migrate the tables before the first query, and prune old audit events."""
        self._migrate()
        now_s = self._clock.monotonic_s()
        if self._retention_s and now_s >= self._prune_at_s:
            self._prune_at_s = now_s + self._PRUNE_EVERY_S
            _call(lambda: self._store.prune(self._clock.now_s() - self._retention_s))

    def close(self) -> None:
        """Close the connections."""
        self._store.close()

    def _migrate(self) -> None:
        if not self._migrated:
            _call(self._store.migrate)
            self._migrated = True

    def _store_all(self, batch: list[tuple[int, DecodedFrame]]) -> list[Refused]:
        refused: list[Refused] = []
        rest = list(batch)
        for _ in range(self._TRIES_AT_ONCE):
            unstorable = self._try(rest)
            if unstorable is None:
                return refused
            at, reason = unstorable
            refused.append(Refused(rest.pop(at)[0], reason))
        middle = len(rest) // 2
        for half in (rest[:middle], rest[middle:]):
            refused += self._store_all(half)
        return refused

    def _try(self, batch: list[tuple[int, DecodedFrame]]) -> tuple[int, str] | None:
        """Store a batch; else the index in ``batch`` of a record that cannot be stored, and why."""
        if not batch:
            return None
        usage = [at for at, (_, decoded) in enumerate(batch) if decoded.kind == USAGE]
        audit = [at for at, (_, decoded) in enumerate(batch) if decoded.kind == AUDIT]
        records, events = ([batch[at][1].fields for at in kind] for kind in (usage, audit))
        try:
            written = _call(lambda: self._store.write(records, events))
        except UnstorableRecord as error:
            indices = usage if error.kind == "usage" else audit
            return indices[error.index], error.reason
        for record_id in written.conflicts:
            # The second one's author has a bug, or the spool is forged. The first one stays.
            _logger.error("another record has this id", extra={"record_id": record_id})
        return None


class LogSink:
    """Audit events as lines of the structured log, for routers without Kafka.

    A log that cannot be written does not hold records back on disk: the store has them.
    """

    name: Final = "log"

    def __init__(self, log: AuditLog | None = None) -> None:
        self._log = log or AuditLog()
        self._missing = 0
        self.dropped = 0
        """Events missing in the log because it could not be written in time."""

    def deliver(self, decoded_frames: Sequence[DecodedFrame]) -> list[Refused]:
        """Write one line for each event; unreadable frames are refused by the store."""
        events = [one.payload for one in decoded_frames if one.kind == AUDIT and one.fault is None]
        if events:
            self._count_dropped(self._log.write(events))
        return []

    def finish_writer(self, writer_id: str) -> None:
        """The log keeps nothing by writer."""

    def _count_dropped(self, dropped: int) -> None:
        """Report losses once the log can be written again: before, the report would be lost too."""
        self.dropped += dropped
        self._missing += dropped
        if self._missing and not dropped:
            _logger.error("audit events are missing in the log", extra={"events": self._missing})
            self._missing = 0

    def maintain(self) -> None:
        """The log needs no maintenance."""

    def close(self) -> None:
        """Close the log's pipe."""
        self._log.close()


def unreadable(decoded_frames: Sequence[DecodedFrame]) -> list[Refused]:
    """The frames that no sink can take, because they hold no record."""
    return [
        Refused(index, decoded.fault)
        for index, decoded in enumerate(decoded_frames)
        if decoded.fault is not None
    ]


def _call(query: Callable[[], Result]) -> Result:
    """Run ``query`` at the store; its being unavailable is the sink's being unavailable."""
    try:
        return query()
    except UnstorableRecord:
        raise
    except StoreError as error:
        raise SinkUnavailable(str(error)) from error
