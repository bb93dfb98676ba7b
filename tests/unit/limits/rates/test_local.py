"""A worker's share of every limit while Redis is away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router.clock import FrozenClock
from router.limits.rates.decision import (
    MICRO,
    BucketSpec,
    Correction,
    RateDecision,
    SlotSpec,
    bucket_status,
    decide,
)
from router.limits.rates.local import LocalLimiter
from router.limits.rates.slot_file import SlotFile

ORG = BucketSpec("org", (), 100.0, 40)
KEY = BucketSpec("key", ("k1",), 8.0, 8)
SLOTS = SlotSpec("calls", ("k1",), 8)


def limiter(clock: FrozenClock, workers: int = 4) -> LocalLimiter:
    return LocalLimiter(workers, monotonic_s=clock.monotonic_s)


def said(bucket: BucketSpec, level: float) -> RateDecision:
    """What Redis answered when it had ``level`` tokens left."""
    return decide((bucket_status(bucket, level_micro=int(level * MICRO), passed=True),))


def admitted(subject: LocalLimiter, bucket: BucketSpec, calls: int) -> int:
    return sum(subject.take("acme", [bucket]).allowed for _ in range(calls))


def test_workers_together_admit_what_the_shared_bucket_would() -> None:
    """P9: each worker its part of burst and rate; all together at most 1.1 times the limit."""
    clock = FrozenClock()
    workers = [limiter(clock) for _ in range(4)]
    total = sum(admitted(worker, ORG, 100) for worker in workers)
    assert total == 40
    for _ in range(100):
        clock.advance(0.05)
        total += sum(admitted(worker, ORG, 10) for worker in workers)
    assert 0.95 * (40 + 100 * 5) <= total <= 40 + 100 * 5


def test_an_outage_does_not_fill_the_bucket() -> None:
    """P9: a share begins with a part of what Redis last said was left, not full."""
    clock = FrozenClock()
    subject = limiter(clock)
    subject.observe("acme", [ORG], said(ORG, 0))
    assert admitted(subject, ORG, 10) == 0
    clock.advance(0.2)
    assert admitted(subject, ORG, 10) == 5


def test_a_refusal_charges_no_share() -> None:
    """R2: all or none also here."""
    clock = FrozenClock()
    subject = limiter(clock)
    for _ in range(2):
        assert subject.take("acme", [ORG, KEY]).allowed
    refused = subject.take("acme", [ORG, KEY])
    assert refused.binding is not None
    assert (refused.binding.name, refused.source) == ("key", "local")
    assert admitted(subject, ORG, 10) == 8


def test_a_worker_can_always_admit_something() -> None:
    """A burst smaller than the number of workers is rounded up to one for each."""
    clock = FrozenClock()
    small = BucketSpec("small", (), 4.0, 2)
    subject = limiter(clock)
    subject.observe("acme", [small], said(small, 2))
    clock.advance(0.5)
    assert admitted(subject, small, 3) == 1
    clock.advance(1)
    assert admitted(subject, small, 3) == 1


@pytest.mark.parametrize("blocked", [replace(KEY, rate_per_s=0.0), replace(KEY, burst=0)])
def test_zero_blocks_here_too(blocked: BucketSpec) -> None:
    """B11: an outage opens nothing that was closed."""
    decision = limiter(FrozenClock()).take("acme", [blocked])
    assert not decision.allowed
    assert decision.binding is not None
    assert decision.binding.blocked
    assert not limiter(FrozenClock()).take("acme", [], [SlotSpec("calls", (), 0)]).allowed


def test_no_limit_is_no_limit() -> None:
    """B11: null stays unlimited."""
    subject = limiter(FrozenClock())
    unlimited = replace(KEY, rate_per_s=None)
    assert subject.take("acme", [unlimited], [SlotSpec("calls", (), None)]).statuses == ()
    subject.finish("acme", [Correction(unlimited, 5)])
    assert not subject.has_shares


def test_waiting_as_told_is_enough() -> None:
    """R9: the wait is that of this worker's share."""
    clock = FrozenClock()
    subject = limiter(clock)
    admitted(subject, KEY, 10)
    decision = subject.take("acme", [KEY])
    assert decision.retry_after_s == 1
    clock.advance(1)
    assert subject.take("acme", [KEY]).allowed


def test_shadow_limits_refuse_nothing() -> None:
    """They are told, as ever."""
    subject = limiter(FrozenClock())
    shadow = replace(KEY, enforced=False)
    assert admitted(subject, shadow, 10) == 10
    assert subject.take("acme", [shadow]).shadow_denied


def test_slots_are_held_released_and_expire() -> None:
    """R8: leases here as well: eight slots over four workers are two here."""
    clock = FrozenClock()
    subject = limiter(clock)
    taken = [subject.take("acme", [], [SLOTS], lease_id=lease).allowed for lease in "abc"]
    assert taken == [True, True, False]
    assert subject.take("acme", [], [SLOTS], lease_id="a").allowed
    subject.finish("acme", (), [SLOTS], lease_id="a")
    assert subject.take("acme", [], [SLOTS], lease_id="c").allowed
    clock.advance(901)
    assert subject.take("acme", [], [SLOTS], lease_id="d").allowed


def test_asking_charges_nothing() -> None:
    """`GET /v1/limits` during an outage."""
    subject = limiter(FrozenClock())
    before = subject.take("acme", [KEY], [SLOTS], charge=False).statuses
    assert subject.take("acme", [KEY], [SLOTS], charge=False).statuses == before
    assert [status.remaining for status in before] == [8, 2]


def test_what_was_admitted_is_told_once() -> None:
    """P9: when Redis is back it is charged for what it did not see."""
    clock = FrozenClock()
    subject = limiter(clock)
    admitted(subject, ORG, 7)
    [missing] = subject.missing("acme", [ORG, KEY])
    assert (missing.bucket, missing.tokens, missing.may_owe) == (ORG, 7, False)
    subject.forget("acme", [ORG])
    assert subject.missing("acme", [ORG]) == []
    assert not subject.has_shares


def test_what_has_flowed_in_again_need_not_be_told() -> None:
    """Redis' own bucket filled meanwhile as this one did."""
    clock = FrozenClock()
    subject = limiter(clock)
    admitted(subject, ORG, 7)
    clock.advance(10)
    assert subject.missing("acme", [ORG]) == []


def test_corrections_count_here() -> None:
    """An estimate is corrected, into debt where it may owe, up to the capacity."""
    clock = FrozenClock()
    subject = limiter(clock, workers=1)
    subject.take("acme", [KEY])
    subject.finish("acme", [Correction(KEY, 15)])
    assert subject.take("acme", [KEY]).retry_after_s == 2
    subject.finish("acme", [Correction(KEY, -100)])
    assert admitted(subject, KEY, 10) == 8
    subject.finish("acme", [Correction(KEY, 50, may_owe=False)])
    clock.advance(0.125)
    assert admitted(subject, KEY, 2) == 1


def test_a_debt_is_at_most_what_the_share_holds() -> None:
    """As in Redis: it is paid off in the time in which the share fills, 1 s here."""
    clock = FrozenClock()
    subject = limiter(clock)
    subject.take("acme", [KEY])
    subject.finish("acme", [Correction(KEY, 10**6)])
    assert not subject.take("acme", [KEY]).allowed
    clock.advance(1.51)  # 2 of debt and one of its own, at 2 a second
    assert subject.take("acme", [KEY]).allowed


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: of many buckets, the ones not seen for longest are forgotten."""
    monkeypatch.setattr("router.limits.rates.local.MAX_REMEMBERED", 3)
    subject = limiter(FrozenClock())
    for number in range(5):
        bucket = BucketSpec("key", (str(number),), 8.0, 8)
        subject.observe("acme", [bucket], said(bucket, 0))
    first, last = (BucketSpec("key", (number,), 8.0, 8) for number in "04")
    assert admitted(subject, last, 5) == 0
    assert admitted(subject, first, 5) == 2


def test_shares_of_buckets_that_nobody_asks_for_go_by_themselves() -> None:
    """P3: they fill up and are forgotten when others are told of."""
    clock = FrozenClock()
    subject = limiter(clock)
    for number in range(20):
        subject.take("acme", [BucketSpec("key", (str(number),), 8.0, 8)])
    clock.advance(60)
    subject.take("acme", [ORG])
    subject.forget("acme", [ORG])
    assert not subject.has_shares


# --- The successor of a worker ----------------------------------------------------------------


def recycled(tmp_path: Path, clock: FrozenClock) -> LocalLimiter:
    """A new worker of the slot that the file stands for."""
    successor = limiter(clock)
    successor.take_over(SlotFile(tmp_path / "slot0.shares"))
    return successor


@pytest.mark.parametrize("ends", ["killed", "closed"])
def test_recycled_workers_admit_what_one_would(tmp_path: Path, ends: str) -> None:
    """P9: a worker that was recycled or killed every few calls used to begin with a fresh share:
    707 calls were admitted for a bound of 300."""
    clock = FrozenClock()
    total = 0
    for _ in range(20):
        subject = recycled(tmp_path, clock)
        total += admitted(subject, ORG, 7)
        clock.advance(0.1)
        if ends == "closed":
            subject.close()
    assert total == 40 // 4 + int(19 * 0.1 * 100 / 4)


def test_a_successor_reports_what_its_predecessor_admitted(tmp_path: Path) -> None:
    """R1: and once only. It used to be lost."""
    clock = FrozenClock()
    assert admitted(recycled(tmp_path, clock), ORG, 6) == 6
    successor = recycled(tmp_path, clock)
    assert successor.has_shares
    assert successor.missing("acme", [ORG]) == [Correction(ORG, 6, may_owe=False)]
    successor.forget("acme", [ORG])
    assert not successor.has_shares
    assert not recycled(tmp_path, clock).has_shares


def test_corrections_are_taken_over(tmp_path: Path) -> None:
    """R4: what a call used beyond its estimate stays a debt of the slot."""
    clock = FrozenClock()
    subject = recycled(tmp_path, clock)
    assert admitted(subject, ORG, 1) == 1
    subject.finish("acme", [Correction(ORG, 9)])
    assert admitted(recycled(tmp_path, clock), ORG, 1) == 0


def test_what_nobody_uses_again_is_forgotten(tmp_path: Path) -> None:
    """A share that was taken over fills, and then costs later calls nothing."""
    clock = FrozenClock()
    assert recycled(tmp_path, clock).take("other", [ORG]).allowed
    successor = recycled(tmp_path, clock)
    clock.advance(1.0)
    successor.forget("acme", [KEY])
    assert not successor.has_shares


def test_what_redis_said_last_is_taken_over_too(tmp_path: Path) -> None:
    """P9: an outage that begins after a worker was recycled finds no full share either."""
    clock = FrozenClock()
    subject = recycled(tmp_path, clock)
    subject.observe("acme", [ORG], said(ORG, 4))
    subject.close()
    successor = recycled(tmp_path, clock)
    assert not successor.has_shares
    assert admitted(successor, ORG, 10) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"shares", b"shares1\n", b"shares0\n" + bytes(100), b"shares1\n" + b"\xff" * 100],
    ids=["empty", "cut", "no-entries", "other-version", "garbage"],
)
def test_a_file_that_is_none_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    """A worker always starts."""
    clock = FrozenClock()
    (tmp_path / "slot0.shares").write_bytes(content)
    assert admitted(recycled(tmp_path, clock), ORG, 20) == 10
    assert admitted(recycled(tmp_path, clock), ORG, 20) == 0


def test_without_a_place_for_the_file_limits_hold(tmp_path: Path) -> None:
    """Shares are kept in memory then, as before."""
    clock = FrozenClock()
    subject = limiter(clock)
    subject.take_over(SlotFile(tmp_path / "missing" / "slot0.shares"))
    assert admitted(subject, ORG, 20) == 10
    subject.close()


def test_many_buckets_fit(tmp_path: Path) -> None:
    """The file grows, and begins anew with what is left."""
    clock = FrozenClock()
    path = tmp_path / "slot0.shares"
    names = [f"org-{number}" for number in range(3000)]
    subject = recycled(tmp_path, clock)
    for name in names:
        assert subject.take(name, [ORG]).allowed
    size = path.stat().st_size
    successor = recycled(tmp_path, clock)
    assert [len(successor.missing(name, [ORG])) for name in names] == [1] * 3000
    for name in names:
        successor.forget(name, [ORG])
    assert not recycled(tmp_path, clock).has_shares
    assert path.stat().st_size < size
