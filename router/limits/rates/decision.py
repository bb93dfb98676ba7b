"""Rate limits as values: buckets, slots, and the decision about a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal, NamedTuple, cast

from router.limits.redis_keys import quoted

MICRO: Final = 1_000_000
"""Levels are kept in millionths of a token."""

MAX_TOKENS: Final = 9_000_000_000
"""Above this many tokens, millionths no longer fit the doubles that Lua counts with."""

LimitScope = Literal["org", "key", "model"]
LimitUnit = Literal["requests", "tokens", "concurrent"]
Source = Literal["redis", "local", "open"]
"""Who decided: the shared buckets, this worker's share of them, or nobody."""


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """A token bucket and what this call takes from it.

    ``rate_per_s`` or ``burst`` 0 blocks, ``rate_per_s`` ``None`` is unlimited and asks nothing.
    A ``cost`` above ``burst`` is refused, because no wait could ever gather that much. ``parts``
    tell whose bucket it is, such as a key's id. With ``enforced`` false it only reports what it
    would have refused. With ``leased`` true the cost is an estimate: the bucket remembers it by the
    call's lease, so that it is corrected once.
    """

    name: str
    parts: tuple[str, ...]
    rate_per_s: float | None
    burst: int
    cost: int = 1
    enforced: bool = True
    leased: bool = False
    suffix: str = field(init=False, repr=False, compare=False)
    """The bucket's part of its Redis key."""
    estimates_suffix: str = field(init=False, repr=False, compare=False)
    """That of the estimates that it remembers."""
    rate_micro: int = field(init=False, repr=False, compare=False)
    """Millionths of a token a second, rounded down so that a limit is never exceeded."""
    arguments: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    """The script's arguments for it: rate, burst, cost, estimate and flag."""
    window_s: int | None = field(init=False, repr=False, compare=False)
    """In how long an empty bucket fills, rounded up; ``None`` where it does not."""

    def __post_init__(self) -> None:
        _in_range(self.name, self.rate_per_s or 0)
        _in_range(self.name, self.burst)
        _in_range(self.name, self.cost)
        object.__setattr__(self, "suffix", _suffix("rate", self.name, self.parts))
        object.__setattr__(self, "estimates_suffix", _suffix("estimates", self.name, self.parts))
        rate_micro = int((self.rate_per_s or 0) * MICRO)
        object.__setattr__(self, "rate_micro", rate_micro)
        fills_s = -(-self.burst * MICRO // rate_micro) if rate_micro and self.burst else None
        object.__setattr__(self, "window_s", fills_s)
        cost_micro, flag = self.cost * MICRO, self.enforced + 2 * self.leased
        numbers = (rate_micro, self.burst * MICRO, cost_micro, cost_micro, flag)
        object.__setattr__(self, "arguments", tuple([b"%d" % number for number in numbers]))


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """How many calls may run at once; a call holds its slot until it is released or its lease ends.

    ``limit`` 0 blocks, ``None`` is unlimited and asks nothing.
    """

    name: str
    parts: tuple[str, ...]
    limit: int | None
    enforced: bool = True
    suffix: str = field(init=False, repr=False, compare=False)
    """The set's part of its Redis key."""

    def __post_init__(self) -> None:
        _in_range(self.name, self.limit or 0)
        object.__setattr__(self, "suffix", _suffix("slots", self.name, self.parts))


@dataclass(frozen=True, slots=True)
class Correction:
    """What a bucket was wrong about: take ``tokens`` more, or give back as many when negative."""

    bucket: BucketSpec
    tokens: int
    may_owe: bool = True
    """Whether the level may fall below zero, or stops there."""
    estimate: int | None = None
    """What the bucket took for the lease and remembers: corrected once. ``None`` corrects as often
    as it is told."""


class LimitStatus(NamedTuple):
    """One limit after the decision, as the caller may see it."""

    name: str
    limit: int
    remaining: int
    reset_after_s: int
    """Until all of the limit is there again, rounded up."""
    retry_after_s: int | None
    """``None`` when this limit let the call pass, or when no wait will help (``blocked``)."""
    passed: bool
    blocked: bool
    enforced: bool
    window_s: int | None = None
    """In how long the whole limit flows in, rounded up; ``None`` where time brings nothing."""

    @property
    def scope(self) -> LimitScope:
        """Whose limit it is: the first part of its name."""
        return _parts(self.name)[0]

    @property
    def unit(self) -> LimitUnit:
        """What it counts: the second part of its name."""
        return _parts(self.name)[1]


@dataclass(slots=True)
class RateDecision:
    """Whether a call may go on. All limits were charged when ``allowed``, none otherwise."""

    allowed: bool
    binding: LimitStatus | None
    """Of the enforced limits that refused, the one with the longest wait."""
    statuses: tuple[LimitStatus, ...]
    source: Source = "redis"

    @property
    def retry_after_s(self) -> int | None:
        """Seconds after which the same call, alone, will pass; ``None`` if it passed or never."""
        return self.binding.retry_after_s if self.binding else None

    @property
    def shadow_denied(self) -> tuple[LimitStatus, ...]:
        """Limits that would have refused, had they been enforced."""
        return tuple(status for status in self.statuses if not (status.passed or status.enforced))


def decide(statuses: tuple[LimitStatus, ...], source: Source = "redis") -> RateDecision:
    """The decision that follows from each limit's own answer."""
    refused = [status for status in statuses if status.enforced and not status.passed]
    if not refused:
        return RateDecision(True, None, statuses, source)
    return RateDecision(False, max(refused, key=_wait_s), statuses, source)


def corrections(
    buckets: Sequence[BucketSpec], decision: RateDecision, tokens: int
) -> list[Correction]:
    """By how much the buckets of tokens were charged wrongly for a call that used ``tokens``."""
    tokens = min(tokens, MAX_TOKENS)
    limited = [bucket for bucket in buckets if bucket.rate_per_s is not None]
    found = []
    for bucket, status in zip(limited, decision.statuses, strict=False):
        if status.unit == "tokens":
            estimate = bucket.cost if status.passed else 0
            remembers = bucket.leased and decision.source == "redis"
            found.append(
                Correction(bucket, tokens - estimate, estimate=estimate if remembers else None)
            )
    return found


def unheard(buckets: Sequence[BucketSpec]) -> list[Correction]:
    """Gives back what Redis may have taken for a lease without anybody hearing of it."""
    return [
        Correction(bucket, -bucket.cost, estimate=bucket.cost)
        for bucket in buckets
        if bucket.leased and bucket.rate_per_s is not None
    ]


def bucket_status(
    spec: BucketSpec, *, level_micro: int, passed: bool, late_us: int = 0
) -> LimitStatus:
    """What a bucket at ``level_micro`` means for a caller, after the call's cost if it was taken.

    ``late_us`` is how far the bucket's own time is ahead of the clock: no refill until then.
    """
    burst_micro, rate_micro = spec.burst * MICRO, spec.rate_micro
    blocked = rate_micro == 0 or burst_micro == 0
    is_over = spec.cost > spec.burst
    missing = spec.cost * MICRO - level_micro
    return LimitStatus(
        name=spec.name,
        limit=spec.burst,
        remaining=0 if blocked else max(0, level_micro // MICRO),
        reset_after_s=0 if blocked else _whole_s(burst_micro - level_micro, rate_micro, late_us),
        retry_after_s=None
        if passed or blocked or is_over
        else max(1, _whole_s(missing, rate_micro, late_us)),
        passed=passed,
        blocked=blocked,
        enforced=spec.enforced,
        window_s=spec.window_s,
    )


def slot_status(spec: SlotSpec, *, in_use: int, passed: bool) -> LimitStatus:
    """What a set of slots means for a caller. When one will be free nobody knows: 1 s is a guess
    that costs little, the lease of the oldest call would be minutes."""
    limit = spec.limit or 0
    return LimitStatus(
        name=spec.name,
        limit=limit,
        remaining=max(0, limit - in_use),
        reset_after_s=1 if in_use else 0,
        retry_after_s=None if passed or limit == 0 else 1,
        passed=passed,
        blocked=limit == 0,
        enforced=spec.enforced,
    )


def _whole_s(missing_micro: int, rate_micro: int, late_us: int) -> int:
    """Seconds until ``missing_micro`` have flowed in, rounded up."""
    missing_us = -(-missing_micro * MICRO // rate_micro) + late_us
    return max(0, -(-missing_us // MICRO))


def _wait_s(status: LimitStatus) -> float:
    return float("inf") if status.retry_after_s is None else status.retry_after_s


@lru_cache(maxsize=64)
def _parts(name: str) -> tuple[LimitScope, LimitUnit]:
    scope, _, unit = name.partition("-")
    return cast(LimitScope, scope), cast(LimitUnit, unit)


@lru_cache(maxsize=4096)
def _suffix(kind: str, name: str, parts: tuple[str, ...]) -> str:
    return ":".join((kind, quoted(name), *map(quoted, parts)))


def _in_range(name: str, value: float) -> None:
    if not 0 <= value <= MAX_TOKENS:
        raise ValueError(f"{name}: {value} is not between 0 and {MAX_TOKENS}")
