"""A request's body becomes a call."""

from __future__ import annotations

from router.api.authentication import verify_body_signature
from router.api.bodies import parse_object, request_body, require_json
from router.api.endpoints import Endpoint
from router.api.scope import Scope
from router.errors import RouterError


def read(scope: Scope, endpoint: Endpoint) -> None:
    """Read the call in its dialect; the client's own bytes stay beside it.

    What cannot be read is noted and refused by admission, where it counts for the rate limits like
    any other call.
    """
    if endpoint.read is None:
        return
    try:
        require_json(scope.request)
        body = request_body(scope)
        fields = parse_object(body)
        if endpoint.signature_in_body:
            verify_body_signature(scope, fields, body)
        scope.call = endpoint.read(scope, fields, body)
    except RouterError as error:
        scope.unreadable = error
