"""Reading a topic up to where it ends now, from a consumer that does as it is told."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from kafka import TopicPartition
from kafka import errors as kafka_errors

from router.agent.kafka import topic_reader
from router.agent.kafka.producer import KafkaConfig
from router.agent.kafka.topic_reader import SILENCE_S, TopicReader, TopicUnreadable
from router.clock import FrozenClock

CONFIG = KafkaConfig(("127.0.0.1:1",))


class Message(NamedTuple):
    offset: int
    value: bytes | None


class Sent(NamedTuple):
    offset: int


class Consumer:
    """A topic with two partitions; each poll gives two messages of one of them."""

    def __init__(self, clock: FrozenClock) -> None:
        self.clock = clock
        self.logs: dict[int, list[bytes | None]] = {0: [], 1: []}
        self.oldest = {0: 0, 1: 0}
        self.places: dict[TopicPartition, int] = {}
        self.sent_later: dict[int, int] = {}
        self.asked_times: list[dict[TopicPartition, int]] = []
        self.silent = False
        self.fault: Exception | None = None
        self.grows = False
        self.closed = False

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return set(self.logs) if topic == "usage" else None

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.places = dict.fromkeys(partitions, -1)

    def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {one: self.oldest[one.partition] for one in partitions}

    def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {one: len(self.logs[one.partition]) for one in partitions}

    def offsets_for_times(self, times: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        self.asked_times.append(times)
        return {
            one: Sent(self.sent_later[one.partition]) if one.partition in self.sent_later else None
            for one in times
        }

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.places[partition] = offset

    def position(self, partition: TopicPartition) -> int:
        return self.places[partition]

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Message]]:
        self.clock.advance(timeout_ms / 1000)
        if self.fault is not None:
            raise self.fault
        if self.grows:
            self.logs[0].append(b"too late")
        for one, start in self.places.items():
            log = self.logs[one.partition]
            if start < len(log) and not self.silent:
                found = [Message(n, log[n]) for n in range(start, min(start + 2, len(log)))]
                self.places[one] = found[-1].offset + 1
                return {one: found}
        return {}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def consumer(clock: FrozenClock) -> Consumer:
    return Consumer(clock)


@pytest.fixture
def reader(consumer: Consumer, clock: FrozenClock) -> TopicReader:
    return TopicReader(CONFIG, "usage", consumer=consumer, clock=clock)


def values(reader: TopicReader, from_s: float | None = None) -> list[bytes]:
    return [value for part in reader.read(from_s) for value in part]


def test_everything_is_read_and_then_what_is_new(reader: TopicReader, consumer: Consumer) -> None:
    """All partitions to their ends; a second reading begins there."""
    consumer.logs = {0: [b"a", b"b", b"c"], 1: [b"d", None]}
    assert sorted(values(reader)) == [b"", b"a", b"b", b"c", b"d"]
    assert reader.total == 5
    assert values(reader) == []
    consumer.logs[1].append(b"e")
    assert values(reader) == [b"e"]
    assert reader.total == 1


def test_what_is_appended_meanwhile_is_left_for_the_next_reading(
    reader: TopicReader, consumer: Consumer
) -> None:
    """A topic that never rests is read to an end all the same, and nothing is read twice."""
    consumer.logs[0] = [b"a", b"b", b"c"]
    consumer.grows = True
    assert values(reader) == [b"a", b"b", b"c"]
    consumer.grows = False
    later = len(consumer.logs[0]) - 3
    assert values(reader) == [b"too late"] * later


def test_older_messages_are_passed_over_where_the_broker_can_tell(
    reader: TopicReader, consumer: Consumer
) -> None:
    """Where it cannot, all of the partition is read."""
    consumer.logs = {0: [b"a", b"b", b"c"], 1: [b"d"]}
    consumer.sent_later = {0: 2}
    assert sorted(values(reader, 12.5)) == [b"c", b"d"]
    assert set(consumer.asked_times[0].values()) == {12_500}


def test_a_partition_that_has_lost_its_oldest_is_counted(
    reader: TopicReader, consumer: Consumer
) -> None:
    """Unless what is wanted began later."""
    consumer.logs = {0: [b"x", b"b"], 1: [b"x", b"x", b"d"]}
    consumer.oldest = {0: 1, 1: 1}
    consumer.sent_later = {1: 2}
    assert sorted(values(reader, 1.0)) == [b"b", b"d"]
    assert reader.begins_late == 1


def test_a_topic_that_does_not_exist_is_empty(consumer: Consumer, clock: FrozenClock) -> None:
    """Nobody has sent anything yet."""
    assert values(TopicReader(CONFIG, "other", consumer=consumer, clock=clock)) == []


def test_a_broker_that_falls_silent_is_given_up(
    reader: TopicReader, consumer: Consumer, clock: FrozenClock
) -> None:
    """A part of the topic would look like all of it."""
    consumer.logs[0] = [b"a"]
    consumer.silent = True
    before_s = clock.monotonic_s()
    with pytest.raises(TopicUnreadable, match="1 partitions unfinished"):
        values(reader)
    assert SILENCE_S < clock.monotonic_s() - before_s < SILENCE_S + 2


def test_a_fault_of_the_library_is_told_in_a_sentence(
    reader: TopicReader, consumer: Consumer
) -> None:
    """Also one without words."""
    consumer.logs[0] = [b"a"]
    consumer.fault = kafka_errors.KafkaTimeoutError()
    with pytest.raises(TopicUnreadable, match=r"^Kafka: .*KafkaTimeoutError"):
        values(reader)


def test_no_broker_is_told_when_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when something is read."""

    def refuse(_config: KafkaConfig) -> Any:
        raise kafka_errors.KafkaTimeoutError("no broker answers")

    monkeypatch.setattr(topic_reader, "_connect", refuse)
    with pytest.raises(TopicUnreadable, match="no broker answers"):
        TopicReader(CONFIG, "usage")


def test_the_connection_ends_with_the_block(reader: TopicReader, consumer: Consumer) -> None:
    """Whatever happened in it."""
    with pytest.raises(ZeroDivisionError), reader:
        raise ZeroDivisionError
    assert consumer.closed
