"""The reference budget service: every answer that its contract names, and no other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

from router.breaker import Unavailable
from router.budget_service.server import create_app
from router.errors import NotConfigured
from router.limits.budgets.periods import TOTAL
from router.limits.budgets.rebuilding import Rebuilder, RebuildingLedger
from router.limits.budgets.windows import (
    Amounts,
    Closed,
    Denied,
    NeedsRebuild,
    Reservation,
    ReservedWindow,
    Settlement,
    ThresholdEvent,
    WindowSpec,
    WindowState,
)
from router.limits.remote.contract import MAX_BODY_BYTES, openapi
from tests.fakes.budget_trail import Trail, audit_of

CONTRACT = openapi()
TOKEN = "a token of the tests"
SPEND = WindowSpec("spend", "usd", "total", 1000, thresholds=(50,))
CALLS = WindowSpec("calls", "requests", "total", 5, scope="key", subject="k1")
HELD = Reservation("a", "acme", (ReservedWindow(SPEND, TOTAL, 100),), 5, "7")
WINDOW = {"name": "spend", "unit": "usd", "limit": 1000}
AMOUNTS = {"cost_nanos": 100, "tokens": 5}
RESERVE = {
    "organization_id": "acme",
    "lease_id": "a",
    "ttl_ms": 1000,
    "amounts": AMOUNTS,
    "windows": [WINDOW],
}
RESERVATION = {
    "lease_id": "a",
    "organization_id": "acme",
    "windows": [{"window": WINDOW, "start_ms": 0, "end_ms": None, "amount": 100}],
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/budget/check": {"organization_id": "acme", "windows": [WINDOW], "amounts": AMOUNTS},
    "/v1/budget/reserve": RESERVE,
    "/v1/budget/settle": {"reservation": RESERVATION, "amounts": AMOUNTS},
    "/v1/budget/release": {"reservation": RESERVATION},
}


def state(window: WindowSpec, settled: int, reserved: int = 0, *, lost: bool = False) -> Any:
    return WindowState(window, TOTAL, settled, reserved, lost=lost)


class Ledger:
    """Answers what a test has prepared."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = [HELD]
        self.states: list[Any] = [(state(SPEND, 0),)]
        self.settlement: Any = Settlement(True)
        self.asked: list[Any] = []
        self.rebuilt: list[Any] = []
        self.found: Any = HELD
        self.trail = Trail()

    def find(self, *facts: Any) -> Any:
        return self._next([self.found], facts)

    def reserve(self, *facts: Any, ttl_ms: int) -> Any:
        return self._next(self.outcomes, (*facts, ttl_ms))

    def settle(self, *facts: Any) -> Any:
        return self._next([self.settlement], facts)

    def read(self, *facts: Any) -> Any:
        return self._next(self.states, facts)

    def rebuild(self, organization_id: str, windows: Any, sum_records: Any, **_: Any) -> Any:
        self.rebuilt.append((organization_id, windows, sum_records(None)))
        return (ThresholdEvent(SPEND, 50),)

    def _next(self, answers: list[Any], facts: Any) -> Any:
        self.asked.append(facts)
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(found, Exception):
            raise found
        return found


def windows_of(organization_id: str, key_id: str | None) -> Any:
    if organization_id != "acme" or key_id not in (None, "k1"):
        return None
    return (SPEND,) if key_id is None else (SPEND, CALLS)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def ping() -> list[Any]:
    """What the next pings do: raise, or nothing."""
    return []


@pytest.fixture
def client(ledger: Ledger, ping: list[Any]) -> FlaskClient:
    return client_of(ledger, ping)


def client_of(ledger: Any, ping: list[Any], **options: Any) -> FlaskClient:
    def pinged() -> None:
        for error in ping:
            raise error

    book = RebuildingLedger(ledger, Rebuilder(ledger, lambda _organization_id, _lost: 0))
    facts = {"windows_of": windows_of, "ping": pinged, **options}
    leases: Any = ledger
    return create_app(book, leases, audit_of(ledger.trail), **facts).test_client()


def ask(client: FlaskClient, path: str, body: Any = None, **options: Any) -> Any:
    """Ask, and hold the answer against the contract."""
    if body is None:
        answered = client.get(path, **options)
    else:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answered = client.post(path, data=data, **options)
    method = "get" if body is None else "post"
    operation = CONTRACT["paths"][path.partition("?")[0]][method]
    found = operation["responses"][str(answered.status_code)]
    if "$ref" in found:
        found = CONTRACT["components"]["responses"][found["$ref"].rpartition("/")[2]]
    schema = {
        **found["content"]["application/json"]["schema"],
        "components": CONTRACT["components"],
    }
    assert answered.mimetype == "application/json"
    assert [*Draft202012Validator(schema).iter_errors(answered.get_json())] == []
    return answered


# --- answers --------------------------------------------------------------------------------


def test_a_reservation_is_passed_to_the_ledger(client: FlaskClient, ledger: Ledger) -> None:
    """Exactly as it was asked for, windows of the request included."""
    answered = ask(client, "/v1/budget/reserve", RESERVE)
    assert answered.status_code == 200
    assert answered.get_json()["reservation"]["windows"][0]["amount"] == 100
    assert ledger.asked == [
        ("acme", "a", (WindowSpec("spend", "usd", "total", 1000),), Amounts(100, 5), 1000)
    ]


def test_without_windows_the_service_takes_those_it_knows(
    client: FlaskClient, ledger: Ledger
) -> None:
    """Its own document; an empty list is none."""
    for changed in ({"key_id": "k1"}, {}, {"windows": []}):
        ask(client, "/v1/budget/reserve", {**RESERVE, "windows": None, **changed})
    assert [facts[2] for facts in ledger.asked] == [(SPEND, CALLS), (SPEND,), ()]


UNKNOWN_CALLERS = [
    {"organization_id": "other"},
    {"organization_id": "other", "key_id": "k1"},
    {"key_id": "k2"},
]


@pytest.mark.parametrize("path", ["/v1/budget/reserve", "/v1/budget/check"])
@pytest.mark.parametrize("windows", [None, [], [WINDOW]])
@pytest.mark.parametrize("caller", UNKNOWN_CALLERS)
def test_an_unknown_caller_is_never_allowed(
    client: FlaskClient, ledger: Ledger, path: str, windows: Any, caller: dict[str, str]
) -> None:
    """An organization, or a key, that the document does not have was once reserved for, without
    any limit. Windows of the request make nobody known."""
    answered = ask(client, path, {**BODIES[path], "windows": windows, **caller})
    assert (answered.status_code, answered.get_json()["code"]) == (404, "UNKNOWN_ORGANIZATION")
    assert ledger.asked == []


def test_without_a_document_only_the_request_says_who_there_is(ledger: Ledger) -> None:
    """A service of its own, of which no document was applied: it takes windows that are sent, and
    knows nobody else."""

    def nobody(_organization_id: str, _key_id: str | None) -> Any:
        raise NotConfigured

    client = client_of(ledger, [], windows_of=nobody)
    for path in ("/v1/budget/reserve", "/v1/budget/check"):
        statuses = [
            ask(client, path, {**BODIES[path], "windows": windows}).status_code
            for windows in ([WINDOW], None)
        ]
        assert statuses == [200, 404]
    assert ask(client, "/v1/budget/windows?organization_id=acme").status_code == 404


@pytest.mark.parametrize(
    ("window", "code"), [(SPEND, "BUDGET_EXCEEDED"), (CALLS, "QUOTA_EXCEEDED")]
)
def test_a_refusal_is_402(
    client: FlaskClient, ledger: Ledger, window: WindowSpec, code: str
) -> None:
    """B8, B19: with the code of its unit, and settled apart from reserved."""
    ledger.outcomes = [Denied(state(window, 3, 2), 1, (state(window, 3, 2),), ("gone",))]
    answered = ask(client, "/v1/budget/reserve", RESERVE)
    body = answered.get_json()
    assert (answered.status_code, body["code"], body["dropped"]) == (402, code, ["gone"])
    assert (body["binding"]["settled"], body["binding"]["reserved"]) == (3, 2)
    assert body["this_request"] == 1


def test_a_lease_that_was_ended_is_409(client: FlaskClient, ledger: Ledger) -> None:
    """A question that came late holds nothing."""
    ledger.outcomes = [Closed("a")]
    answered = ask(client, "/v1/budget/reserve", RESERVE)
    assert (answered.status_code, answered.get_json()["code"]) == (409, "LEASE_ENDED")


@pytest.mark.parametrize("path", ["/v1/budget/settle", "/v1/budget/release"])
@pytest.mark.parametrize("booked", [True, False])
def test_a_reservation_is_ended(
    client: FlaskClient, ledger: Ledger, path: str, booked: bool
) -> None:
    """B6: whether it was booked now, and what was crossed by it."""
    ledger.settlement = Settlement(booked, (ThresholdEvent(SPEND, 50),))
    body = ask(client, path, BODIES[path]).get_json()
    assert (body["booked"], body["crossings"][0]["percent"]) == (booked, 50)
    [(reservation, amounts)] = ledger.asked
    assert reservation.windows[0].amount == 100
    assert amounts == (Amounts(100, 5) if "settle" in path else Amounts(0, 0, 0))


NO_WINDOWS = {**RESERVATION, "windows": []}


@pytest.mark.parametrize(
    ("key", "windows"),
    [({}, (SPEND,)), ({"key_id": None}, (SPEND,)), ({"key_id": "k1"}, (SPEND, CALLS))],
)
@pytest.mark.parametrize("path", ["/v1/budget/settle", "/v1/budget/release"])
def test_a_lease_without_windows_is_found_and_ended(
    client: FlaskClient, ledger: Ledger, path: str, key: dict[str, Any], windows: Any
) -> None:
    """In the windows of its organization and key; it used to be answered and not booked."""
    ask(client, path, {**BODIES[path], "reservation": {**NO_WINDOWS, **key}})
    found, settled = ledger.asked
    assert found == ("acme", "a", windows)
    assert settled[0] == HELD


def test_a_lease_that_was_ended_before_is_not_ended_again(
    client: FlaskClient, ledger: Ledger
) -> None:
    """Once, however often it is sent, and whatever names it."""
    ledger.found = Closed("a")
    path = "/v1/budget/settle"
    body = ask(client, path, {**BODIES[path], "reservation": NO_WINDOWS}).get_json()
    assert body["booked"] is False
    assert len(ledger.asked) == 1
    assert ledger.trail.events == []


@pytest.mark.parametrize("caller", [{"organization_id": "other"}, {"key_id": "k2"}])
def test_an_unknown_callers_lease_without_windows_is_nobodys(
    client: FlaskClient, ledger: Ledger, caller: dict[str, str]
) -> None:
    """Nothing says where to book it, so it is not taken."""
    path = "/v1/budget/settle"
    answered = ask(client, path, {**BODIES[path], "reservation": {**NO_WINDOWS, **caller}})
    assert (answered.status_code, answered.get_json()["code"]) == (404, "UNKNOWN_ORGANIZATION")


def test_an_unknown_callers_lease_with_windows_is_settled(
    client: FlaskClient, ledger: Ledger
) -> None:
    """An organization that was removed while its call ran has spent all the same."""
    path = "/v1/budget/settle"
    gone = {**RESERVATION, "organization_id": "other"}
    assert ask(client, path, {**BODIES[path], "reservation": gone}).status_code == 200
    assert ledger.asked[0][0].organization_id == "other"


# --- the audit trail ------------------------------------------------------------------------


def test_every_change_is_audited(client: FlaskClient, ledger: Ledger) -> None:
    """What was reserved, booked and freed, window by window; nothing else."""
    for path in BODIES:
        ask(client, path, BODIES[path])
    window = "org::spend:usd:total"
    assert ledger.trail.told() == [
        ("BUDGET_RESERVED", "a", {"windows": {window: 100}}),
        ("BUDGET_SETTLED", "a", {"windows": {window: 100}}),
        ("BUDGET_RELEASED", "a", {"windows": {window: 0}}),
    ]
    assert {(event.actor, event.organization_id) for event in ledger.trail.events} == {
        ("budget-service", "acme")
    }


def test_what_changes_nothing_is_not_audited(client: FlaskClient, ledger: Ledger) -> None:
    """Refused, ended before, or without a window."""
    ledger.settlement = Settlement(False)
    for path in ("/v1/budget/settle", "/v1/budget/release"):
        ask(client, path, BODIES[path])
    for outcome in (
        Denied(state(SPEND, 3, 2), 1, (state(SPEND, 3, 2),)),
        Closed("a"),
        Reservation("a", "acme", ()),
    ):
        ledger.outcomes = [outcome]
        ask(client, "/v1/budget/reserve", RESERVE)
    assert ledger.trail.events == []


def test_nothing_is_changed_that_cannot_be_audited(client: FlaskClient, ledger: Ledger) -> None:
    """503, and the ledger was not asked; a check changes nothing."""
    ledger.trail.reason = "disk_full"
    statuses = [ask(client, path, body).status_code for path, body in BODIES.items()]
    assert statuses == [200, 503, 503, 503]
    assert [len(facts) for facts in ledger.asked] == [2]


def test_thresholds_that_no_answer_tells_are_audited(client: FlaskClient, ledger: Ledger) -> None:
    """A rebuild found them, for a check; a reservation and a settlement tell the router."""
    ledger.states = [(state(SPEND, 0, lost=True),), (state(SPEND, 7),)]
    ask(client, "/v1/budget/check", BODIES["/v1/budget/check"])
    [event] = ledger.trail.events
    assert (event.action, event.context["budget"]) == ("BUDGET_THRESHOLD", "spend")
    assert event.context["percent"] == 50


@pytest.mark.parametrize(
    ("states", "amounts", "allowed"),
    [
        ((state(SPEND, 900),), AMOUNTS, True),
        ((state(SPEND, 900, 1),), AMOUNTS, False),
        ((state(SPEND, 1000),), {"cost_nanos": 0, "tokens": 5}, True),
        ((state(SPEND, 2000),), {"cost_nanos": 0, "tokens": 5}, True),
        ((state(WindowSpec("s", "usd", "total", None), 10**15),), AMOUNTS, True),
        ((state(WindowSpec("s", "usd", "total", 0), 0),), AMOUNTS, False),
        ((state(WindowSpec("s", "usd", "total", 0, enforced=False), 0),), AMOUNTS, True),
        ((state(SPEND, 0), state(CALLS, 5)), AMOUNTS, False),
        ((state(SPEND, 0), state(CALLS, 4)), AMOUNTS, True),
    ],
)
def test_a_check_follows_the_rule_of_the_ledger(
    client: FlaskClient, ledger: Ledger, states: Any, amounts: Any, allowed: bool
) -> None:
    """B11: 0 blocks what is not free, no limit never does, shadow only watches."""
    ledger.states = [states]
    body = ask(
        client, "/v1/budget/check", {**BODIES["/v1/budget/check"], "amounts": amounts}
    ).get_json()
    assert body["allowed"] is allowed
    assert (body["binding"] is None) is allowed
    assert len(body["windows"]) == len(states)


def test_windows_are_shown_as_the_counters_have_them(client: FlaskClient, ledger: Ledger) -> None:
    """B17: of the organization, and of a key that is named."""
    ledger.states = [(state(SPEND, 1, 2), state(CALLS, 3))]
    answered = ask(client, "/v1/budget/windows?organization_id=acme&key_id=k1")
    figures = [(row["name"], row["settled"]) for row in answered.get_json()["windows"]]
    assert figures == [("spend", 1), ("calls", 3)]
    assert ledger.asked == [("acme", (SPEND, CALLS))]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("organization_id=other", 404),
        ("organization_id=acme&key_id=other", 404),
        ("", 400),
        ("key_id=k1", 400),
        ("organization_id=a%20b", 400),
        ("organization_id=acme&key_id=%7B", 400),
    ],
)
def test_unknown_windows_are_not_shown(client: FlaskClient, query: str, status: int) -> None:
    """Neither of an unknown caller nor of a key of another organization."""
    assert ask(client, f"/v1/budget/windows?{query}").status_code == status


# --- rebuilding -----------------------------------------------------------------------------


def test_a_lost_window_is_rebuilt_before_it_admits(client: FlaskClient, ledger: Ledger) -> None:
    """P9: what the rebuild found to be crossed is in the answer."""
    ledger.outcomes = [NeedsRebuild((SPEND,)), HELD]
    body = ask(client, "/v1/budget/reserve", RESERVE).get_json()
    assert body["crossings"][0]["percent"] == 50
    assert ledger.rebuilt == [("acme", (SPEND,), 0)]


def test_a_lost_window_is_rebuilt_before_it_is_shown(client: FlaskClient, ledger: Ledger) -> None:
    """Its figures mean nothing before."""
    ledger.states = [(state(SPEND, 0, lost=True),), (state(SPEND, 7),)]
    body = ask(client, "/v1/budget/check", BODIES["/v1/budget/check"]).get_json()
    assert body["windows"][0]["settled"] == 7


@pytest.mark.parametrize("outcome", [NeedsRebuild((SPEND,)), object()])
def test_what_cannot_be_decided_is_not_admitted(
    client: FlaskClient, ledger: Ledger, outcome: Any
) -> None:
    """A window that is lost again and again, and what the ledger should never say."""
    ledger.outcomes, ledger.states = [outcome], [(state(SPEND, 0, lost=True),)]
    for path in ("/v1/budget/reserve", "/v1/budget/check"):
        assert ask(client, path, BODIES[path]).status_code == 503


# --- failures -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*BODIES, "/v1/budget/windows?organization_id=acme"])
def test_a_ledger_that_is_away_is_503(client: FlaskClient, ledger: Ledger, path: str) -> None:
    """B3: never a yes; and never a word about hosts."""
    error = Unavailable("redis", "timeout", "10.1.2.3:6379")
    ledger.outcomes, ledger.states, ledger.settlement = [error], [error], error
    answered = ask(client, path, BODIES.get(path))
    assert (answered.status_code, answered.headers["Retry-After"]) == (503, "1")
    assert answered.get_json()["code"] == "LEDGER_UNAVAILABLE"
    assert "10.1.2.3" not in answered.text


@pytest.mark.parametrize("path", BODIES)
def test_a_defect_is_500_and_tells_nothing(client: FlaskClient, ledger: Ledger, path: str) -> None:
    """The log has the traceback."""
    error = RuntimeError("canary")
    ledger.outcomes, ledger.states, ledger.settlement = [error], [error], error
    answered = ask(client, path, BODIES[path])
    assert (answered.status_code, answered.get_json()["code"]) == (500, "INTERNAL")
    assert "canary" not in answered.text


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"null", b"{}", b"[" * 5000])
def test_a_body_that_is_none_is_400(client: FlaskClient, path: str, body: bytes) -> None:
    """Whatever it is instead of an object with the required fields."""
    answered = ask(client, path, body)
    assert (answered.status_code, answered.get_json()["code"]) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"organization_id": "a{b}"}, "organization_id: must be 1 to 128 of"),
        ({"lease_id": ""}, "lease_id: must have 1 to 128 characters"),
        ({"lease_id": "a\nb"}, "lease_id: must not hold control characters"),
        ({"ttl_ms": 0}, "ttl_ms: must be a whole number between 1 and"),
        ({"ttl_ms": "1000"}, "ttl_ms: must be a whole number between 1 and"),
        ({"amounts": {**AMOUNTS, "tokens": -1}}, "amounts.tokens: must be a whole number"),
        ({"amounts": {**AMOUNTS, "cost_nanos": 9 * 10**15 + 1}}, "amounts.cost_nanos: must be a"),
        ({"windows": [{**WINDOW, "limit": -1}]}, "windows[0].limit: must be a whole number"),
        ({"windows": [{**WINDOW, "shadow": True}]}, "windows[0].shadow: unknown field"),
        ({"windows": [{**WINDOW, "scope": "key"}]}, "windows[0]: spend: a key's window names"),
        ({"windows": [{**WINDOW, "timezone": "Mars"}]}, "windows[0].timezone: 'Mars' is no time"),
        ({"windows": [WINDOW] * 65}, "windows: must have at most 64"),
        ({"more": 1}, "more: unknown field"),
    ],
)
def test_a_wrong_field_is_named(
    client: FlaskClient, ledger: Ledger, changes: dict[str, Any], problem: str
) -> None:
    """With its path, and nothing reaches the ledger."""
    answered = ask(client, "/v1/budget/reserve", {**RESERVE, **changes})
    [found] = answered.get_json()["problems"]
    assert found.startswith(problem)
    assert ledger.asked == []


def test_all_wrong_fields_are_named_at_once(client: FlaskClient) -> None:
    """Nobody wants to find them one by one."""
    body = {**RESERVE, "ttl_ms": -1, "windows": [{"unit": "eur"}], "amounts": {}}
    problems = ask(client, "/v1/budget/reserve", body).get_json()["problems"]
    assert len(problems) == 5


def test_a_body_that_is_too_large_is_413(client: FlaskClient) -> None:
    """It is not read."""
    body = b'{"organization_id": "' + b"a" * MAX_BODY_BYTES + b'"}'
    answered = ask(client, "/v1/budget/check", body)
    assert (answered.status_code, answered.get_json()["code"]) == (413, "BODY_TOO_LARGE")


def test_a_body_that_was_cut_is_400(client: FlaskClient, ledger: Ledger) -> None:
    """Even where what arrived could be read."""
    body = json.dumps(RESERVE).encode()
    longer = {"CONTENT_LENGTH": str(len(body) + 1)}
    answered = ask(client, "/v1/budget/reserve", body, environ_overrides=longer)
    assert answered.status_code == 400
    assert ledger.asked == []


def test_other_paths_and_methods_are_refused_in_json(client: FlaskClient) -> None:
    """A router that asks an older service learns that it cannot do this."""
    unknown, wrong = client.get("/v2/budget"), client.get("/v1/budget/check")
    assert (unknown.status_code, unknown.get_json()["code"]) == (404, "NOT_FOUND")
    assert (wrong.status_code, wrong.get_json()["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert wrong.headers["Allow"] == "POST"


# --- token and health -----------------------------------------------------------------------


@pytest.mark.parametrize("path", [*BODIES, "/v1/budget/windows?organization_id=acme"])
@pytest.mark.parametrize(
    "header", [None, "", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", "Bearer \xff"]
)
def test_without_the_token_nobody_is_answered(
    ledger: Ledger, path: str, header: str | None
) -> None:
    """On every path that knows or changes anything."""
    client = client_of(ledger, [], token=TOKEN)
    headers = {} if header is None else {"Authorization": header}
    answered = ask(client, path, BODIES.get(path), headers=headers)
    assert (answered.status_code, answered.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert ledger.asked == []


def test_with_the_token_one_is_answered(ledger: Ledger) -> None:
    """The scheme's case does not matter."""
    client = client_of(ledger, [], token=TOKEN)
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        assert ask(client, "/v1/budget/reserve", RESERVE, headers=headers).status_code == 200


def test_health_needs_no_token(ledger: Ledger, ping: list[Any]) -> None:
    """Alive is the process, ready is the ledger; who probes has no secrets."""
    client = client_of(ledger, ping, token=TOKEN)
    assert ask(client, "/healthz").status_code == 200
    assert ask(client, "/readyz").get_json() == {"status": "ok"}
    ping.append(Unavailable("redis", "connect"))
    assert ask(client, "/healthz").status_code == 200
    answered = ask(client, "/readyz")
    assert (answered.status_code, answered.get_json()) == (503, {"status": "unavailable"})


# --- the contract ---------------------------------------------------------------------------


def test_the_contract_names_every_path_and_no_other(ledger: Ledger) -> None:
    """What is served is what is described."""
    rules = client_of(ledger, []).application.url_map.iter_rules()
    served = {
        (rule.rule, method.lower())
        for rule in rules
        for method in (rule.methods or ()) - {"HEAD", "OPTIONS"}
    }
    described = {
        (path, method) for path, operations in CONTRACT["paths"].items() for method in operations
    }
    assert served == described


def test_every_reference_of_the_contract_leads_somewhere() -> None:
    """And every part of it is used."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.update([node["$ref"]] if "$ref" in node else [])
            node = [*node.values()]
        for inner in node if isinstance(node, list) else ():
            walk(inner)

    walk(CONTRACT)
    parts = CONTRACT["components"]
    assert found == {
        f"#/components/{section}/{name}"
        for section in ("schemas", "responses")
        for name in parts[section]
    }


def test_the_schemas_of_the_contract_are_schemas() -> None:
    """Each is valid JSON Schema, and says what it is for, as does each of its fields."""
    for schema in CONTRACT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
        assert schema["description"]
        assert all(field.get("description") for field in schema["properties"].values())


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_of_these_tests_are_those_of_the_contract(path: str) -> None:
    """Whoever writes a client by the contract is understood."""
    content = CONTRACT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = {**content["schema"], "components": CONTRACT["components"]}
    assert [*Draft202012Validator(schema).iter_errors(BODIES[path])] == []
