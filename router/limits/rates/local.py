"""This worker's share of every limit, enforced from memory while Redis is unavailable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, isnan, nan
from typing import Final

from router.limits.rates.decision import (
    BucketSpec,
    Correction,
    LimitStatus,
    RateDecision,
    SlotSpec,
    decide,
)
from router.limits.rates.slot_file import Entry, Key, SlotFile

MAX_REMEMBERED: Final = 50_000
_SWEEP: Final = 100


@dataclass(slots=True)
class _Share:
    """A worker's part of a bucket, in tokens."""

    level: float
    untouched: float
    """What the level would be, had nothing been taken here: what Redis believes it is."""
    at_s: float
    capacity: float
    rate_per_s: float

    def refill(self, now_s: float) -> None:
        flown_in = (now_s - self.at_s) * self.rate_per_s
        self.level = min(self.capacity, self.level + flown_in)
        self.untouched = min(self.capacity, self.untouched + flown_in)
        self.at_s = now_s


class LocalLimiter:
    """Decides like the shared limiter, for a share of 1 / ``workers``.

    All workers together admit what one bucket would: a share begins with its part of what Redis
    last said was left (:meth:`observe`), not full, and what it lacks when Redis is back is taken
    from the shared bucket (:meth:`missing`). Two limits are too small to be shared and are rounded
    up to one for each worker: a burst below ``workers``, and slots.

    A recycled worker goes on where its predecessor has ended (:meth:`take_over`): with a fresh
    share each, recycled workers together would admit more than the limit.

    Not for several threads at once: one event loop, and no wait in any method.
    """

    def __init__(
        self,
        workers: int,
        *,
        slot_lease_s: float = 900.0,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers = workers
        self._slot_lease_s = slot_lease_s
        self._monotonic_s = monotonic_s
        self._seen: dict[Key, tuple[int, float]] = {}
        self._shares: dict[Key, _Share] = {}
        self._slots: dict[Key, dict[str, float]] = {}
        self._file: SlotFile | None = None

    def take_over(self, file: SlotFile) -> None:
        """Go on with what the worker slot's file has, and keep it there from now on."""
        self._file = file
        for key, entry in file.left.items():
            if isnan(entry.untouched):
                self._seen[key] = (int(entry.level), entry.at_s)
                file.erase(key)
            else:
                self._shares[key] = _Share(*entry)

    def close(self) -> None:
        """Leave to the successor what Redis has said as well, which is too much for each call."""
        if self._file is None:
            return
        for key, (left, at_s) in self._seen.items():
            if key not in self._shares:
                self._file.write(key, Entry(left, nan, at_s))
        self._file.close()
        self._file = None

    @property
    def has_shares(self) -> bool:
        """Whether anything was decided here that Redis does not know of."""
        return bool(self._shares)

    def observe(
        self, organization_id: str, buckets: Sequence[BucketSpec], decision: RateDecision
    ) -> None:
        """Remember what Redis said is left."""
        now_s = self._monotonic_s()
        limited = [bucket for bucket in buckets if bucket.rate_per_s is not None]
        for bucket, status in zip(limited, decision.statuses, strict=False):
            key = (organization_id, bucket.suffix)
            self._seen.pop(key, None)  # so that the first is always the one not seen for longest
            self._seen[key] = (status.remaining, now_s)
        while len(self._seen) > MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]

    def take(
        self,
        organization_id: str,
        buckets: Sequence[BucketSpec],
        slots: Sequence[SlotSpec] = (),
        *,
        lease_id: str = "",
        charge: bool = True,
    ) -> RateDecision:
        """Charge every share, or none when an enforced one refuses; only ask without ``charge``."""
        now_s = self._monotonic_s()
        buckets = [bucket for bucket in buckets if bucket.rate_per_s is not None]
        slots = [slot for slot in slots if slot.limit is not None]
        shares = [self._share(organization_id, bucket, now_s) for bucket in buckets]
        holders = [self._holders(organization_id, slot, now_s) for slot in slots]
        passed = [_passes(bucket, share) for bucket, share in zip(buckets, shares, strict=True)]
        free = [
            lease_id in held or len(held) < self._slot_share(slot)
            for slot, held in zip(slots, holders, strict=True)
        ]
        refused = any(spec.enforced and not ok for spec, ok in _with(buckets, slots, passed, free))
        if charge and not refused:
            for bucket, share, ok in zip(buckets, shares, passed, strict=True):
                share.level -= bucket.cost if ok else 0
                self._keep(organization_id, bucket, share)
            for held, ok in zip(holders, free, strict=True):
                if ok:
                    held[lease_id] = now_s + self._slot_lease_s
        statuses = [
            self._bucket_status(*facts) for facts in zip(buckets, shares, passed, strict=True)
        ] + [self._slot_status(*facts) for facts in zip(slots, holders, free, strict=True)]
        return decide(tuple(statuses), "local")

    def finish(
        self,
        organization_id: str,
        corrections: Sequence[Correction],
        slots: Sequence[SlotSpec] = (),
        *,
        lease_id: str = "",
    ) -> None:
        """Correct estimates and give back slots, as the shared limiter would."""
        now_s = self._monotonic_s()
        for entry in corrections:
            if entry.bucket.rate_per_s is None:
                continue
            share = self._share(organization_id, entry.bucket, now_s)
            floor = -share.capacity if entry.may_owe else min(share.level, 0.0)
            share.level = max(floor, min(share.capacity, share.level - entry.tokens))
            self._keep(organization_id, entry.bucket, share)
        for slot in slots:
            self._holders(organization_id, slot, now_s).pop(lease_id, None)

    def missing(self, organization_id: str, buckets: Sequence[BucketSpec]) -> list[Correction]:
        """What the shared buckets are to be charged for what was admitted here."""
        now_s = self._monotonic_s()
        found = []
        for bucket in buckets:
            share = self._shares.get((organization_id, bucket.suffix))
            if share is not None:
                share.refill(now_s)
                tokens = ceil(share.untouched - share.level)
                if tokens > 0:
                    found.append(Correction(bucket, tokens, may_owe=False))
        return found

    def forget(self, organization_id: str, buckets: Sequence[BucketSpec]) -> None:
        """Redis knows of these now, and decides again."""
        for bucket in buckets:
            self._drop((organization_id, bucket.suffix))
        self._slots.clear()
        # Buckets that no call uses again need not be reported: they fill up.
        now_s = self._monotonic_s()
        for key in list(self._shares)[:_SWEEP]:
            share = self._shares[key]
            share.refill(now_s)
            if share.level >= share.untouched:
                self._drop(key)

    def _keep(self, organization_id: str, bucket: BucketSpec, share: _Share) -> None:
        if self._file is not None:
            entry = Entry(
                share.level, share.untouched, share.at_s, share.capacity, share.rate_per_s
            )
            self._file.write((organization_id, bucket.suffix), entry)

    def _drop(self, key: Key) -> None:
        if self._shares.pop(key, None) is not None and self._file is not None:
            self._file.erase(key)

    def _share(self, organization_id: str, bucket: BucketSpec, now_s: float) -> _Share:
        key = (organization_id, bucket.suffix)
        rate_per_s = (bucket.rate_per_s or 0.0) / self._workers
        part = bucket.burst / self._workers
        share = self._shares.get(key)
        if share is None:
            left, at_s = self._seen.get(key, (bucket.burst, now_s))
            share = self._shares[key] = _Share(
                left / self._workers, left / self._workers, at_s, part, rate_per_s
            )
        # Below one token nothing would ever pass.
        share.capacity = max(part, 1.0) if bucket.burst else 0.0
        share.rate_per_s = rate_per_s
        share.refill(now_s)
        return share

    def _holders(self, organization_id: str, slot: SlotSpec, now_s: float) -> dict[str, float]:
        held = self._slots.setdefault((organization_id, slot.suffix), {})
        for lease in [lease for lease, until_s in held.items() if until_s <= now_s]:
            del held[lease]
        return held

    def _slot_share(self, slot: SlotSpec) -> int:
        return max(1, slot.limit // self._workers) if slot.limit else 0

    def _bucket_status(self, bucket: BucketSpec, share: _Share, passed: bool) -> LimitStatus:
        blocked = share.rate_per_s == 0 or share.capacity == 0
        wait_s = reset_s = 0.0
        if not blocked:
            wait_s = (min(bucket.cost, share.capacity) - share.level) / share.rate_per_s
            reset_s = (share.capacity - share.level) / share.rate_per_s
        left = min(bucket.burst, int(share.level * self._workers))
        return LimitStatus(
            name=bucket.name,
            limit=bucket.burst,
            remaining=0 if blocked else max(0, left),
            reset_after_s=ceil(reset_s),
            retry_after_s=None if passed or blocked else max(1, ceil(wait_s)),
            passed=passed,
            blocked=blocked,
            enforced=bucket.enforced,
            window_s=bucket.window_s,
        )

    def _slot_status(self, slot: SlotSpec, held: dict[str, float], passed: bool) -> LimitStatus:
        limit = slot.limit or 0
        return LimitStatus(
            name=slot.name,
            limit=limit,
            remaining=max(0, self._slot_share(slot) - len(held)),
            reset_after_s=1 if held else 0,
            retry_after_s=None if passed or limit == 0 else 1,
            passed=passed,
            blocked=limit == 0,
            enforced=slot.enforced,
        )


def _passes(bucket: BucketSpec, share: _Share) -> bool:
    if share.rate_per_s == 0 or share.capacity == 0:
        return False
    return share.level >= min(bucket.cost, share.capacity)


def _with(
    buckets: Sequence[BucketSpec],
    slots: Sequence[SlotSpec],
    passed: Sequence[bool],
    free: Sequence[bool],
) -> list[tuple[BucketSpec | SlotSpec, bool]]:
    return [*zip(buckets, passed, strict=True), *zip(slots, free, strict=True)]
