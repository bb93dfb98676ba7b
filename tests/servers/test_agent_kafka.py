"""The agent and Kafka: brokers that are there, away, silent, slow, and not content with a record.

Every test runs against librdkafka's mock broker; where it is asked for (see ``kraft_broker``),
those that need no special misbehaviour run against Apache Kafka too.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router.spool.frames import USAGE
from router.spool.writer import SpoolWriter
from tests.fakes.kafka_broker import Message, MockBroker, mock_broker
from tests.fakes.kraft_broker import KraftBroker, kraft_broker, why_not
from tests.fakes.shipping import usage
from tests.servers.agent_process import AgentProcess, Worker, first_seen, out_of_order
from tests.servers.router_process import resident_bytes, wait_until

pytest.importorskip("confluent_kafka", reason="the mock broker needs confluent-kafka")

OUTAGE_S = float(os.environ.get("ROUTER_TEST_KAFKA_OUTAGE_S", "6"))
"""How long a broker is away; the figures of P4 are for 60 s and 10 minutes."""
KILLS = 6
GROWTH_BYTES = 50e6
CPU_SHARE = 0.02

Broker = MockBroker | KraftBroker
Hire = Callable[..., Worker]


@pytest.fixture(scope="module")
def kraft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KraftBroker]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with kraft_broker(tmp_path_factory.mktemp("kafka") / "node") as broker:
        yield broker


@pytest.fixture
def mock() -> Iterator[MockBroker]:
    with mock_broker() as broker:
        yield broker


@pytest.fixture(params=["mock", "kraft"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each kind of broker in turn."""
    found: Broker = request.getfixturevalue(request.param)
    return found


class Shipping(AgentProcess):
    """An agent that ships to topics of its own."""

    def use(self, broker: Broker) -> Shipping:
        """Ship to this broker."""
        self.broker = broker
        self.topic = f"usage-{secrets.token_hex(4)}"
        self.audit_topic = f"audit-{secrets.token_hex(4)}"
        version = ".".join(map(str, broker.api_version or ()))
        self.environment |= {
            "KAFKA_BROKERS": broker.address,
            "KAFKA_API_VERSION": version,
            "KAFKA_USAGE_TOPIC": self.topic,
            "KAFKA_AUDIT_TOPIC": self.audit_topic,
        }
        return self

    def arrived(self) -> list[Message]:
        """What stands in the topic of usage records."""
        return self.broker.read(self.topic)

    def arrived_records(self) -> list[dict[str, Any]]:
        """The same, decoded."""
        return [json.loads(message.value) for message in self.arrived()]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Shipping]:
    agent = Shipping(tmp_path / "data")
    yield agent
    agent.kill()


@pytest.fixture
def hire(agent: Shipping) -> Iterator[Hire]:
    """Start workers; those that still live at the end of the test are killed."""
    workers: list[Worker] = []

    def start(name: str, **options: Any) -> Worker:
        workers.append(Worker(agent.data_dir, name, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def check_arrival(agent: Shipping, *workers: Worker, exactly_once: bool = False) -> None:
    """Every answered call is in the topic, in order; what is there twice has the same id."""
    records = agent.arrived_records()
    ids = [str(record["record_id"]) for record in records]
    answered = [record for worker in workers for record in worker.answered()]
    assert set(answered) <= set(ids)
    assert len(set(ids)) <= len(answered) + len(workers)  # a killed worker's last append
    assert out_of_order(records) == []
    if exactly_once:
        assert len(ids) == len(set(ids))
    for copies in Counter(json.dumps(record, sort_keys=True) for record in records), Counter(ids):
        assert len(copies) == len(set(ids)), "one id, two records"


# --- brokers that are there -----------------------------------------------------------------


def test_everything_arrives_once_and_in_order(agent: Shipping, broker: Broker, hire: Hire) -> None:
    """Q9: key, partition and order by organization; id and schema version in every record."""
    workers = [hire(name, calls=400, rate=400.0) for name in ("a", "b")]
    agent.use(broker).start()
    for worker in workers:
        worker.await_calls()
    agent.await_sink("kafka")
    check_arrival(agent, *workers, exactly_once=True)
    partitions: dict[bytes | None, set[int]] = {}
    for message in [*agent.arrived(), *broker.read(agent.audit_topic)]:
        record = json.loads(message.value)
        assert message.key == record["organization_id"].encode()
        assert record["schema_version"] == 1
        partitions.setdefault(message.key, set()).add(message.partition)
    assert [len(found) for found in partitions.values()] == [1] * 5
    assert len(broker.read(agent.audit_topic)) == 800
    for organization in partitions:
        moments = [
            json.loads(message.value)["timestamp"]
            for message in agent.arrived()
            if message.key == organization
        ]
        assert moments == sorted(moments), "also over both workers"
    assert agent.log("audit") == []


def test_catching_up(
    agent: Shipping,
    broker: Broker,
    hire: Hire,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """P4: 5 000 records a second into store and Kafka each; half of that is asserted here.

    Of the agent's own time: what others leave to it is no property of the agent.
    """
    worker = hire("a", calls=10_000, organizations=50).await_calls()
    worker.end()
    agent.use(broker).start()
    started_s, cpu_before_s = time.monotonic(), agent.cpu_s()
    agent.await_sink("kafka", 60.0)
    agent.await_sink("store", 60.0)
    progress = agent.report()["sinks"]
    assert {progress[name]["delivered"] for name in progress} == {20_000}
    # The reports come once a second; processor time does not depend on when one looks.
    record_testsuite_property("records_per_s", 20_000 / (time.monotonic() - started_s))
    cpu_us = (agent.cpu_s() - cpu_before_s) / 20_000 * 1e6
    record_testsuite_property("cpu_us_per_record", cpu_us)
    check_arrival(agent, worker, exactly_once=True)
    assert cpu_us < 400


# --- brokers that are away --------------------------------------------------------------------


def test_a_broker_that_is_away_delays_and_loses_nothing(
    agent: Shipping,
    broker: Broker,
    hire: Hire,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """P4, Q4, Q6: all arrive, in order; the store goes on meanwhile, memory stays flat."""
    calls = round(150 * (OUTAGE_S + 2))
    workers = [hire(name, calls=calls, rate=150.0) for name in ("a", "b")]
    agent.use(broker).start()
    wait_until(lambda: agent.sink("kafka").get("delivered", 0) > 0, 20.0, "some have arrived")
    broker.go_down()
    before_bytes = resident_bytes(agent.pid)
    for worker in workers:
        worker.await_calls(OUTAGE_S + 30)
    agent.await_sink("store")
    answered = [record for worker in workers for record in worker.answered()]
    assert sorted(agent.stored()) == sorted(answered)
    assert agent.sink("kafka")["behind_bytes"] > 0
    assert len(agent.segments()) > 2, "what Kafka does not have stays"
    growth = resident_bytes(agent.pid) - before_bytes
    record_testsuite_property("growth_mb", growth / 1e6)
    assert growth < GROWTH_BYTES
    broker.come_up()
    record_testsuite_property("recovery_s", agent.await_sink("kafka"))
    check_arrival(agent, *workers)
    for worker in workers:
        worker.end()
    wait_until(lambda: not agent.segments(), 10.0, "the spool is empty")


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_broker_that_is_away_costs_next_to_nothing(
    agent: Shipping,
    mock: MockBroker,
    hire: Hire,
    how: str,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """Q1: under 2 % of a core and few log lines a minute, with records that wait for it."""
    worker = hire("a", calls=100).await_calls()
    agent.use(mock).start()
    agent.await_sink("kafka")
    leave, come_back = {
        "refused": (mock.go_down, mock.come_up),
        "silent": (mock.pause, mock.resume),
    }[how]
    leave()
    lines_before = len(agent.log())
    late = hire("b", calls=100).await_calls()
    time.sleep(6.0)  # the request that was under way has been given up by now
    share = agent.cpu_share(4.0)
    record_testsuite_property("cpu_share", share)
    assert share < CPU_SHARE
    assert len(agent.log()) - lines_before < 20
    come_back()
    agent.await_sink("kafka", 60.0)
    check_arrival(agent, worker, late)


def test_acknowledgements_that_are_lost_repeat_records_in_order(
    agent: Shipping, mock: MockBroker, hire: Hire
) -> None:
    """P4: the broker has taken what it does not confirm; it comes again with the same ids."""
    agent.use(mock)
    worker = hire("a", calls=600, rate=100.0)
    agent.start()
    wait_until(lambda: agent.sink("kafka").get("delivered", 0) > 0, 20.0, "some have arrived")
    mock.delay(6000)
    time.sleep(8.0)
    mock.delay(0)
    worker.await_calls()
    agent.await_sink("kafka", 60.0)
    check_arrival(agent, worker)


def test_an_agent_that_is_killed_again_and_again_loses_nothing(
    agent: Shipping, broker: Broker, hire: Hire
) -> None:
    """P1: every answered call is in the store and in Kafka, twice only with the same id."""
    dice = random.Random(11)
    agent.use(broker)
    workers = [hire(name, calls=2000, rate=300.0) for name in ("a", "b")]
    for _ in range(KILLS):
        agent.spawn()
        time.sleep(dice.uniform(0.5, 2.0))
        agent.kill()
    for worker in workers:
        worker.await_calls()
    workers[0].end()
    workers[1].kill()
    agent.start()
    agent.await_sink("kafka")
    agent.await_sink("store")
    check_arrival(agent, *workers)
    assert set(agent.stored()) == set(first_seen(r["record_id"] for r in agent.arrived_records()))
    wait_until(lambda: not agent.segments(), 10.0, "the spool is empty")


# --- from the start, and to the end -----------------------------------------------------------


@pytest.mark.parametrize("silent", [False, True])
def test_a_broker_that_never_was_there_stops_nothing_else(
    agent: Shipping, hire: Hire, silent: bool
) -> None:
    """Q3: refused or silent; the store gets everything at once, and the agent can be ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if not silent:
            server.close()
        agent.environment["KAFKA_BROKERS"] = address
        worker = hire("a", calls=500).await_calls()
        agent.start()
        agent.await_sink("store", 10.0)
        assert sorted(agent.stored()) == sorted(worker.answered())
        wait_until(lambda: agent.sink("kafka").get("failing") is not None, 10.0, "it says so")
        worker.end()
        started_s = time.monotonic()
        assert agent.stop() == 0
        # The drain time of 3 s, and what a producer takes that is just being made.
        assert time.monotonic() - started_s < 3 + 5
    assert agent.log("agent ended")[0]["left_bytes"] > 0
    assert agent.segments() != []


def test_an_agent_that_ends_leaves_what_was_not_acknowledged_on_disk(
    agent: Shipping, broker: Broker, hire: Hire
) -> None:
    """Q5: it ends in time with a broker that is away; the next one delivers the rest."""
    worker = hire("a", calls=200).await_calls()
    agent.use(broker).start()
    agent.await_sink("kafka")
    broker.go_down()
    late = hire("b", calls=200).await_calls()
    worker.end()
    late.end()
    started_s = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - started_s < 3 + 5
    assert agent.segments() != []
    broker.come_up()
    agent.start()
    agent.await_sink("kafka")
    check_arrival(agent, worker, late)
    wait_until(lambda: not agent.segments(), 10.0, "the spool is empty")


# --- poison -----------------------------------------------------------------------------------


@pytest.fixture
def writer(agent: Shipping) -> Iterator[SpoolWriter]:
    """A worker within this process."""
    writer = SpoolWriter(agent.data_dir / "spool", max_bytes=1 << 30)
    yield writer
    writer.close()


def dead_letters_of(agent: Shipping) -> list[dict[str, Any]]:
    path = agent.data_dir / "dead-letter" / "kafka.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_no_record_is_dead_lettered(
    agent: Shipping, broker: Broker, writer: SpoolWriter
) -> None:
    """P5: into the file and the dead-letter topic; its neighbours arrive within a second."""
    agent.use(broker).start()
    writer.append([(USAGE, usage(0, ended_s=time.time()))])
    agent.await_sink("kafka")
    now_s, began_s = time.time(), time.monotonic()
    good = [usage(1, ended_s=now_s), usage(2, ended_s=now_s)]
    writer.append([(USAGE, good[0]), (USAGE, b"no record"), (USAGE, good[1])])
    wait_until(lambda: len(agent.arrived()) == 3, 5.0, "the neighbours have arrived")
    assert time.monotonic() - began_s < 1.0
    wait_until(lambda: broker.read(f"{agent.topic}.dlq") != [], 5.0, "the dead letter is there")
    (letter,) = broker.read(f"{agent.topic}.dlq")
    assert (letter.value, letter.headers["bytes"]) == (b"no record", b"9")
    assert letter.headers["reason"].startswith(b"not JSON")
    agent.await_sink("kafka")
    assert [found["payload"] for found in dead_letters_of(agent)] == ["no record"]
    assert agent.sink("kafka")["dead_lettered"] == 1


def test_what_a_broker_refuses_is_dead_lettered_alone(
    agent: Shipping, kraft: KraftBroker, writer: SpoolWriter
) -> None:
    """P5: a topic that takes 2 kB; the culprit stands in the middle of its batch."""
    agent.use(kraft)
    kraft.make_topic(agent.topic, 1, max_message_bytes="2000")
    large = usage(5, filler=secrets.token_hex(4000))
    agent.start()
    writer.append([(USAGE, usage(100, ended_s=time.time()))])
    agent.await_sink("kafka")
    began_s = time.monotonic()
    writer.append([(USAGE, large if n == 5 else usage(n)) for n in range(10)])
    wait_until(lambda: len(agent.arrived()) == 10, 5.0, "the neighbours have arrived")
    assert time.monotonic() - began_s < 1.5
    ids = [record["record_id"] for record in agent.arrived_records()]
    assert ids == ["r100", *(f"r{n}" for n in range(10) if n != 5)]
    agent.await_sink("kafka")
    assert [letter["id"] for letter in dead_letters_of(agent)] == ["r5"]


def test_a_refusal_that_does_not_repeat_dead_letters_nothing(
    agent: Shipping, mock: MockBroker, writer: SpoolWriter
) -> None:
    """The mock broker refuses a batch once, whatever is in it: all of it arrives after all."""
    agent.use(mock).start()
    writer.append([(USAGE, usage(100, ended_s=time.time()))])
    agent.await_sink("kafka")
    mock.fail_next(87)
    writer.append([(USAGE, usage(n)) for n in range(10)])
    agent.await_sink("kafka")
    ids = [record["record_id"] for record in agent.arrived_records()]
    assert first_seen(ids) == ["r100", *(f"r{n}" for n in range(10))]
    assert agent.sink("kafka")["dead_lettered"] == 0
