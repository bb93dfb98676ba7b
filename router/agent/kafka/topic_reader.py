"""Read a topic from its beginning to the end that it had when the reading began."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from router.agent.kafka.producer import (
    BOOTSTRAP_S,
    KafkaConfig,
    limit_library_log,
    probe_connectivity,
    text_of,
)
from router.agent.sinks import SinkUnavailable
from router.clock import Clock

SILENCE_S: Final = 30.0
"""Reading fails when the brokers deliver nothing for so long although there is more."""
_POLL_MS: Final = 500
_FETCH_BYTES: Final = 16 * 1024 * 1024
_PARTITION_BYTES: Final = 4 * 1024 * 1024


class TopicUnreadable(Exception):
    """The topic could not be read to its end; the message is for operators."""


class TopicReader:
    """The values of one topic, oldest first within each partition.

    It joins no consumer group and commits nothing. May be used by one thread.
    """

    def __init__(
        self,
        config: KafkaConfig,
        topic: str,
        *,
        consumer: Any = None,
        clock: Clock | None = None,
    ) -> None:
        """Raises :class:`TopicUnreadable` when no broker answers."""
        self._topic = topic
        self._clock = clock or Clock()
        self._positions: dict[Any, int] = {}
        self.total = 0
        """Number of messages that the last :meth:`read` found when it began."""
        self.begins_late: int = 0
        """Partitions whose oldest messages the broker has removed already."""
        try:
            self._consumer = _connect(config) if consumer is None else consumer
        except (SinkUnavailable, kafka_errors.KafkaError) as error:
            raise TopicUnreadable(f"Kafka: {text_of(error)}") from error

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._consumer.close()

    def read(self, from_s: float | None = None) -> Iterator[list[bytes]]:
        """Yield all messages, on later calls those appended since the previous call.

        ``from_s`` makes the first call skip messages that were sent before. Raises
        :class:`TopicUnreadable`. A topic that does not exist is empty.
        """
        try:
            yield from self._read(from_s)
        except kafka_errors.KafkaError as error:
            raise TopicUnreadable(f"Kafka: {text_of(error)}") from error

    def _read(self, from_s: float | None) -> Iterator[list[bytes]]:
        consumer = self._consumer
        partitions = sorted(
            TopicPartition(self._topic, number)
            for number in consumer.partitions_for_topic(self._topic) or ()
        )
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions) if partitions else {}
        for partition, offset in self._starts(partitions, from_s).items():
            consumer.seek(partition, offset)
        self.total = sum(ends[one] - consumer.position(one) for one in partitions)
        progress_s = self._clock.monotonic_s()
        while left := [one for one in partitions if consumer.position(one) < ends[one]]:
            found = consumer.poll(timeout_ms=_POLL_MS)
            values = [
                message.value or b""
                for partition, messages in found.items()
                for message in messages
                if message.offset < ends[partition]
            ]
            now_s = self._clock.monotonic_s()
            if values:
                progress_s = now_s
                yield values
            elif now_s - progress_s > SILENCE_S:
                raise TopicUnreadable(
                    f"Kafka: no answer for {SILENCE_S:g} s, {len(left)} partitions unfinished"
                )
        self._positions.update(ends)

    def _starts(self, partitions: list[Any], from_s: float | None) -> dict[Any, int]:
        """The offset to begin with in each partition."""
        fresh = [one for one in partitions if one not in self._positions]
        starts = {one: self._positions[one] for one in partitions if one in self._positions}
        if not fresh:
            return starts
        oldest = self._consumer.beginning_offsets(fresh)
        by_time: dict[Any, Any] = {}
        if from_s is not None:
            timestamp_ms = max(0, int(from_s * 1000))
            by_time = self._consumer.offsets_for_times(dict.fromkeys(fresh, timestamp_ms))
        for one in fresh:
            sent = by_time.get(one)
            # No offset for the time may mean that the broker does not know it: then all is read.
            starts[one] = oldest[one] if sent is None else max(oldest[one], sent.offset)
            self.begins_late += 0 < oldest[one] == starts[one]
        return starts


def _connect(config: KafkaConfig) -> Any:
    limit_library_log()
    probe_connectivity(config.brokers)
    consumer = KafkaConsumer(
        bootstrap_servers=list(config.brokers),
        client_id="api-router-reader",
        api_version=config.api_version,
        bootstrap_timeout_ms=round(BOOTSTRAP_S * 1000),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        allow_auto_create_topics=False,
        # In Python the check takes longer than all the rest, and TCP has checked already.
        check_crcs=False,
        fetch_max_bytes=_FETCH_BYTES,
        max_partition_fetch_bytes=_PARTITION_BYTES,
        metrics_enabled=False,
    )
    try:
        # With `api_version` the library has not connected yet; a later call would block for ever.
        consumer.bootstrap(timeout_ms=round(BOOTSTRAP_S * 1000))
    except kafka_errors.KafkaError:
        consumer.close()
        raise
    return consumer
