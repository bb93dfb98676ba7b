"""Reads topics while they are written.

librdkafka's mock broker keeps the last 5 MB of a partition, so whoever wants all of a long run has
to read along.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from tests.fakes.kafka_broker import MockBroker
from tests.servers.router_process import wait_until

POLL_MS = 200
READ_TIMEOUT_S = 30.0


class TopicFollower:
    """A consumer in a thread of its own that keeps every message of the topics."""

    def __init__(self, broker: MockBroker, topics: tuple[str, ...]) -> None:
        self._places = [TopicPartition(topic, 0) for topic in topics]
        for topic in topics:
            broker.make_topic(topic, 1)
        self._consumer = KafkaConsumer(
            bootstrap_servers=[broker.address],
            api_version=broker.api_version,
            enable_auto_commit=False,
            group_id=None,
            metrics_enabled=False,
            check_crcs=False,  # in Python this takes longer than all the rest
            allow_auto_create_topics=False,
        )
        self._consumer.assign(self._places)
        self._messages: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        self._ends: dict[str, int] | None = None
        self._asked = threading.Event()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="topics", daemon=True)

    def start(self) -> None:
        """Begin at the beginning."""
        for place in self._places:
            self._consumer.seek(place, 0)
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._stopping.set()
        self._thread.join()
        self._consumer.close()

    def catch_up(self) -> None:
        """Until everything was read that is in the topics now; AssertionError for a hole."""
        self._ends = None
        self._asked.set()
        wait_until(self._has_everything, READ_TIMEOUT_S, "the topics are read")
        for topic, messages in self._messages.items():
            offsets = [offset for offset, _ in messages]
            assert offsets == list(range(len(offsets))), f"{topic} was not read whole"

    def records(self, topic: str) -> list[dict[str, Any]]:
        """What was read of a topic, in order."""
        return [json.loads(value) for _, value in self._messages[topic]]

    def _has_everything(self) -> bool:
        assert self._failure is None, repr(self._failure)
        ends = self._ends
        return ends is not None and all(
            len(self._messages[topic]) >= end for topic, end in ends.items()
        )

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._read()
        except BaseException as error:
            self._failure = error
            raise

    def _read(self) -> None:
        for place, records in self._consumer.poll(timeout_ms=POLL_MS).items():
            self._messages[place.topic] += [(record.offset, record.value) for record in records]
        if self._asked.is_set():
            self._asked.clear()
            ends = self._consumer.end_offsets(self._places)
            self._ends = {place.topic: end for place, end in ends.items()}


@contextmanager
def following(broker: MockBroker, *topics: str) -> Iterator[TopicFollower]:
    """Make the topics, with one partition each, and read along until the block ends."""
    follower = TopicFollower(broker, topics)
    follower.start()
    try:
        yield follower
    finally:
        follower.stop()
