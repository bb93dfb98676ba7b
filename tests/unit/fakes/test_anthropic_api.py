"""The fake of the Messages API, held against the official SDK: its client and its types."""

from __future__ import annotations

import http.client
import itertools
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import anthropic
import orjson
import pydantic
import pytest
from anthropic.types import Message, RawMessageStreamEvent

from tests.fakes.backend.anthropic_api import AnthropicApi
from tests.fakes.backend.anthropic_messages import compose, stream_events
from tests.fakes.backend.anthropic_requests import InvalidCall, check_request, check_shape

KEY = "sk-ant-test"
HEADERS = {"x-api-key": KEY, "anthropic-version": "2023-06-01", "content-type": "application/json"}
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(RawMessageStreamEvent)


def request(**fields: Any) -> dict[str, Any]:
    return {"model": "claude-x", "max_tokens": 100, "messages": HELLO} | fields


def said(*roles_and_contents: Any) -> list[dict[str, Any]]:
    pairs = zip(roles_and_contents[::2], roles_and_contents[1::2], strict=True)
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.fixture
def api() -> Iterator[AnthropicApi]:
    with AnthropicApi(api_key=KEY) as api:
        yield api


@pytest.fixture
def client(api: AnthropicApi) -> Iterator[anthropic.Anthropic]:
    made = anthropic.Anthropic(base_url=api.url, api_key=KEY, max_retries=0, timeout=5)
    with made:
        yield made


def send(
    api: AnthropicApi, body: Any, path: str = "/v1/messages", headers: Any = HEADERS
) -> tuple[int, bytes]:
    """Status and body of one call; of a body that breaks off, what came."""
    connection = http.client.HTTPConnection(str(urlsplit(api.url).hostname), api.port, timeout=5)
    try:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        connection.request("POST", path, data, headers)
        response = connection.getresponse()
        try:
            return response.status, response.read()
        except http.client.IncompleteRead as cut:
            return response.status, cut.partial
    finally:
        connection.close()


# --- answers ---------------------------------------------------------------------------------

CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cut short": {"max_tokens": 2},
    "stopped": {"stop_sequences": ["zzz", "Hel"]},
    "nothing to say": {"stop_sequences": ["You"]},
    "a tool": {"messages": said("user", "use tool"), "tools": [TOOL]},
    "two tools": {"messages": said("user", "use tools"), "tools": [TOOL, TOOL | {"name": "now"}]},
    "thinking": {"thinking": {"type": "adaptive"}},
    "a schema": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
}


def assert_known(part: Any) -> None:
    """Nothing in a reply is unknown to the SDK, whose models would tolerate it."""
    if isinstance(part, pydantic.BaseModel):
        assert not part.model_extra
        part = [getattr(part, name) for name in type(part).model_fields]
    for inner in part if isinstance(part, (list, tuple)) else ():
        assert_known(inner)


@pytest.mark.parametrize("fields", CALLS.values(), ids=CALLS)
def test_replies_have_the_types_of_the_sdk(fields: dict[str, Any]) -> None:
    """Whole messages and every event but ``ping``, which the SDK drops, with nothing extra."""
    message = compose(request(**fields))
    assert_known(Message.model_validate(message, strict=True))
    events = [data for kind, data in stream_events(message) if kind != "ping"]
    assert len(events) >= 3
    for event in events:
        assert_known(EVENT.validate_python(event, strict=True))


@pytest.mark.parametrize("fields", CALLS.values(), ids=CALLS)
def test_the_sdk_makes_of_a_stream_what_was_answered_whole(
    api: AnthropicApi, client: anthropic.Anthropic, fields: dict[str, Any]
) -> None:
    """U7: text, tool calls, reasons of the end and usage."""
    whole = client.messages.create(**request(**fields))
    with client.messages.stream(**request(**fields)) as stream:
        streamed = stream.get_final_message()
    assert len(api.requests) == 2
    shown = {"id", "content", "model", "role", "stop_reason", "stop_sequence", "usage"}
    expected = whole.model_dump(include=shown, exclude_none=True)
    assert streamed.model_dump(include=shown, exclude_none=True) == expected


def test_a_message_answers_what_was_said_last(client: anthropic.Anthropic) -> None:
    """The whole reply is what one would write down before asking."""
    message = client.messages.create(**request()).model_dump(exclude_none=True)
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [{"type": "text", "text": "You said: Hello"}],
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 3,
            "service_tier": "standard",
        },
    }


def test_a_stream_has_the_events_of_the_api() -> None:
    """Names and order of the events are those of the documentation."""
    kinds = [kind for kind, _ in stream_events(compose(request()))]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize(
    ("choice", "text", "called"),
    [
        ({"type": "auto"}, "hello", []),
        ({"type": "none"}, "use tools", []),
        ({"type": "any"}, "hello", ["get_weather"]),
        ({"type": "tool", "name": "now"}, "hello", ["now"]),
        ({"type": "auto"}, "use tools", ["get_weather", "now"]),
        ({"type": "auto", "disable_parallel_tool_use": True}, "use tools", ["get_weather"]),
    ],
)
def test_the_choice_of_tools_is_honoured(choice: Any, text: str, called: list[str]) -> None:
    """Which tools are called depends on the choice first, and on the text second."""
    tools = [TOOL, TOOL | {"name": "now"}]
    body = request(messages=said("user", text), tool_choice=choice, tools=tools)
    check_request(body)
    uses = [block for block in compose(body)["content"] if block["type"] == "tool_use"]
    assert [block["name"] for block in uses] == called
    assert [block["input"] for block in uses] == [{"city": text}] * len(called)


@pytest.mark.parametrize(
    ("fields", "text", "reason", "sequence"),
    [
        ({"max_tokens": 2}, "You said:", "max_tokens", None),
        ({"max_tokens": 3}, "You said: Hello", "end_turn", None),
        ({"stop_sequences": ["zzz", "Hel"]}, "You said: ", "stop_sequence", "Hel"),
        ({"stop_sequences": ["Hel"], "max_tokens": 1}, "You", "max_tokens", None),
        ({"output_config": CALLS["a schema"]["output_config"]}, '{"n":7}', "end_turn", None),
        (
            {"messages": said("user", [{"type": "tool_result", "content": "Rain"}])},
            "The tool said: Rain",
            "end_turn",
            None,
        ),
    ],
)
def test_what_an_answer_says_and_where_it_stops(
    fields: dict[str, Any], text: str, reason: str, sequence: str | None
) -> None:
    """Length, stop sequences, a schema and the result of a tool shape the answer."""
    message = compose(request(**fields))
    assert message["content"] == [{"type": "text", "text": text}]
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def test_marked_content_counts_as_cached() -> None:
    """Cached tokens are counted apart from the others, as the API does."""
    marked = {"type": "text", "text": "abcdef ghijkl", "cache_control": {"type": "ephemeral"}}
    usage = compose(request(system=[marked]))["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (5, 2)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "other"}, 401),
        ({"anthropic-version": ""}, 400),
        ({"anthropic-version": "1999"}, 400),
        ({"content-type": "text/plain"}, 400),
        ({"content-type": ""}, 400),
    ],
)
def test_headers_are_demanded(api: AnthropicApi, changed: dict[str, Any], status: int) -> None:
    """Key, version and content type are checked before anything is answered."""
    headers = {name: value for name, value in (HEADERS | changed).items() if value}
    assert send(api, request(), headers=headers)[0] == status


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/chat/completions", b"{}", 404, "not_found_error"),
        ("/v1/messages", b"{", 400, "invalid_request_error"),
        ("/v1/messages", b"[]", 400, "invalid_request_error"),
        ("/v1/messages?beta=true", b"{}", 400, "invalid_request_error"),
        ("/v1/messages", orjson.dumps(request(model="gpt-4o")), 404, "not_found_error"),
    ],
)
def test_only_the_endpoint_and_its_models_answer(
    api: AnthropicApi, path: str, body: bytes, status: int, kind: str
) -> None:
    """Other paths, models and bodies get the API's own errors."""
    found, answer = send(api, body, path)
    assert (found, orjson.loads(answer)["error"]["type"]) == (status, kind)


USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "x"}
WORD = {"type": "text", "text": "x"}
MISSHAPEN: list[dict[str, Any]] = [
    {"max_tokens": None},
    {"max_tokens": "5"},
    {"seed": 1},
    {"top_p": "x"},
    {"top_k": 1.5},
    {"stream": "yes"},
    {"stop_sequences": [1]},
    {"metadata": {"team": "x"}},
    {"service_tier": "flex"},
    {"system": 5},
    {"system": [USE]},
    {"output_config": {"format": {"type": "json"}}},
    {"thinking": {"type": "enabled"}},
    {"tools": [{"name": "f"}]},
    {"tools": [TOOL | {"x": 1}]},
    {"tools": [TOOL], "tool_choice": {"type": "function"}},
    {"messages": said("tool", "x")},
    {"messages": said("user", None)},
    {"messages": [HELLO[0] | {"name": "x"}]},
    {"messages": said("user", [WORD | {"text": 1}])},
    {"messages": said("user", [WORD | {"x": 1}])},
    {"messages": said("user", [{"type": "image_url"}])},
    {"messages": said("user", [{"type": "image", "source": {"type": "base64"}}])},
]
FORBIDDEN: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": 1.1}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"messages": []}, "at least one message"),
    ({"stop_sequences": ["\n"]}, "stop_sequences"),
    ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "max_tokens"),
    ({"tools": [TOOL | {"name": "a b"}]}, "name"),
    ({"tools": [TOOL | {"input_schema": {}}]}, "input_schema.type"),
    ({"tool_choice": {"type": "auto"}}, "only while providing tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "not among the tools"),
    ({"messages": said("system", "x")}, "first has to be the user's"),
    ({"messages": said("user", "x", "system", "x")}, "system prompt"),
    ({"messages": said("assistant", "x")}, "first has to be the user's"),
    ({"messages": said("user", "")}, "non-empty"),
    ({"messages": said("user", "x", "assistant", "", "user", "x")}, "messages.1"),
    ({"messages": said("user", " ")}, "non-whitespace"),
    ({"messages": said("user", [WORD | {"text": ""}])}, "non-whitespace"),
    ({"messages": said("user", [USE])}, "no tool_use"),
    ({"messages": said("user", "x", "assistant", "x ")}, "ends with whitespace"),
    ({"messages": said("user", [RESULT])}, "without its tool_use"),
    ({"messages": said("user", "x", "assistant", [USE])}, "immediately after"),
    ({"messages": said("user", "x", "assistant", [USE], "user", "x")}, "immediately after"),
    ({"messages": said("user", "x", "assistant", [USE], "user", [WORD, RESULT])}, "immediately"),
]


@pytest.mark.parametrize("fields", MISSHAPEN, ids=str)
def test_what_the_sdk_has_no_type_for_is_refused(fields: dict[str, Any]) -> None:
    """Wrong types, missing fields and fields that do not exist, at any depth."""
    check_request(request())
    with pytest.raises(InvalidCall):
        check_shape(request(**fields))


@pytest.mark.parametrize(("fields", "message"), FORBIDDEN, ids=str)
def test_what_the_api_refuses_beyond_the_types(fields: dict[str, Any], message: str) -> None:
    """Every mistake that a translation could make, though the shape is right."""
    with pytest.raises(InvalidCall, match=message):
        check_request(request(**fields))


@pytest.mark.parametrize("name", ["model", "max_tokens", "messages"])
def test_what_is_required_is_missed(name: str) -> None:
    """Unlike in the OpenAI dialect, the length is required."""
    body = request()
    del body[name]
    with pytest.raises(InvalidCall, match=name):
        check_request(body)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1, "top_p": 0.5, "top_k": 3},
        {"messages": said("user", "x", "user", "y", "assistant", "z", "assistant", "z")},
        {"messages": said("user", "x", "assistant", [USE], "user", [RESULT, WORD])},
        {
            "messages": said(
                "user", "x", "assistant", [WORD], "assistant", [USE], "user", [RESULT], "user", "y"
            )
        },
        {"messages": said("user", "x", "assistant", "")},
    ],
)
def test_what_the_api_takes_is_taken(fields: dict[str, Any]) -> None:
    """Turns of one role are read as one; only the last message may be an empty assistant's."""
    check_request(request(**fields))


# --- misbehaviour ----------------------------------------------------------------------------


def test_an_overloaded_api_answers_529(api: AnthropicApi, client: anthropic.Anthropic) -> None:
    """The SDK knows the error; the switch works while the server runs, in both directions."""
    api.overloaded = True
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        client.messages.create(**request())
    assert overloaded.value.status_code == 529
    assert overloaded.value.body["error"]["type"] == "overloaded_error"
    api.reset()
    assert client.messages.create(**request()).stop_reason == "end_turn"


def test_a_stream_may_fail_in_the_middle(api: AnthropicApi, client: anthropic.Anthropic) -> None:
    """An error event comes after a 200, and the stream ends cleanly behind it."""
    api.error_after_deltas = 1
    with client.messages.create(**request(stream=True)) as stream:
        assert next(iter(stream)).type == "message_start"
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            list(stream)
    body = send(api, request(stream=True))[1]
    assert (body.count(b"text_delta"), body.endswith(b"\n\n")) == (1, True)


def test_a_stream_may_be_cut(api: AnthropicApi) -> None:
    """The connection breaks inside an event, without the end of the chunked body."""
    api.cut_after_deltas = 2
    body = send(api, request(stream=True))[1]
    assert body.count(b"text_delta") == 2
    assert b"message_stop" not in body
    assert not body.endswith(b"\n\n")
