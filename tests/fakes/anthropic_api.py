"""A live fake of Anthropic's Messages API: as strict, the same shapes, answers one can predict.

It answers with what the user said last, in tokens of at most six characters. "use tool" in that
text makes it call the first tool (or the one that ``tool_choice`` names), "use tools" all of them.
Content marked with ``cache_control`` counts as read from the cache. A streamed reply and a buffered
one to the same request report the same usage.
"""

from __future__ import annotations

import hashlib
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import orjson

Json = dict[str, Any]
Event = tuple[str, Json]

API_VERSION = "2023-06-01"
THOUGHT = "The user wants an answer. I will give one."
IMAGE_TOKENS = 100


class ApiError(Exception):
    """An answer of the API that is an error."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"type": kind, "message": message}


def _invalid(message: str) -> ApiError:
    return ApiError(400, "invalid_request_error", message)


# --- what the API refuses --------------------------------------------------------------------


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


_REQUIRED_FIELDS = ("model", "max_tokens", "messages")
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is_text, "Input should be a valid string"),
    "max_tokens": (lambda v: _is_int(v) and v >= 1, "Input should be greater than or equal to 1"),
    "messages": (_is_list, "Input should be a valid list"),
    "system": (lambda v: isinstance(v, (str, list)), "Input should be a valid string"),
    "metadata": (_is_object, "Input should be a valid dictionary"),
    "stop_sequences": (_is_list, "Input should be a valid list"),
    "stream": (lambda v: isinstance(v, bool), "Input should be a valid boolean"),
    "temperature": (_is_share, "range: 0..1"),
    "top_p": (_is_share, "range: 0..1"),
    "top_k": (_is_int, "Input should be a valid integer"),
    "tools": (_is_list, "Input should be a valid list"),
    "tool_choice": (_is_object, "Input should be a valid dictionary"),
    "thinking": (_is_object, "Input should be a valid dictionary"),
    "output_config": (_is_object, "Input should be a valid dictionary"),
    "service_tier": (
        lambda v: v in ("auto", "standard_only"),
        "Input should be 'auto' or 'standard_only'",
    ),
    "cache_control": (_is_object, "Input should be a valid dictionary"),
    "container": (lambda v: isinstance(v, (str, dict)), "Input should be a valid string"),
    "inference_geo": (_is_text, "Input should be a valid string"),
}
# Per kind of block: the roles that may say it, what it must have, what it may have.
_BLOCKS: dict[str, tuple[str, set[str], set[str]]] = {
    "text": ("user assistant system", {"text"}, {"cache_control", "citations"}),
    "image": ("user", {"source"}, {"cache_control"}),
    "document": ("user", {"source"}, {"cache_control", "citations", "context", "title"}),
    "tool_result": ("user", {"tool_use_id"}, {"cache_control", "content", "is_error"}),
    "tool_use": ("assistant", {"id", "name", "input"}, {"cache_control"}),
    "thinking": ("assistant", {"thinking", "signature"}, set()),
    "redacted_thinking": ("assistant", {"data"}, set()),
}
_TOOL_CHOICES: dict[str, tuple[set[str], set[str]]] = {
    "auto": (set(), {"disable_parallel_tool_use"}),
    "any": (set(), {"disable_parallel_tool_use"}),
    "tool": ({"name"}, {"disable_parallel_tool_use"}),
    "none": (set(), set()),
}
_IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")


def check_request(body: Any) -> None:
    """Raise the error that the API would answer this parsed body with, if it would."""
    if not isinstance(body, dict):
        raise _invalid("Input should be a valid dictionary")
    for name in _REQUIRED_FIELDS:
        if name not in body:
            raise _invalid(f"{name}: Field required")
    for name, value in body.items():
        if name not in _FIELDS:
            raise _invalid(f"{name}: Extra inputs are not permitted")
        holds, message = _FIELDS[name]
        if not holds(value):
            raise _invalid(f"{name}: {message}")
    _check_shape(body.get("metadata", {}), "metadata", set(), {"user_id"})
    _check_stops(body.get("stop_sequences", []))
    _check_tools(body)
    _check_thinking(body)
    _check_output(body.get("output_config", {}))
    if isinstance(body.get("system"), list):
        _check_blocks(body["system"], "system", "system")
    _check_messages(body["messages"])


def _check_shape(value: Any, where: str, required: set[str], optional: set[str]) -> None:
    if not isinstance(value, dict):
        raise _invalid(f"{where}: Input should be a valid dictionary")
    for name in sorted(required - value.keys()):
        raise _invalid(f"{where}.{name}: Field required")
    for name in sorted(value.keys() - required - optional):
        raise _invalid(f"{where}.{name}: Extra inputs are not permitted")


def _check_stops(stops: list[Any]) -> None:
    for i, stop in enumerate(stops):
        if not isinstance(stop, str):
            raise _invalid(f"stop_sequences.{i}: Input should be a valid string")
        if not stop.strip():
            raise _invalid("stop_sequences: each stop sequence must contain non-whitespace")


def _check_tools(body: Json) -> None:
    for i, tool in enumerate(body.get("tools", [])):
        where = f"tools.{i}.custom"
        optional = {"type", "description", "cache_control", "strict"}
        _check_shape(tool, where, {"name", "input_schema"}, optional)
        if not isinstance(tool["name"], str) or not _NAME.fullmatch(tool["name"]):
            raise _invalid(f"{where}.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        schema = tool["input_schema"]
        if not isinstance(schema, dict) or "type" not in schema:
            raise _invalid(f"{where}.input_schema.type: Field required")
        if schema["type"] != "object":
            raise _invalid(f"{where}.input_schema.type: Input should be 'object'")
    choice = body.get("tool_choice")
    if choice is None:
        return
    if not body.get("tools"):
        raise _invalid("tool_choice: tool_choice may only be specified while providing tools")
    kind = choice.get("type")
    if kind not in _TOOL_CHOICES:
        raise _invalid("tool_choice: Input tag does not match any of the expected tags")
    required, optional = _TOOL_CHOICES[kind]
    _check_shape(choice, f"tool_choice.{kind}", required | {"type"}, optional)
    if kind == "tool" and choice["name"] not in [tool["name"] for tool in body["tools"]]:
        raise _invalid(f"Tool '{choice['name']}' not found in provided tools")


def _check_thinking(body: Json) -> None:
    thinking = body.get("thinking")
    if thinking is None or thinking.get("type") in ("disabled", "adaptive"):
        return
    _check_shape(thinking, "thinking.enabled", {"type", "budget_tokens"}, {"display"})
    if not _is_int(thinking["budget_tokens"]) or thinking["budget_tokens"] < 1024:
        raise _invalid(
            "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024"
        )
    if thinking["budget_tokens"] >= body["max_tokens"]:
        raise _invalid("`max_tokens` must be greater than `thinking.budget_tokens`")


def _check_output(config: Json) -> None:
    _check_shape(config, "output_config", set(), {"effort", "format"})
    if config.get("format") is None:
        return
    _check_shape(config["format"], "output_config.format", {"type", "schema"}, set())
    if config["format"]["type"] != "json_schema":
        raise _invalid("output_config.format.type: Input should be 'json_schema'")


def _check_messages(messages: list[Any]) -> None:
    if not messages:
        raise _invalid("messages: at least one message is required")
    for i, message in enumerate(messages):
        _check_shape(message, f"messages.{i}", {"role", "content"}, set())
        role = message["role"]
        if role == "system":
            raise _invalid(
                'messages: Unexpected role "system". The Messages API accepts a top-level '
                '`system` parameter, not "system" as an input message role.'
            )
        if role not in ("user", "assistant"):
            raise _invalid(f"messages.{i}.role: Input should be 'user' or 'assistant'")
        if not isinstance(message["content"], (str, list)):
            raise _invalid(f"messages.{i}.content: Input should be a valid list")
        if not message["content"] and (role == "user" or i < len(messages) - 1):
            raise _invalid(
                f"messages.{i}: all messages must have non-empty content except for the "
                "optional final assistant message"
            )
        _check_blocks(blocks_of(message["content"]), role, f"messages.{i}.content")
    if messages[0]["role"] != "user":
        raise _invalid('messages: first message must use the "user" role')
    _check_prefill(messages[-1])
    _check_tool_results(messages)


def _check_blocks(blocks: list[Any], role: str, where: str) -> None:
    for j, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in _BLOCKS or role not in _BLOCKS[kind][0].split():
            raise _invalid(f"{where}.{j}: Input tag '{kind}' does not match the expected tags")
        _, required, optional = _BLOCKS[kind]
        _check_shape(block, f"{where}.{j}.{kind}", required | {"type"}, optional)
        if kind == "text":
            _check_text(block["text"], f"{where}.{j}.text.text")
        elif kind == "image":
            _check_image(block["source"], f"{where}.{j}.image.source")
        elif kind == "tool_result" and "content" in block:
            _check_blocks(blocks_of(block["content"]), "user", f"{where}.{j}.tool_result.content")
        elif kind == "tool_use" and not isinstance(block["input"], dict):
            raise _invalid(f"{where}.{j}.tool_use.input: Input should be a valid dictionary")


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise _invalid(f"{where}: Input should be a valid string")
    if not text:
        raise _invalid("messages: text content blocks must be non-empty")
    if not text.strip():
        raise _invalid("messages: text content blocks must contain non-whitespace text")


def _check_image(source: Any, where: str) -> None:
    if isinstance(source, dict) and source.get("type") == "url":
        _check_shape(source, f"{where}.url", {"type", "url"}, set())
        return
    _check_shape(source, f"{where}.base64", {"type", "media_type", "data"}, set())
    if source["media_type"] not in _IMAGE_TYPES:
        raise _invalid(f"{where}.base64.media_type: Input should be one of {_IMAGE_TYPES}")


def _check_prefill(message: Json) -> None:
    last = blocks_of(message["content"])[-1:]
    text = last[0].get("text", "") if message["role"] == "assistant" and last else ""
    if text != text.rstrip():
        raise _invalid("messages: final assistant content cannot end with trailing whitespace")


def _check_tool_results(messages: list[Json]) -> None:
    """Calls are answered in the very next turn, and there before anything else is said."""
    called: set[str] = set()
    for _, blocks in _turns(messages):
        for answered in (b["tool_use_id"] for b in blocks if b["type"] == "tool_result"):
            if answered not in called:
                raise _invalid(
                    f"messages: unexpected `tool_use_id` found in `tool_result` blocks: {answered}."
                    " Each `tool_result` block must have a corresponding `tool_use` block in the "
                    "previous message."
                )
        _check_answered(called - {block.get("tool_use_id") for block in blocks[: len(called)]})
        called = {block["id"] for block in blocks if block["type"] == "tool_use"}
    _check_answered(called)


def _check_answered(open_calls: set[str]) -> None:
    if open_calls:
        raise _invalid(
            "messages: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(sorted(open_calls))}. Each `tool_use` block must have a corresponding "
            "`tool_result` block in the next message."
        )


def _turns(messages: list[Json]) -> list[tuple[str, list[Json]]]:
    """The API reads consecutive messages of one role as a single turn."""
    turns: list[tuple[str, list[Json]]] = []
    for message in messages:
        blocks = blocks_of(message["content"])
        if turns and turns[-1][0] == message["role"]:
            turns[-1][1].extend(blocks)
        else:
            turns.append((message["role"], list(blocks)))
    return turns


def blocks_of(content: str | list[Any]) -> list[Any]:
    """Content as blocks: a string is short for one text block."""
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


# --- what the API answers --------------------------------------------------------------------


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


# --- the same as a stream --------------------------------------------------------------------


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


# --- the server ------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordedRequest:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def fields(self) -> Any:
        """The parsed body."""
        return orjson.loads(self.body)


class AnthropicApi:
    """The API on a port of its own; its switches may be turned while it serves.

    ::

        with AnthropicApi(api_key="sk-ant-test") as fake:
            fake.url  # "http://127.0.0.1:<port>/v1"
    """

    def __init__(self, *, api_key: str) -> None:
        self.api_key = api_key
        self.requests: list[RecordedRequest] = []
        """Everything that was asked, the refused included, in order."""
        self.overloaded = False
        """Answer every request with 529 ``overloaded_error``."""
        self.error_after_deltas: int | None = None
        """Put an ``error`` event into streams after so many content deltas, and end them."""
        self.cut_after_deltas: int | None = None
        """Break the connection in the middle of an event after so many content deltas."""
        self.pause_s = 0.0
        """Wait before every event of a stream."""
        self.client_gone = threading.Event()
        """Set once a client left a stream before its end."""
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        """The base URL, with the version prefix."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> AnthropicApi:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.hang_up()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, api: AnthropicApi) -> None:
        self.api = api
        self._connections: set[Any] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Close kept-alive connections, or a stopped server would go on answering on them."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ended is the client's right; anything else is a fault of the fake."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        self._answer()

    do_GET = do_PUT = do_DELETE = do_PATCH = do_POST  # noqa: N815 — the names http.server calls

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: tests read ``requests``."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = RecordedRequest(self.command, self.path, headers, body)
        api = self.server.api
        api.requests.append(request)
        self._request_id = f"req_{len(api.requests):08}"
        try:
            message, streamed = self._decide(api, request)
        except ApiError as refusal:
            reply = {"type": "error", "error": refusal.error, "request_id": self._request_id}
            self._send(refusal.status, reply)
            return
        if streamed:
            self._stream(api, message)
        else:
            self._send(200, message)

    def _decide(self, api: AnthropicApi, request: RecordedRequest) -> tuple[Json, bool]:
        if "transfer-encoding" in request.headers:
            self.close_connection = True  # the body stays unread
            raise ApiError(411, "invalid_request_error", "Content-Length is required")
        if request.path.partition("?")[0] != "/v1/messages":
            raise ApiError(404, "not_found_error", "Not Found")
        if request.method != "POST":
            raise ApiError(405, "invalid_request_error", "Method Not Allowed")
        _check_headers(request.headers, api.api_key)
        if api.overloaded:
            raise ApiError(529, "overloaded_error", "Overloaded")
        try:
            fields = request.fields
        except ValueError:
            raise _invalid("The request body is not valid JSON") from None
        check_request(fields)
        if not fields["model"].startswith("claude-"):
            raise ApiError(404, "not_found_error", f"model: {fields['model']}")
        return compose(fields), fields.get("stream", False)

    def _send(self, status: int, reply: Json) -> None:
        body = orjson.dumps(reply)
        self._head(status, "application/json", "Content-Length", str(len(body)))
        self.wfile.write(body)

    def _head(self, status: int, content_type: str, *framing: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("request-id", self._request_id)
        self.send_header(*framing)
        self.end_headers()

    def _stream(self, api: AnthropicApi, message: Json) -> None:
        self._head(200, "text/event-stream; charset=utf-8", "Transfer-Encoding", "chunked")
        deltas = 0
        try:
            for event in stream_events(message):
                time.sleep(api.pause_s)
                if event[0] == "content_block_delta":
                    if deltas == api.cut_after_deltas:
                        self._cut(event)
                        return
                    if deltas == api.error_after_deltas:
                        event = _event("error", error=_OVERLOADED)
                    deltas += 1
                self._write_chunk(encode_event(event))
                if event[0] == "error":
                    break
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            api.client_gone.set()
            self.close_connection = True

    def _write_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _cut(self, event: Event) -> None:
        data = encode_event(event)
        self._write_chunk(data[: len(data) // 2])
        self.close_connection = True


_OVERLOADED = {"type": "overloaded_error", "message": "Overloaded"}


def _check_headers(headers: dict[str, str], api_key: str) -> None:
    if "x-api-key" not in headers:
        raise ApiError(401, "authentication_error", "x-api-key header is required")
    if headers["x-api-key"] != api_key:
        raise ApiError(401, "authentication_error", "invalid x-api-key")
    if "anthropic-version" not in headers:
        raise _invalid("anthropic-version: header is required")
    if headers["anthropic-version"] != API_VERSION:
        raise _invalid(f'anthropic-version: "{headers["anthropic-version"]}" is not valid')
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise _invalid("content-type: must be application/json")
