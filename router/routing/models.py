"""The story of one call, without HTTP."""

from __future__ import annotations

from router.call import Attempt, Call, Caller
from router.config.document import Document, Model
from router.errors import InvalidRequest, ModelForbidden, ModelNotFound
from router.routing.engine import RoutingEngine
from router.upstream.forwarder import BackendReply, ForwardContext, Forwarder


class Gateway:
    """Plans, forwards, delivers. Every route that can reach a backend goes through ``serve``."""

    def __init__(self, engine: RoutingEngine, forwarder: Forwarder) -> None:
        self._engine = engine
        self._forwarder = forwarder

    def serve(
        self,
        document: Document,
        caller: Caller,
        call: Call,
        context: ForwardContext,
        attempts: list[Attempt],
    ) -> BackendReply:
        """Raises a leaf of ``RouterError``; what was tried is in ``attempts`` either way."""
        model = document.models[call.model]
        candidates = self._engine.plan(document, caller.organization_id, model.id)
        if not candidates:
            raise ModelNotFound(call.requested_model)
        able = [
            backend
            for backend in candidates
            if call.operation in self._forwarder.target(backend).provider.paths
        ]
        if not able:
            raise InvalidRequest(
                f"the model '{call.requested_model}' does not support {call.operation}",
                field="model",
            )
        return self._forwarder.send(call, able, context, attempts, model.max_output_tokens)


def find_model(document: Document, caller: Caller, name: str) -> Model:
    """The model behind a name that a client used, if this caller may use it."""
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
