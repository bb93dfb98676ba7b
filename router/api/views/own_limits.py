"""The caller's rate limits and budgets, read from the enforcing counters."""

from __future__ import annotations

from typing import Any, Final

import orjson
from flask import Blueprint, Response

from router.api import pipeline
from router.api.endpoints import ENDPOINTS, Endpoint
from router.api.error_specs import shown_amount, shown_timestamp
from router.api.replies import json_reply
from router.api.scope import Scope, current_scope
from router.api.steps.rate_limiting import org_and_key
from router.breaker import Unavailable
from router.errors import BudgetUnavailable, InvalidRequest
from router.limits.budgets.windows import WindowState
from router.limits.configured import RateSpecs, all_rate_specs, window_specs
from router.limits.rates.decision import BucketSpec, LimitStatus, SlotSpec

blueprint: Final = Blueprint("limits", __name__)
blueprint.before_request(pipeline.enter)
ENDPOINTS["limits.limits"] = Endpoint(scope=None)


@blueprint.get("/v1/limits")
def limits() -> Response:
    """The caller's own limits; this call counts for them, too."""
    scope = current_scope()
    if scope.request.args:
        raise InvalidRequest("takes no parameters", field=next(iter(scope.request.args))[:64])
    organization, key = org_and_key(scope)
    limits = scope.services.limits
    specs = _all_specs(scope)
    decision = limits.rate_gate.peek(organization.id, specs.buckets, specs.slots)
    try:
        states = limits.read_windows(organization.id, window_specs(organization, key), key.id)
    except Unavailable:
        raise BudgetUnavailable from None
    rates = zip(_limited(specs), decision.statuses, strict=True)
    body = {
        "organization_id": organization.id,
        "api_key_id": key.id,
        "rate_limits": [_shown_rate(spec, status) for spec, status in rates],
        "budgets": [_shown_budget(state) for state in states],
        "is_shared": decision.source == "redis",
    }
    return json_reply(orjson.dumps(body))


def _all_specs(scope: Scope) -> RateSpecs:
    """The rate limits of organization and key, and of every model that has its own."""
    organization, key = org_and_key(scope)
    return all_rate_specs(organization, [key], default=scope.services.limits.default_rate)


def _limited(specs: RateSpecs) -> list[BucketSpec | SlotSpec]:
    """The limits of a decision, in its order."""
    limited: list[BucketSpec | SlotSpec] = []
    limited += [bucket for bucket in specs.buckets if bucket.rate_per_s is not None]
    limited += [slot for slot in specs.slots if slot.limit is not None]
    return limited


def _shown_rate(spec: BucketSpec | SlotSpec, status: LimitStatus) -> dict[str, Any]:
    scope = status.scope
    return {
        "name": status.name,
        "scope": scope,
        "model": spec.parts[0] if scope == "model" else None,
        "unit": status.unit,
        "limit": status.limit,
        "per_second": spec.rate_per_s if isinstance(spec, BucketSpec) else None,
        "remaining": status.remaining,
        "reset_after_s": status.reset_after_s,
        "enforced": status.enforced,
    }


def _shown_budget(state: WindowState) -> dict[str, Any]:
    window, unit = state.window, state.window.unit
    used = state.settled + state.reserved
    limit = window.limit
    return {
        "name": window.name,
        "scope": window.scope,
        "unit": unit,
        "period": window.period,
        "timezone": window.timezone,
        "limit": None if limit is None else shown_amount(limit, unit),
        "current_usage": shown_amount(used, unit),
        "settled": shown_amount(state.settled, unit),
        "reserved": shown_amount(state.reserved, unit),
        "remaining": None if limit is None else shown_amount(max(0, limit - used), unit),
        "resets_at": shown_timestamp(state.resets_at_s),
        "enforced": window.enforced,
    }
