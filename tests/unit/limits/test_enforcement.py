"""How a worker's limits are wired, looked after and ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest

from router.breaker import Unavailable
from router.clock import FrozenClock
from router.config.settings import Settings, SettingsError
from router.errors import BudgetUnavailable, LimitsUnavailable, RecordsUnavailable
from router.limits.admission import Request
from router.limits.audit_outbox import MAX_NOTICES, AuditOutbox
from router.limits.budgets.windows import NOTHING, ThresholdEvent, WindowSpec
from router.limits.configured import RateSpecs
from router.limits.enforcement import Enforcement, build_enforcement
from router.limits.rates.decision import BucketSpec

SPEND = WindowSpec("spend", "usd", "daily", 1000, scope="key", subject="key-1")
SPECS = RateSpecs((BucketSpec("org-requests", (), 1.0, 1),), ())


class Recorder:
    """Takes events, unless it is full."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.is_full = False

    def note(self, events: list[Any]) -> None:
        if self.is_full:
            raise RecordsUnavailable("disk_full")
        self.events += events


class Redis:
    """As much of a client as the housekeeping looks at."""

    is_unavailable = False

    def __init__(self, policy: str | None) -> None:
        self.policy = policy
        self.asked = 0
        self.is_closed = False

    def eviction_policy(self) -> str | None:
        self.asked += 1
        if self.policy == "away":
            raise Unavailable("redis", "timeout")
        return self.policy

    def breakers(self) -> list[Any]:
        return []

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def recorder() -> Any:
    return Recorder()


def built(tmp_path: Path, **settings: Any) -> Enforcement:
    """Wired to a Redis that is not there."""
    changed = replace(Settings(), data_dir=tmp_path, **settings)
    return build_enforcement(changed, lambda _organization_id, _lost: 0, clock=FrozenClock())


def test_an_address_that_is_none(tmp_path: Path) -> None:
    """The variable is named, the password in it is not repeated."""
    with pytest.raises(SettingsError, match="RATE_LIMIT_REDIS_ADDR: ") as refused:
        built(tmp_path, redis_addr="redis://user:secret@host:nowhere")
    assert "secret" not in str(refused.value)


def test_it_begins_without_redis(tmp_path: Path, recorder: Any) -> None:
    """D6: rates are enforced here, budgets refuse, and all of it is told in our own errors."""
    enforcement = built(tmp_path)
    assert enforcement.take("acme", SPECS, "a").source == "local"
    with pytest.raises(BudgetUnavailable):
        enforcement.admit(Request("acme", "a", (SPEND,), NOTHING, 1000), None, is_unavailable=False)
    with pytest.raises(BudgetUnavailable):
        enforcement.read("acme", (SPEND,), "key-1")
    assert enforcement.figures().decisions == {"local": 1}
    assert enforcement.figures().is_up == {"redis": False}
    enforcement.close(recorder)
    assert [event.action for event in recorder.events] == ["DEPENDENCY_LOST"]


def test_closed_limits_say_so(tmp_path: Path, recorder: Any) -> None:
    """`ROUTER_RATE_LIMIT_FALLBACK=closed`."""
    enforcement = built(tmp_path, rate_limit_fallback="closed")
    with pytest.raises(LimitsUnavailable):
        enforcement.take("acme", SPECS, "a")
    enforcement.close(recorder)


@pytest.mark.parametrize(
    ("policy", "may_evict", "asked"),
    [("noeviction", False, 1), ("allkeys-lru", True, 1), (None, False, 1), ("away", False, 2)],
)
def test_a_redis_that_forgets_is_told_of(
    tmp_path: Path, recorder: Any, policy: str | None, may_evict: bool, asked: int
) -> None:
    """D10: looked at once Redis answers, and then no more."""
    enforcement = built(tmp_path)
    enforcement._redis = redis = Redis(policy)  # type: ignore[assignment]
    for _ in range(2):
        enforcement.tick(recorder)
        gevent.sleep(0)
    assert (enforcement.figures().may_evict, redis.asked) == (may_evict, asked)
    enforcement.close(recorder)
    assert redis.is_closed


def test_what_waits_for_redis_is_done_beside_the_heartbeat(tmp_path: Path, recorder: Any) -> None:
    """D5: the heartbeat of a worker does not wait for it; and once more at the end."""
    enforcement = built(tmp_path)
    done: list[str] = []
    enforcement._retry_queue.later(lambda: done.append("a"))
    enforcement.tick(recorder)
    assert done == []
    gevent.sleep(0)
    assert done == ["a"]
    enforcement._retry_queue.later(lambda: done.append("b"))
    enforcement.close(recorder)
    assert done == ["a", "b"]


def test_notices_wait_in_order_and_not_without_end(recorder: Any) -> None:
    """A spool that is full for long costs the oldest ones."""
    audit_outbox = AuditOutbox(FrozenClock())
    recorder.is_full = True
    for number in range(MAX_NOTICES + 1):
        audit_outbox.crossed("acme", ThresholdEvent(SPEND, number % 100 + 1))
        if number == 1:
            audit_outbox.tell(recorder)
    recorder.is_full = False
    audit_outbox.tell(recorder)
    audit_outbox.tell(recorder)
    assert len(recorder.events) == MAX_NOTICES
    assert [event.context["percent"] for event in recorder.events[:2]] == [2, 3]
    event = recorder.events[0]
    assert (event.action, event.organization_id) == ("BUDGET_THRESHOLD", "acme")
    assert (event.context["api_key_id"], event.context["limit"]) == ("key-1", 1000)
