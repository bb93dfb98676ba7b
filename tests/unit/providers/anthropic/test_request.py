"""What an OpenAI request becomes on its way to the Messages API."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from anthropic.types.message_create_params import MessageCreateParamsBase
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.providers.anthropic.messages_api import AnthropicProvider
from router.providers.anthropic.request import DROPPED, REFUSED, TRANSLATED, write_request
from tests.fakes.backend.anthropic_requests import check_request

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'},
}


def written(**fields: Any) -> dict[str, Any]:
    """The body for a chat request with these fields, once the API would take it."""
    body = write_request(
        "chat",
        {"model": "gpt-4o", "messages": HELLO} | fields,
        model="claude-x",
        default_max_tokens=7,
    )
    parsed = orjson.loads(body)
    check_request(parsed)
    return dict(parsed)


def refused(**fields: Any) -> str | None:
    """The field that a chat request with these fields is refused for."""
    with pytest.raises(InvalidRequest) as refusal:
        written(**fields)
    return refusal.value.field


def text(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def test_the_smallest_request_gets_the_backends_model_and_default_length() -> None:
    """A request without any option carries what the Messages API demands, and nothing more."""
    assert written() == {
        "model": "claude-x",
        "max_tokens": 7,
        "messages": [{"role": "user", "content": text("Hello")}],
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_tokens": 6}),
        ({"temperature": 0.3}, {"temperature": 0.3}),
        ({"temperature": 1.7}, {"temperature": 1}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"stream": True}, {"stream": True}),
        ({"stream": False}, {}),
        ({"user": "u-1"}, {"metadata": {"user_id": "u-1"}}),
        ({"user": "u-1", "safety_identifier": "s-1"}, {"metadata": {"user_id": "s-1"}}),
        ({"n": 1, "logprobs": False, "modalities": ["text"]}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, {}),
    ],
)
def test_a_field_with_a_counterpart_is_translated(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Each OpenAI field becomes its Messages API counterpart and leaves nothing else behind."""
    assert written(**fields) == written() | expected


def test_a_json_schema_becomes_an_output_format() -> None:
    """Structured output keeps its promise, next to an ``output_config`` of the client's own."""
    schema = {"type": "object", "properties": {}}
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = written(response_format=response_format, output_config={"effort": "low"})
    assert body["output_config"] == {
        "effort": "low",
        "format": {"type": "json_schema", "schema": schema},
    }


def test_hints_without_a_counterpart_are_dropped() -> None:
    """Fields that only tune or label the answer do not reach the API, which knows none of them."""
    assert written(**dict.fromkeys(DROPPED, "anything")) == written()


def test_options_given_as_null_count_as_absent() -> None:
    """SDKs write null for what the caller left out; that refuses and translates to nothing."""
    names = "n stop temperature top_p max_tokens tools tool_choice user logprobs response_format"
    assert written(**dict.fromkeys(names.split())) == written()


def test_unknown_fields_pass_untouched() -> None:
    """What the dialect does not name reaches the backend as the client wrote it."""
    thinking = {"type": "enabled", "budget_tokens": 1024}
    body = written(thinking=thinking, top_k=3, max_tokens=4096)
    assert (body["thinking"], body["top_k"]) == (thinking, 3)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 0}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "."}, "suffix"),
        ({"functions": [{}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"web_search_options": {"x": 1}}, "web_search_options"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"stop": "\n"}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": {}}, "stop"),
        ({"user": 5}, "user"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"response_format": "json"}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": "x"}},
            "response_format.json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        ({"tools": "x"}, "tools"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"stop": "END", "stop_sequences": ["X"]}, "stop_sequences"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    """A promise that the Messages API cannot keep, or a wrong type, is a 400 naming the field."""
    assert refused(**fields) == field


def test_a_body_that_json_cannot_carry_is_refused() -> None:
    """A number beyond 64 bits is the client's mistake, not ours."""
    assert refused(top_k=2**70) is None


# --- messages --------------------------------------------------------------------------------


def test_system_messages_are_joined_wherever_they_stand() -> None:
    """System and developer texts become one system prompt, in their order."""
    body = written(
        messages=[
            {"role": "system", "content": "Be brief."},
            *HELLO,
            {"role": "developer", "content": text("Be kind.")},
            {"role": "system", "content": ""},
        ]
    )
    assert body["system"] == "Be brief.\nBe kind."
    assert body["messages"] == [{"role": "user", "content": text("Hello")}]


def test_marked_system_parts_stay_apart() -> None:
    """Joining would lose a cache mark, so marked parts go out as blocks."""
    marked = {"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}}
    body = written(messages=[{"role": "system", "content": [marked]}, *HELLO])
    assert body["system"] == [marked]


def test_messages_of_one_role_are_merged() -> None:
    """Consecutive messages of a role are one turn, so that turns alternate."""
    body = written(
        messages=[
            {"role": "user", "content": "One", "name": "ann"},
            {"role": "user", "content": text("Two")},
            {"role": "assistant", "content": "Yes"},
            {"role": "assistant", "content": None},
            {"role": "assistant", "refusal": "No"},
            {"role": "user", "content": "Three"},
        ]
    )
    assert body["messages"] == [
        {"role": "user", "content": text("One") + text("Two")},
        {"role": "assistant", "content": text("Yes") + text("No")},
        {"role": "user", "content": text("Three")},
    ]


def test_images_become_sources() -> None:
    """A data URL becomes base64, another URL stays one, blank texts are left out."""
    body = written(
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": " "},
                    {"type": "image_url", "image_url": {"url": "data:image/JPG;base64,QUJD"}},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                ],
            }
        ]
    )
    assert body["messages"][0]["content"] == [
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/jpeg", "data": "QUJD"},
        },
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
    ]


def test_a_round_of_tools_becomes_tool_use_and_tool_result() -> None:
    """Calls and results keep their ids, and results come first in the turn that brings them."""
    second = {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}}
    body = written(
        tools=[WEATHER],
        messages=[
            *HELLO,
            {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, second]},
            {"role": "user", "content": "Hurry"},
            {"role": "tool", "tool_call_id": "call_1", "content": "Rain"},
            {"role": "tool", "tool_call_id": "call_2", "content": ""},
        ],
    )
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                *text("Let me see."),
                {
                    "type": "tool_use",
                    "id": "call_1",
                    "name": "get_weather",
                    "input": {"city": "Bern"},
                },
                {"type": "tool_use", "id": "call_2", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": text("Rain")},
                {"type": "tool_result", "tool_use_id": "call_2"},
                *text("Hurry"),
            ],
        },
    ]


def test_arguments_are_sent_word_for_word() -> None:
    """Numbers in tool arguments keep digits that a float would lose."""
    call = CALL | {
        "function": {"name": "get_weather", "arguments": '{"id": 12345678901234567890123}'}
    }
    answer = {"role": "tool", "tool_call_id": "call_1", "content": "ok"}
    fields = {"messages": [*HELLO, {"role": "assistant", "tool_calls": [call]}, answer]}
    body = write_request("chat", fields, model="claude-x", default_max_tokens=7)
    assert b"12345678901234567890123" in body


def test_a_final_assistant_message_is_sent_without_trailing_space() -> None:
    """The API continues it, and refuses one that ends in white space."""
    body = written(messages=[*HELLO, {"role": "assistant", "content": "The answer is \n"}])
    assert body["messages"][-1] == {"role": "assistant", "content": text("The answer is")}


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        (None, "messages"),
        ("Hello", "messages"),
        ([], "messages"),
        (["Hello"], "messages[0]"),
        ([{"role": "system", "content": "Only this."}], "messages"),
        ([{"role": "user", "content": " "}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]}],
            "messages[0].content[0].image_url.url",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png,x"}]}],
            "messages[0].content[0].image_url.url",
        ),
        (
            [*HELLO, {"role": "assistant", "content": [{"type": "image_url", "image_url": "http://x"}]}],
            "messages[1].content",
        ),
        ([*HELLO, {"role": "function", "content": "x"}], "messages[1].role"),
        ([*HELLO, {"role": ["user"], "content": "x"}], "messages[1].role"),
        ([*HELLO, {"role": "tool", "content": "x"}], "messages[1].tool_call_id"),
        ([{"role": "system", "content": [{"type": "image_url", "image_url": "http://x"}]}, *HELLO],
         "messages[0].content"),
    ],
)  # fmt: skip
def test_a_message_that_cannot_be_read_is_refused_by_path(messages: Any, field: str) -> None:
    """The refusal names the very part of the conversation that is wrong."""
    assert refused(messages=messages) == field


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ({}, "function"),
        ({"type": "custom"}, "type"),
        ({"function": {"name": "f", "arguments": "{}"}}, "id"),
        ({"id": "c", "function": {"arguments": "{}"}}, "function.name"),
        ({"id": "c", "function": {"name": "f", "arguments": "{"}}, "function.arguments"),
        ({"id": "c", "function": {"name": "f", "arguments": "[]"}}, "function.arguments"),
        ({"id": "c", "function": {"name": "f", "arguments": "NaN"}}, "function.arguments"),
        ({"id": "c", "function": {"name": "f", "arguments": {}}}, "function.arguments"),
    ],
)
def test_a_tool_call_that_cannot_be_read_is_refused_by_path(call: Any, field: str) -> None:
    """Arguments that are no JSON object are found before the backend is asked."""
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}]
    assert refused(messages=messages) == f"messages[1].tool_calls[0].{field}"


# --- tools -----------------------------------------------------------------------------------


def test_functions_become_tools() -> None:
    """A function keeps name, description and schema; one without parameters gets an empty one."""
    bare = {"type": "function", "function": {"name": "now", "strict": True, "parameters": None}}
    native = {"name": "own", "input_schema": {"type": "object"}}
    assert written(tools=[WEATHER, bare, native])["tools"] == [
        {
            "name": "get_weather",
            "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
            "description": "The weather of a city",
        },
        {"name": "now", "input_schema": {"type": "object"}, "strict": True},
        native,
    ]


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        ("auto", None, {"type": "auto"}),
        ("none", None, {"type": "none"}),
        ("none", False, {"type": "none"}),
        ("required", True, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"type": "function", "function": {"name": "get_weather"}},
            None,
            {"type": "tool", "name": "get_weather"},
        ),
        ({"type": "any"}, None, {"type": "any"}),
    ],
)
def test_the_choice_of_tools_is_translated(choice: Any, parallel: Any, expected: Any) -> None:
    """Choice and parallelism are two fields in one dialect and one field in the other."""
    body = written(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=parallel)
    assert body.get("tool_choice") == expected


# --- completions, and the rest of the contract -----------------------------------------------


@pytest.mark.parametrize("prompt", ["Once upon", ["Once upon"]])
def test_a_prompt_becomes_a_user_message(prompt: Any) -> None:
    """A legacy completion asks with one prompt, bare or alone in an array."""
    body = write_request("completions", {"prompt": prompt}, model="claude-x", default_max_tokens=7)
    assert orjson.loads(body)["messages"] == [{"role": "user", "content": "Once upon"}]


@pytest.mark.parametrize("prompt", [None, "", [], ["a", "b"], [1, 2], [[1]], {}])
def test_any_other_prompt_is_refused(prompt: Any) -> None:
    """Several prompts and token arrays have no counterpart."""
    with pytest.raises(InvalidRequest) as refusal:
        write_request("completions", {"prompt": prompt}, model="claude-x", default_max_tokens=7)
    assert refusal.value.field == "prompt"


def test_the_api_has_one_path_and_no_embeddings() -> None:
    """Both kinds of generation go to the same path; embeddings have none."""
    assert AnthropicProvider().paths == {"chat": "/messages", "completions": "/messages"}


def test_the_credential_goes_into_its_own_header() -> None:
    """The API wants its key in ``x-api-key`` and its version named; no key means no header."""
    version = ("anthropic-version", "2023-06-01")
    headers = AnthropicProvider().credential_headers
    assert headers("sk-ant-1") == [("x-api-key", "sk-ant-1"), version]
    assert headers(None) == [version]


# --- whatever may come -----------------------------------------------------------------------

IMAGES = ["https://x/a.png", "data:image/png;base64,QQ=="]
TEXTS = ["", " ", "Hi", "Hi \n"]
PARTS = st.one_of(
    st.sampled_from(TEXTS).map(lambda text: {"type": "text", "text": text}),
    st.sampled_from(TEXTS).map(lambda text: {"type": "refusal", "refusal": text}),
    st.sampled_from([*IMAGES, *IMAGES, "x"]).map(
        lambda url: {"type": "image_url", "image_url": url}
    ),
    st.just({"type": "file", "file": {"file_id": "x"}}),
)
PLAIN = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant", "system", "developer"]),
    st.none() | st.sampled_from(TEXTS) | st.lists(PARTS, max_size=3),
)
ROUND = st.just(
    [
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain"},
    ]
)


def has_counterpart(message: dict[str, Any]) -> bool:
    """Files have none, nor images but the user's, nor a turn in which the user says nothing."""
    content = message.get("content") or ""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    kinds = {part["type"] for part in parts}
    images = [part["image_url"] for part in parts if part["type"] == "image_url"]
    if "file" in kinds or not all(image in IMAGES for image in images):
        return False
    if message["role"] != "user":
        return not images
    return any(part[part["type"]].strip() for part in parts)


@given(st.lists(PLAIN.map(lambda message: [message]) | ROUND, max_size=6))
def test_a_conversation_is_fit_for_the_api_or_refused_where_it_cannot_be(
    rounds: list[list[Any]],
) -> None:
    """However a conversation goes on: refused at the first message without a counterpart, else
    as the SDK's types and the API want it, with every image of the user's."""
    messages = HELLO + [message for parts in rounds for message in parts]
    wrong = [i for i, message in enumerate(messages) if not has_counterpart(message)]
    if wrong:
        assert str(refused(messages=messages)).startswith(f"messages[{wrong[0]}].content")
        return
    sent = [block for turn in written(messages=messages)["messages"] for block in turn["content"]]
    images = [block for block in sent if block["type"] == "image"]
    assert len(images) == sum(
        part["type"] == "image_url"
        for message in messages
        for part in message.get("content") or ()
        if isinstance(part, dict)
    )


SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
# Field → values that can be translated, and values that cannot.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "messages": ([HELLO], [None, "x", [], ["x"], [{}], [{"role": "system", "content": "x"}]]),
    "max_completion_tokens": ([None, 1, 4096], [0, -1, True, 1.5, "x", []]),
    "max_tokens": ([None, 1, 4096], [0, -1, True, 1.5, "x", []]),
    "temperature": ([None, 0, 0.3, 2], [-1, 2.1, True, "x", []]),
    "top_p": ([None, 0, 1], [-1, 1.5, True, "x", {}]),
    "stop": ([None, [], "x", ["x", "y"]], ["", " ", [""], [1], {}, 0]),
    "stream": ([None, False, True], []),
    "user": ([None, "", "u-1"], [5, True, ["x"], {"id": 1}]),
    "safety_identifier": ([None, ""], [7, ["x"]]),
    "response_format": ([None, {"type": "text"}, SCHEMA], [{"type": "json_object"}, "json", {}]),
    "output_config": ([None, {"effort": "low"}], []),
    "tools": ([None, [], [WEATHER]], ["x", ["x"], [{"type": "function"}], [{"function": {}}]]),
    "tool_choice": ([None, "auto", "none", "required", NAMED], ["x", 1, [], {"type": "function"}]),
    "parallel_tool_calls": ([None, False, True], []),
    "n": ([None, 1], [2, True]),
    "logprobs": ([None, False], [True, 0]),
    "modalities": ([None, ["text"]], [["text", "audio"]]),
    "function_call": ([None], ["auto"]),
    "top_k": ([3], []),
}


GOOD = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(good) for name, (good, _) in VALUES.items()}
)
BAD = st.sampled_from([(name, value) for name, (_, bad) in VALUES.items() for value in bad])


def mistakes(fields: dict[str, Any]) -> set[str]:
    """The fields for which a request has to be refused."""
    found = {
        name
        for name, value in fields.items()
        if any(type(value) is type(bad) and value == bad for bad in VALUES[name][1])
    }
    if fields.get("max_completion_tokens") is not None:
        found.discard("max_tokens")  # its successor counts
    if fields.get("safety_identifier"):
        found.discard("user")  # likewise
    if not fields.get("tools") and fields.get("tool_choice") in ("required", NAMED):
        found.add("tool_choice")  # there is none to call
    return found


def root(path: str) -> str:
    """The field that a path into the body begins with."""
    return re.split(r"[.\[]", path)[0]


@settings(max_examples=300)
@given(GOOD, st.lists(BAD, max_size=2))
def test_a_request_is_refused_for_a_mistake_and_for_nothing_else(
    good: dict[str, Any], bad: list[tuple[str, Any]]
) -> None:
    """A refusal names one of the mistakes; without any, the SDK's types take what is written."""
    fields = good | dict(bad)
    if found := mistakes(fields):
        named = root(str(refused(**fields)))
        assert named in {"user" if name == "safety_identifier" else name for name in found}
    else:
        assert written(**fields)["model"] == "claude-x"


ODD = st.sampled_from(
    [None, True, 0, -1, 2**70, 1.5, "", "x", [], {}, [None], ["x"], [[]], [{}], {"type": "text"}]
)
FIELD_NAMES = st.sampled_from(sorted(TRANSLATED | REFUSED.keys() | {"top_k"}))
NEAR_MISSES = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ["type", "role", "content", "function", "tool_calls", "json_schema", "image_url", "id"],
        ODD,
    ),
)


@given(
    st.sampled_from(["chat", "completions"]),
    st.dictionaries(FIELD_NAMES, ODD | NEAR_MISSES | st.lists(NEAR_MISSES, max_size=2)),
)
def test_no_request_breaks_the_translation(operation: Any, fields: dict[str, Any]) -> None:
    """Any JSON at all is translated into fields of the API, or refused with an InvalidRequest."""
    asks = "messages" if operation == "chat" else "prompt"
    body, named = b"{}", None
    try:
        body = write_request(operation, fields, model="claude-x", default_max_tokens=7)
    except InvalidRequest as refusal:
        named = root(refusal.field or asks)  # of a number that JSON cannot carry, none is named
    assert named in {None, asks, *fields}
    assert named or fields[asks]
    assert orjson.loads(body).keys() <= {"stream", *MessageCreateParamsBase.__annotations__}
