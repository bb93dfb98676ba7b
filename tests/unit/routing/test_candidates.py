"""From organization and model to backends: the most specific policy counts, and it alone."""

from __future__ import annotations

import itertools
import random

import pytest

from router.call import Call, Operation
from router.config.document import (
    Backend,
    Document,
    LoadedDocument,
    Model,
    Organization,
    Policy,
    Share,
)
from router.errors import InvalidRequest, ModelNotFound
from router.routing.candidates import Draw, candidates

SPECIFIC_FIRST = [("acme", "gpt-4o"), ("acme", "*"), ("*", "gpt-4o"), ("*", "*")]
SUBSETS = [
    subset
    for size in range(len(SPECIFIC_FIRST) + 1)
    for subset in itertools.combinations(SPECIFIC_FIRST, size)
]


def document(*policies: Policy, port: int = 9) -> Document:
    """Two organizations, two models, and a backend for whatever a policy names."""
    named = {share.backend_id for policy in policies for share in policy.shares}
    return LoadedDocument(
        organizations=(Organization("acme"), Organization("other")),
        models=(Model("gpt-4o"), Model("small")),
        backends=tuple(
            Backend(name, "openai", f"http://127.0.0.1:{port}/v1") for name in sorted(named)
        ),
        policies=policies,
    ).build(1)


def policy(organization: str, model: str, **weights: int) -> Policy:
    """A policy; without weights its one backend is named after what it covers."""
    weights = weights or {f"{organization} {model}": 1}
    return Policy(organization, model, tuple(Share(name, w) for name, w in weights.items()))


def chat(model_id: str) -> Call:
    return Call("openai", "chat", model_id, model_id, fields={}, body=b"{}")


def planned(
    found: Document, organization_id: str, model_id: str, draw: Draw = random.random
) -> list[str]:
    try:
        plan = candidates(found, organization_id, chat(model_id), draw)
    except ModelNotFound:
        return []
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
    assert planned(found, "acme", "gpt-4o", lambda: next(draws)) == ["a", "b"]
    assert planned(found, "acme", "gpt-4o", lambda: next(draws)) == ["b", "a"]


def test_without_a_draw_of_its_own_the_engine_uses_chance() -> None:
    """Both halves of an even policy come first sooner or later."""
    found = document(policy("*", "*", a=1, b=1))
    random.seed(8)
    assert {planned(found, "acme", "gpt-4o")[0] for _ in range(64)} == {"a", "b"}


def test_a_plan_holds_the_backends_of_its_document() -> None:
    """An id means what this revision says, not what an earlier one said."""
    for port in (9, 10):
        found = document(policy("*", "*", a=1), port=port)
        assert candidates(found, "acme", chat("gpt-4o")) == [found.backends["a"]]
        assert found.backends["a"].base_url == f"http://127.0.0.1:{port}/v1"


# --- kinds of calls -------------------------------------------------------------------------

KINDS: dict[str, str] = {
    "first": "openai",
    "second": "openai",
    "messages": "anthropic",
    "more-messages": "anthropic",
}
MIXED = LoadedDocument(
    organizations=(Organization("acme"), Organization("other")),
    models=(Model("claude"), Model("mixed"), Model("unserved")),
    backends=tuple(Backend(name, kind, "http://127.0.0.1:9/v1") for name, kind in KINDS.items()),
    policies=(
        policy("acme", "claude", messages=1, **{"more-messages": 1}),
        policy("acme", "mixed", messages=1, first=1, **{"more-messages": 1}, second=1),
    ),
).build(7)


def found_for(model: str, operation: Operation, *, organization_id: str = "acme") -> list[str]:
    """Of a draw of 0, which plans in the order of the policy."""
    asked = Call("openai", operation, model, "as-asked-for", fields={}, body=b"{}")
    return [backend.id for backend in candidates(MIXED, organization_id, asked, lambda: 0.0)]


@pytest.mark.parametrize("operation", ["chat", "completions"])
def test_backends_of_every_kind_serve_text(operation: Operation) -> None:
    """A plan may mix kinds; nobody is left out of what all can do."""
    assert found_for("mixed", operation) == ["messages", "first", "more-messages", "second"]


def test_backends_that_cannot_serve_the_operation_are_left_out() -> None:
    """The others keep their order among themselves."""
    assert found_for("mixed", "embeddings") == ["first", "second"]


def test_an_operation_that_no_backend_supports_is_the_clients_mistake() -> None:
    """The refusal names the model as the client wrote it."""
    with pytest.raises(
        InvalidRequest, match="'as-asked-for' does not support embeddings"
    ) as raised:
        found_for("claude", "embeddings")
    assert raised.value.field == "model"


@pytest.mark.parametrize(("organization", "model"), [("other", "claude"), ("acme", "unserved")])
def test_a_model_that_nobody_serves_does_not_exist(organization: str, model: str) -> None:
    """Without a policy for it a model is not found, by the name that was used."""
    with pytest.raises(ModelNotFound) as raised:
        found_for(model, "chat", organization_id=organization)
    assert raised.value.model == "as-asked-for"
