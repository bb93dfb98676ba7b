"""The OpenAI dialect: chat completions, completions, embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from router.api.dialects.checks import (
    check_messages,
    optional_count,
    optional_flag,
    optional_number,
    optional_object,
    required_list,
    required_name,
    required_text_or_list,
)
from router.api.dialects.dialect import CallRoute
from router.api.dialects.spelling import check_spelling
from router.api.error_specs import (
    LIMIT_ERRORS,
    error_spec_of,
    field_of,
    limit_facts,
    message_of,
)
from router.api.scope import Scope
from router.call import CHOICE_FIELDS, LIMIT_FIELDS, Call, Operation
from router.errors import BackendRejected, InvalidRequest
from router.routing.models import find_model
from router.upstream.forwarder import BackendReply
from router.upstream.reply_stream import ReplyStream

MAX_IDEMPOTENCY_KEY_CHARS: Final = 255
_COUNTS: Final = (*LIMIT_FIELDS["completions"], *CHOICE_FIELDS)


class OpenAIDialect:
    """The dialect of the OpenAI SDKs. Bodies pass as they are; what the gates need is checked."""

    routes: Final[Mapping[str, CallRoute]] = {
        "openai.chat_completions": CallRoute("/v1/chat/completions", "chat"),
        "openai.completions": CallRoute("/v1/completions", "completions"),
        "openai.embeddings": CallRoute("/v1/embeddings", "embeddings"),
    }

    def read(self, scope: Scope, operation: Operation, fields: dict[str, Any], body: bytes) -> Call:
        """The call as it is; raises ``InvalidRequest`` for a field that the gates cannot read."""
        check_spelling(fields)
        name = scope.requested_model = required_name(fields, "model")
        stream, include_usage = False, False
        if operation == "chat":
            check_messages(required_list(fields, "messages"), "messages")
            optional_count(fields, "max_completion_tokens")
        elif operation == "completions":
            required_text_or_list(fields, "prompt")
        else:
            required_text_or_list(fields, "input")
        if operation != "embeddings":
            stream, include_usage = _check_generation(fields)
        assert scope.document is not None and scope.caller is not None
        model = find_model(scope.document, scope.caller, name)
        return Call(
            dialect="openai",
            operation=operation,
            model=model.id,
            requested_model=name,
            fields=fields,
            body=body,
            stream=stream,
            include_usage=include_usage,
            idempotency_id=_idempotency_key(scope),
        )

    def render(self, scope: Scope, reply: BackendReply) -> bytes:
        """The backend's bytes."""
        return reply.body or b""

    def render_events(self, scope: Scope, reply: BackendReply) -> None:
        """``None``: a whole reply is sent as it is."""

    def translate(self, scope: Scope, stream: ReplyStream) -> None:
        """``None``: a stream passes as it is."""

    def failure_event(self, error: Exception, *, trace_id: str) -> bytes:
        """A ``data`` line with the error."""
        return b"data: " + self.error_body(error, trace_id=trace_id) + b"\n\n"

    def error_body(self, error: Exception, *, trace_id: str) -> bytes:
        """:func:`openai_body` as JSON, or the backend's own words about the client's request."""
        if isinstance(error, BackendRejected) and error.body is not None:
            return _backend_body(error, error.body)
        return orjson.dumps(openai_body(error))


def openai_body(error: Exception) -> dict[str, Any]:
    """``{"error": {message, type, param, code}}`` as the SDKs expect it."""
    spec = error_spec_of(error)
    facts = {
        "message": message_of(error),
        "type": spec.openai_type,
        "param": field_of(error),
        "code": spec.openai_code,
    }
    if isinstance(error, LIMIT_ERRORS):
        return {"error": {**facts, **limit_facts(error.denial)}}
    return {"error": facts}


def _backend_body(error: BackendRejected, body: bytes) -> bytes:
    """The backend's own words: untouched, unless the SDKs would miss a member in them."""
    ours = openai_body(error)["error"]
    found = orjson.loads(body)
    theirs = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(theirs, dict):
        return orjson.dumps({"error": ours})
    if theirs is not found and ours.keys() <= theirs.keys():
        return body
    try:
        return orjson.dumps({"error": {**ours, **theirs}})
    except orjson.JSONEncodeError:  # nested more deeply than it can be written again
        return orjson.dumps({"error": ours})


def _idempotency_key(scope: Scope) -> str | None:
    key: str | None = scope.request.environ.get("HTTP_IDEMPOTENCY_KEY")
    if key is not None and not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_CHARS:
        raise InvalidRequest(
            f"must have 1 to {MAX_IDEMPOTENCY_KEY_CHARS} characters", field="Idempotency-Key"
        )
    return key


def _check_generation(fields: dict[str, Any]) -> tuple[bool, bool]:
    """Whether to stream, and whether the client wants the usage chunk."""
    for name in _COUNTS:
        optional_count(fields, name)
    optional_number(fields, "temperature")
    optional_number(fields, "top_p")
    stream = optional_flag(fields, "stream")
    options = optional_object(fields, "stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise InvalidRequest(
            "'stream_options' is only allowed when 'stream' is true", field="stream_options"
        )
    include = options.get("include_usage")
    if include is not None and not isinstance(include, bool):
        raise InvalidRequest(
            "'include_usage' must be a boolean", field="stream_options.include_usage"
        )
    return stream, include is True
