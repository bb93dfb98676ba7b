"""The Kafka sink against a producer whose brokers do as they are told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from kafka import errors as kafka_errors

from router.agent.kafka.producer import KafkaConfig
from router.agent.kafka.sink import (
    ACKNOWLEDGED_WITHIN_S,
    DEAD_LETTER_BYTES,
    DEAD_LETTERS_AGAIN_S,
    KafkaSink,
)
from router.agent.sinks import Refused, SinkUnavailable
from router.clock import FrozenClock
from router.spool.frames import AUDIT, USAGE
from tests.fakes.shipping import decoded, decoded_frames, event, events, usage

TOPIC, AUDIT_TOPIC, DEAD = "usage.records.v1", "audit.router", "usage.records.v1.dlq"


@dataclass
class Fate:
    is_done: bool = False
    exception: BaseException | None = None


@dataclass(frozen=True)
class Sent:
    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


@dataclass
class Brokers:
    """What all producers of a test talk to. A partition takes a batch whole or not at all."""

    log: list[Sent] = field(default_factory=list)
    refuse: Callable[[Sent], BaseException | None] = lambda _sent: None
    """What they have against a message; its whole batch fails for it."""
    silent: bool = False
    splits: int = 0
    """So many flushes end early, as they do when the library splits a batch."""
    unavailable: BaseException | None = None
    made: int = 0
    closed: list[float] = field(default_factory=list)
    batches: int = 0

    def values(self, topic: str = TOPIC) -> list[bytes]:
        """What stands in a topic."""
        return [sent.value for sent in self.log if sent.topic == topic]


class Producer:
    """As the library's: batches by partition, and no further use after a failed one."""

    def __init__(self, brokers: Brokers, clock: FrozenClock) -> None:
        self._brokers = brokers
        self._clock = clock
        self._open: list[tuple[Sent, Fate]] = []
        self._failed: BaseException | None = None
        brokers.made += 1

    def send(self, topic: str, value: bytes, key: bytes, headers: Any) -> Fate:
        if self._brokers.unavailable is not None:
            raise self._brokers.unavailable
        if len(value) > 1_000_000:
            raise kafka_errors.MessageSizeTooLargeError("larger than a request may be")
        fate = Fate()
        self._open.append((Sent(topic, key, value, tuple(headers)), fate))
        return fate

    def flush(self, timeout: float) -> None:
        if self._brokers.silent:
            self._clock.advance(timeout)
            raise kafka_errors.KafkaTimeoutError("Timeout waiting for future")
        if self._brokers.splits > 0:
            self._brokers.splits -= 1
            raise kafka_errors.UnknownError("Future not done")
        batches: dict[tuple[str, bytes], list[tuple[Sent, Fate]]] = {}
        for sent, fate in self._open:
            batches.setdefault((sent.topic, sent.key), []).append((sent, fate))
        self._open.clear()
        for batch in batches.values():
            self._settle(batch)

    def close(self, timeout: float) -> None:
        self._brokers.closed.append(timeout)

    def _settle(self, batch: list[tuple[Sent, Fate]]) -> None:
        self._brokers.batches += 1
        faults = [self._failed or self._brokers.refuse(sent) for sent, _ in batch]
        fault = next(filter(None, faults), None)
        self._failed = fault
        for sent, fate in batch:
            fate.is_done, fate.exception = True, fault
            if fault is None:
                self._brokers.log.append(sent)


class Desk:
    def __init__(self) -> None:
        self.brokers = Brokers()
        self.clock = FrozenClock()
        self.stop = threading.Event()
        self.sink = KafkaSink(
            KafkaConfig(("127.0.0.1:9092",)),
            stop=self.stop,
            connect=lambda _config: Producer(self.brokers, self.clock),
            clock=self.clock,
        )


@pytest.fixture
def desk() -> Desk:
    return Desk()


def refuse_value(bad: bytes, error: BaseException) -> Callable[[Sent], BaseException | None]:
    """Refuse one value wherever it is sent to, but for the dead letters."""
    return lambda sent: error if sent.value == bad and sent.topic != DEAD else None


# --- delivery -------------------------------------------------------------------------------


def test_records_go_to_their_topic_under_the_key_of_their_organization(desk: Desk) -> None:
    """Q9: one organization, one partition; what belongs to none goes by what it is about."""
    nobody = decoded(event(2, organization=None), AUDIT)
    assert desk.sink.deliver([*decoded_frames([1]), *events([1]), nobody]) == []
    assert desk.brokers.log == [
        Sent(TOPIC, b"acme", usage(1), ()),
        Sent(AUDIT_TOPIC, b"acme", event(1), ()),
        Sent(AUDIT_TOPIC, b"key_1", event(2, organization=None), ()),
    ]


def test_a_degraded_record_has_an_empty_key(desk: Desk) -> None:
    """U4: it may not know whose it is; it is delivered all the same."""
    assert desk.sink.deliver([decoded(usage(1, organization_id=None))]) == []
    assert [sent.key for sent in desk.brokers.log] == [b""]


def test_one_producer_serves_for_as_long_as_all_goes_well(desk: Desk) -> None:
    """Connections are kept."""
    for number in range(5):
        desk.sink.deliver(decoded_frames([number]))
    desk.sink.deliver([])
    assert (desk.brokers.made, desk.brokers.closed) == (1, [])
    desk.sink.close()
    assert desk.brokers.closed == [1.0]


def test_a_batch_has_one_part_for_each_partition(desk: Desk) -> None:
    """P4: so nothing of an organization can overtake what failed before it."""
    batch = [decoded(usage(n, organization=f"org{n % 3}")) for n in range(300)]
    desk.sink.deliver(batch)
    assert desk.brokers.batches == 3


# --- brokers that are unavailable ----------------------------------------------------------------


def test_a_delivery_without_an_answer_is_given_up_in_the_end(desk: Desk) -> None:
    """Q4: it comes again through a new producer, which forgets nothing that was not acked."""
    desk.brokers.silent = True
    before_s = desk.clock.monotonic_s()
    with pytest.raises(SinkUnavailable, match="no acknowledgement within 30 s"):
        desk.sink.deliver(decoded_frames([1]))
    waited_s = desk.clock.monotonic_s() - before_s
    assert ACKNOWLEDGED_WITHIN_S <= waited_s < ACKNOWLEDGED_WITHIN_S + 1
    assert desk.brokers.closed == [0.0]
    desk.brokers.silent = False
    assert desk.sink.deliver(decoded_frames([1])) == []
    assert desk.brokers.values() == [usage(1)]
    assert desk.brokers.made == 2


def test_an_agent_that_ends_does_not_wait_for_brokers(desk: Desk) -> None:
    """Q5: what is not acknowledged stays on the disk."""
    desk.brokers.silent = True
    desk.stop.set()
    before_s = desk.clock.monotonic_s()
    with pytest.raises(SinkUnavailable, match="stopped"):
        desk.sink.deliver(decoded_frames([1]))
    assert desk.clock.monotonic_s() - before_s < 1


@pytest.mark.parametrize(
    "error",
    [
        kafka_errors.KafkaTimeoutError("no metadata"),
        kafka_errors.TopicAuthorizationFailedError("usage.records.v1"),
        kafka_errors.NotLeaderForPartitionError(),
    ],
)
def test_what_is_not_the_records_fault_is_no_reason_to_drop_them(
    desk: Desk, error: BaseException
) -> None:
    """P5: a wrong permission must not empty the spool into the dead letters."""
    for trouble in ("unavailable", "refused"):
        if trouble == "unavailable":
            desk.brokers.unavailable = error
        else:
            desk.brokers.unavailable = None
            desk.brokers.refuse = lambda _sent: error
        with pytest.raises(SinkUnavailable, match=type(error).__name__):
            desk.sink.deliver(decoded_frames([1]))
    assert desk.brokers.closed == [0.0, 0.0]
    assert desk.brokers.log == []


OF_A_RECORD = {
    "MessageSizeTooLargeError",
    "RecordListTooLargeError",
    "InvalidRecordError",
    "InvalidTimestampError",
    "UnsupportedForMessageFormatError",
}
"""The protocol's errors 10, 18, 87, 32 and 43: the broker has read the record and refuses it."""
ALL_ERRORS = sorted(
    name
    for name, error in vars(kafka_errors).items()
    if isinstance(error, type) and issubclass(error, kafka_errors.KafkaError)
)


@pytest.mark.parametrize("name", ALL_ERRORS)
def test_of_all_errors_only_those_of_a_record_dead_letter_it(desk: Desk, name: str) -> None:
    """P5: a bare error, as of a broker that gives no producer id, used to dead-letter all."""
    error = vars(kafka_errors)[name]
    batch = decoded_frames(range(3))
    desk.brokers.refuse = refuse_value(usage(1), error("no"))
    if name in OF_A_RECORD:
        assert [one.batch_index for one in desk.sink.deliver(batch)] == [1]
        return
    with pytest.raises(SinkUnavailable):
        desk.sink.deliver(batch)
    assert desk.brokers.values(DEAD) == []


def test_brokers_that_cannot_be_reached_make_the_sink_unavailable() -> None:
    """The next delivery tries again."""

    def refuse(_config: KafkaConfig) -> Producer:
        raise SinkUnavailable("127.0.0.1:9092: [Errno 111] Connection refused")

    sink = KafkaSink(KafkaConfig(("127.0.0.1:9092",)), stop=threading.Event(), connect=refuse)
    with pytest.raises(SinkUnavailable, match="refused"):
        sink.deliver(decoded_frames([1]))
    sink.close()


# --- poison ---------------------------------------------------------------------------------


def test_a_record_that_brokers_refuse_is_found_among_its_neighbours(desk: Desk) -> None:
    """P5: they refuse its whole batch and need not say whose fault it is."""
    batch = decoded_frames(range(1000))
    desk.brokers.refuse = refuse_value(usage(321), kafka_errors.InvalidRecordError("no"))
    refused = desk.sink.deliver(batch)
    assert [one.batch_index for one in refused] == [321]
    assert "no" in refused[0].reason
    assert desk.brokers.values() == [usage(n) for n in range(1000) if n != 321]
    assert desk.brokers.values(DEAD) == [usage(321)]
    assert desk.brokers.batches < 30


def test_neighbours_in_other_partitions_are_sent_once(desk: Desk) -> None:
    """Only what shared a batch with the culprit comes again."""
    batch = [decoded(usage(n, organization=f"org{n % 2}")) for n in range(8)]
    bad = usage(3, organization="org1")
    desk.brokers.refuse = refuse_value(bad, kafka_errors.InvalidRecordError("no"))
    assert [one.batch_index for one in desk.sink.deliver(batch)] == [3]
    sent = desk.brokers.values()
    assert len(sent) == len(set(sent)) == 7


def test_a_record_that_is_too_large_for_any_broker_is_refused(desk: Desk) -> None:
    """P5: the library says so at once; the dead letter has the beginning of it."""
    large = decoded(usage(2, filler="x" * 1_000_001))
    refused = desk.sink.deliver([*decoded_frames([1]), large, *decoded_frames([3])])
    assert [one.batch_index for one in refused] == [1]
    assert desk.brokers.values() == [usage(1), usage(3)]
    (dead_letter,) = [sent for sent in desk.brokers.log if sent.topic == DEAD]
    assert dead_letter.value == large.payload[:DEAD_LETTER_BYTES]
    assert dict(dead_letter.headers)["bytes"] == str(len(large.payload)).encode()
    assert b"MessageSizeTooLargeError" in dict(dead_letter.headers)["reason"]


def test_a_batch_that_the_library_splits_is_waited_for(desk: Desk) -> None:
    """Its flush used to end with "Future not done", and the batch came again for ever."""
    desk.brokers.splits = 3
    assert desk.sink.deliver(decoded_frames(range(10))) == []
    assert desk.brokers.values() == [usage(n) for n in range(10)]
    assert desk.brokers.made == 1


def test_a_record_without_sense_is_dead_lettered_unsent(desk: Desk) -> None:
    """P5: consumers never see it in the topic they read."""
    assert desk.sink.deliver([decoded(b"{", USAGE), *decoded_frames([1])]) == [
        Refused(0, "not JSON: unexpected end of data")
    ]
    assert desk.brokers.values() == [usage(1)]
    assert desk.brokers.values(DEAD) == [b"{"]


def test_a_refusal_that_does_not_repeat_dead_letters_nothing(desk: Desk) -> None:
    """A broker that refused once and then took the same records had no reason in them."""
    refusals = iter([kafka_errors.InvalidRecordError("once")])
    desk.brokers.refuse = lambda _sent: next(refusals, None)
    assert desk.sink.deliver(decoded_frames(range(10))) == []
    assert desk.brokers.values() == [usage(n) for n in range(10)]


def test_dead_letters_that_do_not_arrive_hold_up_nothing(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """The file has them; a missing dead-letter topic must not stop the books."""
    denied = kafka_errors.TopicAuthorizationFailedError(DEAD)
    desk.brokers.refuse = lambda sent: denied if sent.topic == DEAD else None
    with caplog.at_level(logging.WARNING):
        refused = desk.sink.deliver([decoded(b"{"), *decoded_frames([1])])
    assert [one.batch_index for one in refused] == [0]
    assert [record.message for record in caplog.records] == ["dead letters are in the file only"]
    assert desk.sink.deliver(decoded_frames([2])) == []
    assert desk.brokers.values() == [usage(1), usage(2)]


def test_a_producer_that_does_not_close_is_left_behind(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it throws while closing is no fault of the records."""

    def close(_self: Producer, timeout: float) -> None:
        raise RuntimeError(f"not within {timeout}")

    monkeypatch.setattr(Producer, "close", close)
    desk.brokers.silent = True
    with caplog.at_level(logging.WARNING), pytest.raises(SinkUnavailable):
        desk.sink.deliver(decoded_frames([1]))
    assert [record.message for record in caplog.records] == ["producer not closed"]
    desk.brokers.silent = False
    assert desk.sink.deliver(decoded_frames([1])) == []


@pytest.mark.parametrize("culprit", [0, 700, 1499])
def test_a_record_that_a_topic_finds_too_large_is_found_at_once(desk: Desk, culprit: int) -> None:
    """P5: every failure costs a producer, and each of those a tenth of a second."""
    large = usage(culprit, filler="x" * 5000)
    batch = [decoded(large if n == culprit else usage(n)) for n in range(1500)]
    desk.brokers.refuse = refuse_value(large, kafka_errors.MessageSizeTooLargeError("large"))
    assert [one.batch_index for one in desk.sink.deliver(batch)] == [culprit]
    assert desk.brokers.values() == [usage(n) for n in range(1500) if n != culprit]
    assert desk.brokers.made <= 3


def test_a_size_that_is_not_the_reason_is_no_endless_search(desk: Desk) -> None:
    """What brokers measure is compressed: the culprit may be the smallest of all."""
    batch = [decoded(usage(n, filler="x" * n)) for n in range(500)]
    bad = usage(0, filler="")
    desk.brokers.refuse = refuse_value(bad, kafka_errors.MessageSizeTooLargeError("large"))
    assert [one.batch_index for one in desk.sink.deliver(batch)] == [0]
    assert desk.brokers.values() == [usage(n, filler="x" * n) for n in range(1, 500)]
    assert desk.brokers.made < 25


def test_a_record_that_the_broker_names_is_found_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since Kafka 2.4: the others of its batch get the bare base class, each its own."""
    settle = Producer._settle

    def name_it(self: Producer, batch: list[tuple[Sent, Fate]]) -> None:
        settle(self, batch)
        for sent, fate in batch:
            if fate.exception is not None and sent.value != usage(321):
                fate.exception = kafka_errors.KafkaError("part of a batch with invalid records")

    monkeypatch.setattr(Producer, "_settle", name_it)
    desk.brokers.refuse = refuse_value(usage(321), kafka_errors.InvalidRecordError("no"))
    assert [one.batch_index for one in desk.sink.deliver(decoded_frames(range(1500)))] == [321]
    assert desk.brokers.values() == [usage(n) for n in range(1500) if n != 321]
    assert desk.brokers.made <= 3


def test_who_fails_with_a_dying_producer_is_no_culprit(desk: Desk) -> None:
    """A lone record in another partition gets the fault of the one that ended the producer."""
    lone = decoded(usage(1, organization="other"))
    batch = [decoded(usage(0, filler="bad")), lone, *decoded_frames(range(2, 10))]
    bad = batch[0].payload
    desk.brokers.refuse = refuse_value(bad, kafka_errors.InvalidRecordError("no"))
    assert [one.batch_index for one in desk.sink.deliver(batch)] == [0]
    assert set(desk.brokers.values()) == {one.payload for one in batch[1:]}


def test_a_dead_letter_topic_that_is_missing_is_asked_for_once_a_minute(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """P5: the library waits 3 s for a topic that nobody makes; the file has the dead letters."""
    missing = kafka_errors.UnknownTopicOrPartitionError(DEAD)
    desk.brokers.refuse = lambda sent: missing if sent.topic == DEAD else None
    for number in range(20):
        assert len(desk.sink.deliver([decoded(b"{"), *decoded_frames([number])])) == 1
    assert desk.brokers.made == 2
    assert len(caplog.records) == 1
    desk.brokers.refuse = lambda _sent: None
    desk.sink.deliver([decoded(b"{", AUDIT)])
    assert desk.brokers.values(f"{AUDIT_TOPIC}.dlq") == [b"{"]
    assert desk.brokers.values(DEAD) == []
    desk.clock.advance(DEAD_LETTERS_AGAIN_S)
    desk.sink.deliver([decoded(b"{")])
    assert desk.brokers.values(DEAD) == [b"{"]
