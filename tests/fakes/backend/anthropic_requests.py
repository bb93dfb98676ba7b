"""Which requests the Anthropic fake refuses: what the official SDK's types do not allow, and more.

The shape of a request is checked against the types of the `anthropic` package, without coercion and
with nothing extra. What the API demands beyond the shape is written down here.
"""

from __future__ import annotations

import re
from typing import Any

import pydantic
from anthropic.types.message_create_params import MessageCreateParams

Json = dict[str, Any]

_SHAPE: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(
    MessageCreateParams, config=pydantic.ConfigDict(extra="forbid", strict=True)
)
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")


class InvalidCall(ValueError):
    """A request that the API answers with 400 ``invalid_request_error``."""


def check_request(body: Any) -> None:
    """Raise InvalidCall for a parsed body that the API would refuse."""
    if not isinstance(body, dict):
        raise InvalidCall("the body has to be an object")
    check_shape(body)
    _demand(body["max_tokens"] >= 1, "max_tokens: at least 1")
    for name in ("temperature", "top_p"):
        _demand(0 <= body.get(name, 0) <= 1, f"{name}: from 0 to 1")
    for stop in body.get("stop_sequences", []):
        _demand(bool(stop.strip()), "stop_sequences: each must contain non-whitespace")
    _check_tools(body)
    _check_thinking(body)
    for block in blocks_of(body.get("system", "")):
        _check_text(block["text"])
    _check_messages(body["messages"])


def check_shape(body: Any) -> None:
    """Raise InvalidCall unless the body has the very shape that the SDK's types describe."""
    try:
        _consume(_SHAPE.validate_python(body))
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        raise InvalidCall(f"{problem['loc']}: {problem['msg']}") from None


def _consume(value: Any) -> None:
    """Look at every part: pydantic checks what is typed as an iterable only when it is read."""
    if isinstance(value, pydantic.BaseModel):
        # The types let clients send back the SDK's own reply objects, which tolerate any field.
        raise InvalidCall(f"{value!r} fits no type of a request")
    if isinstance(value, dict):
        value = value.values()
    elif value is None or isinstance(value, (str, int, float)):
        return
    for part in value:
        _consume(part)


def blocks_of(content: str | list[Any]) -> list[Any]:
    """Content as blocks: a string is short for one text block."""
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InvalidCall(otherwise)


def _check_tools(body: Json) -> None:
    tools = body.get("tools", [])
    for tool in tools:
        _demand(bool(_NAME.fullmatch(tool["name"])), "tools: a name has letters, digits, _ and -")
        schema = tool.get("input_schema", {"type": "object"})
        _demand(schema.get("type") == "object", "tools: input_schema.type has to be 'object'")
    choice = body.get("tool_choice")
    _demand(bool(tools) or choice is None, "tool_choice: only while providing tools")
    if choice is not None and choice["type"] == "tool":
        names = [tool["name"] for tool in tools]
        _demand(choice["name"] in names, "tool_choice: the tool is not among the tools")


def _check_thinking(body: Json) -> None:
    thinking = body.get("thinking", {})
    if thinking.get("type") == "enabled":
        _demand(thinking["budget_tokens"] >= 1024, "thinking.budget_tokens: at least 1024")
        _demand(thinking["budget_tokens"] < body["max_tokens"], "max_tokens: more than thinking's")


def _check_messages(messages: list[Json]) -> None:
    _demand(bool(messages), "messages: at least one message is required")
    _demand(messages[0]["role"] == "user", "messages: the first has to be the user's")
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        _demand(role != "system", "messages: the system prompt is a field of its own")
        last_words = role == "assistant" and i == len(messages) - 1
        _demand(bool(content) or last_words, f"messages.{i}: content has to be non-empty")
        for block in blocks_of(content):
            _check_block(block, role)
    _check_prefill(messages[-1])
    _check_tool_results(messages)


def _check_block(block: Json, role: str) -> None:
    speaker = {"image": "user", "document": "user", "tool_result": "user", "tool_use": "assistant"}
    kind = block["type"]
    _demand(speaker.get(kind, role) == role, f"messages: no {kind} in a message of the {role}")
    if kind == "text":
        _check_text(block["text"])
    elif kind == "tool_result":
        for part in blocks_of(block.get("content", "")):
            _check_block(part, "user")


def _check_text(text: str) -> None:
    _demand(bool(text.strip()), "messages: text content blocks must contain non-whitespace text")


def _check_prefill(message: Json) -> None:
    last = blocks_of(message["content"])[-1:]
    text = last[0].get("text", "") if message["role"] == "assistant" and last else ""
    _demand(text == text.rstrip(), "messages: final assistant content ends with whitespace")


def _check_tool_results(messages: list[Json]) -> None:
    """Calls are answered in the very next turn, and there before anything else is said."""
    called: set[str] = set()
    for blocks in _turns(messages):
        results = {b["tool_use_id"] for b in blocks if b["type"] == "tool_result"}
        _demand(results <= called, "messages: tool_result without its tool_use before")
        first = {block.get("tool_use_id") for block in blocks[: len(called)]}
        _demand(called <= first, "messages: tool_use without tool_result immediately after")
        called = {block["id"] for block in blocks if block["type"] == "tool_use"}
    _demand(not called, "messages: tool_use without tool_result immediately after")


def _turns(messages: list[Json]) -> list[list[Json]]:
    """The blocks of each turn: the API reads consecutive messages of one role as a single one."""
    turns: list[list[Json]] = []
    role = None
    for message in messages:
        if message["role"] != role:
            turns.append([])
        role = message["role"]
        turns[-1].extend(blocks_of(message["content"]))
    return turns
