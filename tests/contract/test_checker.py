"""The checker finds what it is there to find."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.contract.checker import Contract, events_of

CHAT = "/v1/chat/completions"
JSON = ("Content-Type", "application/json")
ID = ("X-Request-ID", "r-1")
ROUTED = (
    ("X-Routing-Backend", "a"),
    ("X-Routing-Decision", "PRIMARY"),
    ("X-Router-Overhead-Ms", "0.25"),
)
STREAM = ("Content-Type", "text/event-stream; charset=utf-8")
ERROR = {"error": "no", "code": "INVALID_REQUEST", "trace_id": "0" * 32}
OPENAI_ERROR = {"message": "no", "type": "server_error", "param": None, "code": "internal_error"}
END = {
    "request_id": "0f5cf5c1-7b2d-4d53-9f68-5f0d3ad1f3bb",
    "usage": {
        "tokens_input": 1,
        "tokens_output": 2,
        "latency_ms": 3,
        "cost_usd": None,
        "limit_state": "WITHIN_LIMIT",
    },
    "trace_id": "0" * 32,
    "span_id": "0" * 16,
}
DELTA = b'event: delta\ndata: {"output": "x"}\n\n'
DONE = b"event: done\ndata: " + json.dumps(END).encode() + b"\n\n"

Answer = tuple[str, str, int, list[tuple[str, str]], Any]


def found(answer: Answer) -> list[str]:
    method, target, status, headers, body = answer
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Contract.published().violations(method, target, status, headers, raw)


KEPT: list[Answer] = [
    ("POST", "/v1/inference?x=1", 200, [JSON, ID, *ROUTED], {**END, "output": "x"}),
    ("POST", "/v1/inference", 200, [STREAM, ID, *ROUTED], DELTA + DONE),
    ("POST", "/v1/inference", 400, [JSON, ID], ERROR),
    ("POST", "/v1/inference", 422, [JSON, ID], {**ERROR, "code": "BACKEND_REJECTED"}),
    ("POST", CHAT, 200, [JSON, ID, *ROUTED], {"choices": [], "zz": 1}),
    ("POST", CHAT, 200, [STREAM, ID, *ROUTED], b": hi\n\ndata: {}\r\n\r\ndata: [DONE]\n\n"),
    ("POST", CHAT, 500, [JSON, ID], {"error": OPENAI_ERROR}),
    ("GET", "/v1/models/a/b", 404, [JSON, ID], {"error": OPENAI_ERROR | {
        "type": "invalid_request_error", "code": "model_not_found"}}),
    ("GET", "/nothing", 404, [JSON, ID], {**ERROR, "code": "NOT_FOUND"}),
    ("PUT", "/healthz", 405, [JSON, ID, ("Allow", "GET, HEAD")],
     {**ERROR, "code": "METHOD_NOT_ALLOWED"}),
    ("HEAD", "/healthz", 200, [JSON, ID], b""),
]  # fmt: skip

BROKEN: dict[str, Answer] = {
    "the status 201": ("POST", CHAT, 201, [JSON, ID, *ROUTED], {}),
    "the status 409": ("GET", "/v1/models", 409, [JSON, ID], {"error": OPENAI_ERROR}),
    "X-Request-ID is missing": ("POST", "/v1/inference", 400, [JSON], ERROR),
    "X-Routing-Backend is missing": ("POST", CHAT, 200, [JSON, ID, *ROUTED[1:]], {}),
    "Retry-After is missing": ("POST", "/v1/inference", 503, [JSON, ID],
                               {**ERROR, "code": "NOT_CONFIGURED"}),
    "the header Retry-After": ("POST", "/v1/inference", 503, [JSON, ID, ("Retry-After", "0")],
                               {**ERROR, "code": "NOT_CONFIGURED"}),
    "the header X-Routing-Decision": (
        "POST", CHAT, 200, [JSON, ID, ROUTED[0], ("X-Routing-Decision", "X"), ROUTED[2]], {}),
    "does not match": ("POST", "/v1/inference", 404, [JSON, ID],
                       {**ERROR, "code": "MODEL_NOT_FOUND", "trace_id": "0\n"}),
    "is not one of": ("POST", "/v1/inference", 404, [JSON, ID], ERROR),
    "the content type": ("POST", CHAT, 200, [("Content-Type", "text/html"), ID, *ROUTED], {}),
    "not JSON": ("POST", CHAT, 200, [JSON, ID, *ROUTED], b"{"),
    "is a required property": ("POST", CHAT, 500, [JSON, ID], {"error": {"message": "no"}}),
    "Additional properties": ("GET", "/healthz", 200, [JSON, ID],
                              {"status": "ok", "version": "1", "build": "1", "more": 1}),
    "is not of type": ("POST", CHAT, 200, [JSON, ID, *ROUTED], []),
    "the event 'other'": ("POST", "/v1/inference", 200, [STREAM, ID, *ROUTED],
                          b"event: other\ndata: {}\n\n"),
    "after the last one": ("POST", "/v1/inference", 200, [STREAM, ID, *ROUTED], DONE + DELTA),
    "non-empty": ("POST", "/v1/inference", 200, [STREAM, ID, *ROUTED],
                  b'event: delta\ndata: {"output": ""}\n\n'),
    "Allow says": ("PUT", "/healthz", 405, [JSON, ID, ("Allow", "GET")],
                   {**ERROR, "code": "METHOD_NOT_ALLOWED"}),
    "405 for an unknown path": ("PUT", "/nothing", 405, [JSON, ID, ("Allow", "GET")], ERROR),
    "404 for a path that has": ("PUT", "/healthz", 404, [JSON, ID], {**ERROR, "code": "NOT_FOUND"}),
}  # fmt: skip


@pytest.mark.parametrize("answer", KEPT, ids=lambda answer: f"{answer[0]} {answer[1]} {answer[2]}")
def test_a_kept_promise_is_no_violation(answer: Answer) -> None:
    """Silence means that all is well."""
    assert found(answer) == []


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_promise_is_found(words: str) -> None:
    """Each kind of violation is reported, and says what it is about."""
    problems = found(BROKEN[words])
    assert problems
    assert [problem for problem in problems if words not in problem] == []


def test_events_are_cut_as_the_standard_says() -> None:
    """Every kind of line end, comments, several lines of data, an unfinished last event."""
    body = b": c\n\ndata:a\ndata: b\n\nevent: e\r\ndata: x\r\n\r\nid: 1\rdata: y\r\r"
    unfinished = b"event: z\n\ndata: q"
    assert list(events_of(body + unfinished)) == [("message", "a\nb"), ("e", "x"), ("message", "y")]
