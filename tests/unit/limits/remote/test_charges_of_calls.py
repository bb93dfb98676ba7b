"""What a call owes at its end, as its gate sees it: asked once, and on disk until it is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from router.breaker import Refused, Unavailable
from router.limits.budgets.windows import Amounts, Denied, NotReserved, Reservation, WindowSpec
from router.limits.idempotency.entries import Entry
from router.limits.outcome import Admitted, Request
from router.limits.remote.budget_client import BudgetClient
from router.limits.remote.budget_session import BudgetSession
from router.limits.remote.service_ability import ServiceAbility
from router.limits.remote.service_exchange import ServiceExchange
from router.limits.retry_queue import RetryQueue
from tests.fakes.admitting import Budgets
from tests.unit.limits.remote.conftest import TOKEN, Service

SPEND = WindowSpec("spend", "usd", "daily", 1000)


@pytest.fixture
def gate(service: Service, stand: Any) -> Budgets:
    """It lets calls pass while nobody answers."""
    stand.maintenance().rebuild("acme", [SPEND], lambda _lost: 0)
    exchange = ServiceExchange(
        service.client, stand.idempotency(), stand.nonces(), RetryQueue(), service.journal
    )
    return Budgets(
        exchange,
        stand.maintenance(),
        RetryQueue(),
        sum_records=lambda _organization_id, _lost: 0,
        on_unavailable="open",
    )


@contextmanager
def answering(service: Service, error: BaseException | None) -> Iterator[None]:
    """Every exchange ends with ``error``; ``None``: the service is asked and its answer is lost."""
    post = service.client._session.post

    def fail(url: str, body: Any) -> Any:
        if error is not None:
            raise error
        post(url, body)
        raise Unavailable("budget service", "timeout")

    service.client._session.post = fail  # type: ignore[method-assign]
    yield
    service.client._session.post = post  # type: ignore[method-assign]


def admit(gate: Budgets, lease: str = "a", *, entry: Entry | None = None) -> Admitted:
    admitted = gate.admit(Request("acme", lease, (SPEND,), Amounts(100, 5), 60_000, "k1"), entry)
    assert isinstance(admitted, Admitted)
    return admitted


def figures(stand: Any) -> tuple[int, int]:
    [state] = stand.ledger().read("acme", [SPEND])
    return state.settled, state.reserved


def test_a_charge_that_is_taken_at_once_waits_nowhere(
    service: Service, stand: Any, gate: Budgets
) -> None:
    """What was written before is done with."""
    gate.settle(admit(gate), Amounts(30, 5))
    assert figures(stand) == (30, 0)
    assert (len(service.journal), service.journal.waiting_bytes) == (0, 0)


NOT_TAKEN: list[BaseException | None] = [
    Unavailable("budget service", "connect"),
    Unavailable("budget service", "timeout"),
    Refused("budget service", "lost", "answered 400"),
    None,
]


@pytest.mark.parametrize("error", NOT_TAKEN, ids=str)
def test_a_charge_that_is_not_taken_is_kept_and_booked_once(
    service: Service, stand: Any, gate: Budgets, error: BaseException | None
) -> None:
    """By hand: 100 are held, 30 are used. Nothing waits in memory, where a kill would lose it."""
    admitted = admit(gate)
    with answering(service, error):
        gate.settle(admitted, Amounts(30, 5))
    assert (len(service.journal), service.journal.kept, len(gate.retry_queue)) == (1, 1, 0)
    assert figures(stand) == ((30, 0) if error is None else (0, 100))
    assert service.journal.run() == 1
    assert figures(stand) == (30, 0)


def test_a_call_that_passed_without_the_service_is_on_disk_when_it_ends(
    service: Service, stand: Any, gate: Budgets
) -> None:
    """It has waited in vain before and does not wait again; its id is done with."""
    entry = Entry("acme", "order-1", b"body", "a")
    with answering(service, Unavailable("budget service", "timeout")):
        admitted = admit(gate, entry=entry)
        assert admitted.waited_in_vain
        gate.settle(admitted, Amounts(30, 5), b"reply")
        assert (len(service.journal), len(gate.retry_queue)) == (1, 0)
    assert service.journal.run() == 1
    assert figures(stand) == (30, 0)


def test_a_killed_greenlet_owes_its_charge(service: Service, stand: Any, gate: Budgets) -> None:
    """The end of a worker interrupts the settlement anywhere."""
    admitted = admit(gate)
    with (
        answering(service, gevent.GreenletExit()),
        pytest.raises(gevent.GreenletExit),
    ):
        gate.settle(admitted, Amounts(30, 5))
    service.journal.run()
    assert len(service.journal) == 0
    assert figures(stand) == (30, 0)


def test_a_release_is_no_charge(service: Service, stand: Any, gate: Budgets) -> None:
    """It waits in memory: what is lost there ends by itself."""
    admitted = admit(gate)
    with answering(service, Unavailable("budget service", "connect")):
        gate.release(admitted)
    assert (len(service.journal), len(gate.retry_queue)) == (0, 1)
    gate.retry_queue.run()
    assert figures(stand) == (0, 0)


def test_while_the_journal_is_full_no_call_passes(
    service: Service, stand: Any, gate: Budgets
) -> None:
    """`open` does not help: its charge could not be kept."""
    service.journal._max_bytes = 1
    with answering(service, Unavailable("budget service", "connect")):
        gate.settle(admit(gate), Amounts(30, 5))
        with pytest.raises(Unavailable, match="too many charges"):
            admit(gate, "b")
    assert service.journal.run() == 1
    gate.settle(admit(gate, "c"), Amounts(50, 5))
    assert figures(stand) == (80, 0)


def test_a_disk_that_refuses_leaves_it_to_memory(
    service: Service, stand: Any, gate: Budgets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then it is tried for as long as the worker lives."""
    monkeypatch.setattr(service.journal, "write", lambda _body: None)
    admitted = admit(gate)
    with answering(service, Unavailable("budget service", "connect")):
        gate.settle(admitted, Amounts(30, 5))
        assert gate.retry_queue.run() == 0
    assert gate.retry_queue.run() == 1
    assert figures(stand) == (30, 0)


def test_whom_the_service_does_not_know_never_passes(
    service: Service, stand: Any, gate: Budgets
) -> None:
    """Whatever the policy for outages is: it is an answer. The id is free again."""
    service.windows_of = lambda _organization_id, _key_id: None
    entry = Entry("acme", "order-1", b"body", "a")
    for _ in range(2):
        refused = gate.admit(Request("acme", "a", (SPEND,), Amounts(100, 5), 60_000, "k1"), entry)
        assert isinstance(refused, Denied)
    assert figures(stand) == (0, 0)


def test_a_404_in_between_lets_nothing_through(
    service: Service, stand: Any, tmp_path: Path
) -> None:
    """Two routers of two hosts, a budget of 100 USD, calls of 1 USD, and something in between that
    answers every second reservation with a bare 404; nobody settles. By hand: 100 calls fit. 287
    passed once, because a 404 made a router ask for checks only, for a minute."""
    usd = 10**9
    window = WindowSpec("hundred", "usd", "total", 100 * usd)
    stand.maintenance().rebuild("acme", [window], lambda _lost: 0)
    asked = [0]

    class Between(BudgetSession):
        def post(self, url: str, body: Any) -> tuple[int, bytes]:
            asked[0] += url.endswith("/reserve")
            if url.endswith("/reserve") and asked[0] % 2:
                return 404, b"<html>no upstream</html>"
            return super().post(url, body)

    clients = [
        BudgetClient(
            service.client.endpoint,
            Between(timeout_s=10, token=TOKEN),
            ability=ServiceAbility("auto", tmp_path / host),
            clock=stand.clock,
        )
        for host in ("one", "two")
    ]
    passed = 0
    for number in range(320):
        client = clients[number // 2 % 2]
        with contextlib.suppress(NotReserved):
            outcome = client.reserve(
                "acme", f"lease {number}", [window], Amounts(usd, 1), ttl_ms=60_000
            )
            passed += isinstance(outcome, Reservation)
    for client in clients:
        client.close()
    assert passed == 100
