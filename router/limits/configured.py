"""Limits as the document has them → limits as they are enforced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from typing import Final, Literal, ParamSpec, TypeVar, cast

from router.config.document import Budget, KeyRecord, Organization, RateLimit
from router.config.settings import Settings
from router.limits.budgets.reservation_rule import Mode, ReservationRule
from router.limits.budgets.windows import Amounts, Scope, WindowSpec
from router.limits.rates.decision import BucketSpec, SlotSpec

Owner = Literal["org", "key", "model"]
P = ParamSpec("P")
T = TypeVar("T")

_REMEMBERED: Final = 8192
_MINUTE_S: Final = 60


@dataclass(slots=True)
class RateSpecs:
    """Every rate limit of one call, for :meth:`router.limits.rates.gate.RateGate.take`."""

    buckets: tuple[BucketSpec, ...]
    slots: tuple[SlotSpec, ...]

    def too_small(self) -> BucketSpec | None:
        """A limit that the call exceeds alone, so that no wait helps it."""
        for bucket in self.buckets:
            if bucket.cost > bucket.burst > 0 and bucket.enforced:
                return bucket
        return None

    def of_no_call(self) -> RateSpecs:
        """What a request is charged that is not served: no tokens, and it holds no slot."""
        buckets = [replace(each, cost=0) if each.leased else each for each in self.buckets]
        return RateSpecs(tuple(buckets), ())


def by_identity(make: Callable[P, T]) -> Callable[P, T]:
    """Remembers what ``make`` makes of objects, by which objects they are: organizations and keys
    live as long as their configuration, and hashing all that is in them takes long."""
    known: dict[tuple[int, ...], tuple[tuple[object, ...], T]] = {}

    @wraps(make)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> T:
        ids = tuple(map(id, args))
        found = known.get(ids)
        if found is None:
            if len(known) >= _REMEMBERED:
                known.clear()
            # With the objects themselves, so that no other can get the same address.
            found = known[ids] = args, make(*args, **kwargs)
        return found[1]

    return remembered


def default_rate_limit(settings: Settings) -> RateLimit:
    """What holds for an organization or key that has no ``rate_limit``."""
    return RateLimit(float(settings.rate_limit_rps), settings.rate_limit_burst)


def reservation_rule(settings: Settings) -> ReservationRule:
    """What a call holds of budgets that say nothing else."""
    return ReservationRule(
        mode=cast(Mode, settings.reservation),
        cap_nanos=settings.reservation_cap_nanos,
        cap_tokens=settings.reservation_cap_tokens,
        floor_nanos=settings.reservation_floor_nanos,
        floor_tokens=settings.reservation_floor_tokens,
        refuse_unknown_price=settings.unknown_price == "refuse",
    )


@by_identity
def _fixed_rate_specs(
    organization: Organization, key: KeyRecord, default: RateLimit, /
) -> RateSpecs | None:
    """The limits of a caller whose calls all have the same; ``None`` for any other."""
    owners = _owners(organization, [key], default)
    if organization.model_rate_limits or any(
        limit.tokens_per_minute is not None for _, _, limit in owners
    ):
        return None
    return _specs(owners, 0)


def _owners(
    organization: Organization, keys: Iterable[KeyRecord], default: RateLimit
) -> list[tuple[Owner, str, RateLimit]]:
    owners: list[tuple[Owner, str, RateLimit]] = [("org", "", organization.rate_limit or default)]
    owners += [("key", key.id, key.rate_limit or default) for key in keys]
    return owners


def rate_specs(
    organization: Organization,
    key: KeyRecord,
    model_id: str | None,
    *,
    default: RateLimit,
    tokens: int = 0,
) -> RateSpecs:
    """The limits of the organization, of the key, and of the organization for the model.

    ``tokens`` is charged to the limits per minute; 0 only checks whether they are in debt.
    """
    fixed = _fixed_rate_specs(organization, key, default)
    if fixed is not None:
        return fixed
    owners = _owners(organization, [key], default)
    if model_id is not None and model_id in organization.model_rate_limits:
        owners.append(("model", model_id, organization.model_rate_limits[model_id]))
    return _specs(owners, tokens)


def all_rate_specs(
    organization: Organization, keys: Iterable[KeyRecord], *, default: RateLimit, tokens: int = 0
) -> RateSpecs:
    """The limits of the organization, of these keys, and of all models that have their own."""
    owners = _owners(organization, keys, default)
    models = organization.model_rate_limits.items()
    return _specs([*owners, *[("model", model_id, limit) for model_id, limit in models]], tokens)


def _specs(owners: Iterable[tuple[Owner, str, RateLimit]], tokens: int) -> RateSpecs:
    buckets: list[BucketSpec] = []
    slots: list[SlotSpec] = []
    for owner, subject, limit in owners:
        bucket, slot = _fixed(owner, subject, limit)
        buckets += bucket
        slots += slot
        if limit.tokens_per_minute is not None:
            buckets.append(_tokens(owner, subject, limit.tokens_per_minute, limit.shadow, tokens))
    return RateSpecs(tuple(buckets), tuple(slots))


@by_identity
def window_specs(organization: Organization, key: KeyRecord | None, /) -> tuple[WindowSpec, ...]:
    """The budgets of the organization, then those of the key."""
    windows = _windows("org", "", organization.budgets)
    return windows if key is None else windows + _windows("key", key.id, key.budgets)


def reserved_amounts(
    organization: Organization,
    key: KeyRecord | None,
    rule: ReservationRule,
    *,
    most_nanos: Iterable[int | None],
    most_tokens: int,
) -> Amounts:
    """What a call reserves that uses at most so much, at whichever of its backends; ``None`` for
    one whose price is not known. Of budgets of one unit, the one that reserves most counts for all.

    Raises ``reservation_rule.PriceUnknown`` where there is a budget in USD.
    """
    cost_rules, token_rules = _rules(organization, key, rule)
    return Amounts(
        max([found.cost_nanos(most) for most in most_nanos for found in cost_rules]),
        max([found.tokens(most_tokens) for found in token_rules]),
    )


@by_identity
def needs_bound(organization: Organization, key: KeyRecord, rule: ReservationRule, /) -> bool:
    """Whether a budget counts on a call to use no more than its worst case."""
    return any(
        budget.unit != "requests"
        and budget.limit is not None
        and not budget.shadow
        and _rule(budget, rule).mode == "worst_case"
        for budget in organization.budgets + key.budgets
    )


@lru_cache(maxsize=_REMEMBERED)
def _fixed(
    owner: Owner, subject: str, limit: RateLimit
) -> tuple[tuple[BucketSpec, ...], tuple[SlotSpec, ...]]:
    """What is the same for every call."""
    parts = (subject,) if subject else ()
    enforced = not limit.shadow
    buckets: tuple[BucketSpec, ...] = ()
    slots: tuple[SlotSpec, ...] = ()
    if limit.requests_per_second is not None:
        rate, burst = limit.requests_per_second, limit.burst
        buckets = (BucketSpec(f"{owner}-requests", parts, rate, burst, enforced=enforced),)
    if limit.concurrent is not None:
        slots = (SlotSpec(f"{owner}-concurrent", parts, limit.concurrent, enforced),)
    return buckets, slots


@lru_cache(maxsize=_REMEMBERED)
def _tokens(owner: Owner, subject: str, per_minute: int, shadow: bool, cost: int) -> BucketSpec:
    parts = (subject,) if subject else ()
    rate = per_minute / _MINUTE_S
    return BucketSpec(
        f"{owner}-tokens", parts, rate, per_minute, cost, enforced=not shadow, leased=True
    )


@lru_cache(maxsize=_REMEMBERED)
def _windows(scope: Scope, subject: str, budgets: tuple[Budget, ...]) -> tuple[WindowSpec, ...]:
    return tuple(
        [
            WindowSpec(
                name=budget.name,
                unit=budget.unit,
                period=budget.period,
                limit=budget.limit,
                timezone=budget.timezone,
                scope=scope,
                subject=subject,
                thresholds=budget.thresholds,
                enforced=not budget.shadow,
            )
            for budget in budgets
        ]
    )


@by_identity
def _rules(
    organization: Organization, key: KeyRecord | None, rule: ReservationRule, /
) -> tuple[tuple[ReservationRule, ...], tuple[ReservationRule, ...]]:
    """The rules that budgets in USD, and those that budgets in tokens, ask for."""
    budgets = organization.budgets + (() if key is None else key.budgets)
    cost = {_rule(budget, rule) for budget in budgets if budget.unit == "usd"}
    tokens = {_rule(budget, rule) for budget in budgets if budget.unit == "tokens"}
    # Where nothing is counted in USD, nobody needs to know the price.
    return tuple(cost or {replace(rule, refuse_unknown_price=False)}), tuple(tokens or {rule})


def _rule(budget: Budget, rule: ReservationRule) -> ReservationRule:
    reservation = budget.reservation
    if budget.shadow:  # it refuses nothing, an unknown price neither
        rule = replace(rule, refuse_unknown_price=False)
    if reservation is None:
        return rule
    mode, cap = reservation.mode, reservation.cap
    if budget.unit == "usd":
        return replace(rule, mode=mode, cap_nanos=rule.cap_nanos if cap is None else cap)
    return replace(rule, mode=mode, cap_tokens=rule.cap_tokens if cap is None else cap)
