"""The library's producer, made and bounded so that a broker that is away costs next to nothing."""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from kafka import KafkaProducer
from kafka import errors as kafka_errors
from kafka.partitioner import DefaultPartitioner

from router.agent.sinks import SinkUnavailable
from router.clock import Clock

KNOCK_S: Final = 1.5
BOOTSTRAP_S: Final = 3.0
"""Finding out that no broker answers takes no longer than these two together."""

_BATCH_BYTES: Final = 4 * 1024 * 1024
"""More than one delivery has, so that a producer never makes two batches of it."""
_LINGER_MS: Final = 10_000
"""No batch leaves before the flush: it would leave with a part of its records."""
_LIBRARY_NEVER_GIVES_UP_MS: Final = 24 * 3600 * 1000
_LOG_LINES_A_MINUTE: Final = 6


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    """Where to and how."""

    brokers: tuple[str, ...]
    """``host:port``; any one that answers will do."""
    usage_topic: str = "usage.records.v1"
    audit_topic: str = "audit.router"
    api_version: tuple[int, ...] | None = None
    """Of the brokers, for those that cannot be asked."""


class Delivery(Protocol):
    """The fate of one message, as the library tells it."""

    @property
    def is_done(self) -> bool:
        """Whether the fate is known."""

    @property
    def exception(self) -> BaseException | None:
        """What went wrong."""


class Producer(Protocol):
    """What is used of the library's producer."""

    def send(self, topic: str, value: bytes, key: bytes, headers: Any) -> Delivery:
        """Put a message into a batch."""

    def flush(self, timeout: float) -> None:
        """Send all batches; raises ``KafkaTimeoutError`` when not all fates are known in time."""

    def close(self, timeout: float) -> None:
        """Let go of connections and of what is not acknowledged."""


class ClosableProducer(KafkaProducer):  # type: ignore[misc]
    """The library's producer, which can be closed also while messages are pending."""

    _closing = False

    def flush(self, timeout: float | None = None) -> None:
        """While closing, do not insist: the base class would then stay open, and its thread run."""
        try:
            super().flush(timeout)
        except kafka_errors.KafkaTimeoutError:
            if not self._closing:
                raise

    def close(self, timeout: float | None = None, **options: Any) -> None:
        """Give pending messages so many seconds, then let go."""
        self._closing = True
        super().close(timeout, **options)


class RememberingPartitioner(DefaultPartitioner):  # type: ignore[misc]
    """Places keys as every Kafka client does, and hashes each of them once."""

    _KEYS_KEPT: Final = 10_000

    def __init__(self) -> None:
        self._places: dict[tuple[str, bytes, int], int] = {}

    def partition(
        self, topic: str, key: Any, serialized_key: bytes, value: Any, data: bytes, cluster: Any
    ) -> int:
        """The partition of a key, for as long as the topic has as many partitions."""
        known = (topic, serialized_key, len(cluster.partitions_for_topic(topic) or ()))
        place = self._places.get(known)
        if place is None:
            if len(self._places) >= self._KEYS_KEPT:
                self._places.clear()
            place = super().partition(topic, key, serialized_key, value, data, cluster)
            self._places[known] = place
        return place


class PatientSelector(selectors.DefaultSelector):
    """Waits where the library would ask again and again.

    While a broker is away the library polls in a loop without a timeout, which takes most of a
    core. What it waits for still wakes it at once.
    """

    _HASTY_S: Final = 0.02
    _HASTE_BORNE: Final = 10
    _PAUSE_S: Final = 0.1

    def __init__(self) -> None:
        super().__init__()
        self._hasty_polls = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the base class, but of many empty polls in a row the later ones take their time."""
        ready = super().select(timeout)
        if ready or timeout is None or timeout > self._HASTY_S:
            self._hasty_polls = 0
            return ready
        self._hasty_polls += 1
        return ready if self._hasty_polls <= self._HASTE_BORNE else super().select(self._PAUSE_S)


class SparseHandler(logging.Handler):
    """Passes a few lines a minute on to the root's handlers and counts the rest."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock or Clock()
        self._minute_ends_s = 0.0
        self._passed = 0
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Pass the line on, or not."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._minute_ends_s:
            record.lines_dropped_before = self._dropped
            self._minute_ends_s, self._passed, self._dropped = now_s + 60.0, 0, 0
        if self._passed >= _LOG_LINES_A_MINUTE:
            self._dropped += 1
            return
        self._passed += 1
        for handler in logging.getLogger().handlers:
            handler.handle(record)


def thin_out_library_log() -> None:
    """The library writes several lines for each attempt to connect, for as long as that fails."""
    logger = logging.getLogger("kafka")
    logger.handlers[:] = [SparseHandler()]
    logger.propagate = False


def connect_producer(config: KafkaConfig) -> Producer:
    """A producer whose brokers answer; raises :class:`SinkUnavailable`, soon if none does."""
    knock(config.brokers)
    try:
        producer: Producer = ClosableProducer(
            bootstrap_servers=list(config.brokers),
            client_id="api-router",
            api_version=config.api_version,
            bootstrap_timeout_ms=round(BOOTSTRAP_S * 1000),
            acks="all",
            enable_idempotence=True,
            # The checksum is taken over what is sent, byte by byte in Python; so less is quicker.
            compression_type="gzip",
            partitioner=RememberingPartitioner(),
            linger_ms=_LINGER_MS,
            batch_size=_BATCH_BYTES,
            max_request_size=_BATCH_BYTES,
            max_block_ms=round(BOOTSTRAP_S * 1000),
            request_timeout_ms=5_000,
            delivery_timeout_ms=_LIBRARY_NEVER_GIVES_UP_MS,
            reconnect_backoff_max_ms=1_000,
            metrics_enabled=False,
            selector=PatientSelector,
        )
    except kafka_errors.KafkaError as error:
        raise SinkUnavailable(text_of(error)) from error
    return producer


def knock(brokers: Sequence[str]) -> None:
    """See whether anybody listens: a client that was made in vain leaves sockets behind.

    Raises :class:`SinkUnavailable`.
    """
    reason = "no brokers are configured"
    patience_s = KNOCK_S / max(1, len(brokers))
    for broker in brokers:
        host, _, port = broker.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), patience_s).close()
        except OSError as error:
            reason = f"{broker}: {error}"
        else:
            return
    raise SinkUnavailable(reason)


def text_of(error: BaseException) -> str:
    """What to tell an operator; some errors have nothing but their name."""
    return str(error).strip() or type(error).__name__
