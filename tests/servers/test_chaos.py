"""Whatever dies, whenever: what was answered is on record, in the store and in Kafka.

Rounds of ``kill -9`` of a worker, the agent, or all of it at once, under load: 20, or 200 with at
least 50 000 calls with ``ROUTER_TEST_PROOF=1``. A failure names the seed; with ``ROUTER_TEST_SEED``
it draws the same rounds again. Continuous integration always draws the same.
"""

from __future__ import annotations

import os
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.deployment import CHAT, HELLO, Deployment, deploy
from tests.servers.ledger import Ledger, await_end, by_id, check_audit, check_usage, processes_of
from tests.servers.router_process import wait_until
from tests.servers.steady_client import PROCESSES, THREADS, SteadyClients, steady_clients

pytest.importorskip("confluent_kafka", reason="the mock broker needs confluent-kafka")

from tests.fakes.kafka_broker import MockBroker, mock_broker
from tests.servers.topic_follower import TopicFollower, following

PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))
ROUNDS = 200 if PROOF else 20
CALLS = 50_000 if PROOF else 2_000
FIXED_SEED = 20_261_124 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
SEED = int(os.environ.get("ROUTER_TEST_SEED") or FIXED_SEED)

START_S = 5.0
PATIENCE_S = 20.0
PACE_S = 60.0
LONGEST_WAIT_S = 1.2
WORKERS = 2
TOKENS, TOKEN_MS, LATENCY_MS = 10, 8, 5
USAGE, AUDIT = "usage.records.v1", "audit.router"


class Chaos:
    """A router under load, and what is done to it."""

    def __init__(self, deployed: Deployment, clients: SteadyClients, dice: random.Random) -> None:
        self._router = deployed.router
        self._key = deployed.key.key
        self._clients = clients
        self._dice = dice
        self._ledger = Ledger(deployed.router.data_dir)
        self.killed: Counter[str] = Counter()
        self.starts_s: list[float] = []
        self.asked: set[str] = set()
        """Calls of our own, by which we see that it serves; not all of them are answered."""
        self.answered: list[str] = []

    def rage(self) -> None:
        """Every round kills something, and no kind of death is left to chance."""
        kinds: dict[str, Callable[[], None]] = {
            "worker": self._kill_worker,
            "agent": self._kill_agent,
            "group": self._kill_group,
        }
        victims = [list(kinds)[number % len(kinds)] for number in range(ROUNDS)]
        self._dice.shuffle(victims)
        for number, victim in enumerate(victims, start=1):
            self._let_calls_be_made(number * CALLS // ROUNDS)
            time.sleep(self._dice.uniform(0, LONGEST_WAIT_S))
            kinds[victim]()
            self.killed[victim] += 1
        self._let_calls_be_made(CALLS)
        # Workers that drain start no agent: what there is would be shipped after the next start.
        wait_until(lambda: self._ledger.agent_pid() is not None, PATIENCE_S, "an agent at the end")

    def _let_calls_be_made(self, count: int) -> None:
        wait_until(lambda: self._clients.count() >= count, PACE_S, f"{count} calls")

    def _kill_worker(self) -> None:
        wait_until(lambda: bool(self._router.worker_pids()), PATIENCE_S, "a worker to kill")
        _kill(self._dice.choice(self._router.worker_pids()))

    def _kill_agent(self) -> None:
        wait_until(lambda: self._ledger.agent_pid() is not None, PATIENCE_S, "an agent to kill")
        pid = self._ledger.agent_pid()
        _kill(pid)
        wait_until(lambda: self._ledger.agent_pid() != pid, PATIENCE_S, "it is dead")

    def _kill_group(self) -> None:
        """All, in any order, until nothing that was started in between is left either."""
        while pids := processes_of(self._router):
            self._dice.shuffle(pids)
            for pid in pids:
                _kill(pid)
        self._router.wait(1)
        started_s = time.monotonic()
        self._router.spawn()
        wait_until(self._answers, PATIENCE_S, "a call is answered again")
        self.starts_s.append(time.monotonic() - started_s)

    def _answers(self) -> bool:
        request_id = str(uuid.uuid4())
        self.asked.add(request_id)
        fields = {"model": CHAT, "messages": HELLO}
        path = "/v1/chat/completions"
        try:
            reply = self._router.post(path, fields, self._key, request_id=request_id)
        except OSError:
            return False
        if reply.status == 200:
            self.answered.append(request_id)
        return reply.status == 200


def _kill(pid: int | None) -> None:
    if pid is not None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def settings_for(broker: MockBroker) -> dict[str, str]:
    return {
        "KAFKA_BROKERS": broker.address,
        "KAFKA_API_VERSION": ".".join(map(str, broker.api_version or ())),
    }


@pytest.mark.parametrize("seed", [SEED])
def test_what_was_answered_is_on_record_whoever_dies(
    seed: int, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """P1, Must show 1: none lost, none twice, in store and Kafka; up again within 5 s each time."""
    with (
        mock_broker() as broker,
        following(broker, USAGE, AUDIT) as topics,
        deploy(tmp_path / "router", workers=WORKERS, **settings_for(broker)) as deployed,
    ):
        deployed.backend.set(
            latency_ms=LATENCY_MS, tokens_output=TOKENS, token_interval_ms=TOKEN_MS
        )
        with steady_clients(
            tmp_path, deployed.router.port, deployed.key.key, CHAT, name="calls"
        ) as clients:
            chaos = Chaos(deployed, clients, random.Random(seed))
            chaos.rage()
        assert deployed.router.stop() == 0
        await_end(deployed.router)
        ledger = Ledger(deployed.router.data_dir)
        topics.catch_up()
        answered = [*clients.answered(), *chaos.answered]
        check_all(ledger, topics, answered)
        check_the_rest(ledger, clients, chaos)

    again = len(topics.records(USAGE)) - len(ledger.usage())
    record_testsuite_property("calls", len(answered))
    record_testsuite_property("longest_start_s", round(max(chaos.starts_s), 2))
    record_testsuite_property("recorded_unanswered", len(ledger.usage()) - len(answered))
    record_testsuite_property("delivered_again", again)
    assert len(answered) >= CALLS
    assert max(chaos.starts_s) <= START_S, chaos.starts_s


def check_all(ledger: Ledger, topics: TopicFollower, answered: list[str]) -> None:
    """What was answered is there, once, and the same in store and Kafka."""
    stored = by_id(ledger.usage(), "record_id")
    check_usage(answered, stored)
    assert by_id(topics.records(USAGE), "record_id") == stored
    events = by_id(ledger.audit(), "event_id")
    check_audit(answered, events)
    assert by_id(topics.records(AUDIT), "event_id") == events
    verdict = ledger.verdict()
    assert verdict.ok, verdict
    assert verdict.events == len(events)
    assert ledger.dead_letters() == []


def check_the_rest(ledger: Ledger, clients: SteadyClients, chaos: Chaos) -> None:
    """No more on record than was asked, and of that no more unanswered than died with a process."""
    assert {word for word in clients.words() if word.isdecimal()} == {"200"}
    told = {record["request_id"] for record in ledger.usage()}
    assert told <= {ended.request_id for ended in clients.calls()} | chaos.asked
    unanswered = told - set(clients.answered()) - set(chaos.answered)
    deaths = chaos.killed["worker"] + chaos.killed["group"]
    assert len(unanswered) <= deaths * PROCESSES * THREADS
