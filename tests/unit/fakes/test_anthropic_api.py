"""The fake of the Messages API is as strict as the API and answers what can be predicted."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from tests.fakes.anthropic_api import AnthropicApi, ApiError, check_request, compose, stream_events

KEY = "sk-ant-test"
HEADERS = {"x-api-key": KEY, "anthropic-version": "2023-06-01", "content-type": "application/json"}
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def request(**fields: Any) -> dict[str, Any]:
    return {"model": "claude-x", "max_tokens": 100, "messages": HELLO} | fields


@pytest.fixture(name="api")
def _api() -> Iterator[AnthropicApi]:
    with AnthropicApi(api_key=KEY) as api:
        yield api


def send(
    api: AnthropicApi,
    body: Any,
    *,
    method: str = "POST",
    path: str = "/messages",
    headers: dict[str, str] = HEADERS,
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own; the body may be bytes as they are."""
    url = urlsplit(api.url)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=5)
    try:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        connection.request(method, url.path + path, data, headers)
        response = connection.getresponse()
        try:
            return response, response.read()
        except http.client.IncompleteRead as cut:
            return response, cut.partial
    finally:
        connection.close()


def events(stream: bytes) -> list[tuple[str, Any]]:
    """The events of a stream, each in the two lines that the API writes."""
    *blocks, last = stream.split(b"\n\n")
    assert last == b""
    lines = [block.split(b"\n") for block in blocks]
    return [
        (kind.removeprefix(b"event: ").decode(), orjson.loads(data.removeprefix(b"data: ")))
        for kind, data in lines
    ]


# --- answers ---------------------------------------------------------------------------------


def test_a_message_answers_what_was_said_last(api: AnthropicApi) -> None:
    """The whole reply is what one would write down before asking."""
    response, body = send(api, request())
    assert response.status == 200
    message = orjson.loads(body)
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [{"type": "text", "text": "You said: Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 3,
            "service_tier": "standard",
        },
    }


def test_a_stream_has_the_events_of_the_api(api: AnthropicApi) -> None:
    """Names, order and figures of the events are those of the documentation."""
    response, body = send(api, request(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    kinds = [kind for kind, _ in events(body)]
    assert kinds == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    data = dict(events(body))
    assert all(kind == fields["type"] for kind, fields in events(body))
    assert data["message_start"]["message"]["content"] == []
    assert data["message_start"]["message"]["usage"]["input_tokens"] == 5
    assert data["message_start"]["message"]["usage"]["output_tokens"] == 1
    assert data["content_block_start"]["content_block"] == {"type": "text", "text": ""}
    assert data["content_block_delta"]["delta"] == {"type": "text_delta", "text": " Hello"}
    assert data["message_delta"]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert data["message_delta"]["usage"]["output_tokens"] == 3
    assert data["message_stop"] == {"type": "message_stop"}


def test_a_tool_is_used_when_the_text_says_so() -> None:
    """The input follows the tool's schema, streamed in pieces after an empty one."""
    message = compose(request(messages=[{"role": "user", "content": "use tool"}], tools=[TOOL]))
    call = {"type": "tool_use", "id": "toolu_00get_weather", "name": "get_weather"}
    assert message["stop_reason"] == "tool_use"
    assert message["content"][1] == call | {"input": {"city": "use tool"}}
    streamed = [data for kind, data in stream_events(message) if data.get("index") == 1]
    assert streamed[0]["content_block"] == call | {"input": {}}
    pieces = [data["delta"]["partial_json"] for data in streamed[1:-1]]
    assert pieces[0] == ""
    assert orjson.loads("".join(pieces)) == {"city": "use tool"}


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
    body = request(
        messages=[{"role": "user", "content": text}],
        tool_choice=choice,
        tools=[TOOL, TOOL | {"name": "now"}],
    )
    check_request(body)
    content = compose(body)["content"]
    assert [block["name"] for block in content if block["type"] == "tool_use"] == called


@pytest.mark.parametrize(
    ("fields", "text", "reason", "sequence"),
    [
        ({"max_tokens": 2}, "You said:", "max_tokens", None),
        ({"max_tokens": 3}, "You said: Hello", "end_turn", None),
        ({"stop_sequences": ["zzz", "Hel"]}, "You said: ", "stop_sequence", "Hel"),
        ({"stop_sequences": ["Hel"], "max_tokens": 1}, "You", "max_tokens", None),
    ],
)
def test_an_answer_stops_where_it_should(
    fields: dict[str, Any], text: str, reason: str, sequence: str | None
) -> None:
    """Length and stop sequences cut the answer and say so."""
    message = compose(request(**fields))
    assert message["content"] == [{"type": "text", "text": text}]
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def test_an_answer_that_stops_at_once_is_empty() -> None:
    """The API answers with no content at all when the first token is the stop sequence."""
    assert compose(request(stop_sequences=["You"]))["content"] == []


def test_thinking_structure_and_results_shape_the_answer() -> None:
    """Thinking comes first, a schema makes JSON, a tool's result is repeated."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    thoughtful = compose(
        request(
            thinking={"type": "adaptive"},
            output_config={"format": {"type": "json_schema", "schema": schema}},
        )
    )
    assert [block["type"] for block in thoughtful["content"]] == ["thinking", "text"]
    assert thoughtful["content"][1]["text"] == '{"n":7}'
    result = {"type": "tool_result", "tool_use_id": "t", "content": "Rain"}
    answer = compose(request(messages=[{"role": "user", "content": [result]}], tools=[TOOL]))
    assert answer["content"] == [{"type": "text", "text": "The tool said: Rain"}]


def test_marked_content_counts_as_cached() -> None:
    """Cached tokens are counted apart from the others, as the API does."""
    marked = {"type": "text", "text": "abcdef ghijkl", "cache_control": {"type": "ephemeral"}}
    usage = compose(request(system=[marked]))["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (5, 2)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "status", "kind", "message"),
    [
        ({"x-api-key": None}, 401, "authentication_error", "x-api-key header is required"),
        ({"x-api-key": "other"}, 401, "authentication_error", "invalid x-api-key"),
        ({"anthropic-version": None}, 400, "invalid_request_error", "anthropic-version: header"),
        ({"anthropic-version": "1999"}, 400, "invalid_request_error", "anthropic-version:"),
        ({"content-type": "text/plain"}, 400, "invalid_request_error", "content-type:"),
        ({"content-type": None}, 400, "invalid_request_error", "content-type:"),
    ],
)
def test_headers_are_demanded(
    api: AnthropicApi, changed: dict[str, Any], status: int, kind: str, message: str
) -> None:
    """Key, version and content type are checked before anything is answered."""
    headers = {name: value for name, value in (HEADERS | changed).items() if value is not None}
    response, body = send(api, request(), headers=headers)
    refusal = orjson.loads(body)
    assert (response.status, refusal["type"], refusal["error"]["type"]) == (status, "error", kind)
    assert refusal["error"]["message"].startswith(message)
    assert refusal["request_id"] == response.headers["request-id"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("GET", "/messages", b"", 405, "invalid_request_error"),
        ("POST", "/chat/completions", b"{}", 404, "not_found_error"),
        ("POST", "/messages", b"{", 400, "invalid_request_error"),
        ("POST", "/messages", b"[]", 400, "invalid_request_error"),
        ("POST", "/messages?beta=true", b"{}", 400, "invalid_request_error"),
        ("POST", "/messages", orjson.dumps(request(model="gpt-4o")), 404, "not_found_error"),
    ],
)
def test_only_the_endpoint_and_its_models_answer(
    api: AnthropicApi, method: str, path: str, body: bytes, status: int, kind: str
) -> None:
    """Other paths, methods, models and bodies get the API's own errors."""
    response, answer = send(api, body, method=method, path=path)
    assert (response.status, orjson.loads(answer)["error"]["type"]) == (status, kind)


def said(*roles_and_contents: Any) -> list[dict[str, Any]]:
    pairs = zip(roles_and_contents[::2], roles_and_contents[1::2], strict=True)
    return [{"role": role, "content": content} for role, content in pairs]


USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "x"}
WORD = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"seed": 1}, "seed: Extra inputs are not permitted"),
        ({"temperature": 1.1}, "temperature: range: 0..1"),
        ({"top_p": "x"}, "top_p: range: 0..1"),
        ({"stream": "yes"}, "stream: Input should be a valid boolean"),
        ({"stop_sequences": ["\n"]}, "stop_sequences: each stop sequence must contain"),
        ({"stop_sequences": [1]}, "stop_sequences.0: Input should be a valid string"),
        ({"metadata": {"team": "x"}}, "metadata.team: Extra inputs are not permitted"),
        ({"service_tier": "flex"}, "service_tier: Input should be"),
        ({"system": 5}, "system: Input should be a valid string"),
        ({"system": [USE]}, "system.0: Input tag 'tool_use'"),
        ({"output_config": {"format": {"type": "json"}}}, "output_config.format.schema: Field"),
        ({"thinking": {"type": "enabled"}}, "thinking.enabled.budget_tokens: Field required"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.enabled.budget_tokens"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            "`max_tokens` must be greater than `thinking.budget_tokens`",
        ),
        ({"tools": [{"name": "f"}]}, "tools.0.custom.input_schema: Field required"),
        ({"tools": [TOOL | {"x": 1}]}, "tools.0.custom.x: Extra inputs are not permitted"),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools.0.custom.name: String should match pattern"),
        ({"tools": [TOOL | {"input_schema": {}}]}, "tools.0.custom.input_schema.type: Field"),
        ({"tool_choice": {"type": "auto"}}, "tool_choice: tool_choice may only be specified"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice: Input tag"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "Tool 'g' not found"),
        ({"messages": said("system", "x")}, 'messages: Unexpected role "system"'),
        ({"messages": said("tool", "x")}, "messages.0.role: Input should be 'user'"),
        ({"messages": said("assistant", "x")}, 'messages: first message must use the "user"'),
        ({"messages": said("user", "")}, "messages.0: all messages must have non-empty content"),
        ({"messages": said("user", "x", "assistant", "", "user", "x")}, "messages.1: all messages"),
        ({"messages": said("user", " ")}, "messages: text content blocks must contain non-white"),
        ({"messages": said("user", None)}, "messages.0.content: Input should be a valid list"),
        ({"messages": [HELLO[0] | {"name": "x"}]}, "messages.0.name: Extra inputs"),
        ({"messages": said("user", [WORD | {"text": ""}])}, "messages: text content blocks must"),
        ({"messages": said("user", [WORD | {"x": 1}])}, "messages.0.content.0.text.x: Extra"),
        ({"messages": said("user", [USE])}, "messages.0.content.0: Input tag 'tool_use'"),
        ({"messages": said("user", [{"type": "image_url"}])}, "messages.0.content.0: Input tag"),
        (
            {"messages": said("user", [{"type": "image", "source": {"type": "base64"}}])},
            "messages.0.content.0.image.source.base64.data: Field required",
        ),
        ({"messages": said("user", "x", "assistant", "x ")}, "messages: final assistant content"),
        ({"messages": said("user", [RESULT])}, "messages: unexpected `tool_use_id` found"),
        ({"messages": said("user", "x", "assistant", [USE])}, "messages: `tool_use` ids were"),
        (
            {"messages": said("user", "x", "assistant", [USE], "user", "x")},
            "messages: `tool_use` ids were found without `tool_result` blocks immediately after",
        ),
        (
            {"messages": said("user", "x", "assistant", [USE], "user", [WORD, RESULT])},
            "messages: `tool_use` ids were found without `tool_result` blocks immediately after",
        ),
    ],
)  # fmt: skip
def test_a_request_is_checked_as_strictly_as_the_api_does(
    fields: dict[str, Any], message: str
) -> None:
    """Every mistake a translation could make is refused in the API's words."""
    with pytest.raises(ApiError) as refusal:
        check_request(request(**fields))
    assert (refusal.value.status, refusal.value.error["type"]) == (400, "invalid_request_error")
    assert refusal.value.error["message"].startswith(message)


@pytest.mark.parametrize("name", ["model", "max_tokens", "messages"])
def test_what_is_required_is_missed(name: str) -> None:
    """Unlike in the OpenAI dialect, the length is required."""
    body = request()
    del body[name]
    with pytest.raises(ApiError, match=f"{name}: Field required"):
        check_request(body)


@pytest.mark.parametrize(
    "messages",
    [
        said("user", "x", "user", "y", "assistant", "z", "assistant", "z"),
        said("user", "x", "assistant", [USE], "user", [RESULT, WORD]),
        said("user", "x", "assistant", [WORD], "assistant", [USE], "user", [RESULT], "user", "y"),
        said("user", "x", "assistant", ""),
    ],
)
def test_what_the_api_takes_is_taken(messages: Any) -> None:
    """Turns of one role are read as one; only the last message may be an empty assistant's."""
    check_request(request(messages=messages))


# --- misbehaviour, and what is remembered ----------------------------------------------------


def test_an_overloaded_api_answers_529(api: AnthropicApi) -> None:
    """The switch works while the server runs, in both directions."""
    api.overloaded = True
    response, body = send(api, request())
    assert (response.status, orjson.loads(body)["error"]["type"]) == (529, "overloaded_error")
    api.overloaded = False
    assert send(api, request())[0].status == 200


def test_a_stream_may_fail_in_the_middle(api: AnthropicApi) -> None:
    """An error event comes after a 200, and the stream ends cleanly behind it."""
    api.error_after_deltas = 1
    _, body = send(api, request(stream=True))
    kinds = [kind for kind, _ in events(body)]
    assert kinds[-2:] == ["content_block_delta", "error"]
    assert events(body)[-1][1] == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "Overloaded"},
    }


def test_a_stream_may_be_cut(api: AnthropicApi) -> None:
    """The connection breaks inside an event, without the end of the chunked body."""
    api.cut_after_deltas = 2
    _, body = send(api, request(stream=True))
    assert body.count(b"text_delta") == 2
    assert b"message_stop" not in body
    assert not body.endswith(b"\n\n")


def test_a_client_that_leaves_is_noticed(api: AnthropicApi) -> None:
    """A stream whose client has closed its connection is given up, and tests can wait for it."""
    api.pause_s = 0.001
    url = urlsplit(api.url)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=5)
    long = [{"role": "user", "content": "word " * 5000}]
    body = orjson.dumps(request(stream=True, messages=long, max_tokens=9999))
    connection.request("POST", "/v1/messages", body, HEADERS)
    response = connection.getresponse()
    assert response.readline() == b"event: message_start\n"
    assert not api.client_gone.is_set()
    response.close()
    connection.close()
    assert api.client_gone.wait(5)


def test_requests_are_remembered(api: AnthropicApi) -> None:
    """Tests read what was sent, refused or not, in order."""
    send(api, request(stream=True))
    send(api, b"{")
    first, second = api.requests
    assert (first.method, first.path) == ("POST", "/v1/messages")
    assert (first.headers["x-api-key"], first.fields["stream"]) == (KEY, True)
    assert second.body == b"{"


def test_a_connection_serves_several_requests_until_the_api_stops() -> None:
    """Connections are kept alive, and closed with the server."""
    with AnthropicApi(api_key=KEY) as api:
        url = urlsplit(api.url)
        connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=5)
        for stream in (False, True, False):
            connection.request(
                "POST", "/v1/messages", orjson.dumps(request(stream=stream)), HEADERS
            )
            assert connection.getresponse().read()
        assert connection.sock is not None
        kept = connection.sock
    assert kept.recv(1) == b""
    connection.close()
