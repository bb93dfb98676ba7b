"""What changes the price, and what a model allows of it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from router.call import Call
from router.config.schema.models_schema import ModelSchema
from router.errors import InvalidRequest
from router.pricing.selection import (
    BETA_HEADERS,
    BILLED_FIELDS,
    STANDARD,
    allowed_betas,
    permitted,
    possible_tiers,
    selected_tier,
    unbounded_field,
    web_searches,
)

ALLOW = ModelSchema().fields["allow"]
FUNCTION = {"type": "function", "function": {"name": "f"}}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}


def call(**fields: Any) -> Call:
    fields = {"model": "m", "messages": [], **fields}
    return Call("openai", "chat", "m", "m", fields, orjson.dumps(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"service_tier": None, "speed": None, "inference_geo": None},
        {"service_tier": "auto"},
        {"service_tier": "default"},
        {"service_tier": "standard_only"},
        {"speed": "standard"},
        {"inference_geo": "global"},
        {"modalities": ["text"]},
        {"modalities": None, "tools": None, "web_search_options": None},
        {"tools": []},
        {"tools": [FUNCTION, {"type": "custom", "custom": {"name": "c"}}]},
        {"tools": [{"name": "f", "input_schema": {}}, {"function": {"name": "f"}}]},
        {"tools": [{"type": "bash_20250124"}, {"type": "text_editor_20250728"}]},
        {"tools": [{"type": "computer_20250124"}, {"type": "memory_20250818"}]},
        {"reasoning_effort": "high", "audio": {"voice": "alloy"}, "thinking": {"type": "enabled"}},
    ],
)
def test_what_costs_the_standard_price_passes_untouched(fields: dict[str, Any]) -> None:
    """The very same bytes go on."""
    asked = call(**fields)
    assert permitted(asked, ()) is asked


@pytest.mark.parametrize(
    "field",
    [
        *("api_base", "base_url", "api_key", "custom_llm_provider", "fallbacks", "extra_headers"),
        *("extra_body", "route", "provider", "transforms", "organization", "kv_transfer_params"),
    ],
)
def test_what_steers_a_gateway_is_left_out_unless_it_is_allowed(field: str) -> None:
    """Else a client could have a call sent elsewhere, past everything that was checked."""
    asked = call(**{field: {"url": "http://169.254.169.254"}}, user="u")
    kept = permitted(asked, ())
    assert kept.body is None
    assert kept.fields == {"model": "m", "messages": [], "user": "u"}
    ALLOW.deserialize([field])
    assert permitted(asked, (field,)) is asked


@pytest.mark.parametrize(
    ("field", "value"),
    [("service_tier", "priority"), ("service_tier", "flex"), ("speed", "fast")],
)
def test_a_tier_that_is_not_allowed_is_left_out(field: str, value: str) -> None:
    """It used to pass, and to be charged at the standard price."""
    found = permitted(call(**{field: value, "max_tokens": 5}), ())
    assert found.fields == {"model": "m", "messages": [], "max_tokens": 5}
    assert found.body is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("service_tier", "priority"), ("speed", "fast"), ("inference_geo", "us")],
)
def test_a_tier_that_is_allowed_passes(field: str, value: str) -> None:
    """Untouched, and priced by its name."""
    asked, allow = call(**{field: value}), (f"{field}:{value}",)
    assert permitted(asked, allow) is asked
    assert selected_tier(asked.fields) == value
    assert possible_tiers(asked.fields, allow) == (value,)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("inference_geo", {"inference_geo": "us"}, "inference_geo:us"),
    ("modalities", {"modalities": ["text", "audio"]}, "modalities:audio"),
    ("web_search_options", {"web_search_options": {}}, "web_search_options"),
    ("search_parameters", {"search_parameters": {"mode": "auto"}}, "search_parameters"),
    ("plugins", {"plugins": [{"id": "web"}]}, "plugins"),
    ("mcp_servers", {"mcp_servers": [{"url": "https://a.example"}]}, "mcp_servers"),
    ("container", {"container": "c"}, "container"),
    ("models", {"models": ["another/model"]}, "models"),
    ("chat_template", {"chat_template": "{{ 'x' * 10000 }}"}, "chat_template"),
    ("mm_processor_kwargs", {"mm_processor_kwargs": {"max_pixels": 9}}, "mm_processor_kwargs"),
    ("tools[0].type", {"tools": [SEARCH]}, "tool:web_search"),
    ("tools[1].type", {"tools": [FUNCTION, {"type": "web_search"}]}, ""),
    ("tools[0].type", {"tools": [{"type": "code_execution_20250825"}]}, "tool:code_execution"),
    ("tools[0].type", {"tools": [{"type": "builtin_function"}]}, "tool:builtin_function"),
    ("tools[0].type", {"tools": [{"google_search": {}}]}, ""),
    ("tools[0].type", {"tools": [{"type": 7}]}, ""),
]


@pytest.mark.parametrize(("field", "fields", "entry"), REFUSED)
def test_what_bills_by_itself_is_refused_until_it_is_allowed(
    field: str, fields: dict[str, Any], entry: str
) -> None:
    """With the name of the field; dropping it would change what the call does."""
    asked = call(**fields)
    with pytest.raises(InvalidRequest) as caught:
        permitted(asked, ())
    assert caught.value.field == field
    if entry:
        assert permitted(asked, (entry,)) is asked
        ALLOW.deserialize([entry])


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("service_tier", {"service_tier": 1}),
        ("service_tier", {"service_tier": ["priority"]}),
        ("speed", {"speed": True}),
        ("inference_geo", {"inference_geo": {}}),
        ("modalities", {"modalities": "audio"}),
        ("modalities", {"modalities": [None]}),
        ("tools", {"tools": {"type": "function"}}),
        ("tools[0]", {"tools": ["function"]}),
        ("tools[0].max_uses", {"tools": [{**SEARCH, "max_uses": None}]}),
        ("tools[0].max_uses", {"tools": [{**SEARCH, "max_uses": "3"}]}),
        ("tools[0].max_uses", {"tools": [{**SEARCH, "max_uses": 0}]}),
        ("tools[0].max_uses", {"tools": [{**SEARCH, "max_uses": True}]}),
        ("tools[0].max_uses", {"tools": [{**SEARCH, "max_uses": 1_001}]}),
        ("speed", {"service_tier": "priority", "speed": "fast"}),
    ],
)
def test_what_cannot_be_bounded_is_refused(field: str, fields: dict[str, Any]) -> None:
    """Odd types, searches without an end, two tiers in one call: even where all is allowed."""
    allow = ("service_tier:priority", "speed:fast", "tool:web_search")
    with pytest.raises(InvalidRequest) as caught:
        permitted(call(**fields), allow)
    assert caught.value.field == field


def test_searches_are_counted() -> None:
    """Each search tool as often as it may; the option of a search model makes one."""
    assert web_searches({}) == 0
    assert web_searches({"tools": [FUNCTION, SEARCH, {**SEARCH, "max_uses": 1}]}) == 4
    assert web_searches({"web_search_options": {}}) == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, None),
        ({"tools": [FUNCTION, SEARCH]}, None),
        ({"web_search_options": {}}, None),
        ({"plugins": None}, None),
        ({"plugins": []}, "plugins"),
        ({"tools": [SEARCH, {"type": "code_execution_20250825"}]}, "tools[1].type"),
    ],
)
def test_for_some_of_it_no_bound_is_known(fields: dict[str, Any], field: str | None) -> None:
    """Where the worst case is reserved it cannot be served."""
    assert unbounded_field(fields) == field


@pytest.mark.parametrize(
    ("value", "allow", "kept"),
    [
        ("a-2025-01-01", (), ""),
        ("a-2025-01-01", ("anthropic-beta:a-2025-01-01",), "a-2025-01-01"),
        (
            "b, a-2025-01-01,c",
            ("anthropic-beta:a-2025-01-01", "anthropic-beta:c"),
            "a-2025-01-01,c",
        ),
        ("b, a", ("anthropic-beta:*",), "b, a"),
        ("a", ("openai-beta:a",), ""),
    ],
)
def test_betas_pass_one_by_one(value: str, allow: tuple[str, ...], kept: str) -> None:
    """A context of a million tokens has a price of its own."""
    assert allowed_betas(value, "anthropic-beta", allow) == kept


def test_the_document_knows_every_name() -> None:
    """What the request can be asked for, the document can allow."""
    names = [f"{name}:x" for name in (*STANDARD, *BETA_HEADERS, "modalities", "tool")]
    names += BILLED_FIELDS
    assert ALLOW.deserialize(names) == names
