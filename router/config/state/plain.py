"""Frozen parts → plain data: what ``export`` writes, ``state/`` keeps and a diff compares.

``load_plain(to_plain(document)) == document``; secrets cannot leak here, for none are held.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import yaml

from router.config.document import (
    Backend,
    Budget,
    BudgetUnit,
    KeyRecord,
    Model,
    Organization,
    Policy,
    Prices,
    RateLimit,
)
from router.config.loader import LoadedDocument
from router.config.parsing import BOOL_SHAPE, FLOAT_SHAPE, INT_SHAPE, NULL_SHAPE
from router.config.schema.fields import format_moment, format_price
from router.config.schema.parts import VERSION


def to_plain(document: LoadedDocument) -> dict[str, Any]:
    """All of a document, every default written out."""
    return {
        "version": VERSION,
        "organizations": [plain_organization(part) for part in document.organizations],
        "keys": plain_keys(document.keys),
        "models": [plain_model(part) for part in document.models],
        "backends": [plain_backend(part) for part in document.backends],
        "policies": [plain_policy(part) for part in document.policies],
    }


def plain_keys(keys: Iterable[KeyRecord]) -> list[dict[str, Any]]:
    """Keys in the shape of the document's ``keys`` section."""
    return [plain_key(key) for key in keys]


def plain_organization(organization: Organization) -> dict[str, Any]:
    """One entry of ``organizations``."""
    per_model = organization.model_rate_limits
    return {
        "id": organization.id,
        "name": organization.name,
        "active": organization.active,
        "rate_limit": plain_rate_limit(organization.rate_limit),
        "model_rate_limits": {
            name: plain_rate_limit(per_model[name]) for name in sorted(per_model)
        },
        "budgets": [plain_budget(budget) for budget in organization.budgets],
    }


def plain_key(key: KeyRecord) -> dict[str, Any]:
    """One entry of ``keys``; a demo key keeps its mark, so that it never works in earnest."""
    return {
        "id": key.id,
        "organization": key.organization_id,
        "hash": key.hash,
        "name": key.name,
        "status": key.status,
        "expires_at": None if key.expires_at_s is None else format_moment(key.expires_at_s),
        "scopes": sorted(key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "require_signature": key.require_signature,
        **({"demo": True} if key.demo else {}),
        "rate_limit": plain_rate_limit(key.rate_limit),
        "budgets": [plain_budget(budget) for budget in key.budgets],
    }


def plain_rate_limit(rate_limit: RateLimit | None) -> dict[str, Any] | None:
    """A ``rate_limit``."""
    if rate_limit is None:
        return None
    rate = rate_limit.requests_per_second
    return {
        "requests_per_second": int(rate) if rate is not None and rate.is_integer() else rate,
        "burst": rate_limit.burst,
        "tokens_per_minute": rate_limit.tokens_per_minute,
        "concurrent": rate_limit.concurrent,
        "shadow": rate_limit.shadow,
    }


def plain_budget(budget: Budget) -> dict[str, Any]:
    """One entry of ``budgets``."""
    held = budget.reservation
    return {
        "name": budget.name,
        "unit": budget.unit,
        "period": budget.period,
        "limit": _amount(budget.unit, budget.limit),
        "timezone": budget.timezone,
        "thresholds": list(budget.thresholds),
        "shadow": budget.shadow,
        "reservation": held and {"mode": held.mode, "cap": _amount(budget.unit, held.cap)},
    }


def _amount(unit: BudgetUnit, amount: int | None) -> str | int | None:
    return amount if amount is None or unit != "usd" else format_price(amount)


def plain_model(model: Model) -> dict[str, Any]:
    """One entry of ``models``."""
    return {
        "id": model.id,
        "aliases": list(model.aliases),
        "prices": None if model.prices is None else _prices(model.prices),
        "max_output_tokens": model.max_output_tokens,
    }


def plain_backend(backend: Backend) -> dict[str, Any]:
    """One entry of ``backends``."""
    timeouts = backend.timeouts
    return {
        "id": backend.id,
        "kind": backend.kind,
        "base_url": backend.base_url,
        "credential": backend.credential,
        "models": dict(backend.models),
        "timeouts": {
            "connect_s": timeouts.connect_s,
            "first_byte_s": timeouts.first_byte_s,
            "idle_s": timeouts.idle_s,
            "total_s": timeouts.total_s,
        },
    }


def plain_policy(policy: Policy) -> dict[str, Any]:
    """One entry of ``policies``."""
    return {
        "organization": policy.organization,
        "model": policy.model,
        "backends": [{"id": share.backend_id, "weight": share.weight} for share in policy.shares],
    }


def dump_yaml(plain: dict[str, Any]) -> str:
    """Plain data as YAML that this router and any other reader understand alike."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _prices(prices: Prices) -> dict[str, Any]:
    cached = prices.cached_input_nanos
    return {
        "input_usd_per_million_tokens": format_price(prices.input_nanos),
        "output_usd_per_million_tokens": format_price(prices.output_nanos),
        "cached_input_usd_per_million_tokens": None if cached is None else format_price(cached),
    }


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or YAML 1.2 would take for something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_FIRST: Final = "-+.0123456789"
for _tag, _shape, _first in (
    ("null", NULL_SHAPE, "~nN"),
    ("bool", BOOL_SHAPE, "tTfF"),
    ("int", INT_SHAPE, _FIRST),
    ("float", FLOAT_SHAPE, _FIRST),
):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _shape, list(_first))
