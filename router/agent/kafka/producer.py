"""The library's producer, configured so that an unavailable broker costs next to nothing."""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaProducer
from kafka import errors as kafka_errors
from kafka.partitioner import DefaultPartitioner

from router.agent.sinks import SinkUnavailable
from router.clock import Clock

PROBE_S: Final = 1.5
BOOTSTRAP_S: Final = 3.0
"""Together with ``PROBE_S`` the longest time until it is known that no broker answers."""

_BATCH_BYTES: Final = 4 * 1024 * 1024
"""More than one delivery has, so that a producer never makes two batches of it."""
_LINGER_MS: Final = 10_000
"""No batch leaves before the flush: it would leave with a part of its records."""
_LIBRARY_NEVER_GIVES_UP_MS: Final = 24 * 3600 * 1000
_LOG_LINES_A_MINUTE: Final = 6


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    """Brokers and topics."""

    brokers: tuple[str, ...]
    """``host:port`` of any brokers of the cluster; one that answers is enough."""
    usage_topic: str = "usage.records.v1"
    audit_topic: str = "audit.router"
    api_version: tuple[int, ...] | None = None
    """Of the brokers; ``None``: the library asks them."""


class ClosableProducer(KafkaProducer):  # type: ignore[misc]
    """The library's producer, made closable while messages are pending."""

    _closing = False

    def flush(self, timeout: float | None = None) -> None:
        """Flush; no timeout error while closing: the base class would leave its thread running."""
        try:
            super().flush(timeout)
        except kafka_errors.KafkaTimeoutError:
            if not self._closing:
                raise

    def close(self, timeout: float | None = None, **options: Any) -> None:
        """Wait at most ``timeout`` seconds for pending messages, then close."""
        self._closing = True
        super().close(timeout, **options)


class CachingPartitioner(DefaultPartitioner):  # type: ignore[misc]
    """The default partitioner, with a cache: in Python the hash of a key is expensive."""

    _CACHED_KEYS: Final = 10_000

    def __init__(self) -> None:
        self._partitions: dict[tuple[str, bytes, int], int] = {}

    def partition(
        self, topic: str, key: Any, serialized_key: bytes, value: Any, data: bytes, cluster: Any
    ) -> int:
        """The partition of a key; it is computed again when the topic gets more partitions."""
        cache_key = (topic, serialized_key, len(cluster.partitions_for_topic(topic) or ()))
        partition = self._partitions.get(cache_key)
        if partition is None:
            if len(self._partitions) >= self._CACHED_KEYS:
                self._partitions.clear()
            partition = super().partition(topic, key, serialized_key, value, data, cluster)
            self._partitions[cache_key] = partition
        return partition


class PausingSelector(selectors.DefaultSelector):
    """Slows down the library's busy loop.

    While a broker is unavailable the library polls in a loop without a timeout, which takes most of
    a core. A socket that becomes ready still ends a pause at once.
    """

    _SHORT_S: Final = 0.02
    _SHORT_POLLS: Final = 10
    _PAUSE_S: Final = 0.1

    def __init__(self) -> None:
        super().__init__()
        self._empty_polls = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the base class, but after ten short polls in a row without a result, wait 0.1 s."""
        ready = super().select(timeout)
        if ready or timeout is None or timeout > self._SHORT_S:
            self._empty_polls = 0
            return ready
        self._empty_polls += 1
        return ready if self._empty_polls <= self._SHORT_POLLS else super().select(self._PAUSE_S)


class RateLimitedHandler(logging.Handler):
    """Passes a few lines a minute to the root logger's handlers and counts the rest."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock or Clock()
        self._minute_ends_s = 0.0
        self._passed = 0
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Pass the line on, or drop and count it."""
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


def limit_library_log() -> None:
    """Limit the library's log, which has several lines for each failed attempt to connect."""
    logger = logging.getLogger("kafka")
    logger.handlers[:] = [RateLimitedHandler()]
    logger.propagate = False


def connect_producer(config: KafkaConfig) -> ClosableProducer:
    """A connected producer; raises :class:`SinkUnavailable`, within 4.5 s if no broker answers."""
    probe_connectivity(config.brokers)
    try:
        return ClosableProducer(
            bootstrap_servers=list(config.brokers),
            client_id="api-router",
            api_version=config.api_version,
            bootstrap_timeout_ms=round(BOOTSTRAP_S * 1000),
            acks="all",
            enable_idempotence=True,
            # The checksum over the compressed data is computed in Python: less data is quicker.
            compression_type="gzip",
            partitioner=CachingPartitioner(),
            linger_ms=_LINGER_MS,
            batch_size=_BATCH_BYTES,
            max_request_size=_BATCH_BYTES,
            max_block_ms=round(BOOTSTRAP_S * 1000),
            request_timeout_ms=5_000,
            delivery_timeout_ms=_LIBRARY_NEVER_GIVES_UP_MS,
            reconnect_backoff_max_ms=1_000,
            metrics_enabled=False,
            selector=PausingSelector,
        )
    except kafka_errors.KafkaError as error:
        raise SinkUnavailable(text_of(error)) from error


def probe_connectivity(brokers: Sequence[str]) -> None:
    """Open a TCP connection to any of the brokers; raises :class:`SinkUnavailable`.

    A library client that finds no broker would leave sockets behind.
    """
    reason = "no brokers are configured"
    timeout_s = PROBE_S / max(1, len(brokers))
    for broker in brokers:
        host, _, port = broker.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
        except OSError as error:
            reason = f"{broker}: {error}"
        else:
            return
    raise SinkUnavailable(reason)


def text_of(error: BaseException) -> str:
    """The error as text for operators; some errors have no message, only a name."""
    return str(error).strip() or type(error).__name__
