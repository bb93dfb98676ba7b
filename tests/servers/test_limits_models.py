"""Rate limiter and ledger on a real redis-server, step by step against models in exact arithmetic.

500 runs of 50 steps each with ROUTER_TEST_PROOF=1, a few otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from router.clock import Clock
from router.limits.budgets.ledger import LATE_S, REMEMBER_S, Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.periods import Period, period_at
from router.limits.budgets.windows import (
    Amounts,
    Closed,
    Denied,
    LostWindow,
    NeedsRebuild,
    Reservation,
    ThresholdEvent,
    WindowSpec,
)
from router.limits.rates.decision import MICRO, BucketSpec, Correction, SlotSpec
from router.limits.rates.limiter import RateLimiter
from tests.fakes.key_guard import GuardedClient
from tests.fakes.redis_server import BINARY, running
from tests.fakes.virtual_redis import VirtualRedis, virtual_script

PROOF = os.environ.get("ROUTER_TEST_PROOF") == "1"
RUNS = settings(
    max_examples=500 if PROOF else 25,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # A step names what it did; to shorten a run of real programs takes longer than to read it.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    report_multiple_bugs=False,
    database=None,
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedClient]:
    """To a server of this module's own; every script may touch the keys that it declares, and no
    other (R5)."""
    if BINARY is None:
        pytest.skip("REDIS-SERVER IS NOT INSTALLED")
    directory: Path = tmp_path_factory.mktemp("redis")
    with running(directory, unix=True) as server:
        connected = GuardedClient(server.path)
        yield connected
        connected.close()


# --- the rate limiter -----------------------------------------------------------------------

RATES = (0.3, 1 / 3, 7.0, 16.6667, 1000.0)
SLOT_LEASE_US = 20 * MICRO


@dataclass
class ModelBucket:
    """A token bucket in exact fractions of a token; ``None`` is full."""

    rate: Fraction
    burst: int
    level: Fraction | None = None
    at_us: int = 0

    def filled(self, now_us: int) -> tuple[Fraction, int]:
        if self.level is None:
            return Fraction(self.burst), now_us
        passed_us = max(0, now_us - self.at_us)
        flown_in = self.rate * Fraction(passed_us, MICRO)
        return min(Fraction(self.burst), self.level + flown_in), self.at_us + passed_us


class BucketMachine(RuleBasedStateMachine):
    """Three buckets, one of them in shadow, and a set of slots; the clock goes both ways."""

    client: ClassVar[Any]

    @initialize(
        rates=st.lists(st.sampled_from(RATES), min_size=3, max_size=3),
        bursts=st.lists(st.integers(1, 12), min_size=3, max_size=3),
        slots=st.integers(1, 4),
    )
    def begin(self, rates: list[float], bursts: list[int], slots: int) -> None:
        self.client.execute_command("FLUSHALL")
        self.redis = VirtualRedis(self.client, 2_000_000_000 * MICRO)
        lease_s = SLOT_LEASE_US / MICRO
        self.limiter = RateLimiter(self.redis, slot_lease_s=lease_s, load=virtual_script)
        self.specs = [
            BucketSpec(name, (), rate, burst, enforced=name != "shadow")
            for name, rate, burst in zip(("org", "key", "shadow"), rates, bursts, strict=True)
        ]
        self.models = [
            ModelBucket(Fraction(spec.rate_micro, MICRO), spec.burst) for spec in self.specs
        ]
        self.slots = SlotSpec("calls", (), slots)
        self.holders: dict[str, int] = {}

    @rule(
        costs=st.lists(st.integers(0, 4), min_size=3, max_size=3),
        lease=st.sampled_from("abcdefg"),
        with_slots=st.booleans(),
    )
    def take(self, costs: list[int], lease: str, with_slots: bool) -> None:
        """All are charged, or nothing is changed; each answer is that of exact arithmetic."""
        specs = [
            BucketSpec(
                spec.name, (), spec.rate_per_s, spec.burst, cost=cost, enforced=spec.enforced
            )
            for spec, cost in zip(self.specs, costs, strict=True)
        ]
        now_us = self.redis.now_us
        filled = [model.filled(now_us) for model in self.models]
        passed = [level >= spec.cost for spec, (level, _) in zip(specs, filled, strict=True)]
        held = self._holding()
        free = not with_slots or lease in held or len(held) < (self.slots.limit or 0)
        allowed = passed[0] and passed[1] and free
        before = self.redis.dump()
        decision = self.limiter.take(
            "acme", specs, [self.slots] if with_slots else [], lease_id=lease
        )
        assert decision.allowed == allowed
        assert [status.passed for status in decision.statuses[:3]] == passed
        if not allowed:
            assert self.redis.dump() == before, "R2: a refused call leaves all byte-identical"
            return
        for spec, model, ok, (level, at_us) in zip(specs, self.models, passed, filled, strict=True):
            if ok and spec.cost:
                model.level, model.at_us = level - spec.cost, at_us
        if with_slots:
            # Expired leases go when the next one comes, and stay gone if the clock goes back.
            self.holders = {holder: self.holders[holder] for holder in held}
            self.holders[lease] = self.redis.now_ms * 1000 + SLOT_LEASE_US

    @rule(which=st.integers(0, 2), tokens=st.integers(-5, 9), may_owe=st.booleans())
    def correct(self, which: int, tokens: int, may_owe: bool) -> None:
        """Estimates are corrected, never above the burst, into debt only where it may owe, and no
        deeper than the burst."""
        spec, model = self.specs[which], self.models[which]
        self.limiter.finish("acme", [Correction(spec, tokens, may_owe=may_owe)])
        if tokens == 0 or (model.level is None and tokens < 0):
            return
        level, at_us = model.filled(self.redis.now_us)
        after = min(level - tokens, Fraction(model.burst))
        model.level = max(after, Fraction(-model.burst) if may_owe else min(level, Fraction(0)))
        model.at_us = at_us

    @rule(lease=st.sampled_from("abcdefg"))
    def release(self, lease: str) -> None:
        """Whoever holds a slot or not, any number of times."""
        self.limiter.finish("acme", (), [self.slots], lease_id=lease)
        self.holders.pop(lease, None)

    @rule(
        by_us=st.one_of(
            st.integers(1, 300_000),
            st.integers(100_000, 3_000_000),
            st.integers(1_000_000, 60_000_000),
            st.integers(-10_000_000, -1),
            st.sampled_from([SLOT_LEASE_US, SLOT_LEASE_US - 1000]),
        )
    )
    def move_the_clock(self, by_us: int) -> None:
        """R4: forward, also past the lifetime of keys, and back by up to 10 s."""
        self.redis.move(by_us)
        names = self.redis.dump()
        for spec, model in zip(self.specs, self.models, strict=True):
            if f"router:{{acme}}:{spec.suffix}".encode() not in names and model.level is not None:
                level, _ = model.filled(self.redis.now_us)
                assert level == model.burst, "a key may only go when its bucket is full"
                model.level = None
        # What has expired stays so, even if the clock goes back.
        if not any(b":slots:" in name for name in names):
            self.holders = {}

    @invariant()
    def what_is_told_is_what_is_there(self) -> None:
        """R9: remaining, wait and slots in use, without charging anything."""
        if not hasattr(self, "redis"):
            return
        decision = self.limiter.peek("acme", self.specs, [self.slots])
        for status, model in zip(decision.statuses, self.models, strict=False):
            level, _ = model.filled(self.redis.now_us)
            assert status.remaining == max(0, level // 1)
        in_use = len(self._holding())
        assert decision.statuses[3].remaining == max(0, (self.slots.limit or 0) - in_use)

    def _holding(self) -> set[str]:
        now_us = self.redis.now_ms * 1000
        return {lease for lease, until_us in self.holders.items() if until_us > now_us}


def test_the_rate_limiter_is_its_model(client: GuardedClient) -> None:
    """P8, R2, R4: every answer of every step is that of the reference, on a real server."""
    BucketMachine.client = client
    run_state_machine_as_test(BucketMachine, settings=RUNS)  # type: ignore[no-untyped-call]


# --- the ledger -----------------------------------------------------------------------------

BERLIN = "Europe/Berlin"
WINDOWS = (
    WindowSpec("day", "usd", "daily", 1000, timezone=BERLIN, thresholds=(50, 90)),
    WindowSpec("month", "usd", "monthly", 3000, timezone=BERLIN, thresholds=(80,)),
    WindowSpec("calls", "requests", "daily", 8, scope="key", subject="k1"),
    WindowSpec("ever", "tokens", "total", 5000, thresholds=(10,)),
    WindowSpec("watched", "usd", "daily", 300, enforced=False),
    WindowSpec("counted", "usd", "total", None),
)
TTL_MS = 30_000
KEEP_MS = 3 * 86_400_000
IDLE_MS = 380 * 86_400_000
"""Whoever does not call for longer than a year is looked up in the records again."""

REMEMBER_MS, LATE_MS = int(REMEMBER_S * 1000), int(LATE_S * 1000)
SKEWS_MS = (0, 5_000, -10_000)

# Just before: both changes of the clock, ends of month and year, a leap day and its end.
BEGINNINGS = tuple(
    int(datetime.fromisoformat(text).timestamp()) * 1000
    for text in (
        "2034-03-25T23:59:40+01:00", "2034-10-28T23:59:40+02:00", "2033-10-30T02:59:50+02:00",
        "2034-01-31T23:59:40+01:00", "2033-12-31T23:59:40+01:00", "2036-02-28T23:59:40+01:00",
        "2036-02-29T23:59:40+01:00", "2034-06-15T12:00:00+02:00",
    )
)  # fmt: skip

Slot = tuple[str, int]
"""A window's id and the start of a period."""


class HostClock(Clock):
    """A host's clock, which differs from Redis'."""

    def __init__(self, redis: VirtualRedis, skew_ms: int) -> None:
        self._redis = redis
        self._skew_ms = skew_ms

    def now_s(self) -> float:
        return (self._redis.now_us / 1000 + self._skew_ms) / 1000


@dataclass
class ModelLease:
    """A call's lease: what it holds where, and whether it was ended."""

    reservation: Reservation
    reserved_ms: int
    amounts: dict[Slot, int]
    done_ms: int | None = None
    emptied: bool = False
    """Redis was emptied since it was reserved."""
    unknown: bool = False
    """Redis was emptied since it was ended: what a duplicate does now is not promised."""


@dataclass
class Book:
    """What the records have of a window in a period."""

    booked: dict[str, int] = field(default_factory=dict)
    crossed: set[int] = field(default_factory=set)
    by_hand: int = 0
    adjusted: bool = False

    @property
    def settled(self) -> int:
        return self.by_hand + sum(self.booked.values())


class LedgerMachine(RuleBasedStateMachine):
    """Calls from three hosts with clocks that differ, through changes of period and lost data."""

    client: ClassVar[Any]
    leases = Bundle("leases")

    @initialize(at_ms=st.sampled_from(BEGINNINGS))
    def begin(self, at_ms: int) -> None:
        self.client.execute_command("FLUSHALL")
        self.redis = VirtualRedis(self.client, at_ms * 1000)
        clocks = [HostClock(self.redis, skew_ms) for skew_ms in SKEWS_MS]
        self.hosts = [Ledger(self.redis, clock=clock, load=virtual_script) for clock in clocks]
        self.supervisors = [
            LedgerMaintenance(self.redis, clock=clock, load=virtual_script) for clock in clocks
        ]
        self.books: dict[Slot, Book] = {}
        self.known: dict[str, ModelLease] = {}
        self.held: dict[Slot, dict[str, tuple[int, int]]] = {}
        self.gone: set[Slot] = set()
        self.count = 0
        self._rebuild(0)

    @rule(
        target=leases,
        host=st.integers(0, 2),
        cost=st.one_of(st.just(0), st.integers(1, 400)),
        tokens=st.integers(0, 600),
    )
    def reserve(self, host: int, cost: int, tokens: int) -> Any:
        """B16: in all windows or in none, exactly when it fits."""
        self.count += 1
        lease_id = f"lease{self.count}"
        lease = self._reserve(host, lease_id, Amounts(cost, tokens))
        return multiple() if lease is None else lease_id

    @rule(host=st.integers(0, 2), lease_id=leases, cost=st.integers(0, 400))
    def reserve_again(self, host: int, lease_id: str, cost: int) -> None:
        """B6: a duplicate of a live lease changes nothing, one of an ended lease has no effect."""
        lease = self.known[lease_id]
        done = lease.done_ms is not None
        if lease.emptied or (done and self.redis.now_ms >= lease.reserved_ms + REMEMBER_MS):
            return
        if not done and self.redis.now_ms >= lease.reserved_ms + TTL_MS:
            self._reserve(host, lease_id, Amounts(cost, cost))
            return
        before = self.redis.dump()
        again = self.hosts[host].reserve(
            "acme", lease_id, WINDOWS, Amounts(cost, cost), ttl_ms=TTL_MS
        )
        if done:
            assert again == Closed(lease_id)
        else:
            assert isinstance(again, Reservation)
            assert again.reserved_at_ms == lease.reserved_ms
            self._drop_expired()
            # Only what others left behind, expired, may have been cleared away.
            assert self._live(before) == self._live(self.redis.dump())

    @rule(
        host=st.integers(0, 2),
        lease_id=leases,
        share=st.sampled_from([0, 30, 100, 130]),
        tokens=st.integers(0, 700),
    )
    def settle(self, host: int, lease_id: str, share: int, tokens: int) -> None:
        """B6, B13, P7: once, in the period of its admission, also late, from whatever host."""
        lease = self.known[lease_id]
        if lease.unknown:
            return
        held = lease.reservation.windows
        amounts = Amounts(held[0].amount * share // 100, tokens)
        settlement = self.hosts[host].settle(lease.reservation, amounts)
        assert settlement.booked == self._can_be_booked(lease)
        expected: set[ThresholdEvent] = set()
        if settlement.booked:
            for entry in held:
                slot = entry.window.id, entry.period.start_ms
                self.held.get(slot, {}).pop(lease_id, None)
                used = amounts.of(entry.window.unit)
                if used:
                    self._book(slot).booked[lease_id] = used
                    if slot not in self.gone and self._is_kept(entry.period):
                        expected |= self._threshold_events(entry.window, slot)
            lease.done_ms = self.redis.now_ms
        assert set(settlement.threshold_events) == expected

    @rule(host=st.integers(0, 2), which=st.integers(0, 5), amount=st.integers(-300, 300))
    def adjust(self, host: int, which: int, amount: int) -> None:
        """B10: once, never below nothing."""
        window = WINDOWS[which]
        slot = self._slot(window)
        if slot in self.lost:
            return
        self.count += 1
        book, supervisor = self._book(slot), self.supervisors[host]
        options = {"correction_id": f"correction{self.count}", "reason": "a mistake"}
        adjusted = supervisor.adjust("acme", window, amount, **options)
        assert adjusted.before == book.settled
        book.by_hand += max(amount, -book.settled)
        assert adjusted.after == book.settled
        assert set(adjusted.threshold_events) == self._threshold_events(window, slot)
        assert supervisor.adjust("acme", window, amount, **options).done_before

    @rule(
        by_ms=st.one_of(
            st.integers(1, 5_000),
            st.sampled_from([TTL_MS - 1, TTL_MS, 120_000, 3_600_000, 20 * 3_600_000]),
        )
    )
    def pass_time(self, by_ms: int) -> None:
        """Leases expire, settled ones are forgotten, hours and days go by."""
        self._move(by_ms)

    @rule(which=st.integers(0, 1), late_ms=st.sampled_from([-1, 0, 1, 4_000]))
    def pass_to_the_end_of_a_period(self, which: int, late_ms: int) -> None:
        """B12: midnight and the end of the month in Berlin, a little before and a little after."""
        end_ms = self._period(WINDOWS[which]).end_ms
        assert end_ms is not None
        self._move(max(0, end_ms + late_ms - self.redis.now_ms))

    @rule(chance=st.integers(0, 5))
    def lose_everything(self, chance: int) -> None:
        """P9: Redis comes back empty; reservations are gone, what was spent is in the records."""
        if chance:
            return
        self.client.execute_command("FLUSHALL")
        self.redis.move(1)  # a Redis does not lose everything and begin anew within a microsecond
        self.held.clear()
        self.lost = {self._slot(window) for window in WINDOWS}
        # Periods that are over by the time somebody calls are never rebuilt.
        self.gone |= self.lost | set(self.books)
        self.gone |= {slot for lease in self.known.values() for slot in lease.amounts}
        for book in self.books.values():
            book.crossed.clear()
        for lease in self.known.values():
            lease.emptied = True
            lease.unknown = lease.unknown or lease.done_ms is not None

    @invariant()
    def figures_are_those_of_the_model(self) -> None:
        """B17: every counter, at every step, from the view of every host."""
        if not hasattr(self, "redis"):
            return
        for ledger in self.hosts:
            for state in ledger.read("acme", WINDOWS):
                slot = self._slot(state.window)
                assert state.lost == (slot in self.lost), state.window.name
                if not state.lost:
                    settled = self.books[slot].settled if slot in self.books else 0
                    assert (state.settled, state.reserved) == (settled, self._reserved(slot))

    # What the model knows.

    def _reserve(self, host: int, lease_id: str, amounts: Amounts) -> ModelLease | None:
        for _ in range(2):
            outcome = self.hosts[host].reserve("acme", lease_id, WINDOWS, amounts, ttl_ms=TTL_MS)
            if not isinstance(outcome, NeedsRebuild):
                break
            assert {self._slot(window) for window in outcome.windows} == self.lost != set()
            self._rebuild(host)
        self._drop_expired()
        refusing = [
            window for window in WINDOWS if window.enforced and self._refuses(window, amounts)
        ]
        if refusing:
            assert isinstance(outcome, Denied)
            assert outcome.binding.window in refusing
            return None
        assert isinstance(outcome, Reservation)
        shadow = {state.window.name for state in outcome.shadow_denied}
        assert shadow == {w.name for w in WINDOWS if not w.enforced and self._refuses(w, amounts)}
        slots = {self._slot(window): amounts.of(window.unit) for window in WINDOWS}
        until_ms = self.redis.now_ms + TTL_MS
        for slot, amount in slots.items():
            if amount:
                self.held.setdefault(slot, {})[lease_id] = (amount, until_ms)
        for window in WINDOWS:
            if window.enforced and window.limit is not None and amounts.of(window.unit):
                slot = self._slot(window)
                assert self._book(slot).settled + self._reserved(slot) <= window.limit
        lease = ModelLease(outcome, self.redis.now_ms, slots)
        self.known[lease_id] = lease
        self.opened_ms = self.redis.now_ms
        return lease

    def _rebuild(self, host: int) -> None:
        def sum_records(lost: LostWindow) -> int:
            book = self._book((lost.window.id, lost.period.start_ms))
            known = {
                lease: used for lease, used in book.booked.items() if lease not in lost.orphans
            }
            return book.by_hand + sum(known.values())

        threshold_events = self.supervisors[host].rebuild("acme", WINDOWS, sum_records)
        self.lost: set[Slot] = set()
        self.gone -= {self._slot(window) for window in WINDOWS}
        self.opened_ms = self.redis.now_ms
        expected: set[ThresholdEvent] = set()
        for window in WINDOWS:
            expected |= self._threshold_events(window, self._slot(window))
        assert set(threshold_events) == expected

    def _refuses(self, window: WindowSpec, amounts: Amounts) -> bool:
        amount, slot = amounts.of(window.unit), self._slot(window)
        if window.limit is None or amount == 0:
            return False
        return self._book(slot).settled + self._reserved(slot) + amount > window.limit

    def _threshold_events(self, window: WindowSpec, slot: Slot) -> set[ThresholdEvent]:
        book, found = self._book(slot), set()
        for percent in window.thresholds:
            reached = book.settled * 100 >= (window.limit or 0) * percent
            if reached and percent not in book.crossed:
                book.crossed.add(percent)
                found.add(ThresholdEvent(window, percent))
        return found

    def _can_be_booked(self, lease: ModelLease) -> bool:
        if lease.done_ms is not None:
            return False
        if lease.emptied or self.redis.now_ms < lease.reserved_ms + TTL_MS + LATE_MS:
            return True
        # However late: a window that still has the lease shows that nobody has settled it.
        lease_id = lease.reservation.lease_id
        return any(
            lease_id in self.held.get((entry.window.id, entry.period.start_ms), {})
            and self._is_kept(entry.period)
            for entry in lease.reservation.windows
        )

    def _is_kept(self, period: Period) -> bool:
        """Counters go three days after their period."""
        return period.end_ms is None or self.redis.now_ms < period.end_ms + KEEP_MS

    def _drop_expired(self) -> None:
        """Whoever reserves, or is refused, clears away what has expired in the present periods."""
        for window in WINDOWS:
            held = self.held.get(self._slot(window), {})
            for lease_id, (_, until_ms) in list(held.items()):
                if until_ms <= self.redis.now_ms:
                    del held[lease_id]

    def _reserved(self, slot: Slot) -> int:
        held = self.held.get(slot, {}).values()
        return sum(amount for amount, until_ms in held if until_ms > self.redis.now_ms)

    def _book(self, slot: Slot) -> Book:
        return self.books.setdefault(slot, Book())

    def _period(self, window: WindowSpec) -> Period:
        return period_at(window.period, window.timezone, self.redis.now_ms)

    def _slot(self, window: WindowSpec) -> Slot:
        return window.id, self._period(window).start_ms

    def _move(self, by_ms: int) -> None:
        lost = {name for name, _ in self.lost}
        if self.redis.now_ms + by_ms > self.opened_ms + IDLE_MS:
            return
        self.redis.move(by_ms * 1000)
        if lost:  # a Redis that knows nothing knows no earlier period either
            self.lost = {self._slot(window) for window in WINDOWS if window.id in lost}
        for lease in self.known.values():
            if lease.emptied and lease.done_ms and self.redis.now_ms >= lease.done_ms + LATE_MS:
                lease.unknown = True

    def _live(self, dump: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return {name: data for name, data in dump.items() if b":lease:" in name}


def test_the_ledger_is_its_model(client: GuardedClient) -> None:
    """P6, P7, B4, B6, B9, B12, B13, B16, B18: every figure of every step, on a real server."""
    LedgerMachine.client = client
    run_state_machine_as_test(LedgerMachine, settings=RUNS)  # type: ignore[no-untyped-call]
