"""P6: where budgets reserve the worst case, no request of any shape overspends them.

150 generated requests, or 2 000 with ``ROUTER_TEST_PROOF=1``; the backend uses up to all that each
one permits. ``ROUTER_TEST_SEED`` is a number that makes other requests.
"""

from __future__ import annotations

import os
import random
import uuid
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from router.api.steps import limiting
from router.config.document import (
    Backend,
    Budget,
    BudgetReservation,
    InputBounds,
    Prices,
    PriceTier,
    ServiceTier,
)
from router.limits.budgets.windows import Amounts
from router.limits.configured import reserved_amounts
from tests.fakes.backend.greedy_api import AUDIO_TOKENS, FILE_TOKENS, IMAGE_TOKENS, GreedyApi
from tests.fakes.limited import Fixed
from tests.fakes.router_stand import RouterStand, World
from tests.fakes.wsgi import OpenReply

REQUESTS = 2_000 if os.environ.get("ROUTER_TEST_PROOF") else 150
SEED = int(os.environ.get("ROUTER_TEST_SEED") or 7)
MODEL = "gpt-4o"
WORST_CASE = BudgetReservation("worst_case")
USD_LIMIT, TOKEN_LIMIT = 3 * 10**9, 1_500_000
OPEN_AT_ONCE = 6
DAY_S = 86_400
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}
PRICES = Prices(
    2_500_000_000,
    10_000_000_000,
    cached_input_nanos=1_250_000_000,
    tiers=(PriceTier(5_000, {"input": 5_000_000_000, "output": 15_000_000_000}),),
    service_tiers={"priority": ServiceTier(2_000_000)},
)
ALPHABETS = (
    "abc xyz",
    "äöüß",
    "Щукаж",
    "自由平等",
    "नमस्ते",
    "🙂🚀",
    '"\\\n\t\x01',
    "مرحبا",
    "\u200d\ufdfa",
)


def text(chance: random.Random) -> str:
    size = chance.choice((0, 1, 10, 300, 4_000))
    return "".join(chance.choices(chance.choice(ALPHABETS), k=size))


def part(chance: random.Random) -> dict[str, Any]:
    data = "A" * chance.choice((4, 4_000, 60_000))
    return chance.choice(
        [
            {"type": "text", "text": text(chance)},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
            {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
            {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
            {"type": "file", "file": {"file_id": "f"}},
        ]
    )


def schema(chance: random.Random, depth: int = 3) -> dict[str, Any]:
    if not depth:
        return {"type": "string", "description": text(chance), "maximum": 1e15}
    inner = [schema(chance, depth - 1) for _ in range(chance.randrange(3))]
    return {"$defs": {"a": {"anyOf": inner}}, "properties": {"p": {"items": inner}}}


def message(chance: random.Random) -> dict[str, Any]:
    if chance.random() < 0.2:
        function = {"name": "f", "arguments": text(chance)}
        called = [{"id": "c", "type": "function", "function": function}]
        return {"role": "assistant", "content": None, "tool_calls": called}
    content = [part(chance) for _ in range(chance.randrange(1, 11))]
    return {"role": "user", "content": chance.choice([text(chance), content]), "name": "Ann"}


def request(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body. Each limit is absent, small, large or beyond all reason."""
    fields: dict[str, Any] = {"model": MODEL}
    kind = chance.choice(("chat", "chat", "native", "completions", "embeddings"))
    if kind in ("chat", "native"):
        fields["messages"] = [message(chance) for _ in range(chance.randrange(1, 5))]
        for name, value in (
            (
                "tools",
                [{"type": "function", "function": {"name": "f", "parameters": schema(chance)}}],
            ),
            ("functions", [{"name": "f", "parameters": schema(chance)}]),
            ("response_format", {"type": "json_schema", "json_schema": {"schema": schema(chance)}}),
            ("prediction", {"type": "content", "content": text(chance)}),
        ):
            if chance.random() < 0.2:
                fields[name] = value
    elif kind == "completions":
        ids = [chance.randrange(200_000) for _ in range(50)]
        fields["prompt"] = chance.choice([text(chance), [text(chance)] * 3, ids, [ids, ids]])
        fields["best_of"] = chance.choice((None, 1, 3))
    else:
        fields["input"] = chance.choice([text(chance), [text(chance)] * 5, [1, 2, 3]])
    if kind != "embeddings":
        fields["n"] = chance.choice((None, 1, 1, 4, 128))
        for name in ("max_tokens", "max_completion_tokens")[: 1 if kind == "completions" else 2]:
            if chance.random() < 0.6:
                fields[name] = chance.choice((None, 1, 20, 3_000, 50_000, 10**9, 2**62))
    if chance.random() < 0.3:
        fields["service_tier"] = chance.choice(("auto", "priority", "flex"))
    if kind == "native":
        return "/v1/inference", as_native(fields, chance)
    if kind != "embeddings":
        fields["stream"] = chance.random() < 0.5
    return PATHS[kind], fields


def as_native(fields: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    payload = {"messages": fields.pop("messages")}
    del fields["model"], fields["n"]
    stream = chance.random() < 0.5
    kind = "application/json"
    return {
        "model": MODEL,
        "payload": payload,
        "content_type": kind,
        "parameters": fields,
        "stream": stream,
    }


def careful_stand(world: World, url: str, field: Any) -> RouterStand:
    """One organization with a budget in USD and one in tokens, and two prices of one model."""
    document = world.services.state.document()
    acme = replace(
        document.organizations["acme"],
        budgets=(
            Budget("usd", "usd", "daily", USD_LIMIT, reservation=WORST_CASE),
            Budget("tokens", "tokens", "daily", TOKEN_LIMIT, reservation=WORST_CASE),
        ),
    )
    model = replace(
        document.models[MODEL],
        prices=Prices(1, 1),
        max_output_tokens=2_000,
        input_bounds=InputBounds(IMAGE_TOKENS, AUDIO_TOKENS, FILE_TOKENS),
        allow=("service_tier:priority",),
    )
    backend = Backend(
        "first", "openai", f"{url}/v1", prices={MODEL: PRICES}, output_limit_field=field
    )
    changed = replace(
        document,
        organizations={**document.organizations, "acme": acme},
        models={**document.models, MODEL: model},
        model_names={**document.model_names, MODEL: model},
        backends={**document.backends, "first": backend},
    )
    return world.stand(state=Fixed(changed))


class Budgets:
    """The two budgets, looked at after each step."""

    def __init__(self, stand: RouterStand) -> None:
        self._stand = stand
        self.most = Counter[str]()

    def check(self) -> None:
        for found in self._stand.call("GET", "/v1/limits").json["budgets"]:
            assert found["settled"] + found["reserved"] <= found["limit"], found
            self.most[found["name"]] = max(self.most[found["name"]], found["settled"])

    def is_used_up(self) -> bool:
        budgets = self._stand.call("GET", "/v1/limits").json["budgets"]
        return any(found["settled"] > 0.7 * found["limit"] for found in budgets)


@pytest.fixture(params=["max_tokens", "max_completion_tokens"])
def field(request: pytest.FixtureRequest) -> str:
    """What the backend calls the bound; the first kind knows no other name."""
    return str(request.param)


class Watch:
    """What each call reserved, next to what its record says that it used."""

    def __init__(self, stand: RouterStand, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stand = stand
        self._last: list[Amounts] = []
        self._held: dict[str, Amounts] = {}
        monkeypatch.setattr(limiting, "reserved_amounts", self._reserve)

    def _reserve(self, *arguments: Any, **amounts: Any) -> Amounts:
        self._last.append(reserved_amounts(*arguments, **amounts))
        return self._last[-1]

    def open(self, chance: random.Random) -> OpenReply:
        """Send a call of any shape."""
        self._last.clear()
        name = str(uuid.UUID(int=chance.getrandbits(128)))
        path, fields = request(chance)
        opened = self._stand.open("POST", path, json=fields, headers={"X-Request-ID": name})
        if self._last:
            self._held[name] = max(self._last, key=lambda amounts: amounts.cost_nanos)
        return opened

    def check(self) -> float:
        """No call has cost more than it reserved; the largest share that one used of it."""
        shares = [0.0]
        for record in self._stand.spool.records:
            if record["status"] != 200:
                continue
            held, tokens = self._held[record["request_id"]], 0
            tokens = record["tokens_input"] + record["tokens_output"]
            assert record["cost_nanos"] <= held.cost_nanos, record
            assert tokens <= held.tokens, record
            shares.append(tokens / held.tokens)
        return max(shares)


def test_no_request_overspends(world: World, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Must show 3: scripts, pictures, schemas, choices, absent and huge limits; at every sample
    what is settled and what is reserved stay within the limit, with calls running and given up."""
    chance, statuses = random.Random(SEED), Counter[int]()
    running: list[OpenReply] = []
    with GreedyApi(random.Random(SEED), knows_both=field != "max_tokens") as backend:
        stand = careful_stand(world, backend.url, field)
        budgets, watch = Budgets(stand), Watch(stand, monkeypatch)
        for _ in range(REQUESTS // 2):
            opened = watch.open(chance)
            statuses[opened.status] += 1
            running.append(opened)
            while len(running) > chance.randrange(OPEN_AT_ONCE):
                ended = running.pop(chance.randrange(len(running)))
                ended.close() if chance.random() < 0.2 else ended.read()
            budgets.check()
            if budgets.is_used_up():
                for ended in running:
                    ended.read()
                running.clear()
                budgets.check()
                stand.clock.wall_s += DAY_S
        for ended in running:
            ended.read()
        budgets.check()
    assert watch.check() > 0.5
    assert set(statuses) <= {200, 402, 413}  # a native payload may be too large
    assert min(statuses[200], statuses[402]) > REQUESTS / 20
    assert budgets.most["usd"] > USD_LIMIT / 4e9
