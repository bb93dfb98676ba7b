"""Export: parts → plain data → parts, whatever the document."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from router.call import INPUT_CLASSES, OUTPUT_CLASSES, UNITS, UsageClass
from router.config.diff import compare
from router.config.document import (
    SCOPES,
    Backend,
    Budget,
    BudgetReservation,
    InputBounds,
    KeyRecord,
    LoadedDocument,
    Model,
    Organization,
    Policy,
    Prices,
    PriceTier,
    RateLimit,
    ServiceTier,
    Share,
    Timeouts,
)
from router.config.loader import load_file, load_serialized
from router.config.schema.json_schema import document_json_schema
from router.config.schema.notation import format_price, format_timestamp, parse_timestamp
from router.config.serialized import dump_yaml, serialize
from router.config.state.environment import decode_key, encode_key

VALIDATOR = Draft202012Validator(document_json_schema())
IDS = st.builds(str.__add__, st.sampled_from("aZ9"), st.text("bY8._:/-", max_size=6))
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
NANOS = st.integers(0, 100_000 * 10**9)
SECONDS = st.floats(0.001, 3600)
# To the microsecond, which is what ISO 8601 as written here holds.
MOMENTS = st.datetimes().map(lambda moment: parse_timestamp(f"{moment.isoformat()}Z"))


def subset(values: list[str], minimum: int = 0) -> st.SearchStrategy[list[str]]:
    if not values:
        return st.just([])
    return st.lists(st.sampled_from(values), unique=True, min_size=minimum)


RATES = st.just(0.0) | st.floats(0.000001, 1_000_000)
RATE_LIMITS = st.none() | st.builds(
    RateLimit,
    st.none() | RATES,
    st.integers(0, 9 * 10**9),
    st.none() | st.integers(0, 9 * 10**9),
    st.none() | st.integers(0, 1_000_000),
    st.booleans(),
)
AMOUNTS = st.none() | st.integers(0, 9_000_000 * 10**9)
RESERVATIONS = st.none() | st.builds(BudgetReservation, st.just("capped"), AMOUNTS)


@st.composite
def budgets(draw: st.DrawFn) -> tuple[Budget, ...]:
    units = st.sampled_from(["usd", "tokens", "requests"])
    return tuple(
        Budget(
            name,
            unit := draw(units),
            draw(st.sampled_from(["daily", "monthly", "total"])),
            draw(AMOUNTS),
            draw(st.sampled_from(["UTC", "Europe/Berlin", "Etc/GMT+12"])),
            tuple(draw(st.lists(st.integers(1, 100), unique=True, max_size=3))),
            draw(st.booleans()),
            None if unit == "requests" else draw(RESERVATIONS),
        )
        for name in draw(st.lists(IDS, unique=True, max_size=2))
    )


CLASSES = st.dictionaries(st.sampled_from([*INPUT_CLASSES, *OUTPUT_CLASSES, *UNITS]), NANOS)
BASIC = {"input", "output", "cache_read"}


def by_field(found: dict[UsageClass, int]) -> dict[UsageClass, int]:
    """Prices that can be written: what is not priced by the million is whole nano-USD by its own
    number."""
    thousands: tuple[UsageClass, ...] = ("requests", "web_searches")
    per = {**dict.fromkeys(thousands, 1_000), "seconds": 3_600}
    return {name: round(Fraction(found[name] * 10**6, per.get(name, 10**6))) for name in found}


TIERS = st.lists(
    st.builds(PriceTier, st.integers(1, 10**8), CLASSES.filter(bool).map(by_field)),
    max_size=3,
    unique_by=lambda tier: tier.above_input_tokens,
).map(lambda tiers: tuple(sorted(tiers, key=lambda tier: tier.above_input_tokens)))
SERVICE_TIERS = st.builds(ServiceTier, st.integers(1, 10**8), CLASSES.map(by_field), TIERS)
PRICES = st.builds(
    Prices,
    NANOS,
    NANOS,
    st.none() | NANOS,
    CLASSES.map(lambda found: by_field({n: found[n] for n in found if n not in BASIC})),
    TIERS,
    st.dictionaries(IDS, SERVICE_TIERS, max_size=2),
    st.none() | st.dates().map(str),
)


@st.composite
def models(draw: st.DrawFn) -> tuple[Model, ...]:
    names = draw(st.lists(IDS, unique=True, max_size=6))
    ids, aliases = names[::2], names[1::2]
    prices = st.none() | PRICES
    return tuple(
        Model(
            name,
            tuple(aliases[index : index + 1]),
            draw(prices),
            draw(st.integers(1, 10_000_000)),
            draw(st.none() | st.integers(1, 10**8)),
            draw(st.builds(InputBounds, *[st.integers(0, 10**8)] * 5) | st.just(InputBounds())),
            tuple(draw(subset(["service_tier:priority", "tool:web_search", "plugins"]))),
        )
        for index, name in enumerate(ids)
    )


@st.composite
def keys(draw: st.DrawFn, organizations: list[str], models: list[str]) -> tuple[KeyRecord, ...]:
    if not organizations:
        return ()
    ids = draw(st.lists(IDS, unique=True, max_size=3))
    return tuple(
        KeyRecord(
            id=name,
            organization_id=draw(st.sampled_from(organizations)),
            hash=f"{index:02x}" * 32,
            name=draw(NAMES),
            status=draw(st.sampled_from(["active", "revoked"])),
            expires_at_s=draw(st.none() | MOMENTS),
            scopes=frozenset(draw(subset(list(SCOPES)))),
            models=draw(st.none() | subset(models).map(frozenset)),
            require_signature=draw(st.booleans()),
            demo=draw(st.booleans()),
            rate_limit=draw(RATE_LIMITS),
            budgets=draw(budgets()),
        )
        for index, name in enumerate(ids)
    )


@st.composite
def backend(draw: st.DrawFn, name: str, models: list[str]) -> Backend:
    credentials = ["env:OPENAI_API_KEY", "file:/run/secrets/a b", None]
    upstream_models = {model: draw(NAMES.filter(bool)) for model in draw(subset(models))}
    return Backend(
        name,
        draw(st.sampled_from(["openai", "anthropic"])),
        draw(st.sampled_from(["http://a", "https://b.example:8443/v1"])),
        draw(st.sampled_from(credentials)),
        upstream_models,
        draw(st.builds(Timeouts, SECONDS, SECONDS, SECONDS, SECONDS)),
        {model: draw(PRICES) for model in draw(subset(models))},
        draw(st.sampled_from([None, "max_tokens", "max_completion_tokens"])),
    )


@st.composite
def documents(draw: st.DrawFn) -> LoadedDocument:
    organizations = draw(st.lists(IDS, unique=True, max_size=3))
    all_models = draw(models())
    model_ids = [model.id for model in all_models]
    backends = draw(st.lists(IDS, unique=True, max_size=3))
    pairs = st.tuples(st.sampled_from(["*", *organizations]), st.sampled_from(["*", *model_ids]))
    return LoadedDocument(
        organizations=tuple(
            Organization(
                name,
                draw(NAMES),
                draw(st.booleans()),
                draw(RATE_LIMITS),
                {model: draw(RATE_LIMITS.filter(bool)) for model in draw(subset(model_ids))},
                draw(budgets()),
            )
            for name in organizations
        ),
        models=all_models,
        backends=tuple(draw(backend(name, model_ids)) for name in backends),
        policies=tuple(
            Policy(
                *pair,
                tuple(
                    Share(name, draw(st.integers(1, 1_000_000)))
                    for name in draw(subset(backends, 1))
                ),
            )
            for pair in draw(st.lists(pairs, unique=True, max_size=3))
            if backends
        ),
        keys=draw(keys(organizations, model_ids)),
    )


@given(documents())
def test_an_export_loads_as_what_was_exported(document: LoadedDocument) -> None:
    """Plain data holds all of a document and nothing else."""
    assert load_serialized(serialize(document)) == document


@given(documents())
def test_an_exported_file_loads_as_what_was_exported(
    tmp_path_factory: pytest.TempPathFactory, document: LoadedDocument
) -> None:
    """Neither YAML nor JSON loses or bends anything on the way."""
    place = tmp_path_factory.getbasetemp()
    plain = serialize(document)
    for name, text in (("a.yaml", dump_yaml(plain)), ("a.json", json.dumps(plain))):
        file: Path = place / name
        file.write_text(text, encoding="utf-8")
        assert load_file(file, demo=False, pepper=b"") == document


@given(documents())
def test_a_stored_key_is_what_was_stored(document: LoadedDocument) -> None:
    """The store has a shape of its own for keys, in which nothing is lost either."""
    assert tuple(decode_key(encode_key(key)) for key in document.keys) == document.keys


@given(documents())
def test_an_export_fits_the_published_schema(document: LoadedDocument) -> None:
    """B11: what the router writes is what editors are told, and can be applied again."""
    assert [*VALIDATOR.iter_errors(serialize(document))] == []


@given(documents())
def test_a_document_does_not_differ_from_itself(document: LoadedDocument) -> None:
    """An exported and reloaded document changes nothing."""
    assert compare(serialize(document), serialize(load_serialized(serialize(document)))) == []


def test_an_export_holds_no_secret(plain: dict[str, Any]) -> None:
    """A demo key leaves as its hash, with the mark that keeps it from working in earnest (K6)."""
    plain["keys"] = [{"id": "k", "organization": "acme", "demo_secret": "dev-test-key"}]
    exported = serialize(load_serialized(plain, demo=True, pepper=b"p" * 32))
    assert "dev-test-key" not in json.dumps(exported)
    [key] = load_serialized(exported).keys
    assert key.demo


@pytest.mark.parametrize(
    ("nanos", "usd"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (75_000_000, "0.075"),
        (2_500_000_000, "2.50"),
        (10_000_000_000, "10.00"),
    ],
)
def test_prices_are_written_as_decimal_usd(nanos: int, usd: str) -> None:
    """Exact to the last nano-USD, readable for the usual ones (B9)."""
    assert format_price(nanos) == usd


@pytest.mark.parametrize("text", ["2027-01-31T00:00:00Z", "2027-01-31T12:30:00.250000Z"])
def test_moments_are_written_in_utc(text: str) -> None:
    """What was read is written back the same."""
    assert format_timestamp(parse_timestamp(text)) == text
