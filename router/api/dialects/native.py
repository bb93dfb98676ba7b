"""The router's own dialect: ``POST /v1/inference``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import orjson
from flask import Blueprint, Response

from router.api import pipeline
from router.api.bodies import parse_json
from router.api.call_usage import call_usage
from router.api.dialects.checks import (
    check_messages,
    optional_count,
    optional_flag,
    optional_object,
    required_name,
)
from router.api.dispatch import serve
from router.api.error_specs import native_body
from router.api.replies import ClientStream, answer, answer_events, stream_reply
from router.api.scope import Scope, current_scope
from router.call import Call
from router.errors import BackendFailed, BodyTooLarge, InvalidRequest, RouterError
from router.providers.sse import SseSplitter, data_of
from router.routing.models import find_model
from router.upstream.forwarder import BackendReply
from router.upstream.reply_stream import ReplyStream

blueprint: Final = Blueprint("native", __name__)
pipeline.install(blueprint)

MAX_PAYLOAD_BYTES: Final = 64 * 1024
MAX_METADATA_ENTRIES: Final = 64
MAX_METADATA_CHARS: Final = 1024
MAX_METADATA_BYTES: Final = 16 * 1024
"""Of all of it as JSON: each call's record carries it, to the spool and to every sink."""
CONTENT_TYPES: Final = ("text/plain", "application/json")
FIELDS: Final = frozenset(
    {
        "request_id",
        "model",
        "payload",
        "content_type",
        "parameters",
        "metadata",
        "stream",
        "hmac_signature",
    }
)
RESERVED_PARAMETERS: Final = ("model", "messages", "stream", "stream_options", "n")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@blueprint.post("/v1/inference")
def inference() -> Response:
    """One inference call, whole or, with ``stream: true``, as server-sent events."""
    scope, backend_reply = current_scope(), serve()
    if backend_reply.stream is not None:
        events = _Events(scope, backend_reply.stream)
        return stream_reply(ClientStream(scope, backend_reply.stream, events.failure, iter(events)))
    output = _output_of(backend_reply)
    if scope.call is not None and scope.call.stream:
        # The backend answered a streaming call in one piece.
        delta = _event("delta", {"output": output}) if output else b""
        return answer_events(delta + _event("done", _facts(scope)))
    return answer(orjson.dumps({**_facts(scope), "output": output}))


def read_native_call(scope: Scope, fields: dict[str, Any], _body: bytes) -> Call:
    """A native body as a chat call; its ``request_id`` becomes the id of the whole request."""
    unknown = next((name for name in fields if name not in FIELDS), None)
    if unknown is not None:
        raise InvalidRequest(f"unknown field '{unknown[:64]}'", field=unknown[:64])
    scope.request_id = _request_id(fields)
    name = scope.requested_model = required_name(fields, "model")
    messages = _messages(fields)
    stream = optional_flag(fields, "stream")
    parameters = _parameters(fields)
    metadata = _metadata(fields)
    assert scope.document is not None and scope.caller is not None
    model = find_model(scope.document, scope.caller, name)
    return Call(
        dialect="native",
        operation="chat",
        model=model.id,
        requested_model=name,
        fields={**parameters, "model": name, "messages": messages, "stream": stream},
        body=None,
        stream=stream,
        idempotency_id=scope.request_id,
        metadata=metadata,
    )


def _request_id(fields: dict[str, Any]) -> str:
    request_id = required_name(fields, "request_id")
    if not _UUID.fullmatch(request_id):
        raise InvalidRequest("'request_id' must be a UUID", field="request_id")
    return request_id.lower()


def _messages(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """``text/plain``: one user message. ``application/json``: chat messages, or any JSON text."""
    content_type = fields.get("content_type")
    if content_type is None:
        content_type = "text/plain"
    if content_type not in CONTENT_TYPES:
        raise InvalidRequest(
            f"'content_type' must be one of {', '.join(CONTENT_TYPES)}", field="content_type"
        )
    payload = fields.get("payload")
    if payload is None or payload == "":
        raise InvalidRequest("the field 'payload' is required", field="payload")
    if isinstance(payload, str):
        encoded = payload.encode()
    elif content_type == "application/json":
        encoded = orjson.dumps(payload)
    else:
        raise InvalidRequest("'payload' must be a string for text/plain", field="payload")
    if len(encoded) > MAX_PAYLOAD_BYTES:
        raise BodyTooLarge(MAX_PAYLOAD_BYTES, field="payload")
    if content_type == "application/json":
        if isinstance(payload, str):
            payload = parse_json(encoded, field="payload")
        messages = payload.get("messages") if isinstance(payload, dict) else None
        if messages is not None:
            return _own_messages(messages)
    return [{"role": "user", "content": encoded.decode()}]


def _own_messages(messages: Any) -> list[dict[str, Any]]:
    """The chat messages that a JSON payload brings along."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("must be an array that is not empty", field="payload.messages")
    check_messages(messages, "payload.messages")
    return messages


def _parameters(fields: dict[str, Any]) -> dict[str, Any]:
    parameters = optional_object(fields, "parameters") or {}
    for name in RESERVED_PARAMETERS:
        if name in parameters:
            raise InvalidRequest(
                f"'{name}' cannot be set in 'parameters'", field=f"parameters.{name}"
            )
    optional_count(parameters, "max_tokens")
    optional_count(parameters, "max_completion_tokens")
    return parameters


def _metadata(fields: dict[str, Any]) -> dict[str, str]:
    metadata = optional_object(fields, "metadata") or {}
    if len(metadata) > MAX_METADATA_ENTRIES:
        raise InvalidRequest(
            f"'metadata' may have at most {MAX_METADATA_ENTRIES} entries", field="metadata"
        )
    for name, value in metadata.items():
        shown = f"metadata.{name[:64]}"
        if not isinstance(value, str):
            raise InvalidRequest("a metadata value must be a string", field=shown)
        if len(name) > MAX_METADATA_CHARS or len(value) > MAX_METADATA_CHARS:
            raise InvalidRequest(
                f"metadata may have at most {MAX_METADATA_CHARS} characters", field=shown
            )
    if len(orjson.dumps(metadata)) > MAX_METADATA_BYTES:
        raise InvalidRequest(
            f"'metadata' may have at most {MAX_METADATA_BYTES} bytes of JSON", field="metadata"
        )
    return metadata


def _output_of(backend_reply: BackendReply) -> str:
    try:
        message = orjson.loads(backend_reply.body or b"")["choices"][0]["message"]
        content = message.get("content")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise BackendFailed("reply without choices") from None
    if content is not None and not isinstance(content, str):
        raise BackendFailed("reply whose content is no text")
    return content or ""


def _facts(scope: Scope) -> dict[str, Any]:
    """All of a native reply but its output."""
    usage, cost = call_usage(scope)
    return {
        "request_id": scope.request_id,
        "usage": {
            "tokens_input": usage.tokens_input,
            "tokens_output": usage.tokens_output,
            "latency_ms": round(scope.elapsed_s() * 1000),
            "cost_usd": None if cost is None else cost / 1e9,
            "limit_state": "WITHIN_LIMIT",
        },
        "trace_id": scope.trace.trace_id,
        "span_id": scope.trace.span_id,
    }


class _Events:
    """Turns the OpenAI stream into native events: ``delta`` …, then ``done`` or ``error``."""

    def __init__(self, scope: Scope, stream: ReplyStream) -> None:
        self._scope = scope
        self._stream = stream
        self._splitter = SseSplitter()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            events = [self._translate(event) for event in self._splitter.feed(chunk)]
            data = b"".join(events)
            if data:
                yield data
        rest = self._splitter.finish()
        if rest:
            yield self._translate(rest)
        if self._stream.outcome == "completed":
            yield _event("done", _facts(self._scope))

    def failure(self, error: RouterError) -> bytes:
        """The last event of a stream that broke."""
        return _event("error", native_body(error, trace_id=self._scope.trace.trace_id))

    @staticmethod
    def _translate(event: bytes) -> bytes:
        data = data_of(event)
        if data is None or data == b"[DONE]":
            return b""
        try:
            text = orjson.loads(data)["choices"][0]["delta"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError):
            return b""
        return _event("delta", {"output": text}) if text and isinstance(text, str) else b""


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))


pipeline.declare("native.inference", scope="inference", reader=read_native_call)
