"""The OpenAI dialect: chat completions, completions, embeddings, models."""

from __future__ import annotations

from typing import Any, Final

import orjson
from flask import Blueprint, Response

from router.api import pipeline
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
from router.api.dispatch import serve
from router.api.replies import deliver, json_reply
from router.api.scope import Scope, current_scope
from router.call import Call, Operation
from router.config.document import Model
from router.errors import InvalidRequest
from router.routing.models import find_model, visible_models

blueprint: Final = Blueprint("openai", __name__)
pipeline.install(blueprint)

MAX_IDEMPOTENCY_KEY_CHARS: Final = 255
_OWNER: Final = "api-router"


@blueprint.post("/v1/chat/completions")
def chat_completions() -> Response:
    """One chat turn, whole or as a stream."""
    return deliver(serve())


@blueprint.post("/v1/completions")
def completions() -> Response:
    """One text completion, whole or as a stream."""
    return deliver(serve())


@blueprint.post("/v1/embeddings")
def embeddings() -> Response:
    """Vectors for texts."""
    return deliver(serve())


@blueprint.get("/v1/models")
def list_models() -> Response:
    """The models that this key may use."""
    scope = current_scope()
    assert scope.document is not None and scope.caller is not None
    models = [_shown(model, model.id) for model in visible_models(scope.document, scope.caller)]
    return json_reply(orjson.dumps({"object": "list", "data": models}))


@blueprint.get("/v1/models/<path:model_id>")
def get_model(model_id: str) -> Response:
    """One model, by its id or an alias."""
    scope = current_scope()
    assert scope.document is not None and scope.caller is not None
    model = find_model(scope.document, scope.caller, model_id)
    return json_reply(orjson.dumps(_shown(model, model_id)))


def _shown(model: Model, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": _OWNER}


def read_openai_call(
    operation: Operation, scope: Scope, fields: dict[str, Any], body: bytes
) -> Call:
    """A call in its own dialect: what the gates need is checked, all else passes untouched."""
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


def _idempotency_key(scope: Scope) -> str | None:
    key: str | None = scope.request.environ.get("HTTP_IDEMPOTENCY_KEY")
    if key is not None and not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_CHARS:
        raise InvalidRequest(
            f"must have 1 to {MAX_IDEMPOTENCY_KEY_CHARS} characters", field="Idempotency-Key"
        )
    return key


def _check_generation(fields: dict[str, Any]) -> tuple[bool, bool]:
    """Whether to stream, and whether the client wants the usage chunk."""
    optional_count(fields, "max_tokens")
    optional_count(fields, "n")
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


def _declare() -> None:
    def reader(operation: Operation) -> pipeline.ReadFields:
        return lambda scope, fields, body: read_openai_call(operation, scope, fields, body)

    pipeline.declare("openai.chat_completions", scope="inference", reader=reader("chat"))
    pipeline.declare("openai.completions", scope="inference", reader=reader("completions"))
    pipeline.declare("openai.embeddings", scope="inference", reader=reader("embeddings"))
    pipeline.declare("openai.list_models", scope="models:read")
    pipeline.declare("openai.get_model", scope="models:read")


_declare()
