"""What a 404 means: a service that only checks, an unknown caller, or somebody in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router.breaker import Unavailable
from router.clock import FrozenClock
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Denied,
    NotReserved,
    Reservation,
    Settlement,
    WindowSpec,
)
from router.limits.remote.budget_client import BudgetClient
from router.limits.remote.service_ability import CHECKS_ONLY_S, ServiceAbility, service_dir

SPEND = WindowSpec("spend", "usd", "total", 1000)
ENDPOINT = "http://budgets"
RESERVED = (200, {"reservation": {"lease_id": "a", "organization_id": "acme", "windows": []}})
DENIED = (
    402,
    {
        "error": "exhausted",
        "code": "BUDGET_EXCEEDED",
        "binding": {"name": "spend", "unit": "usd", "limit": 1000},
        "this_request": 100,
    },
)
ENDED = (409, {"error": "ended", "code": "LEASE_ENDED"})
YES = (200, {"allowed": True})
UNKNOWN = (404, {"error": "no such organization", "code": "UNKNOWN_ORGANIZATION"})


class Service:
    """Answers each path in its own way, and remembers what was asked."""

    def __init__(self, **answers: tuple[int, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.bodies: list[Any] = []

    def post(self, url: str, body: Any) -> tuple[int, bytes]:
        path = url.rpartition("/")[2]
        self.asked.append(path)
        self.bodies.append(json.loads(json.dumps(body)))
        status, what = self.answers[path]
        return status, what if isinstance(what, bytes) else json.dumps(what).encode()

    def close(self) -> None: ...


def client_of(service: Service, ability: ServiceAbility | None = None) -> BudgetClient:
    session: Any = service
    return BudgetClient(ENDPOINT, session, ability=ability, clock=FrozenClock(2e9))


def reserve(client: BudgetClient, windows: Any = (SPEND,)) -> Any:
    return client.reserve("acme", "a", windows, Amounts(100, 7), ttl_ms=60_000, key_id="k1")


NOT_RESERVED = [(404, b"<html>"), (405, b""), (501, b""), (404, {"code": "NOT_FOUND"})]


@pytest.mark.parametrize("answer", NOT_RESERVED)
def test_a_plain_service_is_asked_for_checks(answer: tuple[int, Any]) -> None:
    """It is found out once, and asked again after a while."""
    now_s = [0.0]
    service = Service(reserve=answer, check=YES)
    client = client_of(service, ServiceAbility(monotonic_s=lambda: now_s[0]))
    for _ in range(2):
        held = reserve(client)
        assert isinstance(held, Reservation)
        assert held.windows == ()
        assert client.settle(held, Amounts(1, 1)) == Settlement(True)
    assert service.asked == ["reserve", "check", "check"]
    now_s[0] = CHECKS_ONLY_S
    service.answers["reserve"] = RESERVED
    assert isinstance(reserve(client), Reservation)
    assert service.asked[3:] == ["reserve"]


@pytest.mark.parametrize("answer", NOT_RESERVED)
@pytest.mark.parametrize("decided", [RESERVED, DENIED, ENDED])
def test_a_service_that_has_decided_is_never_taken_for_a_plain_one(
    answer: tuple[int, Any], decided: tuple[int, Any], tmp_path: Path
) -> None:
    """Two of them let 287 USD through a budget of 100: a 404 in between, and all calls were only
    checked for a minute. Not by the process that saw it reserve, nor by one that starts later."""
    service = Service(reserve=decided, check=YES)
    directory = service_dir(tmp_path, ENDPOINT)
    client = client_of(service, ServiceAbility("auto", directory))
    reserve(client)
    service.answers["reserve"] = answer
    for later in (client, client_of(service, ServiceAbility("auto", directory))):
        with pytest.raises(NotReserved):
            reserve(later)
    assert "check" not in service.asked


def test_another_service_is_judged_by_itself(tmp_path: Path) -> None:
    """The memory is about one endpoint; a final slash makes no other."""
    here = service_dir(tmp_path, "http://a")
    assert service_dir(tmp_path, "http://a/") == here
    assert service_dir(tmp_path, "http://b") != here
    ServiceAbility("auto", here).has_reserved()
    assert not ServiceAbility("auto", here).may_lack_reservations(None)
    assert ServiceAbility("auto", service_dir(tmp_path, "http://b")).may_lack_reservations(None)


def test_a_check_that_says_that_its_service_reserves_is_no_plain_service() -> None:
    """A router that starts while something in between answers 404 has seen no reservation yet."""
    service = Service(reserve=(404, b""), check=(200, {"allowed": True, "reserves": True}))
    client = client_of(service)
    for _ in range(2):
        with pytest.raises(NotReserved):
            reserve(client)
    assert service.asked == ["reserve", "check"] * 2


def test_a_service_may_say_itself_that_it_only_checks(tmp_path: Path) -> None:
    """Whatever it did before: it is its own word, not that of something in between."""
    service = Service(reserve=RESERVED, check=YES)
    client = client_of(service, ServiceAbility("auto", tmp_path))
    reserve(client)
    service.answers["reserve"] = (501, {"error": "no", "code": "CANNOT_RESERVE"})
    assert client.settle(reserve(client), Amounts(1, 1)) == Settlement(True)
    assert service.asked == ["reserve", "reserve", "check"]


def test_the_operator_may_say_what_the_service_is() -> None:
    """``check``: it is never asked to reserve; ``reserve``: it never only checks."""
    service = Service(reserve=RESERVED, check=YES)
    reserve(client_of(service, ServiceAbility("check")))
    assert service.asked == ["check"]
    service.answers["reserve"] = (404, {"error": "no", "code": "CANNOT_RESERVE"})
    with pytest.raises(NotReserved):
        reserve(client_of(service, ServiceAbility("reserve")))
    assert service.asked == ["check", "reserve"]


@pytest.mark.parametrize("windows", [(SPEND,), ()])
@pytest.mark.parametrize(
    ("mode", "asked"), [("auto", "reserve"), ("reserve", "reserve"), ("check", "check")]
)
def test_whom_the_service_does_not_know_may_spend_nothing(
    windows: Any, mode: Any, asked: str
) -> None:
    """It is an answer, so no policy for outages lets the call pass; and it is no plain service."""
    service = Service(reserve=UNKNOWN, check=UNKNOWN)
    client = client_of(service, ServiceAbility(mode))
    for _ in range(2):
        denied = reserve(client, windows)
        assert isinstance(denied, Denied)
        assert (denied.binding.window.unit, denied.binding.window.limit) == ("usd", 0)
        assert denied.this_request == 100
    assert service.asked == [asked] * 2
    assert client.breaker.state == "closed"


@pytest.mark.parametrize("answer", [*NOT_RESERVED, UNKNOWN, (501, b"")])
def test_a_settlement_that_meets_a_404_is_not_taken(answer: tuple[int, Any]) -> None:
    """It used to count as done, and the charge was gone."""
    client = client_of(Service(reserve=RESERVED, settle=answer, release=answer))
    held = reserve(client)
    with pytest.raises(Unavailable):
        client.settle(held, Amounts(1, 1))
    with pytest.raises(Unavailable):
        client.release(held)


def test_what_a_plain_service_never_held_is_not_ended() -> None:
    """A question that nobody answered is taken back; there, that is nothing."""
    service = Service(reserve=(404, b""), check=YES, settle=(404, b""))
    client = client_of(service)
    presumed = Reservation("b", "acme", ())
    with pytest.raises(Unavailable):  # nobody knows yet what it can do
        client.settle(presumed, NOTHING)
    reserve(client)
    assert client.settle(presumed, NOTHING) == Settlement(True)


@pytest.mark.parametrize("reserved_at_ms", [None, 5])
def test_a_lease_without_windows_is_settled(reserved_at_ms: int | None) -> None:
    """A service need not tell its windows. It used to hear nothing more of such a lease; now it
    hears whose call it was, too."""
    reservation = {**RESERVED[1]["reservation"], "reserved_at_ms": reserved_at_ms}
    service = Service(reserve=(200, {"reservation": reservation}), settle=(200, {"booked": True}))
    client = client_of(service)
    assert client.settle(reserve(client, ()), Amounts(30, 2)) == Settlement(True)
    assert service.asked == ["reserve", "settle"]
    told = service.bodies[1]
    assert (told["reservation"]["lease_id"], told["reservation"]["key_id"]) == ("a", "k1")
    assert told["amounts"] == {"cost_nanos": 30, "tokens": 2, "requests": 1}


def test_a_reservation_without_an_answer_is_known_by_its_key() -> None:
    """Where the service alone knows the windows, it finds them by that."""
    service = Service(reserve=(503, b""), settle=(200, {"booked": True}))
    client = client_of(service)
    with pytest.raises(NotReserved) as raised:
        reserve(client, ())
    client.settle(raised.value.presumed, Amounts(30, 2))
    assert service.bodies[1]["reservation"]["key_id"] == "k1"
