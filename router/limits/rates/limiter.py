"""The rate limiter: token buckets and concurrency slots in Redis, decided in one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from router.limits.rates.decision import (
    MICRO,
    BucketSpec,
    Correction,
    LimitStatus,
    RateDecision,
    SlotSpec,
    bucket_status,
    decide,
    slot_status,
)
from router.limits.recent import Recent
from router.limits.redis_keys import tag
from router.redis.scripts import Argument, Loader, Runner, ScriptCall, Template, load_script

SLOT_LEASE_S: Final = 900.0
"""Longer than any call may take; a killed worker's slots are free again after it."""


@dataclass(slots=True)
class RatePlan:
    """A script call about rates, ready to be sent alone or together with others."""

    buckets: Sequence[BucketSpec]
    slots: Sequence[SlotSpec]
    call: ScriptCall | None
    """``None`` when nothing is limited."""


class RateLimiter:
    """Exact limits over every worker that uses the same Redis.

    Raises :class:`router.breaker.Unavailable` while Redis is unavailable, and has then taken
    nothing that it knows of; :class:`router.limits.rates.gate.RateGate` decides what that means.
    """

    def __init__(
        self, redis: Runner, *, slot_lease_s: float = SLOT_LEASE_S, load: Loader = load_script
    ) -> None:
        self._redis = redis
        self._slot_lease_ms = int(slot_lease_s * 1000)
        self._script = load("rates/bucket.lua")
        self._plans: Recent[RatePlan] = Recent()

    @property
    def is_unavailable(self) -> bool:
        """Whether :meth:`take` would fail at once."""
        return self._redis.is_unavailable

    def take(
        self,
        organization_id: str,
        buckets: Sequence[BucketSpec],
        slots: Sequence[SlotSpec] = (),
        *,
        lease_id: str = "",
    ) -> RateDecision:
        """Charge every limit, or none when an enforced one refuses; one round trip.

        ``lease_id`` names the call that holds the slots; taking twice with it holds one slot.
        """
        return self._ask(self.plan("take", organization_id, buckets, slots, lease_id=lease_id))

    def plan(
        self,
        mode: Literal["take", "peek"],
        organization_id: str,
        buckets: Sequence[BucketSpec],
        slots: Sequence[SlotSpec] = (),
        *,
        lease_id: str = "",
    ) -> RatePlan:
        """What :meth:`take` or :meth:`peek` sends; :meth:`read` understands the reply."""
        if slots or any(bucket.leased for bucket in buckets):
            return self._planned(mode, organization_id, buckets, slots, lease_id)
        # The same for every call.
        key = (organization_id, mode, *[(bucket.suffix, bucket.arguments) for bucket in buckets])
        plan = self._plans.get(key)
        if plan is None:
            plan = self._planned(mode, organization_id, buckets, (), "")
            if plan.call is not None:
                call = plan.call
                plan.call = Template(call.script, call.keys, call.arguments).filled(())
            self._plans[key] = plan
        return plan

    def _planned(
        self,
        mode: str,
        organization_id: str,
        buckets: Sequence[BucketSpec],
        slots: Sequence[SlotSpec],
        lease_id: str,
    ) -> RatePlan:
        buckets = [bucket for bucket in buckets if _limits(bucket)]
        slots = [slot for slot in slots if slot.limit is not None]
        if not buckets and not slots:
            return RatePlan((), (), None)
        arguments: list[Argument] = []
        for bucket in buckets:
            arguments += bucket.arguments
        leased = [bucket for bucket in buckets if bucket.leased]
        call = self._call(mode, organization_id, buckets, arguments, slots, leased, lease_id)
        return RatePlan(buckets, slots, call)

    def read(self, plan: RatePlan, reply: Any) -> RateDecision:
        """What Redis made of a plan."""
        if plan.call is None:
            return decide(())
        return decide(_statuses(reply, plan.buckets, plan.slots))

    def peek(
        self, organization_id: str, buckets: Sequence[BucketSpec], slots: Sequence[SlotSpec] = ()
    ) -> RateDecision:
        """What :meth:`take` would answer now, charging nothing."""
        return self._ask(self.plan("peek", organization_id, buckets, slots))

    def finish(
        self,
        organization_id: str,
        corrections: Sequence[Correction],
        slots: Sequence[SlotSpec] = (),
        *,
        lease_id: str = "",
    ) -> None:
        """A call has ended: replace its estimates by what was used, so that a bucket may owe
        afterwards, and give back its slots. Twice is once, but for corrections without an
        estimate."""
        corrections = [
            entry
            for entry in corrections
            if _limits(entry.bucket) and (entry.tokens or entry.estimate is not None)
        ]
        slots = [slot for slot in slots if slot.limit is not None]
        if not corrections and not slots:
            return
        arguments: list[Argument] = []
        for entry in corrections:
            arguments += (entry.bucket.rate_micro, entry.bucket.burst * MICRO)
            arguments += (entry.tokens * MICRO, (entry.estimate or 0) * MICRO)
            arguments.append(entry.may_owe + 2 * (entry.estimate is not None))
        buckets = [entry.bucket for entry in corrections]
        leased = [entry.bucket for entry in corrections if entry.estimate is not None]
        self._redis.run(
            self._call("finish", organization_id, buckets, arguments, slots, leased, lease_id)
        )

    def _ask(self, plan: RatePlan) -> RateDecision:
        return self.read(plan, None if plan.call is None else self._redis.run(plan.call))

    def _call(
        self,
        mode: str,
        organization_id: str,
        buckets: Sequence[BucketSpec],
        arguments: list[Argument],
        slots: Sequence[SlotSpec],
        leased: Sequence[BucketSpec],
        lease_id: str,
    ) -> ScriptCall:
        prefix = tag(organization_id)
        keys = [prefix + bucket.suffix for bucket in buckets]
        keys += [prefix + slot.suffix for slot in slots]
        keys += [prefix + bucket.estimates_suffix for bucket in leased]
        for slot in slots:
            arguments += (slot.limit or 0, int(slot.enforced))
        head: list[Argument] = [mode, len(buckets), len(slots), lease_id, self._slot_lease_ms]
        return ScriptCall(self._script, keys, head + arguments)


def _limits(bucket: BucketSpec) -> bool:
    return bucket.rate_per_s is not None


def _statuses(
    reply: list[int], buckets: Sequence[BucketSpec], slots: Sequence[SlotSpec]
) -> tuple[LimitStatus, ...]:
    found: list[LimitStatus] = []
    at = 2
    for bucket in buckets:
        passed, level_micro, late_us = reply[at : at + 3]
        found.append(
            bucket_status(bucket, level_micro=level_micro, passed=bool(passed), late_us=late_us)
        )
        at += 3
    for slot in slots:
        passed, in_use = reply[at : at + 2]
        found.append(slot_status(slot, in_use=in_use, passed=bool(passed)))
        at += 2
    return tuple(found)
