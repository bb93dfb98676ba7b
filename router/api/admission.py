"""Limits of one call: taken before it is served, settled when it has ended."""

from __future__ import annotations

import time
from functools import lru_cache
from math import ceil
from typing import Final, Literal, cast

import orjson
from flask import Response

from router import errors
from router.api.scope import LimitContext, Scope
from router.call import Call, Outcome, Usage
from router.config.document import KeyRecord, Organization
from router.errors import Denial
from router.limits.admission import Request
from router.limits.budgets.gate import Admitted, GateOutcome
from router.limits.budgets.reservation_rule import PriceUnknown
from router.limits.budgets.windows import (
    MAX_AMOUNT,
    NOTHING,
    Amounts,
    Denied,
    Reservation,
    WindowState,
)
from router.limits.configured import RateSpecs, rate_specs, reserved_amounts, window_specs
from router.limits.idempotency.entries import (
    Entry,
    InFlight,
    Mismatch,
    NotStored,
    Replay,
    fingerprint,
)
from router.limits.rates.decision import MAX_TOKENS, Correction, LimitStatus, RateDecision
from router.pricing.cost import estimate
from router.store.sql_queries import SERVED

_UNITS: Final = {"concurrent": "concurrent-requests", "tokens": "tokens"}

LimitScope = Literal["org", "key", "model"]
LimitUnit = Literal["usd", "tokens", "requests", "concurrent"]


def org_and_key(scope: Scope) -> tuple[Organization, KeyRecord]:
    """The caller's organization and key as the document has them."""
    assert scope.key is not None and scope.document is not None
    return scope.document.organizations[scope.key.organization_id], scope.key


def needs_call(scope: Scope) -> bool:
    """Whether a rate limit of the caller depends on what it asks, so that the body comes first."""
    organization, key = org_and_key(scope)
    default = scope.services.enforcement.default_rate
    return bool(organization.model_rate_limits) or any(
        limit.tokens_per_minute is not None or limit.concurrent is not None
        for limit in (organization.rate_limit or default, key.rate_limit or default)
    )


def take_rates(scope: Scope) -> None:
    """Charge the caller's rate limits, before anything is known of the call, or although it is no
    good."""
    specs = _rate_specs(scope)
    wired = scope.services
    began_s = time.monotonic()
    decision = wired.enforcement.take(_organization_id(scope), specs, scope.record_id)
    wired.metrics.count_decision("rate", time.monotonic() - began_s)
    _decided(scope, specs, decision)


def reserve(scope: Scope) -> None:
    """Claim the call's id and reserve what it may cost; or find the reply that it had before.

    Where they were not charged yet, the rate limits are asked first, in the same exchange.
    """
    limits, wired = scope.limits, scope.services
    is_rated = limits.decision is not None
    try:
        request, entry = _asked(scope)
    except Exception:
        if not is_rated:
            take_rates(scope)  # whatever is wrong with it, it was a call
        raise
    if not (request.windows or entry or wired.enforcement.asks_always):
        if not is_rated:
            take_rates(scope)
        limits.admitted = Admitted(Reservation(request.lease_id, request.organization_id, ()), None)
        return
    began_s = time.monotonic()
    try:
        if is_rated:
            outcome = wired.enforcement.admit(
                request, entry, is_unavailable=_waited_in_vain(limits)
            )
        else:
            specs = _rate_specs(scope)
            outcome = wired.enforcement.enter(
                request.organization_id,
                specs,
                request,
                entry,
                decided=lambda decision: _decided(scope, specs, decision),
            )
    finally:
        wired.metrics.count_decision("budget" if is_rated else "joint", time.monotonic() - began_s)
    _conclude(scope, outcome)


def _rate_specs(scope: Scope) -> RateSpecs:
    """The caller's rate limits, those of its call too when that is known already."""
    organization, key = org_and_key(scope)
    call, limits = scope.call, scope.limits
    if call is not None:
        limits.tokens = _tokens_asked(call, organization, key)
    specs = rate_specs(
        organization,
        key,
        None if call is None else call.model,
        default=scope.services.enforcement.default_rate,
        tokens=limits.tokens,
    )
    # What holds a slot is a call that runs.
    return specs if call is not None or not specs.slots else RateSpecs(specs.buckets, ())


def _decided(scope: Scope, specs: RateSpecs, decision: RateDecision) -> None:
    """Note what the rate limits say; raises ``RateLimited``."""
    limits, metrics = scope.limits, scope.services.metrics
    limits.decision = decision
    limits.shadow_denied += [status.name for status in decision.shadow_denied]
    for _ in decision.shadow_denied:
        metrics.count_shadow_denial("rate_limit")
    if decision.allowed:
        limits.rates = specs
        return
    assert decision.binding is not None
    metrics.count_rate_denial(decision.binding.name)
    limits.denial = _rate_denial(decision.binding, limits.tokens)
    raise errors.RateLimited(limits.denial)


def _asked(scope: Scope) -> tuple[Request, Entry | None]:
    """What the budgets are asked, and the call's id; raises ``PriceUnknown``."""
    organization, key = org_and_key(scope)
    call, enforcement = scope.call, scope.services.enforcement
    assert call is not None
    windows = window_specs(organization, key)
    amounts = NOTHING
    if windows or enforcement.asks_always:
        amounts = scope.limits.amounts = _amounts(scope, call)
    asked = Request(
        organization.id, scope.record_id, windows, amounts, enforcement.lease_ms, key.id
    )
    return asked, _entry(scope, call)


def _conclude(scope: Scope, outcome: GateOutcome) -> None:
    """Note what the budgets and the id say; raises what refuses the call."""
    metrics = scope.services.metrics
    if isinstance(outcome, Admitted):
        _admitted(scope, outcome)
    elif isinstance(outcome, Denied):
        raise _budget_refusal(scope, outcome)
    elif isinstance(outcome, Replay):
        metrics.count_idempotency("replayed")
        scope.limits.replay = outcome.reply
    elif isinstance(outcome, InFlight):
        metrics.count_idempotency("in_progress")
        raise errors.InProgress
    elif isinstance(outcome, Mismatch):
        metrics.count_idempotency("mismatch")
        raise errors.IdempotencyMismatch
    else:
        metrics.count_idempotency("not_kept")
        raise errors.ReplyNotStored


def _waited_in_vain(limits: LimitContext) -> bool:
    """Redis gave no answer about the rate limits of this very call."""
    return limits.decision is not None and limits.decision.source != "redis"


def stored_reply(backend_id: str, decision: str, body: bytes) -> bytes:
    """A whole reply as it is kept for duplicates."""
    return f"{backend_id}\n{decision}\n".encode() + body


def read_stored(reply: bytes) -> tuple[str, str, bytes]:
    """Backend, decision and body of a reply that was kept."""
    backend_id, decision, body = reply.split(b"\n", 2)
    return backend_id.decode(), decision.decode(), body


def settle_limits(scope: Scope, usage: Usage, cost: int | None, outcome: Outcome) -> None:
    """Charge what the call used and give back what it held; after its record is written."""
    limits, enforcement = scope.limits, scope.services.enforcement
    used = _used(scope, usage, cost, outcome)
    admitted = limits.admitted
    if admitted is not None:
        reply: bytes | NotStored | None = limits.kept
        if reply is None and outcome == "completed":
            reply = NotStored()
        enforcement.settle(admitted, used, reply if admitted.entry is not None else None)
        scope.services.metrics.count_settled(used.cost_nanos if admitted.reservation.windows else 0)
    specs, decision = limits.rates, limits.decision
    if specs is None or decision is None or decision.source == "open":
        return
    corrections = _corrections(scope, decision, used.tokens)
    if corrections or specs.slots:
        enforcement.finish(_organization_id(scope), corrections, specs, scope.record_id)
    enforcement.audit_outbox.tell(scope.services.recorder)


def add_rate_headers(response: Response, decision: RateDecision) -> None:
    """``RateLimit-Policy`` and ``RateLimit`` of draft-ietf-httpapi-ratelimit-headers-10."""
    shown = [status for status in decision.statuses if status.enforced]
    if not shown:
        return
    policies = [_policy(status.name, status.limit, status.window_s) for status in shown]
    states = [f'"{status.name}";r={status.remaining};t={status.reset_after_s}' for status in shown]
    response.headers.add("RateLimit-Policy", ", ".join(policies))
    response.headers.add("RateLimit", ", ".join(states))


def limit_scope(status: LimitStatus) -> LimitScope:
    """Whose limit it is."""
    return _parts(status.name)[0]


def limit_unit(status: LimitStatus) -> LimitUnit:
    """What it counts."""
    return _parts(status.name)[1]


@lru_cache(maxsize=64)
def _parts(name: str) -> tuple[LimitScope, LimitUnit]:
    scope, _, unit = name.partition("-")
    return cast(LimitScope, scope), cast(LimitUnit, unit)


@lru_cache(maxsize=1024)
def _policy(name: str, limit: int, window_s: int | None) -> str:
    unit = _UNITS.get(name.partition("-")[2])
    window = "" if window_s is None else f";w={window_s}"
    return f'"{name}";q={limit}{window}' + (f';qu="{unit}"' if unit else "")


def _rate_denial(status: LimitStatus, tokens: int) -> Denial:
    unit = limit_unit(status)
    return Denial(
        limit_type="rate_limit",
        name=status.name,
        scope=limit_scope(status),
        unit=unit,
        limit=status.limit,
        usage=max(0, status.limit - status.remaining),
        this_request=tokens if unit == "tokens" else 1,
        retry_after_s=status.retry_after_s,
    )


def _tokens_asked(call: Call, organization: Organization, key: KeyRecord) -> int:
    """Estimated input, and output as far as the client bounds it; the rest is charged later."""
    limits = (
        organization.rate_limit,
        key.rate_limit,
        organization.model_rate_limits.get(call.model),
    )
    if not any(limit is not None and limit.tokens_per_minute is not None for limit in limits):
        return 0
    return min(estimate(call.fields, 0).tokens_input + (_bounded_output(call) or 0), MAX_TOKENS)


def _bounded_output(call: Call) -> int | None:
    """Tokens of output that the client asks for at most."""
    if call.operation == "embeddings":
        return 0
    bounds = [call.fields.get("max_tokens")]
    if call.operation == "chat":  # a backend may heed either
        bounds.append(call.fields.get("max_completion_tokens"))
    given = [int(bound) for bound in bounds if bound is not None]
    return max(given) * _choices(call) if given else None


def _choices(call: Call) -> int:
    """How many texts are generated."""
    prompts = call.fields.get("prompt")
    texts = 1
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        texts = len(prompts)
    best_of = call.fields.get("best_of")
    each = max(call.fields.get("n") or 1, best_of if isinstance(best_of, int) else 1)
    return int(each) * texts


def _amounts(scope: Scope, call: Call) -> Amounts:
    organization, key = org_and_key(scope)
    assert scope.document is not None
    model = scope.document.models[call.model]
    most = _bounded_output(call)
    if most is None:
        most = model.max_output_tokens * _choices(call)
    try:
        return reserved_amounts(
            organization,
            key,
            scope.services.enforcement.rule,
            model.prices,
            tokens_input=estimate(call.fields, 0).tokens_input,
            max_output=most,
        )
    except PriceUnknown:
        raise errors.PriceUnknown(call.requested_model) from None


def _entry(scope: Scope, call: Call) -> Entry | None:
    if call.idempotency_id is None:
        return None
    body = call.body
    if body is None:  # translated: the same call may have been signed anew
        body = orjson.dumps([call.fields, call.metadata], option=orjson.OPT_SORT_KEYS)
    mark = fingerprint(scope.endpoint.encode(), body)
    return Entry(_organization_id(scope), call.idempotency_id, mark, scope.record_id)


def _admitted(scope: Scope, admitted: Admitted) -> None:
    limits, metrics = scope.limits, scope.services.metrics
    limits.admitted = admitted
    if admitted.unprotected:
        metrics.count_idempotency("unprotected")
    for state in admitted.reservation.shadow_denied:
        limits.shadow_denied.append(state.window.id)
        metrics.count_shadow_denial("budget" if state.window.unit == "usd" else "quota")


def _budget_refusal(scope: Scope, denied: Denied) -> errors.RouterError:
    state, metrics = denied.binding, scope.services.metrics
    window = state.window
    scope.limits.denial = denial = _budget_denial(scope, state, denied.this_request)
    if window.unit == "usd":
        metrics.count_budget_denial(window.scope, window.period)
        return errors.BudgetExceeded(denial)
    metrics.count_quota_denial(window.scope, window.unit, window.period)
    return errors.QuotaExceeded(denial)


def _budget_denial(scope: Scope, state: WindowState, this_request: int) -> Denial:
    window, limit = state.window, state.window.limit or 0
    wait_s = None
    if state.resets_at_s is not None and this_request <= limit:
        wait_s = max(1, ceil(state.resets_at_s - scope.services.clock.now_s()))
    return Denial(
        limit_type="budget" if window.unit == "usd" else "quota",
        name=window.name,
        scope=window.scope,
        unit=window.unit,
        limit=limit,
        usage=state.settled + state.reserved,
        this_request=this_request,
        retry_after_s=wait_s,
        period=window.period,
        settled=state.settled,
        reserved=state.reserved,
        resets_at_s=state.resets_at_s,
    )


def _used(scope: Scope, usage: Usage, cost: int | None, outcome: Outcome) -> Amounts:
    """What is charged; the same that the records say when a budget is rebuilt from them."""
    served = int(bool(scope.attempts) and outcome in SERVED)
    if scope.backend_reply is None:
        return Amounts(0, 0, served)
    if cost is None:
        cost = scope.services.enforcement.rule.floor_nanos
    return Amounts(_within(cost), _within(usage.tokens_input + usage.tokens_output), served)


def _within(amount: int) -> int:
    """A backend may report anything."""
    return max(0, min(amount, MAX_AMOUNT))


def _corrections(scope: Scope, decision: RateDecision, tokens: int) -> list[Correction]:
    """By how much the buckets of tokens were charged wrongly."""
    specs = scope.limits.rates
    assert specs is not None
    tokens = min(tokens, MAX_TOKENS)
    limited = [bucket for bucket in specs.buckets if bucket.rate_per_s is not None]
    return [
        Correction(bucket, tokens - (bucket.cost if status.passed else 0))
        for bucket, status in zip(limited, decision.statuses, strict=False)
        if limit_unit(status) == "tokens"
    ]


def _organization_id(scope: Scope) -> str:
    assert scope.key is not None
    return scope.key.organization_id
