"""The native dialect: one call in, one answer or a stream of events out."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from router.api.dialects.native import MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES
from router.upstream.forwarder import BackendReply
from tests.fakes.router_stand import TRACEPARENT, FailingForwarder, RouterStand, World, native_body

REQUEST_ID = "0F5CF5C1-7B2D-4D53-9F68-5F0D3AD1F3BB"
COST_NANOS = 2 * 2_500 + 4 * 10_000
"""Two tokens in, four out, at 2.50 and 10 USD per million."""


def sent(stand: RouterStand) -> dict[str, Any]:
    """The one body that the first backend has received."""
    [request] = stand.backends.first.requests
    found: dict[str, Any] = json.loads(request.body)
    return found


def test_a_reply_says_everything(stand: RouterStand) -> None:
    """Output, usage, cost, ids: all fields and no other."""
    body = native_body(text="hello there", request_id=REQUEST_ID)
    reply = stand.call("POST", "/v1/inference", json=body, headers={"traceparent": TRACEPARENT})
    found = reply.json
    assert isinstance(found["usage"].pop("latency_ms"), int)
    assert found == {
        "request_id": REQUEST_ID.lower(),
        "output": "You said: hello there",
        "usage": {
            "tokens_input": 2,
            "tokens_output": 4,
            "cost_usd": COST_NANOS / 1e9,
            "limit_state": "WITHIN_LIMIT",
        },
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": stand.line["span_id"],
    }
    assert (reply.header("X-Routing-Backend"), reply.header("X-Routing-Decision")) == (
        "first",
        "PRIMARY",
    )


def test_the_body_names_the_request(stand: RouterStand) -> None:
    """`request_id` wins over the header, in the reply, in the log and towards the backend."""
    body = native_body(request_id=REQUEST_ID)
    reply = stand.call("POST", "/v1/inference", json=body, headers={"X-Request-ID": "other"})
    assert reply.header("X-Request-ID") == REQUEST_ID.lower()
    assert stand.line["request_id"] == REQUEST_ID.lower()
    [request] = stand.backends.first.requests
    assert request.header("X-Request-ID") == REQUEST_ID.lower()


@pytest.mark.parametrize("absent", [{}, {"request_id": None}])
@pytest.mark.parametrize("header", ["other", None])
def test_a_body_without_an_id_gets_one(
    stand: RouterStand, absent: dict[str, None], header: str | None
) -> None:
    """A new UUID, the same in reply, log and record; two such calls are two calls."""
    body = {"model": "gpt-4o", "payload": "hello", **absent}
    headers = {} if header is None else {"X-Request-ID": header}
    replies = [stand.call("POST", "/v1/inference", json=body, headers=headers) for _ in range(2)]
    ids = [reply.json["request_id"] for reply in replies]
    assert [uuid.UUID(one).version for one in ids] == [7, 7]
    assert ids[0] != ids[1]
    assert [reply.header("X-Request-ID") for reply in replies] == ids
    assert [line["request_id"] for line in stand.lines] == ids
    assert len(stand.backends.first.requests) == 2


def test_a_uuid_of_the_header_names_a_body_without_an_id(stand: RouterStand) -> None:
    """What a proxy in front has logged is found again."""
    body = {"model": "gpt-4o", "payload": "hello"}
    reply = stand.call(
        "POST", "/v1/inference", json=body, headers={"X-Request-ID": REQUEST_ID.lower()}
    )
    assert reply.json["request_id"] == REQUEST_ID.lower()


def test_a_text_becomes_one_message(stand: RouterStand) -> None:
    """Parameters go along as they are; labels stay here."""
    stand.inference(
        "renamed",
        "what now",
        content_type="text/plain",
        parameters={"max_tokens": 3, "top_k": 4, "nested": {"a": [1]}},
        metadata={"team": "a"},
    )
    assert sent(stand) == {
        "model": "vendor-name-of-it",
        "messages": [{"role": "user", "content": "what now"}],
        "stream": False,
        "max_tokens": 3,
        "top_k": 4,
        "nested": {"a": [1]},
    }


MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("payload", "messages"),
    [
        ({"messages": MESSAGES}, MESSAGES),
        (json.dumps({"messages": MESSAGES}), MESSAGES),
        ({"a": [1, "é"]}, [{"role": "user", "content": '{"a":[1,"é"]}'}]),
        ('{ "a":1 }', [{"role": "user", "content": '{ "a":1 }'}]),
        ({"messages": None}, [{"role": "user", "content": '{"messages":null}'}]),
        ([1, 2], [{"role": "user", "content": "[1,2]"}]),
        (0, [{"role": "user", "content": "0"}]),
        (False, [{"role": "user", "content": "false"}]),
    ],
)
def test_a_json_payload(stand: RouterStand, payload: Any, messages: list[Any]) -> None:
    """Chat messages are taken out of it; any other JSON is said as it is written."""
    body = native_body(payload=payload, content_type="application/json")
    assert stand.call("POST", "/v1/inference", json=body).status == 200
    assert sent(stand)["messages"] == messages


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"request_id": "no-uuid"}, "request_id"),
        ({"request_id": REQUEST_ID + "\n"}, "request_id"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"payload": None}, "payload"),
        ({"payload": ""}, "payload"),
        ({"payload": {"a": 1}}, "payload"),
        ({"Model": "x"}, "Model"),
        ({"parameters": {"Model": "x"}}, "parameters.Model"),
        ({"parameters": {"N": 9}}, "parameters.N"),
        ({"parameters": {"n_cmpl": 9}}, "parameters.n_cmpl"),
        ({"parameters": {"n_predict": -1}}, "n_predict"),
        ({"payload": "{", "content_type": "application/json"}, "payload"),
        ({"payload": '{"a":1,"a":2}', "content_type": "application/json"}, "a"),
        ({"payload": "[" * 250 + "]" * 250, "content_type": "application/json"}, "payload"),
        ({"payload": {"messages": []}, "content_type": "application/json"}, "payload.messages"),
        (
            {"payload": {"messages": [{"role": ""}]}, "content_type": "application/json"},
            "payload.messages[0].role",
        ),
        ({"content_type": "text/html"}, "content_type"),
        ({"parameters": []}, "parameters"),
        ({"parameters": {"max_tokens": 0}}, "max_tokens"),
        ({"parameters": {"messages": []}}, "parameters.messages"),
        ({"parameters": {"stream": True}}, "parameters.stream"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "x" * 1025}}, "metadata.a"),
        ({"metadata": {str(n): "x" for n in range(65)}}, "metadata"),
        ({"metadata": {str(n): "x" * 1024 for n in range(16)}}, "metadata"),
        ({"metadata": {str(n): "\x01" * 1024 for n in range(3)}}, "metadata"),
        ({"metadata": {str(n): "é" * 1024 for n in range(8)}}, "metadata"),
        ({"stream": "yes"}, "stream"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"n" * 100: 1}, "n" * 64),
    ],
)
def test_a_refusal_names_the_field(stand: RouterStand, changes: dict[str, Any], field: str) -> None:
    """400 with the path of the culprit; no backend is asked."""
    reply = stand.call("POST", "/v1/inference", json=native_body(**changes))
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert reply.json["details"] == {"field": field}
    assert stand.received() == 0


@pytest.mark.parametrize(
    "payload", ["x" * (MAX_PAYLOAD_BYTES + 1), "é" * (MAX_PAYLOAD_BYTES // 2 + 1)]
)
def test_a_payload_is_measured_in_bytes(stand: RouterStand, payload: str) -> None:
    """64 KiB of UTF-8 pass, one byte more is 413."""
    reply = stand.call("POST", "/v1/inference", json=native_body(payload=payload))
    assert (reply.status, reply.json["details"]) == (413, {"field": "payload"})
    assert stand.received() == 0
    assert stand.inference(text="x" * MAX_PAYLOAD_BYTES).status == 200


def test_metadata_is_measured_as_json_in_bytes(stand: RouterStand) -> None:
    """16 KiB pass, one byte more is 400: one key could fill everybody's spool with less."""
    metadata = {str(number): "x" * 1024 for number in range(15)}
    room = MAX_METADATA_BYTES - len(json.dumps({**metadata, "rest": ""}, separators=(",", ":")))
    for excess, status in ((0, 200), (1, 400)):
        metadata["rest"] = "x" * (room + excess)
        reply = stand.call("POST", "/v1/inference", json=native_body(metadata=metadata))
        assert reply.status == status
    assert reply.json["details"] == {"field": "metadata"}
    assert str(MAX_METADATA_BYTES) in reply.json["error"]


# --- streams --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt-4o", "claude", "unpriced", "failover"])
def test_streamed_and_whole_say_and_cost_the_same(stand: RouterStand, model: str) -> None:
    """U7: output, usage and cost, in the reply and in the log, whatever the backend's kind."""
    whole = stand.inference(model, "tell me the same thing twice").json
    streamed = stand.inference(model, "tell me the same thing twice", stream=True)
    names = [event.name for event in streamed.events]
    assert names == ["delta"] * (len(names) - 1) + ["done"]
    assert len(names) > 2
    output = "".join(json.loads(event.data)["output"] for event in streamed.events[:-1])
    done = json.loads(streamed.events[-1].data)
    assert output == whole["output"]
    for usage in (whole["usage"], done["usage"]):
        usage.pop("latency_ms")
    assert done["usage"] == whole["usage"]
    one, other = stand.lines
    for name in ("tokens_input", "tokens_output", "cost_nanos", "usage_source", "outcome"):
        assert one[name] == other[name]


def test_a_stream_is_a_stream(stand: RouterStand) -> None:
    """S1: the head says that nothing on the way may keep it back."""
    reply = stand.inference(stream=True)
    assert reply.header("Content-Type") == "text/event-stream; charset=utf-8"
    assert (reply.header("Cache-Control"), reply.header("X-Accel-Buffering")) == ("no-cache", "no")
    assert stand.line["bytes_sent"] == len(reply.body)


def test_a_stream_that_breaks_ends_with_an_error(stand: RouterStand) -> None:
    """F6: the client sees that it did not get everything."""
    stand.backends.first.set(failure="cut_stream", cut_after_chunks=3)
    reply = stand.inference(stream=True)
    assert [event.name for event in reply.events] == ["delta", "delta", "error"]
    error = json.loads(reply.events[-1].data)
    assert (error["code"], error["trace_id"]) == ("BACKEND_FAILED", stand.line["trace_id"])
    assert stand.line["outcome"] == "upstream_aborted"
    assert stand.line["bytes_sent"] == len(reply.body)


def test_a_stream_that_stalls_ends_with_a_timeout(stand: RouterStand) -> None:
    """F7: the error in the stream is another one."""
    stand.backends.first.set(token_interval_ms=500)
    reply = stand.inference("impatient", stream=True)
    assert json.loads(reply.events[-1].data)["code"] == "BACKEND_TIMEOUT"
    assert stand.line["outcome"] == "timeout"


class OnePiece:
    """Answers a streaming call in one piece."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def send(
        self, _call: Any, _candidates: Any, _context: Any, attempts: Any, _max_output: Any
    ) -> Any:
        return BackendReply("first", body=self._body, output_bytes=5)


def test_a_backend_that_does_not_stream_is_heard_all_the_same(world: World) -> None:
    """One delta and the end."""
    body = b'{"choices": [{"message": {"content": "whole"}}]}'
    stand = world.stand(forwarder=OnePiece(body))
    reply = stand.inference(stream=True)
    assert [event.name for event in reply.events] == ["delta", "done"]
    assert json.loads(reply.events[0].data) == {"output": "whole"}
    assert reply.header("X-Accel-Buffering") == "no"
    assert stand.line["bytes_sent"] == len(reply.body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": "x"}]}',
        b'{"choices": [{"message": {"content": [1]}}]}',
    ],
)
def test_a_reply_that_is_none_is_the_backends_failure(
    world: World, body: bytes, stream: bool
) -> None:
    """502, and no cost of ours is told."""
    stand = world.stand(forwarder=OnePiece(body))
    reply = stand.call("POST", "/v1/inference", json=native_body(stream=stream))
    assert (reply.status, reply.json["code"]) == (502, "BACKEND_FAILED")


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_without_text_has_an_empty_output(world: World, stream: bool) -> None:
    """A model may answer with nothing but tool calls."""
    body = b'{"choices": [{"message": {"content": null, "tool_calls": []}}]}'
    reply = world.stand(forwarder=OnePiece(body)).inference(stream=stream)
    if stream:
        assert [event.name for event in reply.events] == ["done"]
    else:
        assert reply.json["output"] == ""


def test_a_defect_is_told_without_its_cause(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """500 with ids to ask about; the cause is in the log."""
    stand = world.stand(forwarder=FailingForwarder(ZeroDivisionError("of all things")))
    reply = stand.inference()
    assert (reply.status, reply.json["code"]) == (500, "INTERNAL")
    assert "of all things" not in reply.body.decode()
    [record] = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert vars(record)["request_id"] == reply.header("X-Request-ID")
