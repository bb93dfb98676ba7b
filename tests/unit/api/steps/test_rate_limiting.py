"""Rate limits on the path of a call: who is refused, what they are told, what a call takes."""

from __future__ import annotations

from typing import Any

import pytest

from router.config.document import RateLimit
from router.pricing.token_counter import TokenCounter
from tests.fakes.limited import limited, rate_of
from tests.fakes.router_stand import RouterStand, World, chat_body

CHAT = "/v1/chat/completions"
HELLO_TOKENS = 2 + 4
"""The fake backend counts words: "hello there", and its answer "You said: hello there"."""


def test_429_in_the_native_dialect(world: World) -> None:
    """R9, B19: exactly the fields of the contract, and a wait that is true."""
    stand = limited(world, rate_limit=RateLimit(0.5, 1))
    assert stand.inference().status == 200
    reply = stand.inference()
    assert (reply.status, reply.header("Retry-After")) == (429, "2")
    body = reply.json
    assert body.pop("trace_id") == stand.lines[-1]["trace_id"]
    assert body == {
        "error": "the rate limit 'org-requests' is exceeded",
        "code": "RATE_LIMIT_EXCEEDED",
        "limit_type": "rate_limit",
        "current_usage": 1,
        "limit": 1,
        "retry_after": 2,
        "details": {
            "name": "org-requests",
            "scope": "org",
            "unit": "requests",
            "this_request_estimate": 1,
        },
    }
    assert stand.received() == 1
    stand.clock.advance(1.99)
    assert stand.inference().status == 429
    stand.clock.advance(0.01)
    assert stand.inference().status == 200


def test_429_in_the_openai_dialect(world: World) -> None:
    """The same facts where an SDK looks for them."""
    stand = limited(world, rate_limit=RateLimit(0.5, 1))
    stand.chat()
    reply = stand.chat()
    assert (reply.status, reply.header("Retry-After")) == (429, "2")
    shown = reply.json["error"]
    assert (shown["type"], shown["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert (shown["limit_type"], shown["current_usage"], shown["limit"]) == ("rate_limit", 1, 1)
    assert shown["retry_after"] == 2
    assert shown["details"]["name"] == "org-requests"


def test_a_key_has_a_limit_of_its_own(stand: RouterStand) -> None:
    """The other keys of the organization go on."""
    body = chat_body()
    assert stand.call("POST", CHAT, key="slow", json=body).status == 200
    reply = stand.call("POST", CHAT, key="slow", json=body)
    assert reply.json["error"]["details"]["name"] == "key-requests"
    assert stand.chat().status == 200


def test_every_answer_says_what_is_left(world: World) -> None:
    """R9: with the draft's structured fields, also where the call fails for another reason."""
    stand = limited(world, rate_limit=RateLimit(10, 20))
    policy = '"org-requests";q=20;w=2, "key-requests";q=1000000;w=1'
    left = []
    for body in (chat_body(), chat_body("unheard-of"), {"model": 7}):
        reply = stand.call("POST", CHAT, json=body)
        assert reply.header("RateLimit-Policy") == policy
        left.append(str(reply.header("RateLimit")).split(", ")[0])
    assert left == ['"org-requests";r=19;t=1', '"org-requests";r=18;t=1', '"org-requests";r=17;t=1']


def test_a_limit_of_nothing_blocks(world: World) -> None:
    """B11: and does not tell to come back, for no wait would help."""
    reply = limited(world, rate_limit=RateLimit(0, 0)).inference()
    assert (reply.status, reply.header("Retry-After")) == (429, None)
    assert "retry_after" not in reply.json


def test_without_a_limit_nothing_is_told(world: World) -> None:
    """Nobody has to count what is unlimited."""
    unlimited = RateLimit(None)
    reply = limited(world, rate_limit=unlimited).chat()
    assert "org-requests" not in str(reply.header("RateLimit"))


@pytest.mark.parametrize("path", ["/v1/models", "/v1/limits", "/v1/models/gpt-4o"])
@pytest.mark.parametrize("signature", [None, "garbage"])
def test_a_request_that_is_no_call_counts(world: World, path: str, signature: str | None) -> None:
    """P14: on every route that a key can use, and whatever its signature is worth."""
    stand = limited(world, rate_limit=RateLimit(0.001, 2))
    headers = {} if signature is None else {"X-Router-Signature": signature}
    replies = [stand.call("GET", path, headers=headers) for _ in range(3)]
    passed = 200 if signature is None else 401
    assert [reply.status for reply in replies] == [passed, passed, 429]
    assert stand.chat().status == 429


def test_a_bad_signature_of_a_call_counts(world: World) -> None:
    """P14: neither its shape nor its body is looked at for nothing, however often it is sent."""
    stand = limited(world, rate_limit=RateLimit(0.001, 3))
    body = b'{"model": "gpt-4o"}'
    wrong = {**stand.signature("POST", CHAT, body), "X-Router-Signature": "0" * 64}
    sent = [{"X-Router-Signature": "garbage"}, wrong, {**wrong, "X-Router-Timestamp": "1"}, wrong]
    replies = [stand.call("POST", CHAT, body=body, headers=headers) for headers in sent]
    assert [reply.status for reply in replies] == [401, 401, 401, 429]


def test_what_cannot_be_read_counts_too(world: World) -> None:
    """Also where the limits of a caller depend on what it asks."""
    stand = limited(world, rate_limit=RateLimit(1, 2, tokens_per_minute=1000))
    statuses = [stand.call("POST", CHAT, json={"model": 7}).status for _ in range(3)]
    assert statuses == [400, 400, 429]


def test_a_limit_for_one_model(world: World) -> None:
    """The organization's calls of other models go on."""
    stand = limited(world, model_rate_limits={"gpt-4o": RateLimit(1, 1)})
    assert [stand.chat().status, stand.chat().status] == [200, 429]
    assert stand.chat("unpriced").status == 200
    found = rate_of(stand, "model-requests")
    assert (found["model"], found["remaining"]) == ("gpt-4o", 0)


@pytest.mark.parametrize("max_tokens", [998, 10**9])
@pytest.mark.parametrize("owner", ["rate_limit", "model_rate_limits"])
def test_a_call_that_is_larger_than_a_limit_is_refused(
    world: World, owner: str, max_tokens: int
) -> None:
    """400 names the limit, and others go on: they used to get `Retry-After: 59999943`."""
    limit = RateLimit(1, 3, tokens_per_minute=1000, concurrent=1)
    given: Any = limit if owner == "rate_limit" else {"gpt-4o": limit}
    stand = limited(world, **{owner: given})
    scope = "org" if owner == "rate_limit" else "model"
    reply = stand.inference(parameters={"max_tokens": max_tokens})
    assert (reply.status, reply.header("Retry-After")) == (400, None)
    body = reply.json
    assert (body["code"], body["limit_type"]) == ("TOKENS_ABOVE_LIMIT", "rate_limit")
    assert (body["current_usage"], body["limit"]) == (0, 1000)
    estimate = 3 + max_tokens
    details = {"name": f"{scope}-tokens", "scope": scope, "unit": "tokens"}
    assert body["details"] == {**details, "this_request_estimate": estimate}
    assert stand.received() == 0
    assert stand.record["outcome"] == "rejected"
    # It has counted as a request, and holds nothing.
    statuses = [stand.inference(parameters={"max_tokens": 900}).status for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_a_call_that_is_larger_than_a_limit_in_shadow_passes(world: World) -> None:
    """It is counted, and takes nothing before its end."""
    limit = RateLimit(None, tokens_per_minute=1000, shadow=True)
    stand = limited(world, rate_limit=limit)
    assert stand.chat(max_tokens=10**6).status == 200
    assert stand.event["context"]["shadow_denied"] == "org-tokens"
    assert rate_of(stand, "org-tokens")["remaining"] == 1000 - HELLO_TOKENS


def test_tokens_are_charged_as_they_were_used(world: World) -> None:
    """The estimate holds while the call runs; afterwards what the backend said counts."""
    stand = limited(world, rate_limit=RateLimit(None, tokens_per_minute=6000))
    opened = stand.open("POST", CHAT, json=chat_body(stream=True, max_tokens=3000))
    assert rate_of(stand, "org-tokens")["remaining"] == 2997
    opened.read()
    assert rate_of(stand, "org-tokens")["remaining"] == 6000 - HELLO_TOKENS


def test_a_vocabulary_counts_what_limits_of_tokens_take(world: World) -> None:
    """A prompt of 18 letters is five tokens by its length."""
    counter = TokenCounter(lambda text: [0] * len(text))
    limit = RateLimit(None, tokens_per_minute=6000)
    stand = limited(world, rate_limit=limit, parts={"token_counter": counter})
    message = {"role": "user", "content": "Tell me of the sea"}
    opened = stand.open("POST", CHAT, json=chat_body(stream=True, messages=[message], max_tokens=1))
    assert rate_of(stand, "org-tokens")["remaining"] == 6000 - 18 - 1
    opened.read()


def test_tokens_of_a_call_that_failed_come_back(world: World) -> None:
    """No backend has worked on it."""
    stand = limited(world, rate_limit=RateLimit(None, tokens_per_minute=6000))
    assert stand.chat("dead", max_tokens=3000).status == 503
    assert rate_of(stand, "org-tokens")["remaining"] == 6000


def test_calls_at_once(world: World) -> None:
    """R8: a slot is held until the answer has ended."""
    stand = limited(world, rate_limit=RateLimit(None, concurrent=1))
    opened = stand.open("POST", CHAT, json=chat_body(stream=True))
    refused = stand.chat()
    assert (refused.status, refused.header("Retry-After")) == (429, "1")
    assert refused.json["error"]["details"]["unit"] == "concurrent"
    assert '"org-concurrent";q=1;qu="concurrent-requests"' in str(
        refused.header("RateLimit-Policy")
    )
    opened.read()
    assert stand.chat().status == 200
