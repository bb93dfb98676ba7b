"""Request bodies for the contract tests: good ones, and what can be done to them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**63 - 1, -(2**63), 1.0, 0.5, -0.0, 1e300,
    "", "x", " ", "true", "1", "text/plain", "application/json", "TEXT/PLAIN",
    "x" * 256, "x" * 257, "é" * 256, "x" * 1024, "x" * 1025, "x" * 65_536, "x" * 65_537,
    "é" * 32_768, "é" * 32_769, "\x00", "\n", "0f5cf5c1-7b2d-4d53-9f68-5f0d3ad1f3bb",
    "0F5CF5C1-7B2D-4D53-9F68-5F0D3AD1F3BB", "0f5cf5c1-7b2d-4d53-9f68-5f0d3ad1f3bb\n",
    "0f5cf5c17b2d4d539f685f0d3ad1f3bb", "a" * 64, "A" * 64, "a" * 63, "a" * 64 + "\n",
    '{"messages": [{"role": "user"}]}', '{"messages": []}', '{"messages": null}', "{", "[1]",
    '{"a": 1, "a": 2}', "12345678901234567890", "NaN",
    [], [None], [1], ["x"], [[]], [{}], [{"role": "user", "content": "x"}], [{"role": ""}],
    [{"role": 1}], [{"role": "user"}, 7], [{"role": "user", "content": None, "more": [1]}],
    {}, {"": ""}, {"a": "b"}, {"a": 1}, {"a": None}, {"x" * 1024: "y"}, {"x" * 1025: "y"},
    {"a": "y" * 1025}, {str(n): "x" for n in range(64)}, {str(n): "x" for n in range(65)},
    {"messages": [{"role": "user"}]}, {"messages": []}, {"messages": "x"}, {"messages": None},
    {"messages": [{"role": ""}]}, {"messages": [{"content": "x"}]},
    {"include_usage": True}, {"include_usage": None}, {"include_usage": 1}, {"other": 1},
    {"max_tokens": 5}, {"max_tokens": 0}, {"max_tokens": None}, {"max_tokens": "5"},
    {"max_tokens": 1.0}, {"max_completion_tokens": True}, {"max_completion_tokens": 2},
    {"temperature": 0.3}, {"model": "x"}, {"n": 1}, {"n": None}, {"stream": None},
    {"stream_options": {}}, {"messages": [], "top_p": 1},
)  # fmt: skip
"""Values on and beside the edges of what some field takes."""

GOOD: Mapping[str, dict[str, Any]] = {
    "/v1/inference": {
        "request_id": "0f5cf5c1-7b2d-4d53-9f68-5f0d3ad1f3bb",
        "model": "gpt-4o",
        "payload": "hello",
        "content_type": "text/plain",
        "parameters": {"max_tokens": 5},
        "metadata": {"team": "a"},
        "stream": False,
    },
    "/v1/chat/completions": {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 5,
        "max_completion_tokens": 5,
        "n": 1,
        "temperature": 0.5,
        "top_p": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "/v1/completions": {
        "model": "gpt-4o",
        "prompt": "hello",
        "max_tokens": 5,
        "n": 1,
        "temperature": 0.5,
        "top_p": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "/v1/embeddings": {"model": "gpt-4o", "input": ["hello"]},
}
"""One good body for each operation, with every field that is looked at."""

NAMES = tuple(dict.fromkeys(name for fields in GOOD.values() for name in fields))

_FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
_PARTS: tuple[Any, ...] = (
    None, "", "x", [], {}, [None], ["x"], [{}], [{"type": "text"}], [{"type": "text", "text": "x"}],
    [{"type": "text", "text": 1}], [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}],
    [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
    [{"type": "image_url", "image_url": "data:,"}], [{"type": "image_url"}], [{"type": "refusal"}],
    [{"type": "input_audio", "input_audio": {}}], [{"type": "file", "file": {"file_data": 1}}],
)  # fmt: skip
_CALLS: tuple[Any, ...] = (
    None, [], {}, [None], [{}], [{"id": "c", "type": "function", "function": _FUNCTION}],
    [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}],
    [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    [{"id": 1, "function": {"name": None, "arguments": {}}}],
)  # fmt: skip
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "critic")
_PASSED_ON: Mapping[str, tuple[Any, ...]] = {
    "tools": (None, [], {}, [None], [{}], [{"type": "function"}], [{"type": "custom"}],
              [{"type": "function", "function": _FUNCTION}], [{"function": {"name": 1}}]),
    "tool_choice": (None, "auto", "none", "required", "x", {}, {"type": "function"}, 1,
                    {"type": "function", "function": {"name": "f"}}, {"type": "allowed_tools"}),
    "stop": (None, "", " ", "x", [], ["x"], [None], [""], 1, {}),
    "response_format": (None, {}, {"type": "text"}, {"type": "json_object"}, "x", {"type": 1},
                        {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}},
                        {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}),
    "parallel_tool_calls": (None, True, False, "x"),
    "user": (None, "", "x", 1, {}),
    "safety_identifier": (None, "x", []),
    "metadata": (None, {}, {"user_id": 1}, "x"),
    "reasoning_effort": (None, "low", "x", 1),
    "logprobs": (None, True, 5), "top_logprobs": (None, 3), "echo": (None, True),
    "best_of": (None, 1, 2, "x"), "suffix": (None, "x", 1), "seed": (None, 1), "functions": ([],),
    "thinking": (None, {}, {"type": "enabled", "budget_tokens": 1}, 1), "system": ("x", [], 1),
    "cache_control": (None, {"type": "ephemeral"}, 1), "logit_bias": (None, {}, {"1": 2}),
}  # fmt: skip
"""Fields that the readers do not look at and a translation does, with values for each."""

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
any_json = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"])},
        optional={"content": any_json, "name": st.text(max_size=5)},
    ),
    min_size=1,
    max_size=3,
)
_odd_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(_ROLES)},
        optional={
            "content": st.sampled_from(_PARTS),
            "tool_calls": st.sampled_from(_CALLS),
            "tool_call_id": st.sampled_from([None, "c", "", 1, {}]),
            "name": st.sampled_from([None, "f", 1]),
            "reasoning_content": st.sampled_from([None, "x", 1]),
            "refusal": st.sampled_from([None, "x", 1]),
        },
    ),
    min_size=1,
    max_size=4,
)
_counts = st.one_of(st.none(), st.integers(1, 10_000))


def _optional(fields: dict[str, st.SearchStrategy[Any]]) -> dict[str, st.SearchStrategy[Any]]:
    return {**fields, "max_tokens": _counts, "n": _counts, "temperature": st.floats(0, 2)}


good_bodies: Mapping[str, st.SearchStrategy[dict[str, Any]]] = {
    "/v1/inference": st.fixed_dictionaries(
        {
            "request_id": st.uuids().map(str),
            "model": st.sampled_from(["gpt-4o", "gpt", "unknown"]),
            "payload": st.text(min_size=1, max_size=40),
        },
        optional={
            "content_type": st.sampled_from(["text/plain", None]),
            "parameters": st.fixed_dictionaries({}, optional={"max_tokens": _counts}),
            "metadata": st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4),
            "stream": st.booleans(),
            "hmac_signature": st.none(),
        },
    ),
    "/v1/chat/completions": st.fixed_dictionaries(
        {"model": st.sampled_from(["gpt-4o", "gpt", "unknown"]), "messages": _messages},
        optional=_optional({"max_completion_tokens": _counts, "stream": st.booleans()}),
    ),
    "/v1/completions": st.fixed_dictionaries(
        {
            "model": st.sampled_from(["gpt-4o", "gpt", "unknown"]),
            "prompt": st.one_of(st.text(), st.lists(st.text(), min_size=1, max_size=3)),
        },
        optional=_optional({"stream": st.booleans()}),
    ),
    "/v1/embeddings": st.fixed_dictionaries(
        {
            "model": st.sampled_from(["gpt-4o", "gpt", "unknown"]),
            "input": st.one_of(st.text(), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
        }
    ),
}
"""Path → bodies that are in order."""


@st.composite
def damaged_bodies(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A good body of which up to three things were changed; it may still be in order."""
    fields = dict(draw(good_bodies[path]))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.one_of(st.sampled_from(NAMES), st.text(max_size=5)))
        change = draw(st.sampled_from(["drop", "edge", "any", "json"]))
        if change == "drop":
            fields.pop(name, None)
        elif change == "edge":
            fields[name] = draw(st.sampled_from(VALUES))
        elif change == "json" and path == "/v1/inference":
            fields |= {"content_type": "application/json", "payload": draw(any_json)}
        else:
            fields[name] = draw(any_json)
    return fields


@st.composite
def untranslatable_bodies(draw: st.DrawFn) -> dict[str, Any]:
    """A chat body that the readers let through, full of things that mean nothing or too much."""
    extras = draw(st.lists(st.sampled_from(sorted(_PASSED_ON)), max_size=4, unique=True))
    fields = draw(good_bodies["/v1/chat/completions"])
    return {
        **fields,
        "messages": draw(_odd_messages),
        **{name: draw(st.sampled_from(_PASSED_ON[name])) for name in extras},
    }


def new_request_id() -> str:
    """A UUID as a client makes one."""
    return str(uuid.uuid4())
