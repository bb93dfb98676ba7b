"""The public paths of a mock backend: a received request in, an answer out, no socket in sight."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any

from router.mock_backend.behaviour import Behaviour, Draw
from router.mock_backend.embedding import embed
from router.mock_backend.generation import (
    CREATED,
    CallError,
    Generation,
    generate_chat,
    generate_text,
)
from router.mock_backend.received import ReceivedRequest
from router.mock_backend.replies import Answer, StreamAnswer, error_answer, json_answer
from router.mock_backend.stream import encode_events, stream_chunks, usage_style_of

INFERENCE_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
KNOWN_PATHS = INFERENCE_PATHS | {"/v1/models", "/health"}

_MODELS = "/v1/models"
_GENERATORS = {"/v1/chat/completions": generate_chat, "/v1/completions": generate_text}


class Endpoints:
    """Answers requests on the public paths as an OpenAI-compatible server would."""

    def __init__(self, name: str, models: Sequence[str], api_key: str | None) -> None:
        self._fingerprint = f"fp_{name}"
        self._models = {model: _model_card(model) for model in models}
        self._credential = None if api_key is None else f"Bearer {api_key}".encode()

    def answer(self, request: ReceivedRequest, draw: Draw) -> Answer | StreamAnswer:
        """Answer one request; what is wrong with it comes back as an error in OpenAI's shape."""
        path = request.path
        if path == "/health":
            return self._health(request, draw.behaviour)
        if path.startswith("/v1/") and not self._admits(request):
            return error_answer(401, "Incorrect API key provided.", code="invalid_api_key")
        if path in INFERENCE_PATHS:
            return self._infer(request, draw)
        if path == _MODELS or path.startswith(f"{_MODELS}/"):
            return self._list_models(request)
        return error_answer(404, "Unknown request URL.", code="unknown_url")

    def _admits(self, request: ReceivedRequest) -> bool:
        if self._credential is None:
            return True
        given = (request.header("authorization") or "").encode("latin-1")
        return hmac.compare_digest(given, self._credential)

    def _health(self, request: ReceivedRequest, behaviour: Behaviour) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return method_not_allowed("GET, HEAD")
        status = "ok" if behaviour.health_status < 400 else "failing"
        return json_answer({"status": status}, behaviour.health_status)

    def _list_models(self, request: ReceivedRequest) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return method_not_allowed("GET, HEAD")
        if request.path == _MODELS:
            return json_answer({"object": "list", "data": list(self._models.values())})
        model = request.path.removeprefix(f"{_MODELS}/")
        if model in self._models:
            return json_answer(self._models[model])
        return error_answer(
            404, f"The model '{model}' does not exist", param="model", code="model_not_found"
        )

    def _infer(self, request: ReceivedRequest, draw: Draw) -> Answer | StreamAnswer:
        if request.method != "POST":
            return method_not_allowed("POST")
        if draw.fails:
            return _drawn_error(draw.behaviour)
        call = read_object(request.body)
        if call is None:
            return error_answer(400, "We could not parse the JSON body of your request.")
        try:
            return self._respond(request.path, call, draw.behaviour)
        except CallError as refusal:
            return error_answer(400, str(refusal), param=refusal.param)

    def _respond(
        self, path: str, call: Mapping[str, Any], behaviour: Behaviour
    ) -> Answer | StreamAnswer:
        if path not in _GENERATORS:
            reply = embed(call, behaviour)
        else:
            generation = _GENERATORS[path](call, behaviour, self._fingerprint)
            if call.get("stream") is True:
                return _stream(generation, call, behaviour)
            reply = generation.rendered()
        if behaviour.failure == "no_usage":
            del reply["usage"]
        return json_answer(reply)


def read_object(body: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None when the bytes are anything else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def method_not_allowed(allowed: str) -> Answer:
    """Answer that a path exists, but not for this method."""
    return error_answer(405, f"Not allowed here; use {allowed}.", Allow=allowed)


def _stream(generation: Generation, call: Mapping[str, Any], behaviour: Behaviour) -> StreamAnswer:
    chunks = stream_chunks(generation, usage_style_of(behaviour, call))
    return StreamAnswer(encode_events(chunks, behaviour))


def _drawn_error(behaviour: Behaviour) -> Answer:
    status = behaviour.error_status
    pause = {} if behaviour.retry_after_s is None else {"Retry_After": str(behaviour.retry_after_s)}
    code = "rate_limit_exceeded" if status == 429 else None
    return error_answer(status, "The mock backend was told to fail.", code=code, **pause)


def _model_card(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": CREATED, "owned_by": "mock-backend"}
