"""The limits of one call, id and budgets included: taken before it is served, settled when it has
ended."""

from __future__ import annotations

import time
from typing import cast

import orjson

from router import errors
from router.api.scope import Scope
from router.api.steps.budget_changes import new_windows
from router.api.steps.call_usage import Ending, charged_amounts
from router.api.steps.denials import budget_denial
from router.api.steps.rate_limiting import (
    finish_rates,
    note_rates,
    org_and_key,
    organization_id_of,
    refuse_what_never_fits,
    specs_of,
    take_limits,
    take_rates_of_other,
)
from router.breaker import Unavailable
from router.call import Call
from router.limits.budgets.reservation_rule import PriceUnknown
from router.limits.budgets.windows import NOTHING, Amounts, Denied
from router.limits.configured import RateSpecs, needs_bound, reserved_amounts, window_specs
from router.limits.idempotency.entries import (
    Entry,
    InFlight,
    Mismatch,
    NotStored,
    Replay,
    fingerprint,
)
from router.limits.idempotency.nonces import NonceRefused
from router.limits.outcome import Admitted, Request
from router.limits.outcome import Outcome as LimitOutcome
from router.limits.rates.decision import RateDecision
from router.pricing.bounds import bound_of
from router.pricing.selection import unbounded_field
from router.telemetry.metrics import DecisionKind


def admit(scope: Scope) -> None:
    """Charge the rates where that was not done yet, claim the call's id and reserve what it may
    cost; or find the reply that it had before. Raises what refuses the call."""
    limits, admission = scope.limits, scope.services.limits.admission
    if scope.call is None and scope.unreadable is None:  # an endpoint that serves no calls
        _admit_other(scope)
        return
    try:
        if scope.unreadable is not None:
            raise scope.unreadable
        assert scope.call is not None
        request, entry = _request(scope, scope.call)
    except Exception:
        # A body that is no call counts for the rates like one.
        if limits.rate_decision is None:
            take_limits(scope, specs_of(scope))
        raise
    asks_more = bool(request.windows or entry or request.nonce or admission.uses_budget_service)
    specs = specs_of(scope) if limits.rate_decision is None else None
    if specs is not None:
        refuse_what_never_fits(scope, specs)
    rates: RateSpecs | RateDecision = specs or cast(RateDecision, limits.rate_decision)
    began_s = time.monotonic()
    outcome = admission.admit(rates, request, entry)
    if specs is not None or asks_more:
        kind: DecisionKind = "rate" if not asks_more else "budget" if specs is None else "joint"
        scope.services.metrics.count_decision(kind, time.monotonic() - began_s)
    if specs is not None:
        note_rates(scope, specs, outcome.rates)
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
        finish_rates(scope, used.tokens)
    wired.limits.audit_outbox.flush(wired.recorder)


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
    elif isinstance(result, NonceRefused):
        raise _nonce_refusal(result)
    elif request.nonce is not None:
        raise errors.SignatureNotProven
    else:
        has_budget = request.is_limited or scope.services.limits.admission.uses_budget_service
        raise errors.BudgetUnavailable if has_budget else errors.LimitsUnavailable


def _admit_other(scope: Scope) -> None:
    take_rates_of_other(scope)
    if scope.nonce is None:
        return
    try:
        refused = scope.services.limits.nonces.take(scope.nonce)
    except Unavailable:
        raise errors.SignatureNotProven from None
    if refused is not None:
        raise _nonce_refusal(refused)


def _nonce_refusal(refused: NonceRefused) -> errors.RouterError:
    if refused.reason == "replayed":
        return errors.SignatureInvalid("the nonce was used before", reason="replayed")
    if refused.reason == "over_quota":
        return errors.SignaturesExceeded(retry_after_s=refused.retry_after_s)
    return errors.SignatureNotProven()


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
    request = Request(
        organization.id,
        scope.record_id,
        windows,
        amounts,
        limits.lease_ms,
        key.id,
        nonce=scope.nonce,
    )
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
        return reserved_amounts(organization, key, rule, most_nanos=costs, most_tokens=bound.tokens)
    except PriceUnknown:
        raise errors.PriceUnknown(call.requested_model) from None


def _entry(scope: Scope, call: Call) -> Entry | None:
    if call.idempotency_id is None:
        return None
    body = call.body
    if body is None:  # translated: the same call may have been signed anew
        body = orjson.dumps([call.fields, call.metadata], option=orjson.OPT_SORT_KEYS)
    mark = fingerprint(scope.endpoint.encode(), body)
    return Entry(organization_id_of(scope), call.idempotency_id, mark, scope.record_id)
