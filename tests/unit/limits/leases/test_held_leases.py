"""Which of a worker's calls ask Redis whether it was emptied, and what they then hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from router.breaker import Unavailable
from router.limits.budgets.lease_notation import lease_of
from router.limits.budgets.periods import TOTAL
from router.limits.budgets.windows import Reservation, ReservedWindow, WindowSpec
from router.limits.leases.held_leases import HeldLeases
from router.records.dispatches import Dispatch
from router.records.open_calls import OpenCalls

WINDOW = WindowSpec("spend", "usd", "total", 1000)
FACTS: Any = (
    *("key", "openai.chat", "chat", "gpt-4o", None, "mock", False, "PRIMARY", None, None),
    *({}, "estimated", 5, 0, 10, None, (5, 5, 1)),
)


@dataclass
class Asked:
    """A ledger of which some organizations were lost."""

    lost: set[str]
    calls: list[tuple[str, int]] = field(default_factory=list)
    error: Exception | None = None

    def hold_again(self, reservation: Reservation, *, ttl_ms: int) -> bool:
        self.calls.append((reservation.lease_id, ttl_ms))
        if self.error is not None:
            raise self.error
        return reservation.organization_id in self.lost


def dispatch(number: int, organization_id: str, epoch: str | None = "e") -> Dispatch:
    held = (ReservedWindow(WINDOW, TOTAL, 5),)
    reservation = Reservation(str(number), organization_id, held, 1_000, epoch or "")
    lease = None if epoch is None else lease_of(reservation, 900_000)
    return Dispatch(str(number), "r", 1.0, organization_id, *FACTS, lease)


def running(*dispatches: Dispatch) -> list[Dispatch]:
    calls = OpenCalls()
    for one in dispatches:
        calls.dispatched(one)
    calls.dispatched(dispatch(99, "lost"))
    calls.ended("99", cost_nanos=5, tokens=5, requests=1)
    return calls.running()


def test_one_question_for_each_organization_and_all_calls_of_a_lost_one() -> None:
    """A call without budgets, one that was never answered and one that has ended say nothing."""
    asked: Any = Asked({"lost"})
    calls = running(
        dispatch(1, "well"),
        dispatch(2, "lost"),
        dispatch(3, "well"),
        dispatch(4, "lost"),
        dispatch(5, "lost", epoch=""),
        dispatch(6, "lost", epoch=None),
    )
    HeldLeases(asked).hold_again(calls)
    assert asked.calls == [("1", 900_000), ("2", 900_000), ("4", 900_000)]


def test_an_absent_redis_is_asked_again_the_next_time() -> None:
    """And raises nothing: it is no part of any call."""
    asked: Any = Asked({"lost"}, error=Unavailable("redis", "connect"))
    held = HeldLeases(asked)
    for _ in range(2):
        held.hold_again(running(dispatch(1, "lost"), dispatch(2, "lost")))
    assert asked.calls == [("1", 900_000)] * 2
