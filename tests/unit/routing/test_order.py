"""The order in which a policy's backends are tried: exact weights, whatever the list looks like."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config.document import Share
from router.config.loader import load_serialized
from router.config.schema.parts import MAX_WEIGHT
from router.routing.candidates import order

DRAWS = 10_000
JUST_BELOW_ONE = math.nextafter(1.0, 0.0)

WEIGHTS = st.lists(st.integers(0, MAX_WEIGHT), max_size=8)


def shares(**weights: int) -> tuple[Share, ...]:
    """Backends and their weights, in this order."""
    return tuple(Share(backend_id, weight) for backend_id, weight in weights.items())


def numbered(weights: Iterable[int]) -> tuple[Share, ...]:
    return tuple(Share(f"b{index}", weight) for index, weight in enumerate(weights))


def seeded(seed: int = 8) -> Callable[[], float]:
    """Random numbers that are the same in every run."""
    return random.Random(seed).random


def orders(policy: tuple[Share, ...], seed: int = 8) -> list[list[str]]:
    draw = seeded(seed)
    return [order(policy, draw) for _ in range(DRAWS)]


def within_3_sigma(count: int, of: int, probability: float) -> bool:
    sigma = math.sqrt(of * probability * (1 - probability))
    return abs(count - of * probability) <= 3 * sigma


def steps(total: int) -> Iterable[float]:
    """Evenly spread draws, one for the middle of each unit of weight."""
    return ((step + 0.5) / total for step in range(total))


def test_70_to_30_comes_out_as_70_to_30() -> None:
    """F8: 10 000 draws give the first place to each backend within three sigma of its weight."""
    first = Counter(ordered[0] for ordered in orders(shares(a=70, b=30)))
    assert first["a"] + first["b"] == DRAWS
    assert within_3_sigma(first["a"], DRAWS, 0.7)


@pytest.mark.parametrize("names", list(itertools.permutations("abc")))
def test_the_order_of_the_list_does_not_matter(names: tuple[str, ...]) -> None:
    """F8: however the policy lists its backends, each is first as often as its weight says."""
    weights = {"a": 50, "b": 30, "c": 20}
    policy = shares(**{name: weights[name] for name in names})
    first = Counter(order(policy, lambda mark=mark: mark)[0] for mark in steps(100))
    assert first == weights


@given(weights=st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_the_first_place_follows_any_weights_exactly(weights: list[int]) -> None:
    """F8: of evenly spread draws each backend gets exactly its weight, not about that."""
    policy = numbered(weights)
    first = Counter(order(policy, lambda mark=mark: mark)[0] for mark in steps(sum(weights)))
    assert first == {share.backend_id: share.weight for share in policy if share.weight}


@pytest.mark.parametrize("gone", ["a", "b", "c"])
def test_without_one_backend_the_others_keep_their_ratio(gone: str) -> None:
    """F8: leave out any backend, in whatever place it stands: what then comes first is as
    weighted as before."""
    weights = {"a": 50, "b": 30, "c": 20}
    left = {name: weight for name, weight in weights.items() if name != gone}
    firsts = Counter(
        next(name for name in ordered if name != gone) for ordered in orders(shares(**weights))
    )
    assert set(firsts) == set(left)
    for name, weight in left.items():
        assert within_3_sigma(firsts[name], DRAWS, weight / sum(left.values()))


def test_the_second_place_is_drawn_by_weight_too() -> None:
    """F8: when the first choice fails, the load goes to the others by their weights, not to one."""
    after_a = [ordered[1] for ordered in orders(shares(a=50, b=30, c=20)) if ordered[0] == "a"]
    assert len(after_a) > 4_000
    assert within_3_sigma(after_a.count("b"), len(after_a), 0.6)


def test_a_weight_of_zero_takes_no_traffic() -> None:
    """F8: a drained backend is neither first nor anything else."""
    policy = shares(drained=0, a=1, also_drained=0, b=MAX_WEIGHT)
    assert {frozenset(ordered) for ordered in orders(policy)} == {frozenset("ab")}


@pytest.mark.parametrize("policy", [(), shares(a=0), shares(a=0, b=0)])
def test_nothing_to_choose_from_gives_nothing(policy: tuple[Share, ...]) -> None:
    """No shares, or none with a weight: nobody is to be tried, and no number is drawn for it."""

    def draw() -> float:
        raise AssertionError("there is nothing to draw for")

    assert order(policy, draw) == []


def test_a_single_backend_needs_no_luck() -> None:
    """What can only come out one way is not drawn."""

    def draw() -> float:
        raise AssertionError("there is nothing to draw for")

    assert order(shares(a=7, drained=0), draw) == ["a"]


@pytest.mark.parametrize(
    ("mark", "expected"), [(0.0, ["b0", "b1", "b2"]), (JUST_BELOW_ONE, ["b2", "b1", "b0"])]
)
@pytest.mark.parametrize("weight", [1, 7, MAX_WEIGHT])
def test_the_ends_of_the_range_belong_to_somebody(
    mark: float, expected: list[str], weight: int
) -> None:
    """The smallest and the greatest possible draw fall on the first and the last backend."""
    assert order(numbered([weight] * 3), lambda: mark) == expected


def test_a_draw_on_the_border_belongs_to_the_next() -> None:
    """Draws are below 1 and may be 0, so each backend has the lower end of its part."""
    assert order(numbered([1, 1]), lambda: 0.5) == ["b1", "b0"]
    assert order(numbered([1, 1]), lambda: math.nextafter(0.5, 0.0)) == ["b0", "b1"]


@given(weights=WEIGHTS, seed=st.integers(0, 2**32))
def test_each_backend_with_a_weight_has_one_place(weights: list[int], seed: int) -> None:
    """Whatever is drawn, nobody is forgotten and nobody comes twice."""
    policy = numbered(weights)
    ordered = order(policy, seeded(seed))
    assert sorted(ordered) == sorted(share.backend_id for share in policy if share.weight)


def test_a_policy_is_left_as_it_is() -> None:
    """The shares belong to a snapshot that many calls read."""
    policy = [Share("a", 1), Share("b", 2)]
    order(policy, seeded())
    assert policy == [Share("a", 1), Share("b", 2)]


def test_a_missing_weight_is_the_documented_default() -> None:
    """F8: backends that are listed without weights share evenly."""
    plain = {
        "version": 1,
        "backends": [
            {"id": name, "kind": "openai", "base_url": "http://127.0.0.1:9/v1"} for name in "ab"
        ],
        "policies": [
            {"organization": "*", "model": "*", "backends": [{"id": name} for name in "ab"]}
        ],
    }
    [policy] = load_serialized(plain).build(1).policies
    first = Counter(order(policy.shares, lambda mark=mark: mark)[0] for mark in steps(200))
    assert first == {"a": 100, "b": 100}
    assert [share.weight for share in policy.shares] == [100, 100]
