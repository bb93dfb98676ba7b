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
from router.errors import RecordsUnavailable
from router.limits.audit_outbox import MAX_EVENTS, AuditOutbox
from router.limits.budgets.windows import NOTHING, ThresholdEvent, WindowSpec
from router.limits.configured import RateSpecs
from router.limits.outcome import Request
from router.limits.rates.decision import BucketSpec
from router.limits.worker_limits import Limits
from router.redis.topologies.durability import Durability
from router.services.limits_wiring import build_limits
from tests.fakes.admitting import TAKEN

SPEND = WindowSpec("spend", "usd", "daily", 1000, scope="key", subject="key-1")
SPECS = RateSpecs((BucketSpec("org-requests", (), 1.0, 1),), ())


class Recorder:
    """Takes events, unless it is full."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.is_full = False

    def note(self, events: list[Any]) -> None:
        if self.is_full:
            raise RecordsUnavailable("disk_full", nothing_written=True)
        self.events += events


class Redis:
    """As much of a client as the housekeeping looks at."""

    is_unavailable = False
    unavailable_s = 0.0

    def __init__(self, *masters: Durability) -> None:
        self.masters = masters
        self.asked = 0
        self.is_away = False
        self.is_closed = False

    @property
    def needs_refresh(self) -> bool:
        return self.is_away or not self.asked

    def refresh(self) -> None:
        self.asked += 1
        if self.is_away:
            raise Unavailable("redis", "timeout")

    def durability(self) -> list[Durability]:
        return list(self.masters)

    def breakers(self) -> list[Any]:
        return []

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def recorder() -> Any:
    return Recorder()


def built(tmp_path: Path, **settings: Any) -> Limits:
    """Wired to a Redis that is not there."""
    changed = replace(Settings(), data_dir=tmp_path, **settings)
    return build_limits(changed, lambda _organization_id, _lost: 0, clock=FrozenClock())


def test_an_address_that_is_none(tmp_path: Path) -> None:
    """The variable is named, the password in it is not repeated."""
    with pytest.raises(SettingsError, match="RATE_LIMIT_REDIS_ADDR: ") as refused:
        built(tmp_path, redis_addr="redis://user:secret@host:nowhere")
    assert "secret" not in str(refused.value)


def test_it_begins_without_redis(tmp_path: Path, recorder: Any) -> None:
    """D6: rates are enforced here, budgets refuse."""
    limits = built(tmp_path)
    decision = limits.admission.take_rates("acme", SPECS, "a")
    assert decision.source == "local"
    request = Request("acme", "a", (SPEND,), NOTHING, 1000)
    assert isinstance(limits.admission.admit(TAKEN, request, None).result, Unavailable)
    with pytest.raises(Unavailable):
        limits.read_windows("acme", (SPEND,), "key-1")
    assert limits.figures()["rate_decisions"] == {"local": 1}
    assert limits.figures()["dependency_up"] == {"redis": False}
    limits.close(recorder)
    assert [event.action for event in recorder.events] == ["DEPENDENCY_LOST"]


def test_closed_limits_say_so(tmp_path: Path, recorder: Any) -> None:
    """`ROUTER_RATE_LIMIT_FALLBACK=closed`."""
    limits = built(tmp_path, rate_limit_fallback="closed")
    with pytest.raises(Unavailable):
        limits.admission.take_rates("acme", SPECS, "a")
    limits.close(recorder)


@pytest.mark.parametrize(
    ("masters", "may_evict", "may_lose_writes"),
    [
        ([], False, False),
        ([Durability()], False, False),
        ([Durability("noeviction", 0, False)], False, False),
        ([Durability("noeviction", 1, True)], False, False),
        ([Durability("noeviction", 1, True), Durability("noeviction", 1, False)], False, True),
        ([Durability("noeviction", 0, False), Durability("allkeys-lru", 0, False)], True, False),
    ],
)
def test_a_redis_that_forgets_is_told_of(
    tmp_path: Path,
    recorder: Any,
    masters: list[Durability],
    may_evict: bool,
    may_lose_writes: bool,
) -> None:
    """D10: every master is looked at once it answers, and then no more."""
    limits = built(tmp_path)
    limits.redis = redis = Redis(*masters)  # type: ignore[assignment]
    for _ in range(2):
        limits.tick(recorder)
        gevent.sleep(0)
    figures = limits.figures()
    assert figures["redis_may_evict"] == may_evict
    assert figures["redis_may_lose_writes"] == may_lose_writes
    assert redis.asked == 1
    limits.close(recorder)
    assert redis.is_closed


def test_a_redis_that_is_away_is_looked_at_later(tmp_path: Path, recorder: Any) -> None:
    """D10: it is not taken for a safe one."""
    limits = built(tmp_path)
    limits.redis = redis = Redis(Durability("allkeys-lru", 0, False))  # type: ignore[assignment]
    redis.is_away = True
    for is_away in (True, False):
        redis.is_away = is_away
        redis.asked = 0
        limits.tick(recorder)
        gevent.sleep(0)
        assert limits.figures()["redis_may_evict"] is not is_away
    limits.close(recorder)


def test_what_waits_for_redis_is_done_beside_the_heartbeat(tmp_path: Path, recorder: Any) -> None:
    """D5: the heartbeat of a worker does not wait for it; and once more at the end."""
    limits = built(tmp_path)
    done: list[str] = []
    limits.retry_queue.later(lambda: done.append("a"))
    limits.tick(recorder)
    assert done == []
    gevent.sleep(0)
    assert done == ["a"]
    limits.retry_queue.later(lambda: done.append("b"))
    limits.close(recorder)
    assert done == ["a", "b"]


def test_notices_wait_in_order_and_not_without_end(recorder: Any) -> None:
    """A spool that is full for long costs the oldest ones."""
    audit_outbox = AuditOutbox(FrozenClock())
    recorder.is_full = True
    for number in range(MAX_EVENTS + 1):
        audit_outbox.threshold_reached("acme", ThresholdEvent(SPEND, number % 100 + 1))
        if number == 1:
            audit_outbox.flush(recorder)
    recorder.is_full = False
    audit_outbox.flush(recorder)
    audit_outbox.flush(recorder)
    assert len(recorder.events) == MAX_EVENTS
    assert [event.context["percent"] for event in recorder.events[:2]] == [2, 3]
    event = recorder.events[0]
    assert (event.action, event.organization_id) == ("BUDGET_THRESHOLD", "acme")
    assert (event.context["api_key_id"], event.context["limit"]) == ("key-1", 1000)
