"""A broker is away or loses acknowledgements while clients call: they notice nothing.

The whole router as it is deployed, its own agent, and librdkafka's mock broker. The outage lasts
6 s at 60 calls/s, or 60 s at 300 calls/s with ``ROUTER_TEST_PROOF=1``.

Latencies are compared between before and meanwhile, within one run. On a machine that is busy with
other things the upper percentiles of the same router, undisturbed, differ by a factor of two from
one minute to the next; so the bounds say that no call has waited for a broker, whose timeouts are
seconds, and the figures themselves are in the report.
"""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from kafka import KafkaConsumer, TopicPartition

from router.agent.lock import AgentLock
from router.agent.status import read_report
from router.records.record_types import parse_timestamp_us
from router.spool.frames import USAGE
from router.spool.writer import SpoolWriter
from tests.servers.deployment import CHAT, HELLO, ORGANIZATION, Deployment, deploy
from tests.servers.load import Load, Result, running_load
from tests.servers.router_process import resident_bytes, wait_until

pytest.importorskip("confluent_kafka", reason="the mock broker needs confluent-kafka")

from tests.fakes.kafka_broker import MockBroker, mock_broker

PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))
RATE = 300.0 if PROOF else 60.0
OUTAGE_S = 60.0 if PROOF else 6.0
BESIDE_S = 15.0 if PROOF else 3.0
"""So long it is measured before the outage, and called on after it."""
CLIENTS = 12
MEDIAN_FACTOR, P99_FACTOR, SLACK_S = 2.0, 3.0, 0.05
WORKER_GROWTH_BYTES = 10e6
AGENT_GROWTH_BYTES = 120e6
"""64 MiB of it are SQLite's cache, which fills as the store does, outage or not."""
MERGED_WITHIN_US = 250_000
"""Workers append at the same time; between two of them order is exact to the time of an append."""
ORGANIZATIONS = (ORGANIZATION, *(f"org-{number}" for number in range(7 if PROOF else 3)))
PARTITIONS = 8
"""The mock broker keeps 5 MB of each."""
TOPIC, AUDIT_TOPIC = "usage.records.v1", "audit.router"
NEIGHBOUR_S = 1.0
POISON = b'{"record_id": "poison"'


@dataclass
class Scene:
    """The router, the broker it ships to, a key for each organization."""

    deployment: Deployment
    broker: MockBroker
    keys: list[str]

    @property
    def data_dir(self) -> Path:
        return self.deployment.router.data_dir

    def call(self, number: int, request_id: str) -> tuple[str, Any, dict[str, str]]:
        """Path, body and headers of a call."""
        headers = {"X-API-Key": self.keys[number % len(self.keys)], "X-Request-ID": request_id}
        return "/v1/chat/completions", {"model": CHAT, "messages": HELLO}, headers

    def sink(self, name: str) -> dict[str, Any]:
        """What the agent says of a sink."""
        found: dict[str, Any] = (read_report(self.data_dir) or {}).get("sinks", {}).get(name, {})
        return found

    def await_sink(self, name: str, timeout_s: float = 60.0) -> float:
        """Seconds until a sink has everything; the report is of now and not of before."""
        began = time.time()

        def has_everything() -> bool:
            found = read_report(self.data_dir) or {}
            reported_s = parse_timestamp_us(found["updated_at"]) / 1e6 if found else 0.0
            return reported_s > began + 1.0 and found["sinks"][name]["behind_bytes"] == 0

        return wait_until(has_everything, timeout_s, f"{name} has everything")

    def agent_pid(self) -> int:
        """The agent's process."""
        return int((self.data_dir / "run" / "agent.lock").read_text())


def _scope(fixture_name: str, config: pytest.Config) -> Any:
    """A router for each long test: the mock broker cannot keep what all of them ship."""
    return "function" if PROOF else "module"


@pytest.fixture(scope=_scope)
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with (
        mock_broker() as broker,
        deploy(
            tmp_path_factory.mktemp("router"),
            KAFKA_BROKERS=broker.address,
            KAFKA_API_VERSION=".".join(map(str, broker.api_version or ())),
            ROUTER_AGENT_DRAIN="2s",
        ) as deployment,
    ):
        for topic in (TOPIC, AUDIT_TOPIC):
            broker.make_topic(topic, PARTITIONS)
        deployment.document["organizations"] = [{"id": name} for name in ORGANIZATIONS]
        applied = deployment.router.apply(deployment.document)
        assert applied.returncode == 0, applied.stderr
        keys = [deployment.router.create_key(name).key for name in ORGANIZATIONS]
        scene = Scene(deployment, broker, keys)
        wait_until(lambda: scene.sink("kafka") != {}, 15.0, "the gateway's agent works")
        yield scene
        assert deployment.router.stop() == 0
        lock = AgentLock(scene.data_dir)
        wait_until(lambda: not lock.is_held(), 15.0, "the agent ends with its gateway")


@contextmanager
def paced_load(scene: Scene, name: str) -> Iterator[Load]:
    """Calls at ``RATE`` until the block ends, over all organizations in turn."""
    numbers, began_s, turn = itertools.count(), time.monotonic(), threading.Lock()

    def call(request_id: str) -> tuple[str, Any, dict[str, str]]:
        with turn:
            number = next(numbers)
        time.sleep(max(0.0, began_s + number / RATE - time.monotonic()))
        return scene.call(number, request_id)

    with running_load(scene.deployment.router.port, call, clients=CLIENTS, name=name) as load:
        yield load


class Latency(NamedTuple):
    """Of the calls of one stretch of time, in seconds."""

    median_s: float
    p99_s: float
    calls: int


def latency_of(results: list[Result]) -> Latency:
    """Median and 99th percentile."""
    taken_s = sorted(result.ended_s - result.started_s for result in results)
    return Latency(statistics.median(taken_s), taken_s[len(taken_s) * 99 // 100], len(taken_s))


Outage = Callable[[MockBroker], None]


def refuse(broker: MockBroker) -> None:
    """Nobody listens."""
    broker.go_down()
    time.sleep(OUTAGE_S)
    broker.come_up()


def hang(broker: MockBroker) -> None:
    """Connections stay and nobody answers: what had been asked is done, if at all, much later."""
    broker.pause()
    time.sleep(OUTAGE_S)
    broker.resume()


def lose_acknowledgements(broker: MockBroker) -> None:
    """Again and again everything asked is done, and the connection is lost before the answer."""
    ends_s = time.monotonic() + OUTAGE_S
    while time.monotonic() < ends_s:
        broker.delay(3000)
        time.sleep(1.0)
        broker.go_down()
        broker.delay(0)
        time.sleep(0.5)
        broker.come_up()
        time.sleep(0.5)


@pytest.mark.parametrize("outage", [refuse, hang, lose_acknowledgements])
def test_an_outage_reaches_no_client_and_loses_nothing(
    scene: Scene, outage: Outage, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """P4, Q3, Q4, Q6: no errors, latency and memory as before, all arrives, in order."""
    workers = scene.deployment.router.worker_pids()
    with paced_load(scene, outage.__name__) as load:
        time.sleep(2.0)  # first connections, first everything
        before_s = time.monotonic()
        time.sleep(BESIDE_S)
        held = {pid: resident_bytes(pid) for pid in [*workers, scene.agent_pid()]}
        during_s = time.monotonic()
        outage(scene.broker)
        after_s = time.monotonic()
        grown = {pid: resident_bytes(pid) - size for pid, size in held.items()}
        time.sleep(BESIDE_S)
    assert Counter(result.error or result.status for result in load.results).keys() == {200}
    during = [result for result in load.since(during_s) if result.started_s < after_s]
    quiet = [result for result in load.since(before_s) if result.started_s < during_s]
    before, meanwhile = latency_of(quiet), latency_of(during)
    recovery_s = scene.await_sink("kafka")
    answered = {result.request_id for result in load.results}
    repeated = check_arrival(scene, answered, outage.__name__)
    growth = max(grown[pid] for pid in workers)
    told = f"{outage.__name__}: before {before}, meanwhile {meanwhile}, {repeated} repeated"
    told += f", workers grew {growth / 1e6:.1f} MB, recovered in {recovery_s:.1f} s"
    told += f", agent grew {grown[scene.agent_pid()] / 1e6:.1f} MB"
    record_testsuite_property(f"outage.{outage.__name__}", told)
    assert meanwhile.calls > 0.5 * RATE * OUTAGE_S, "the machine is too busy"
    assert meanwhile.median_s < MEDIAN_FACTOR * before.median_s + SLACK_S, told
    assert meanwhile.p99_s < P99_FACTOR * before.p99_s + SLACK_S, told
    assert growth < WORKER_GROWTH_BYTES, told
    assert grown[scene.agent_pid()] < AGENT_GROWTH_BYTES, told
    if outage is lose_acknowledgements:
        assert repeated > 0, "no acknowledgement was lost, so nothing was shown"


def check_arrival(scene: Scene, answered: set[str], name: str) -> int:
    """Every answered call is in both topics, in order; how many records came more than once."""
    usage, repeated_usage = first_copies(scene.broker, TOPIC, "record_id", name)
    events, repeated_events = first_copies(scene.broker, AUDIT_TOPIC, "event_id", name)
    assert Counter(record["request_id"] for record in usage) == Counter(answered)
    places = {
        event["request_id"]: (event["writer_id"], event["sequence"])
        for event in events
        if event["action"] == "REQUEST_ALLOWED"
    }
    assert answered <= places.keys()
    for organization in ORGANIZATIONS:
        own = [record for record in usage if record["organization_id"] == organization]
        check_order(own, places)
    return repeated_usage + repeated_events


def read_whole(broker: MockBroker, topic: str) -> list[dict[str, Any]]:
    """All records of a topic, of each partition in order; AssertionError for a hole."""
    expected: Counter[int] = Counter()
    messages = broker.read(topic)
    for message in messages:
        assert message.offset == expected[message.partition], "the mock broker has dropped some"
        expected[message.partition] += 1
    return [orjson.loads(message.value) for message in messages]


def first_copies(
    broker: MockBroker, topic: str, id_name: str, name: str
) -> tuple[list[dict[str, Any]], int]:
    """What a load's calls have left in a topic, without repetitions; how many of those there were.

    What has the same id must be the same.
    """
    records = [
        record
        for record in read_whole(broker, topic)
        if str(record["request_id"]).startswith(f"{name}-")
    ]
    first: dict[str, dict[str, Any]] = {}
    for record in records:
        assert first.setdefault(record[id_name], record) == record, "one id, two records"
    return list(first.values()), len(records) - len(first)


def check_order(records: list[dict[str, Any]], places: dict[str, tuple[str, int]]) -> None:
    """Of each worker exactly as it wrote them; of several by the ends of their calls."""
    last: dict[str, int] = {}
    latest_us = 0
    for record in records:
        writer_id, sequence = places[record["request_id"]]
        assert sequence > last.get(writer_id, 0), "a worker's later call comes first"
        last[writer_id] = sequence
        ended_us = parse_timestamp_us(record["timestamp"]) + int(record["latency_ms"] * 1000)
        assert ended_us > latest_us - MERGED_WITHIN_US, "another worker's later call comes first"
        latest_us = max(latest_us, ended_us)


def test_poison_holds_up_no_call(scene: Scene) -> None:
    """P5: what is no record goes to the dead letters; the calls around it arrive within 1 s."""
    router = scene.deployment.router
    writer = SpoolWriter(scene.data_dir / "spool", max_bytes=1 << 30)
    try:
        assert call(scene, 0, "neighbour-0") == 200
        writer.append([(USAGE, orjson.dumps({"record_id": "r0", "request_id": "warm-up"}))])
        scene.await_sink("kafka")  # the agent knows all writers by now
        with consuming(scene.broker, TOPIC) as consumer:
            assert call(scene, 0, "neighbour-1") == 200
            writer.append([(USAGE, POISON)])
            assert call(scene, 0, "neighbour-2") == 200
            assert arrival_s(consumer, {"neighbour-1", "neighbour-2"}) < NEIGHBOUR_S
    finally:
        writer.close()
    wait_until(lambda: bool(scene.broker.read(f"{TOPIC}.dlq")), 5.0, "the letter is in its topic")
    letters = scene.broker.read(f"{TOPIC}.dlq")
    assert [letter.value for letter in letters] == [POISON]
    for sink in ("kafka", "store"):
        path = scene.data_dir / "dead-letter" / f"{sink}.jsonl"
        wait_until(path.exists, 5.0, f"{sink} has put it aside")
        found = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        assert POISON.decode() in [letter["payload"] for letter in found]
    dead = [line for line in router.log() if line["event"] == "record dead-lettered"]
    assert {line["sink"] for line in dead} == {"kafka", "store"}


def call(scene: Scene, number: int, request_id: str) -> int:
    """One call; its status."""
    path, fields, headers = scene.call(number, request_id)
    key = headers["X-API-Key"]
    return scene.deployment.router.post(path, fields, key, request_id=request_id).status


@contextmanager
def consuming(broker: MockBroker, topic: str) -> Iterator[KafkaConsumer]:
    """A consumer that is connected and has read what was there: to make one takes its time."""
    consumer = KafkaConsumer(
        bootstrap_servers=[broker.address],
        api_version=broker.api_version,
        group_id=None,
        enable_auto_commit=False,
        fetch_max_wait_ms=20,
    )
    try:
        consumer.assign([TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)])
        consumer.seek_to_beginning()
        while not consumer.poll(timeout_ms=100):
            pass
        yield consumer
    finally:
        consumer.close()


def arrival_s(consumer: KafkaConsumer, request_ids: set[str]) -> float:
    """Seconds until the records of these calls have come."""
    began_s = time.monotonic()
    missing = set(request_ids)
    while missing and time.monotonic() < began_s + 10:
        for messages in consumer.poll(timeout_ms=20).values():
            missing -= {orjson.loads(message.value)["request_id"] for message in messages}
    return time.monotonic() - began_s
