"""One charge everywhere: client, record store, Kafka, budgets, and the command that compares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from router.config.schema.prices_schema import PricesSchema
from tests.fakes.backend.anthropic_api import AnthropicApi
from tests.fakes.backend.openai_api import OpenAIApi
from tests.fakes.backend.scripts import chunked, reply
from tests.fakes.backend.usage_reports import Report
from tests.fakes.backend.usage_spellings import all_input, all_output
from tests.fakes.exact_money import (
    PRICES,
    REPORTS,
    USD,
    WAYS,
    Asked,
    check_client,
    check_record,
    cost_of,
)
from tests.fakes.kafka_broker import MockBroker, mock_broker
from tests.fakes.redis_server import running
from tests.servers.ledger import Ledger, await_end, by_id
from tests.servers.limited_routers import PATIENT, budget, key, secret
from tests.servers.router_process import RouterProcess
from tests.servers.topic_follower import following

pytest.importorskip("confluent_kafka", reason="the mock broker needs confluent-kafka")

USAGE = "usage.records.v1"
KEY = "exact-key"


def document(openai_url: str, anthropic_url: str) -> dict[str, Any]:
    """Every class of both models has a price, and the organization has budgets of all units."""
    prices = PricesSchema().dump(PRICES)
    budgets = [budget("money", "usd", 1000), budget("tokens", "tokens", 10**9),
               budget("calls", "requests", 10**6)]  # fmt: skip
    models = {"plain": ("openai", openai_url), "claude": ("anthropic", anthropic_url)}
    unlimited = {"requests_per_second": None}
    return {
        "version": 1,
        "organizations": [{"id": "acme", "budgets": budgets, "rate_limit": unlimited}],
        "keys": [key(KEY, rate_limit=unlimited)],
        "models": [{"id": model, "prices": prices} for model in models],
        "backends": [
            {
                "id": kind,
                "kind": kind,
                "base_url": f"{url}/v1",
                "models": {model: "claude-x" if kind == "anthropic" else model},
            }
            for model, (kind, url) in models.items()
        ],
        "policies": [
            {"organization": "*", "model": model, "backends": [{"id": kind}]}
            for model, (kind, _) in models.items()
        ],
    }


@dataclass
class Exact:
    """A router, its backends, and what was asked of it."""

    router: RouterProcess
    openai: OpenAIApi
    anthropic: AnthropicApi
    reports: dict[str, Report] = field(default_factory=dict)
    """By request id."""

    def ask(self, report: Report, asked: Asked) -> None:
        """One call, whose client sees what was used."""
        raw = reply(json.dumps(report.whole).encode(), headers=("Content-Type: application/json",))
        if asked.stream:
            raw = chunked(*report.events, headers=("Content-Type: text/event-stream",))
        self.openai.set(raw=raw)
        self.anthropic.raw = raw
        body = asked.body(report.model)
        answer = self.router.post(asked.path, body, secret(KEY))
        assert answer.status == 200, answer.body
        check_client(report, asked, answer.body)
        self.reports[answer.headers["X-Request-ID"]] = report

    def booked(self) -> list[int]:
        """What the budgets were charged: nano-USD, tokens, calls."""
        headers = {"X-API-Key": secret(KEY)}
        found = self.router.request("GET", "/v1/limits", headers=headers).json["budgets"]
        assert [entry["reserved"] for entry in found] == [0, 0, 0]
        settled = {entry["name"]: entry["settled"] for entry in found}
        return [round(settled["money"] * USD), settled["tokens"], settled["calls"]]


@pytest.fixture
def broker() -> Iterator[MockBroker]:
    with mock_broker() as made:
        yield made


def test_each_call_has_one_charge_everywhere(tmp_path: Path, broker: MockBroker) -> None:
    """B5, P1: every spelling, kind of number and way to ask, to the nano-USD."""
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
            for report in REPORTS:
                for asked in WAYS:
                    exact.ask(report, asked)
            booked = exact.booked()
            assert router.stop() == 0
            await_end(router)
            topics.catch_up()
            check_sinks(exact, topics.records(USAGE))
            check_reconciled(exact, tmp_path / "answers.jsonl")
        finally:
            router.kill()
    splits = [(report.split, report.tier) for report in exact.reports.values()]
    assert len(splits) == len(REPORTS) * len(WAYS)
    assert booked == [
        sum(cost_of(split, tier) for split, tier in splits),
        sum(all_input(split) + all_output(split) for split, _ in splits),
        len(splits),
    ]


def check_sinks(exact: Exact, in_kafka: list[dict[str, Any]]) -> None:
    """Store and topic have one record of each call, the same, with what was used."""
    stored = by_id(Ledger(exact.router.data_dir).usage(), "record_id")
    assert by_id(in_kafka, "record_id") == stored
    by_request = by_id(stored.values(), "request_id")
    assert by_request.keys() == exact.reports.keys()
    for request_id, report in exact.reports.items():
        check_record(report, by_request[request_id])


def check_reconciled(exact: Exact, answers: Path) -> None:
    """``routerctl records reconcile`` agrees with what the client has seen."""
    with answers.open("w") as file:
        for request_id, report in exact.reports.items():
            line = {
                "request_id": request_id,
                "tokens_input": all_input(report.split),
                "tokens_output": all_output(report.split),
                "cost_nanos": cost_of(report.split, report.tier),
            }
            file.write(json.dumps(line) + "\n")
    done = exact.router.ctl(
        "records", "reconcile", "-o", "json", "--client", str(answers), "--client-complete"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["agreement"] is True
    total = sum(cost_of(report.split, report.tier) for report in exact.reports.values())
    for source in ("client", "store", "kafka"):
        assert found["sources"][source]["cost_nanos"] == total
