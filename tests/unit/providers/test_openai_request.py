"""What an OpenAI-dialect backend is sent."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.call import Call, Operation
from router.providers.provider_table import PROVIDERS
from tests.unit.upstream.builders import new_call

OPENAI = PROVIDERS["openai"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.text(max_size=10), JSON, max_size=5)


def sent(call: Call, upstream_model: str = "gpt-4o") -> Any:
    return orjson.loads(OPENAI.write_request(call, upstream_model, 1000))


@pytest.mark.parametrize("operation", ["chat", "completions", "embeddings"])
def test_bytes_pass_where_nothing_has_to_change(operation: Operation) -> None:
    """The client's own bytes object goes out: not parsed again, not copied (P2)."""
    call = new_call(operation, seed=1)
    assert OPENAI.write_request(call, "gpt-4o", 1000) is call.body
    asked = new_call(
        "chat", stream=True, include_usage=True, stream_options={"include_usage": True}
    )
    assert OPENAI.write_request(asked, "gpt-4o", 1000) is asked.body


@settings(max_examples=50)
@given(FIELDS)
def test_only_the_model_changes(fields: dict[str, Any]) -> None:
    """Every field, known or not, means the same to the backend."""
    fields.pop("model", None)
    call = new_call(**{"alias": True, **fields})
    expected = {**call.fields, "model": "the-backend-s-name"}
    assert sent(call, "the-backend-s-name") == expected


def test_an_alias_is_replaced() -> None:
    """The backend hears its own name for the model, not the one that the client used."""
    call = new_call(model="gpt-4o", requested_model="fast")
    assert sent(call)["model"] == "gpt-4o"
    assert call.fields["model"] == "fast"  # the call itself stays as it was


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {}}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False}}, {"include_usage": True}),
        (
            {"stream_options": {"continuous_usage_stats": True, "x": [1]}},
            {"continuous_usage_stats": True, "x": [1], "include_usage": True},
        ),
    ],
)
@pytest.mark.parametrize("operation", ["chat", "completions"])
def test_a_stream_is_asked_for_its_usage(
    operation: Operation, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Other options of the stream stay, and the client's call stays as it was."""
    call = new_call(operation, stream=True, top_p=0.5, **options)
    request = sent(call)
    assert request.pop("stream_options") == expected
    assert request == {
        name: value for name, value in call.fields.items() if name != "stream_options"
    }
    assert call.fields.get("stream_options") == options.get("stream_options")


def test_embeddings_are_no_stream() -> None:
    """A field that means nothing there is passed, not added to."""
    call = new_call("embeddings", stream=True, input="hi")
    assert OPENAI.write_request(call, "gpt-4o", 1000) is call.body


def test_a_translated_call_is_written_from_its_fields() -> None:
    """A call that came in another dialect has no bytes of its own."""
    call = new_call(translated=True, temperature=0.5)
    assert call.body is None
    assert sent(call) == call.fields


def test_the_output_bound_stays_the_client_s() -> None:
    """Unlike the Messages API, this dialect needs none."""
    call = new_call()
    assert OPENAI.write_request(call, "gpt-4o", 123) is call.body


BOTH = ("max_tokens", "max_completion_tokens")


@pytest.mark.parametrize(
    ("operation", "field", "given", "sent_limits"),
    [
        ("chat", "max_tokens", {}, {"max_tokens": 123}),
        ("chat", "max_completion_tokens", {}, {"max_completion_tokens": 123}),
        ("chat", "max_tokens", {"max_tokens": None}, {"max_tokens": 123}),
        ("chat", "max_tokens", {"max_tokens": 7}, None),
        ("chat", "max_tokens", {"max_tokens": 7, "max_completion_tokens": 9}, None),
        # A server that does not know the one name would not see that bound.
        ("chat", "max_tokens", {"max_completion_tokens": 7}, dict.fromkeys(BOTH, 7)),
        # OpenAI knows both, and takes one.
        ("chat", "max_completion_tokens", {"max_tokens": 7}, None),
        ("chat", "max_completion_tokens", {"max_completion_tokens": 7}, None),
        ("completions", "max_completion_tokens", {}, {"max_tokens": 123}),
        ("completions", "max_tokens", {"max_tokens": 7}, None),
        ("embeddings", "max_tokens", {}, None),
    ],
)
def test_a_bound_is_sent_where_a_budget_relies_on_it(
    operation: Operation, field: str, given: dict[str, Any], sent_limits: dict[str, int] | None
) -> None:
    """P6: under the name that the backend knows, and no byte changes where nothing has to."""
    call = new_call(operation, **given)
    call.output_limit = 123
    body = OPENAI.write_request(call, "gpt-4o", 9_999, output_limit_field=field)
    if sent_limits is None:
        assert body is call.body
    else:
        written = orjson.loads(body)
        assert {name: written[name] for name in BOTH if name in written} == sent_limits
        assert written == {**call.fields, **sent_limits}
