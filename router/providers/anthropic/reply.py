"""From a reply of the Messages API, or one of its errors, to the OpenAI dialect."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from router.call import Operation
from router.providers.anthropic.messages_usage import read_usage, usage_fields
from router.providers.generated_bytes import utf8_bytes
from router.providers.json_elements import parse_reply
from router.providers.provider import ReadReply

Json = dict[str, Any]

FINISH_REASONS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_MESSAGE_LIMIT_CHARS: Final = 1000
_SECRET: Final = re.compile(r"\bsk-[\w-]{4,}|\bBearer\s+\S+", re.IGNORECASE)
_LINK: Final = re.compile(r"\bhttps?://\S+", re.IGNORECASE)


def read_reply(operation: Operation, body: bytes, *, created: int) -> ReadReply:
    """Turn a Messages reply into the OpenAI object of the operation, with what it used.

    Raises ValueError for a body that is no Messages reply.
    """
    message = parse_reply(body)
    if not isinstance(message, dict) or message.get("type") != "message":
        raise ValueError("the reply is not a message")
    choice = _text_choice if operation == "completions" else _chat_choice
    finish_reason = FINISH_REASONS.get(str(message.get("stop_reason")), "stop")
    blocks = _blocks(message.get("content"))
    reply: Json = {
        "id": string(message.get("id")),
        "object": "text_completion" if operation == "completions" else "chat.completion",
        "created": created,
        "model": string(message.get("model")),
        "choices": [
            {"index": 0, **choice(blocks), "logprobs": None, "finish_reason": finish_reason}
        ],
    }
    usage = read_usage(message.get("usage"))
    if usage is None or not usage.tokens_output:
        size_bytes = _generated_bytes(blocks)
        if usage is None or size_bytes:
            return ReadReply(orjson.dumps(reply), None, size_bytes, usage)
    reply |= usage_fields(usage)
    return ReadReply(orjson.dumps(reply), usage)


def _generated_bytes(blocks: list[Json]) -> int:
    """Bytes of the texts generated, those that have no place in the OpenAI dialect among them."""
    inputs = [block.get("input") for block in blocks if str(block.get("type")).endswith("tool_use")]
    texts = [_joined(blocks, "text"), _joined(blocks, "thinking"), *map(write_arguments, inputs)]
    return sum([utf8_bytes(text) for text in texts])


def _chat_choice(blocks: list[Json]) -> Json:
    calls = [_tool_call(block) for block in blocks if block.get("type") == "tool_use"]
    text = _joined(blocks, "text")
    message: Json = {
        "role": "assistant",
        "content": None if calls and not text else text,
        "refusal": None,
    }
    if thinking := _joined(blocks, "thinking"):
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def _text_choice(blocks: list[Json]) -> Json:
    return {"text": _joined(blocks, "text")}


def _joined(blocks: list[Json], kind: str) -> str:
    return "".join(string(block.get(kind)) for block in blocks if block.get("type") == kind)


def _tool_call(block: Json) -> Json:
    return {
        "id": string(block.get("id")),
        "type": "function",
        "function": {
            "name": string(block.get("name")),
            "arguments": write_arguments(block.get("input")),
        },
    }


def write_arguments(tool_input: Any) -> str:
    """The input of a tool call as the JSON text that OpenAI calls its arguments."""
    if not isinstance(tool_input, dict):
        raise ValueError("the input of a tool call is not an object")
    try:
        return orjson.dumps(tool_input).decode()
    except orjson.JSONEncodeError as error:
        raise ValueError("the input of a tool call is nested too deeply") from error


# --- errors ----------------------------------------------------------------------------------


def error_message(payload: Any) -> str:
    """The message of an ``error`` object, without keys and links; ValueError if there is none."""
    error = payload.get("error") if isinstance(payload, dict) else None
    message = string(error.get("message") if isinstance(error, dict) else None)
    visible = " ".join(message[:_MESSAGE_LIMIT_CHARS].split())
    if not visible:
        raise ValueError("the error has no message")
    return _LINK.sub("[link]", _SECRET.sub("[redacted]", visible))


# --- shapes ----------------------------------------------------------------------------------


def string(value: Any) -> str:
    """The value, known to be a string; ValueError if it is not."""
    if not isinstance(value, str):
        raise ValueError("a text is missing in the reply")
    return value


def _blocks(content: Any) -> list[Json]:
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise ValueError("the content of the reply is not a list of blocks")
    return content
