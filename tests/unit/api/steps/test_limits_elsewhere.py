"""The same calls, their budgets kept here or by the reference service over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from router.breaker import Unavailable
from router.budget_service.lease_finder import LeaseFinder
from router.budget_service.server import WindowsOf, create_app
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.rebuilding import Rebuilder, RebuildingLedger
from router.limits.budgets.windows import WindowSpec
from router.limits.remote.budget_client import BudgetClient
from router.limits.worker_limits import Limits
from router.services.limits_wiring import build_limits
from tests.fakes.budget_trail import Trail, audit_of
from tests.fakes.limited import budget, limited
from tests.fakes.router_stand import RouterStand, World, chat_body, native_body
from tests.fakes.wsgi import Reply

CHAT = "/v1/chat/completions"
TOKEN = "a token of the tests"
OWN = WindowSpec("their-own", "requests", "daily", 1)
"""A budget that the service has and the router's document has not."""


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        # Head and body are written apart; without this each answer would wait for its receipt.
        self.connection.setsockopt(6, 1, 1)

    def log(self, *_: Any, **__: Any) -> None: ...


@contextmanager
def service(world: World, windows_of: WindowsOf) -> Iterator[str]:
    """Where the reference service listens; its ledger is in the world's Redis."""
    ledger, maintenance = (
        Ledger(world.redis, clock=world.clock),
        LedgerMaintenance(world.redis, clock=world.clock),
    )
    book = RebuildingLedger(ledger, Rebuilder(maintenance, lambda _organization_id, _lost: 0))
    leases, audit = LeaseFinder(book, world.redis), audit_of(Trail())
    app = create_app(book, leases, audit, windows_of=windows_of, token=TOKEN)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


@pytest.fixture(scope="module")
def endpoint(world: World) -> Iterator[str]:
    """A service that has the same budget for everybody."""
    with service(world, lambda _organization_id, _key_id: (OWN,)) as found:
        yield found


def elsewhere(world: World, endpoint: str, *, redis: Any = None, **settings: Any) -> Limits:
    changed = replace(
        world.settings,
        budget_service_endpoint=endpoint,
        budget_service_token=TOKEN,
        budget_service_timeout_s=5.0,
        **settings,
    )
    return build_limits(
        changed, lambda _organization_id, _lost: 0, clock=world.clock, runner=redis or world.redis
    )


def told(reply: Reply) -> tuple[Any, ...]:
    """An answer without what is another for each call."""
    body = {name: value for name, value in reply.json.items() if name != "trace_id"}
    if reply.status == 200:
        body = {}
    names = ("Retry-After", "RateLimit", "RateLimit-Policy", "Idempotency-Replayed")
    return (reply.status, body, *(reply.header(name) for name in names))


def story(stand: RouterStand) -> list[Any]:
    """Calls that pass, fail, come twice, break off and are refused; and how things stand then."""
    body = native_body()
    found = [told(stand.call("POST", "/v1/inference", json=body)) for _ in range(2)]
    found.append(told(stand.call("POST", "/v1/inference", json={**body, "payload": "other"})))
    found.append(told(stand.inference("dead")))
    opened = stand.open("POST", "/v1/inference", json=native_body(stream=True))
    found.append(stand.call("GET", "/v1/limits").json)
    opened.close()
    found += [told(stand.inference()) for _ in range(3)]
    found.append(stand.call("GET", "/v1/limits").json)
    return found


def test_a_service_answers_like_the_ledger(world: World, endpoint: str) -> None:
    """Must show 9: statuses, bodies, headers and figures are the same."""
    budgets = (budget(limit=10**9), budget("tokens", None, "total"), budget("requests", 3))
    here = story(limited(world, budgets=budgets))
    limits = elsewhere(world, endpoint)
    there = story(limited(world, budgets=budgets, parts={"limits": limits}))
    limits.close(world.services.recorder)
    assert here == there
    assert [answer[0] for answer in here if isinstance(answer, tuple)] == [
        200, 200, 422, 503, 200, 402, 402,
    ]  # fmt: skip


def test_a_service_has_budgets_of_its_own(world: World, endpoint: str) -> None:
    """What the document does not know of is enforced, and shown, all the same."""
    limits = elsewhere(world, endpoint)
    stand = limited(world, parts={"limits": limits})
    assert [stand.chat().status, stand.chat().status] == [200, 402]
    [shown] = stand.call("GET", "/v1/limits").json["budgets"]
    assert (shown["name"], shown["settled"], shown["remaining"]) == (OWN.name, 1, 0)
    limits.close(stand.services.recorder)


def test_a_service_hears_whose_call_it_is(
    world: World, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the router knows of no budget: it used to hear of the organization alone, and
    what only it knew of a key was never enforced."""
    limits = elsewhere(world, endpoint)
    asked = []
    reserve = BudgetClient.reserve

    def heard(client: BudgetClient, *args: Any, **options: Any) -> Any:
        asked.append(options["key_id"])
        return reserve(client, *args, **options)

    monkeypatch.setattr(BudgetClient, "reserve", heard)
    stand = limited(world, parts={"limits": limits})
    stand.chat()
    assert asked == ["key-main"]
    limits.close(stand.services.recorder)


@pytest.mark.parametrize("reason", ["timeout", "breaker_open"])
def test_a_service_without_redis_protects_no_ids(world: World, endpoint: str, reason: Any) -> None:
    """Counted; and what was never sent to Redis is not told to it later either: in a long outage
    that would push settlements out."""

    class Away:
        is_unavailable = False

        def run(self, _call: Any) -> Any:
            raise Unavailable("redis", reason)

        run_all = run

    limits = elsewhere(world, endpoint, redis=Away())
    stand = limited(world, parts={"limits": limits})
    assert stand.inference().status == 200
    assert stand.metric("idempotency_total", outcome="unprotected") == 1
    assert limits.figures()["limits_deferred"] == (1 if reason == "timeout" else 0)
    limits.close(stand.services.recorder)


@pytest.mark.parametrize(("policy", "status"), [("closed", 503), ("open", 200)])
def test_without_the_service(world: World, policy: str, status: int) -> None:
    """D4: `closed` holds for every call, for only the service knows who has a budget."""
    limits = elsewhere(world, "http://127.0.0.1:9", budget_fallback=policy)
    stand = limited(world, parts={"limits": limits})
    reply = stand.call("POST", CHAT, json=chat_body())
    assert reply.status == status
    assert stand.received() == (1 if status == 200 else 0)
    if status == 503:
        assert reply.json["error"]["code"] == "budget_unavailable"
        assert reply.header("Retry-After") == "1"
    for _ in range(3):
        stand.chat()
    figures = limits.figures()
    assert figures["dependency_up"] == {"redis": True, "budget_service": False}
    assert figures["dependency_away_seconds"]["budget_service"] > 0
    limits.audit_outbox.flush(stand.services.recorder)
    lost = [event for event in stand.spool.events if event["action"] == "DEPENDENCY_LOST"]
    assert [event["entity_id"] for event in lost] == ["budget service"]
    limits.close(stand.services.recorder)


@pytest.mark.parametrize("policy", ["closed", "open"])
def test_whom_the_service_does_not_know_is_refused(world: World, policy: str) -> None:
    """402 with a budget of nothing, whatever holds for outages; no backend is asked."""
    with service(world, lambda _organization_id, _key_id: None) as endpoint:
        limits = elsewhere(world, endpoint, budget_fallback=policy)
        stand = limited(world, parts={"limits": limits})
        reply = stand.inference()
        assert (reply.status, reply.json["code"]) == (402, "BUDGET_EXCEEDED")
        assert stand.received() == 0
        assert stand.call("GET", "/v1/limits").status == 503
        limits.close(world.services.recorder)
