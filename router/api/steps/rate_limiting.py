"""The rate limits of one call: charged once, corrected and given back when it has ended."""

from __future__ import annotations

import time

from router import errors
from router.api.bodies import is_at_hand
from router.api.endpoints import Endpoint
from router.api.scope import Scope
from router.api.steps.denials import rate_denial
from router.breaker import Unavailable
from router.call import Call
from router.config.document import KeyRecord, Model, Organization
from router.limits.configured import RateSpecs, rate_specs
from router.limits.rates.decision import (
    MAX_TOKENS,
    MICRO,
    RateDecision,
    bucket_status,
    corrections,
)
from router.pricing.bounds import bounded_output
from router.pricing.estimates import estimated_input
from router.pricing.token_counter import TokenCounter


def org_and_key(scope: Scope) -> tuple[Organization, KeyRecord]:
    """The caller's organization and key as the document has them."""
    assert scope.key is not None and scope.document is not None
    return scope.document.organizations[scope.key.organization_id], scope.key


def organization_id_of(scope: Scope) -> str:
    """Of a caller that is authenticated."""
    assert scope.key is not None
    return scope.key.organization_id


def take_rates(scope: Scope, endpoint: Endpoint) -> None:
    """Charge the rate limits of a caller whose body is not there yet; raises ``RateLimited`` or
    ``LimitsUnavailable``.

    Where a limit depends on the call, here it is only asked whether a request may pass, and the
    call is charged when it is known. A body that is short and there costs nothing to read: then
    ``limiting.admit`` takes the rates.
    """
    if endpoint.read is None or is_at_hand(scope.request.environ):
        return
    specs = specs_of(scope)
    if not _needs_call(scope) or not _may_pass(scope, specs):
        take_limits(scope, specs)


def _may_pass(scope: Scope, specs: RateSpecs) -> bool:
    gate = scope.services.limits.rate_gate
    return gate.peek(organization_id_of(scope), specs.buckets, specs.slots).allowed


def take_rates_of_other(scope: Scope) -> None:
    """Charge the rate limits for a request that is no call: nothing of it is to be corrected."""
    take_limits(scope, specs_of(scope))
    scope.limits.rate_specs = None


def _needs_call(scope: Scope) -> bool:
    """Whether a rate limit of the caller depends on what it asks, so that the body comes first."""
    organization, key = org_and_key(scope)
    default = scope.services.limits.default_rate
    return bool(organization.model_rate_limits) or any(
        limit.tokens_per_minute is not None or limit.concurrent is not None
        for limit in (organization.rate_limit or default, key.rate_limit or default)
    )


def refuse_what_never_fits(scope: Scope, specs: RateSpecs) -> None:
    """Raises ``TokensAboveLimit`` for a call that is larger than a limit of tokens; it counts as a
    request like one that is no call, and takes no tokens from anybody."""
    bucket = specs.too_small()
    if bucket is None:
        return
    take_limits(scope, specs.of_no_call())
    full = bucket_status(bucket, level_micro=bucket.burst * MICRO, passed=True)
    decision = scope.limits.rate_decision
    known = () if decision is None else decision.statuses
    status = next((each for each in known if each.name == bucket.name), full)
    scope.services.metrics.count_rate_denial(bucket.name)
    scope.limits.denial = rate_denial(status, scope.limits.tokens)
    raise errors.TokensAboveLimit(scope.limits.denial)


def take_limits(scope: Scope, specs: RateSpecs) -> None:
    """Charge these limits; raises ``RateLimited`` or ``LimitsUnavailable``."""
    wired = scope.services
    began_s = time.monotonic()
    try:
        decision = wired.limits.admission.take_rates(
            organization_id_of(scope), specs, scope.record_id
        )
    except Unavailable:
        raise errors.LimitsUnavailable from None
    wired.metrics.count_decision("rate", time.monotonic() - began_s)
    note_rates(scope, specs, decision)


def specs_of(scope: Scope) -> RateSpecs:
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


def note_rates(scope: Scope, specs: RateSpecs, decision: RateDecision | None) -> None:
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


def finish_rates(scope: Scope, tokens: int) -> None:
    """Correct what the limits of tokens were charged for a call that used ``tokens``, and give back
    its slots."""
    specs, decision = scope.limits.rate_specs, scope.limits.rate_decision
    if specs is None or decision is None or decision.source == "open":
        return
    wrong = corrections(specs.buckets, decision, tokens)
    if wrong or specs.slots:
        scope.services.limits.rate_gate.finish(
            organization_id_of(scope), wrong, specs.slots, lease_id=scope.record_id
        )


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
