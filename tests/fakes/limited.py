"""Routers whose organization has limits, without another document in the store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from router.config.document import Budget, BudgetPeriod, BudgetUnit, Document, KeyRecord, Prices
from tests.fakes.router_stand import RouterStand, World


class Fixed:
    """A configuration store that holds this document; its keys are those of another."""

    fault = None

    def __init__(self, document: Document) -> None:
        self._document = document

    def document(self) -> Document:
        return self._document

    def change(self, document: Document) -> None:
        """Apply another document."""
        self._document = document

    def find_key_with_id(self, _key_id: str) -> KeyRecord | None:
        """No key has a budget of its own here."""
        return None


def limited(world: World, *, parts: Any = None, **organization: Any) -> RouterStand:
    """A stand whose organization ``acme`` is changed like this; ``parts`` as of :meth:`stand`."""
    document = world.services.state.document()
    acme = replace(document.organizations["acme"], **organization)
    free = replace(document.models["renamed"], prices=Prices(0, 0))
    changed = replace(
        document,
        organizations={**document.organizations, "acme": acme},
        models={**document.models, "renamed": free},
        model_names={**document.model_names, "renamed": free, "other-name": free},
    )
    return world.stand(state=Fixed(changed), **(parts or {}))


def budget(
    unit: BudgetUnit = "usd",
    limit: int | None = 0,
    period: BudgetPeriod = "daily",
    **more: Any,
) -> Budget:
    """A budget called as what it counts."""
    return Budget(f"{unit}-{period}", unit, period, limit, **more)


def limits_of(stand: RouterStand, key: str = "main") -> dict[str, Any]:
    """What the caller sees at ``GET /v1/limits``."""
    found: dict[str, Any] = stand.call("GET", "/v1/limits", key=key).json
    return found


def rate_of(stand: RouterStand, name: str) -> dict[str, Any]:
    """One rate limit of the organization, as its caller sees it."""
    [found] = [entry for entry in limits_of(stand)["rate_limits"] if entry["name"] == name]
    return dict(found)
