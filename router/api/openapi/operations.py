"""The operations of the contract: paths, parameters, successful answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from router.api.openapi import record_operations as contract_records
from router.api.openapi.error_answers import RATE_HEADERS, error_responses
from router.auth.signatures import NONCE_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from router.config.settings import Settings

SECURITY_SCHEMES: Final[Mapping[str, Any]] = {
    "ApiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "An API key, `rtr_…`. Wins over the bearer token; two different keys in"
        " one request are refused.",
    },
    "BearerKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "The same API key, as the OpenAI SDKs send it.",
    },
}

TAGS: Final = (
    {"name": "native", "description": "The router's own dialect."},
    {"name": "openai", "description": "The dialect of the OpenAI SDKs."},
    {"name": "records", "description": "What was recorded of the caller's organization."},
    {"name": "status", "description": "Health; no key is needed."},
    {"name": "operations", "description": "On the operations listener only."},
)


def _header(text: str, *, required: bool = True, **schema: Any) -> dict[str, Any]:
    return {"description": text, "required": required, "schema": {"type": "string", **schema}}


HEADERS: Final[Mapping[str, Any]] = {
    "X-Request-ID": _header(
        "The call's id: `request_id` of a native body, else the client's own X-Request-ID when it"
        " is up to 128 of A-Z a-z 0-9 . _ : - and begins with a letter or digit, else a new UUID.",
        pattern="^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
    ),
    "X-Routing-Backend": _header("Id of the backend that answered."),
    "X-Routing-Decision": _header(
        "PRIMARY: the policy's first choice answered. FAILOVER: another one did.",
        enum=["PRIMARY", "FAILOVER"],
    ),
    "X-Router-Overhead-Ms": _header(
        "Milliseconds spent in the router itself before the answer began.",
        pattern="^[0-9]+[.][0-9]{2}$",
    ),
    "Retry-After": _header("Seconds to wait before trying again.", pattern="^[1-9][0-9]*$"),
    "RateLimit-Policy": _header(
        "The caller's rate limits (draft-ietf-httpapi-ratelimit-headers-10): `q` at once, all of"
        " them anew in `w` seconds. Absent when it has none, and while nobody can tell.",
        required=False,
    ),
    "RateLimit": _header(
        "What is left of each: `r` now, all of it in `t` seconds.", required=False
    ),
    "Idempotency-Replayed": _header(
        "This is the reply that the same call had before.", required=False, const="true"
    ),
    "WWW-Authenticate": _header("How to authenticate.", const="Bearer"),
    "Allow": _header("The methods that the path has.", pattern="^[A-Z]+(, [A-Z]+)*$"),
    "Cache-Control": _header("On streams: no-cache.", required=False, const="no-cache"),
    "X-Accel-Buffering": _header("On streams: no.", required=False, const="no"),
}

_ALWAYS: Final = ("X-Request-ID",)
_ROUTED: Final = (
    *_ALWAYS,
    "X-Routing-Backend",
    "X-Routing-Decision",
    "X-Router-Overhead-Ms",
    *RATE_HEADERS,
    "Idempotency-Replayed",
)
_STREAMED: Final = (*_ROUTED, "Cache-Control", "X-Accel-Buffering")


def _parameter(name: str, text: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": text,
        "schema": {"type": "string", **schema},
    }


PARAMETERS: Final[Mapping[str, Any]] = {
    "RequestId": _parameter(
        "X-Request-ID", "An id to find the call by; see the header of the same name in replies."
    ),
    "Traceparent": _parameter("traceparent", "W3C Trace Context; continued and passed on."),
    "IdempotencyKey": _parameter(
        "Idempotency-Key",
        "An id of the client's own: a call is made once for each, and duplicates get its reply.",
        minLength=1,
        maxLength=255,
    ),
    "Timestamp": _parameter(
        TIMESTAMP_HEADER, "Unix time of a signed request in seconds.", pattern="^[0-9]{1,12}$"
    ),
    "Nonce": _parameter(
        NONCE_HEADER, "A signed request's nonce, used once.", pattern="^[A-Za-z0-9_-]{16,128}$"
    ),
    "Signature": _parameter(
        SIGNATURE_HEADER,
        "HMAC-SHA256 of the request, see docs/authentication.md. Needed by keys that require it,"
        " checked whenever it is there.",
        pattern="^[0-9a-f]{64}$",
    ),
}
_PROTECTED: Final = ("IdempotencyKey",)
_TRACED: Final = ("RequestId", "Traceparent")
_SIGNED: Final = (*_TRACED, "Timestamp", "Nonce", "Signature")


def paths() -> dict[str, Any]:
    """Path → path item, in the order in which a reader wants them."""
    return {
        "/v1/inference": {"post": _inference()},
        "/v1/chat/completions": {"post": _completion(
            "createChatCompletion", "One chat turn, whole or as a stream.",
            "ChatCompletionRequest", "ChatCompletion", "ChatCompletionChunk",
        )},
        "/v1/completions": {"post": _completion(
            "createCompletion", "One text completion, whole or as a stream.",
            "CompletionRequest", "Completion", "Completion",
        )},
        "/v1/embeddings": {"post": _completion(
            "createEmbedding", "Vectors for texts.", "EmbeddingRequest", "Embeddings", None,
        )},
        "/v1/limits": {"get": _limits()},
        "/v1/models": {"get": _models(
            "listModels", "The models that this key may use.", "ModelList", "ModelList"
        )},
        "/v1/models/{model}": {"parameters": [_MODEL_PARAMETER], "get": _models(
            "retrieveModel", "One model, by its id or an alias.", "ModelCard", "Model"
        )},
        **contract_records.paths(
            [{scheme: []} for scheme in SECURITY_SCHEMES],
            _refer("parameters", _SIGNED),
            lambda text, content: _answer(text, content, _ALWAYS),
        ),
        "/v1/status/healthz": {"get": _health("getHealth")},
        "/v1/status/readyz": {"get": _readiness("getReadiness")},
        "/healthz": {"get": _health("getHealthShort")},
        "/readyz": {"get": _readiness("getReadinessShort")},
        "/metrics": _metrics(),
    }  # fmt: skip


def servers() -> list[dict[str, str]]:
    """Where the public listener is unless ``ROUTER_BIND`` says otherwise."""
    return [{"url": f"http://{Settings().bind}", "description": "Public listener (ROUTER_BIND)."}]


_MODEL_PARAMETER: Final = {
    "name": "model",
    "in": "path",
    "required": True,
    "description": "A model's id or alias. Slashes in it stay as they are.",
    "schema": {"type": "string", "minLength": 1},
}


def _refer(section: str, names: Sequence[str]) -> list[dict[str, str]]:
    return [{"$ref": f"#/components/{section}/{name}"} for name in names]


def _schema(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(text: str, content: Mapping[str, Any], headers: Sequence[str]) -> dict[str, Any]:
    return {
        "description": text,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": content,
    }


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _schema(name)}}


def _events(text: str, **events: Any) -> dict[str, Any]:
    """A stream of server-sent events; ``x-events`` holds a schema for each event's data."""
    return {
        "text/event-stream": {
            "schema": {"type": "string", "description": text},
            "x-events": events,
        }
    }


def _call(
    group: str, operation: str, summary: str, request: str, success: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "tags": ["native" if group == "NativeCall" else "openai"],
        "security": [{scheme: []} for scheme in SECURITY_SCHEMES],
        "parameters": _refer(
            "parameters", _SIGNED if group == "NativeCall" else (*_SIGNED, *_PROTECTED)
        ),
        "requestBody": {"required": True, "content": _json(request)},
        "responses": {"200": success, **error_responses(group)},
    }


def _inference() -> dict[str, Any]:
    events = _events(
        "`delta` events with pieces of the output, then one `done`, or `error` when the backend"
        " failed on the way.",
        delta=_schema("InferenceDelta"),
        done=_schema("InferenceEnd"),
        error=_schema("Error"),
    )
    success = _answer("The answer.", {**_json("InferenceReply"), **events}, _STREAMED)
    summary = "One inference call, whole or as a stream."
    return _call("NativeCall", "createInference", summary, "InferenceRequest", success)


def _completion(
    operation: str, summary: str, request: str, reply: str, chunk: str | None
) -> dict[str, Any]:
    content = _json(reply)
    if chunk is not None:
        content |= _events(
            "The backend's events as they are, up to `data: [DONE]`; an event with an error when"
            " the backend failed on the way.",
            message={"anyOf": [_schema("OpenAIError"), _schema(chunk)]},
        )
    headers = _ROUTED if chunk is None else _STREAMED
    success = _answer("The backend's answer, untouched.", content, headers)
    return _call("OpenAICall", operation, summary, request, success)


def _limits() -> dict[str, Any]:
    return {
        "operationId": "getLimits",
        "summary": "What the caller may still ask for, from the enforcing counters themselves.",
        "tags": ["native"],
        "security": [{scheme: []} for scheme in SECURITY_SCHEMES],
        "parameters": _refer("parameters", _SIGNED),
        "responses": {
            "200": _answer("Found.", _json("Limits"), _ALWAYS),
            **error_responses("Limits"),
        },
    }


def _models(operation: str, summary: str, reply: str, group: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "tags": ["openai"],
        "security": [{scheme: []} for scheme in SECURITY_SCHEMES],
        "parameters": _refer("parameters", _SIGNED),
        "responses": {
            "200": _answer("Found.", _json(reply), _ALWAYS),
            **error_responses(group),
        },
    }


def _health(operation: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": "The process answers.",
        "tags": ["status"],
        "parameters": _refer("parameters", _TRACED),
        "responses": {
            "200": _answer("Alive.", _json("Health"), _ALWAYS),
            **error_responses("Status"),
        },
    }


def _readiness(operation: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": "Whether calls can be served now, and the state of each component.",
        "tags": ["status"],
        "parameters": _refer("parameters", _TRACED),
        "responses": {
            "200": _answer("Ready, possibly degraded.", _json("Readiness"), _ALWAYS),
            **error_responses("Status"),
            "503": _answer("Not ready.", _json("Readiness"), _ALWAYS),
        },
    }


def _metrics() -> dict[str, Any]:
    text = {"schema": {"type": "string"}}
    formats = {"text/plain": text, "application/openmetrics-text": text}
    return {
        "servers": [
            {
                "url": f"http://{Settings().ops_bind}",
                "description": "Operations listener (ROUTER_OPS_BIND).",
            }
        ],
        "get": {
            "operationId": "getMetrics",
            "summary": "The metrics of all workers together, as Prometheus reads them.",
            "tags": ["operations"],
            "responses": {
                "200": _answer("The metrics.", formats, _ALWAYS),
                **error_responses("Metrics"),
            },
        },
    }
