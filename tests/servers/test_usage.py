"""What a call used and cost is the same whole or streamed, in the reply and in the log."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fakes.backend.anthropic_messages import compose
from tests.servers.deployment import CHAT, CLAUDE, EMBEDDING, Deployment
from tests.servers.router_process import Line, Reply

PRICES = {CHAT: (2_500, 10_000), CLAUDE: (3_000, 15_000)}
"""Nano-USD a token, given and generated, as the document has them."""

LOGGED = ("tokens_input", "tokens_output", "usage_source", "cost_nanos", "outcome")
PROMPT = "Count the waves, please, and then tell me what colour they are"


@dataclass(frozen=True)
class Told:
    """What a client learns of a call."""

    text: str
    tokens_input: int
    tokens_output: int
    cost_usd: float | None


def fields_of(dialect: str, model: str, request_id: str, *, stream: bool) -> tuple[str, Any]:
    """Path and body of one call."""
    if dialect == "native":
        fields = {"request_id": request_id, "model": model, "payload": PROMPT, "stream": stream}
        return "/v1/inference", fields
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    if dialect == "completions":
        return "/v1/completions", {"model": model, "prompt": PROMPT, **options}
    messages = [{"role": "user", "content": PROMPT}]
    return "/v1/chat/completions", {"model": model, "messages": messages, **options}


def call(deployed: Deployment, dialect: str, model: str, *, stream: bool) -> tuple[Told, Line]:
    """One call; what its reply says and what its log line says."""
    request_id = str(uuid.uuid4())
    path, fields = fields_of(dialect, model, request_id, stream=stream)
    reply = deployed.router.post(path, fields, deployed.key.key, request_id=request_id)
    assert reply.status == 200, reply.body
    read = read_native if dialect == "native" else read_openai
    return read(reply, stream=stream), deployed.router.line_of(request_id)


def events(reply: Reply) -> Iterator[tuple[str, Any]]:
    """Name and data of each event of a stream, the final `[DONE]` aside."""
    for event in reply.body.decode().replace("\r\n", "\n").split("\n\n"):
        name = data = ""
        for line in event.split("\n"):
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data = line[6:]
        if data and data != "[DONE]":
            yield name, json.loads(data)


def read_native(reply: Reply, *, stream: bool) -> Told:
    facts, text = reply.json if not stream else None, ""
    if facts is None:
        *deltas, (last, facts) = events(reply)
        assert last == "done"
        assert {name for name, _ in deltas} == {"delta"}
        text = "".join(data["output"] for _, data in deltas)
    else:
        text = facts["output"]
    usage = facts["usage"]
    return Told(text, usage["tokens_input"], usage["tokens_output"], usage["cost_usd"])


def read_openai(reply: Reply, *, stream: bool) -> Told:
    chunks = [data for _, data in events(reply)] if stream else [reply.json]
    text, usage = "", None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            said = choice.get("delta") or choice.get("message") or {}
            text += said.get("content") or choice.get("text") or ""
    assert usage is not None
    return Told(text, usage["prompt_tokens"], usage["completion_tokens"], None)


@pytest.mark.parametrize("model", [CHAT, CLAUDE])
@pytest.mark.parametrize("dialect", ["native", "chat", "completions"])
def test_streamed_and_buffered_calls_cost_the_same(
    deployed: Deployment, dialect: str, model: str
) -> None:
    """U7: text, tokens and cost agree between both forms, the reply and the log line."""
    whole, whole_line = call(deployed, dialect, model, stream=False)
    streamed, streamed_line = call(deployed, dialect, model, stream=True)

    assert streamed == whole
    assert [streamed_line[name] for name in LOGGED] == [whole_line[name] for name in LOGGED]
    assert (whole.tokens_input, whole.tokens_output) == (
        whole_line["tokens_input"],
        whole_line["tokens_output"],
    )
    given, generated = PRICES[model]
    nanos = whole.tokens_input * given + whole.tokens_output * generated
    assert nanos > 0
    assert whole_line["cost_nanos"] == nanos
    assert whole_line["usage_source"] == "reported"
    if dialect == "native":
        assert whole.cost_usd == pytest.approx(nanos / 1e9)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["native", "chat", "completions"])
def test_an_anthropic_backends_own_figures_are_told(
    deployed: Deployment, dialect: str, stream: bool
) -> None:
    """The client and the log have exactly what the Messages API reported."""
    told, line = call(deployed, dialect, CLAUDE, stream=stream)

    (request,) = deployed.claude.requests
    reported = compose(request.fields)["usage"]
    cached = reported["cache_read_input_tokens"] + reported["cache_creation_input_tokens"]
    assert told.tokens_input == line["tokens_input"] == reported["input_tokens"] + cached
    assert told.tokens_output == line["tokens_output"] == reported["output_tokens"]
    assert told.text == f"You said: {PROMPT}"
    assert request.fields["model"] != CLAUDE


def test_an_anthropic_backend_cannot_embed(deployed: Deployment) -> None:
    """What a kind of backend cannot do is the client's to mend, and it is not asked."""
    reply = deployed.router.post(
        "/v1/embeddings", {"model": CLAUDE, "input": "text"}, deployed.key.key
    )

    assert (reply.status, reply.json["error"]["param"]) == (400, "model")
    assert deployed.claude.requests == []


@pytest.mark.parametrize(
    "behaviour",
    [
        {"usage_style": "last_empty_choices"},
        {"usage_style": "with_last_choice"},
        {"usage_style": "every_chunk"},
        {"split_writes": True},
        {"line_ending": "crlf", "comments": True},
        {"line_ending": "crlf", "comments": True, "split_writes": True},
        {"failure": "no_usage"},
    ],
    ids=str,
)
def test_every_shape_of_stream_is_read_alike(
    deployed: Deployment, behaviour: dict[str, Any]
) -> None:
    """U7, U8: six shapes of events, and a backend that reports nothing and is estimated."""
    deployed.backend.set(**behaviour)
    lines = []
    for stream in (False, True):
        request_id = str(uuid.uuid4())
        body = {
            "model": CHAT,
            "messages": [{"role": "user", "content": PROMPT}],
            "stream": stream,
        }
        reply = deployed.router.post(
            "/v1/chat/completions", body, deployed.key.key, request_id=request_id
        )
        assert reply.status == 200
        lines.append(deployed.router.line_of(request_id))

    whole, streamed = lines
    assert [streamed[name] for name in LOGGED] == [whole[name] for name in LOGGED]
    assert whole["usage_source"] == ("estimated" if "failure" in behaviour else "reported")
    assert whole["tokens_input"] > 0
    assert whole["cost_nanos"] > 0


def test_embeddings_are_priced(deployed: Deployment) -> None:
    """An operation without output costs its input."""
    request_id = str(uuid.uuid4())
    reply = deployed.router.post(
        "/v1/embeddings",
        {"model": EMBEDDING, "input": ["one", "two three"]},
        deployed.key.key,
        request_id=request_id,
    )

    line = deployed.router.line_of(request_id)
    assert reply.json["usage"]["prompt_tokens"] == line["tokens_input"] == 3
    assert (line["tokens_output"], line["cost_nanos"]) == (0, 60)


@pytest.mark.parametrize("trouble", ["error_after_deltas", "cut_after_deltas"])
def test_an_anthropic_stream_that_breaks_says_so(deployed: Deployment, trouble: str) -> None:
    """F6, U9: an error event, or a connection cut inside an event, ends in an error event."""
    setattr(deployed.claude, trouble, 2)
    request_id = str(uuid.uuid4())
    _, fields = fields_of("chat", CLAUDE, request_id, stream=True)
    reply = deployed.router.post(
        "/v1/chat/completions", fields, deployed.key.key, request_id=request_id
    )

    *chunks, (_, last) = events(reply)
    assert reply.status == 200
    assert len(chunks) >= 2
    assert set(last) == {"error"}
    assert b"[DONE]" not in reply.body
    line = deployed.router.line_of(request_id)
    assert line["outcome"] == "upstream_aborted"
    assert line["tokens_input"] > 0


def test_an_overloaded_anthropic_backend_is_no_fault_of_the_client(deployed: Deployment) -> None:
    """529 means nothing to the client's SDK: it gets a 503 in OpenAI's shape (used to be 502)."""
    deployed.claude.overloaded = True
    _, fields = fields_of("chat", CLAUDE, "", stream=False)
    reply = deployed.router.post("/v1/chat/completions", fields, deployed.key.key)

    assert (reply.status, reply.json["error"]["type"]) == (503, "server_error")
    assert reply.json["error"]["code"] == "backend_unavailable"
