"""The Kafka sink. What a record's place in its topic means must survive every failure here.

Records of one organization have the same key, so they share a partition. A delivery puts at most
one producer batch into each partition and waits for all of them, so nothing can overtake a record
that failed. A batch whose fate is unknown is delivered again by a new producer: its records may
stand in the topic twice, with the same ids, and what comes first stands in order.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from kafka import errors as kafka_errors

from router.agent.decoded_frames import DecodedFrame
from router.agent.kafka.producer import Delivery, KafkaConfig, Producer, connect_producer, text_of
from router.agent.sinks import Refused, SinkUnavailable, faulty
from router.clock import Clock
from router.spool.frames import AUDIT, USAGE

ACKNOWLEDGED_WITHIN_S: Final = 30.0
"""After this the producer is given up with all that it has; a broker that is back needs less."""
CLOSE_S: Final = 1.0
DEAD_LETTERS_S: Final = 5.0
DEAD_LETTERS_AGAIN_S: Final = 60.0
"""So long a dead-letter topic that took nothing is left alone: trying it holds up deliveries."""
DEAD_LETTER_SUFFIX: Final = ".dlq"
DEAD_LETTER_BYTES: Final = 512 * 1024
"""More of a payload does not go to the dead-letter topic; the file has all of it."""

_WAIT_S: Final = 0.25
_SPLIT_S: Final = 0.01
_GUESSES: Final = 8
"""So many suspects in a row are tried alone before a search halves what is left."""

_CONTENT_ERRORS: Final = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.UnsupportedForMessageFormatError,
)
"""The broker has seen the record and does not want it, now or ever."""
_SIZE_ERRORS: Final = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
)

Fate = Delivery | BaseException

_logger = logging.getLogger("router.agent")


class Message(NamedTuple):
    """What is sent, and which parcel it was."""

    place: int
    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class KafkaSink:
    """Delivers to Kafka with acks=all, idempotently, and never more than one batch of parcels."""

    name: Final = "kafka"

    def __init__(
        self,
        config: KafkaConfig,
        *,
        stop: threading.Event,
        connect: Callable[[KafkaConfig], Producer] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """``stop`` ends a delivery that still waits; it then counts as not made."""
        self._config = config
        self._topics = {USAGE: config.usage_topic, AUDIT: config.audit_topic}
        self._stop = stop
        self._connect = connect or connect_producer
        self._clock = clock or Clock()
        self._producer: Producer | None = None
        self._no_letters_before_s: dict[str, float] = {}

    def deliver(self, decoded_frames: Sequence[DecodedFrame]) -> list[Refused]:
        """Return when brokers have acknowledged all parcels but those that they refuse."""
        messages = [
            Message(place, self._topics[decoded.kind], _key(decoded), decoded.payload)
            for place, decoded in enumerate(decoded_frames)
            if decoded.fault is None
        ]
        refused = [*faulty(decoded_frames), *self._send(messages)]
        self._send_dead_letters(decoded_frames, refused)
        return refused

    def finish_writer(self, writer_id: str) -> None:
        """A topic knows no writers."""

    def maintain(self) -> None:
        """The library tends to itself."""

    def close(self) -> None:
        """Let go of the producer."""
        self._give_up(CLOSE_S)

    def _send(self, messages: list[Message], guesses: int = _GUESSES) -> list[Refused]:
        """Deliver in order and find out which ones the brokers refuse."""
        if not messages:
            return []
        faults = self._try(messages, ACKNOWLEDGED_WITHIN_S)
        if not any(faults):
            return []
        # A batch that failed leaves a hole in the producer's sequence numbers.
        self._give_up()
        for fault in filter(None, faults):
            if not _is_about_content(fault):
                raise SinkUnavailable(text_of(fault)) from fault
        suspects = [
            (message, fault) for message, fault in zip(messages, faults, strict=True) if fault
        ]
        if len(suspects) == 1:
            message, fault = suspects[0]
            return [Refused(message.place, text_of(fault))]
        # The broker refuses a batch because of one of its records and need not say which. Every
        # failure costs a producer, so whoever is likely to be the one is tried alone.
        guess = _likely_culprit(suspects) if guesses else None
        middle = len(suspects) // 2
        cuts = (middle, middle) if guess is None else (guess, guess + 1)
        rest = [message for message, _ in suspects]
        refused: list[Refused] = []
        for part in (rest[: cuts[0]], rest[cuts[0] : cuts[1]], rest[cuts[1] :]):
            refused += self._send(part, max(0, guesses - 1))
        return refused

    def _try(self, messages: Sequence[Message], timeout_s: float) -> list[BaseException | None]:
        """Send, wait, and tell what became of each message; raises :class:`SinkUnavailable`."""
        if self._producer is None:
            self._producer = self._connect(self._config)
        producer = self._producer
        fates: list[Fate] = []
        try:
            for _, topic, key, value, headers in messages:
                fates.append(_send(producer, topic, key, value, list(headers)))
            self._await(producer, fates, timeout_s)
        except SinkUnavailable:
            self._give_up()
            raise
        except kafka_errors.KafkaError as error:
            self._give_up()
            raise SinkUnavailable(text_of(error)) from error
        return [fate if isinstance(fate, BaseException) else fate.exception for fate in fates]

    def _await(self, producer: Producer, fates: Sequence[Fate], timeout_s: float) -> None:
        ends_s = self._clock.monotonic_s() + timeout_s
        while True:
            try:
                producer.flush(timeout=_WAIT_S)
            except kafka_errors.KafkaTimeoutError:
                pass
            except kafka_errors.UnknownError:
                # The library splits a batch that is too large, and goes on with its parts.
                self._stop.wait(_SPLIT_S)
            if all(isinstance(fate, BaseException) or fate.is_done for fate in fates):
                return
            if self._stop.is_set():
                raise SinkUnavailable("stopped while brokers did not acknowledge")
            if self._clock.monotonic_s() >= ends_s:
                raise SinkUnavailable(f"no acknowledgement within {timeout_s:g} s")

    def _send_dead_letters(
        self, decoded_frames: Sequence[DecodedFrame], refused: Sequence[Refused]
    ) -> None:
        """Tell the dead-letter topic too. The file is what counts, so this may fail."""
        by_topic: dict[str, list[Message]] = {}
        for place, reason in refused:
            letter = self._letter(decoded_frames[place], place, reason)
            by_topic.setdefault(letter.topic, []).append(letter)
        for topic, letters in by_topic.items():
            if self._clock.monotonic_s() >= self._no_letters_before_s.get(topic, 0.0):
                self._send_letters(topic, letters)

    def _send_letters(self, topic: str, letters: list[Message]) -> None:
        try:
            faults = list(filter(None, self._try(letters, DEAD_LETTERS_S)))
        except SinkUnavailable as error:
            faults = [error]
        if faults:
            self._give_up()
            self._no_letters_before_s[topic] = self._clock.monotonic_s() + DEAD_LETTERS_AGAIN_S
            facts = {
                "topic": topic,
                "reason": text_of(faults[0]),
                "records": len(letters),
                "again_in_s": DEAD_LETTERS_AGAIN_S,
            }
            _logger.warning("dead letters are in the file only", extra=facts)

    def _letter(self, decoded: DecodedFrame, place: int, reason: str) -> Message:
        topic = self._topics.get(decoded.kind, self._config.usage_topic)
        headers = (("reason", reason.encode()), ("bytes", b"%d" % len(decoded.payload)))
        value = decoded.payload[:DEAD_LETTER_BYTES]
        return Message(place, topic + DEAD_LETTER_SUFFIX, _key(decoded), value, headers)

    def _give_up(self, timeout_s: float = 0.0) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            producer.close(timeout=timeout_s)
        except Exception as error:
            _logger.warning("producer not closed", extra={"reason": text_of(error)})


def _send(
    producer: Producer, topic: str, key: bytes, value: bytes, headers: list[tuple[str, bytes]]
) -> Fate:
    try:
        return producer.send(topic, value=value, key=key, headers=headers)
    except _CONTENT_ERRORS as error:
        found: BaseException = error
        return found


def _is_about_content(fault: BaseException) -> bool:
    # The bare base class: the batch was refused because of another record in it.
    return isinstance(fault, _CONTENT_ERRORS) or type(fault) is kafka_errors.KafkaError


def _likely_culprit(suspects: Sequence[tuple[Message, BaseException]]) -> int | None:
    """Whom the broker named, or the largest when it is about size; ``None`` when nobody can tell.

    Only to be tried alone: when a producer has failed, batches that were never sent fail too.
    """
    shared = Counter(id(fault) for _, fault in suspects)
    for index, (_, fault) in enumerate(suspects):
        if type(fault) is not kafka_errors.KafkaError and shared[id(fault)] == 1:
            return index
    if isinstance(suspects[0][1], _SIZE_ERRORS):
        return max(range(len(suspects)), key=lambda index: len(suspects[index][0].value))
    return None


def _key(decoded: DecodedFrame) -> bytes:
    """What belongs to nobody is kept in order by what it is about."""
    for name in ("organization_id", "entity_id"):
        found = decoded.fields.get(name)
        if isinstance(found, str):
            return found.encode("utf-8", "replace")
    return b""
