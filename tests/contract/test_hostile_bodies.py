"""Whatever a client sends, it gets an answer that the contract knows, and never one of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.api.dialects.native import RESERVED_PARAMETERS
from tests.contract.bodies import (
    any_json,
    damaged_bodies,
    good_bodies,
    new_request_id,
    untranslatable_bodies,
)
from tests.fakes.router_stand import RouterStand, World

PATHS = sorted(good_bodies)
MODELS = ("gpt-4o", "claude", "gpt")

paths = st.sampled_from(PATHS)


@pytest.fixture(scope="module")
def shared(world: World) -> RouterStand:
    """One application for all examples: what one request leaves behind the next one meets."""
    return world.stand()


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), path=paths, model=st.sampled_from(MODELS))
def test_a_damaged_body_is_never_our_failure(
    shared: RouterStand, data: st.DataObject, path: str, model: str
) -> None:
    """P15: also where it passes our checks and a translation has to cope with it."""
    fields = data.draw(damaged_bodies(path))
    if isinstance(fields.get("model"), str) and data.draw(st.integers(0, 3)):
        fields["model"] = model
    reply = shared.call("POST", path, json=fields)
    assert reply.status < 500


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(
    fields=untranslatable_bodies(),
    model=st.sampled_from(MODELS),
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/inference"]),
)
def test_what_cannot_be_translated_is_never_our_failure(
    shared: RouterStand, fields: dict[str, Any], model: str, path: str
) -> None:
    """P15: what our checks leave to the backend is refused by one or the other, in any dialect."""
    fields = {**fields, "model": model}
    if path == "/v1/inference":
        messages = fields.pop("messages")
        parameters = {name: fields[name] for name in fields if name not in RESERVED_PARAMETERS}
        fields = {
            "request_id": new_request_id(),
            "model": model,
            "payload": {"messages": messages},
            "content_type": "application/json",
            "parameters": parameters,
        }
    elif path == "/v1/completions":
        fields["prompt"] = "x"
    assert shared.call("POST", path, json=fields).status < 500


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), path=paths)
def test_a_damaged_text_is_never_our_failure(
    shared: RouterStand, data: st.DataObject, path: str
) -> None:
    """P15: bytes are cut out of a good body, or put in."""
    body = json.dumps(data.draw(good_bodies[path])).encode()
    at = data.draw(st.integers(0, len(body)))
    removed = data.draw(st.integers(0, 5))
    inserted = data.draw(st.binary(max_size=5))
    reply = shared.call("POST", path, body=body[:at] + inserted + body[at + removed :])
    assert reply.status < 500


@settings(max_examples=100)
@given(body=st.one_of(st.binary(max_size=50), any_json.map(lambda v: json.dumps(v).encode())))
@pytest.mark.parametrize("path", PATHS)
def test_any_bytes_are_never_our_failure(shared: RouterStand, path: str, body: bytes) -> None:
    """P15: and they get no further than to us."""
    shared.backends.reset()
    assert 400 <= shared.call("POST", path, body=body).status < 500
    assert shared.received() == 0


@settings(max_examples=150)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "X"]),
    target=st.text(st.sampled_from("/abcv1.%2fF5cC0?=&#\\~;:@é "), max_size=12).map(
        lambda text: "/v1/models/" + text
    ),
    header=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20),
    name=st.sampled_from(
        ["X-Request-ID", "traceparent", "Authorization", "X-Router-Signature", "Cookie", "Host"]
    ),
)
def test_any_target_and_header_are_never_our_failure(
    shared: RouterStand, method: str, target: str, header: str, name: str
) -> None:
    """P15: path, query, method and headers as they may come off the wire."""
    raw = target.encode("utf-8").decode("latin-1")
    reply = shared.call(method, raw, headers={"X-API-Key": shared.keys["main"], name: header})
    assert reply.status < 500
