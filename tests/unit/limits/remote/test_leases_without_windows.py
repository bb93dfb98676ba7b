"""Leases in windows that the service alone knows: they are settled, with sums made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from router.limits.budgets.windows import (
    Amounts,
    Closed,
    Reservation,
    Settlement,
    ThresholdEvent,
    WindowSpec,
)
from router.limits.remote.message_parts import of_key
from tests.unit.limits.remote.conftest import Service

TTL_MS = 60_000
THEIRS = (
    WindowSpec("theirs", "usd", "daily", 1000, thresholds=(50,)),
    WindowSpec("their-calls", "requests", "total", 5, scope="key", subject="k1"),
)
"""Windows that the service alone knows, of the key k1."""


def theirs(service: Service, stand: Any) -> Callable[[], list[tuple[int, int]]]:
    """Settled and reserved of both."""
    service.windows_of = lambda _organization_id, key_id: THEIRS if key_id == "k1" else THEIRS[:1]
    stand.maintenance().rebuild("acme", THEIRS, lambda _lost: 0)
    return lambda: [
        (state.settled, state.reserved) for state in stand.ledger().read("acme", THEIRS)
    ]


def reserve_theirs(service: Service, lease: str, cost: int = 300) -> Any:
    return service.client.reserve("acme", lease, (), Amounts(cost, 5), ttl_ms=TTL_MS, key_id="k1")


def unanswered(lease: str, key_id: str | None = "k1") -> Reservation:
    """All that a router knows of a reservation whose answer was lost."""
    return of_key(Reservation(lease, "acme", ()), key_id)


def test_a_lease_that_was_reserved_without_windows_is_settled(service: Service, stand: Any) -> None:
    """By hand: two leases hold 600 and 2 calls; one is settled with 250, so 250 and 1 call are
    booked, 300 and 1 call are held. Once: it used to be answered and never booked."""
    now = theirs(service, stand)
    for lease in ("a", "ab"):
        reserve_theirs(service, lease)
    assert now() == [(0, 600), (0, 2)]
    assert service.client.settle(unanswered("a"), Amounts(250, 4)).booked
    assert now() == [(250, 300), (1, 1)]
    for _ in range(2):
        assert not service.client.settle(unanswered("a"), Amounts(250, 4)).booked
    assert service.client.release(unanswered("ab")).booked
    assert now() == [(250, 0), (1, 0)]


def test_a_lease_is_booked_in_the_period_of_its_reservation(service: Service, stand: Any) -> None:
    """It ended on the day after; the answer had said nothing of periods."""
    now = theirs(service, stand)
    reserve_theirs(service, "a")
    stand.clock.advance(86_400.0)
    assert service.client.settle(unanswered("a"), Amounts(250, 4)).booked
    assert now() == [(0, 0), (1, 0)]
    stand.clock.advance(-86_400.0)
    assert now() == [(250, 0), (1, 0)]


def test_what_was_never_reserved_is_booked_once(service: Service, stand: Any) -> None:
    """A call that passed while the service was away: 900 of 1000 are held by another one, and the
    250 are charged all the same; a reservation of that lease that comes late has no effect."""
    now = theirs(service, stand)
    reserve_theirs(service, "b", 900)
    settlement = service.client.settle(unanswered("a"), Amounts(500, 4))
    assert settlement == Settlement(True, (ThresholdEvent(THEIRS[0], 50),))
    assert now() == [(500, 900), (1, 1)]
    assert not service.client.settle(unanswered("a"), Amounts(500, 4)).booked
    assert isinstance(reserve_theirs(service, "a"), Closed)
    assert now() == [(500, 900), (1, 1)]


def test_a_release_of_what_was_never_reserved_changes_nothing(service: Service, stand: Any) -> None:
    """But a reservation of that lease that comes late has no effect."""
    now = theirs(service, stand)
    assert service.client.release(unanswered("a")).booked
    assert now() == [(0, 0), (0, 0)]
    assert isinstance(reserve_theirs(service, "a"), Closed)


def test_without_its_key_a_lease_is_booked_for_the_organization(
    service: Service, stand: Any
) -> None:
    """Whose key it was nobody says, so that what the key holds stays until the lease ends."""
    now = theirs(service, stand)
    reserve_theirs(service, "a")
    assert service.client.settle(unanswered("a", None), Amounts(250, 4)).booked
    assert now() == [(250, 0), (0, 1)]
    stand.clock.advance(61.0)
    assert isinstance(reserve_theirs(service, "b", 0), Reservation)
    assert now() == [(250, 0), (0, 1)]
