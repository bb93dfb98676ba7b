"""From an OpenAI chat or completions request to the body of ``POST /v1/messages``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from router.call import Operation
from router.errors import InvalidRequest

Json = dict[str, Any]

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
"""Fields whose promise cannot be kept: what makes a value one, and what the client is told."""

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
_PARTS_WITHOUT_COUNTERPART: Final = frozenset({"file", "input_audio", "video_url"})


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
        **_conversation(operation, fields),
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
        body["metadata"] = {"user_id": _string(user, "user")}
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
    described = _object(response_format.get("json_schema"), "response_format.json_schema")
    return _object(described.get("schema"), "response_format.json_schema.schema")


# --- tools -----------------------------------------------------------------------------------


def _tools(fields: Json) -> Json:
    tools = fields.get("tools") or []
    choice = _tool_choice(fields.get("tool_choice"))
    if not tools:
        if choice is not None and choice["type"] in ("any", "tool"):
            raise InvalidRequest("tool_choice asks for a tool, tools has none", field="tool_choice")
        return {}
    body: Json = {"tools": [_tool(tool, f"tools[{i}]") for i, tool in _items(tools, "tools")]}
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
    function = _object(tool.get("function"), f"{where}.function")
    parameters = function.get("parameters")
    schema = {} if parameters is None else _object(parameters, f"{where}.function.parameters")
    written: Json = {
        "name": _string(function.get("name"), f"{where}.function.name"),
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
        name = _object(choice.get("function"), "tool_choice.function").get("name")
        return {"type": "tool", "name": _string(name, "tool_choice.function.name")}
    if kind in ("auto", "any", "tool", "none"):
        return dict(choice)
    raise InvalidRequest(
        "tool_choice must be auto, none, required or name a function", field="tool_choice"
    )


# --- the conversation ------------------------------------------------------------------------


def _conversation(operation: Operation, fields: Json) -> Json:
    if operation == "completions":
        return {"messages": [{"role": "user", "content": _prompt(fields.get("prompt"))}]}
    system: list[Json] = []
    turns: list[Json] = []
    for i, message in _items(fields.get("messages"), "messages"):
        where = f"messages[{i}]"
        if message.get("role") in ("system", "developer"):
            system += _system_blocks(message, where)
        else:
            role, blocks = _turn(message, where)
            _append(turns, role, blocks)
    if not turns:
        raise InvalidRequest("messages must hold at least one user message", field="messages")
    _trim_prefill(turns[-1])
    return {"system": _system(system), "messages": turns} if system else {"messages": turns}


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt.strip():
        message = "prompt must be one string that is not blank, or an array of exactly one"
        raise InvalidRequest(message, field="prompt")
    return prompt


def _system_blocks(message: Json, where: str) -> list[Json]:
    blocks = _blocks(message.get("content"), f"{where}.content")
    if any(block["type"] != "text" for block in blocks):
        raise InvalidRequest("a system message holds text only", field=f"{where}.content")
    return blocks


def _system(blocks: list[Json]) -> str | list[Json]:
    if all(block.keys() == {"type", "text"} for block in blocks):
        return "\n".join(block["text"] for block in blocks)
    return blocks  # joining would lose what the client marked on a part, such as cache_control


def _turn(message: Json, where: str) -> tuple[str, list[Json]]:
    role = message.get("role")
    if role == "assistant":
        return "assistant", _assistant_blocks(message, where)
    if role == "tool":
        return "user", [_tool_result(message, where)]
    if role != "user":
        known = "system, developer, user, assistant or tool"
        raise InvalidRequest(f"{where}.role must be {known}", field=f"{where}.role")
    blocks = _blocks(message.get("content"), f"{where}.content")
    if not blocks:
        # Leaving it out would turn the assistant message before it into a prefill.
        raise InvalidRequest("a user message must not be blank", field=f"{where}.content")
    return "user", blocks


def _append(turns: list[Json], role: str, blocks: list[Json]) -> None:
    if not blocks:
        return
    if not turns or turns[-1]["role"] != role:
        turns.append({"role": role, "content": blocks})
        return
    content = turns[-1]["content"]
    content += blocks
    # The API wants the results of tools before anything else the user says in that turn.
    content.sort(key=lambda block: block["type"] != "tool_result")


def _trim_prefill(turn: Json) -> None:
    last = turn["content"][-1]
    if turn["role"] == "assistant" and last["type"] == "text":
        turn["content"][-1] = {**last, "text": last["text"].rstrip()}


def _assistant_blocks(message: Json, where: str) -> list[Json]:
    blocks = _blocks(message.get("content"), f"{where}.content")
    if any(block["type"] == "image" for block in blocks):
        raise InvalidRequest("an assistant message holds no images", field=f"{where}.content")
    if not blocks and message.get("refusal") is not None:
        blocks = _blocks(message["refusal"], f"{where}.refusal")
    for j, call in _items(message.get("tool_calls") or [], f"{where}.tool_calls"):
        blocks.append(_tool_use(call, f"{where}.tool_calls[{j}]"))
    return blocks


def _tool_use(call: Json, where: str) -> Json:
    if call.get("type") not in (None, "function"):
        raise InvalidRequest("this model takes calls of type function", field=f"{where}.type")
    function = _object(call.get("function"), f"{where}.function")
    return {
        "type": "tool_use",
        "id": _string(call.get("id"), f"{where}.id"),
        "name": _string(function.get("name"), f"{where}.function.name"),
        "input": _arguments(function.get("arguments"), f"{where}.function.arguments"),
    }


def _arguments(arguments: Any, where: str) -> orjson.Fragment:
    """The arguments word for word, once they are known to be a JSON object."""
    try:
        text = arguments.strip() or "{}"
        if not isinstance(orjson.loads(text), dict):
            raise ValueError("not an object")
    except (ValueError, AttributeError) as error:
        raise InvalidRequest(f"{where} must be a JSON object in a string", field=where) from error
    return orjson.Fragment(text)


def _tool_result(message: Json, where: str) -> Json:
    call_id = _string(message.get("tool_call_id"), f"{where}.tool_call_id")
    result: Json = {"type": "tool_result", "tool_use_id": call_id}
    if blocks := _blocks(message.get("content"), f"{where}.content"):
        result["content"] = blocks
    return result


# --- content ---------------------------------------------------------------------------------


def _blocks(content: Any, where: str) -> list[Json]:
    """Content blocks without the blank texts, which the API refuses."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    blocks = [_block(part, f"{where}[{j}]") for j, part in _items(content, where)]
    return [block for block in blocks if block["type"] != "text" or block["text"].strip()]


def _block(part: Json, where: str) -> Json:
    kind = _string(part.get("type"), f"{where}.type")
    if kind == "text":
        return {**part, "text": _string(part.get("text"), f"{where}.text", empty=True)}
    if kind == "refusal":
        refusal = _string(part.get("refusal"), f"{where}.refusal", empty=True)
        return {"type": "text", "text": refusal}
    if kind == "image_url":
        kept = {name: value for name, value in part.items() if name not in ("type", "image_url")}
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        return {**kept, "type": "image", "source": _image_source(url, f"{where}.image_url.url")}
    if kind in _PARTS_WITHOUT_COUNTERPART:
        raise InvalidRequest(f"this model does not take {kind} parts", field=f"{where}.type")
    return part


def _image_source(url: Any, where: str) -> Json:
    url = _string(url, where)
    scheme = url[:8].lower()
    if scheme.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    head, comma, data = url.partition(",")
    media_type, *parameters = head[len("data:") :].lower().split(";")
    if not scheme.startswith("data:") or not comma or parameters[-1:] != ["base64"]:
        message = f"{where} must be an http(s) URL or a data: URL in base64"
        raise InvalidRequest(message, field=where)
    # Widely written, accepted elsewhere, refused by this API.
    media_type = "image/jpeg" if media_type == "image/jpg" else media_type
    return {"type": "base64", "media_type": media_type, "data": data}


# --- shapes ----------------------------------------------------------------------------------


def _items(value: Any, where: str) -> list[tuple[int, Json]]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{where} must be an array", field=where)
    return [(i, _object(item, f"{where}[{i}]")) for i, item in enumerate(value)]


def _object(value: Any, where: str) -> Json:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be an object", field=where)
    return value


def _string(value: Any, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise InvalidRequest(f"{where} must be a string", field=where)
    return value
