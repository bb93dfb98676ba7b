"""The Kafka sink. The order of an organization's records in their topic survives every failure.

Records of one organization have the same key, so they share a partition. A delivery puts at most
one producer batch into each partition and waits for all of them, so no record can overtake one that
failed. A batch with an unknown result is delivered again by a new producer: its records may be in
the topic twice, with the same ids, and their first occurrences are in order.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from kafka import errors as kafka_errors

from router.agent.kafka.producer import ClosableProducer, KafkaConfig, connect_producer, text_of
from router.agent.reading.decoded_frames import DecodedFrame
from router.agent.sinks import Refused, SinkUnavailable, unreadable
from router.clock import Clock
from router.spool.frames import AUDIT, USAGE

ACKNOWLEDGED_WITHIN_S: Final = 30.0
"""After this the producer is closed with all its batches; a broker that is back needs less."""
CLOSE_S: Final = 1.0
DEAD_LETTERS_S: Final = 5.0
DEAD_LETTERS_AGAIN_S: Final = 60.0
"""Pause after a failed dead-letter delivery: each attempt delays the records behind it."""
DEAD_LETTER_SUFFIX: Final = ".dlq"
DEAD_LETTER_BYTES: Final = 512 * 1024
"""A longer payload is cut for the dead-letter topic; the file has all of it."""

_WAIT_S: Final = 0.25
_SPLIT_S: Final = 0.01
_GUESSES: Final = 8
"""So many suspects in a row are tried alone before the search halves the rest."""

_CONTENT_ERRORS: Final = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.UnsupportedForMessageFormatError,
)
"""The broker has seen the record and will never accept it."""
_SIZE_ERRORS: Final = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
)

_logger = logging.getLogger("router.agent")


class Message(NamedTuple):
    """A message, and the index in the batch of the record in it."""

    batch_index: int
    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class KafkaSink:
    """Delivers to Kafka with acks=all, idempotently, one batch of records at a time."""

    name: Final = "kafka"

    def __init__(
        self,
        config: KafkaConfig,
        *,
        stop: threading.Event,
        connect: Callable[[KafkaConfig], ClosableProducer] = connect_producer,
        clock: Clock | None = None,
    ) -> None:
        """``stop`` ends a delivery that still waits; it then counts as failed."""
        self._config = config
        self._topics = {USAGE: config.usage_topic, AUDIT: config.audit_topic}
        self._stop = stop
        self._connect = connect
        self._clock = clock or Clock()
        self._producer: ClosableProducer | None = None
        self._dead_letters_not_before_s: dict[str, float] = {}

    def deliver(self, decoded_frames: Sequence[DecodedFrame]) -> list[Refused]:
        """Return when the brokers have acknowledged all records but the refused ones."""
        messages = [
            Message(index, self._topics[decoded.kind], _key(decoded), decoded.payload)
            for index, decoded in enumerate(decoded_frames)
            if decoded.fault is None
        ]
        refused = [*unreadable(decoded_frames), *self._send(messages)]
        self._send_dead_letters(decoded_frames, refused)
        return refused

    def finish_writer(self, writer_id: str) -> None:
        """Topics keep nothing by writer."""

    def maintain(self) -> None:
        """The library maintains itself."""

    def close(self) -> None:
        """Close the producer."""
        self._close_producer(CLOSE_S)

    def _send(self, messages: list[Message], guesses: int = _GUESSES) -> list[Refused]:
        """Deliver in order; the messages that the brokers refuse."""
        if not messages:
            return []
        faults = self._try(messages, ACKNOWLEDGED_WITHIN_S)
        if not any(faults):
            return []
        # A batch that failed leaves a hole in the producer's sequence numbers.
        self._close_producer()
        for fault in filter(None, faults):
            if not _is_about_content(fault, faults):
                raise SinkUnavailable(text_of(fault)) from fault
        suspects = [
            (message, fault) for message, fault in zip(messages, faults, strict=True) if fault
        ]
        if len(suspects) == 1:
            message, fault = suspects[0]
            return [Refused(message.batch_index, text_of(fault))]
        # The broker refuses a batch because of one of its records and need not say which. Every
        # failure costs a producer, so the most likely culprit is tried alone.
        guess = _likely_culprit(suspects) if guesses else None
        middle = len(suspects) // 2
        cuts = (middle, middle) if guess is None else (guess, guess + 1)
        rest = [message for message, _ in suspects]
        refused: list[Refused] = []
        for part in (rest[: cuts[0]], rest[cuts[0] : cuts[1]], rest[cuts[1] :]):
            refused += self._send(part, max(0, guesses - 1))
        return refused

    def _try(self, messages: Sequence[Message], timeout_s: float) -> list[BaseException | None]:
        """Send and wait; for each message its error, if any. Raises :class:`SinkUnavailable`."""
        if self._producer is None:
            self._producer = self._connect(self._config)
        producer = self._producer
        futures: list[Any] = []
        try:
            for _, topic, key, value, headers in messages:
                futures.append(_send(producer, topic, key, value, list(headers)))
            self._await(producer, futures, timeout_s)
        except SinkUnavailable:
            self._close_producer()
            raise
        except kafka_errors.KafkaError as error:
            self._close_producer()
            raise SinkUnavailable(text_of(error)) from error
        return [one if isinstance(one, BaseException) else one.exception for one in futures]

    def _await(self, producer: ClosableProducer, futures: Sequence[Any], timeout_s: float) -> None:
        ends_s = self._clock.monotonic_s() + timeout_s
        while True:
            try:
                producer.flush(timeout=_WAIT_S)
            except kafka_errors.KafkaTimeoutError:
                pass
            except kafka_errors.UnknownError:
                # The library splits a batch that is too large, and goes on with its parts.
                self._stop.wait(_SPLIT_S)
            if all(isinstance(one, BaseException) or one.is_done for one in futures):
                return
            if self._stop.is_set():
                raise SinkUnavailable("stopped while brokers did not acknowledge")
            if self._clock.monotonic_s() >= ends_s:
                raise SinkUnavailable(f"no acknowledgement within {timeout_s:g} s")

    def _send_dead_letters(
        self, decoded_frames: Sequence[DecodedFrame], refused: Sequence[Refused]
    ) -> None:
        """Send them to the dead-letter topic too. The file is what counts, so this may fail."""
        by_topic: dict[str, list[Message]] = {}
        for index, reason in refused:
            message = self._dead_letter(decoded_frames[index], index, reason)
            by_topic.setdefault(message.topic, []).append(message)
        for topic, messages in by_topic.items():
            if self._clock.monotonic_s() >= self._dead_letters_not_before_s.get(topic, 0.0):
                self._send_to_dead_letter_topic(topic, messages)

    def _send_to_dead_letter_topic(self, topic: str, messages: list[Message]) -> None:
        try:
            faults = list(filter(None, self._try(messages, DEAD_LETTERS_S)))
        except SinkUnavailable as error:
            faults = [error]
        if faults:
            self._close_producer()
            self._dead_letters_not_before_s[topic] = (
                self._clock.monotonic_s() + DEAD_LETTERS_AGAIN_S
            )
            facts = {
                "topic": topic,
                "reason": text_of(faults[0]),
                "records": len(messages),
                "again_in_s": DEAD_LETTERS_AGAIN_S,
            }
            _logger.warning("dead letters are in the file only", extra=facts)

    def _dead_letter(self, decoded: DecodedFrame, index: int, reason: str) -> Message:
        topic = self._topics.get(decoded.kind, self._config.usage_topic)
        headers = (("reason", reason.encode()), ("bytes", b"%d" % len(decoded.payload)))
        value = decoded.payload[:DEAD_LETTER_BYTES]
        return Message(index, topic + DEAD_LETTER_SUFFIX, _key(decoded), value, headers)

    def _close_producer(self, timeout_s: float = 0.0) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            producer.close(timeout=timeout_s)
        except Exception as error:
            _logger.warning("producer not closed", extra={"reason": text_of(error)})


def _send(
    producer: ClosableProducer,
    topic: str,
    key: bytes,
    value: bytes,
    headers: list[tuple[str, bytes]],
) -> Any:
    """The library's future of the message, or the error for which it did not take the message."""
    try:
        return producer.send(topic, value=value, key=key, headers=headers)
    except _CONTENT_ERRORS as error:
        return error


def _is_about_content(fault: BaseException, faults: Sequence[BaseException | None]) -> bool:
    # The bare base class beside a content error: the batch was refused because of that other
    # record. Alone it is the library's own trouble, such as a broker without a producer id.
    if type(fault) is kafka_errors.KafkaError:
        return any(isinstance(one, _CONTENT_ERRORS) for one in faults)
    return isinstance(fault, _CONTENT_ERRORS)


def _likely_culprit(suspects: Sequence[tuple[Message, BaseException]]) -> int | None:
    """The index of the message that the broker named, or of the largest when size is the reason.

    A guess only: when a producer has failed, batches that were never sent fail too. ``None``
    without a guess.
    """
    shared = Counter(id(fault) for _, fault in suspects)
    for index, (_, fault) in enumerate(suspects):
        if type(fault) is not kafka_errors.KafkaError and shared[id(fault)] == 1:
            return index
    if isinstance(suspects[0][1], _SIZE_ERRORS):
        return max(range(len(suspects)), key=lambda index: len(suspects[index][0].value))
    return None


def _key(decoded: DecodedFrame) -> bytes:
    """The organization; an event of none is kept in order by its entity."""
    for name in ("organization_id", "entity_id"):
        found = decoded.fields.get(name)
        if isinstance(found, str):
            return found.encode("utf-8", "replace")
    return b""
