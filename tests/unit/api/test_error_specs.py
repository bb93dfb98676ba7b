"""The table of errors is whole, and each error looks in both dialects as the table says."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from router import errors
from router.api.dialects.dialect_table import DIALECTS
from router.api.error_specs import ERROR_SPECS, INTERNAL, error_spec_of
from router.call import OUTCOMES
from tests.fakes.router_stand import FailingForwarder, World

BACKEND_WORDS = b'{"error": {"message": "no", "type": "t", "param": "p", "code": 7, "more": 1}}'

RATE = errors.Denial(
    limit_type="rate_limit",
    name="key-requests",
    scope="key",
    unit="requests",
    limit=200,
    usage=200,
    this_request=1,
    retry_after_s=3,
)
TOKENS = errors.Denial(
    limit_type="rate_limit",
    name="org-tokens",
    scope="org",
    unit="tokens",
    limit=1000,
    usage=0,
    this_request=4096,
)
BUDGET = errors.Denial(
    limit_type="budget",
    name="spend",
    scope="org",
    unit="usd",
    limit=2_500_000_000,
    usage=2_499_000_001,
    this_request=1_000_001,
    period="total",
    settled=2_000_000_001,
    reserved=499_000_000,
)
QUOTA = errors.Denial(
    limit_type="quota",
    name="calls",
    scope="key",
    unit="requests",
    limit=10,
    usage=10,
    this_request=1,
    retry_after_s=57_600,
    period="daily",
    settled=9,
    reserved=1,
    resets_at_s=1_800_057_600,
)
EXAMPLES: dict[type[errors.RouterError], errors.RouterError] = {
    errors.Unauthenticated: errors.Unauthenticated("unknown"),
    errors.SignatureInvalid: errors.SignatureInvalid("does not match", reason="mismatch"),
    errors.SignaturesExceeded: errors.SignaturesExceeded(retry_after_s=12),
    errors.SignatureNotProven: errors.SignatureNotProven(),
    errors.ScopeMissing: errors.ScopeMissing("inference"),
    errors.ModelForbidden: errors.ModelForbidden("gpt-4o"),
    errors.InvalidRequest: errors.InvalidRequest("no", field="messages[0].role"),
    errors.BodyTooLarge: errors.BodyTooLarge(65_536, field="payload"),
    errors.BodyIncomplete: errors.BodyIncomplete(3, 9),
    errors.BodyTimeout: errors.BodyTimeout(8.0),
    errors.UnsupportedMediaType: errors.UnsupportedMediaType("text/plain"),
    errors.ModelNotFound: errors.ModelNotFound("gpt-5"),
    errors.NotFound: errors.NotFound("no such endpoint"),
    errors.MethodNotAllowed: errors.MethodNotAllowed("PUT", ("GET", "HEAD")),
    errors.BackendUnavailable: errors.BackendUnavailable(retry_after_s=7),
    errors.BackendBusy: errors.BackendBusy(retry_after_s=9),
    errors.BackendTimeout: errors.BackendTimeout("first_byte"),
    errors.BackendFailed: errors.BackendFailed("status 500", status=500),
    errors.BackendRejected: errors.BackendRejected("too long", status=422, body=BACKEND_WORDS),
    errors.ClientGone: errors.ClientGone(),
    errors.NotConfigured: errors.NotConfigured(),
    errors.RecordsUnavailable: errors.RecordsUnavailable("disk_full", retry_after_s=3),
    errors.RequestNotFound: errors.RequestNotFound(),
    errors.RecordStoreUnavailable: errors.RecordStoreUnavailable("away"),
    errors.QueriesBusy: errors.QueriesBusy(),
    errors.QueryTimeout: errors.QueryTimeout(2.5),
    errors.RateLimited: errors.RateLimited(RATE),
    errors.TokensAboveLimit: errors.TokensAboveLimit(TOKENS),
    errors.BudgetExceeded: errors.BudgetExceeded(BUDGET),
    errors.QuotaExceeded: errors.QuotaExceeded(QUOTA),
    errors.PriceUnknown: errors.PriceUnknown("unpriced"),
    errors.LimitsUnavailable: errors.LimitsUnavailable(),
    errors.BudgetUnavailable: errors.BudgetUnavailable(retry_after_s=2),
    errors.InProgress: errors.InProgress(),
    errors.IdempotencyMismatch: errors.IdempotencyMismatch(),
    errors.ReplyNotStored: errors.ReplyNotStored(),
}
NOT_OF_A_CALL = (
    errors.NotFound,
    errors.MethodNotAllowed,
    errors.ClientGone,
    errors.RequestNotFound,
    errors.RecordStoreUnavailable,
    errors.QueriesBusy,
    errors.QueryTimeout,
)
"""No call that anybody waits for ends with these."""

CASES = [(dialect, kind) for kind in EXAMPLES for dialect in ("native", "openai")]
PATHS = {"native": "/v1/inference", "openai": "/v1/chat/completions"}


def leaves(kind: type[errors.RouterError]) -> set[type[errors.RouterError]]:
    below = kind.__subclasses__()
    return {kind} if not below else {leaf for inner in below for leaf in leaves(inner)}


def test_every_leaf_has_a_face() -> None:
    """A new error cannot be forgotten: not in the table, not in these tests."""
    declared = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.RouterError) and kind is not errors.RouterError
    }
    assert leaves(errors.RouterError) == declared
    assert set(ERROR_SPECS) == declared
    assert set(EXAMPLES) == declared


def test_codes_are_told_apart() -> None:
    """No two errors share a native code, and every outcome is one of the closed set."""
    faces = [*ERROR_SPECS.values(), INTERNAL]
    assert len({face.code for face in faces}) == len(faces)
    assert {face.outcome for face in faces} <= set(OUTCOMES)


def test_retryable_errors_of_ours_say_when() -> None:
    """R9: what can be retried later, and is no client's slowness, comes with a time to wait."""
    kinds = {kind for kind, face in ERROR_SPECS.items() if face.retryable}
    assert kinds == {
        errors.BackendUnavailable,
        errors.BackendBusy,
        errors.NotConfigured,
        errors.BodyTimeout,
        errors.RecordsUnavailable,
        errors.RecordStoreUnavailable,
        errors.RateLimited,
        errors.LimitsUnavailable,
        errors.BudgetUnavailable,
        errors.InProgress,
        errors.QueriesBusy,
        errors.SignaturesExceeded,
        errors.SignatureNotProven,
    }


@pytest.mark.parametrize(("dialect", "kind"), CASES)
def test_every_error_on_its_way_out(
    world: World, dialect: str, kind: type[errors.RouterError]
) -> None:
    """Status, code, headers, log line: each error comes out as its face says."""
    error, face = EXAMPLES[kind], ERROR_SPECS[kind]
    stand = world.stand(forwarder=FailingForwarder(error))
    body: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]}
    if dialect == "native":
        body = {"request_id": "0" * 8 + "-0000-4000-8000-" + "0" * 12, "model": "gpt-4o"}
        body["payload"] = "x"
    reply = stand.call("POST", PATHS[dialect], json=body, promised=kind not in NOT_OF_A_CALL)
    status = 422 if kind is errors.BackendRejected else face.status
    assert reply.status == status
    if dialect == "native":
        assert reply.json["code"] == face.code
        assert reply.json["error"] == error.message
        assert reply.json["trace_id"] == stand.line["trace_id"]
    elif kind is errors.BackendRejected:
        assert reply.body == BACKEND_WORDS
    else:
        shown = reply.json["error"]
        assert (shown["type"], shown["code"]) == (face.openai_type, face.openai_code)
        assert shown["message"] == error.message
    line = stand.line
    assert (line["status"], line["code"], line["outcome"]) == (status, face.code, face.outcome)


@pytest.mark.parametrize(
    ("error", "header", "value"),
    [
        (errors.BackendUnavailable(retry_after_s=7), "Retry-After", "7"),
        (errors.BackendBusy(retry_after_s=9), "Retry-After", "9"),
        (errors.NotConfigured(), "Retry-After", "1"),
        (errors.RecordsUnavailable("disk_full", retry_after_s=3), "Retry-After", "3"),
        (errors.RecordStoreUnavailable("away"), "Retry-After", "1"),
        (errors.RateLimited(RATE), "Retry-After", "3"),
        (errors.TokensAboveLimit(TOKENS), "Retry-After", None),
        (errors.QuotaExceeded(QUOTA), "Retry-After", "57600"),
        (errors.BudgetExceeded(BUDGET), "Retry-After", None),
        (errors.LimitsUnavailable(), "Retry-After", "1"),
        (errors.BudgetUnavailable(retry_after_s=2), "Retry-After", "2"),
        (errors.InProgress(), "Retry-After", "1"),
        (errors.ReplyNotStored(), "Retry-After", None),
        (errors.QueriesBusy(), "Retry-After", "1"),
        (errors.SignaturesExceeded(retry_after_s=12), "Retry-After", "12"),
        (errors.SignatureNotProven(), "Retry-After", "1"),
        (errors.Unauthenticated("missing"), "WWW-Authenticate", "Bearer"),
        (errors.SignatureInvalid("no", reason="stale"), "WWW-Authenticate", "Bearer"),
        (errors.MethodNotAllowed("PUT", ("GET", "HEAD")), "Allow", "GET, HEAD"),
        (errors.BackendTimeout("idle"), "Retry-After", None),
        (errors.BackendFailed("status 500"), "WWW-Authenticate", None),
    ],
)
def test_headers_that_belong_to_an_error(
    world: World, error: errors.RouterError, header: str, value: str | None
) -> None:
    """R10: what the client needs to react by program stands in a header."""
    stand = world.stand(forwarder=FailingForwarder(error))
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]}
    reply = stand.call("POST", "/v1/chat/completions", json=body, promised=False)
    assert reply.header(header) == value


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (errors.InvalidRequest, "messages[0].role"),
        (errors.BodyTooLarge, "payload"),
        (errors.ModelNotFound, "model"),
        (errors.ModelForbidden, "model"),
        (errors.PriceUnknown, "model"),
    ],
)
def test_the_field_at_fault_is_named(kind: type[errors.RouterError], field: str) -> None:
    """In `details.field` of the native dialect, in `param` of OpenAI's."""
    native = json.loads(DIALECTS["native"].error_body(EXAMPLES[kind], trace_id="t"))
    assert native["details"] == {"field": field}
    assert (
        json.loads(DIALECTS["openai"].error_body(EXAMPLES[kind], trace_id="t"))["error"]["param"]
        == field
    )


FACTS: dict[type[errors.RouterError], dict[str, Any]] = {
    errors.RateLimited: {
        "limit_type": "rate_limit",
        "current_usage": 200,
        "limit": 200,
        "retry_after": 3,
        "details": {
            "name": "key-requests",
            "scope": "key",
            "unit": "requests",
            "this_request_estimate": 1,
        },
    },
    errors.TokensAboveLimit: {
        "limit_type": "rate_limit",
        "current_usage": 0,
        "limit": 1000,
        "details": {
            "name": "org-tokens",
            "scope": "org",
            "unit": "tokens",
            "this_request_estimate": 4096,
        },
    },
    errors.BudgetExceeded: {
        "limit_type": "budget",
        "current_usage": 2.499000001,
        "limit": 2.5,
        "details": {
            "name": "spend",
            "scope": "org",
            "unit": "usd",
            "this_request_estimate": 0.001000001,
            "period": "total",
            "settled": 2.000000001,
            "reserved": 0.499,
            "resets_at": None,
        },
    },
    errors.QuotaExceeded: {
        "limit_type": "quota",
        "current_usage": 10,
        "limit": 10,
        "retry_after": 57600,
        "details": {
            "name": "calls",
            "scope": "key",
            "unit": "requests",
            "this_request_estimate": 1,
            "period": "daily",
            "settled": 9,
            "reserved": 1,
            "resets_at": "2027-01-16T00:00:00Z",
        },
    },
}


@pytest.mark.parametrize("kind", FACTS)
def test_the_facts_of_a_limit_in_both_dialects(kind: type[errors.RouterError]) -> None:
    """T024, B8: `LimitErrorResponse`, and the same beside what the SDKs expect; USD in decimal."""
    error, face = EXAMPLES[kind], ERROR_SPECS[kind]
    native = json.loads(DIALECTS["native"].error_body(error, trace_id="t"))
    assert native == {
        "error": error.message,
        "code": face.code,
        "trace_id": "t",
        **FACTS[kind],
    }
    openai = json.loads(DIALECTS["openai"].error_body(error, trace_id="t"))["error"]
    assert openai == {
        "message": error.message,
        "type": face.openai_type,
        "param": None,
        "code": face.openai_code,
        **FACTS[kind],
    }


def test_a_backends_refusal_in_the_native_dialect() -> None:
    """Its status is told; its body, which has another shape, is not."""
    native = json.loads(
        DIALECTS["native"].error_body(EXAMPLES[errors.BackendRejected], trace_id="t")
    )
    assert native == {
        "error": "too long",
        "code": "BACKEND_REJECTED",
        "trace_id": "t",
        "details": {"backend_status": 422},
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": "no"}', {"message": "no", "type": "invalid_request_error", "code": None}),
        (b'{"error": {"message": "no", "code": "c"}}', {"message": "no", "code": "c"}),
        (
            b'{"object": "error", "message": "no", "type": "BadRequestError", "code": 400}',
            {"message": "no", "type": "BadRequestError", "code": 400, "object": "error"},
        ),
        (b'"no"', {"message": "no"}),
        (b'{"error": {"message": "no", "deep": ' + b"[" * 300 + b"]" * 300 + b"}}", {}),
    ],
)
def test_a_backends_refusal_without_the_usual_members(
    body: bytes, expected: dict[str, Any]
) -> None:
    """A backend that has its own idea of an error used to show it to the SDKs as it was."""
    error = errors.BackendRejected("no", status=400, body=body)
    shown = json.loads(DIALECTS["openai"].error_body(error, trace_id=""))["error"]
    assert {"message", "type", "param", "code"} <= shown.keys()
    assert {**shown, **expected} == shown


def test_what_is_not_ours_is_internal() -> None:
    """A defect says nothing of itself."""
    defect = KeyError("sk-secret")
    assert error_spec_of(defect) is INTERNAL
    for dialect in ("native", "openai"):
        assert b"secret" not in DIALECTS[dialect].error_body(defect, trace_id="t")  # type: ignore[arg-type]
