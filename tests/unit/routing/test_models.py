"""Who may use which model, by which names."""

from __future__ import annotations

import pytest

from router.call import Caller
from router.config.document import (
    Backend,
    Document,
    LoadedDocument,
    Model,
    Organization,
    Policy,
    Share,
)
from router.errors import ModelForbidden, ModelNotFound
from router.routing.models import find_model, may_use, visible_models

KINDS: dict[str, str] = {
    "first": "openai",
    "second": "openai",
    "messages": "anthropic",
    "more-messages": "anthropic",
}


def policy(organization: str, model: str, *backend_ids: str) -> Policy:
    return Policy(organization, model, tuple(Share(name, 1) for name in backend_ids))


DOCUMENT = LoadedDocument(
    organizations=(Organization("acme"), Organization("other")),
    models=(
        Model("gpt-4o", aliases=("gpt", "vendor/gpt-4o"), max_output_tokens=1234),
        Model("claude"),
        Model("mixed"),
        Model("unserved", aliases=("also-unserved",)),
    ),
    backends=tuple(Backend(name, kind, "http://127.0.0.1:9/v1") for name, kind in KINDS.items()),
    policies=(
        policy("acme", "gpt-4o", "first", "second"),
        policy("acme", "claude", "messages", "more-messages"),
        policy("acme", "mixed", "messages", "first", "more-messages", "second"),
    ),
).build(7)
ACME = Caller("acme", "key-1", frozenset({"inference"}))
OTHER = Caller("other", "key-2", frozenset({"inference"}))
LIMITED = Caller("acme", "key-3", frozenset({"inference"}), models=frozenset({"gpt-4o"}))


# --- models and who may use them ------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt-4o", "gpt", "vendor/gpt-4o"])
@pytest.mark.parametrize("caller", [ACME, LIMITED], ids=["any model", "this model"])
def test_a_model_is_found_by_each_of_its_names(caller: Caller, name: str) -> None:
    """An alias is as good as the id, also for a key that lists ids."""
    assert find_model(DOCUMENT, caller, name) is DOCUMENT.models["gpt-4o"]


@pytest.mark.parametrize(
    "name", ["", "GPT-4o", "gpt-4", "gpt-4o ", "*", "unserved", "also-unserved"]
)
def test_a_name_that_leads_nowhere_is_not_found(name: str) -> None:
    """Names are exact; a model without a policy is as unknown as one that is not there."""
    with pytest.raises(ModelNotFound) as raised:
        find_model(DOCUMENT, ACME, name)
    assert raised.value.model == name


def test_a_model_of_another_organization_is_not_found() -> None:
    """What is served to others only looks as if it did not exist."""
    with pytest.raises(ModelNotFound):
        find_model(DOCUMENT, OTHER, "gpt-4o")


def test_a_model_that_the_key_does_not_list_is_forbidden() -> None:
    """The organization could use it, this key may not; the error repeats what was asked for."""
    with pytest.raises(ModelForbidden) as raised:
        find_model(DOCUMENT, LIMITED, "claude")
    assert raised.value.model == "claude"


def test_a_key_learns_of_forbidden_models_only_where_they_are_served() -> None:
    """Not found comes before forbidden: a list on a key is no way to ask what others have."""
    other_caller = Caller("other", "key-4", frozenset(), models=frozenset({"claude"}))
    with pytest.raises(ModelNotFound):
        find_model(DOCUMENT, other_caller, "gpt-4o")


@pytest.mark.parametrize(
    ("caller", "expected"),
    [
        (ACME, ["gpt-4o", "claude", "mixed"]),
        (LIMITED, ["gpt-4o"]),
        (OTHER, []),
        (Caller("acme", "key-5", frozenset(), models=frozenset()), []),
        (Caller("acme", "key-6", frozenset(), models=frozenset({"unserved"})), []),
    ],
)
def test_visible_models_are_those_that_can_be_called(caller: Caller, expected: list[str]) -> None:
    """In the document's order: served to the organization and allowed to the key."""
    assert [model.id for model in visible_models(DOCUMENT, caller)] == expected


@pytest.mark.parametrize("caller", [ACME, OTHER, LIMITED], ids=["acme", "other", "limited"])
def test_a_list_of_models_and_a_look_up_agree(caller: Caller) -> None:
    """Every listed model is found by its id, and every other one is refused."""
    visible = visible_models(DOCUMENT, caller)
    for model in DOCUMENT.models.values():
        if model in visible:
            assert find_model(DOCUMENT, caller, model.id) is model
        else:
            with pytest.raises((ModelNotFound, ModelForbidden)):
                find_model(DOCUMENT, caller, model.id)


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (None, True),
        (frozenset({"gpt-4o", "x"}), True),
        (frozenset({"x"}), False),
        (frozenset(), False),
    ],
)
def test_a_key_without_a_list_may_use_every_model(
    models: frozenset[str] | None, expected: bool
) -> None:
    """No list is not an empty list."""
    assert may_use(Caller("acme", "key", frozenset(), models), Model("gpt-4o")) is expected


def test_a_wildcard_policy_serves_every_organization() -> None:
    """With `*` for both, whoever has a valid key finds every model."""
    document: Document = LoadedDocument(
        organizations=(Organization("acme"),),
        models=tuple(DOCUMENT.models.values()),
        backends=tuple(DOCUMENT.backends.values()),
        policies=(policy("*", "*", "first"),),
    ).build(1)
    assert visible_models(document, OTHER) == list(DOCUMENT.models.values())
    assert find_model(document, OTHER, "also-unserved").id == "unserved"
