"""What must not get a call past its limits, and what must not keep anything held."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.api import pipeline
from router.api.scope import Scope
from router.config.document import RateLimit
from router.errors import ModelForbidden
from tests.fakes.limited import budget, limited
from tests.fakes.router_stand import World, chat_body

USD = 10**9
ADDED_TOKENS = 1024
"""What a provider may add to a prompt, where the document says nothing else."""
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WORST_CASE_RULE = {"reservation": "worst_case"}


def completion(**more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "prompt": "hello there", **more}


@pytest.mark.parametrize("value", ["abc", [1], -1, 0, 1.5, {}])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_no_value_of_a_bound_gets_past_the_rates(world: World, path: str, value: Any) -> None:
    """What a dialect does not know of is not read; what it does is checked. It used to be a 500
    that no rate limit had counted."""
    stand = limited(world, rate_limit=RateLimit(0.001, 2, tokens_per_minute=1000))
    make = chat_body if path == CHAT else completion
    body = make(max_completion_tokens=value)
    found = [stand.call("POST", path, json=body, promised=False).status for _ in range(3)]
    passes = 400 if path == CHAT else 200
    assert found == [passes, passes, 429]


def test_a_small_bound_beside_a_large_one_holds_the_large_one(world: World) -> None:
    """P6: a backend may heed either of the two, and only the one that the operation has."""
    stand = limited(world, budgets=(budget("tokens", 10**9, "total"),))
    held, bodies = [], []
    for path, body in (
        (CHAT, chat_body(max_tokens=900, max_completion_tokens=1, stream=True)),
        (COMPLETIONS, completion(max_tokens=900, max_completion_tokens=1, stream=True)),
        (COMPLETIONS, completion(max_completion_tokens=1, stream=True)),
    ):
        opened = stand.open("POST", path, json=body)
        [shown] = stand.call("GET", "/v1/limits").json["budgets"]
        held.append(shown["reserved"])
        bodies.append(len(json.dumps(body)) + ADDED_TOKENS)
        opened.close()
    cap = 4096
    assert held == [900 + bodies[0], 900 + bodies[1], cap]


@pytest.mark.parametrize("fault", [ValueError, RuntimeError])
def test_a_defect_of_ours_counts_as_a_call(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    """Whatever goes wrong between reading a call and asking for it: its rates are charged."""
    stand = limited(world, rate_limit=RateLimit(0.001, 1), budgets=(budget(limit=USD),))

    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr("router.api.steps.limiting.reserved_amounts", fail)
    found = [stand.call("POST", CHAT, json=chat_body(), promised=False).status for _ in range(2)]
    assert found == [500, 429]


def test_a_gate_behind_admit_refuses_for_the_rates_and_not_for_the_budget(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe of docs/design.md: a refused call counts, and nothing of it stays reserved."""
    rate = RateLimit(0.001, 2)
    stand = limited(world, rate_limit=rate, budgets=(budget("tokens", 10**9, "total"),))
    admit = pipeline.admit

    def gated(scope: Scope) -> None:
        admit(scope)
        if scope.call is not None:  # an endpoint that serves no calls
            raise ModelForbidden("gpt-4o")

    monkeypatch.setattr(pipeline, "admit", gated)
    assert [stand.call("POST", CHAT, json=chat_body()).status for _ in range(3)] == [403, 403, 429]
    stand.clock.advance(1000)
    [shown] = stand.call("GET", "/v1/limits").json["budgets"]
    assert (shown["settled"], shown["reserved"]) == (0, 0)
    assert stand.received() == 0


@pytest.mark.parametrize("harmless", [{"shadow": True}, {}], ids=["in shadow", "without a limit"])
def test_a_budget_that_refuses_nothing_refuses_nothing_without_redis(
    world: World, harmless: dict[str, Any]
) -> None:
    """It used to be 503: a budget in shadow denied every call of an outage. Charged later."""
    limit = 0 if harmless else None
    stand = limited(world, budgets=(budget(limit=limit, **harmless), budget("requests", None)))
    assert stand.chat().status == 200
    [_, before] = stand.call("GET", "/v1/limits").json["budgets"]
    world.redis.away = "timeout"
    assert stand.chat().status == 200
    world.redis.away = None
    stand.services.limits.retry_queue.run()
    [_, after] = stand.call("GET", "/v1/limits").json["budgets"]
    assert after["settled"] == before["settled"] + 1
    assert after["reserved"] == 0


def test_an_unknown_price_is_no_reason_for_a_budget_in_shadow(world: World) -> None:
    """`ROUTER_UNKNOWN_PRICE=refuse` is about budgets that refuse."""
    with world.other_stand(unknown_price="refuse") as strict:
        stand = limited(
            world,
            budgets=(budget(limit=0, shadow=True),),
            parts={"limits": strict.services.limits},
        )
        assert stand.chat("unpriced").status == 200
