"""Which models a caller may use, by the names that clients use for them."""

from __future__ import annotations

from router.call import Caller
from router.config.document import Document, Model
from router.errors import ModelForbidden, ModelNotFound


def find_model(document: Document, caller: Caller, name: str) -> Model:
    """The model of this name or alias; raises ``ModelNotFound`` or ``ModelForbidden``."""
    model = document.model_names.get(name)
    if model is None or document.policy_for(caller.organization_id, model.id) is None:
        raise ModelNotFound(name)
    if not may_use(caller, model):
        raise ModelForbidden(name)
    return model


def visible_models(document: Document, caller: Caller) -> list[Model]:
    """Models that this caller may use and that a policy serves for its organization."""
    return [
        model
        for model in document.models.values()
        if may_use(caller, model) and document.policy_for(caller.organization_id, model.id)
    ]


def may_use(caller: Caller, model: Model) -> bool:
    """Whether the key's list of models, if it has one, holds this model."""
    return caller.models is None or model.id in caller.models
