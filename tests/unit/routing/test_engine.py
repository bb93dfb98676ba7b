"""From organization and model to backends: the most specific policy counts, and it alone."""

from __future__ import annotations

import itertools
import random

import pytest

from router.config.document import (
    Backend,
    Document,
    Model,
    Organization,
    Policy,
    Share,
    build_document,
)
from router.routing.engine import RoutingEngine

SPECIFIC_FIRST = [("acme", "gpt-4o"), ("acme", "*"), ("*", "gpt-4o"), ("*", "*")]
SUBSETS = [
    subset
    for size in range(len(SPECIFIC_FIRST) + 1)
    for subset in itertools.combinations(SPECIFIC_FIRST, size)
]


def document(*policies: Policy, port: int = 9) -> Document:
    """Two organizations, two models, and a backend for whatever a policy names."""
    named = {share.backend_id for policy in policies for share in policy.shares}
    return build_document(
        1,
        organizations=(Organization("acme"), Organization("other")),
        models=(Model("gpt-4o"), Model("small")),
        backends=tuple(
            Backend(name, "openai", f"http://127.0.0.1:{port}/v1") for name in sorted(named)
        ),
        policies=policies,
    )


def policy(organization: str, model: str, **weights: int) -> Policy:
    """A policy; without weights its one backend is named after what it covers."""
    weights = weights or {f"{organization} {model}": 1}
    return Policy(organization, model, tuple(Share(name, w) for name, w in weights.items()))


def planned(
    found: Document, organization_id: str, model_id: str, engine: RoutingEngine | None = None
) -> list[str]:
    plan = (engine or RoutingEngine()).plan(found, organization_id, model_id)
    return [backend.id for backend in plan]


@pytest.mark.parametrize("present", SUBSETS, ids=str)
def test_the_most_specific_policy_counts(present: tuple[tuple[str, str], ...]) -> None:
    """(org, model) before (org, *) before (*, model) before (*, *), for each set of policies."""
    # The least specific one is listed first, so the list's order cannot be what decides.
    found = document(*(policy(*covers) for covers in reversed(present)))
    expected = [" ".join(covers) for covers in SPECIFIC_FIRST if covers in present]
    assert planned(found, "acme", "gpt-4o") == expected[:1]


@pytest.mark.parametrize(
    ("organization_id", "model_id", "expected"),
    [
        ("acme", "gpt-4o", ["acme gpt-4o"]),
        ("acme", "small", ["acme *"]),
        ("other", "gpt-4o", ["* gpt-4o"]),
        ("other", "small", ["* *"]),
        ("never-heard-of", "nothing", ["* *"]),
    ],
)
def test_a_policy_covers_nobody_else(
    organization_id: str, model_id: str, expected: list[str]
) -> None:
    """With policies of all four kinds, each pair finds the one that was written for it."""
    found = document(*(policy(*covers) for covers in SPECIFIC_FIRST))
    assert planned(found, organization_id, model_id) == expected


def test_no_policy_means_no_candidates() -> None:
    """A policy for others does not serve this organization or this model."""
    found = document(policy("acme", "gpt-4o"))
    assert planned(found, "other", "gpt-4o") == []
    assert planned(found, "acme", "small") == []


def test_policies_are_not_mixed() -> None:
    """The backends of a less specific policy are no reserve for a more specific one."""
    found = document(policy("acme", "gpt-4o", a=1, b=1), policy("*", "*", c=100))
    assert sorted(planned(found, "acme", "gpt-4o")) == ["a", "b"]


def test_a_drained_policy_is_not_replaced_by_a_broader_one() -> None:
    """Weights of 0 mean no traffic, not traffic by another rule."""
    found = document(policy("acme", "gpt-4o", a=0), policy("*", "*", b=1))
    assert planned(found, "acme", "gpt-4o") == []


def test_the_plan_follows_the_draw() -> None:
    """F8: the engine's own source of chance decides, one draw for each place but the last."""
    found = document(policy("*", "*", a=70, b=30))
    draws = iter([0.69, 0.71])
    engine = RoutingEngine(lambda: next(draws))
    assert planned(found, "acme", "gpt-4o", engine) == ["a", "b"]
    assert planned(found, "acme", "gpt-4o", engine) == ["b", "a"]


def test_without_a_draw_of_its_own_the_engine_uses_chance() -> None:
    """Both halves of an even policy come first sooner or later."""
    found = document(policy("*", "*", a=1, b=1))
    random.seed(8)
    assert {planned(found, "acme", "gpt-4o")[0] for _ in range(64)} == {"a", "b"}


def test_a_plan_holds_the_backends_of_its_document() -> None:
    """An id means what this revision says, not what an earlier one said."""
    engine = RoutingEngine()
    for port in (9, 10):
        found = document(policy("*", "*", a=1), port=port)
        assert engine.plan(found, "acme", "gpt-4o") == [found.backends["a"]]
        assert found.backends["a"].base_url == f"http://127.0.0.1:{port}/v1"
