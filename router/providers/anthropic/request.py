"""From an OpenAI chat or completions request to the body of ``POST /v1/messages``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from router.call import Operation
from router.errors import InvalidRequest
from router.providers.anthropic.conversation import conversation
from router.providers.anthropic.field_shapes import Json, items, object_at, string_at

DROPPED: Final = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "metadata",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "seed",
        "service_tier",
        "store",
        "stream_options",
        "verbosity",
    }
)
"""Fields without a counterpart that only tune, label or store the answer."""


def _given(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def _several(value: Any) -> bool:
    return value is not None and (isinstance(value, bool) or value != 1)


def _requested(value: Any) -> bool:
    # Completions ask for log probabilities with a number, and 0 asks for them, too.
    return value is not None and value is not False


def _beyond_text(value: Any) -> bool:
    return value is not None and value != ["text"]


REFUSED: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "n": (_several, "this model gives exactly one choice"),
    "best_of": (_several, "this model gives exactly one choice"),
    "logprobs": (_requested, "this model does not give log probabilities"),
    "top_logprobs": (_given, "this model does not give log probabilities"),
    "echo": (_given, "this model cannot echo the prompt"),
    "suffix": (_given, "this model cannot write towards a suffix"),
    "functions": (_given, "functions are not supported for this model: use tools"),
    "function_call": (_given, "function_call is not supported for this model: use tool_choice"),
    "modalities": (_beyond_text, "this model answers with text only"),
    "audio": (_given, "this model answers with text only"),
    "web_search_options": (_given, "web_search_options is not supported for this model"),
}
"""Fields that promise something the API cannot keep: when a value does, and the refusal's text."""

TRANSLATED: Final = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "output_config",
        "parallel_tool_calls",
        "prompt",
        "response_format",
        "safety_identifier",
        "stop",
        "stream",
        "temperature",
        "tool_choice",
        "tools",
        "top_p",
        "user",
    }
)
_KNOWN: Final = TRANSLATED | DROPPED | REFUSED.keys()


def write_request(
    operation: Operation, fields: Json, *, model: str, default_max_tokens: int
) -> bytes:
    """Write the Messages API body that asks ``model`` what the OpenAI ``fields`` ask.

    Raises InvalidRequest, naming the field, for what cannot be carried over.
    """
    for name, (refuses, message) in REFUSED.items():
        if refuses(fields.get(name)):
            raise InvalidRequest(message, field=name)
    body: Json = {
        "model": model,
        "max_tokens": _max_tokens(fields, default_max_tokens),
        **conversation(operation, fields),
        **_sampling(fields),
        **_tools(fields),
        **_output(fields),
    }
    for name, value in fields.items():
        if name in _KNOWN:
            continue
        if name in body:
            raise InvalidRequest(f"{name} is given twice, once as OpenAI writes it", field=name)
        body[name] = value
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest("the request is nested too deeply or holds invalid text") from error


# --- scalar fields ---------------------------------------------------------------------------


def _max_tokens(fields: Json, default: int) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidRequest(f"{name} must be a positive integer", field=name)
        return value
    return default


def _sampling(fields: Json) -> Json:
    body: Json = {}
    temperature = _number(fields, "temperature", highest=2)
    if temperature is not None:
        body["temperature"] = min(temperature, 1)
    top_p = _number(fields, "top_p", highest=1)
    if top_p is not None:
        body["top_p"] = top_p
    if stops := _stops(fields.get("stop")):
        body["stop_sequences"] = stops
    return body


def _number(fields: Json, name: str, *, highest: int) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= highest:
        raise InvalidRequest(f"{name} must be a number from 0 to {highest}", field=name)
    return value


def _stops(stop: Any) -> list[str]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(entry, str) for entry in stops):
        raise InvalidRequest("stop must be a string or an array of strings", field="stop")
    if not all(entry.strip() for entry in stops):
        # Dropping it would let the model run on past the point the client wants to see.
        raise InvalidRequest("this model cannot stop at white space", field="stop")
    return stops


def _output(fields: Json) -> Json:
    body: Json = {}
    if fields.get("stream"):
        body["stream"] = True
    if user := fields.get("safety_identifier") or fields.get("user"):
        body["metadata"] = {"user_id": string_at(user, "user")}
    config = fields.get("output_config")
    schema = _schema(fields.get("response_format"))
    if schema is not None:
        if config is not None and not isinstance(config, dict):
            raise InvalidRequest("output_config must be an object", field="output_config")
        config = {**(config or {}), "format": {"type": "json_schema", "schema": schema}}
    if config is not None:
        body["output_config"] = config
    return body


def _schema(response_format: Any) -> Json | None:
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return None
    if kind != "json_schema":
        message = "this model takes a response_format of type text or json_schema"
        raise InvalidRequest(message, field="response_format.type")
    described = object_at(response_format.get("json_schema"), "response_format.json_schema")
    return object_at(described.get("schema"), "response_format.json_schema.schema")


# --- tools -----------------------------------------------------------------------------------


def _tools(fields: Json) -> Json:
    tools = fields.get("tools") or []
    choice = _tool_choice(fields.get("tool_choice"))
    if not tools:
        if choice is not None and choice["type"] in ("any", "tool"):
            raise InvalidRequest("tool_choice asks for a tool, tools has none", field="tool_choice")
        return {}
    body: Json = {"tools": [_tool(tool, f"tools[{i}]") for i, tool in items(tools, "tools")]}
    if fields.get("parallel_tool_calls") is False and choice != {"type": "none"}:
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice is not None:
        body["tool_choice"] = choice
    return body


def _tool(tool: Json, where: str) -> Json:
    if tool.get("type") == "custom" and "custom" in tool:
        raise InvalidRequest("this model takes tools of type function", field=f"{where}.type")
    if tool.get("type") != "function" and "function" not in tool:
        return tool
    function = object_at(tool.get("function"), f"{where}.function")
    parameters = function.get("parameters")
    schema = {} if parameters is None else object_at(parameters, f"{where}.function.parameters")
    written: Json = {
        "name": string_at(function.get("name"), f"{where}.function.name"),
        "input_schema": {"type": "object", **schema},
    }
    if function.get("description") is not None:
        written["description"] = function["description"]
    if function.get("strict"):
        written["strict"] = True
    if "cache_control" in tool:
        written["cache_control"] = tool["cache_control"]
    return written


def _tool_choice(choice: Any) -> Json | None:
    if choice is None:
        return None
    named = {"auto": "auto", "none": "none", "required": "any"}
    if isinstance(choice, str) and choice in named:
        return {"type": named[choice]}
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        name = object_at(choice.get("function"), "tool_choice.function").get("name")
        return {"type": "tool", "name": string_at(name, "tool_choice.function.name")}
    if kind in ("auto", "any", "tool", "none"):
        return dict(choice)
    raise InvalidRequest(
        "tool_choice must be auto, none, required or name a function", field="tool_choice"
    )
