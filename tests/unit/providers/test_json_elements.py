"""How many elements a JSON text has is known before it is parsed; counted here by the parser."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.providers.anthropic.conversation import conversation
from router.providers.json_elements import MAX_REPLY_ELEMENTS, count_elements, parse_reply
from router.providers.provider import Provider
from router.providers.provider_table import PROVIDERS
from tests.unit.upstream.builders import new_call

VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a,[{"\\', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('a,"\\'), inner, max_size=4)
    ),
    max_leaves=30,
)


def commas_and_brackets(value: Any) -> int:
    """By walking through the parsed value: each array and object, and all but the first in it."""
    if not isinstance(value, (list, dict)):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(0, len(value) - 1) + sum(map(commas_and_brackets, inner))


@given(VALUES, st.integers(0, 12))
def test_signs_in_strings_do_not_count(value: Any, most: int) -> None:
    """Exact where it matters: up to the bound, and which side of it."""
    text = json.dumps(value).encode()
    true = commas_and_brackets(value)
    counted = count_elements(text, most)
    if true > most:
        assert counted > most
    elif text.count(b'"') <= 4 * most:
        assert true <= counted <= max(most, true)


@pytest.mark.parametrize(
    "unit", ["[[]],", "{},", "1,", '"",', '"a":1,', '{"a":1},', "0.1,", "null,", "[1,2],"]
)
def test_each_shape_of_many_elements_is_noticed(unit: str) -> None:
    """Whatever they are."""
    assert count_elements(f'{{"a":[{unit * 60_000}0]}}'.encode(), 50_000) > 50_000


@pytest.mark.parametrize("text", ["hello, world ", "f(a, [b], {c}) ", '\\"quoted\\", ', "\\\\, "])
def test_a_long_text_is_one_element(text: str) -> None:
    """Prose and programs of a megabyte pass."""
    body = f'{{"messages":[{{"role":"user","content":"{text * 80_000}"}}]}}'.encode()
    json.loads(body)
    assert count_elements(body, 1000) < 10


def test_a_reply_with_too_many_elements_is_none() -> None:
    """Of the backend's making: a 502, and no seconds of parsing."""
    assert parse_reply(b'{"a": [1, 2]}') == {"a": [1, 2]}
    with pytest.raises(ValueError, match="too many elements"):
        parse_reply(b"[" + b"0," * MAX_REPLY_ELEMENTS + b"0]")


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS.keys())
def test_a_reply_that_is_refused_is_not_parsed_for_its_error(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is any other body that is longer than an error."""
    parsed: list[int] = []
    loads = orjson.loads
    monkeypatch.setattr(orjson, "loads", lambda text: parsed.append(len(text)) or loads(text))
    body = b'{"error": {"message": "no"}, "a": [' + b"{}," * MAX_REPLY_ELEMENTS + b"0]}"
    with pytest.raises(ValueError, match="too many elements"):
        provider.read_reply(new_call("chat"), body)
    assert provider.read_error(body) is None
    assert parsed == []


def test_arguments_of_tools_are_bounded() -> None:
    """A string in the body, and JSON for a provider that wants it parsed."""
    text = '{"a": [' + "{}," * 200_000 + "0]}"
    function = {"name": "f", "arguments": text}
    calls = [{"id": "1", "type": "function", "function": function}]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": calls},
    ]
    with pytest.raises(InvalidRequest) as refusal:
        conversation("chat", {"messages": messages})
    assert (refusal.value.field or "").endswith("function.arguments")
