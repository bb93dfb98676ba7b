"""Three descriptions of a request, one truth: the reader that serves, marshmallow, JSON Schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marshmallow import Schema

from router.api.dialects.spelling import folded
from router.api.openapi.request_schemas import CHAT_COMPLETION, COMPLETION, EMBEDDING, INFERENCE
from router.upstream.forwarder import BackendReply
from tests.contract.bodies import GOOD, VALUES, any_json, damaged_bodies, good_bodies
from tests.contract.checker import Contract
from tests.fakes.router_stand import World

SCHEMAS: dict[str, Schema] = {
    "/v1/inference": INFERENCE,
    "/v1/chat/completions": CHAT_COMPLETION,
    "/v1/completions": COMPLETION,
    "/v1/embeddings": EMBEDDING,
}
COUNTS = ("max_tokens", "max_completion_tokens", "n")
REPLY = b'{"choices": [{"message": {"content": "said"}}]}'

Accepts = Callable[[str, Any], bool]
paths = st.sampled_from(sorted(SCHEMAS))


class WillingForwarder:
    """Serves whatever call the readers let through, without a backend."""

    def send(self, *_: Any) -> BackendReply:
        return BackendReply("first", body=REPLY)


@pytest.fixture(scope="module")
def reader_accepts(world: World) -> Accepts:
    """What the application itself says, the whole way from bytes on the wire."""
    stand = world.stand(forwarder=WillingForwarder())

    def accepts(path: str, fields: Any) -> bool:
        stand.redis.reset()  # the same id comes again and again, with other bodies
        reply = stand.call("POST", path, json=fields)
        assert reply.status in (200, 400, 401, 404, 413)
        # Whether a well-formed name is that of a model is no question of shape.
        return reply.status in (200, 404)

    return accepts


def schema_accepts(path: str, fields: Any) -> bool:
    return not SCHEMAS[path].validate(fields)


def contract_accepts(path: str, fields: Any) -> bool:
    return Contract.published().accepts(path, fields)


def is_beyond_json_schema(path: str, fields: dict[str, Any]) -> bool:
    """Whether a body has something that JSON Schema cannot tell from what is in order."""
    parameters = fields.get("parameters") if path == "/v1/inference" else fields
    counts = [parameters.get(name) for name in COUNTS] if isinstance(parameters, dict) else []
    if any(isinstance(count, float) and count.is_integer() for count in counts):
        return True  # to JSON Schema 1.0 is an integer
    payload = fields.get("payload")
    is_text_of_json = isinstance(payload, str) and fields.get("content_type") == "application/json"
    return path == "/v1/inference" and (is_text_of_json or len(repr(payload)) > 30_000)


def has_name_that_folds(fields: dict[str, Any]) -> bool:
    """Whether some parsers read a name as another one; JSON Schema only tells names apart."""
    levels = [level for level in (fields, fields.get("parameters")) if isinstance(level, dict)]
    return any(folded(name) != name for level in levels for name in level)


def disagreement(reader_accepts: Accepts, path: str, fields: dict[str, Any]) -> str | None:
    """Who says what, when they do not all say the same."""
    reader, schema = reader_accepts(path, fields), schema_accepts(path, fields)
    contract = contract_accepts(path, fields)
    if reader == schema == contract:
        return None
    if reader == schema and contract and is_beyond_json_schema(path, fields):
        return None
    if schema and contract and has_name_that_folds(fields):
        return None
    return f"{path} {str(fields)[:200]}: {reader=} {schema=} {contract=}"


@pytest.mark.parametrize("path", SCHEMAS)
def test_good_bodies_are_good_to_all(reader_accepts: Accepts, path: str) -> None:
    """P4: what the tests start from is accepted by the reader, the schema and the contract."""
    fields = GOOD[path]
    assert reader_accepts(path, fields)
    assert SCHEMAS[path].validate(fields) == {}
    assert contract_accepts(path, fields)


@pytest.mark.parametrize(
    ("path", "name"),
    [(path, name) for path in SCHEMAS for name in [*GOOD[path], "hmac_signature", "unheard_of"]],
)
def test_every_edge_of_every_field(reader_accepts: Accepts, path: str, name: str) -> None:
    """P4: one field at a time takes each odd value, and is left out once."""
    wellformed = "a" * 64  # in shape, so whether it matches is no question of shape
    bodies = [
        {**GOOD[path], name: value}
        for value in VALUES
        if not (name == "hmac_signature" and value == wellformed)
    ]
    bodies.append({key: value for key, value in GOOD[path].items() if key != name})
    found = [disagreement(reader_accepts, path, fields) for fields in bodies]
    assert [line for line in found if line] == []


def test_every_edge_of_a_json_payload(reader_accepts: Accepts) -> None:
    """P4: the same for the payload of a native call that is declared as JSON."""
    good = {**GOOD["/v1/inference"], "content_type": "application/json"}
    bodies = [{**good, "payload": value} for value in VALUES]
    found = [disagreement(reader_accepts, "/v1/inference", fields) for fields in bodies]
    assert [line for line in found if line] == []


@pytest.mark.parametrize("path", SCHEMAS)
def test_what_is_no_object_is_refused_by_all(reader_accepts: Accepts, path: str) -> None:
    """P4: a body is an object."""
    values = [value for value in VALUES if not isinstance(value, dict) and value is not None]
    assert [value for value in values if reader_accepts(path, value)] == []
    assert [value for value in values if schema_accepts(path, value)] == []
    assert [value for value in values if contract_accepts(path, value)] == []


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), path=paths)
def test_generated_good_bodies(reader_accepts: Accepts, data: st.DataObject, path: str) -> None:
    """P4: what is made by the rules is accepted by all three."""
    fields = data.draw(good_bodies[path])
    assert (
        reader_accepts(path, fields),
        SCHEMAS[path].validate(fields),
        contract_accepts(path, fields),
    ) == (True, {}, True)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), path=paths)
def test_generated_damaged_bodies(reader_accepts: Accepts, data: st.DataObject, path: str) -> None:
    """P4: whatever is done to a body, the three judge alike."""
    fields = data.draw(damaged_bodies(path))
    assert disagreement(reader_accepts, path, fields) is None


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=any_json)
def test_generated_json_payloads(reader_accepts: Accepts, payload: Any) -> None:
    """P4: any JSON value but null and the empty string is a payload, as itself and as text."""
    fields = {**GOOD["/v1/inference"], "content_type": "application/json", "payload": payload}
    assert disagreement(reader_accepts, "/v1/inference", fields) is None
