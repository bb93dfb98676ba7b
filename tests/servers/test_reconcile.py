"""``routerctl reconcile`` and ``usage export`` beside workers, an agent, a store and a broker."""

from __future__ import annotations

import json
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from router.store.record_store import RecordStore
from tests.fakes.kafka_broker import MockBroker, mock_broker
from tests.servers.agent_process import AgentProcess, Worker
from tests.servers.router_process import clean_environment, wait_until

pytest.importorskip("confluent_kafka", reason="the mock broker needs confluent-kafka")

LOOKS = 3
COST_NANOS = 123_456
"""Of each call of a worker."""

Hire = Callable[..., Worker]


class Host(AgentProcess):
    """An agent that ships to a broker, and the commands of an operator."""

    def use(self, broker: MockBroker) -> Host:
        """Ship to a topic of its own."""
        self.topic = f"usage-{secrets.token_hex(4)}"
        self.environment |= {
            "KAFKA_BROKERS": broker.address,
            "KAFKA_API_VERSION": ".".join(map(str, broker.api_version or ())),
            "KAFKA_USAGE_TOPIC": self.topic,
            "KAFKA_AUDIT_TOPIC": f"audit-{secrets.token_hex(4)}",
        }
        return self

    def routerctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "router.cli.main", *arguments],
            env=clean_environment(self.settings),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def reconcile(self, *arguments: str) -> dict[str, Any]:
        """What the command finds."""
        done = self.routerctl("records", "reconcile", "-o", "json", *arguments)
        assert done.returncode in (0, 1), done.stderr
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        assert found["agreement"] is (done.returncode == 0)
        return found


@pytest.fixture
def broker() -> Iterator[MockBroker]:
    with mock_broker() as broker:
        yield broker


@pytest.fixture
def host(tmp_path: Path, broker: MockBroker) -> Iterator[Host]:
    host = Host(tmp_path / "data").use(broker)
    yield host
    host.kill()


@pytest.fixture
def hire(host: Host) -> Iterator[Hire]:
    workers: list[Worker] = []

    def start(name: str, **options: Any) -> Worker:
        workers.append(Worker(host.data_dir, name, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def settle(host: Host) -> None:
    """Until both sinks have everything."""
    for sink in ("store", "kafka"):
        host.await_sink(sink)


def test_it_agrees_while_calls_go_on(host: Host, broker: MockBroker, hire: Hire) -> None:
    """Whatever is being appended, shipped and removed meanwhile, nothing of it is a difference."""
    broker.make_topic(host.topic, 3)
    host.start()
    workers = [hire(name, calls=100_000, rate=100.0) for name in ("a", "b")]
    wait_until(lambda: all(worker.answered() for worker in workers), 10.0, "calls are made")
    for _ in range(LOOKS):
        answered = sum(len(worker.answered()) for worker in workers)
        found = host.reconcile()
        assert found["differences"] == {"counts": {}, "first": []}
        waiting = found["under_way"]["store"]["records"]
        known = found["sources"]["store"]["records"] + waiting
        assert known >= answered, "what was answered is stored, or under way"
    for worker in workers:
        worker.kill()
    answered = sum(len(worker.answered()) for worker in workers)
    settle(host)
    found = host.reconcile()
    for name in ("store", "kafka"):
        source = found["sources"][name]
        assert answered <= source["records"] <= answered + len(workers)
        assert source["cost_nanos"] == source["records"] * COST_NANOS
    assert not any(one["records"] for one in found["under_way"].values())


def test_kills_and_repetitions_are_no_differences(
    host: Host, broker: MockBroker, hire: Hire
) -> None:
    """P1: an agent that is killed delivers again; ids make it the same set."""
    workers = [hire(name, calls=1500, rate=500.0) for name in ("a", "b")]
    for _ in range(3):
        host.start()
        time.sleep(0.3)
        host.kill()
    found = host.reconcile()
    assert found["differences"]["counts"] == {}
    host.start()
    for worker in workers:
        worker.await_calls()
    settle(host)
    found = host.reconcile()
    assert found["agreement"]
    assert found["sources"]["store"]["records"] == found["sources"]["kafka"]["records"] == 3000


def test_a_broker_that_is_away(host: Host, broker: MockBroker, hire: Hire) -> None:
    """It cannot be compared with, which is said; without it the rest can."""
    broker.go_down()
    hire("a", calls=200).await_calls()
    host.start()
    host.await_sink("store")
    done = host.routerctl("records", "reconcile")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("Error: Kafka: ")
    assert host.reconcile("--no-kafka")["sources"]["store"]["records"] == 200
    broker.come_up()
    settle(host)
    assert host.reconcile()["sources"]["kafka"]["records"] == 200


def test_losses_changes_and_a_client_are_found(
    host: Host, broker: MockBroker, hire: Hire, tmp_path: Path
) -> None:
    """A record that is taken out, one that is altered, one that was never there: each is named."""
    hire("a", calls=300).await_calls().end()
    host.start()
    settle(host)
    assert host.stop() == 0
    records = host.read_store("usage")
    client = tmp_path / "client.jsonl"
    lines = [
        {"request_id": one["request_id"], "tokens_input": 12, "cost_usd": one["cost_usd"]}
        for one in records
    ]
    client.write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = host.reconcile("--client", str(client), "--client-complete")
    assert whole["agreement"]
    assert whole["sources"]["client"]["cost_nanos"] == 300 * COST_NANOS

    lost, altered = records[17]["record_id"], records[18]["record_id"]
    # A connection commits where its block ends, and stays open.
    with closing(sqlite3.connect(host.data_dir / "records.db")) as database, database:
        of_record = "(SELECT id FROM usage_records WHERE record_id = ?)"
        database.execute(
            f"UPDATE usage_documents SET document = replace(document, ?, ?) WHERE id = {of_record}",
            (f'"cost_nanos":{COST_NANOS}', '"cost_nanos":1', altered),
        )
        database.execute(f"DELETE FROM usage_documents WHERE id = {of_record}", (lost,))
        database.execute("DELETE FROM usage_records WHERE record_id = ?", (lost,))
    with client.open("a") as file:
        file.write('{"request_id":"never-recorded"}\n')
    found = host.reconcile("--client", str(client))
    counts = found["differences"]["counts"]
    assert counts.pop("client_contents", 0) <= 1  # whichever of the two versions is asked
    assert counts == {"missing": 1, "contents": 1, "unrecorded": 1}
    named = {one["kind"]: one for one in found["differences"]["first"]}
    assert named["missing"]["record_id"] == lost
    assert (named["missing"]["seen_in"], named["missing"]["missing_from"]) == (["kafka"], ["store"])
    assert (named["contents"]["record_id"], named["contents"]["fields"]) == (
        altered,
        ["cost_nanos"],
    )
    assert named["unrecorded"]["request_id"] == "never-recorded"


def test_an_export_that_is_killed_goes_on(host: Host, hire: Hire, tmp_path: Path) -> None:
    """However often it is killed, the file is the one that an undisturbed export writes."""
    hire("a", calls=10).await_calls().end()
    host.start()
    settle(host)
    assert host.stop() == 0
    sample = host.read_store("usage")
    with RecordStore(host.store_url) as store:
        for part in range(30):
            store.write(
                [
                    {**sample[n % 10], "record_id": f"r-{part}-{n}", "metadata": {"n": str(n)}}
                    for n in range(1000)
                ]
            )
    whole, target = tmp_path / "whole.csv", tmp_path / "broken.csv"
    options = ("usage", "export", "--organization", "org-1", "--file")
    assert host.routerctl(*options, str(whole)).returncode == 0
    cursor = tmp_path / "broken.csv.cursor"
    kills, known = 0, b""
    while not target.exists():
        running = subprocess.Popen(
            [sys.executable, "-m", "router.cli.main", *options, str(target)],
            env=clean_environment(host.settings),
            stderr=subprocess.DEVNULL,
        )
        while running.poll() is None:
            if cursor.exists() and (now := cursor.read_bytes()) != known:
                known = now
                running.send_signal(signal.SIGKILL)
                running.wait()
                kills += 1
            time.sleep(0.001)
    assert kills > 0
    assert target.read_bytes() == whole.read_bytes()
    assert whole.read_bytes().count(b"\r\n") == 1 + 6000 + 2
