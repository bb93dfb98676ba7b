"""What the pipeline needs to know of an endpoint: the scope it asks for, how its calls are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from flask import Blueprint
from flask.typing import ResponseReturnValue

from router.api.bodies import parse_object, request_body, require_json
from router.api.dialects.dialect import CallRoute, Dialect
from router.api.dialects.dialect_table import DIALECTS
from router.api.scope import Scope
from router.api.steps.authentication import verify_body_signature
from router.call import Call
from router.call import Dialect as DialectName
from router.errors import RouterError
from router.pricing.selection import permitted

ReadCall = Callable[[Scope, dict[str, Any], bytes], Call]
"""Makes a call out of a parsed body and the bytes it was parsed from."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint behind authentication."""

    scope: str | None
    """The scope that a key needs; ``None`` lets any valid key use it."""
    read: ReadCall | None = None
    """Where it is set the endpoint serves calls, to which limits apply; elsewhere no backend is
    reached."""
    signature_in_body: bool = False
    """Whether the signature may travel in the body instead of the headers."""
    dialect: DialectName = "native"
    """How its errors look."""


def _call_endpoint(name: DialectName, dialect: Dialect, route: CallRoute) -> Endpoint:
    def read(scope: Scope, fields: dict[str, Any], body: bytes) -> Call:
        return dialect.read(scope, route.operation, fields, body)

    return Endpoint("inference", read, route.signature_in_body, name)


ENDPOINTS: Final = {
    name: _call_endpoint(dialect_name, dialect, route)
    for dialect_name, dialect in DIALECTS.items()
    for name, route in dialect.routes.items()
}
"""By the names of their Flask endpoints; each module of ``views`` adds its own."""


def read(scope: Scope, endpoint: Endpoint) -> None:
    """Read the call in its dialect; the client's own bytes stay beside it.

    What cannot be read is noted and refused by admission, where it counts for the rate limits like
    any other call.
    """
    if endpoint.read is None or scope.unreadable is not None:
        return
    try:
        require_json(scope.request)
        body = request_body(scope)
        fields = parse_object(body, _most_elements(scope))
        if endpoint.signature_in_body:
            verify_body_signature(scope, fields, body)
        call = endpoint.read(scope, fields, body)
        assert scope.document is not None
        scope.call = permitted(call, scope.document.models[call.model].allow)
    except RouterError as error:
        scope.unreadable = error


def _most_elements(scope: Scope) -> int:
    settings = scope.services.settings
    is_embeddings = scope.endpoint == "openai.embeddings"  # a batch of token arrays is no prompt
    return settings.max_embedding_elements if is_embeddings else settings.max_body_elements


def serves_calls(name: str) -> bool:
    """Whether an endpoint can reach a backend: each of its requests leaves one usage record."""
    endpoint = ENDPOINTS.get(name)
    return endpoint is not None and endpoint.read is not None


def call_blueprints(
    enter: Callable[[], ResponseReturnValue | None], serve: Callable[[], ResponseReturnValue]
) -> dict[DialectName, Blueprint]:
    """A blueprint for each dialect, by its name; ``enter`` runs before ``serve`` on all routes."""
    found = {}
    for dialect_name, dialect in DIALECTS.items():
        blueprint = Blueprint(dialect_name, __name__)
        blueprint.before_request(enter)
        for name, route in dialect.routes.items():
            view_name = name.removeprefix(f"{dialect_name}.")
            blueprint.add_url_rule(route.path, view_name, serve, methods=["POST"])
        found[dialect_name] = blueprint
    return found
