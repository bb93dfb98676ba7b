"""The limits of one call: taken before it is served, settled when it has ended."""

from __future__ import annotations

import time
from typing import cast

import orjson

from router import errors
from router.api.bodies import is_at_hand
from router.api.endpoints import Endpoint
from router.api.scope import Scope
from router.api.steps.budget_changes import new_windows
from router.api.steps.call_usage import Ending, charged_amounts
from router.api.steps.denials import budget_denial, rate_denial
from router.breaker import Unavailable
from router.call import Call
from router.config.document import KeyRecord, Model, Organization
from router.limits.budgets.reservation_rule import PriceUnknown
from router.limits.budgets.windows import NOTHING, Amounts, Denied
from router.limits.configured import (
    RateSpecs,
    needs_bound,
    rate_specs,
    reserved_amounts,
    window_specs,
)
from router.limits.idempotency.entries import (
    Entry,
    InFlight,
    Mismatch,
    NotStored,
    Replay,
    fingerprint,
)
from router.limits.outcome import Admitted, Request
from router.limits.outcome import Outcome as LimitOutcome
from router.limits.rates.decision import (
    MAX_TOKENS,
    MICRO,
    RateDecision,
    bucket_status,
    corrections,
)
from router.pricing.bounds import bound_of, bounded_output
from router.pricing.estimates import estimated_input
from router.pricing.selection import unbounded_field
from router.pricing.token_counter import TokenCounter
from router.telemetry.metrics import DecisionKind


def org_and_key(scope: Scope) -> tuple[Organization, KeyRecord]:
    """The caller's organization and key as the document has them."""
    assert scope.key is not None and scope.document is not None
    return scope.document.organizations[scope.key.organization_id], scope.key


def take_rates(scope: Scope, endpoint: Endpoint) -> None:
    """Charge the rate limits of a caller whose body is not there yet; raises ``RateLimited`` or
    ``LimitsUnavailable``.

    Where a limit depends on the call, the body comes first. A body that is short and there costs
    nothing to read: then :func:`admit` takes the rates.
    """
    if endpoint.read is None or _needs_call(scope) or is_at_hand(scope.request.environ):
        return
    _take_rates(scope, _rate_specs(scope))


def admit(scope: Scope) -> None:
    """Charge the rates where that was not done yet, claim the call's id and reserve what it may
    cost; or find the reply that it had before. Raises what refuses the call."""
    limits, admission = scope.limits, scope.services.limits.admission
    try:
        if scope.unreadable is not None:
            raise scope.unreadable
        if scope.call is None:
            return  # an endpoint that serves no calls
        request, entry = _request(scope, scope.call)
    except Exception:
        # A body that is no call counts for the rates like one.
        if limits.rate_decision is None:
            _take_rates(scope, _rate_specs(scope))
        raise
    asks_more = bool(request.windows or entry or admission.uses_budget_service)
    specs = _rate_specs(scope) if limits.rate_decision is None else None
    if specs is not None:
        _refuse_what_never_fits(scope, specs)
    rates: RateSpecs | RateDecision = specs or cast(RateDecision, limits.rate_decision)
    began_s = time.monotonic()
    outcome = admission.admit(rates, request, entry)
    if specs is not None or asks_more:
        kind: DecisionKind = "rate" if not asks_more else "budget" if specs is None else "joint"
        scope.services.metrics.count_decision(kind, time.monotonic() - began_s)
    if specs is not None:
        _note_rates(scope, specs, outcome.rates)
    _note_result(scope, request, outcome)


def settle_limits(scope: Scope, ending: Ending) -> None:
    """Charge what the call used and give back what it reserved, once; after its record is
    written."""
    limits, wired = scope.limits, scope.services
    if limits.settled:
        return
    limits.settled = True  # first: a greenlet that is killed meanwhile has queued what it owes
    used = charged_amounts(scope, ending)
    admitted = limits.admitted
    try:
        if admitted is not None:
            reply: bytes | NotStored | None = limits.stored_reply
            if reply is None and ending.outcome == "completed":
                reply = NotStored()
            wired.limits.admission.settle(
                admitted,
                used,
                reply if admitted.entry is not None else None,
                new_windows=new_windows(scope, admitted.reservation),
            )
            wired.recorder.open_calls.settled(scope.record_id)
            wired.metrics.count_settled(used.cost_nanos if admitted.reservation.windows else 0)
    finally:  # a greenlet that is killed while it settles holds slots and estimates, too
        _finish_rates(scope, used.tokens)
    wired.limits.audit_outbox.flush(wired.recorder)


def _finish_rates(scope: Scope, tokens: int) -> None:
    """Correct what the limits of tokens were charged for a call that used ``tokens``, and give back
    its slots."""
    specs, decision = scope.limits.rate_specs, scope.limits.rate_decision
    if specs is None or decision is None or decision.source == "open":
        return
    wrong = corrections(specs.buckets, decision, tokens)
    if wrong or specs.slots:
        scope.services.limits.rate_gate.finish(
            _organization_id(scope), wrong, specs.slots, lease_id=scope.record_id
        )


def _needs_call(scope: Scope) -> bool:
    """Whether a rate limit of the caller depends on what it asks, so that the body comes first."""
    organization, key = org_and_key(scope)
    default = scope.services.limits.default_rate
    return bool(organization.model_rate_limits) or any(
        limit.tokens_per_minute is not None or limit.concurrent is not None
        for limit in (organization.rate_limit or default, key.rate_limit or default)
    )


def _refuse_what_never_fits(scope: Scope, specs: RateSpecs) -> None:
    """Raises ``TokensAboveLimit`` for a call that is larger than a limit of tokens; it counts as a
    request like one that is no call, and takes no tokens from anybody."""
    bucket = specs.too_small()
    if bucket is None:
        return
    _take_rates(scope, specs.of_no_call())
    full = bucket_status(bucket, level_micro=bucket.burst * MICRO, passed=True)
    decision = scope.limits.rate_decision
    known = () if decision is None else decision.statuses
    status = next((each for each in known if each.name == bucket.name), full)
    scope.services.metrics.count_rate_denial(bucket.name)
    scope.limits.denial = rate_denial(status, scope.limits.tokens)
    raise errors.TokensAboveLimit(scope.limits.denial)


def _take_rates(scope: Scope, specs: RateSpecs) -> None:
    wired = scope.services
    began_s = time.monotonic()
    try:
        decision = wired.limits.admission.take_rates(
            _organization_id(scope), specs, scope.record_id
        )
    except Unavailable:
        raise errors.LimitsUnavailable from None
    wired.metrics.count_decision("rate", time.monotonic() - began_s)
    _note_rates(scope, specs, decision)


def _rate_specs(scope: Scope) -> RateSpecs:
    """The caller's rate limits, those of its call too when that is known already."""
    organization, key = org_and_key(scope)
    call, limits = scope.call, scope.limits
    if call is not None:
        assert scope.document is not None
        model = scope.document.models[call.model]
        counter = scope.services.token_counter
        limits.tokens = _estimated_tokens(call, model, organization, key, counter)
    specs = rate_specs(
        organization,
        key,
        None if call is None else call.model,
        default=scope.services.limits.default_rate,
        tokens=limits.tokens,
    )
    # Only a call that runs holds a slot.
    return specs if call is not None or not specs.slots else RateSpecs(specs.buckets, ())


def _note_rates(scope: Scope, specs: RateSpecs, decision: RateDecision | None) -> None:
    """Note what the rate limits say; raises ``RateLimited`` or ``LimitsUnavailable``."""
    if decision is None:
        raise errors.LimitsUnavailable
    limits, metrics = scope.limits, scope.services.metrics
    limits.rate_decision = decision
    limits.shadow_denied += [status.name for status in decision.shadow_denied]
    for _ in decision.shadow_denied:
        metrics.count_shadow_denial("rate_limit")
    if decision.allowed:
        limits.rate_specs = specs
        return
    assert decision.binding is not None
    metrics.count_rate_denial(decision.binding.name)
    limits.denial = rate_denial(decision.binding, limits.tokens)
    raise errors.RateLimited(limits.denial)


def _note_result(scope: Scope, request: Request, outcome: LimitOutcome) -> None:
    """Note what the budgets and the id say; raises what refuses the call."""
    metrics, result = scope.services.metrics, outcome.result
    if isinstance(result, Admitted):
        _note_admitted(scope, result)
    elif isinstance(result, Denied):
        raise _budget_refusal(scope, result)
    elif isinstance(result, Replay):
        metrics.count_idempotency("replayed")
        scope.limits.replay = result.reply
    elif isinstance(result, InFlight):
        metrics.count_idempotency("in_progress")
        raise errors.InProgress
    elif isinstance(result, Mismatch):
        metrics.count_idempotency("mismatch")
        raise errors.IdempotencyMismatch
    elif isinstance(result, NotStored):
        metrics.count_idempotency("not_kept")
        raise errors.ReplyNotStored
    else:
        has_budget = request.is_limited or scope.services.limits.admission.uses_budget_service
        raise errors.BudgetUnavailable if has_budget else errors.LimitsUnavailable


def _note_admitted(scope: Scope, admitted: Admitted) -> None:
    limits, metrics = scope.limits, scope.services.metrics
    limits.admitted = admitted
    if admitted.unprotected:
        metrics.count_idempotency("unprotected")
    for state in admitted.reservation.shadow_denied:
        limits.shadow_denied.append(state.window.id)
        metrics.count_shadow_denial("budget" if state.window.unit == "usd" else "quota")


def _budget_refusal(scope: Scope, denied: Denied) -> errors.RouterError:
    window, metrics = denied.binding.window, scope.services.metrics
    denial = budget_denial(denied, now_s=scope.services.clock.now_s())
    scope.limits.denial = denial
    if window.unit == "usd":
        metrics.count_budget_denial(window.scope, window.period)
        return errors.BudgetExceeded(denial)
    metrics.count_quota_denial(window.scope, window.unit, window.period)
    return errors.QuotaExceeded(denial)


def _request(scope: Scope, call: Call) -> tuple[Request, Entry | None]:
    """What the call wants to reserve, and its id; raises ``PriceUnknown``."""
    organization, key = org_and_key(scope)
    limits = scope.services.limits
    windows = window_specs(organization, key)
    amounts = NOTHING
    if windows or limits.admission.uses_budget_service:
        amounts = scope.limits.amounts = _amounts(scope, call)
    request = Request(organization.id, scope.record_id, windows, amounts, limits.lease_ms, key.id)
    return request, _entry(scope, call)


def _amounts(scope: Scope, call: Call) -> Amounts:
    """The most that the call can use; where a budget relies on it, the backend is held to it."""
    organization, key = org_and_key(scope)
    limits, document = scope.services.limits, scope.document
    assert document is not None
    model, rule = document.models[call.model], limits.reservation_rule
    is_remote = limits.admission.uses_budget_service and rule.mode == "worst_case"
    if is_remote or needs_bound(organization, key, rule):
        field = unbounded_field(call.fields)
        if field is not None:
            raise errors.InvalidRequest("what this may use has no bound", field=field)
        call.output_limit = model.max_output_tokens
    bound = bound_of(call, model)
    prices = document.prices_for(organization.id, model.id)
    costs = [None if found is None else bound.cost_nanos(found) for found in prices]
    try:
        amounts = [
            reserved_amounts(organization, key, rule, most_nanos=cost, most_tokens=bound.tokens)
            for cost in costs
        ]
    except PriceUnknown:
        raise errors.PriceUnknown(call.requested_model) from None
    return max(amounts, key=lambda found: found.cost_nanos)


def _entry(scope: Scope, call: Call) -> Entry | None:
    if call.idempotency_id is None:
        return None
    body = call.body
    if body is None:  # translated: the same call may have been signed anew
        body = orjson.dumps([call.fields, call.metadata], option=orjson.OPT_SORT_KEYS)
    mark = fingerprint(scope.endpoint.encode(), body)
    return Entry(_organization_id(scope), call.idempotency_id, mark, scope.record_id)


def _estimated_tokens(
    call: Call,
    model: Model,
    organization: Organization,
    key: KeyRecord,
    counter: TokenCounter | None,
) -> int:
    """Estimated input, and output as far as the client bounds it; the rest is charged later."""
    limits = (
        organization.rate_limit,
        key.rate_limit,
        organization.model_rate_limits.get(call.model),
    )
    if not any(limit is not None and limit.tokens_per_minute is not None for limit in limits):
        return 0
    return min(estimated_input(call, model, counter) + (bounded_output(call) or 0), MAX_TOKENS)


def _organization_id(scope: Scope) -> str:
    assert scope.key is not None
    return scope.key.organization_id
