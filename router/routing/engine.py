"""From a model and an organization to the backends that may serve the call, best first."""

from __future__ import annotations

import random
from collections.abc import Callable

from router.config.document import Backend, Document
from router.routing.policies import order


class RoutingEngine:
    """Chooses by policy. Health and circuit state join in here."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw

    def plan(self, document: Document, organization_id: str, model_id: str) -> list[Backend]:
        """Candidates in the order to be tried; empty when no policy covers the model."""
        policy = document.policy_for(organization_id, model_id)
        if policy is None:
            return []
        return [document.backends[backend_id] for backend_id in order(policy.shares, self._draw)]
