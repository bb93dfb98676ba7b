"""One charge everywhere: client, record store, Kafka, budgets, and the command that compares.

Calls that end well, with every way to report usage, and all endings with two of them; with
``ROUTER_TEST_PROOF=1`` all endings with all.
"""

from __future__ import annotations

import http.client
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from router.config.schema.prices_schema import PricesSchema
from tests.fakes.backend.anthropic_api import AnthropicApi
from tests.fakes.backend.openai_api import OpenAIApi
from tests.fakes.backend.usage_reports import REPORTERS, SAID
from tests.fakes.endings import Case, cases
from tests.fakes.exact_money import PRICES, USD, check_client, check_record
from tests.fakes.kafka_broker import MockBroker, mock_broker
from tests.fakes.redis_server import running
from tests.servers.ledger import Ledger, await_end, by_id
from tests.servers.limited_routers import PATIENT, budget, key, secret
from tests.servers.router_process import RouterProcess, wait_until
from tests.servers.topic_follower import following

pytest.importorskip("confluent_kafka", reason="the mock broker needs confluent-kafka")

USAGE = "usage.records.v1"
KEY = "exact-key"
PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))
IN_ALL_ENDINGS = ("openai, openai", "anthropic, everything")
TIMEOUTS = {
    "": {"first_byte_s": 20.0, "idle_s": 20.0},
    "-hurried": {"first_byte_s": 20.0, "idle_s": 0.3},
    "-at-once": {"first_byte_s": 0.3, "idle_s": 0.3},
}
"""Of the backends whose models are called so: those that say nothing are not waited for."""


def chosen() -> Iterator[Case]:
    """The calls to be made."""
    for reporter in REPORTERS:
        for case in cases(reporter):
            if case.ending.leave == "unread":  # the server reads on, whether its client does or not
                continue
            if PROOF or case.ending.name == "completed" or reporter.name in IN_ALL_ENDINGS:
                yield case


def document(openai_url: str, anthropic_url: str) -> dict[str, Any]:
    """Every class of all models has a price, and the organization has budgets of all units."""
    prices = PricesSchema().dump(PRICES)
    budgets = [budget("money", "usd", 1_000_000), budget("tokens", "tokens", 10**12),
               budget("calls", "requests", 10**6)]  # fmt: skip
    kinds = {"plain": ("openai", openai_url), "claude": ("anthropic", anthropic_url)}
    models = {f"{model}{speed}": model for model in kinds for speed in TIMEOUTS}
    unlimited = {"requests_per_second": None}
    return {
        "version": 1,
        "organizations": [{"id": "acme", "budgets": budgets, "rate_limit": unlimited}],
        "keys": [key(KEY, rate_limit=unlimited)],
        "models": [{"id": name, "prices": prices} for name in models],
        "backends": [
            {
                "id": name,
                "kind": kinds[model][0],
                "base_url": f"{kinds[model][1]}/v1",
                "models": {name: "claude-x" if model == "claude" else model},
                "timeouts": TIMEOUTS[name.removeprefix(model)],
            }
            for name, model in models.items()
        ],
        "policies": [
            {"organization": "*", "model": name, "backends": [{"id": name}]} for name in models
        ],
    }


@dataclass
class Exact:
    """A router, its backends, and what was asked of it."""

    router: RouterProcess
    openai: OpenAIApi
    anthropic: AnthropicApi
    made: dict[str, Case] = field(default_factory=dict)
    """By request id."""

    def make(self, case: Case) -> None:
        """One call, whose client sees what was used, or leaves."""
        backend = case.backend
        self.openai.set(raw=backend.raw, raw_ends=backend.stop)
        self.anthropic.raw, self.anthropic.raw_ends = backend.raw, backend.stop
        body = case.asked.body(f"{case.reporter.model}{_speed(case)}")
        request_id = body.get("request_id", str(uuid.uuid4()))
        self.made[request_id] = case
        got = self._exchange(case, body, {"X-Request-ID": request_id})
        if case.charge.outcome == "completed":
            check_client(case.report, case.asked, case.charge, got)

    def _exchange(self, case: Case, body: Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
        backend = self.openai if case.reporter.model == "plain" else self.anthropic
        count, leave = len(backend.requests), case.ending.leave
        sent = {"Content-Type": "application/json", "X-API-Key": secret(KEY), **headers}
        with closing(http.client.HTTPConnection("127.0.0.1", self.router.port, timeout=30)) as line:
            line.request("POST", case.asked.path, json.dumps(body).encode(), sent)
            if leave == "before":
                backend.wait_for(lambda it: len(it.requests) > count)
                return b""
            reply = line.getresponse()
            if leave != "said":
                return reply.read()
            got = b""
            while SAID.encode() not in got:
                got += reply.read1()
            reply.close()
            return got

    def booked(self) -> list[int]:
        """What the budgets were charged when nothing is reserved any more: nano-USD, tokens,
        calls."""
        wait_until(lambda: not any(self._shown("reserved")), 10.0, "nothing is reserved")
        usd, tokens, calls = self._shown("settled")
        return [round(usd * USD), tokens, calls]

    def _shown(self, name: str) -> list[Any]:
        headers = {"X-API-Key": secret(KEY)}
        budgets = self.router.request("GET", "/v1/limits", headers=headers).json["budgets"]
        found = {entry["name"]: entry[name] for entry in budgets}
        return [found["money"], found["tokens"], found["calls"]]


def _speed(case: Case) -> str:
    if case.backend.stop != "hangs" or case.ending.leave is not None:
        return ""
    return "-hurried" if case.backend.raw else "-at-once"


@pytest.fixture
def broker() -> Iterator[MockBroker]:
    with mock_broker() as made:
        yield made


def test_each_call_has_one_charge_everywhere(tmp_path: Path, broker: MockBroker) -> None:
    """B5, U9, P1: every ending, spelling, kind of number and way to ask, to the nano-USD."""
    with (
        running(tmp_path / "redis") as redis,
        OpenAIApi("plain") as openai,
        AnthropicApi(api_key="unused") as anthropic,
        following(broker, USAGE) as topics,
    ):
        router = RouterProcess(
            tmp_path / "router",
            environment={
                "ROUTER_DEMO": "1",
                "RATE_LIMIT_REDIS_ADDR": redis.url,
                "KAFKA_BROKERS": broker.address,
                "KAFKA_API_VERSION": ".".join(map(str, broker.api_version or ())),
                **PATIENT,
            },
        )
        try:
            exact = Exact(router.start(document(openai.url, anthropic.url)), openai, anthropic)
            for case in chosen():
                exact.make(case)
            booked = exact.booked()
            assert router.stop() == 0
            await_end(router)
            topics.catch_up()
            check_sinks(exact, topics.records(USAGE))
            check_reconciled(exact, tmp_path / "answers.jsonl")
        finally:
            router.kill()
    charges = [case.charge.booked for case in exact.made.values()]
    assert booked == [sum(amounts) for amounts in zip(*charges, strict=True)]
    assert len(charges) >= 550


def check_sinks(exact: Exact, in_kafka: list[dict[str, Any]]) -> None:
    """Store and topic have one record of each call, the same, with what was used."""
    ledger = Ledger(exact.router.data_dir)
    stored = by_id(ledger.usage(), "record_id")
    assert by_id(in_kafka, "record_id") == stored
    by_request = by_id(stored.values(), "request_id")
    events = {event["request_id"]: event for event in ledger.audit() if event["request_id"]}
    assert by_request.keys() == exact.made.keys()
    faults = []
    for request_id, case in exact.made.items():
        try:
            check_record(case.charge, by_request[request_id], events[request_id])
        except AssertionError as fault:
            faults.append(f"{case.reporter.name}, {case.name}: {fault}")
    assert not faults, "\n".join(faults)


def check_reconciled(exact: Exact, answers: Path) -> None:
    """``routerctl records reconcile`` agrees with what each call is to be charged."""
    figures = ("tokens_input", "tokens_output", "cost_nanos")
    with answers.open("w") as file:
        for request_id, case in exact.made.items():
            recorded = case.charge.recorded
            line = {"request_id": request_id, **{name: recorded[name] for name in figures}}
            file.write(json.dumps(line) + "\n")
    done = exact.router.ctl(
        "records", "reconcile", "-o", "json", "--client", str(answers), "--client-complete"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["agreement"] is True
    total = sum(case.charge.cost_nanos for case in exact.made.values())
    for source in ("client", "store", "kafka"):
        assert found["sources"][source]["cost_nanos"] == total
