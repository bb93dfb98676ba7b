"""The router's own dialect: ``POST /v1/inference``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from router.api.bodies import parse_json
from router.api.dialects.checks import (
    check_messages,
    optional_count,
    optional_flag,
    optional_object,
    required_name,
)
from router.api.dialects.dialect import CallRoute
from router.api.dialects.spelling import check_message_names, check_names, check_spelling, folded
from router.api.error_specs import (
    LIMIT_ERRORS,
    error_spec_of,
    field_of,
    limit_facts,
    message_of,
)
from router.api.scope import Scope, new_uuid
from router.api.steps.call_usage import call_usage
from router.call import LIMIT_FIELDS, Call, Operation
from router.errors import BackendFailed, BackendRejected, BodyTooLarge, InvalidRequest
from router.providers.sse import SseSplitter, data_of
from router.routing.models import find_model
from router.upstream.forwarder import BackendReply
from router.upstream.reply_stream import ReplyStream

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
RESERVED_PARAMETERS: Final = ("model", "messages", "stream", "stream_options", "n", "n_cmpl")
_COUNTS: Final = (*LIMIT_FIELDS["chat"], "best_of")
_PAYLOAD: Final = frozenset({"messages"})
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class NativeDialect:
    """The router's own dialect. One call in, one answer or a stream of events out."""

    routes: Final[Mapping[str, CallRoute]] = {
        "native.inference": CallRoute("/v1/inference", "chat", signature_in_body=True)
    }

    def read(self, scope: Scope, operation: Operation, fields: dict[str, Any], body: bytes) -> Call:
        """A native body as a chat call; a ``request_id`` becomes the id of the whole request."""
        check_names(fields, FIELDS, "")
        unknown = next((name for name in fields if name not in FIELDS), None)
        if unknown is not None:
            raise InvalidRequest(f"unknown field '{unknown[:64]}'", field=unknown[:64])
        scope.request_id = _request_id(scope, fields)
        name = scope.requested_model = required_name(fields, "model")
        messages = _messages(fields)
        stream = optional_flag(fields, "stream")
        parameters = _parameters(fields)
        metadata = _metadata(fields)
        assert scope.document is not None and scope.caller is not None
        model = find_model(scope.document, scope.caller, name)
        return Call(
            dialect="native",
            operation=operation,
            model=model.id,
            requested_model=name,
            fields={**parameters, "model": name, "messages": messages, "stream": stream},
            body=None,
            stream=stream,
            # An id that the router made cannot be sent again.
            idempotency_id=None if fields.get("request_id") is None else scope.request_id,
            metadata=metadata,
        )

    def render(self, scope: Scope, reply: BackendReply) -> bytes:
        """``{request_id, usage, trace_id, span_id, output}``."""
        return orjson.dumps({**_facts(scope), "output": _output_of(reply)})

    def render_events(self, scope: Scope, reply: BackendReply) -> bytes:
        """One ``delta`` with all of the output, then ``done``."""
        output = _output_of(reply)
        delta = _event("delta", {"output": output}) if output else b""
        return delta + _event("done", _facts(scope))

    def translate(self, scope: Scope, stream: ReplyStream) -> Iterator[bytes]:
        """The OpenAI stream as native events: ``delta`` …, then ``done`` if it was whole."""
        splitter = SseSplitter()
        for chunk in stream:
            data = b"".join([_delta_of(event) for event in splitter.feed(chunk)])
            if data:
                yield data
        rest = splitter.finish()
        if rest:
            yield _delta_of(rest)
        if stream.outcome == "completed":
            yield _event("done", _facts(scope))

    def failure_event(self, error: Exception, *, trace_id: str) -> bytes:
        """An ``error`` event."""
        return _event("error", native_body(error, trace_id=trace_id))

    def error_body(self, error: Exception, *, trace_id: str) -> bytes:
        """:func:`native_body` as JSON."""
        return orjson.dumps(native_body(error, trace_id=trace_id))


def native_body(error: Exception, *, trace_id: str) -> dict[str, Any]:
    """``{error, code, trace_id}`` and, where there is more to say, ``details``."""
    body = {"error": message_of(error), "code": error_spec_of(error).code, "trace_id": trace_id}
    if isinstance(error, LIMIT_ERRORS):
        return {**body, **limit_facts(error.denial)}
    if isinstance(error, BackendRejected):
        return {**body, "details": {"backend_status": error.status}}
    field = field_of(error)
    return body if field is None else {**body, "details": {"field": field}}


def _request_id(scope: Scope, fields: dict[str, Any]) -> str:
    """The client's id; a call without one keeps its ``X-Request-ID`` or gets a new id."""
    if fields.get("request_id") is None:
        return scope.request_id if _UUID.fullmatch(scope.request_id) else new_uuid()
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
        if isinstance(payload, dict):
            # Any other name is a part of the text.
            check_names([n for n in payload if folded(n) == "messages"], _PAYLOAD, "payload.")
        messages = payload.get("messages") if isinstance(payload, dict) else None
        if messages is not None:
            return _own_messages(messages)
    return [{"role": "user", "content": encoded.decode()}]


def _own_messages(messages: Any) -> list[dict[str, Any]]:
    """The chat messages that a JSON payload brings along."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("must be an array that is not empty", field="payload.messages")
    check_messages(messages, "payload.messages")
    check_message_names(messages, "payload.messages")
    return messages


def _parameters(fields: dict[str, Any]) -> dict[str, Any]:
    parameters = optional_object(fields, "parameters") or {}
    for name in RESERVED_PARAMETERS:
        if name in parameters:
            raise InvalidRequest(
                f"'{name}' cannot be set in 'parameters'", field=f"parameters.{name}"
            )
    check_spelling(parameters, "parameters.")
    for name in _COUNTS:
        optional_count(parameters, name)
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


def _output_of(reply: BackendReply) -> str:
    try:
        message = orjson.loads(reply.body or b"")["choices"][0]["message"]
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


def _delta_of(event: bytes) -> bytes:
    """The native event for one of the OpenAI stream; empty where it brings no text."""
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
