"""Rate limits as a call meets them: Redis decides, or the policy for the time without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from router.breaker import NOT_SENT, Unavailable
from router.limits.rates.decision import (
    BucketSpec,
    Correction,
    RateDecision,
    SlotSpec,
    corrections,
    decide,
    unheard,
)
from router.limits.rates.limiter import RateLimiter, RatePlan
from router.limits.rates.local import LocalLimiter
from router.limits.rates.slot_file import SlotFile
from router.limits.retry_queue import RetryQueue

OnUnavailable = Literal["local", "open", "closed"]


class RateGate:
    """Lets Redis decide. While it is unavailable: ``local`` enforces this worker's share, ``open``
    lets all calls pass, ``closed`` raises :class:`Unavailable`. The decision's ``source`` says
    which."""

    def __init__(
        self,
        limiter: RateLimiter,
        local: LocalLimiter,
        retry_queue: RetryQueue,
        *,
        on_unavailable: OnUnavailable = "local",
    ) -> None:
        self._limiter = limiter
        self._local = local
        self._retry_queue = retry_queue
        self._on_unavailable = on_unavailable

    def take_over(self, path: Path) -> None:
        """Go on with what the last worker of the same slot had of the limits, without Redis."""
        self._local.take_over(SlotFile(path))

    def close(self) -> None:
        """Leave it to the next one."""
        self._local.close()

    def take(
        self,
        organization_id: str,
        buckets: Sequence[BucketSpec],
        slots: Sequence[SlotSpec] = (),
        *,
        lease_id: str = "",
    ) -> RateDecision:
        """Charge every limit, or none when one refuses.

        While Redis is unavailable: as configured; a limit that this worker last knew exhausted
        stays so, any other call passes. The first call of each bucket after an outage takes a
        second round trip.
        """
        try:
            if self._local.has_shares:
                self._report_to_redis(organization_id, buckets)
            decision = self._limiter.take(organization_id, buckets, slots, lease_id=lease_id)
        except Unavailable as error:
            return self.decide_without_redis(
                error, organization_id, buckets, slots, lease_id=lease_id
            )
        self._local.observe(organization_id, buckets, decision)
        return decision

    @property
    def can_be_joined(self) -> bool:
        """Whether the rates can be taken together with something else, by :meth:`plan`: Redis knows
        of all that was decided here."""
        return not self._local.has_shares

    def plan(
        self,
        organization_id: str,
        buckets: Sequence[BucketSpec],
        slots: Sequence[SlotSpec] = (),
        *,
        lease_id: str = "",
    ) -> RatePlan:
        """What :meth:`take` would send; then ask :meth:`read`, or :meth:`decide_without_redis`."""
        return self._limiter.plan("take", organization_id, buckets, slots, lease_id=lease_id)

    def read(self, organization_id: str, plan: RatePlan, reply: object) -> RateDecision:
        """What Redis made of a plan."""
        decision = self._limiter.read(plan, reply)
        self._local.observe(organization_id, plan.buckets, decision)
        return decision

    def decide_without_redis(
        self,
        error: Unavailable,
        organization_id: str,
        buckets: Sequence[BucketSpec],
        slots: Sequence[SlotSpec] = (),
        *,
        lease_id: str = "",
    ) -> RateDecision:
        """The decision without Redis; raises ``error`` where none is to be taken without it.

        Redis may have charged the call and given it its slots all the same. The estimate is given
        back as soon as Redis is there, and the slots where nobody will do it at the call's end.
        """
        decision = None
        if self._on_unavailable == "open":
            decision = decide((), "open")
        elif self._on_unavailable == "local":
            decision = self._local.take(organization_id, buckets, slots, lease_id=lease_id)
        gives_back = decision is not None and decision.allowed and decision.source == "local"
        if error.reason not in NOT_SENT:
            held = () if gives_back else slots
            self._finish_later(organization_id, unheard(buckets), held, lease_id)
        if decision is None:
            raise error
        return decision

    def give_back(
        self,
        organization_id: str,
        buckets: Sequence[BucketSpec],
        slots: Sequence[SlotSpec],
        decision: RateDecision | None,
        *,
        lease_id: str,
    ) -> None:
        """Give back, later, what a call has taken that was killed before it began: the slots, and
        its estimate of tokens. ``decision`` is ``None`` when nobody knows what it has taken."""
        if decision is None:
            self._finish_later(organization_id, unheard(buckets), slots, lease_id)
        elif decision.allowed and decision.source != "open":
            unused = corrections(buckets, decision, 0)
            self._retry_queue.later(
                lambda: self.finish(organization_id, unused, slots, lease_id=lease_id)
            )

    def peek(
        self, organization_id: str, buckets: Sequence[BucketSpec], slots: Sequence[SlotSpec] = ()
    ) -> RateDecision:
        """What :meth:`take` would answer, charging nothing. While Redis is unavailable: from this
        worker's share, whatever is configured."""
        try:
            return self._limiter.peek(organization_id, buckets, slots)
        except Unavailable:
            return self._local.take(organization_id, buckets, slots, charge=False)

    def finish(
        self,
        organization_id: str,
        corrections: Sequence[Correction],
        slots: Sequence[SlotSpec] = (),
        *,
        lease_id: str = "",
    ) -> None:
        """Correct estimates and give back slots. While Redis is unavailable: what it remembers is
        corrected and given back later, what it was never told is corrected in this worker's share.
        """
        done = False
        try:
            self._limiter.finish(organization_id, corrections, slots, lease_id=lease_id)
            done = True
        except Unavailable:
            untold = [entry for entry in corrections if entry.estimate is None]
            self._local.finish(organization_id, untold, (), lease_id=lease_id)
        finally:  # a killed greenlet, too, gives back what its call has held
            self._local.finish(organization_id, (), slots, lease_id=lease_id)
            if not done:
                remembered = [entry for entry in corrections if entry.estimate is not None]
                self._finish_later(organization_id, remembered, slots, lease_id)

    def _finish_later(
        self,
        organization_id: str,
        corrections: Sequence[Correction],
        slots: Sequence[SlotSpec],
        lease_id: str,
    ) -> None:
        if corrections or any(slot.limit is not None for slot in slots):
            self._retry_queue.later(
                lambda: self._limiter.finish(organization_id, corrections, slots, lease_id=lease_id)
            )

    def _report_to_redis(self, organization_id: str, buckets: Sequence[BucketSpec]) -> None:
        if self._limiter.is_unavailable:
            return
        # Forgotten first: of many calls that find Redis back, one reports to it.
        missing = self._local.missing(organization_id, buckets)
        self._local.forget(organization_id, buckets)
        if not missing:
            return
        try:
            self._limiter.finish(organization_id, missing)
        except Unavailable:
            self._local.finish(organization_id, missing)
            raise
