"""Limits on the path of a call: who is refused, what they are told, what a call holds and pays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from router import errors
from router.api import pipeline
from router.api.endpoints import ENDPOINTS, Endpoint
from router.clock import FrozenClock
from router.config.document import RateLimit
from router.limits.budgets.windows import ThresholdEvent, WindowSpec
from router.spool.frames import AUDIT
from tests.contract.bodies import GOOD, new_request_id
from tests.fakes.limited import budget, limited, limits_of, rate_of
from tests.fakes.router_stand import FailingForwarder, RouterStand, World, chat_body, native_body
from tests.fakes.wsgi import Reply

USD = 10**9
TO_MIDNIGHT_S = 16 * 3600  # from 08:00 UTC, where a frozen clock stands
CHAT = "/v1/chat/completions"

# Prices of the stand's document, in nano-USD a token: 2.50 and 10.00 USD a million.
INPUT_NANOS, OUTPUT_NANOS = 2_500, 10_000
# What a provider may add to a prompt, where the document says nothing else.
ADDED_TOKENS = 1024
# The fake backend counts words: "hello there" is 2, its answer "You said: hello there" is 4.
HELLO_TOKENS = 2 + 4
HELLO_NANOS = 2 * INPUT_NANOS + 4 * OUTPUT_NANOS
# What no backend reports is estimated at four bytes a token, begun ones included.
GUESSED_PROMPT_NANOS = 3 * INPUT_NANOS


class CountingForwarder:
    """Serves like the real one, and knows how much of Redis came before."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.asked: list[int] = []

    def send(self, *arguments: Any) -> Any:
        self.asked.append(self._world.redis.asked)
        return self._world.services.forwarder.send(*arguments)


def budget_of(stand: RouterStand, name: str = "usd-daily", key: str = "main") -> dict[str, Any]:
    [found] = [entry for entry in limits_of(stand, key)["budgets"] if entry["name"] == name]
    return dict(found)


# --- exchanges with Redis -------------------------------------------------------------------


SETS: dict[str, dict[str, Any]] = {
    "requests": {},
    "tokens and slots": {"rate_limit": RateLimit(9, 9, tokens_per_minute=9000, concurrent=9)},
    "for a model": {"model_rate_limits": {"gpt-4o": RateLimit(9, 9)}},
    "everything": {
        "rate_limit": RateLimit(9, 9, tokens_per_minute=9000, concurrent=9),
        "budgets": (budget(limit=USD), budget("tokens", 10**6, "monthly"), budget("requests", 9)),
    },
}


@pytest.mark.parametrize("limits", SETS)
def test_round_trips(world: World, limits: str) -> None:
    """At most two before the backend is asked, whatever limits there are, with an id as well."""
    forwarder = CountingForwarder(world)
    stand = limited(world, parts={"forwarder": forwarder}, **SETS[limits])
    stand.chat()  # finds windows that are new, which takes some more
    for send in (stand.chat, stand.inference):
        world.redis.asked = 0
        assert send().status == 200
        assert forwarder.asked[-1] <= 2


# --- budgets --------------------------------------------------------------------------------


def test_402_in_the_native_dialect(world: World) -> None:
    """B8, B17, B19: an exhausted budget, with all that an operator needs to see why."""
    stand = limited(world, budgets=(budget(limit=0),))
    reply = stand.inference(text="x" * 400, parameters={"max_tokens": 100})
    assert (reply.status, reply.header("Retry-After")) == (402, None)
    body = reply.json
    assert body.pop("trace_id") == stand.line["trace_id"]
    # The prompt as it is sent: 92 bytes of JSON around 400 of text, and what a provider may add.
    assert (92 + 400 + ADDED_TOKENS) * INPUT_NANOS + 100 * OUTPUT_NANOS == 0.00479 * USD
    assert body == {
        "error": "the daily budget 'usd-daily' does not cover this call",
        "code": "BUDGET_EXCEEDED",
        "limit_type": "budget",
        "current_usage": 0.0,
        "limit": 0.0,
        "details": {
            "name": "usd-daily",
            "scope": "org",
            "unit": "usd",
            "this_request_estimate": 0.00479,
            "period": "daily",
            "settled": 0.0,
            "reserved": 0.0,
            "resets_at": "2027-01-16T00:00:00Z",
        },
    }
    assert stand.received() == 0


def test_402_says_what_the_limits_say(world: World) -> None:
    """B17: the counter that refuses is the one that is shown, and the wait is to its reset."""
    stand = limited(world, budgets=(budget("requests", 2),))
    assert [stand.chat().status, stand.chat().status] == [200, 200]
    reply = stand.chat()
    assert (reply.status, reply.header("Retry-After")) == (402, str(TO_MIDNIGHT_S))
    shown, counter = reply.json["error"], budget_of(stand, "requests-daily")
    assert (shown["type"], shown["code"]) == ("insufficient_quota", "insufficient_quota")
    assert (shown["limit_type"], shown["retry_after"]) == ("quota", TO_MIDNIGHT_S)
    for name in ("settled", "reserved", "resets_at"):
        assert shown["details"][name] == counter[name]
    assert (shown["current_usage"], shown["limit"]) == (counter["current_usage"], counter["limit"])
    stand.clock.wall_s += TO_MIDNIGHT_S - 1
    assert stand.chat().status == 402
    stand.clock.wall_s += 1
    assert stand.chat().status == 200


def test_the_wait_of_402_is_by_the_clock_of_the_counters(world: World) -> None:
    """The router's host is 90 s behind Redis: by its own clock clients would wait too long."""
    behind = FrozenClock(world.clock.wall_s - 90)
    stand = limited(world, parts={"clock": behind}, budgets=(budget("requests", 1),))
    assert stand.chat().status == 200
    reply = stand.chat()
    assert (reply.status, reply.header("Retry-After")) == (402, str(TO_MIDNIGHT_S))


def test_402_has_no_wait_where_only_running_calls_stand_in_the_way(world: World) -> None:
    """B19: the end of the day is no true wait, since the same call may pass in a second."""
    body = chat_body(stream=True, max_tokens=5)
    held_nanos = (len(json.dumps(body)) + ADDED_TOKENS) * INPUT_NANOS + 5 * OUTPUT_NANOS
    stand = limited(world, budgets=(budget(limit=held_nanos + 60_000),))
    stand.backends.first.set(token_interval_ms=100)
    running = stand.open("POST", CHAT, json=body)
    reply = stand.chat(max_tokens=5)
    assert (reply.status, reply.header("Retry-After")) == (402, None)
    details = reply.json["error"]["details"]
    assert (details["settled"], details["reserved"]) == (0.0, held_nanos / USD)
    running.read()
    assert stand.chat(max_tokens=5).status == 200


@pytest.mark.parametrize(
    ("unit", "code"), [("usd", "BUDGET_EXCEEDED"), ("tokens", "QUOTA_EXCEEDED")]
)
def test_what_is_counted_says_which_code(world: World, unit: Any, code: str) -> None:
    """A total does not end, so there is no wait."""
    reply = limited(world, budgets=(budget(unit, 0, "total"),)).inference()
    assert (reply.status, reply.json["code"]) == (402, code)
    assert reply.header("Retry-After") is None
    assert reply.json["details"]["resets_at"] is None


def routes_of(stand: RouterStand) -> list[tuple[str, str]]:
    """Every method and path that the application has, variables filled in."""
    return [
        (method, rule.rule.replace("<path:model_id>", "gpt-4o").replace("<request_id>", "x"))
        for rule in stand.app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]


def ask(stand: RouterStand, method: str, path: str) -> Reply:
    body = GOOD.get(path, chat_body())
    if path == "/v1/inference":
        body = {**body, "request_id": new_request_id()}
    return stand.call(method, path, promised=False, json=body if method == "POST" else None)


def test_every_route_that_reaches_a_backend_has_a_budget(world: World) -> None:
    """B14, Must show 7: found out by asking each of them, not from a list."""
    forwarder = CountingForwarder(world)
    stand = limited(world, parts={"forwarder": forwarder})
    reaching = []
    for method, path in routes_of(stand):
        before = len(forwarder.asked)
        ask(stand, method, path)
        if len(forwarder.asked) > before:
            reaching.append((method, path))
    assert {path for _, path in reaching} == set(GOOD)

    exhausted = limited(world, parts={"forwarder": forwarder}, budgets=(budget(limit=0),))
    before = len(forwarder.asked)
    assert {ask(exhausted, *route).status for route in reaching} == {402}
    assert len(forwarder.asked) == before


def test_a_route_without_limits_reaches_no_backend(stand: RouterStand) -> None:
    """B14: a route that somebody adds and forgets to declare fails, instead of being free."""
    ENDPOINTS["forgotten"] = Endpoint("inference")
    stand.app.add_url_rule("/v1/inference/forgotten", "forgotten", pipeline.serve)
    stand.app.before_request_funcs[None].append(pipeline.enter)
    try:
        reply = stand.call("GET", "/v1/inference/forgotten", promised=False)
    finally:
        del ENDPOINTS["forgotten"]
    assert reply.status == 500
    assert stand.received() == 0


def test_what_is_free_passes_an_exhausted_budget(world: World) -> None:
    """B11: a model whose price is 0."""
    stand = limited(world, budgets=(budget(limit=0),))
    assert stand.chat("renamed").status == 200
    assert stand.chat().status == 402


def test_an_unknown_price_is_the_floor_or_refused(world: World) -> None:
    """B2: by configuration, and never silently free."""
    stand = limited(world, budgets=(budget(limit=1000),))
    assert stand.chat("unpriced").status == 200
    assert budget_of(stand)["settled"] == 1000 / USD
    assert stand.chat("unpriced").status == 402
    with world.other_stand(unknown_price="refuse") as strict:
        reply = strict.call("POST", CHAT, key="saving", json=chat_body("unpriced"))
        assert (reply.status, reply.json["error"]["code"]) == (403, "price_unknown")
        assert strict.call("POST", CHAT, key="spare", json=chat_body("unpriced")).status == 200


def test_the_budget_of_a_key(stand: RouterStand) -> None:
    """Only its own calls count."""
    stand.chat()
    assert stand.call("POST", CHAT, key="saving", json=chat_body()).status == 200
    found = budget_of(stand, "pocket", key="saving")
    assert (found["scope"], found["settled"], found["reserved"]) == ("key", HELLO_NANOS / USD, 0)


def test_what_is_reserved_while_a_call_runs(world: World) -> None:
    """The most of prompt and output, at the model's price; less what the cap takes off."""
    stand = limited(world, budgets=(budget(limit=USD),))
    body = chat_body(stream=True, max_tokens=1000, n=2)
    opened = stand.open("POST", CHAT, json=body)
    prompt = len(json.dumps(body)) + ADDED_TOKENS
    expected = (prompt * INPUT_NANOS + 2000 * OUTPUT_NANOS) / USD
    assert budget_of(stand)["reserved"] == pytest.approx(expected)
    opened.read()
    assert budget_of(stand)["reserved"] == 0
    settled_nanos = 2 * INPUT_NANOS + 2 * 4 * OUTPUT_NANOS
    assert stand.metric("budget_settled_nanousd_total") == settled_nanos


# --- settlement -----------------------------------------------------------------------------


def left_early(stand: RouterStand) -> None:
    stand.open("POST", CHAT, json=chat_body(stream=True)).close()


def left_midway(stand: RouterStand) -> None:
    stand.backends.first.set(token_interval_ms=60_000)
    opened = stand.open("POST", CHAT, json=chat_body(stream=True))
    next(opened)
    opened.close()


def behaving(model: str = "gpt-4o", **behaviour: Any) -> Callable[[RouterStand], None]:
    def run(stand: RouterStand) -> None:
        stand.backends.first.set(**behaviour)
        stand.chat(model, stream=behaviour.get("failure") == "cut_stream")

    return run


def raising(error: BaseException) -> Callable[[RouterStand], None]:
    def run(stand: RouterStand) -> None:
        stand.services = replace(stand.services, forwarder=FailingForwarder(error))  # type: ignore[arg-type]
        again = RouterStand(stand.services, stand.backends, stand.keys, stand.clock, stand.redis)
        again.call("POST", CHAT, json=chat_body(), promised=False)

    return run


def unrecorded(stand: RouterStand) -> None:
    stand.spool.reason = "disk_full"
    assert stand.chat().status == 503
    stand.spool.reason = None


# How a call ends → what it costs in nano-USD.
ENDINGS: dict[str, tuple[Callable[[RouterStand], object], int]] = {
    "answered": (lambda stand: stand.chat(), HELLO_NANOS),
    "streamed": (lambda stand: stand.chat(stream=True), HELLO_NANOS),
    "nobody there": (lambda stand: stand.chat("dead"), 0),
    "backend fails": (behaving(error_status=500), 0),
    "backend refuses": (behaving(error_status=422), 0),
    "backend busy": (behaving(error_status=429), 0),
    # A model without a price costs the floor.
    "too late": (behaving("impatient", failure="black_hole"), 1_000),
    "nonsense": (behaving(failure="bad_json"), GUESSED_PROMPT_NANOS),
    # The event for the role and the one with "You", a token begun.
    "stream breaks": (
        behaving(failure="cut_stream", cut_after_chunks=2),
        GUESSED_PROMPT_NANOS + 1 * OUTPUT_NANOS,
    ),
    "client leaves early": (left_early, GUESSED_PROMPT_NANOS),
    # It has seen the event for the role, and no word.
    "client leaves midway": (left_midway, GUESSED_PROMPT_NANOS),
    "defect": (raising(KeyError("x")), 0),
    "client gone": (raising(errors.ClientGone()), 0),
    "not recorded": (unrecorded, 0),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_held_when_a_call_has_ended(world: World, ending: str) -> None:
    """B5, R8: no reservation and no slot; what is charged is what was recorded, and is right."""
    stand = limited(
        world,
        budgets=(budget(limit=USD), budget("requests", 100)),
        rate_limit=RateLimit(None, concurrent=5),
    )
    end, cost_nanos = ENDINGS[ending]
    end(stand)
    found = budget_of(stand)
    assert (found["reserved"], budget_of(stand, "requests-daily")["reserved"]) == (0, 0)
    assert rate_of(stand, "org-concurrent")["remaining"] == 5
    assert found["settled"] == cost_nanos / USD
    assert sum(record["cost_nanos"] or 0 for record in stand.spool.records) == cost_nanos
    assert stand.services.limits.figures()["budget_reserved_nanousd"] == 0


def test_a_lease_has_the_id_of_its_record(world: World) -> None:
    """What is found in one place can be looked up in the other."""
    stand = limited(world, budgets=(budget(limit=USD),))
    seen = []
    admit = stand.services.limits.admission.admit

    def watch(rates: Any, request: Any, entry: Any) -> Any:
        seen.append(request.lease_id)
        return admit(rates, request, entry)

    stand.services.limits.admission.admit = watch  # type: ignore[method-assign]
    try:
        stand.chat()
    finally:
        stand.services.limits.admission.admit = admit  # type: ignore[method-assign]
    assert set(seen) == {stand.record["record_id"]}


# --- idempotency ----------------------------------------------------------------------------


def test_a_duplicate_gets_the_reply_of_the_first(world: World) -> None:
    """P19: byte for byte, free, and without a backend."""
    stand = limited(world, budgets=(budget(limit=USD),))
    body = native_body()
    first = stand.call("POST", "/v1/inference", json=body)
    second = stand.call("POST", "/v1/inference", json=body)
    assert stand.lines[-1]["replayed"] is True
    assert (second.status, second.body) == (200, first.body)
    assert (first.header("Idempotency-Replayed"), second.header("Idempotency-Replayed")) == (
        None,
        "true",
    )
    assert second.header("X-Routing-Backend") == first.header("X-Routing-Backend")
    assert stand.received() == 1
    assert budget_of(stand)["settled"] == HELLO_NANOS / USD
    record = stand.spool.records[-1]
    assert (record["outcome"], record["usage_source"], record["cost_nanos"]) == (
        "completed",
        "none",
        0,
    )
    assert (record["decision_reason"], record["backend_id"]) == (None, None)
    event = stand.spool.events[-1]
    assert (event["action"], event["context"]["replayed"]) == ("REQUEST_ALLOWED", True)
    assert stand.metric("idempotency_total", outcome="replayed") == 1


def test_the_openai_dialect_has_a_header_for_it(stand: RouterStand) -> None:
    """Without it every call is new."""
    sent = {"Idempotency-Key": "order-1"}
    replies = [stand.call("POST", CHAT, json=chat_body(), headers=sent) for _ in range(2)]
    assert replies[0].body == replies[1].body
    assert replies[1].header("Idempotency-Replayed") == "true"
    assert stand.received() == 1
    stand.chat()
    stand.chat()
    assert stand.received() == 3


def test_another_body_under_the_same_id(stand: RouterStand) -> None:
    """422, in both dialects; also at another endpoint."""
    body = native_body()
    stand.call("POST", "/v1/inference", json=body)
    reply = stand.call("POST", "/v1/inference", json={**body, "payload": "other"})
    assert (reply.status, reply.json["code"]) == (422, "IDEMPOTENCY_MISMATCH")
    sent = {"Idempotency-Key": body["request_id"]}
    assert stand.call("POST", CHAT, json=chat_body(), headers=sent).status == 422
    assert stand.received() == 1


def test_another_organization_has_its_own_ids(stand: RouterStand) -> None:
    """The same id and body, twice served."""
    body = native_body()
    for key in ("main", "narrow"):
        assert stand.call("POST", "/v1/inference", key=key, json=body).status == 200
    assert stand.received() == 2


def test_a_duplicate_of_a_call_that_runs(stand: RouterStand) -> None:
    """409 with a time to wait; and once the stream has ended, that its reply was not kept."""
    body = native_body(stream=True)
    opened = stand.open("POST", "/v1/inference", json=body)
    reply = stand.call("POST", "/v1/inference", json=body)
    assert (reply.status, reply.json["code"]) == (409, "IN_PROGRESS")
    assert reply.header("Retry-After") == "1"
    opened.read()
    reply = stand.call("POST", "/v1/inference", json=body)
    assert (reply.status, reply.json["code"]) == (409, "REPLY_NOT_KEPT")
    assert reply.header("Retry-After") is None
    assert stand.received() == 1


@pytest.mark.parametrize("failed", ["backend", "budget", "client"])
def test_what_was_not_answered_frees_its_id(world: World, failed: str) -> None:
    """The same call may be sent again, and is made."""
    stand = limited(world, budgets=(budget("requests", 1),))
    body = native_body(stream=failed == "client")
    if failed == "backend":
        stand.backends.first.set(error_status=500)
        assert stand.call("POST", "/v1/inference", json=body).status == 502
        stand.backends.first.reset()
    elif failed == "client":
        stand.open("POST", "/v1/inference", json=body).close()
    else:
        stand.chat()
        assert stand.call("POST", "/v1/inference", json=body).status == 402
    stand.clock.wall_s += 86_400
    assert stand.call("POST", "/v1/inference", json=body).status == 200


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_header_that_is_no_id(stand: RouterStand, key: str) -> None:
    """From 1 to 255 characters."""
    reply = stand.call("POST", CHAT, json=chat_body(), headers={"Idempotency-Key": key})
    assert (reply.status, reply.json["error"]["param"]) == (400, "Idempotency-Key")


# --- away -----------------------------------------------------------------------------------


def test_without_redis_rates_are_enforced_here(world: World) -> None:
    """P9, D4: never 429 for an outage, but each worker's share still holds."""
    stand = limited(world, rate_limit=RateLimit(1, 2))
    world.redis.away = "timeout"
    assert [stand.chat().status for _ in range(3)] == [200, 200, 429]
    stand.services.metrics.publish_figures(stand.services.limits.figures())
    assert stand.metric("rate_decisions_total", source="local") >= 3


def test_without_redis_no_budget_is_spent(world: World) -> None:
    """D4, B3: 503 with a time to wait, and no backend hears of it."""
    stand = limited(world, budgets=(budget(limit=USD),))
    world.redis.away = "timeout"
    native, chat = stand.inference(), stand.chat()
    for reply in (native, chat):
        assert (reply.status, reply.header("Retry-After")) == (503, "1")
    assert native.json["code"] == "BUDGET_UNAVAILABLE"
    assert chat.json["error"]["code"] == "budget_unavailable"
    assert stand.call("GET", "/v1/limits").status == 503
    assert stand.received() == 0


def test_a_call_waits_for_redis_once(world: World) -> None:
    """P9: one timeout is all that an outage adds to a call. Its id may have been claimed all the
    same, so its end is told later."""
    stand = limited(world, budgets=(budget(limit=USD),))
    world.redis.away = "timeout"
    for send, asked in ((stand.chat, 1), (stand.inference, 1)):
        world.redis.asked = 0
        assert send().status == 503
        assert world.redis.asked == asked
    free = limited(world)
    world.redis.away, world.redis.asked = "timeout", 0
    assert free.inference().status == 200
    assert world.redis.asked == 1
    assert free.services.limits.figures()["limits_deferred"] == 1


def test_what_is_let_through_is_charged_later(world: World) -> None:
    """D4, D5: with `open` a call is made without its budget, and charged to it in the end."""
    with world.other_stand(budget_fallback="open") as stand:
        stand.redis.away = "timeout"
        assert stand.call("POST", CHAT, key="saving", json=chat_body()).status == 200
        stand.redis.away = None
        stand.services.limits.retry_queue.run()
        assert budget_of(stand, "pocket", key="saving")["settled"] == HELLO_NANOS / USD


def test_a_large_reply_is_not_kept(world: World) -> None:
    """Its duplicate learns so."""
    with world.other_stand(idempotency_max_bytes=100) as stand:
        body = native_body()
        stand.call("POST", "/v1/inference", json=body)
        reply = stand.call("POST", "/v1/inference", json=body)
        assert (reply.status, reply.json["code"]) == (409, "REPLY_NOT_KEPT")


def test_a_refusal_and_a_duplicate_hold_no_slot(world: World) -> None:
    """R8: what was taken before the budget was asked is given back."""
    slots = RateLimit(None, concurrent=5, tokens_per_minute=6000)
    stand = limited(world, rate_limit=slots, budgets=(budget(limit=0),))
    assert stand.inference().status == 402
    assert rate_of(stand, "org-concurrent")["remaining"] == 5
    assert rate_of(stand, "org-tokens")["remaining"] == 6000
    stand = limited(world, rate_limit=slots)
    body = native_body()
    stand.call("POST", "/v1/inference", json=body)
    assert stand.call("POST", "/v1/inference", json=body).header("Idempotency-Replayed") == "true"
    assert rate_of(stand, "org-concurrent")["remaining"] == 5
    assert rate_of(stand, "org-tokens")["remaining"] == 6000 - HELLO_TOKENS


def test_without_redis_ids_are_not_looked_at(stand: RouterStand) -> None:
    """A call without a budget goes on without replay protection, counted."""
    stand.redis.away = "timeout"
    body = native_body()
    assert [stand.call("POST", "/v1/inference", json=body).status for _ in range(2)] == [200, 200]
    assert stand.metric("idempotency_total", outcome="unprotected") == 2


def test_what_an_operator_may_choose_instead(world: World) -> None:
    """D4: each of the three has its own knob."""
    with world.other_stand(rate_limit_fallback="closed") as stand:
        stand.redis.away = "timeout"
        reply = stand.inference()
        assert (reply.status, reply.json["code"]) == (503, "LIMITS_UNAVAILABLE")
        assert reply.header("Retry-After") == "1"
    with world.other_stand(idempotency_fallback="closed") as stand:
        stand.redis.away = "timeout"
        assert stand.inference().json["code"] == "LIMITS_UNAVAILABLE"
        assert stand.chat().status == 200
        assert stand.received() == 1
    with world.other_stand(budget_fallback="open") as stand:
        stand.redis.away = "timeout"
        body = chat_body()
        assert stand.call("POST", CHAT, key="saving", json=body).status == 200


def test_what_was_spent_meanwhile_is_charged_later(world: World) -> None:
    """D5: Redis goes away while the call runs."""
    stand = limited(world, budgets=(budget(limit=USD),))
    opened = stand.open("POST", CHAT, json=chat_body(stream=True))
    world.redis.away = "timeout"
    opened.read()
    limits = stand.services.limits
    assert limits.figures()["limits_deferred"] == 1
    world.redis.away = None
    limits.retry_queue.run()
    assert limits.figures()["limits_deferred"] == 0
    found = budget_of(stand)
    assert (found["settled"], found["reserved"]) == (HELLO_NANOS / USD, 0)


# --- what is recorded -----------------------------------------------------------------------


def test_the_record_of_a_rate_limit(world: World) -> None:
    """T023: a denial can be answered for."""
    stand = limited(world, rate_limit=RateLimit(0, 0))
    stand.inference()
    record = stand.record
    assert (record["limit_state"], record["decision_reason"]) == ("RATE_LIMITED", "RATE_LIMIT")
    assert (record["outcome"], record["status"], record["cost_nanos"]) == ("rejected", 429, None)
    event = stand.event
    assert (event["action"], event["reason"]) == ("REQUEST_DENIED", "RATE_LIMIT_EXCEEDED")
    assert event["organization_id"] == "acme"
    assert event["context"] == {
        "api_key_id": "key-main",
        "endpoint": "native.inference",
        "model": "gpt-4o",
        "status": 429,
        "limit_type": "rate_limit",
        "limit_name": "org-requests",
        "limit_scope": "org",
        "limit_unit": "requests",
        "limit": 0,
        "usage": 0,
        "reservation": 1,
        "tokens": 0,
    }
    assert stand.line["limit"] == "org-requests"
    assert stand.metric("rate_limit_denials_total", limit="org-requests") == 1


def test_the_record_of_a_budget(world: World) -> None:
    """T023: with model, tokens, and what the call would have held."""
    stand = limited(world, budgets=(budget(limit=0),))
    stand.inference(text="x" * 40, parameters={"max_tokens": 10})
    record = stand.record
    assert (record["limit_state"], record["decision_reason"]) == ("BUDGET_EXCEEDED", None)
    context, most = stand.event["context"], 91 + 40 + ADDED_TOKENS
    assert (context["model"], context["tokens"]) == ("gpt-4o", most + 10)
    assert (context["limit_type"], context["limit"], context["usage"]) == ("budget", 0, 0)
    assert (context["settled"], context["reserved"]) == (0, 0)
    assert context["reservation"] == most * 2_500 + 10 * 10_000
    assert stand.metric("budget_denials_total", scope="org", period="daily") == 1


def test_a_quota_is_counted_as_such(world: World) -> None:
    """By owner, unit and period."""
    stand = limited(world, budgets=(budget("tokens", 0, "monthly"),))
    stand.chat()
    labels = {"scope": "org", "unit": "tokens", "period": "monthly"}
    assert stand.metric("quota_denials_total", **labels) == 1


def test_shadow_limits_only_tell(world: World) -> None:
    """They refuse nothing, and say what they would have refused."""
    stand = limited(
        world,
        rate_limit=RateLimit(0, 0, shadow=True),
        budgets=(budget(limit=0, shadow=True), budget("requests", 0, shadow=True)),
    )
    assert stand.chat().status == 200
    told = "org-requests,org::usd-daily:usd:daily,org::requests-daily:requests:daily"
    assert stand.event["context"]["shadow_denied"] == told
    for limit_type in ("rate_limit", "budget", "quota"):
        assert stand.metric("shadow_denials_total", limit_type=limit_type) == 1


def test_a_threshold_is_told_once(world: World) -> None:
    """B18: in the audit trail, by the call that reached it."""
    stand = limited(world, budgets=(budget("requests", 2, thresholds=(50,)),))
    stand.chat()
    stand.chat()
    [event] = [event for event in stand.spool.events if event["action"] == "BUDGET_THRESHOLD"]
    assert (event["organization_id"], event["entity_type"]) == ("acme", "budget")
    assert event["context"]["percent"] == 50
    assert (event["context"]["limit"], event["context"]["unit"]) == (2, "requests")


def test_what_the_spool_does_not_take_is_told_later(stand: RouterStand) -> None:
    """D4: an outage has its event, as soon as there is room for it; in order, once."""
    limits = stand.services.limits
    limits.audit_outbox.dependency_changed("redis", "open")
    limits.audit_outbox.dependency_changed("redis", "closed")
    stand.spool.reason, stand.spool.nothing_written = "disk_full", True
    stand.services.heartbeat()
    assert stand.spool.events == stand.spool.buffered == []
    stand.spool.reason = None
    stand.services.heartbeat()
    stand.services.heartbeat()
    told = [(event["action"], event["entity_id"]) for event in stand.spool.events]
    assert told == [("DEPENDENCY_LOST", "redis"), ("DEPENDENCY_RESTORED", "redis")]


def test_what_the_spool_may_have_taken_is_not_told_again(stand: RouterStand) -> None:
    """P20: it keeps its place in the chain, and is buffered with the bytes that it has there."""
    limits = stand.services.limits
    limits.audit_outbox.dependency_changed("redis", "open")
    stand.spool.reason = "disk_slow"
    stand.services.heartbeat()
    stand.spool.reason = None
    stand.services.heartbeat()
    assert stand.spool.events == []
    [(kind, payload)] = stand.spool.buffered
    assert (kind, json.loads(payload)["action"]) == (AUDIT, "DEPENDENCY_LOST")


def test_calls_that_never_ended_are_counted(stand: RouterStand) -> None:
    """Their workers were killed; what they held is free again."""
    audit_outbox = stand.services.limits.audit_outbox
    before = audit_outbox.unresolved
    audit_outbox.found_unresolved("acme", ("a", "b"))
    stand.services.heartbeat()
    assert stand.metric("leases_unresolved_total") == before + 2
    audit_outbox.threshold_reached("acme", ThresholdEvent(WindowSpec("w", "usd", "daily", 1), 80))
    audit_outbox.flush(stand.services.recorder)


# --- GET /v1/limits -------------------------------------------------------------------------


def test_a_caller_sees_its_limits(world: World) -> None:
    """Rate limits and budgets of key and organization; with any scope."""
    stand = limited(
        world,
        rate_limit=RateLimit(10, 20, concurrent=3),
        budgets=(budget(limit=USD), budget("tokens", None, "total", shadow=True)),
    )
    found = stand.call("GET", "/v1/limits", key="reading").json
    assert (found["organization_id"], found["api_key_id"]) == ("acme", "key-reading")
    assert found["is_shared"] is True
    assert [entry["name"] for entry in found["rate_limits"]] == [
        "org-requests",
        "key-requests",
        "org-concurrent",
    ]
    assert found["rate_limits"][0] == {
        "name": "org-requests",
        "scope": "org",
        "model": None,
        "unit": "requests",
        "limit": 20,
        "per_second": 10.0,
        "remaining": 19,
        "reset_after_s": 1,
        "enforced": True,
    }
    assert found["budgets"] == [
        {
            "name": "usd-daily",
            "scope": "org",
            "unit": "usd",
            "period": "daily",
            "timezone": "UTC",
            "limit": 1.0,
            "current_usage": 0.0,
            "settled": 0.0,
            "reserved": 0.0,
            "remaining": 1.0,
            "resets_at": "2027-01-16T00:00:00Z",
            "enforced": True,
        },
        {
            "name": "tokens-total",
            "scope": "org",
            "unit": "tokens",
            "period": "total",
            "timezone": "UTC",
            "limit": None,
            "current_usage": 0,
            "settled": 0,
            "reserved": 0,
            "remaining": None,
            "resets_at": None,
            "enforced": False,
        },
    ]


def test_it_takes_no_parameters(stand: RouterStand) -> None:
    """A key sees its own limits and nobody else's."""
    reply = stand.call("GET", "/v1/limits?key=key-spare")
    assert (reply.status, reply.json["details"]) == (400, {"field": "key"})


def test_a_signing_key_signs_for_it(stand: RouterStand) -> None:
    """As for everything else."""
    assert stand.call("GET", "/v1/limits", key="signing").status == 401
    headers = stand.signature("GET", "/v1/limits", key="signing")
    assert stand.call("GET", "/v1/limits", key="signing", headers=headers).status == 200


def test_the_stored_reply_is_the_clients_own(stand: RouterStand) -> None:
    """What is kept is whole: the reply of a duplicate parses like the first."""
    body = native_body()
    stand.call("POST", "/v1/inference", json=body)
    again = stand.call("POST", "/v1/inference", json=body)
    assert json.loads(again.body)["request_id"] == body["request_id"]
