"""What is recorded of a call, and when: before the last byte, or when it has ended otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
from gevent import GreenletExit

from router.api.steps import recording
from router.errors import RecordsUnavailable
from router.upstream.reply_stream import StreamFault
from tests.fakes.router_stand import FailingForwarder, RouterStand, World, chat_body, native_body

CHAT = "/v1/chat/completions"
NATIVE = "/v1/inference"


def bodies(stream: bool) -> list[tuple[str, dict[str, Any]]]:
    return [(CHAT, chat_body(stream=stream)), (NATIVE, native_body(stream=stream))]


# --- when -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), bodies(stream=False))
def test_a_whole_answer_is_recorded_before_it_goes_out(
    stand: RouterStand, path: str, body: dict[str, Any]
) -> None:
    """P3: the response exists, nobody has read a byte of it, and the record is there."""
    opened = stand.open("POST", path, json=body)
    assert stand.record["outcome"] == "completed"
    opened.read()
    opened.close()
    assert len(stand.spool.records) == len(stand.spool.events) == 1


@pytest.mark.parametrize(("path", "body"), bodies(stream=True))
def test_a_stream_is_recorded_before_its_last_event(
    stand: RouterStand, path: str, body: dict[str, Any]
) -> None:
    """P3: not with the first events, and no later than with the one that ends it."""
    end = b"event: done" if path == NATIVE else b"[DONE]"
    stand.backends.first.set(token_interval_ms=20, split_writes=True)
    opened = stand.open("POST", path, json=body)
    assert end not in next(opened)
    assert stand.spool.records == []
    sent = next(chunk for chunk in opened if end in chunk)
    assert stand.record["outcome"] == "completed"
    assert sent.rstrip().endswith(b"}" if path == NATIVE else b"[DONE]")
    opened.close()
    assert stand.record["bytes_sent"] == stand.line["bytes_sent"]


@pytest.mark.parametrize(("path", "body"), bodies(stream=True))
def test_a_stream_that_cannot_be_recorded_does_not_end_well(
    stand: RouterStand, path: str, body: dict[str, Any]
) -> None:
    """P3: instead of its last event the client gets an error, and the record is held."""
    stand.backends.first.set(token_interval_ms=20)
    opened = stand.open("POST", path, json=body)
    next(opened)
    stand.spool.reason = "disk_error"
    rest = b"".join(opened)
    opened.close()
    assert b"[DONE]" not in rest
    assert b"event: done" not in rest
    assert (b"RECORDS_UNAVAILABLE" if path == NATIVE else b"records_unavailable") in rest
    assert len(stand.spool.buffered) == 2
    assert stand.line["code"] == "RECORDS_UNAVAILABLE"


@pytest.mark.parametrize(("path", "body"), bodies(stream=False))
def test_an_answer_that_cannot_be_recorded_is_not_given(
    stand: RouterStand, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: the backend has answered, the client gets 503, and what it cost is held."""

    def refuse(_frames: Any) -> None:
        raise RecordsUnavailable("disk_error")

    monkeypatch.setattr(stand.spool, "append", refuse)
    reply = stand.call("POST", path, json=body)
    assert (reply.status, reply.header("Retry-After")) == (503, "1")
    assert len(stand.spool.buffered) == 2
    assert stand.received() == 1


def held(stand: RouterStand) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the event that wait for the disk."""
    record, event = (json.loads(payload) for _, payload in stand.spool.buffered)
    return record, event


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", [CHAT, NATIVE])
def test_what_is_held_is_what_the_client_got(
    stand: RouterStand, path: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3, U9: it used to be held as an answered call; what the backend did is still charged."""
    [(_, body)] = [each for each in bodies(stream) if each[0] == path]

    def refuse(_frames: Any) -> None:
        raise RecordsUnavailable("disk_error", nothing_written=True)

    with monkeypatch.context() as broken:
        broken.setattr(stand.spool, "append", refuse)
        reply = stand.call("POST", path, json=body)
    record, event = held(stand)
    assert reply.status == record["status"] == event["context"]["status"] == stand.line["status"]
    assert reply.status == (200 if stream else 503)
    assert record["outcome"] == stand.line["outcome"] == "rejected"
    assert record["bytes_sent"] == stand.line["bytes_sent"] == len(reply.body)
    assert (record["usage_source"], record["cost_nanos"]) == ("reported", 45_000)
    assert record["attempts"][0]["billed"] is True
    assert (event["action"], event["reason"]) == ("REQUEST_ALLOWED", "RECORDS_UNAVAILABLE")
    stand.spool.records.clear()
    stand.spool.events.clear()
    stand.chat()
    assert stand.event["previous_hash"] == event["hash"]


def test_what_may_be_on_the_disk_is_held_as_it_is(
    stand: RouterStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P2: or there would be two contents under one id."""

    def refuse(_frames: Any) -> None:
        raise RecordsUnavailable("disk_slow")

    monkeypatch.setattr(stand.spool, "append", refuse)
    assert stand.chat().status == 503
    record, event = held(stand)
    assert (record["status"], record["outcome"]) == (200, "completed")
    assert (event["context"]["status"], event["reason"]) == (200, None)


@pytest.mark.parametrize(("path", "body"), bodies(stream=False))
def test_a_call_that_cannot_be_recorded_is_not_made(
    stand: RouterStand, path: str, body: dict[str, Any]
) -> None:
    """P3: and takes nothing of the room that is kept for the calls that are in flight."""
    stand.spool.reason = "disk_full"
    for _ in range(3):
        assert stand.call("POST", path, json=body).status == 503
        assert stand.call("POST", path, json={"model": "nowhere"}).status == 400
    assert stand.received() == 0
    assert stand.spool.buffered == stand.spool.records == []
    assert stand.services.recorder.refused["disk_full"] >= 6


# --- what -----------------------------------------------------------------------------------


def test_the_attempt_of_a_stream_lasts_as_long_as_the_stream(stand: RouterStand) -> None:
    """S4, U5: it used to end with the backend's head."""
    stand.backends.first.set(token_interval_ms=20, tokens_output=4)
    stand.call("POST", CHAT, json=chat_body(stream=True))
    [attempt] = stand.record["attempts"]
    assert attempt["latency_ms"] >= 80
    assert stand.line["backend_ms"] >= attempt["latency_ms"]
    assert stand.record["latency_ms"] >= attempt["latency_ms"]


def test_an_abandoned_stream_that_is_read_on_is_recorded_as_it_was_for_its_client(
    world: World,
) -> None:
    """S4, U9: exact usage, and the latency until the client left."""
    with world.other_stand(on_client_abort="drain") as stand:
        stand.backends.first.set(token_interval_ms=60, tokens_output=10)
        opened = stand.open("POST", CHAT, json=chat_body(stream=True))
        next(opened)
        opened.close()
        record = stand.record
        assert (record["outcome"], record["usage_source"]) == ("client_aborted", "reported")
        assert record["tokens_output"] == 10
        assert record["latency_ms"] == pytest.approx(stand.line["duration_ms"], abs=1)
        assert record["latency_ms"] < 600 <= record["attempts"][0]["latency_ms"]


def test_a_whole_answer_that_goes_out_as_a_stream(stand: RouterStand) -> None:
    """U9: its bytes are counted; the record used to say that none were sent."""
    message = b'{"choices": [{"message": {"role": "assistant", "content": "all of it"}}]}'
    stand.backends.plain.will_answer(message)
    reply = stand.call("POST", NATIVE, json=native_body("plain", stream=True))
    assert b"event: done" in reply.body
    assert (stand.record["bytes_sent"], stand.record["outcome"]) == (len(reply.body), "completed")


def test_a_killed_greenlet_is_recorded(world: World) -> None:
    """B5: it has begun no answer; its attempt used to seem to last since the machine's start."""
    stand = world.stand(forwarder=FailingForwarder(GreenletExit()))
    with pytest.raises(GreenletExit):
        stand.open("POST", CHAT, json=chat_body())
    assert (stand.record["outcome"], stand.record["status"]) == ("client_aborted", 0)


@pytest.mark.parametrize(
    ("key", "refusal"), [("expired", "expired"), ("revoked", "revoked"), ("inactive", None)]
)
def test_a_key_that_is_known_and_refused(stand: RouterStand, key: str, refusal: str | None) -> None:
    """A1: an audit event that says why, and no usage record."""
    assert stand.call("POST", CHAT, key=key, json=chat_body()).status == 401
    assert stand.spool.records == []
    event = stand.event
    assert (event["action"], event["actor"]) == ("REQUEST_DENIED", f"key:key-{key}")
    assert event["organization_id"] == ("closed" if key == "inactive" else "acme")
    assert event["context"]["refusal"] == (refusal or stand.line["reason"])
    assert event["context"]["status"] == 401


@pytest.mark.parametrize("key", [None, "junk"])
def test_an_unknown_caller_leaves_nothing(stand: RouterStand, key: str | None) -> None:
    """K4: or anyone could fill the disk."""
    headers = {"X-API-Key": key} if key else {}
    assert stand.call("POST", CHAT, key=None, headers=headers, json=chat_body()).status == 401
    assert stand.spool.records == stand.spool.events == []


def test_a_record_that_cannot_be_built_is_degraded(
    stand: RouterStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U4: raise inside the enricher: the call is answered and known."""

    def fail(*_: Any) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(recording, "_usage", fail)
    reply = stand.chat()
    assert reply.status == 200
    record = stand.record
    assert record["degraded"] is True
    assert record["request_id"] == reply.header("X-Request-ID")
    assert (record["api_key_id"], record["organization_id"]) == ("key-main", "acme")
    assert (record["status"], record["endpoint"]) == (200, "openai.chat_completions")
    assert stand.services.recorder.degraded == 1


def test_an_event_that_cannot_be_built_does_not_take_the_record_with_it(
    stand: RouterStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U4, A1: the event is there without its details; both used to be lost."""

    def fail(*_: Any) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(recording, "_event", fail)
    assert stand.chat().status == 200
    assert stand.record["outcome"] == "completed"
    assert stand.event["context"] == {"degraded": True}
    assert stand.event["request_id"] == stand.record["request_id"]
    assert stand.services.recorder.degraded == 1


def test_a_record_without_any_event(stand: RouterStand, monkeypatch: pytest.MonkeyPatch) -> None:
    """U4: what was used is known even if the decision cannot be told at all."""

    def fail(*_: Any) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(recording, "_decided", fail)
    assert stand.chat().status == 200
    assert stand.record["outcome"] == "completed"
    assert stand.spool.events == []


def test_a_call_that_was_not_taken_is_tried_again_at_its_end(
    stand: RouterStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U5: it used to count as recorded before anybody had it."""
    real, tries = stand.services.recorder.record, []

    def fail_once(*facts: Any, **more: Any) -> None:
        tries.append(facts)
        if len(tries) == 1:
            raise KeyError("a defect")
        real(*facts, **more)

    monkeypatch.setattr(stand.services.recorder, "record", fail_once)
    assert stand.chat().status == 500
    assert (stand.record["status"], len(tries)) == (500, 2)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_no_secret_is_recorded(stand: RouterStand, stream: bool) -> None:
    """P17: metadata may hold a key in name and value, a model's name may be one."""
    keys = [stand.keys["main"], stand.keys["spare"], "rsk_" + "0f" * 32]
    metadata = {**{key: f"Bearer {key}" for key in keys}, f"a {keys[0]} b": "c", "plain": "text"}
    stand.inference(metadata=metadata, stream=stream)
    stand.inference(keys[1])
    stand.chat(keys[2])
    written = json.dumps([stand.spool.records, stand.spool.events])
    assert [key for key in keys if key in written] == []
    served, unknown, _ = stand.spool.records
    assert served["metadata"] == {"…": "Bearer …", "a … b": "c", "plain": "text"}
    assert unknown["model_requested"] == "…"


@pytest.mark.parametrize("path", [CHAT, NATIVE])
def test_the_model_that_was_asked_for(stand: RouterStand, path: str) -> None:
    """A1: whoever looks for the name that was refused finds it."""
    body = chat_body("nowhere") if path == CHAT else native_body("nowhere")
    assert stand.call("POST", path, json=body).status == 404
    assert (stand.record["model"], stand.record["model_requested"]) == (None, "nowhere")
    assert stand.event["context"]["model"] == "nowhere"
    assert "tokens" not in stand.event["context"]


def test_the_event_tells_the_tokens(stand: RouterStand) -> None:
    """A1: what the decision has let happen."""
    stand.chat("gpt")
    assert stand.event["context"]["tokens"] == 6
    assert stand.event["context"]["model"] == "gpt-4o"
    assert stand.record["model_requested"] == "gpt"


# --- what a backend that failed leaves ------------------------------------------------------

_OVERLOADED = b'data: {"error":{"message":"host-zx7: overloaded by hello","type":"x"}}\n\n'
_DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"some"}}]}\n\n'
_CUT = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: 1000\r\n\r\n"
_EVENTS = b"text/event-stream"


def test_a_stream_that_breaks_says_how(stand: RouterStand) -> None:
    """S5, U10: in words of ours, in the record and beside it; it used to be told nowhere."""
    stand.backends.plain.will_stream(_DELTA, _OVERLOADED)
    stand.call("POST", CHAT, json=chat_body("plain", stream=True))
    [attempt] = stand.record["attempts"]
    assert attempt["error"] == stand.line["backend_error"] == "error event in stream"
    assert (stand.event["reason"], stand.line["code"]) == ("BACKEND_FAILED", "BACKEND_FAILED")
    assert "host-zx7" not in json.dumps([stand.record, stand.event, stand.line])
    assert (stand.record["usage_source"], attempt["billed"]) == ("estimated", True)
    labels = {"backend": "plain", "error": "transport"}
    assert stand.metric("backend_requests_total", **labels) == 1.0


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (_CUT % _EVENTS + _DELTA, "connection closed early"),
        (_CUT.replace(b"1000", b"%d" % len(_DELTA)) % _EVENTS + _DELTA, "stream ended early"),
    ],
)
def test_how_a_stream_may_break(stand: RouterStand, sent: bytes, fault: str) -> None:
    """S5: in a closed set."""
    stand.backends.plain.will_end_after(sent)
    stand.call("POST", CHAT, json=chat_body("plain", stream=True))
    assert stand.record["attempts"][0]["error"] == fault
    assert fault in get_args(StreamFault)


@pytest.mark.parametrize("path", [CHAT, NATIVE])
def test_an_error_event_alone_is_not_charged(stand: RouterStand, path: str) -> None:
    """U7, U10: the backend says that it has done nothing."""
    stand.backends.plain.will_end_after(_CUT % _EVENTS + _OVERLOADED)
    text = "hello " * 400
    body = chat_body("plain", text) if path == CHAT else native_body("plain", text)
    stand.call("POST", path, json={**body, "stream": True})
    record = stand.record
    assert record["outcome"] == "upstream_aborted"
    assert (record["usage_source"], record["cost_nanos"]) == ("none", None)
    assert record["attempts"][0]["status"] == 200
    assert record["attempts"][0]["billed"] is False
    assert record["attempts"][0]["error"]


_ENDINGS: dict[str, Callable[[RouterStand], None]] = {
    "models": lambda stand: stand.call("GET", "/v1/models") and None,
    "health": lambda stand: stand.call("GET", "/healthz", key=None) and None,
    "unknown path": lambda stand: stand.call("GET", "/nowhere") and None,
    "another method": lambda stand: stand.call("GET", CHAT) and None,
}


@pytest.mark.parametrize("end", _ENDINGS.values(), ids=_ENDINGS)
def test_what_is_no_call_leaves_no_record(
    stand: RouterStand, end: Callable[[RouterStand], None]
) -> None:
    """U5: one record for each call and none for anything else."""
    end(stand)
    assert stand.spool.records == stand.spool.events == []
