"""The client of a budget service: what it asks, what it understands, and all that is no answer."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from router.breaker import Unavailable
from router.clock import FrozenClock
from router.limits.budgets.periods import TOTAL, Period
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Closed,
    Denied,
    NotReserved,
    Reservation,
    ReservedWindow,
    Settlement,
    ThresholdEvent,
    WindowSpec,
    WindowState,
)
from router.limits.remote.budget_client import BudgetClient
from router.limits.remote.budget_session import MAX_REPLY_BYTES, BudgetSession
from router.limits.remote.contract import openapi
from tests.fakes.backend.scripts import (
    answer,
    answer_and_end,
    answer_and_hang,
    answer_and_reset,
    chunked,
    deaf,
    refuse,
    reply,
    silent,
    trickle,
)
from tests.fakes.backend.server import FakeServer, Peer

CLOCK = FrozenClock(2_000_000_000.0)
DAY = Period(1_999_987_200_000, 2_000_073_600_000)
SPEND = WindowSpec("spend", "usd", "daily", 1000, thresholds=(50,))
CALLS = WindowSpec("calls", "requests", "total", 5, scope="key", subject="k1")
HELD = (ReservedWindow(SPEND, DAY, 100), ReservedWindow(CALLS, TOTAL, 1))
WINDOW = {"name": "spend", "unit": "usd", "period": "daily", "limit": 1000, "thresholds": [50]}
TIMES = {"start_ms": DAY.start_ms, "end_ms": DAY.end_ms}
RESERVATION = {
    "lease_id": "a",
    "organization_id": "acme",
    "windows": [{"window": WINDOW, **TIMES, "amount": 100}],
    "reserved_at_ms": 5,
    "epoch": "7",
}
DENIED = {
    "error": "exhausted",
    "code": "BUDGET_EXCEEDED",
    "binding": {**WINDOW, **TIMES, "settled": 950, "reserved": 10},
    "this_request": 100,
}
SCHEMAS = openapi()["components"]["schemas"]


def fits(name: str, value: Any) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}}
    return Draft202012Validator(schema).is_valid(value)


class Scripted:
    """A session that gives answers from a list and remembers what was asked."""

    def __init__(self, *answers: tuple[int, Any] | Unavailable) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, Any]] = []

    def post(self, url: str, body: Any) -> tuple[int, bytes]:
        self.asked.append((url.removeprefix("http://budgets"), json.loads(json.dumps(body))))
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Unavailable):
            raise found
        status, what = found
        return status, what if isinstance(what, bytes) else json.dumps(what).encode()

    def get(self, url: str) -> tuple[int, bytes]:
        raise Unavailable("budget service", "connect")

    def close(self) -> None: ...


def client_of(session: Any, **options: Any) -> BudgetClient:
    return BudgetClient("http://budgets/", session, clock=CLOCK, **options)


def reserve(client: BudgetClient, **options: Any) -> Any:
    windows = options.pop("windows", (SPEND, CALLS))
    return client.reserve("acme", "a", windows, Amounts(100, 7), ttl_ms=60_000, **options)


# --- what is asked, and what is understood --------------------------------------------------


def test_a_reservation_is_asked_for_as_the_contract_says() -> None:
    """All that the service needs to decide, and nothing that it refuses."""
    session = Scripted((200, {"reservation": RESERVATION}))
    found = reserve(client_of(session), key_id="k1")
    assert found == Reservation("a", "acme", (ReservedWindow(SPEND, DAY, 100),), 5, "7")
    [(path, body)] = session.asked
    assert path == "/v1/budget/reserve"
    assert fits("ReserveRequest", body)
    assert [window["name"] for window in body.pop("windows")] == ["spend", "calls"]
    assert body == {
        "organization_id": "acme",
        "key_id": "k1",
        "lease_id": "a",
        "ttl_ms": 60_000,
        "amounts": {"cost_nanos": 100, "tokens": 7, "requests": 1},
    }


def test_without_windows_the_service_takes_its_own() -> None:
    """A service may know budgets of which the router's document says nothing."""
    session = Scripted((200, {"reservation": {**RESERVATION, "windows": []}}))
    reserve(client_of(session), windows=())
    assert session.asked[0][1]["windows"] is None


def test_a_refusal_tells_what_refused() -> None:
    """B8: settled and reserved apart, with the true end of the period."""
    denied = reserve(client_of(Scripted((402, DENIED))))
    assert denied == Denied(WindowState(SPEND, DAY, 950, 10), 100, ())
    assert not denied.is_by_reservations
    assert denied.binding.resets_at_s == DAY.end_ms // 1000


def test_a_lease_that_was_ended_is_closed() -> None:
    """As the ledger says it."""
    body = {"error": "ended", "code": "LEASE_ENDED"}
    assert reserve(client_of(Scripted((409, body)))) == Closed("a")


def test_more_than_is_understood_is_no_mistake() -> None:
    """A newer service may say more, anywhere."""
    held = [{**RESERVATION["windows"][0], "more": 1, "window": {**WINDOW, "more": 1}}]  # type: ignore[index]
    answered = {"reservation": {**RESERVATION, "windows": held, "more": 1}, "more": 1}
    assert isinstance(reserve(client_of(Scripted((200, answered)))), Reservation)


def test_what_was_reserved_is_handed_back() -> None:
    """B6: the service gets what it needs to book it once, in its own period."""
    session = Scripted(
        (200, {"reservation": RESERVATION}),
        (200, {"booked": True, "crossings": [{"window": WINDOW, "percent": 50}]}),
        (200, {"booked": False}),
    )
    client = client_of(session)
    held = reserve(client)
    assert client.settle(held, Amounts(30, 2)) == Settlement(True, (ThresholdEvent(SPEND, 50),))
    assert client.release(held) == Settlement(False)
    (_, settled), (path, released) = session.asked[1:]
    assert fits("SettleRequest", settled)
    assert fits("ReleaseRequest", released)
    assert path == "/v1/budget/release"
    assert settled["amounts"] == {"cost_nanos": 30, "tokens": 2, "requests": 1}
    back = settled["reservation"]
    assert (back["windows"][0]["amount"], back["reserved_at_ms"], back["epoch"]) == (100, 5, "7")


def test_thresholds_that_a_rebuild_found_are_told() -> None:
    """B18: also when it is the reservation that brings them."""
    told: list[Any] = []
    answered = {"reservation": RESERVATION, "crossings": [{"window": WINDOW, "percent": 80}]}
    client = client_of(Scripted((200, answered)), on_threshold=lambda *facts: told.append(facts))
    reserve(client)
    assert told == [("acme", ThresholdEvent(SPEND, 80))]


def test_windows_are_read_by_a_check_of_nothing() -> None:
    """B17: what the next refusal would say."""
    state = {**WINDOW, **TIMES, "settled": 3, "reserved": 4}
    session = Scripted((200, {"allowed": True, "windows": [state]}))
    assert client_of(session).read("acme", (SPEND,)) == (WindowState(SPEND, DAY, 3, 4),)
    [(path, body)] = session.asked
    assert path == "/v1/budget/check"
    assert fits("CheckRequest", body)
    assert body["amounts"] == {"cost_nanos": 0, "tokens": 0, "requests": 0}


# --- a service that only checks -------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 402])
def test_a_bare_no_is_put_down_to_the_first_budget(status: int) -> None:
    """The client learns of a budget that exists; its figures nobody has told."""
    session = Scripted((404, b""), (status, {"allowed": False}))
    denied = reserve(client_of(session), windows=(CALLS, SPEND))
    assert denied == Denied(WindowState(SPEND, DAY, 0, 0), 100, ())
    assert not denied.is_by_reservations, "no call waits for what nobody has told"


def test_a_bare_no_without_any_budget_has_no_figures() -> None:
    """``limit`` None: there is nothing to show."""
    session = Scripted((404, b""), (402, {"allowed": False}))
    denied = reserve(client_of(session), windows=())
    assert (denied.binding.window.unit, denied.binding.window.limit) == ("usd", None)
    assert not denied.is_by_reservations


def test_a_plain_service_may_say_more() -> None:
    """A name and two figures are enough for a whole 402."""
    binding = {"name": "team", "unit": "tokens", "limit": 500, "settled": 499}
    session = Scripted((404, b""), (200, {"allowed": False, "binding": binding}))
    denied = reserve(client_of(session))
    assert denied == Denied(
        WindowState(WindowSpec("team", "tokens", "total", 500), TOTAL, 499, 0), 7, ()
    )


# --- nonsense -------------------------------------------------------------------------------

NONSENSE: list[tuple[int, Any]] = [
    (200, b""),
    (200, b"<html>maintenance</html>"),
    (200, b"null"),
    (200, b"[]"),
    (200, b"true"),
    (200, b'{"reservation":'),
    (200, b"\xff\xfe"),
    (200, b"[" * 100_000),
    (200, {}),
    (200, {"reservation": None}),
    (200, {"reservation": {**RESERVATION, "lease_id": "another"}}),
    (200, {"reservation": {**RESERVATION, "organization_id": "other"}}),
    (200, {"reservation": {**RESERVATION, "windows": [{}]}}),
    (200, {"reservation": {**RESERVATION, "windows": [{"window": 5, **TIMES, "amount": 1}]}}),
    (200, {"reservation": {**RESERVATION, "reserved_at_ms": "now"}}),
    (200, {"reservation": RESERVATION, "crossings": [{"window": WINDOW, "percent": 5000}]}),
    (402, {"code": "BUDGET_EXCEEDED"}),
    (402, {**DENIED, "binding": {**WINDOW, "limit": -1}}),
    (402, {**DENIED, "binding": {**WINDOW, "timezone": "Mars/Olympus"}}),
    (402, {**DENIED, "binding": {**WINDOW, "scope": "key"}}),
    (402, {**DENIED, "this_request": True}),
    (200, DENIED),
    (402, {"reservation": RESERVATION}),
    (201, {"reservation": RESERVATION}),
    (204, b""),
    (302, b""),
    (500, b"Traceback"),
    (503, {"error": "no", "code": "LEDGER_UNAVAILABLE"}),
]


@pytest.mark.parametrize(("status", "body"), NONSENSE)
def test_nonsense_is_no_answer(status: int, body: Any) -> None:
    """B3: nobody knows what is held, so it is to be taken back; the third time ends the asking."""
    session = Scripted((status, body))
    client = client_of(session)
    for _ in range(3):
        with pytest.raises(NotReserved) as raised:
            reserve(client)
        assert (raised.value.reason, raised.value.presumed.windows) == ("lost", HELD)
        assert raised.value.presumed.reserved_at_ms is None
    with pytest.raises(NotReserved) as raised:
        reserve(client)
    assert raised.value.reason == "breaker_open"
    assert len(session.asked) == 3
    client.close()


@pytest.mark.parametrize("status", [400, 401, 403, 413, 429])
def test_a_question_that_is_refused_concerns_that_question_alone(status: int) -> None:
    """One organization's trouble is not everybody's outage."""
    client = client_of(Scripted((status, b"<html>")))
    for _ in range(5):
        with pytest.raises(NotReserved):
            reserve(client)
        with pytest.raises(Unavailable):
            client.settle(Reservation("a", "acme", HELD), NOTHING)
        with pytest.raises(Unavailable):
            client.read("acme", (SPEND,))
    assert client.breaker.state == "closed"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"allowed": "yes"}),
        (200, {"allowed": 1}),
        (200, {}),
        (402, {"allowed": True}),
        (402, b"Payment Required"),
        (200, {"allowed": False, "binding": {"name": "x"}}),
        (200, {"allowed": True, "windows": {}}),
    ],
)
def test_a_check_is_no_more_forgiving(status: int, body: Any) -> None:
    """Above all, nonsense is never a yes."""
    client = client_of(Scripted((404, b""), (status, body)))
    with pytest.raises(NotReserved):
        reserve(client)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*RESERVATION, *DENIED, *WINDOW, "reservation", "allowed"]), inner
        )
    ),
    max_leaves=10,
)


GOOD_REPLIES = st.sampled_from([{"reservation": RESERVATION}, DENIED, {"booked": True}])


def answered(client: BudgetClient, ask: Callable[[BudgetClient], Any]) -> Any:
    """What the client makes of the answer; None when it is no answer."""
    try:
        return ask(client)
    except Unavailable:
        return None


@given(st.sampled_from([200, 402, 409, 404, 500]), JSON | GOOD_REPLIES | st.binary(max_size=20))
def test_no_answer_makes_another_error(status: int, body: Any) -> None:
    """Whatever is said: what the contract's schemas say it is, or Unavailable."""

    def said(expected_status: int, schema: str) -> bool:
        return status == expected_status and not isinstance(body, bytes) and fits(schema, body)

    sent = body if isinstance(body, bytes) else json.dumps(body, allow_nan=True).encode()
    client = client_of(Scripted((status, sent)))
    client.breaker.failed = lambda *_: None  # type: ignore[assignment,method-assign]
    held = Reservation("a", "acme", HELD)
    settlement = answered(client, lambda asked: asked.settle(held, NOTHING))
    assert isinstance(settlement, Settlement) is said(200, "SettleReply")
    outcome = answered(client, reserve)
    assert isinstance(outcome, Reservation) is said(200, "ReserveReply")
    assert isinstance(outcome, Denied) is said(402, "DeniedReply")
    assert isinstance(outcome, Closed) is (status == 409)


# --- over real sockets ----------------------------------------------------------------------

TIMEOUT_S = 0.12
GOOD = reply(json.dumps({"reservation": RESERVATION}).encode())


@pytest.fixture
def connect() -> Iterator[Callable[..., BudgetClient]]:
    """A client of a server that plays scripts."""
    opened: list[Any] = []

    def make(*scripts: Any, timeout_s: float = TIMEOUT_S, **options: Any) -> BudgetClient:
        server = FakeServer(*scripts)
        session = BudgetSession(timeout_s=timeout_s, **options)
        client = BudgetClient(server.url, session, clock=CLOCK)
        client.server = server  # type: ignore[attr-defined]
        opened.extend((client, server))
        return client

    yield make
    for one in opened:
        one.close()


def test_a_connection_is_used_again(connect: Any) -> None:
    """Pooled: a call costs no handshake."""
    client = connect(answer(GOOD), timeout_s=5)
    for _ in range(3):
        assert isinstance(reserve(client), Reservation)
    assert client.server.connections == 1


def test_a_question_carries_the_token_and_nothing_of_others(
    connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No proxy of the environment, no cookie that was set, no redirect that is followed."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    cookie = reply(
        json.dumps({"reservation": RESERVATION}).encode(), headers=("Set-Cookie: a=b; Path=/",)
    )
    moved = reply(b"", 307, headers=("Location: /elsewhere",))
    client = connect(answer(cookie, moved), timeout_s=5, token="t" * 16)
    reserve(client)
    with pytest.raises(NotReserved):
        reserve(client)
    first, second = client.server.requests
    assert b"\r\nauthorization: bearer " + b"t" * 16 in first.lower()
    assert b"\r\naccept-encoding: identity\r\n" in first.lower()
    assert b"cookie" not in second.lower()
    assert len(client.server.requests) == 2


def test_a_connection_that_was_given_up_is_replaced(connect: Any) -> None:
    """A keep-alive that ended is no outage; what may come twice is sent again."""

    def answer_once(peer: Peer) -> None:
        peer.read_request()
        peer.send(GOOD)
        peer.read_request()  # read, and then gone without a word
        peer.reset()

    client = connect(answer_once, answer(GOOD), timeout_s=5)
    assert isinstance(reserve(client), Reservation)
    assert isinstance(reserve(client), Reservation)
    assert client.server.connections == 2
    assert client.breaker.state == "closed"


HUGE = json.dumps({"reservation": RESERVATION}).encode().ljust(MAX_REPLY_BYTES + 1)
CHUNKS = [HUGE[start : start + 65_536] for start in range(0, len(HUGE), 65_536)]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (refuse, "lost or connect"),  # whichever is noticed first
        (silent, "timeout"),
        (deaf, "timeout"),
        (trickle(GOOD, 0.01), "timeout"),
        (trickle(GOOD[-200:], 0.01, at_once=GOOD[:-200]), "timeout"),
        (answer_and_hang(GOOD[:-5]), "timeout"),
        (answer_and_end(GOOD[:-5]), "lost"),
        (answer_and_end(GOOD[:30]), "lost"),
        (answer_and_reset(b""), "lost"),
        (answer_and_end(b"\x15\x03\x01\x00\x02\x02\x46"), "lost"),
        (answer_and_hang(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000), "lost"),
        (answer_and_hang(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000), "lost"),
        (answer(reply(HUGE)), "lost"),
        (answer(chunked(*CHUNKS)), "lost"),
        (answer(reply(b"\x1f\x8b junk", headers=("Content-Encoding: gzip",))), "lost"),
    ],
)
def test_a_service_that_misbehaves_is_away_in_time(connect: Any, script: Any, reason: str) -> None:
    """P9: one deadline for the whole question, whatever comes and however slowly."""
    # What is lost is noticed at once; on a busy machine that may take longer than a short timeout.
    timeout_s = TIMEOUT_S if reason == "timeout" else 5.0
    client = connect(script, timeout_s=timeout_s)
    started_s = time.monotonic()
    with pytest.raises(NotReserved) as raised:
        reserve(client)
    assert raised.value.reason in reason.split(" or ")
    assert time.monotonic() - started_s < timeout_s + 0.3


def test_nobody_there_is_told_apart() -> None:
    """What was never sent need not be taken back."""
    with FakeServer(silent) as server:
        url = server.url
    client = BudgetClient(url, BudgetSession(timeout_s=TIMEOUT_S), clock=CLOCK)
    with pytest.raises(NotReserved) as raised:
        reserve(client)
    assert raised.value.reason == "connect"
    client.close()


def test_a_name_that_is_not_known_is_told_apart() -> None:
    """The lookup is the injected one, within the deadline."""
    asked: list[tuple[str, float]] = []

    def resolve(host: str, timeout_s: float) -> list[str]:
        asked.append((host, timeout_s))
        return []

    session = BudgetSession(timeout_s=TIMEOUT_S, resolve=resolve)
    client = BudgetClient("http://budgets.example:1", session, clock=CLOCK)
    with pytest.raises(NotReserved) as raised:
        reserve(client)
    assert raised.value.reason == "connect"
    [(host, timeout_s)] = asked
    assert host == "budgets.example"
    assert 0 < timeout_s <= TIMEOUT_S


def test_more_calls_than_connections_wait_within_the_deadline(connect: Any) -> None:
    """A slow service does not pile up connections."""
    client = connect(silent, max_connections=1)

    def hang() -> None:
        with pytest.raises(NotReserved):
            reserve(client)

    first = threading.Thread(target=hang)
    first.start()
    while not client.server.connections:
        time.sleep(0.001)
    session = client._session
    session._timeout_s = 0.02
    with pytest.raises(NotReserved) as raised:
        reserve(client)
    assert raised.value.reason == "pool_wait"
    first.join(5)


def test_a_service_that_comes_back_is_found_by_the_probe(connect: Any) -> None:
    """P9: no call pays for finding out, and calls go on at once."""
    bad = reply(b"", 500)
    client = connect(answer(bad, bad, bad, reply(b"gone", 404), GOOD), timeout_s=5)
    back = threading.Event()
    client.breaker._on_change = lambda _name, state: state == "closed" and back.set()
    for _ in range(3):
        with pytest.raises(NotReserved):
            reserve(client)
    with pytest.raises(NotReserved, match="breaker_open"):
        reserve(client)
    assert back.wait(5)
    assert isinstance(reserve(client), Reservation)
    lines = [request.split(b"\r\n")[0] for request in client.server.requests]
    assert lines[3] == b"GET /readyz HTTP/1.1"


def test_certificates_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS only a service that can prove its name is asked; others never hear the token."""
    authority, other_authority = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    for issuer, trusted in ((authority, True), (other_authority, False)):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issuer.issue_cert("127.0.0.1").configure_cert(tls)
        with FakeServer(answer(GOOD), tls=tls) as server:
            client = BudgetClient(server.url, BudgetSession(timeout_s=5), clock=CLOCK)
            if trusted:
                assert isinstance(reserve(client), Reservation)
            else:
                with pytest.raises(NotReserved) as raised:
                    reserve(client)
                assert raised.value.reason == "connect"
                assert server.requests == []
            client.close()


def test_a_trickle_over_tls_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same deadline holds for what is decrypted."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with FakeServer(trickle(GOOD, 0.02), tls=tls) as server:
        client = BudgetClient(server.url, BudgetSession(timeout_s=0.4), clock=CLOCK)
        started_s = time.monotonic()
        with pytest.raises(NotReserved) as raised:
            reserve(client)
        assert raised.value.reason == "timeout"
        assert time.monotonic() - started_s < 0.8
        client.close()
