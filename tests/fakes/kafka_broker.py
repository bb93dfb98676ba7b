"""A Kafka broker for tests: the mock cluster of librdkafka, in a process of its own.

It speaks the real protocol over real sockets and keeps topics in memory; their content is gone when
the process ends. What it is told arrives on its standard input:

    down | up            refuse connections, or no longer
    delay MS             answer so much later; what it was asked is done at once
    fail API CODE...     answer the next requests of this kind with these errors, doing nothing
    topic NAME COUNT     make a topic with so many partitions

librdkafka's own symbols are used through ``ctypes``, because the Python package offers none of
these. ``KRAFT_VARIABLE`` in the environment adds Apache Kafka itself to the tests (see
``kraft_broker``).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition

PRODUCE = 0
MESSAGE_TOO_LARGE = 10
INVALID_RECORD = 87
START_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0
API_VERSION = (2, 3)
"""The newest that kafka-python and the mock cluster agree on."""


class Message(NamedTuple):
    """What stands in a topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]


def read_topic(address: str, topic: str, api_version: tuple[int, ...] | None) -> list[Message]:
    """Everything in a topic, partition by partition in order; nothing when there is no topic."""
    consumer = KafkaConsumer(
        bootstrap_servers=[address],
        api_version=api_version,
        enable_auto_commit=False,
        group_id=None,
        metrics_enabled=False,
        check_crcs=False,  # in Python this takes longer than all the rest
        fetch_max_bytes=64 * 1024 * 1024,
        max_partition_fetch_bytes=32 * 1024 * 1024,
        allow_auto_create_topics=False,
    )
    try:
        partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or ()]
        return _read(consumer, partitions) if partitions else []
    finally:
        consumer.close()


def _read(consumer: Any, partitions: list[Any]) -> list[Message]:
    found: list[Message] = []
    consumer.assign(partitions)
    for place, start in consumer.beginning_offsets(partitions).items():
        consumer.seek(place, start)
    ends = consumer.end_offsets(partitions)
    while any(consumer.position(place) < ends[place] for place in partitions):
        batches = consumer.poll(timeout_ms=1000)
        for records in batches.values():
            found += [
                Message(r.partition, r.offset, r.key, r.value, dict(r.headers)) for r in records
            ]
    return sorted(found, key=lambda message: (message.partition, message.offset))


@dataclass
class MockBroker:
    """One broker that runs, its topics made when they are first used."""

    process: subprocess.Popen[str]
    address: str
    api_version: tuple[int, ...] | None = API_VERSION

    @property
    def pid(self) -> int:
        """The process that is the broker."""
        return self.process.pid

    def read(self, topic: str) -> list[Message]:
        """Everything in a topic."""
        return read_topic(self.address, topic, self.api_version)

    def go_down(self) -> None:
        """Close all connections and refuse new ones; what was written stays."""
        self._tell("down")

    def come_up(self) -> None:
        """Accept connections again, at the same address."""
        self._tell("up")

    def delay(self, milliseconds: int) -> None:
        """Do at once what is asked, and answer so much later."""
        self._tell(f"delay {milliseconds}")

    def fail_next(self, *codes: int, api: int = PRODUCE) -> None:
        """Refuse the next requests, one for each error code."""
        self._tell(f"fail {api} {' '.join(map(str, codes))}")

    def make_topic(self, name: str, partitions: int) -> None:
        """A topic with so many partitions."""
        self._tell(f"topic {name} {partitions}")

    def pause(self) -> None:
        """Stop answering; connections stay, as with a host that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on where it was paused."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it with all that it keeps."""
        self.process.kill()
        self.process.communicate()

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@contextlib.contextmanager
def mock_broker() -> Iterator[MockBroker]:
    """A broker until the block ends."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    broker = MockBroker(process, process.stdout.readline().strip())
    try:
        assert broker.address, "the mock broker did not start"
        yield broker
    finally:
        broker.kill()


# --- in the broker's own process -----------------------------------------------------------------

_BROKER_ID = 1


def _load() -> Any:
    """The very library that the Python package has loaded."""
    import confluent_kafka  # noqa: F401  (loads it)

    maps = Path("/proc/self/maps").read_text().splitlines()
    path = next(line.split()[-1] for line in maps if "librdkafka" in line)
    library = ctypes.CDLL(path)
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, number]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_broker_set_down", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_rtt", number, [pointer, ctypes.c_int32, number]),
        ("rd_kafka_mock_topic_create", number, [pointer, text, number, number]),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            [pointer, ctypes.c_int16, ctypes.c_size_t, pointer],
        ),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def _obey(library: Any, cluster: Any, verb: str, *values: str) -> None:
    if verb == "down":
        library.rd_kafka_mock_broker_set_down(cluster, _BROKER_ID)
    elif verb == "up":
        library.rd_kafka_mock_broker_set_up(cluster, _BROKER_ID)
    elif verb == "delay":
        library.rd_kafka_mock_broker_set_rtt(cluster, _BROKER_ID, int(values[0]))
    elif verb == "topic":
        library.rd_kafka_mock_topic_create(cluster, values[0].encode(), int(values[1]), 1)
    elif verb == "fail":
        api, *codes = map(int, values)
        errors = (ctypes.c_int * len(codes))(*codes)
        library.rd_kafka_mock_push_request_errors_array(cluster, api, len(codes), errors)
    else:
        raise ValueError(verb)


def _serve() -> None:
    library = _load()
    reason = ctypes.create_string_buffer(512)
    client = library.rd_kafka_new(0, library.rd_kafka_conf_new(), reason, len(reason))
    cluster = library.rd_kafka_mock_cluster_new(client, 1)
    sys.stdout.write(library.rd_kafka_mock_cluster_bootstraps(cluster).decode() + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        _obey(library, cluster, *line.split())
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
