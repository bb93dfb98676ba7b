"""From a reply of the Messages API, or one of its errors, to the OpenAI dialect."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from router.call import NO_USAGE, Operation, Usage

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
COUNTS: Final = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "output_tokens",
)
_COUNT_LIMIT: Final = 10**9
_MESSAGE_LIMIT_CHARS: Final = 1000
_SECRET: Final = re.compile(r"\bsk-[\w-]{4,}|\bBearer\s+\S+", re.IGNORECASE)
_LINK: Final = re.compile(r"\bhttps?://\S+", re.IGNORECASE)


def read_reply(operation: Operation, body: bytes, *, created: int) -> tuple[bytes, Usage]:
    """Turn a Messages reply into the OpenAI object of the operation, with what it used.

    The usage is ``NO_USAGE`` where the reply reports none. Raises ValueError for a body that is
    no Messages reply.
    """
    message = orjson.loads(body)
    if not isinstance(message, dict) or message.get("type") != "message":
        raise ValueError("the reply is not a message")
    usage = read_usage(message.get("usage"))
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
    if usage is not None:
        reply["usage"] = write_usage(usage)
    return orjson.dumps(reply), usage or NO_USAGE


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


# --- usage -----------------------------------------------------------------------------------


def read_usage(counts: Any) -> Usage | None:
    """The tokens that a ``usage`` object reports; ``None`` when it lacks one of the two totals.

    The API's ``input_tokens`` leaves out what was read from or written to the prompt cache; ours
    is all of the input.
    """
    if counts is None:
        return None
    if not isinstance(counts, dict):
        raise ValueError("the usage is not an object")
    fresh, cached, stored, output = (_count(counts.get(name)) for name in COUNTS)
    if fresh is None or output is None:
        return None
    return Usage(fresh + (cached or 0) + (stored or 0), output, cached or 0)


def _count(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _COUNT_LIMIT:
        raise ValueError("a token count is not a natural number")
    return value


def write_usage(usage: Usage) -> Json:
    """The usage in OpenAI's shape."""
    return {
        "prompt_tokens": usage.tokens_input,
        "completion_tokens": usage.tokens_output,
        "total_tokens": usage.tokens_input + usage.tokens_output,
        "prompt_tokens_details": {"cached_tokens": usage.tokens_cached},
    }


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
