"""Rate limits and budgets of a document: what they become, and every mistake in them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from router.config.config_errors import DocumentError
from router.config.diff import FieldChange, compare
from router.config.document import Budget, BudgetReservation, RateLimit
from router.config.loader import load_serialized
from router.config.parsing import parse_yaml
from router.config.serialized import serialize

Plain = dict[str, Any]
DAILY: Plain = {"name": "spend", "unit": "usd", "period": "daily"}
NINE_MILLION = 9_000_000 * 10**9


def with_budget(plain: Plain, **fields: Any) -> Plain:
    plain["organizations"][0]["budgets"] = [{**DAILY, **fields}]
    return plain


def budget_of(plain: Plain) -> Budget:
    [budget] = load_serialized(plain).organizations[0].budgets
    return budget


def problems(plain: Plain) -> list[str]:
    with pytest.raises(DocumentError) as refused:
        load_serialized(plain)
    return [line.removeprefix("organizations[0].") for line in refused.value.problems]


# --- rate limits ----------------------------------------------------------------------------


def test_nothing_said_is_nothing_set(plain: Plain) -> None:
    """The defaults of the environment apply, and no budget does."""
    loaded = load_serialized(plain)
    organization, key = loaded.organizations[0], loaded.keys[0]
    assert (organization.rate_limit, organization.model_rate_limits) == (None, {})
    assert (key.rate_limit, key.budgets, organization.budgets) == (None, (), ())


def test_a_rate_limit_in_full(plain: Plain) -> None:
    """On the organization, on the key and on one model."""
    written = {"requests_per_second": 2.5, "burst": 5, "tokens_per_minute": 1000, "concurrent": 0}
    shadow = {"requests_per_second": None, "tokens_per_minute": 7, "shadow": True}
    plain["organizations"][0] |= {"rate_limit": written, "model_rate_limits": {"gpt-4o": shadow}}
    plain["keys"][0]["rate_limit"] = {"requests_per_second": 0, "burst": 0}
    loaded = load_serialized(plain)
    assert loaded.organizations[0].rate_limit == RateLimit(2.5, 5, 1000, 0)
    assert loaded.organizations[0].model_rate_limits == {
        "gpt-4o": RateLimit(None, tokens_per_minute=7, shadow=True)
    }
    assert loaded.keys[0].rate_limit == RateLimit(0.0, 0)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ({}, ".requests_per_second: is missing"),
        ({"requests_per_second": 5}, ".burst: is missing"),
        ({"requests_per_second": 5, "burst": None}, ".burst: must not be null"),
        ({"requests_per_second": "5", "burst": 1}, ".requests_per_second: must be a number, or "),
        ({"requests_per_second": True, "burst": 1}, ".requests_per_second: must be a number, or "),
        ({"requests_per_second": -1, "burst": 1}, ".requests_per_second: must be between 0 and "),
        (
            {"requests_per_second": Decimal("0.0000009"), "burst": 1},
            ".requests_per_second: must be 0 or at least 0.000001",
        ),
        ({"requests_per_second": float("nan"), "burst": 1}, ".requests_per_second: must be betw"),
        ({"requests_per_second": 1, "burst": -1}, ".burst: must be a whole number between 0 and "),
        ({"requests_per_second": None, "concurrent": -1}, ".concurrent: must be a whole number "),
        ({"requests_per_second": None, "tokens_per_minute": 0.5}, ".tokens_per_minute: must be a "),
        ({"requests_per_second": None, "shadow": 1}, ".shadow: must be true or false"),
        ({"requests_per_second": None, "rps": 1}, ".rps: unknown field"),
        (5, ": must be a mapping"),
    ],
)
def test_a_wrong_rate_limit_is_refused(plain: Plain, written: Any, problem: str) -> None:
    """B11: negative is a mistake, and what blocks or frees has to be written."""
    plain["organizations"][0]["rate_limit"] = written
    [found] = problems(plain)
    assert found.startswith(f"rate_limit{problem}")


def test_a_limit_for_an_unknown_model_is_refused(plain: Plain) -> None:
    """An alias is not the model: calls of all its names count together."""
    limit = {"requests_per_second": None}
    plain["organizations"][0]["model_rate_limits"] = {"gpt": limit, "gone": limit}
    assert problems(plain) == [
        "model_rate_limits.gpt: no model has the id 'gpt'; it is an alias, write 'gpt-4o'",
        "model_rate_limits.gone: no model has the id 'gone'",
    ]


# --- budgets --------------------------------------------------------------------------------


def test_a_budget_in_full(plain: Plain) -> None:
    """Every field arrives, money in nano-USD."""
    with_budget(
        plain,
        period="monthly",
        limit="250.50",
        timezone="Europe/Berlin",
        thresholds=[100, 50],
        shadow=True,
        reservation={"mode": "capped", "cap": "0.05"},
    )
    assert budget_of(plain) == Budget(
        "spend", "usd", "monthly", 250_500_000_000, "Europe/Berlin", (100, 50), True,
        BudgetReservation("capped", 50_000_000),
    )  # fmt: skip


def test_a_budget_in_brief(plain: Plain) -> None:
    """B11: without a limit it only counts; two events are on their way all the same."""
    assert budget_of(with_budget(plain)) == Budget("spend", "usd", "daily", None, "UTC", (80, 95))


@pytest.mark.parametrize(
    ("unit", "written", "limit"),
    [
        ("usd", '"0"', 0),
        ("usd", "0", 0),
        ("usd", '"0.000000001"', 1),
        ("usd", "0.1", 100_000_000),
        ("usd", '"9000000"', NINE_MILLION),
        ("usd", '"9000000.000000000"', NINE_MILLION),
        ("usd", "null", None),
        ("tokens", "0", 0),
        ("tokens", "9000000000000000", NINE_MILLION),
        ("requests", "1000", 1000),
        ("requests", "null", None),
    ],
)
def test_limits_are_exact(plain: Plain, unit: str, written: str, limit: int | None) -> None:
    """B9, B11: to the last nano-USD, up to the most that Redis counts exactly."""
    value = parse_yaml(f"limit: {written}").data["limit"]
    assert budget_of(with_budget(plain, unit=unit, limit=value)).limit == limit


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"limit": -1}, "limit: must not be negative"),
        ({"limit": "-0.01"}, "limit: must not be negative"),
        (
            {"limit": "9000000.000000001"},
            "limit: must not be above 9000000 USD: beyond it nano-USD are not counted exactly",
        ),
        ({"limit": "0.0000000001"}, "limit: must not be finer than 0.000000001 USD"),
        ({"limit": "1e3"}, 'limit: must be a decimal number such as "2.50"'),
        ({"limit": True}, 'limit: must be a decimal number such as "2.50"'),
        ({"unit": "tokens", "limit": 0.5}, "limit: must be a whole number of tokens"),
        ({"unit": "requests", "limit": "5"}, "limit: must be a whole number of requests"),
        ({"unit": "tokens", "limit": 9 * 10**15 + 1}, "limit: must not be above 9000000000000000"),
        ({"unit": "eur"}, "unit: must be one of usd, tokens, requests"),
        ({"period": "weekly"}, "period: must be one of daily, monthly, total"),
        ({"name": "a b"}, "name: must be 1 to 128 of "),
        ({"timezone": "CET/Nowhere"}, "timezone: 'CET/Nowhere' is no time zone that this host "),
        ({"timezone": "Europe"}, "timezone: 'Europe' is no time zone that this host knows"),
        ({"timezone": "right/UTC"}, "timezone: 'right/UTC' is no time zone that this host knows"),
        ({"timezone": "localtime"}, "timezone: 'localtime' is no time zone that this host knows"),
        ({"timezone": "../UTC"}, "timezone: must be the IANA name of a time zone, such as "),
        ({"timezone": "+02:00"}, "timezone: must be the IANA name of a time zone, such as "),
        ({"thresholds": [0]}, "thresholds[0]: must be a whole number between 1 and 100"),
        ({"thresholds": [50, 50]}, "thresholds: must not name anything twice"),
        ({"thresholds": [*range(1, 12)]}, "thresholds: must have at most 10"),
        ({"reservation": {}}, "reservation.mode: is missing"),
        ({"reservation": {"mode": "all"}}, "reservation.mode: must be one of worst_case, capped"),
        (
            {"reservation": {"mode": "floor", "cap": "1"}},
            "reservation.cap: goes with the mode 'capped' only",
        ),
        (
            {"unit": "tokens", "reservation": {"mode": "capped", "cap": "0.1"}},
            "reservation.cap: must be a whole number of tokens",
        ),
        (
            {"unit": "requests", "reservation": {"mode": "floor"}},
            "reservation: is for usd and tokens; a call is always one request",
        ),
    ],
)
def test_a_wrong_budget_is_refused(plain: Plain, fields: Plain, problem: str) -> None:
    """B11: each mistake with its path and its reason."""
    [found] = problems(with_budget(plain, **fields))
    assert found.startswith(f"budgets[0].{problem}")


def test_all_mistakes_of_a_budget_are_reported_at_once(plain: Plain) -> None:
    """Also those that only show between two fields, beside those of one."""
    held = {"mode": "capped", "cap": "10000000"}
    with_budget(plain, limit="9000001", period="never", extra=1, reservation=held)
    assert sorted(line.partition(":")[0] for line in problems(plain)) == [
        "budgets[0].extra",
        "budgets[0].limit",
        "budgets[0].period",
        "budgets[0].reservation.cap",
    ]


def test_names_are_unique_for_each_owner(plain: Plain) -> None:
    """Two budgets of one name could not be told apart in a refusal; two owners may share one."""
    plain["keys"][0]["budgets"] = [DAILY, {**DAILY, "name": "other"}]
    with_budget(plain)
    load_serialized(plain)
    plain["organizations"][0]["budgets"].append({**DAILY, "unit": "tokens"})
    assert problems(plain) == [
        "budgets[1].name: the same as organizations[0].budgets[0].name",
    ]


def test_a_call_has_so_many_counters_at_most(plain: Plain) -> None:
    """All of them stand in one script."""
    budgets = [{**DAILY, "name": f"b{number}"} for number in range(17)]
    plain["organizations"][0]["budgets"] = budgets
    assert problems(plain) == ["budgets: must have at most 16"]


# --- export and diff ------------------------------------------------------------------------


def test_an_export_of_limits_can_be_applied_again(plain: Plain) -> None:
    """B11: 0 stays 0, null stays null, and money stays decimal text."""
    with_budget(plain, limit=0)
    plain["organizations"][0]["rate_limit"] = {"requests_per_second": 50, "burst": 100}
    exported = serialize(load_serialized(plain))
    [organization] = exported["organizations"]
    assert organization["budgets"][0]["limit"] == "0.00"
    assert organization["rate_limit"]["requests_per_second"] == 50
    assert type(organization["rate_limit"]["requests_per_second"]) is int
    assert serialize(load_serialized(exported)) == exported


def test_a_changed_limit_is_one_line(plain: Plain) -> None:
    """What apply shows is the field, not the whole of the limits."""
    plain["organizations"][0]["rate_limit"] = {"requests_per_second": 50, "burst": 100}
    old = serialize(load_serialized(plain))
    plain["organizations"][0]["rate_limit"]["burst"] = 200
    [change] = compare(old, serialize(load_serialized(plain)))
    assert change.fields == (FieldChange("rate_limit.burst", 100, 200),)
