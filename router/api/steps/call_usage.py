"""What the current call used, what that costs, and how it ended: for its record and its budgets.

``docs/records.md`` has the table of all endings. Once a call is recorded its charge is final, so
that the ledger books exactly what the record says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from router.api.scope import Charge, Scope
from router.call import NO_CLASSES, NO_USAGE, Call, Outcome, Usage
from router.config.document import Model
from router.limits.budgets.windows import MAX_AMOUNT, Amounts
from router.pricing.cost import cost_nanos, unpriced
from router.pricing.estimates import estimate, estimated_input
from router.pricing.selection import selected_tier
from router.store.tables.rows import SERVED


def call_usage(scope: Scope) -> tuple[Usage, int | None]:
    """Usage and cost in nano-USD that the call is charged, estimated where nothing was reported."""
    charge = scope.charge
    if charge is None:
        charge = _charge(scope)
    return charge.usage, charge.cost_nanos


def abandoned_charge(scope: Scope, backend_id: str) -> Charge:
    """What the call costs if the backend that it is sent to now does not answer."""
    call, document = scope.call, scope.document
    assert call is not None and document is not None
    return _abandoned(scope, call, document.models[call.model], backend_id)


def charge_of(scope: Scope, outcome: Outcome) -> tuple[Charge, Amounts]:
    """What a record with this outcome says that the call is charged; final once it is the charge of
    the scope."""
    usage, cost = call_usage(scope)
    return Charge(usage, cost, outcome), _amounts(scope, usage, cost, outcome)


def unpriced_classes(scope: Scope, usage: Usage) -> tuple[str, ...]:
    """The classes of ``usage`` for which the model has no price of its own."""
    if usage.special is NO_CLASSES and usage.service_tier is None:
        return ()
    if scope.call is None or scope.document is None or scope.limits.replay is not None:
        return ()
    if not scope.attempts:
        return ()
    backend_id = scope.attempts[-1].backend_id
    return unpriced(usage, scope.document.prices_of(scope.call.model, backend_id))


def is_over_reservation(scope: Scope, used: Amounts) -> bool:
    """Whether the call is charged more in one of its budgets than it had reserved there."""
    admitted = scope.limits.admitted
    if admitted is not None:
        for held in admitted.reservation.windows:
            if used.of(held.window.unit) > held.amount:
                return True
    return False


@dataclass(slots=True)
class Ending:
    """What has come of a call, once its response has closed."""

    ended_s: float
    """On the monotonic clock."""
    outcome: Outcome
    usage: Usage
    cost_nanos: int | None
    """``None`` for a model without a price, or where nothing is charged."""


def ending_of(scope: Scope, ended_s: float) -> Ending:
    """How the call has ended, and what it has used."""
    usage, cost = call_usage(scope)
    return Ending(ended_s, call_outcome(scope), usage, cost)


def charged_amounts(scope: Scope, ending: Ending) -> Amounts:
    """What the budgets are charged: what a rebuild from the record would find."""
    recorded = None if scope.charge is None else scope.charge.outcome
    return _amounts(scope, ending.usage, ending.cost_nanos, recorded or ending.outcome)


def _amounts(scope: Scope, usage: Usage, cost: int | None, outcome: Outcome) -> Amounts:
    served = bool(scope.attempts) and outcome in SERVED
    tokens = min(usage.tokens_input + usage.tokens_output, MAX_AMOUNT)
    return Amounts(cost or 0, tokens, int(served))


def call_outcome(scope: Scope) -> Outcome:
    """How the call has ended, as far as it has."""
    if scope.failed_outcome is not None:
        died = scope.failed_outcome == "upstream_error" and _broke_after_status(scope)
        return "upstream_aborted" if died else scope.failed_outcome
    stream = None if scope.backend_reply is None else scope.backend_reply.stream
    if stream is not None:
        return stream.outcome or "client_aborted"
    return "completed" if scope.handed_over else "client_aborted"


def _charge(scope: Scope) -> Charge:
    call = scope.call
    if scope.limits.replay is not None:
        return Charge(NO_USAGE, 0)
    if call is None or not scope.attempts:
        return Charge(NO_USAGE, None)
    assert scope.document is not None
    model = scope.document.models[call.model]
    usage = _known_usage(scope, call, model)
    if usage is not None:
        _note_selected_tier(call, model, usage)
        return Charge(usage, _cost(scope, call, usage, scope.attempts[-1].backend_id))
    last = scope.attempts[-1]
    if last.declined or not last.dispatched or _began_with_error(scope):
        return Charge(NO_USAGE, None)
    return _abandoned(scope, call, model, last.backend_id)


def _known_usage(scope: Scope, call: Call, model: Model) -> Usage | None:
    """What the backend reported, or an estimate of what it delivered; ``None`` where it has done
    neither."""
    reply = scope.backend_reply
    if reply is None:
        return None
    stream, counter = reply.stream, scope.services.token_counter
    if stream is None:
        return reply.usage or estimate(
            call, model, reply.output_bytes, reply.usage_at_start, counter
        )
    if stream.usage is not None:
        return stream.usage
    if stream.output_bytes or stream.usage_at_start is not None or stream.is_complete:
        return estimate(call, model, stream.output_bytes, stream.usage_at_start, counter)
    return None


def _began_with_error(scope: Scope) -> bool:
    """The backend has streamed an error and nothing before it."""
    stream = None if scope.backend_reply is None else scope.backend_reply.stream
    return stream is not None and stream.fault == "error event in stream"


def _abandoned(scope: Scope, call: Call, model: Model, backend_id: str) -> Charge:
    """The charge of work that was dispatched and of which nothing has come back."""
    policy, reserved = scope.services.settings.abandoned, scope.limits.amounts
    if policy == "free":
        return Charge(NO_USAGE, None)
    usage = scope.input_estimate
    if usage is None:
        tokens_input = estimated_input(call, model, scope.services.token_counter)
        usage = scope.input_estimate = Usage(tokens_input, 0, source="estimated")
    _note_selected_tier(call, model, usage)
    if policy == "estimate" or reserved is None:
        return Charge(usage, _cost(scope, call, usage, backend_id))
    output = max(0, reserved.tokens - usage.tokens_input)
    return Charge(replace(usage, tokens_output=output), reserved.cost_nanos)


def _note_selected_tier(call: Call, model: Model, usage: Usage) -> None:
    """What the client selected counts, unless the backend says at which service tier it served:
    it may have fallen back to the standard one."""
    selected = selected_tier(call.fields) if model.allow else None
    said = usage.at_standard_tier or usage.service_tier is not None
    if selected is not None and not (said and selected == call.fields.get("service_tier")):
        usage.service_tier = selected


def _cost(scope: Scope, call: Call, usage: Usage, backend_id: str) -> int | None:
    """The price of usage; of a model without a price the floor, where a budget in USD counts it."""
    assert scope.document is not None
    prices = scope.document.prices_of(call.model, backend_id)
    cost = cost_nanos(usage, prices)
    if cost is None:
        return scope.services.limits.reservation_rule.floor_nanos if _counts_usd(scope) else None
    return min(cost, MAX_AMOUNT)


def _counts_usd(scope: Scope) -> bool:
    """Whether a budget in USD counts this call."""
    admitted = scope.limits.admitted
    if admitted is None:
        return False
    return scope.services.limits.admission.uses_budget_service or any(
        reserved.window.unit == "usd" for reserved in admitted.reservation.windows
    )


def _broke_after_status(scope: Scope) -> bool:
    """The backend had begun a good answer and did not finish it."""
    return bool(scope.attempts) and scope.attempts[-1].status == 200
