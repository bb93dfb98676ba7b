"""The steps before every view: who calls, may they, is it signed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest

from router.api import pipeline
from router.auth.keys import generate_key
from tests.fakes.router_stand import TRACEPARENT, RouterStand, World, chat_body, native_body

ENDPOINTS = [
    ("POST", "/v1/inference"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/gpt-4o"),
]
CALLS = ENDPOINTS[:4]


def without_key(stand: RouterStand) -> dict[str, dict[str, str]]:
    """Reason → headers of a request that nobody has a valid key for."""
    keys = stand.keys
    mistyped = keys["main"][:-1] + ("0" if keys["main"][-1] != "0" else "1")
    return {
        "missing": {"X-Other": "x"},
        "malformed": {"X-API-Key": mistyped},
        "unknown": {"X-API-Key": generate_key("test")},
        "expired": {"X-API-Key": keys["expired"]},
        "revoked": {"X-API-Key": keys["revoked"]},
        "demo_key": {"X-API-Key": keys["demo"]},
        "organization_inactive": {"X-API-Key": keys["inactive"]},
        "conflicting_keys": {
            "X-API-Key": keys["main"],
            "Authorization": f"Bearer {keys['spare']}",
        },
    }


# --- keys -----------------------------------------------------------------------------------


def test_the_steps_are_in_order(stand: RouterStand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cheap refusals come first; whatever needs the body comes last; the record precedes the
    charge."""
    steps = (
        "authenticate", "authorize", "take_rates", "verify_signature", "read", "admit", "forward",
        "deliver", "record_end", "charge_before_last_byte", "record_end", "settle",
    )  # fmt: skip
    functions = {name for name, step in vars(pipeline).items() if inspect.isfunction(step)}
    outside = {
        "enter", "serve", "answer", "end", "current_scope", "call_outcome", "ending_of", "replay",
    }  # fmt: skip
    assert functions - outside == set(steps), "a step that is not watched below"
    seen: list[str] = []

    def watched(name: str) -> Callable[..., Any]:
        step = getattr(pipeline, name)

        def watch(*arguments: Any, **more: Any) -> Any:
            seen.append(name)
            return step(*arguments, **more)

        return watch

    for name in set(steps):
        monkeypatch.setattr(pipeline, name, watched(name))
    assert stand.chat().status == 200
    assert tuple(seen) == steps


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_401_says_the_same_whatever_was_wrong(stand: RouterStand, method: str, path: str) -> None:
    """K6: only log and metrics know why; the body is the same byte for byte."""
    bodies, reasons = set(), []
    cases = without_key(stand)
    for headers in cases.values():
        sent = {**headers, "traceparent": TRACEPARENT}
        reply = stand.call(method, path, key=None, headers=sent, json={"not": "looked at"})
        assert reply.status == 401
        assert reply.header("WWW-Authenticate") == "Bearer"
        bodies.add(reply.body)
        reasons.append(stand.lines[-1]["reason"])
    assert len(bodies) == 1
    assert reasons == list(cases)
    assert [stand.metric("auth_failures_total", reason=reason) for reason in cases] == [1.0] * 8
    assert stand.received() == 0


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_key_is_taken_from_either_header(stand: RouterStand, scheme: str) -> None:
    """As `X-API-Key`, as a bearer token, or as both when they are the same."""
    key = stand.keys["main"]
    bearer = {"Authorization": f"{scheme} {key}"}
    assert stand.call("GET", "/v1/models", headers=bearer).status == 200
    assert stand.call("GET", "/v1/models", headers={"X-API-Key": key, **bearer}).status == 200


def test_a_key_expires_by_the_clock(stand: RouterStand) -> None:
    """The same key, one second before and at its time."""
    stand.clock.advance(-1)
    assert stand.call("GET", "/v1/models", key="expired").status == 200
    stand.clock.advance(1)
    assert stand.call("GET", "/v1/models", key="expired").status == 401


def test_an_unknown_caller_is_refused_before_anything_is_read(stand: RouterStand) -> None:
    """K4: neither the body's size nor its type matters to a request without a key."""
    headers = {"Content-Type": "text/plain", "Content-Length": "99999999999"}
    reply = stand.call("POST", "/v1/inference", key=None, headers=headers)
    assert reply.status == 401


def test_without_a_store_no_key_is_called_wrong(world: World, tmp_path: Any) -> None:
    """K5: a store that cannot be read is 503 with a time to wait, never 401."""
    with world.other_stand(data_dir=tmp_path / "empty") as stand:
        for dialect in ("/v1/inference", "/v1/chat/completions"):
            reply = stand.call("POST", dialect, json=chat_body())
            assert (reply.status, reply.header("Retry-After")) == (503, "1")
            assert stand.lines[-1]["code"] == "NOT_CONFIGURED"


# --- scopes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_each_endpoint_asks_for_its_scope(stand: RouterStand, method: str, path: str) -> None:
    """A key with the other scope alone gets 403, before its body is looked at."""
    wrong, needed = ("reading", "inference") if method == "POST" else ("calling", "models:read")
    reply = stand.call(method, path, key=wrong, body=b"{" if method == "POST" else b"")
    assert reply.status == 403
    assert needed in reply.body.decode()
    assert stand.line["code"] == "SCOPE_MISSING"


def test_a_key_may_use_the_models_that_it_lists(stand: RouterStand) -> None:
    """By any name of a model; the others are refused without asking a backend."""
    for name in ("gpt-4o", "gpt", "vendor/gpt-4o", "unpriced"):
        reply = stand.call("POST", "/v1/chat/completions", key="limited", json=chat_body(name))
        assert reply.status == 200
    asked = stand.received()
    for path, body in (
        ("/v1/chat/completions", chat_body("renamed")),
        ("/v1/inference", native_body("other-name")),
    ):
        reply = stand.call("POST", path, key="limited", json=body)
        assert reply.status == 403
        assert stand.lines[-1]["code"] == "MODEL_FORBIDDEN"
    assert stand.received() == asked


# --- signatures -----------------------------------------------------------------------------


def signed_body(stand: RouterStand, **changes: str) -> tuple[bytes, dict[str, str]]:
    """A native body that carries its signature, and the two headers that go with it."""
    blank = json.dumps({**native_body(), "hmac_signature": ""}).encode()
    headers = stand.signature("POST", "/v1/inference", blank, key="signing", **changes)
    signature = headers.pop("X-Router-Signature")
    body = blank.replace(b'"hmac_signature": ""', f'"hmac_signature": "{signature}"'.encode())
    return body, headers


@pytest.mark.parametrize(("method", "target"), [*ENDPOINTS, ("GET", "/v1/models?a=%2F&b=")])
def test_a_key_that_requires_signatures_accepts_no_other_request(
    stand: RouterStand, method: str, target: str
) -> None:
    """The signature covers method, target as sent, and body; without it the answer is 401."""
    body = b""
    if method == "POST":
        fields = native_body() if target == "/v1/inference" else {**chat_body(), "prompt": "x"}
        body = json.dumps({**fields, **({"input": "x"} if "embed" in target else {})}).encode()
    plain = stand.call(method, target, key="signing", body=body)
    assert plain.status == 401
    assert stand.lines[-1]["reason"] == "missing"
    signature = stand.signature(method, target, body, key="signing")
    assert stand.call(method, target, key="signing", body=body, headers=signature).status == 200


def test_a_native_call_may_carry_its_signature_in_the_body(stand: RouterStand) -> None:
    """`hmac_signature` does what the header does, once."""
    body, headers = signed_body(stand)
    request: dict[str, Any] = {"key": "signing", "body": body, "headers": headers}
    assert stand.call("POST", "/v1/inference", **request).status == 200
    assert stand.call("POST", "/v1/inference", **request).status == 401
    assert [line.get("reason") for line in stand.lines] == [None, "replayed"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_the_openai_dialect_has_no_signature_in_the_body(stand: RouterStand, path: str) -> None:
    """There the field means nothing to the router, and the key still wants its header."""
    body = json.dumps({**chat_body(), "input": "x", "hmac_signature": "a" * 64}).encode()
    reply = stand.call("POST", path, key="signing", body=body)
    assert (reply.status, stand.line["reason"]) == (401, "missing")


def test_a_signature_in_both_places_is_refused(stand: RouterStand) -> None:
    """Two signatures used to end in `replayed`, which told nobody what was wrong."""
    body, _ = signed_body(stand)
    headers = stand.signature("POST", "/v1/inference", body, key="signing")
    reply = stand.call("POST", "/v1/inference", key="signing", body=body, headers=headers)
    assert (reply.status, reply.json["code"]) == (401, "SIGNATURE_INVALID")
    assert "not in both" in reply.json["error"]
    assert stand.line["reason"] == "malformed"
    assert stand.received() == 0


def test_a_signature_that_is_not_demanded_is_checked_all_the_same(stand: RouterStand) -> None:
    """Whoever signs wants to know when something between us changed the request."""
    body = json.dumps(chat_body()).encode()
    headers = stand.signature("POST", "/v1/chat/completions", body)
    path = "/v1/chat/completions"
    assert stand.call("POST", path, body=body + b" ", headers=headers).status == 401
    assert stand.call("POST", path, body=body, headers=headers).status == 200
    assert [line.get("reason") for line in stand.lines] == ["mismatch", None]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"timestamp": "1799999699"}, "stale"),
        ({"timestamp": "1800000301"}, "stale"),
        ({"timestamp": "now"}, "malformed"),
        ({"nonce": "short"}, "malformed"),
        ({"method": "GET"}, "mismatch"),
        ({"query": "a=b"}, "mismatch"),
        ({"path": "/v1/completions"}, "mismatch"),
    ],
)
def test_each_part_of_a_signature_counts(
    stand: RouterStand, changes: dict[str, str], reason: str
) -> None:
    """The log says which; the code is the same, in the header and in the body."""
    body = json.dumps(native_body()).encode()
    headers = stand.signature("POST", "/v1/inference", body, key="signing", **changes)
    reply = stand.call("POST", "/v1/inference", key="signing", body=body, headers=headers)
    assert (reply.status, reply.json["code"]) == (401, "SIGNATURE_INVALID")
    inside, rest = signed_body(stand, **changes)
    reply = stand.call("POST", "/v1/inference", key="signing", body=inside, headers=rest)
    assert (reply.status, reply.json["code"]) == (401, "SIGNATURE_INVALID")
    assert [line["reason"] for line in stand.lines] == [reason, reason]


@pytest.mark.parametrize("value", ["x", "A" * 64, "a" * 63])
def test_a_signature_of_the_wrong_shape_is_none(stand: RouterStand, value: str) -> None:
    """In the body and in the header alike."""
    nonce = {"X-Router-Timestamp": "1800000000", "X-Router-Nonce": "0123456789abcdef"}
    headers = {**nonce, "X-Router-Signature": value}
    assert stand.call("POST", "/v1/inference", json=native_body(), headers=headers).status == 401
    body = native_body(hmac_signature=value)
    assert stand.call("POST", "/v1/inference", json=body, headers=nonce).status == 401
    assert [line["reason"] for line in stand.lines] == ["malformed", "malformed"]


@pytest.mark.parametrize("value", [1, True, [], {}])
def test_a_signature_that_is_no_text_is_a_bad_body(stand: RouterStand, value: Any) -> None:
    """400 names the field."""
    reply = stand.call("POST", "/v1/inference", json=native_body(hmac_signature=value))
    assert (reply.status, reply.json["details"]) == (400, {"field": "hmac_signature"})


def test_no_credential_of_the_client_reaches_a_backend(stand: RouterStand) -> None:
    """K6: neither where it belongs nor where a client put a copy of it; the router's own does."""
    key = stand.keys["main"]
    body = json.dumps(chat_body()).encode()
    headers = {
        **stand.signature("POST", "/v1/chat/completions", body),
        "Authorization": f"Bearer {key} ",
        "X-Copy": f"key={key}",
        "Cookie": "session=1",
        "Accept": "yes",
    }
    reply = stand.call("POST", "/v1/chat/completions", body=body, headers=headers)
    assert reply.status == 200
    [request] = stand.backends.first.requests
    sent = {name.lower(): value for name, value in request.headers}
    assert key not in repr(request)
    assert sent["authorization"].startswith("Bearer sk-")
    assert sent["accept"] == "yes"
    assert not {"cookie", "x-api-key", "x-copy", "x-router-signature"} & sent.keys()
