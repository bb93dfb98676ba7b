"""The messages that the Anthropic fake answers with: predictable, and in the API's shape.

It answers with what the user said last, in tokens of at most six characters. "use tool" in that
text makes it call the first tool (or the one that ``tool_choice`` names), "use tools" all of them.
Content marked with ``cache_control`` counts as read from the cache. A streamed reply and a buffered
one to the same request report the same usage.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import orjson

from tests.fakes.backend.anthropic_requests import Json, blocks_of

Event = tuple[str, Json]

THOUGHT = "The user wants an answer. I will give one."
IMAGE_TOKENS = 100


def tokens(text: str) -> list[str]:
    """The fake's tokens; joined they are the text again."""
    return re.findall(r"\s*\S{1,6}|\s+$", text)


def compose(body: Json) -> Json:
    """The message that answers a checked request."""
    content, stop_reason, stop_sequence = _answer(body)
    fresh, cached = _input_tokens(body)
    return {
        "id": "msg_" + hashlib.sha256(orjson.dumps(body["messages"])).hexdigest()[:24],
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": {
            "input_tokens": fresh,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": max(1, sum(len(tokens(_said(block))) for block in content)),
            "service_tier": "standard",
        },
    }


def _answer(body: Json) -> tuple[list[Json], str, str | None]:
    content: list[Json] = []
    if body.get("thinking", {}).get("type") in ("enabled", "adaptive"):
        content.append({"type": "thinking", "thinking": THOUGHT, "signature": "c2lnbmVk"})
    heard, is_result = _heard(body["messages"])
    if called := _called(body, "" if is_result else heard):
        content.append({"type": "text", "text": "I will ask a tool."})
        content += [_tool_use(tool, i, heard) for i, tool in enumerate(called)]
        return content, "tool_use", None
    text = f"The tool said: {heard}" if is_result else f"You said: {heard}"
    if schema := (body.get("output_config", {}).get("format") or {}).get("schema"):
        text = orjson.dumps(_example(schema, heard)).decode()
    text, stop_reason, stop_sequence = _stopped(text, body)
    if text:
        content.append({"type": "text", "text": text})
    return content, stop_reason, stop_sequence


def _heard(messages: list[Json]) -> tuple[str, bool]:
    """The last thing the user said, and whether a tool said it."""
    for message in reversed(messages):
        for block in reversed(blocks_of(message["content"])):
            if message["role"] == "user" and block["type"] == "text":
                return block["text"], False
            if block["type"] == "tool_result":
                texts = [part.get("text", "") for part in blocks_of(block.get("content", ""))]
                return " ".join(texts), True
    return "", False


def _called(body: Json, heard: str) -> list[Json]:
    tools = body.get("tools", [])
    choice = body.get("tool_choice", {"type": "auto"})
    if choice["type"] == "none":
        return []
    if choice["type"] == "tool":
        return [tool for tool in tools if tool["name"] == choice["name"]]
    if "use tools" in heard and not choice.get("disable_parallel_tool_use"):
        return list(tools)
    return tools[:1] if choice["type"] == "any" or "use tool" in heard else []


def _tool_use(tool: Json, position: int, heard: str) -> Json:
    return {
        "type": "tool_use",
        "id": f"toolu_{position:02}{tool['name']}",
        "name": tool["name"],
        "input": _example(tool["input_schema"], heard),
    }


def _example(schema: Json, heard: str) -> Any:
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _example(inner, heard) for name, inner in properties.items()}
    examples = {"string": heard, "integer": 7, "number": 0.5, "boolean": True, "array": []}
    return examples.get(str(kind))


def _stopped(text: str, body: Json) -> tuple[str, str, str | None]:
    found = [(text.find(stop), stop) for stop in body.get("stop_sequences", []) if stop in text]
    reason, sequence = "end_turn", None
    if found:
        end, sequence = min(found)
        text, reason = text[:end], "stop_sequence"
    pieces = tokens(text)
    if len(pieces) > body["max_tokens"]:
        return "".join(pieces[: body["max_tokens"]]), "max_tokens", None
    return text, reason, sequence


def _input_tokens(body: Json) -> tuple[int, int]:
    """The tokens of the request that are new, and those that come from the cache."""
    fresh, cached = len(tokens(orjson.dumps(body.get("tools", [])).decode())), 0
    contents = [message["content"] for message in body["messages"]]
    for block in [b for content in [body.get("system", ""), *contents] for b in blocks_of(content)]:
        count = IMAGE_TOKENS if block["type"] == "image" else len(tokens(_said(block)))
        cached += count if "cache_control" in block else 0
        fresh += 0 if "cache_control" in block else count
    return fresh + 3 * len(contents), cached


def _said(block: Json) -> str:
    kind = block["type"]
    if kind in ("text", "thinking"):
        return str(block[kind])
    return orjson.dumps({k: v for k, v in block.items() if k != "cache_control"}).decode()


def stream_events(message: Json) -> Iterator[Event]:
    """The events that stream a message."""
    usage = message["usage"]
    opening: Json = {"content": [], "stop_reason": None, "stop_sequence": None}
    opening_usage = {"usage": {**usage, "output_tokens": 1}}
    yield _event("message_start", message={**message, **opening, **opening_usage})
    for index, block in enumerate(message["content"]):
        yield _event("content_block_start", index=index, content_block=_opening(block))
        if index == 0:
            yield _event("ping")
        for delta in _deltas(block):
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    ending = {name: message[name] for name in ("stop_reason", "stop_sequence")}
    final = {name: count for name, count in usage.items() if name != "service_tier"}
    yield _event("message_delta", delta=ending, usage=final)
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> Event:
    return kind, {"type": kind, **fields}


def _opening(block: Json) -> Json:
    empty: Json = {"text": "", "thinking": "", "signature": "", "input": {}}
    return {name: empty.get(name, value) for name, value in block.items()}


def _deltas(block: Json) -> Iterator[Json]:
    if block["type"] == "tool_use":
        written = orjson.dumps(block["input"]).decode() if block["input"] else ""
        yield {"type": "input_json_delta", "partial_json": ""}
        for start in range(0, len(written), 8):
            yield {"type": "input_json_delta", "partial_json": written[start : start + 8]}
        return
    for piece in tokens(_said(block)):
        yield {"type": f"{block['type']}_delta", block["type"]: piece}
    if block["type"] == "thinking":
        yield {"type": "signature_delta", "signature": block["signature"]}


def encode_event(event: Event) -> bytes:
    """An event as the API writes it."""
    kind, data = event
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps(data))
