"""What is put around the library's producer."""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from router.agent.kafka import producer as kafka_producer
from router.agent.kafka.producer import (
    CachingPartitioner,
    KafkaConfig,
    PausingSelector,
    RateLimitedHandler,
    connect_producer,
    limit_library_log,
)
from router.agent.sinks import SinkUnavailable
from router.clock import FrozenClock

# --- waiting --------------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """What the real selector was asked to wait; nothing ever happens."""
    asked: list[float | None] = []

    def select(_self: object, timeout: float | None = None) -> list[Any]:
        asked.append(timeout)
        return []

    monkeypatch.setattr(selectors.DefaultSelector, "select", select)
    return asked


def test_a_loop_that_asks_in_vain_is_slowed_down(waits: list[float | None]) -> None:
    """Q1: the library asks some thousand times a second while a broker is unavailable."""
    with PausingSelector() as selector:
        for _ in range(30):
            selector.select(0)
    assert waits[:10] == [0] * 10
    assert waits[10:] == [0, 0.1] * 20


def test_who_waits_by_himself_is_left_alone(waits: list[float | None]) -> None:
    """And starts the count again."""
    with PausingSelector() as selector:
        for timeout in [0.0] * 9 + [1.0] + [0.0] * 9 + [None]:
            selector.select(timeout)
    assert 0.1 not in waits


def test_what_happens_ends_the_wait_and_the_count() -> None:
    """A broker that answers is heard at once."""
    ours, theirs = socket.socketpair()
    with ours, theirs, PausingSelector() as selector:
        selector.register(ours, selectors.EVENT_READ)
        theirs.send(b"x")
        for _ in range(30):
            assert len(selector.select(0)) == 1


# --- placing --------------------------------------------------------------------------------


class Cluster:
    """Some partitions, all of them there."""

    def __init__(self, partitions: int) -> None:
        self._partitions = set(range(partitions))

    def topics(self) -> set[str]:
        return {"t"}

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return self._partitions if topic == "t" else None

    def available_partitions_for_topic(self, topic: str) -> set[int] | None:
        return self.partitions_for_topic(topic)


def place(partitioner: Any, key: bytes, partitions: int) -> int:
    found: int = partitioner.partition("t", None, key, None, b"", Cluster(partitions))
    return found


def test_keys_are_placed_as_by_every_other_client() -> None:
    """Q9: also at the second time, and anew when the topic has grown."""
    partitioner, library = CachingPartitioner(), kafka_producer.DefaultPartitioner()
    for partitions in (3, 12, 3):
        for key in [b"org-%d" % number for number in range(50)] * 2:
            assert place(partitioner, key, partitions) == place(library, key, partitions)


def test_what_is_remembered_of_keys_is_bounded() -> None:
    """As many organizations as there may be."""
    partitioner = CachingPartitioner()
    for number in range(10_500):
        place(partitioner, b"%d" % number, 3)
    assert len(partitioner._partitions) <= 10_000


# --- talking --------------------------------------------------------------------------------


@pytest.fixture
def library_log() -> Iterator[logging.Logger]:
    """The library's logger, put back as it was."""
    logger = logging.getLogger("kafka")
    before = (list(logger.handlers), logger.propagate)
    yield logger
    logger.handlers[:], logger.propagate = before


def test_the_library_gets_a_few_lines_a_minute(
    library_log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1: a broker that is unavailable for an hour does not fill the log."""
    clock = FrozenClock()
    seen: list[logging.LogRecord] = []
    out = SimpleNamespace(handle=seen.append)
    monkeypatch.setattr(logging.getLogger(), "handlers", [out])
    limit_library_log()
    library_log.handlers[:] = [RateLimitedHandler(clock)]
    for minute in range(3):
        for _ in range(480):
            logging.getLogger("kafka.net").error("connection failed")
            clock.advance(0.125)
        assert len(seen) == 6 * (minute + 1)
    assert [vars(line).get("lines_dropped_before") for line in seen[::6]] == [0, 474, 474]


def test_what_the_library_says_for_itself_is_not_logged(
    library_log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only from WARNING on."""
    seen: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger(), "handlers", [SimpleNamespace(handle=seen.append)])
    limit_library_log()
    monkeypatch.setattr(logging.getLogger("kafka.net"), "level", logging.DEBUG)
    logging.getLogger("kafka.net").info("connected")
    assert seen == []


# --- connecting -----------------------------------------------------------------------------


def test_a_port_where_nobody_listens_is_said_to_be_one() -> None:
    """No producer is made, so none is left behind."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(SinkUnavailable, match=f"{address}: .*refused"):
            connect_producer(KafkaConfig((address,)))


def test_no_brokers_are_no_brokers() -> None:
    """Rather than the library's own idea of where one might be."""
    with pytest.raises(SinkUnavailable, match="no brokers"):
        connect_producer(KafkaConfig(()))


def test_the_producer_is_made_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q4, Q5: a new release of the library must not change what these promises rest on."""
    made: dict[str, Any] = {}

    def producer(**options: Any) -> object:
        made.update(options)
        return object()

    monkeypatch.setattr(kafka_producer, "ClosableProducer", producer)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        connect_producer(KafkaConfig(("127.0.0.1:1", address), api_version=(2, 3)))
    assert made["bootstrap_servers"] == ["127.0.0.1:1", address]
    assert made["api_version"] == (2, 3)
    assert (made["acks"], made["enable_idempotence"]) == ("all", True)
    assert made["bootstrap_timeout_ms"] + 1000 * kafka_producer.PROBE_S <= 5000
    assert made["max_block_ms"] <= 5000
    assert made["delivery_timeout_ms"] >= 3_600_000
    assert made["batch_size"] >= 2 * 1024 * 1024
