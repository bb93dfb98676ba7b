"""What a sink is, and the two that need no network protocol: the record store and the log."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from router.agent.audit_log import AuditLog
from router.agent.decoded_frames import DecodedFrame
from router.clock import Clock
from router.spool.frames import AUDIT, USAGE
from router.store.store_errors import StoreError, UnstorableRecord

Answer = TypeVar("Answer")
Fields = Mapping[str, Any]

_MOVED: Final = re.compile(r"([0-9a-f]{12}-[0-9]+-[0-9a-f]{8})-[0-9]+")
"""The directory that a writer begins when its first one was taken from it."""

_logger = logging.getLogger("router.agent")


class SinkUnavailable(Exception):
    """It is not known that all of the batch is safe: deliver all of it again, later."""


class Refused(NamedTuple):
    """A record that the sink can never take, by its place in the batch."""

    place: int
    reason: str


class Sink(Protocol):
    """A place where records have to arrive, each at least once."""

    @property
    def name(self) -> str:
        """Names its checkpoint and its dead letters."""

    def deliver(self, decoded_frames: Sequence[DecodedFrame]) -> list[Refused]:
        """Return when the sink has all of them for good, but those that it refuses.

        Raises :class:`SinkUnavailable`.
        """

    def finish_writer(self, writer_id: str) -> None:
        """The writer is dead and all that it wrote was delivered. May come more than once.

        Raises :class:`SinkUnavailable`.
        """

    def maintain(self) -> None:
        """Upkeep that must not run beside a delivery; called several times a second.

        Raises :class:`SinkUnavailable`.
        """

    def close(self) -> None:
        """Give back connections, within a bounded time."""


class Written(Protocol):
    """What became of a batch."""

    @property
    def conflicts(self) -> Sequence[str]:
        """Ids under which something else is stored."""


class Store(Protocol):
    """What the store sink asks of the record store."""

    def migrate(self) -> None:
        """Make the tables what this program expects."""

    def write(self, usage: Sequence[Fields], audit: Sequence[Fields] = ()) -> Written:
        """Store all in one transaction, or nothing."""

    def close_writers(self, writer_ids: Sequence[str]) -> None:
        """Sign that these writers have ended."""

    def prune(self, before_s: float) -> int:
        """Remove audit events that are older."""

    def close(self) -> None:
        """Close all connections."""


class StoreSink:
    """The record store. No other thread of any process writes to it, if it is a file."""

    name: Final = "store"

    _TRIES_AT_ONCE: Final = 3
    """So many bad records cost one try each; of more, each half of the batch gets its own."""
    _PRUNE_EVERY_S: Final = 60.0
    """Often, so that there is never much of it: deliveries wait meanwhile."""
    _DAY_S: Final = 86_400.0

    def __init__(self, store: Store, *, audit_retention_days: int, clock: Clock) -> None:
        """``audit_retention_days``: 0 keeps audit events for ever."""
        self._store = store
        self._clock = clock
        self._retention_s = audit_retention_days * self._DAY_S
        self._migrated = False
        self._prune_at_s = clock.monotonic_s() + self._PRUNE_EVERY_S

    def deliver(self, decoded_frames: Sequence[DecodedFrame]) -> list[Refused]:
        """Store all in one transaction, those that cannot be stored left out."""
        self._migrate()
        sound = [
            (place, decoded)
            for place, decoded in enumerate(decoded_frames)
            if decoded.fault is None
        ]
        return [*faulty(decoded_frames), *self._store_all(sound)]

    def finish_writer(self, writer_id: str) -> None:
        """Close the writer's audit chain: from now on nobody can cut off its end unseen."""
        self._migrate()
        moved = _MOVED.fullmatch(writer_id)
        # Its events stand in the chain that it began with, in whichever directory they are.
        chain = moved[1] if moved else writer_id
        _ask(lambda: self._store.close_writers([chain]))

    def maintain(self) -> None:
        """Have the tables there before the first question, and drop what is too old."""
        self._migrate()
        now_s = self._clock.monotonic_s()
        if self._retention_s and now_s >= self._prune_at_s:
            self._prune_at_s = now_s + self._PRUNE_EVERY_S
            _ask(lambda: self._store.prune(self._clock.now_s() - self._retention_s))

    def close(self) -> None:
        """Close the connections."""
        self._store.close()

    def _migrate(self) -> None:
        if not self._migrated:
            _ask(self._store.migrate)
            self._migrated = True

    def _store_all(self, batch: list[tuple[int, DecodedFrame]]) -> list[Refused]:
        refused: list[Refused] = []
        rest = list(batch)
        for _ in range(self._TRIES_AT_ONCE):
            bad = self._try(rest)
            if bad is None:
                return refused
            where, reason = bad
            refused.append(Refused(rest.pop(where)[0], reason))
        middle = len(rest) // 2
        for half in (rest[:middle], rest[middle:]):
            refused += self._store_all(half)
        return refused

    def _try(self, batch: list[tuple[int, DecodedFrame]]) -> tuple[int, str] | None:
        """Store a batch; else where in it a record is that cannot be stored, and why."""
        if not batch:
            return None
        usage = [where for where, (_, decoded) in enumerate(batch) if decoded.kind == USAGE]
        audit = [where for where, (_, decoded) in enumerate(batch) if decoded.kind == AUDIT]
        records, events = ([batch[where][1].fields for where in kind] for kind in (usage, audit))
        try:
            written = _ask(lambda: self._store.write(records, events))
        except UnstorableRecord as error:
            places = usage if error.kind == "usage" else audit
            return places[error.index], error.reason
        for record_id in written.conflicts:
            # A fault of whoever made the second one, or a forged spool. The first one stays.
            _logger.error("another record has this id", extra={"record_id": record_id})
        return None


class EventLog(Protocol):
    """What the log sink writes to."""

    def write(self, events: Sequence[bytes]) -> int:
        """One line for each encoded event, within a bounded time; how many were not written."""

    def close(self) -> None:
        """Write no more."""


class LogSink:
    """Audit events as lines of the structured log, for routers without Kafka.

    A log that cannot be written is no reason to keep records on disk: the store has them.
    """

    name: Final = "log"

    def __init__(self, log: EventLog | None = None) -> None:
        self._log: EventLog = log or AuditLog()
        self._missing = 0
        self.dropped = 0
        """Events that are not in the log because it could not be written in time."""

    def deliver(self, decoded_frames: Sequence[DecodedFrame]) -> list[Refused]:
        """One line for each event; what cannot be read was refused by the store."""
        events = [one.payload for one in decoded_frames if one.kind == AUDIT and one.fault is None]
        if events:
            self._note(self._log.write(events))
        return []

    def finish_writer(self, writer_id: str) -> None:
        """Nothing is kept of a writer."""

    def _note(self, dropped: int) -> None:
        """Tell when it is over: until then that line could not be written either."""
        self.dropped += dropped
        self._missing += dropped
        if self._missing and not dropped:
            _logger.error("audit events are missing in the log", extra={"events": self._missing})
            self._missing = 0

    def maintain(self) -> None:
        """Nothing is to be done."""

    def close(self) -> None:
        """Let go of the log's pipe."""
        self._log.close()


def faulty(decoded_frames: Sequence[DecodedFrame]) -> list[Refused]:
    """The parcels that no sink can take."""
    return [
        Refused(place, decoded.fault)
        for place, decoded in enumerate(decoded_frames)
        if decoded.fault is not None
    ]


def _ask(question: Callable[[], Answer]) -> Answer:
    try:
        return question()
    except UnstorableRecord:
        raise
    except StoreError as error:
        raise SinkUnavailable(str(error)) from error
