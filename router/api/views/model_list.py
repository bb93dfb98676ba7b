"""The models that a key may use, as the OpenAI SDKs list them."""

from __future__ import annotations

from typing import Any, Final

import orjson
from flask import Blueprint, Response

from router.api.endpoints import ENDPOINTS, Endpoint
from router.api.replies import json_reply
from router.api.scope import current_scope
from router.config.document import Model
from router.routing.models import find_model, visible_models

ENDPOINTS["openai.list_models"] = ENDPOINTS["openai.get_model"] = Endpoint(
    "models:read", dialect="openai"
)

_OWNER: Final = "api-router"


def add_routes(blueprint: Blueprint) -> None:
    """Serve the models below the OpenAI dialect's calls."""
    blueprint.add_url_rule("/v1/models", view_func=list_models, methods=["GET"])
    blueprint.add_url_rule("/v1/models/<path:model_id>", view_func=get_model, methods=["GET"])


def list_models() -> Response:
    """The models that this key may use."""
    scope = current_scope()
    assert scope.document is not None and scope.caller is not None
    models = [_shown(model, model.id) for model in visible_models(scope.document, scope.caller)]
    return json_reply(orjson.dumps({"object": "list", "data": models}))


def get_model(model_id: str) -> Response:
    """One model, by its id or an alias."""
    scope = current_scope()
    assert scope.document is not None and scope.caller is not None
    model = find_model(scope.document, scope.caller, model_id)
    return json_reply(orjson.dumps(_shown(model, model_id)))


def _shown(model: Model, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": _OWNER}
