"""Must show 9: whatever becomes of a call, it leaves one record, and the record is right."""

from __future__ import annotations

import copy
import json
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import orjson
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from router.api.dialects.native import MAX_METADATA_BYTES
from router.config.schema.parts import MAX_WEIGHT
from router.records.record_schemas import audit_event_schema, usage_record_schema
from router.upstream.reply_stream import StreamFault
from tests.fakes.backend.anthropic_messages import compose
from tests.servers.deployment import (
    CHAT,
    CLAUDE,
    DEAD,
    EMBEDDING,
    HELLO,
    IMPATIENT,
    ORGANIZATION,
    SECOND,
    Deployment,
    deploy,
)
from tests.servers.router_process import NewKey, Reply, wait_until
from tests.servers.streaming_client import StreamingClient

VISIBLE_S = 5.0
"""The promise is 2 s; the machine that runs this may be busy."""
PROMPT = HELLO[0]["content"]
SAID = f"You said: {PROMPT}"
FAILOVER = "gpt-failover"
"""Its first backend is a port on which nobody listens, its second one serves."""
BUSY = "gpt-busy"
"""Its first backend does what the test wants, its second one serves."""
HOPELESS = "gpt-hopeless"
"""Both its backends are ports on which nobody listens."""

_SCHEMAS = {
    name: Draft202012Validator(schema, format_checker=FormatChecker())
    for name, schema in (("records", usage_record_schema()), ("events", audit_event_schema()))
}


def words(text: str) -> int:
    """Tokens as the fake backend reports them."""
    return len(text.split())


def guessed(text: str) -> int:
    """Tokens as the router estimates them: four characters each."""
    return -(-len(text) // 4)


@dataclass
class Desk:
    """A router whose calls are made here, and the records of which are asked for over HTTP."""

    deployment: Deployment
    auditor: NewKey
    revoked: NewKey
    reader: NewKey
    """May list models and nothing else."""

    @property
    def router_port(self) -> int:
        return self.deployment.router.port

    def story(self, request_id: str) -> dict[str, Any]:
        """What `GET /v1/audit/requests/{id}` tells of a call, as soon as it tells something."""
        found: list[Reply] = []

        def is_visible() -> bool:
            found[:] = [self.ask(request_id)]
            return found[0].status == 200

        wait_until(is_visible, VISIBLE_S, f"the story of {request_id}")
        story: dict[str, Any] = found[0].json
        for name, schema in _SCHEMAS.items():
            for entry in story[name]:
                schema.validate(entry)
        return story

    def ask(self, request_id: str) -> Reply:
        path = f"/v1/audit/requests/{request_id}"
        return self.deployment.router.request("GET", path, None, {"X-API-Key": self.auditor.key})

    def post(self, path: str, fields: Any, request_id: str, key: str | None = None) -> Reply:
        used = self.deployment.key.key if key is None else key
        return self.deployment.router.post(path, fields, used, request_id=request_id)

    def open(self, path: str, fields: Any, request_id: str) -> StreamingClient:
        headers = {"X-API-Key": self.deployment.key.key, "X-Request-ID": request_id}
        return StreamingClient(self.router_port, path, fields, headers)


def _document(deployment: Deployment) -> Any:
    """The usual one with models that have two backends."""
    document = copy.deepcopy(deployment.document)
    prices = {"input_usd_per_million_tokens": "1", "output_usd_per_million_tokens": "2"}
    spare = dict(document["backends"][3], id="dead-too")
    document["backends"].append(spare)
    for model, backends in {
        FAILOVER: ("dead", "mock-a"),
        BUSY: ("mock-b", "mock-a"),
        HOPELESS: ("dead", "dead-too"),
    }.items():
        document["models"].append({"id": model, "prices": prices})
        # As good as always in this order.
        weights = (MAX_WEIGHT, 1)
        served = [
            {"id": backend, "weight": weight}
            for backend, weight in zip(backends, weights, strict=True)
        ]
        document["policies"].append({"organization": "*", "model": model, "backends": served})
    return document


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with deploy(tmp_path_factory.mktemp("outcomes")) as deployment:
        router = deployment.router
        applied = router.apply(_document(deployment))
        assert applied.returncode == 0, applied.stderr
        auditor = router.create_key(ORGANIZATION, "--scope", "audit:read")
        reader = router.create_key(ORGANIZATION, "--scope", "models:read")
        revoked = router.create_key(ORGANIZATION)
        assert router.ctl("keys", "revoke", revoked.id).returncode == 0
        yield Desk(deployment, auditor, revoked, reader)
        assert router.faults() == [], "the router logged errors"
        assert router.stop() == 0


@pytest.fixture(autouse=True)
def _as_new(desk: Desk) -> None:
    desk.deployment.reset()


def only_record(desk: Desk, request_id: str) -> dict[str, Any]:
    """The one record of a call; there is one audit event beside it, which agrees with it."""
    # A large record may be stored one batch earlier than its event.
    wait_until(
        lambda: all(desk.story(request_id)[name] for name in ("records", "events")),
        VISIBLE_S,
        "record and event",
    )
    story = desk.story(request_id)
    [record], [event] = story["records"], story["events"]
    assert record["request_id"] == event["request_id"] == event["entity_id"] == request_id
    assert record["organization_id"] == event["organization_id"] == ORGANIZATION
    assert event["action"] == ("REQUEST_ALLOWED" if record["attempts"] else "REQUEST_DENIED")
    assert event["context"]["status"] == record["status"]
    assert event["trace_id"] == record["trace_id"]
    no_figures = record["usage_source"] == "none"
    tokens = None if no_figures else record["tokens_input"] + record["tokens_output"]
    assert event["context"].get("tokens") == tokens
    assert event["context"].get("model") == (record["model"] or record["model_requested"])
    assert [attempt["billed"] for attempt in record["attempts"][-1:]] in ([], [not no_figures])
    assert record["retry_count"] == max(0, len(record["attempts"]) - 1)
    assert [attempt["attempt"] for attempt in record["attempts"]] == list(
        range(1, len(record["attempts"]) + 1)
    )
    total_ms = sum(attempt["latency_ms"] for attempt in record["attempts"])
    assert 0 <= total_ms <= record["latency_ms"] + 1
    assert no_figures is (record["tokens_input"] == record["tokens_output"] == 0), "a silent zero"
    return record


def assert_facts(record: dict[str, Any], **facts: Any) -> None:
    """These fields have these values."""
    assert {name: record[name] for name in facts} == facts


def assert_abandoned(record: dict[str, Any], input_nanos: int) -> None:
    """The backend was sent the call and nothing came back: its estimated input is charged."""
    tokens = guessed(PROMPT)
    assert_facts(record, usage_source="estimated", tokens_input=tokens, tokens_output=0)
    assert_facts(record, cost_nanos=tokens * input_nanos)
    assert record["attempts"][-1]["billed"] is True


# --- calls that succeed ---------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """One way to ask for the same thing."""

    path: str
    operation: str
    model: str
    endpoint: str
    stream: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def fields(self, request_id: str, model: str | None = None) -> dict[str, Any]:
        fields: dict[str, Any] = {"model": model or self.model, **self.more}
        if self.path == "/v1/inference":
            fields |= {"request_id": request_id, "payload": PROMPT}
        elif self.operation == "chat":
            fields |= {"messages": HELLO}
        elif self.operation == "completions":
            fields |= {"prompt": PROMPT}
        else:
            fields |= {"input": PROMPT}
        return {**fields, "stream": True} if self.stream else fields


def _shape(name: str, *, stream: bool = False, **more: Any) -> Shape:
    path, operation, endpoint = {
        "chat": ("/v1/chat/completions", "chat", "openai.chat_completions"),
        "completions": ("/v1/completions", "completions", "openai.completions"),
        "embeddings": ("/v1/embeddings", "embeddings", "openai.embeddings"),
        "native": ("/v1/inference", "chat", "native.inference"),
    }[name]
    model = EMBEDDING if name == "embeddings" else CHAT
    return Shape(path, operation, model, endpoint, stream, more)


SHAPES = {
    "chat": _shape("chat"),
    "chat, streamed": _shape("chat", stream=True),
    "chat, streamed, usage asked for": _shape(
        "chat", stream=True, stream_options={"include_usage": True}
    ),
    "completions": _shape("completions"),
    "completions, streamed": _shape("completions", stream=True),
    "embeddings": _shape("embeddings"),
    "native": _shape("native"),
    "native, streamed": _shape("native", stream=True),
}
STREAMS = {name: shape for name, shape in SHAPES.items() if shape.stream}
WHOLE = {name: shape for name, shape in SHAPES.items() if not shape.stream}
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
EACH_STREAM = pytest.mark.parametrize("shape", STREAMS.values(), ids=STREAMS)
EACH_WHOLE = pytest.mark.parametrize("shape", WHOLE.values(), ids=WHOLE)


def _price(shape: Shape, tokens_input: int, tokens_output: int) -> int:
    if shape.operation == "embeddings":
        return tokens_input * 20
    return tokens_input * 2_500 + tokens_output * 10_000


@EACH_SHAPE
@pytest.mark.parametrize("reported", [True, False], ids=["reported", "not reported"])
def test_a_call_that_succeeds(desk: Desk, shape: Shape, reported: bool) -> None:
    """U5, U7, U8: what the backend reported, or an estimate that says so; streamed or not."""
    request_id = str(uuid.uuid4())
    if not reported:
        desk.deployment.backend.set(failure="no_usage")
    reply = desk.post(shape.path, shape.fields(request_id), request_id)
    assert reply.status == 200

    count = words if reported else guessed
    output = 0 if shape.operation == "embeddings" else count(SAID)
    record = only_record(desk, request_id)
    assert_facts(
        record,
        outcome="completed",
        status=200,
        usage_source="reported" if reported else "estimated",
        tokens_input=count(PROMPT),
        tokens_output=output,
        cost_nanos=_price(shape, count(PROMPT), output),
        endpoint=shape.endpoint,
        operation=shape.operation,
        model=shape.model,
        model_requested=shape.model,
        stream=shape.stream,
        backend_id="mock-a",
        decision_reason="PRIMARY",
        limit_state="WITHIN_LIMIT",
        bytes_sent=len(reply.body),
        api_key_id=desk.deployment.key.id,
    )
    [attempt] = record["attempts"]
    assert (attempt["status"], attempt["error"], attempt["billed"]) == (200, None, True)


@pytest.mark.parametrize("shape", [SHAPES["chat"], SHAPES["chat, streamed"], SHAPES["native"]])
def test_a_call_that_another_dialect_serves(desk: Desk, shape: Shape) -> None:
    """U7: an Anthropic backend's own figures."""
    request_id = str(uuid.uuid4())
    assert desk.post(shape.path, shape.fields(request_id, CLAUDE), request_id).status == 200
    [request] = desk.deployment.claude.requests
    reported = compose(request.fields)["usage"]
    cached = reported["cache_read_input_tokens"]
    tokens_input = reported["input_tokens"] + cached + reported["cache_creation_input_tokens"]
    assert_facts(
        only_record(desk, request_id),
        outcome="completed",
        usage_source="reported",
        tokens_input=tokens_input,
        tokens_output=reported["output_tokens"],
        tokens_cached=cached,
        backend_id="claude",
    )


def test_a_stream_takes_as_long_as_it_takes(desk: Desk) -> None:
    """S4, U6: the record's latency and its attempt's are those of the whole stream."""
    desk.deployment.backend.set(tokens_output=5, token_interval_ms=100)
    request_id = str(uuid.uuid4())
    assert desk.post("/v1/chat/completions", SHAPES["chat, streamed"].fields(""), request_id)
    record = only_record(desk, request_id)
    assert record["latency_ms"] >= 500
    assert record["attempts"][0]["latency_ms"] >= 500


# --- clients that leave ---------------------------------------------------------------------


@pytest.mark.parametrize("rudely", [False, True], ids=["FIN", "RST"])
def test_a_client_that_leaves_before_its_body_is_whole(desk: Desk, rudely: bool) -> None:
    """U9: no backend was asked, and nothing was used."""
    request_id = str(uuid.uuid4())
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: router.example",
        f"X-API-Key: {desk.deployment.key.key}",
        f"X-Request-ID: {request_id}",
        "Content-Type: application/json",
        "Content-Length: 500",
    )
    head = "\r\n".join((*lines, "", ""))
    with socket.create_connection(("127.0.0.1", desk.router_port)) as connection:
        connection.sendall(head.encode() + b'{"model": ')
        time.sleep(0.2)
        if rudely:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert_facts(
        only_record(desk, request_id),
        outcome="client_aborted",
        status=400,
        usage_source="none",
        cost_nanos=None,
        attempts=[],
        backend_id=None,
        decision_reason=None,
        model=None,
    )
    assert desk.deployment.backend.requests == []


@EACH_SHAPE
def test_a_client_that_leaves_before_the_backend_has_answered(desk: Desk, shape: Shape) -> None:
    """U9, S3: nothing was delivered, and the backend may have worked: its input is charged."""
    desk.deployment.backend.set(failure="black_hole")
    request_id = str(uuid.uuid4())
    with desk.open(shape.path, shape.fields(request_id), request_id):
        desk.deployment.backend.wait_for(lambda fake: fake.in_flight == 1)
    record = only_record(desk, request_id)
    assert_facts(
        record,
        outcome="client_aborted",
        status=499,
        backend_id="mock-a",
    )
    assert_abandoned(record, _price(shape, 1, 0))
    [attempt] = record["attempts"]
    assert (attempt["status"], attempt["error"]) == (None, "ClientGone")


@EACH_STREAM
@pytest.mark.parametrize("rudely", [False, True], ids=["FIN", "RST"])
def test_a_client_that_leaves_after_the_head(desk: Desk, shape: Shape, rudely: bool) -> None:
    """U8, U9: the backend had begun to answer, so the input is charged by estimate."""
    desk.deployment.backend.set(first_token_ms=5_000)
    request_id = str(uuid.uuid4())
    with desk.open(shape.path, shape.fields(request_id), request_id) as client:
        desk.deployment.backend.wait_for(lambda fake: fake.in_flight == 1)
        time.sleep(0.1)  # the backend's head is out; ours goes with its first event
        client.leave(rudely=rudely)
        assert_facts(
            only_record(desk, request_id),
            outcome="client_aborted",
            status=200,
            usage_source="estimated",
            tokens_input=guessed(PROMPT),
            tokens_output=0,
            cost_nanos=_price(shape, guessed(PROMPT), 0),
            bytes_sent=0,
        )


@EACH_STREAM
@pytest.mark.parametrize("rudely", [False, True], ids=["FIN", "RST"])
def test_a_client_that_leaves_amid_the_stream(desk: Desk, shape: Shape, rudely: bool) -> None:
    """U8, U9: charged for what was generated until then, by estimate."""
    desk.deployment.backend.set(tokens_output=100, token_interval_ms=50)
    request_id = str(uuid.uuid4())
    with desk.open(shape.path, shape.fields(request_id), request_id) as client:
        client.read_head()
        for _ in range(5):
            client.read_event()
        client.leave(rudely=rudely)
        record = only_record(desk, request_id)
    assert_facts(
        record,
        outcome="client_aborted",
        status=200,
        usage_source="estimated",
        tokens_input=guessed(PROMPT),
        cost_nanos=_price(shape, record["tokens_input"], record["tokens_output"]),
    )
    assert 1 <= record["tokens_output"] < 100
    assert record["bytes_sent"] > 0
    assert record["attempts"][0]["billed"]


@EACH_STREAM
def test_a_client_that_leaves_just_before_the_last_event(desk: Desk, shape: Shape) -> None:
    """U8, U9: it has all of the text; what it used is an estimate, as the backend said nothing."""
    interval_ms = 300
    desk.deployment.backend.set(token_interval_ms=interval_ms, tokens_output=2)
    request_id = str(uuid.uuid4())
    last_word = b'"output":" said:' if "native" in shape.endpoint else b" said:"
    with desk.open(shape.path, shape.fields(request_id), request_id) as client:
        client.read_head()
        client.read_until(last_word)
        client.leave()
        assert_facts(
            only_record(desk, request_id),
            outcome="client_aborted",
            status=200,
            usage_source="estimated",
            tokens_input=guessed(PROMPT),
            tokens_output=guessed("You said:"),
            cost_nanos=_price(shape, guessed(PROMPT), guessed("You said:")),
        )


@EACH_STREAM
def test_a_client_that_leaves_after_the_last_event(desk: Desk, shape: Shape) -> None:
    """U9: whoever has the last event has everything, also without the end of the body."""
    request_id = str(uuid.uuid4())
    end = b"event: done" if "native" in shape.endpoint else b"[DONE]"
    with desk.open(shape.path, shape.fields(request_id), request_id) as client:
        client.read_head()
        client.read_until(end)
        client.leave(rudely=True)
        assert_facts(
            only_record(desk, request_id),
            outcome="completed",
            status=200,
            usage_source="reported",
            tokens_input=words(PROMPT),
            tokens_output=words(SAID),
        )


@EACH_WHOLE
def test_a_client_that_leaves_with_its_answer(desk: Desk, shape: Shape) -> None:
    """U9: it was answered."""
    request_id = str(uuid.uuid4())
    with desk.open(shape.path, shape.fields(request_id), request_id) as client:
        assert client.read_head()[0] == 200
        client.leave(rudely=True)
    assert_facts(
        only_record(desk, request_id), outcome="completed", status=200, usage_source="reported"
    )


# --- backends that fail ---------------------------------------------------------------------


@dataclass(frozen=True)
class Trouble:
    """What a backend does, and what the record says then of a call that asked for all at once."""

    behaviour: dict[str, Any]
    status: int
    outcome: str
    attempt_status: int | None
    model: str = CHAT


BEFORE_ANSWERING = {
    "refused": Trouble({}, 503, "upstream_error", None, DEAD),
    "closed": Trouble({"failure": "close"}, 502, "upstream_error", None),
    "reset before the status": Trouble({"failure": "reset"}, 502, "upstream_error", None),
    "no HTTP": Trouble({"failure": "garbage"}, 502, "upstream_error", None),
    "silent": Trouble({"failure": "black_hole"}, 504, "timeout", None, SECOND),
    "an error": Trouble({"error_status": 500}, 502, "upstream_error", 500),
    "busy": Trouble({"error_status": 429}, 429, "upstream_error", 429),
    "away": Trouble({"error_status": 503}, 503, "upstream_error", 503),
    "refuses the call": Trouble({"error_status": 422}, 422, "upstream_error", 422),
    "refuses us": Trouble({"error_status": 401}, 502, "upstream_error", 401),
}


@pytest.mark.parametrize("trouble", BEFORE_ANSWERING.values(), ids=BEFORE_ANSWERING)
@pytest.mark.parametrize("name", ["chat", "chat, streamed", "native", "native, streamed"])
def test_a_backend_that_does_not_answer(desk: Desk, name: str, trouble: Trouble) -> None:
    """U9, U10: what it was sent is charged unless it says that it did nothing."""
    shape, request_id = SHAPES[name], str(uuid.uuid4())
    for backend in (desk.deployment.backend, desk.deployment.second):
        backend.set(**trouble.behaviour)
    reply = desk.post(shape.path, shape.fields(request_id, trouble.model), request_id)
    assert reply.status == trouble.status
    record = only_record(desk, request_id)
    assert_facts(
        record,
        outcome=trouble.outcome,
        status=trouble.status,
        bytes_sent=len(reply.body),
        decision_reason="PRIMARY",
    )
    if trouble.attempt_status is None and trouble.model != DEAD:
        assert_abandoned(record, 1_000 if trouble.model == SECOND else 2_500)
    else:
        assert_facts(record, usage_source="none", cost_nanos=None)
        assert record["attempts"][0]["billed"] is False
    [attempt] = record["attempts"]
    assert attempt["status"] == trouble.attempt_status
    assert attempt["error"]


@EACH_WHOLE
@pytest.mark.parametrize(
    ("failure", "status", "outcome"),
    [
        ("truncate_body", 502, "upstream_aborted"),
        ("bad_json", 502, "upstream_aborted"),
        ("slow_body", 504, "timeout"),
    ],
)
def test_a_backend_that_fails_within_a_whole_answer(
    desk: Desk, shape: Shape, failure: str, status: int, outcome: str
) -> None:
    """F6, U9: the client gets nothing of it; the backend has worked, so its input is charged."""
    # The second backend is given little time.
    model, name = (SECOND, "mock-b") if failure == "slow_body" else (shape.model, "mock-a")
    for backend in (desk.deployment.backend, desk.deployment.second):
        backend.set(failure=failure, tar_pit_interval_ms=400)
    request_id = str(uuid.uuid4())
    reply = desk.post(shape.path, shape.fields(request_id, model), request_id)
    assert reply.status == status
    record = only_record(desk, request_id)
    assert_facts(
        record,
        outcome=outcome,
        status=status,
        backend_id=name,
    )
    assert_abandoned(record, 1_000 if model == SECOND else _price(shape, 1, 0))
    assert record["attempts"][0]["status"] == 200
    assert record["attempts"][0]["error"]


@EACH_STREAM
@pytest.mark.parametrize(
    "behaviour",
    [
        {"failure": "cut_stream", "cut_after_chunks": 4},
        {"failure": "truncate_body"},
    ],
    ids=["cut after four events", "cut in the middle"],
)
def test_a_backend_that_dies_amid_a_stream(
    desk: Desk, shape: Shape, behaviour: dict[str, Any]
) -> None:
    """F6, U8, U9: the client is told, and what it got is charged by estimate."""
    desk.deployment.backend.set(tokens_output=20, **behaviour)
    request_id = str(uuid.uuid4())
    reply = desk.post(shape.path, shape.fields(request_id), request_id)
    assert reply.status == 200
    assert b"error" in reply.body
    record = only_record(desk, request_id)
    assert_facts(
        record,
        outcome="upstream_aborted",
        status=200,
        usage_source="estimated",
        tokens_input=guessed(PROMPT),
        cost_nanos=_price(shape, record["tokens_input"], record["tokens_output"]),
        bytes_sent=len(reply.body),
    )
    assert 1 <= record["tokens_output"] < 40
    assert record["attempts"][0]["billed"]
    assert record["attempts"][0]["error"] in get_args(StreamFault)
    assert desk.story(request_id)["events"][0]["reason"] == "BACKEND_FAILED"


@EACH_STREAM
def test_a_backend_that_dies_before_the_first_event(desk: Desk, shape: Shape) -> None:
    """U7, U10: nothing was delivered; the input is charged, as for a whole answer."""
    desk.deployment.backend.set(failure="cut_stream", cut_after_chunks=0)
    request_id = str(uuid.uuid4())
    assert desk.post(shape.path, shape.fields(request_id), request_id).status == 200
    record = only_record(desk, request_id)
    assert_facts(record, outcome="upstream_aborted")
    assert_abandoned(record, _price(shape, 1, 0))


@EACH_STREAM
def test_a_backend_that_dies_just_before_the_last_event(desk: Desk, shape: Shape) -> None:
    """U9: it had reported, so the figures are exact; the stream was not whole all the same."""
    # Two words, the reason of the end, the usage; a chat begins with an event for the role.
    events = 4 if shape.operation == "completions" else 5
    desk.deployment.backend.set(failure="cut_stream", cut_after_chunks=events, tokens_output=2)
    request_id = str(uuid.uuid4())
    assert desk.post(shape.path, shape.fields(request_id), request_id).status == 200
    assert_facts(
        only_record(desk, request_id),
        outcome="upstream_aborted",
        status=200,
        usage_source="reported",
        tokens_input=words(PROMPT),
        tokens_output=2,
    )


@EACH_STREAM
@pytest.mark.parametrize("interval_ms", [10, 2_000], ids=["too long", "idle"])
def test_a_backend_that_stalls_amid_a_stream(desk: Desk, shape: Shape, interval_ms: float) -> None:
    """F7, U9: a timeout after the head is told as such, and what came is charged."""
    desk.deployment.second.set(token_interval_ms=interval_ms, tokens_output=400)
    request_id = str(uuid.uuid4())
    reply = desk.post(shape.path, shape.fields(request_id, SECOND), request_id)
    assert reply.status == 200
    record = only_record(desk, request_id)
    assert_facts(record, outcome="timeout", status=200, backend_id="mock-b")
    if interval_ms == 10 or shape.operation == "completions":
        assert_facts(
            record,
            usage_source="estimated",
            tokens_input=guessed(PROMPT),
            cost_nanos=record["tokens_input"] * 1_000 + record["tokens_output"] * 2_000,
        )
        assert record["tokens_output"] >= 1
    else:  # of a chat, the one event that came in time opens and says nothing
        assert_abandoned(record, 1_000)
    assert record["attempts"][0]["error"] == "BackendTimeout"
    assert record["latency_ms"] > IMPATIENT["idle_s"] * 1000
    assert record["bytes_sent"] == len(reply.body)


# --- failover -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chat", "chat, streamed", "native", "native, streamed"])
@pytest.mark.parametrize(
    ("model", "first", "status"), [(FAILOVER, "dead", None), (BUSY, "mock-b", 503)]
)
def test_a_call_that_the_second_backend_serves(
    desk: Desk, name: str, model: str, first: str, status: int | None
) -> None:
    """U5, U6: one record with both attempts; only the one that served is charged."""
    desk.deployment.second.set(error_status=503)
    shape, request_id = SHAPES[name], str(uuid.uuid4())
    reply = desk.post(shape.path, shape.fields(request_id, model), request_id)
    assert (reply.status, reply.headers["X-Routing-Decision"]) == (200, "FAILOVER")
    record = only_record(desk, request_id)
    assert_facts(
        record,
        outcome="completed",
        usage_source="reported",
        decision_reason="FAILOVER",
        backend_id="mock-a",
        retry_count=1,
        tokens_input=words(PROMPT),
        tokens_output=words(SAID),
        cost_nanos=words(PROMPT) * 1_000 + words(SAID) * 2_000,
    )
    failed, served = record["attempts"]
    assert (failed["backend_id"], failed["status"], failed["billed"]) == (first, status, False)
    assert failed["error"]
    assert (served["backend_id"], served["status"], served["billed"]) == ("mock-a", 200, True)
    assert served["error"] is None


def test_a_call_that_no_backend_serves(desk: Desk) -> None:
    """U6: all attempts are told, the last one is the backend of the record."""
    request_id = str(uuid.uuid4())
    shape = SHAPES["chat"]
    assert desk.post(shape.path, shape.fields("", HOPELESS), request_id).status == 503
    record = only_record(desk, request_id)
    assert_facts(record, outcome="upstream_error", status=503, backend_id="dead-too", retry_count=1)
    assert [attempt["backend_id"] for attempt in record["attempts"]] == ["dead", "dead-too"]
    assert not any(attempt["billed"] for attempt in record["attempts"])


# --- calls that are refused -----------------------------------------------------------------

Refused = Callable[[Desk, str], Reply]


def _raw(path: str, body: bytes, **headers: str) -> Refused:
    def call(desk: Desk, request_id: str) -> Reply:
        sent = {
            "X-API-Key": desk.deployment.key.key,
            "X-Request-ID": request_id,
            "Content-Type": "application/json",
            **headers,
        }
        return desk.deployment.router.request("POST", path, body, sent)

    return call


def _unknown_model(desk: Desk, request_id: str) -> Reply:
    return desk.post("/v1/chat/completions", SHAPES["chat"].fields("", "nothing"), request_id)


def _unknown_model_natively(desk: Desk, request_id: str) -> Reply:
    return desk.post("/v1/inference", SHAPES["native"].fields(request_id, "nothing"), request_id)


def _forbidden_model(desk: Desk, request_id: str) -> Reply:
    key = desk.deployment.narrow_key.key
    return desk.post("/v1/chat/completions", SHAPES["chat"].fields(""), request_id, key)


def _without_scope(desk: Desk, request_id: str) -> Reply:
    return desk.post(
        "/v1/completions", SHAPES["completions"].fields(""), request_id, desk.reader.key
    )


_CHAT = json.dumps(SHAPES["chat"].fields("")).encode()
REFUSALS: dict[str, tuple[Refused, int, str]] = {
    "unknown model": (_unknown_model, 404, "MODEL_NOT_FOUND"),
    "unknown model, natively": (_unknown_model_natively, 404, "MODEL_NOT_FOUND"),
    "model that the key may not use": (_forbidden_model, 403, "MODEL_FORBIDDEN"),
    "missing scope": (_without_scope, 403, "SCOPE_MISSING"),
    "no JSON": (_raw("/v1/chat/completions", b"{"), 400, "INVALID_REQUEST"),
    "no JSON, natively": (_raw("/v1/inference", b"[]"), 400, "INVALID_REQUEST"),
    "no messages": (_raw("/v1/chat/completions", b'{"model":"x"}'), 400, "INVALID_REQUEST"),
    "no input": (_raw("/v1/embeddings", b'{"model":"x"}'), 400, "INVALID_REQUEST"),
    "another media type": (
        _raw("/v1/completions", b"x", **{"Content-Type": "text/plain"}),
        415,
        "UNSUPPORTED_MEDIA_TYPE",
    ),
    "a signature that is none": (
        _raw("/v1/chat/completions", _CHAT, **{"X-Router-Signature": "x"}),
        401,
        "SIGNATURE_INVALID",
    ),
}


@pytest.mark.parametrize(("call", "status", "code"), REFUSALS.values(), ids=REFUSALS)
def test_a_call_that_is_refused(desk: Desk, call: Refused, status: int, code: str) -> None:
    """U5, U9: a record without cost, and an audit event that says why."""
    request_id = str(uuid.uuid4())
    reply = call(desk, request_id)
    assert reply.status == status
    record = only_record(desk, request_id)
    assert_facts(
        record,
        outcome="rejected",
        status=status,
        usage_source="none",
        cost_nanos=None,
        attempts=[],
        backend_id=None,
        decision_reason=None,
        bytes_sent=len(reply.body),
    )
    [event] = desk.story(request_id)["events"]
    assert (event["action"], event["reason"]) == ("REQUEST_DENIED", code)


def test_a_key_that_may_not_be_used_any_more(desk: Desk) -> None:
    """A1: its organization is told of it; there is nothing to bill, so there is no record."""
    request_id = str(uuid.uuid4())
    shape = SHAPES["chat"]
    assert desk.post(shape.path, shape.fields(""), request_id, desk.revoked.key).status == 401
    story = desk.story(request_id)
    [event] = story["events"]
    assert story["records"] == []
    assert (event["action"], event["reason"]) == ("REQUEST_DENIED", "AUTH_INVALID")
    assert event["actor"] == f"key:{desk.revoked.id}"
    assert event["context"]["refusal"] == "revoked"


def test_unknown_callers_leave_no_record(desk: Desk) -> None:
    """K4: whoever has no key could otherwise fill the disk; the log knows of them."""
    shape = SHAPES["chat"]
    ids = [str(uuid.uuid4()) for _ in range(3)]
    for request_id, key in zip(ids, ("", "nonsense", "rk_live_0000"), strict=True):
        assert desk.post(shape.path, shape.fields(""), request_id, key).status == 401
    last = str(uuid.uuid4())
    for _ in range(4):  # so that each worker has recorded something since
        last = str(uuid.uuid4())
        assert desk.post(shape.path, shape.fields(""), last).status == 200
        only_record(desk, last)
    assert [desk.ask(request_id).status for request_id in ids] == [404, 404, 404]
    assert {desk.deployment.router.line_of(request_id)["outcome"] for request_id in ids} == {
        "rejected"
    }


def test_what_a_client_sends_along_is_recorded_whole(desk: Desk) -> None:
    """U4: the largest metadata that a call may have fits into its record."""
    request_id = str(uuid.uuid4())
    metadata = {f"{number:02}": "\x02" * 40 for number in range(63)}
    metadata["rest"] = "\x02" * (
        (MAX_METADATA_BYTES - len(orjson.dumps({**metadata, "rest": ""}))) // 6
    )
    assert MAX_METADATA_BYTES - 6 < len(orjson.dumps(metadata)) <= MAX_METADATA_BYTES
    fields = {**SHAPES["native"].fields(request_id), "metadata": metadata}
    assert desk.post("/v1/inference", fields, request_id).status == 200
    assert_facts(
        only_record(desk, request_id),
        outcome="completed",
        usage_source="reported",
        metadata=metadata,
    )


def test_a_request_id_that_is_sent_again_makes_another_record(desk: Desk) -> None:
    """U5: one record for each call; both are in the story, the newer one first."""
    request_id = str(uuid.uuid4())
    shape = SHAPES["native"]
    assert desk.post(shape.path, shape.fields(request_id), request_id).status == 200
    assert desk.post(shape.path, shape.fields(request_id, "nothing"), request_id).status == 404
    wait_until(
        lambda: len(desk.story(request_id)["records"]) == 2, VISIBLE_S, "both calls are recorded"
    )
    newer, older = desk.story(request_id)["records"]
    assert (newer["outcome"], older["outcome"]) == ("rejected", "completed")
    assert newer["record_id"] != older["record_id"]
