"""How each answer of the document can be brought about: path, status and what has to happen."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gevent

from router import errors
from router.agent.status import Shipping
from router.config.document import RateLimit
from router.errors import NotConfigured
from router.readiness.watch import Observation
from router.store.queries.usage_totals import GROUPS
from tests.contract.bodies import GOOD, new_request_id
from tests.fakes.limited import budget, limited
from tests.fakes.router_stand import FailingForwarder, RouterStand, World
from tests.fakes.wsgi import Reply

CALLS = tuple(GOOD)
STREAMING = CALLS[:3]
MODELS = ("/v1/models", "/v1/models/gpt-4o")
HEALTH = ("/v1/status/healthz", "/healthz")
OPS = "8081"
"""Port of the listener that shows what strangers are not told."""
STORY = "/v1/audit/requests/{request_id}"
RECORDS = ("/v1/audit/requests", "/v1/usage")
LIMITS = "/v1/limits"
EVERYTHING = ",".join(GROUPS)
READINESS = ("/v1/status/readyz", "/readyz")

Case = Callable[[World, str], Reply]
Change = Callable[[RouterStand], object]


class Silent(io.RawIOBase):
    """A body that never comes."""

    def read(self, size: int = -1) -> bytes:
        gevent.sleep(60)
        return b""


class Store:
    """A configuration store that raises what it was given."""

    fault = None

    def __init__(self, error: Exception) -> None:
        self._error = error

    def document(self) -> Any:
        raise self._error


def body_of(path: str, **changes: Any) -> dict[str, Any]:
    """A good body without a stream."""
    fields = {**GOOD[path], "stream": False, **changes}
    fields.pop("stream_options", None)
    return fields | ({"request_id": new_request_id()} if path == "/v1/inference" else {})


def post(stand: RouterStand, path: str, **changes: Any) -> Reply:
    return stand.call("POST", path, json=body_of(path, **changes))


def failing(world: World, path: str, model: str = "gpt-4o", **behaviour: Any) -> Reply:
    """What becomes of a call when the backend behaves like this."""
    stand = world.stand()
    stand.backends.first.set(**behaviour)
    return post(stand, path, model=model)


def streamed(world: World, path: str) -> Reply:
    stand = world.stand()
    reply = stand.call("POST", path, json=body_of(path, stream=True))
    assert len(reply.events) > 2
    return reply


def broken_off(world: World, path: str) -> Reply:
    stand = world.stand()
    stand.backends.first.set(failure="cut_stream", cut_after_chunks=2)
    reply = stand.call("POST", path, json=body_of(path, stream=True))
    assert "error" in reply.events[-1].data
    return reply


def timed_out(world: World, path: str) -> Reply:
    stand = world.stand(settings=replace(world.settings, body_timeout_s=0.01))
    headers = {"Content-Type": "application/json", "Content-Length": "9"}
    return stand.call("POST", path, body=Silent(), headers=headers)


def get(world: World, path: str, **request: Any) -> Reply:
    return world.stand().call("GET", path, **request)


def wrongly_signed(world: World, path: str) -> Reply:
    stand = world.stand()
    return stand.call("GET", path, headers=stand.signature("GET", "/another/path"))


class Unanswered:
    """Questions to a record store that fail like this."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run(self, question: Any, **_: Any) -> Any:
        raise self._error


def ask(world: World, path: str, query: str = "", **parts: Any) -> Reply:
    """Ask for what was recorded of one call."""
    stand = world.stand(**parts)
    request_id = new_request_id()
    stand.inference(request_id=request_id)
    stand.store_records()
    return stand.call("GET", path.replace("{request_id}", request_id) + query)


def recorded(world: World, path: str, query: str = "") -> Reply:
    reply = ask(world, path, query)
    assert len(reply.body) > 100
    return reply


class Seen:
    """What was seen of agent and record store."""

    def __init__(self, shipping: Shipping) -> None:
        self.observed = Observation(shipping, store_error=None)


def last_good(world: World) -> RouterStand:
    """A router that cannot use the newest document."""
    stand = limited(world)
    stand.services.state.fault = "revision 2 cannot be used"  # type: ignore[misc]
    stand.services.state.pepper_matches = lambda _: True  # type: ignore[method-assign]
    return stand


def with_spool(world: World, refusal: str | None = None, buffered_bytes: int = 0) -> RouterStand:
    """A router whose spool stands like this."""
    stand = world.stand(watch=Seen(Shipping(True)))
    status = replace(stand.spool.status(), buffered_bytes=buffered_bytes)
    stand.spool.reason = refusal
    stand.spool.status = lambda: status  # type: ignore[method-assign]
    return stand


def unrecorded(world: World, path: str) -> Reply:
    stand = world.stand()
    stand.spool.reason = "disk_full"
    return post(stand, path)


def unknown_limits(world: World, path: str) -> Reply:
    stand = world.stand()
    stand.redis.away = "timeout"
    return stand.call("GET", path, key="saving")


def within(world: World, path: str, then: Change | None = None, **limits: Any) -> Reply:
    """A call of an organization with these limits, after ``then`` was done to its stand."""
    stand = limited(world, **limits)
    if then is not None:
        then(stand)
    return post(stand, path)


def twice(world: World, path: str, *, stream: bool = False, **changes: Any) -> Reply:
    """A call, and then a duplicate of it with these changes."""
    stand = world.stand()
    body = {**GOOD[path], "request_id": new_request_id(), "stream": stream}
    if path != "/v1/inference":
        del body["request_id"]
    body.pop("stream_options", None)
    headers = {"Idempotency-Key": "order-1"}
    stand.call("POST", path, json=body, headers=headers)
    return stand.call("POST", path, json={**body, **changes}, headers=headers)


def at_once(world: World, path: str) -> Reply:
    """A duplicate of a call that is being served."""
    replies: list[Reply] = []
    stand = world.stand()
    body = body_of(path)
    headers = {"Idempotency-Key": "order-1"}

    class LeftForwarder:
        def send(self, *_: Any) -> Any:
            replies.append(stand.call("POST", path, json=body, headers=headers))
            raise errors.ClientGone

    stand = world.stand(forwarder=LeftForwarder())
    stand.call("POST", path, json=body, headers=headers, promised=False)
    return replies[0]


def without_redis(world: World, path: str, **settings: Any) -> Reply:
    with world.other_stand(**settings) as stand:
        stand.redis.away = "timeout"
        return stand.call("POST", path, key="saving", json=body_of(path))


def signed(stand: RouterStand, path: str) -> Reply:
    """The answer to a good request with a new signature."""
    target = path.replace("{request_id}", new_request_id())
    method, body = ("POST", json.dumps(body_of(path)).encode()) if path in GOOD else ("GET", b"")
    headers = stand.signature(method, target, body)
    return stand.call(method, target, body=body, headers=headers)


def above_its_nonces(world: World, path: str) -> Reply:
    with world.other_stand(nonces_per_key=1) as stand:
        signed(stand, path)
        return signed(stand, path)


def signed_without_redis(world: World, path: str) -> Reply:
    with world.other_stand() as stand:
        stand.redis.away = "timeout"
        return signed(stand, path)


def asked_too_often(world: World, path: str) -> Reply:
    target = path.replace("{request_id}", new_request_id())
    stand = limited(world, rate_limit=RateLimit(1, 1))
    stand.call("GET", target)
    return stand.call("GET", target)


def asked_without_limits(world: World, path: str) -> Reply:
    with world.other_stand(rate_limit_fallback="closed") as stand:
        stand.redis.away = "timeout"
        return stand.call("GET", path.replace("{request_id}", new_request_id()))


def again(world: World, path: str, key: str) -> Reply:
    """The second of two calls with this key."""
    stand = world.stand()
    calls = [stand.call("POST", path, key=key, json=body_of(path)) for _ in range(2)]
    return calls[1]


def unpriced(world: World, path: str) -> Reply:
    with world.other_stand(unknown_price="refuse") as stand:
        return stand.call("POST", path, key="saving", json=body_of(path, model="unpriced"))


CALL_CASES: dict[str, list[Case]] = {
    "200": [
        lambda world, path: post(world.stand(), path),
        twice,
        lambda world, path: within(world, path, budgets=(budget(limit=10**9),)),
    ],
    "400": [
        lambda world, path: post(world.stand(), path, model=7),
        lambda world, path: failing(world, path, error_status=400),
        lambda world, path: world.stand().call(
            "POST", path, body=b"{}", headers={"Content-Length": "9"}
        ),
        lambda world, path: within(world, path, rate_limit=RateLimit(None, tokens_per_minute=1)),
    ],
    "402": [
        lambda world, path: within(world, path, budgets=(budget(limit=0),)),
        lambda world, path: within(world, path, budgets=(budget(limit=0, period="total"),)),
        lambda world, path: within(world, path, budgets=(budget("tokens", 0, "monthly"),)),
        lambda world, path: within(
            world, path, lambda stand: post(stand, path), budgets=(budget("requests", 1),)
        ),
        lambda world, path: failing(world, path, error_status=402),
    ],
    "409": [
        at_once,
        lambda world, path: failing(world, path, error_status=409),
    ],
    "422": [
        lambda world, path: twice(world, path, model="unpriced"),
        lambda world, path: failing(world, path, error_status=422),
    ],
    "401": [
        lambda world, path: world.stand().call("POST", path, key=None, json={}),
        lambda world, path: world.stand().call("POST", path, key="signing", json=body_of(path)),
    ],
    "403": [
        lambda world, path: world.stand().call("POST", path, key="reading", json={}),
        lambda world, path: world.stand().call(
            "POST", path, key="limited", json=body_of(path, model="renamed")
        ),
        unpriced,
    ],
    "404": [
        lambda world, path: post(world.stand(), path, model="nowhere"),
        lambda world, path: failing(world, path, error_status=404),
    ],
    "408": [
        timed_out,
        lambda world, path: failing(world, path, error_status=408),
    ],
    "413": [
        lambda world, path: failing(world, path, error_status=413),
        lambda world, path: world.stand(settings=replace(world.settings, max_body_bytes=1024)).call(
            "POST", path, body=b" " * 1025
        ),
    ],
    "415": [
        lambda world, path: failing(world, path, error_status=415),
        lambda world, path: world.stand().call(
            "POST", path, body=b"x", headers={"Content-Type": "text/plain"}
        ),
    ],
    "429": [
        lambda world, path: failing(world, path, error_status=429, retry_after_s=30),
        lambda world, path: within(world, path, rate_limit=RateLimit(0, 0)),
        lambda world, path: within(world, path, rate_limit=RateLimit(None, concurrent=0)),
        lambda world, path: within(world, path, model_rate_limits={"gpt-4o": RateLimit(0, 0)}),
        lambda world, path: again(world, path, key="slow"),
        lambda world, path: within(
            world, path, lambda stand: post(stand, path), rate_limit=RateLimit(1, 1)
        ),
        above_its_nonces,
    ],
    "4XX": [
        lambda world, path: failing(world, path, error_status=418),
        lambda world, path: failing(world, path, error_status=410),
    ],
    "500": [lambda world, path: post(world.stand(forwarder=FailingForwarder(KeyError())), path)],
    "502": [
        lambda world, path: failing(world, path, error_status=500),
        lambda world, path: failing(world, path, error_status=401),
        lambda world, path: failing(world, path, failure="bad_json"),
        lambda world, path: failing(world, path, failure="garbage"),
    ],
    "503": [
        lambda world, path: post(world.stand(), path, model="dead"),
        lambda world, path: post(world.stand(state=Store(NotConfigured())), path),
        unrecorded,
        without_redis,
        lambda world, path: without_redis(world, path, rate_limit_fallback="closed"),
        signed_without_redis,
    ],
    "504": [lambda world, path: failing(world, path, "impatient", failure="black_hole")],
}
MODEL_CASES: dict[str, list[Case]] = {
    "200": [get],
    "401": [
        lambda world, path: get(world, path, key="revoked"),
        wrongly_signed,
    ],
    "403": [lambda world, path: get(world, path, key="calling")],
    "429": [asked_too_often, above_its_nonces],
    "500": [lambda world, path: world.stand(state=Store(KeyError())).call("GET", path)],
    "503": [
        lambda world, path: world.stand(state=Store(NotConfigured())).call("GET", path),
        asked_without_limits,
        signed_without_redis,
    ],
}
ONE_MODEL_CASES: dict[str, list[Case]] = {
    "400": [lambda world, _: get(world, "/v1/models/a%5cb")],
    "403": [lambda world, _: get(world, "/v1/models/renamed", key="limited")],
    "404": [lambda world, _: get(world, "/v1/models/nowhere")],
}
RECORD_CASES: dict[str, list[Case]] = {
    "200": [recorded],
    "400": [lambda world, path: get(world, path + "?unknown=1")],
    "401": MODEL_CASES["401"],
    "403": MODEL_CASES["403"],
    "429": [
        lambda world, path: ask(world, path, queries=Unanswered(errors.QueriesBusy())),
        *MODEL_CASES["429"],
    ],
    "500": [lambda world, path: ask(world, path, queries=Unanswered(KeyError()))],
    "503": [
        lambda world, path: ask(
            world, path, queries=Unanswered(errors.RecordStoreUnavailable("away"))
        ),
        *MODEL_CASES["503"],
    ],
    "504": [
        lambda world, path: ask(world, path, queries=Unanswered(errors.QueryTimeout(1.0))),
    ],
}
STORY_CASES: dict[str, list[Case]] = {
    **RECORD_CASES,
    "404": [lambda world, _: get(world, f"/v1/audit/requests/{new_request_id()}")],
}
LIMIT_CASES: dict[str, list[Case]] = {
    "200": [
        get,
        lambda world, path: get(world, path, key="saving"),
        lambda world, path: limited(
            world,
            rate_limit=RateLimit(1, 2, tokens_per_minute=3, concurrent=4),
            model_rate_limits={"gpt-4o": RateLimit(5, 6)},
            budgets=(
                budget(limit=7),
                budget("tokens", None, "total", shadow=True),
                budget("requests", 8, "monthly"),
            ),
        ).call("GET", path),
    ],
    "400": RECORD_CASES["400"],
    "401": MODEL_CASES["401"],
    "429": MODEL_CASES["429"],
    "500": MODEL_CASES["500"],
    "503": [*MODEL_CASES["503"], lambda world, path: unknown_limits(world, path)],
}
READINESS_CASES: dict[str, list[Case]] = {
    "200": [
        get,
        lambda world, path: get(world, path, SERVER_PORT=OPS),
        lambda world, path: world.stand(watch=Seen(Shipping(True))).call(
            "GET", path, SERVER_PORT=OPS
        ),
        lambda world, path: last_good(world).call("GET", path, SERVER_PORT=OPS),
        lambda world, path: with_spool(world, buffered_bytes=1).call("GET", path, SERVER_PORT=OPS),
    ],
    "500": MODEL_CASES["500"],
    "503": [
        lambda world, path: world.stand(state=Store(NotConfigured())).call(
            "GET", path, SERVER_PORT=OPS
        ),
        lambda world, path: with_spool(world, refusal="disk_full").call(
            "GET", path, SERVER_PORT=OPS
        ),
    ],
}

CASES: list[tuple[str, str, Case]] = [
    *((path, key, case) for path in CALLS for key, cases in CALL_CASES.items() for case in cases),
    *((path, "200", case) for path in STREAMING for case in (streamed, broken_off)),
    *((path, "409", lambda world, path: twice(world, path, stream=True)) for path in STREAMING),
    *((path, key, case) for path in MODELS for key, cases in MODEL_CASES.items() for case in cases),
    *((MODELS[1], key, case) for key, cases in ONE_MODEL_CASES.items() for case in cases),
    *((path, key, case) for path in RECORDS for key, cases in RECORD_CASES.items()
      for case in cases),
    *((LIMITS, key, case) for key, cases in LIMIT_CASES.items() for case in cases),
    *((STORY, key, case) for key, cases in STORY_CASES.items() for case in cases),
    ("/v1/usage", "200", lambda world, path: recorded(world, path, "?format=csv")),
    ("/v1/usage", "200", lambda world, path: recorded(world, path, f"?group_by={EVERYTHING}")),
    *((path, "200", get) for path in HEALTH),
    *((path, "200", lambda world, path: get(world, path, SERVER_PORT=OPS)) for path in HEALTH),
    *((path, key, case) for path in READINESS for key, cases in READINESS_CASES.items()
      for case in cases),
]  # fmt: skip
