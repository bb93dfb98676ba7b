"""The difference of two documents, as an operator reads it."""

from __future__ import annotations

from router.config.diff import ABSENT, Change, FieldChange, compare

OLD = {
    "version": 1,
    "models": [{"id": "m", "prices": {"input": "1.00", "output": "2.00"}}, {"id": "gone"}],
    "policies": [{"organization": "*", "model": "m", "backends": [{"id": "a", "weight": 1}]}],
}


def test_equal_documents_have_no_changes() -> None:
    """Nothing to report is an empty list."""
    assert compare(OLD, OLD) == []


def test_the_order_of_entities_means_nothing() -> None:
    """A file that was sorted is the same document."""
    assert compare(OLD, {**OLD, "models": OLD["models"][::-1]}) == []


def test_entities_come_and_go() -> None:
    """What is new and what is missing is named with its fields."""
    new = {**OLD, "models": [OLD["models"][0], {"id": "new"}]}
    assert compare(OLD, new) == [
        Change("added", "models", "new", (FieldChange("id", ABSENT, "new"),)),
        Change("removed", "models", "gone", (FieldChange("id", "gone", ABSENT),)),
    ]


def test_a_price_change_names_the_price() -> None:
    """Within prices and timeouts the very field is reported with its old and new value."""
    dearer = {"id": "m", "prices": {"input": "1.50", "output": "2.00"}}
    assert compare(OLD, {**OLD, "models": [dearer, OLD["models"][1]]}) == [
        Change("changed", "models", "m", (FieldChange("prices.input", "1.00", "1.50"),))
    ]


def test_prices_that_become_unknown_are_one_change() -> None:
    """A whole mapping that disappears is shown as it was."""
    unknown = {"id": "m", "prices": None}
    [change] = compare(OLD, {**OLD, "models": [unknown, OLD["models"][1]]})
    assert change.fields == (FieldChange("prices", OLD["models"][0]["prices"], None),)


def test_a_policy_is_known_by_its_pair() -> None:
    """Policies have no id; organization and model say which one changed."""
    policy = {**OLD["policies"][0], "backends": [{"id": "a", "weight": 2}]}
    [change] = compare(OLD, {**OLD, "policies": [policy]})
    assert (change.verb, change.section, change.entity) == ("changed", "policies", "*/m")


def test_a_price_deep_in_a_document_is_named() -> None:
    """At a backend, and at a service tier: the price, not all that stands around it."""
    tier = {"multiplier": "0.5", "tiers": [{"above_input_tokens": 1}]}
    prices = {"m": {"input": "1", "service_tiers": {"flex": tier}}, "n": {"input": "2"}}
    dearer = {**prices, "m": {"input": "1", "service_tiers": {"flex": {**tier, "multiplier": "1"}}}}
    old, new = ({"backends": [{"id": "b", "prices": at}]} for at in (prices, dearer))
    [change] = compare(old, new)
    assert change.fields == (FieldChange("prices.m.service_tiers.flex.multiplier", "0.5", "1"),)
