"""What a backend reports is what its client sees, its record says and its budgets are charged.

Every spelling of usage × kinds of number × ways to ask, each through the real application, with the
expected cost computed from the split that the backend had in mind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any

import pytest

from router.call import UsageClass
from router.config.document import Prices, ServiceTier
from router.exports.client_list import match_client
from router.exports.comparison import STORE, Scope
from router.exports.reconciliation import Reconciliation
from tests.fakes.backend.scripts import chunked, reply
from tests.fakes.backend.usage_reports import Report, reports
from tests.fakes.backend.usage_spellings import Split, all_input, all_output
from tests.fakes.limited import Fixed, budget
from tests.fakes.router_stand import RouterStand, World, chat_body, native_body
from tests.fakes.wsgi import Reply

USD = 10**9
NANOS_PER_MILLION: dict[UsageClass, int] = {
    "input": 3_000_000_007,
    "cache_read": 300_000_007,
    "cache_write_5m": 3_750_000_019,
    "cache_write_1h": 6_000_000_011,
    "input_audio": 40_000_000_003,
    "input_image": 5_000_000_029,
    "output": 15_000_000_017,
    "output_reasoning": 16_000_000_019,
    "output_audio": 80_000_000_023,
    "output_image": 30_000_000_041,
    "web_searches": 10_000 * USD,
}
PRIORITY = Fraction(7, 4)
"""What the service tier of this name costs, against the standard one."""
PRICES = Prices(
    NANOS_PER_MILLION["input"],
    NANOS_PER_MILLION["output"],
    NANOS_PER_MILLION["cache_read"],
    classes={
        name: price
        for name, price in NANOS_PER_MILLION.items()
        if name not in ("input", "output", "cache_read")
    },
    service_tiers={"priority": ServiceTier(int(PRIORITY * 10**6))},
)
AMOUNTS = dict(
    zip(NANOS_PER_MILLION, (101, 907, 53, 211, 31, 17, 409, 307, 13, 19, 3), strict=True)
)


def cost_of(split: Split, tier: str = "standard") -> int:
    """Nano-USD, by hand: no class costs less than its fraction of a nano-USD."""
    total = Fraction(0)
    for name, amount in split.items():
        factor = PRIORITY if tier == "priority" and name != "web_searches" else 1
        total += amount * factor * Fraction(NANOS_PER_MILLION[name], 10**6)
    return ceil(total)


@dataclass(frozen=True)
class Asked:
    """One way to ask."""

    path: str
    stream: bool
    usage: bool = False

    def body(self, model: str) -> dict[str, Any]:
        more: dict[str, Any] = {"stream": self.stream}
        if self.usage:
            more["stream_options"] = {"include_usage": True}
        return (chat_body if self.path == CHAT else native_body)(model, **more)


CHAT, NATIVE = "/v1/chat/completions", "/v1/inference"
WAYS = (
    Asked(CHAT, stream=False),
    Asked(CHAT, stream=True, usage=True),
    Asked(CHAT, stream=True),
    Asked(NATIVE, stream=False),
    Asked(NATIVE, stream=True),
)


REPORTS = tuple(reports(AMOUNTS))
assert len(REPORTS) * len(WAYS) >= 400


def priced_stand(world: World) -> RouterStand:
    """Every class has a price, and budgets of all units count."""
    document = world.services.state.document()
    budgets = (budget(limit=1000 * USD), budget("tokens", 10**9), budget("requests", 10**6))
    acme = replace(document.organizations["acme"], budgets=budgets)
    priced = {
        name: replace(document.models[name], prices=PRICES)
        if name in ("plain", "claude")
        else model
        for name, model in document.models.items()
    }
    names = {name: priced[model.id] for name, model in document.model_names.items()}
    organizations = {**document.organizations, "acme": acme}
    changed = replace(document, organizations=organizations, models=priced, model_names=names)
    return world.stand(state=Fixed(changed))


def booked(stand: RouterStand) -> tuple[int, int, int]:
    """What the ledger has: nano-USD, tokens, calls; nothing is reserved."""
    found = {entry["name"]: entry for entry in stand.call("GET", "/v1/limits").json["budgets"]}
    assert [entry["reserved"] for entry in found.values()] == [0, 0, 0]
    settled = [found[f"{unit}-daily"]["settled"] for unit in ("usd", "tokens", "requests")]
    return round(settled[0] * USD), settled[1], settled[2]


def shown_split(usage: Mapping[str, Any]) -> dict[str, int]:
    """The split that a client of the OpenAI dialect reads in the usage of a translated reply."""
    details = usage["prompt_tokens_details"]
    written = details.get("cache_creation_token_details", {})
    split = {
        "cache_read": details["cached_tokens"],
        "cache_write_5m": written.get("ephemeral_5m_input_tokens", 0),
        "cache_write_1h": written.get("ephemeral_1h_input_tokens", 0),
        "output_reasoning": usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0),
        "web_searches": usage.get("server_tool_use", {}).get("web_search_requests", 0),
    }
    of_input = split["cache_read"] + split["cache_write_5m"] + split["cache_write_1h"]
    assert details.get("cache_write_tokens", 0) == of_input - split["cache_read"]
    split["input"] = usage["prompt_tokens"] - of_input
    split["output"] = usage["completion_tokens"] - split["output_reasoning"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return {name: amount for name, amount in split.items() if amount}


def check_client(report: Report, asked: Asked, answer: Reply) -> None:
    """The client sees what the backend reported, if it has asked."""
    if asked.path == NATIVE:
        facts = json.loads(answer.events[-1].data) if asked.stream else answer.json
        usage = facts["usage"]
        seen = (usage["tokens_input"], usage["tokens_output"], round(usage["cost_usd"] * USD))
        cost = cost_of(report.split, report.tier)
        assert seen == (all_input(report.split), all_output(report.split), cost)
        return
    if asked.stream:
        chunks = [json.loads(event.data) for event in answer.events if event.data != "[DONE]"]
        last, reports = chunks[-1], [chunk for chunk in chunks if not chunk["choices"]]
        assert bool(reports) is (
            asked.usage and (report.last is None or not report.last["choices"])
        )
        if not asked.usage:
            return
    else:
        last = answer.json
    if report.model == "plain":
        assert last == (report.last if asked.stream else report.whole)
    else:
        assert shown_split(last["usage"]) == dict(report.split)
        assert last.get("service_tier") == (None if report.tier == "standard" else report.tier)


def check_record(report: Report, record: Mapping[str, Any]) -> None:
    """The record has the totals, the classes, the tier and the cost."""
    split = report.split
    assert (record["outcome"], record["usage_source"]) == ("completed", "reported")
    assert record["tokens_input"] == all_input(split)
    assert record["tokens_output"] == all_output(split)
    assert record["tokens_cached"] == split.get("cache_read", 0)
    assert record["usage_classes"] == split
    assert record["service_tier"] == (None if report.tier == "standard" else report.tier)
    assert record["cost_nanos"] == cost_of(split, report.tier)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.name)
def test_client_record_and_ledger_have_what_was_used(world: World, report: Report) -> None:
    """U7, U8, B5: to the nano-USD, whatever the spelling, however the call was made."""
    stand = priced_stand(world)
    whole = reply(json.dumps(report.whole).encode(), headers=("Content-Type: application/json",))
    streamed = chunked(*report.events, headers=("Content-Type: text/event-stream",))
    cost, tokens = cost_of(report.split, report.tier), all_input(report.split)
    tokens += all_output(report.split)
    for number, asked in enumerate(WAYS, 1):
        raw = streamed if asked.stream else whole
        stand.backends.plain.set(raw=raw)
        stand.backends.anthropic.raw = raw
        answer = stand.call("POST", asked.path, json=asked.body(report.model), promised=False)
        check_client(report, asked, answer)
        check_record(report, stand.spool.records[-1])
        assert booked(stand) == (number * cost, number * tokens, number)
    check_books(stand, report)


def check_books(stand: RouterStand, report: Report) -> None:
    """The comparison of ``records reconcile`` finds what the client lists in the records."""
    figures = (
        all_input(report.split),
        all_output(report.split),
        cost_of(report.split, report.tier),
    )
    with closing(Reconciliation(Scope(), (STORE,))) as books:
        for record in stand.spool.records:
            books.observe(json.dumps(record).encode(), STORE)
        books.add_answers((record["request_id"], figures) for record in stand.spool.records)
        found = books.compare(9)
        client = match_client(books.by_request(), found.differences, is_complete=True)
    assert found.differences.counts == {}
    assert (client.listed.records, client.unlisted.records) == (len(WAYS), 0)
    assert found.tallies[STORE].cost_nanos == booked(stand)[0]
