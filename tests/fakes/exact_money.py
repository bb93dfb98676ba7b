"""Calls whose cost is known to the nano-USD: what is charged, what the client has to see of it and
what the record has to say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

from router.call import UsageClass
from router.config.document import Prices, ServiceTier
from tests.contract.checker import events_of
from tests.fakes.backend.usage_reports import Report
from tests.fakes.backend.usage_spellings import Split, all_input, all_output
from tests.fakes.router_stand import chat_body, native_body

USD = 10**9
PROMPT = "x" * 400
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
SERVED = {"completed", "client_aborted", "upstream_aborted", "timeout"}
"""Outcomes that a budget of requests counts, by docs/records.md."""


@dataclass(frozen=True)
class Charge:
    """What a call is charged, and why."""

    outcome: str
    source: str
    split: Split
    tier: str = "standard"

    @property
    def tokens(self) -> tuple[int, int]:
        """Of the input and of the output."""
        return all_input(self.split), all_output(self.split)

    @property
    def cost_nanos(self) -> int:
        """By hand: no class costs less than its fraction of a nano-USD."""
        total = Fraction(0)
        for name, amount in self.split.items():
            factor = PRIORITY if self.tier == "priority" and name != "web_searches" else 1
            total += amount * factor * Fraction(NANOS_PER_MILLION[name], 10**6)
        return ceil(total)

    @property
    def booked(self) -> tuple[int, int, int]:
        """What budgets are charged: nano-USD, tokens, calls."""
        return self.cost_nanos, sum(self.tokens), int(self.outcome in SERVED)

    @property
    def recorded(self) -> dict[str, Any]:
        """What the record says of it."""
        given, made = self.tokens
        return {
            "outcome": self.outcome,
            "usage_source": self.source,
            "tokens_input": given,
            "tokens_output": made,
            "tokens_cached": self.split.get("cache_read", 0),
            "usage_classes": dict(self.split),
            "service_tier": None if self.tier == "standard" else self.tier,
            "cost_nanos": None if self.source == "none" else self.cost_nanos,
        }


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
        return (chat_body if self.path == CHAT else native_body)(model, PROMPT, **more)


CHAT, NATIVE = "/v1/chat/completions", "/v1/inference"
WAYS = (
    Asked(CHAT, stream=False),
    Asked(CHAT, stream=True, usage=True),
    Asked(NATIVE, stream=False),
    Asked(CHAT, stream=True),
    Asked(NATIVE, stream=True),
)


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


def check_client(report: Report, asked: Asked, charge: Charge, body: bytes) -> None:
    """The client of a completed call sees what it is charged, or what the backend reported, if it
    has asked."""
    if asked.path == NATIVE:
        facts = json.loads([*events_of(body)][-1].data if asked.stream else body)
        usage = facts["usage"]
        seen = (usage["tokens_input"], usage["tokens_output"], round(usage["cost_usd"] * USD))
        assert seen == (*charge.tokens, charge.cost_nanos)
        return
    if asked.stream:
        chunks = [json.loads(event.data) for event in events_of(body) if event.data != "[DONE]"]
        last, reports = chunks[-1], [chunk for chunk in chunks if not chunk["choices"]]
        shown = charge.source == "reported" and asked.usage
        if charge.source == "reported":
            assert bool(reports) is (shown and (report.last is None or not report.last["choices"]))
        if not shown:
            return
    else:
        last = json.loads(body)
    if report.model == "plain":
        assert last == (report.last if asked.stream else report.whole)
    elif charge.source == "reported":
        assert shown_split(last["usage"]) == dict(charge.split)
        assert last.get("service_tier") == charge.recorded["service_tier"]


def check_record(charge: Charge, record: Mapping[str, Any], event: Mapping[str, Any]) -> None:
    """The record has the totals, the classes, the tier and the cost; its audit event the tokens."""
    expected = charge.recorded
    wrong = {name: record[name] for name, value in expected.items() if record[name] != value}
    assert not wrong, f"{wrong} in the record of {expected}"
    assert record["attempts"][-1]["billed"] is (charge.source != "none")
    tokens = None if charge.source == "none" else sum(charge.tokens)
    assert event["context"].get("tokens") == tokens
