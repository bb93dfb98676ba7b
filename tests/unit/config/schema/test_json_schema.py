"""The published JSON Schema says what the loader does, as far as shapes go."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from router.config.config_errors import DocumentError
from router.config.loader import load_serialized
from router.config.schema.json_schema import document_json_schema
from router.config.serialized import serialize

SCHEMA = document_json_schema()
PRICES = {"input_usd_per_million_tokens": "1", "output_usd_per_million_tokens": "2"}
TIER = {"above_input_tokens": 1000, "input_usd_per_million_tokens": "2"}
DAILY = {"name": "a", "unit": "usd", "period": "daily"}
VALIDATOR = Draft202012Validator(SCHEMA)


def test_the_schema_is_a_schema() -> None:
    """It is valid draft 2020-12 and says so."""
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_part_is_closed_and_described() -> None:
    """Editors refuse unknown fields and explain the known ones, in each part of the document."""
    parts = [SCHEMA, *SCHEMA["$defs"].values()]
    assert [part for part in parts if part["additionalProperties"] is not False] == []
    fields = [field for part in parts for field in part["properties"].values()]
    assert [field for field in fields if not field.get("description")] == []


def test_every_reference_leads_to_a_definition() -> None:
    """Nothing points to where an OpenAPI document would keep its parts."""
    found = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.update([node["$ref"]] if "$ref" in node else [])
            node = list(node.values())
        for inner in node if isinstance(node, list) else ():
            walk(inner)

    walk(SCHEMA)
    assert found == {f"#/$defs/{name}" for name in SCHEMA["$defs"]}


def test_the_demo_document_fits() -> None:
    """The document that ships with the package is valid by both measures."""
    text = resources.files("router.demo").joinpath("demo.yaml").read_text(encoding="utf-8")
    assert [*VALIDATOR.iter_errors(yaml.safe_load(text))] == []


def test_an_export_fits(plain: dict[str, Any]) -> None:
    """What the router writes is what the schema describes."""
    plain["keys"][0] |= {"expires_at": "2027-01-31T00:00:00Z", "models": ["gpt-4o"]}
    assert [*VALIDATOR.iter_errors(serialize(load_serialized(plain)))] == []


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("organizations", {"id": "a b"}),
        ("organizations", {"active": "yes"}),
        ("organizations", {"extra": 1}),
        ("organizations", {"rate_limit": {}}),
        ("organizations", {"rate_limit": {"requests_per_second": 5}}),
        ("organizations", {"rate_limit": {"requests_per_second": -1, "burst": 1}}),
        ("organizations", {"rate_limit": {"requests_per_second": None, "concurrent": -1}}),
        ("organizations", {"rate_limit": {"requests_per_second": None, "extra": 1}}),
        ("organizations", {"model_rate_limits": {"gpt-4o": 5}}),
        ("organizations", {"budgets": [{"name": "a", "unit": "usd"}]}),
        ("organizations", {"budgets": [{**DAILY, "limit": 9_000_001}]}),
        ("organizations", {"budgets": [{**DAILY, "limit": "-1"}]}),
        ("organizations", {"budgets": [{**DAILY, "unit": "tokens", "limit": "5"}]}),
        ("organizations", {"budgets": [{**DAILY, "unit": "tokens", "limit": 0.5}]}),
        ("organizations", {"budgets": [{**DAILY, "period": "yearly"}]}),
        ("organizations", {"budgets": [{**DAILY, "thresholds": [101]}]}),
        ("organizations", {"budgets": [{**DAILY, "reservation": {"cap": 1}}]}),
        ("keys", {"budgets": [{**DAILY, "extra": 1}]}),
        ("keys", {"rate_limit": 5}),
        ("keys", {"hash": "xyz"}),
        ("keys", {"demo_secret": "dev-test-key"}),
        ("keys", {"scopes": ["admin"]}),
        ("keys", {"scopes": ["inference", "inference"]}),
        ("keys", {"status": "gone"}),
        ("keys", {"models": "gpt-4o"}),
        ("models", {"max_output_tokens": 0}),
        ("models", {"prices": {"input_usd_per_million_tokens": "1"}}),
        (
            "models",
            {
                "prices": {
                    **dict.fromkeys(
                        ["input_usd_per_million_tokens", "output_usd_per_million_tokens"], -1
                    )
                }
            },
        ),
        ("models", {"prices": {**PRICES, "cache_write_5m_usd_per_million_tokens": "-1"}}),
        ("models", {"prices": {**PRICES, "web_searches_usd_per_thousand": 100_001}}),
        ("models", {"prices": {**PRICES, "web_searches_usd_per_million_tokens": "1"}}),
        ("models", {"prices": {**PRICES, "cache_write_1h_usd_per_million_tokens": None}}),
        ("models", {"prices": {**PRICES, "tiers": [{"above_input_tokens": 200_000}]}}),
        ("models", {"prices": {**PRICES, "tiers": [TIER, {**TIER, "above_input_tokens": 0}]}}),
        ("models", {"prices": {**PRICES, "tiers": TIER}}),
        ("models", {"prices": {**PRICES, "service_tiers": {"flex": {"multiplier": 0}}}}),
        ("models", {"prices": {**PRICES, "service_tiers": {"flex": {"multiplier": 101}}}}),
        ("models", {"prices": {**PRICES, "service_tiers": {"flex": {"tiers": [{}]}}}}),
        ("models", {"prices": {**PRICES, "as_of": 20261109}}),
        ("backends", {"prices": {"gpt-4o": {**PRICES, "extra": 1}}}),
        ("backends", {"kind": "other"}),
        ("backends", {"base_url": "ftp://a"}),
        ("backends", {"credential": "sk-secret"}),
        ("backends", {"timeouts": {"connect_s": 0}}),
        ("policies", {"backends": []}),
        ("policies", {"backends": [{"id": "a", "weight": -1}]}),
    ],
)
def test_schema_and_loader_refuse_alike(
    plain: dict[str, Any], section: str, change: dict[str, Any]
) -> None:
    """An editor that follows the schema warns of what the loader would refuse."""
    assert [*VALIDATOR.iter_errors(plain)] == []
    plain[section][0] |= change
    assert [*VALIDATOR.iter_errors(plain)] != []
    with pytest.raises(DocumentError):
        load_serialized(plain)
