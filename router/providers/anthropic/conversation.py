"""From OpenAI's messages, or a prompt, to the turns of the Messages API."""

from __future__ import annotations

import time
from typing import Any, Final

import orjson

from router.call import Operation
from router.errors import InvalidRequest
from router.providers.anthropic.field_shapes import Json, items, object_at, string_at
from router.providers.json_elements import count_elements

MAX_ARGUMENTS: Final = 100_000
"""Elements of JSON in the arguments of one call of a tool."""

_PARTS_WITHOUT_COUNTERPART: Final = frozenset({"file", "input_audio", "video_url"})


def conversation(operation: Operation, fields: Json) -> Json:
    """``messages`` and ``system`` of a Messages request, made of OpenAI's messages or prompt.

    Raises ``InvalidRequest``, naming the field, for what cannot be carried over.
    """
    if operation == "completions":
        return {"messages": [{"role": "user", "content": _prompt(fields.get("prompt"))}]}
    system: list[Json] = []
    turns: list[Json] = []
    for i, message in items(fields.get("messages"), "messages"):
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
    for j, call in items(message.get("tool_calls") or [], f"{where}.tool_calls"):
        blocks.append(_tool_use(call, f"{where}.tool_calls[{j}]"))
    return blocks


def _tool_use(call: Json, where: str) -> Json:
    if call.get("type") not in (None, "function"):
        raise InvalidRequest("this model takes calls of type function", field=f"{where}.type")
    function = object_at(call.get("function"), f"{where}.function")
    return {
        "type": "tool_use",
        "id": string_at(call.get("id"), f"{where}.id"),
        "name": string_at(function.get("name"), f"{where}.function.name"),
        "input": _arguments(function.get("arguments"), f"{where}.function.arguments"),
    }


def _arguments(arguments: Any, where: str) -> orjson.Fragment:
    """The arguments word for word, once they are known to be a JSON object."""
    try:
        text = (arguments.strip() or "{}").encode()
        if count_elements(text, MAX_ARGUMENTS) > MAX_ARGUMENTS:
            raise ValueError("too many elements")
        if not isinstance(orjson.loads(text), dict):
            raise ValueError("not an object")
        if len(text) > MAX_ARGUMENTS:
            time.sleep(0.0001)  # there may be many of them: other calls get a turn
    except (ValueError, AttributeError) as error:
        raise InvalidRequest(f"{where} must be a JSON object in a string", field=where) from error
    return orjson.Fragment(text)


def _tool_result(message: Json, where: str) -> Json:
    call_id = string_at(message.get("tool_call_id"), f"{where}.tool_call_id")
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
    blocks = [_block(part, f"{where}[{j}]") for j, part in items(content, where)]
    return [block for block in blocks if block["type"] != "text" or block["text"].strip()]


def _block(part: Json, where: str) -> Json:
    kind = string_at(part.get("type"), f"{where}.type")
    if kind == "text":
        return {**part, "text": string_at(part.get("text"), f"{where}.text", empty=True)}
    if kind == "refusal":
        refusal = string_at(part.get("refusal"), f"{where}.refusal", empty=True)
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
    url = string_at(url, where)
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
