"""What a backend reports, priced as its document says: the same in record, budget and metric."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from router.config.document import Prices, PriceTier, ServiceTier
from tests.fakes.limited import Fixed, budget
from tests.fakes.router_stand import RouterStand, World, chat_body

CHAT = "/v1/chat/completions"
USD = 10**9
MODEL = Prices(1_000 * USD, 1_000 * USD)
"""Of the model anywhere else: a price that is taken for it would show."""
AT_BACKEND = Prices(
    3 * USD,
    15 * USD,
    USD * 3 // 10,
    classes={
        "cache_write_5m": USD * 375 // 100,
        "cache_write_1h": 6 * USD,
        "web_searches": 10_000 * USD,
    },
    tiers=(PriceTier(272_000, {"input": 6 * USD, "output": 20 * USD}),),
    service_tiers={"priority": ServiceTier(2_000_000)},
)


@pytest.fixture
def stand(world: World) -> RouterStand:
    """The model costs something else at the backend that serves it; all is counted in USD."""
    document = world.services.state.document()
    acme = replace(document.organizations["acme"], budgets=(budget(limit=100 * USD),))
    plain = replace(document.models["plain"], prices=MODEL, allow=("service_tier:priority",))
    backend = replace(document.backends["plain"], prices={"plain": AT_BACKEND})
    changed = replace(
        document,
        organizations={**document.organizations, "acme": acme},
        models={**document.models, "plain": plain},
        model_names={**document.model_names, "plain": plain},
        backends={**document.backends, "plain": backend},
    )
    return world.stand(state=Fixed(changed))


def used(tokens_input: int, tokens_output: int, **more: Any) -> dict[str, Any]:
    total = tokens_input + tokens_output
    return {
        "prompt_tokens": tokens_input,
        "completion_tokens": tokens_output,
        "total_tokens": total,
        **more,
    }


def cached(**details: Any) -> dict[str, Any]:
    return {"prompt_tokens_details": details}


WRITTEN = {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 500}


@pytest.mark.parametrize(
    ("usage", "service_tier", "nanos", "unpriced"),
    [
        (used(1_000, 10), None, 3_000_000 + 150_000, None),
        (used(1_000, 1, **cached(cached_tokens=900)), None, 585_000, None),
        (used(1_000, 1, prompt_cache_hit_tokens=900), None, 585_000, None),
        (used(800, 1, cache_creation_input_tokens=800), None, 3_015_000, None),
        (
            used(800, 1, cache_creation_input_tokens=800, cache_creation=WRITTEN),
            None,
            300 * 3_750 + 500 * 6_000 + 15_000,
            None,
        ),
        (used(272_000, 1), None, 272_000 * 3_000 + 15_000, None),
        (used(272_001, 1), None, 272_001 * 6_000 + 20_000, None),
        (used(1_000, 10), "priority", 6_000_000 + 300_000, None),
        (used(1_000, 10), "default", 3_000_000 + 150_000, None),
        (used(272_001, 1), "priority", 2 * (272_001 * 6_000 + 20_000), None),
        (used(1, 1, server_tool_use={"web_search_requests": 3}), None, 30_018_000, None),
        # without a price: as dear as the dearest input, the dearest tier, and counted
        (used(9, 1, **cached(audio_tokens=9)), None, 9 * 6_000 + 15_000, "input_audio"),
        (used(1_000, 10), "scale", 6_000_000 + 300_000, "service_tier"),
        ({**used(32, 9), "total_tokens": 135}, None, 32 * 3_000 + 103 * 15_000, None),
    ],
)
def test_a_call_is_charged_by_the_prices_of_its_backend(
    stand: RouterStand,
    usage: dict[str, Any],
    service_tier: str | None,
    nanos: int,
    unpriced: str | None,
) -> None:
    """B9: each figure is worked out by hand, and is in record, budget and metric alike."""
    reply = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}}],
        "usage": usage,
        **({} if service_tier is None else {"service_tier": service_tier}),
    }
    stand.backends.plain.will_answer(json.dumps(reply).encode())
    assert stand.call("POST", CHAT, json=chat_body("plain")).status == 200
    assert stand.record["cost_nanos"] == nanos
    [spent] = stand.call("GET", "/v1/limits").json["budgets"]
    assert (round(spent["settled"] * USD), spent["reserved"]) == (nanos, 0)
    assert stand.metric("cost_nanousd_total") == nanos
    counted = {
        name: stand.metric("unpriced_usage_total", **{"class": name})
        for name in ("input_audio", "service_tier")
    }
    assert counted == {name: float(name == unpriced) for name in counted}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "said", "factor"),
    [
        ("priority", "priority", 2),
        ("priority", None, 2),
        ("priority", "auto", 2),
        # the provider fell back, and bills the standard price: it used to cost twice as much
        ("priority", "default", 1),
        ("priority", "standard", 1),
        (None, "priority", 2),
        (None, "default", 1),
        (None, None, 1),
        ("flex", None, 1),  # not allowed, so it was never asked for
    ],
)
def test_the_service_tier_that_served_counts(
    stand: RouterStand, asked: str | None, said: str | None, factor: int, stream: bool
) -> None:
    """What the provider says, else what the client asked for and may have."""
    tier = {} if said is None else {"service_tier": said}
    answer = {"usage": used(1_000, 10), **tier}
    if stream:
        delta = {"choices": [{"index": 0, "delta": {"content": "ok"}}], **tier}
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        events = [json.dumps(event).encode() for event in (delta, end, {"choices": [], **answer})]
        lines = [b"data: " + event + b"\n\n" for event in [*events, b"[DONE]"]]
        stand.backends.plain.will_stream(*lines)
    else:
        message = {"index": 0, "message": {"role": "assistant", "content": "ok"}}
        stand.backends.plain.will_answer(json.dumps({"choices": [message], **answer}).encode())
    body = chat_body("plain", stream=stream)
    stand.call("POST", CHAT, json=body if asked is None else {**body, "service_tier": asked})
    assert stand.record["cost_nanos"] == factor * (3_000_000 + 150_000)
    assert stand.record["service_tier"] == ("priority" if factor == 2 else None)
