"""Settlement: once for each call, however it ends, with the truth about what was used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gevent import GreenletExit

from router.api import pipeline
from tests.fakes.router_stand import FailingForwarder, RouterStand, World, chat_body, native_body

CHAT = "/v1/chat/completions"
STREAM = chat_body(stream=True)
ALWAYS = {
    "ts", "level", "event", "request_id", "trace_id", "span_id", "endpoint", "status", "outcome",
    "duration_ms", "bytes_sent", "remote_addr",
}  # fmt: skip
KNOWN_CALLER = {"organization_id", "key_id"}
READ = {"model", "stream"}
TRIED = {"backend", "attempts", "backend_ms"}
DELIVERED = {
    "decision", "tokens_input", "tokens_output", "usage_source", "cost_nanos", "ttfb_ms",
    "overhead_ms",
}  # fmt: skip


def settled(stand: RouterStand, path: str = "openai.chat_completions") -> float:
    """How many requests were counted, by the metric that counts each settlement."""
    return stand.metric("request_duration_seconds_count", endpoint=path)


# --- exactly once ---------------------------------------------------------------------------


def end_well(stand: RouterStand) -> None:
    stand.chat()


def end_streamed(stand: RouterStand) -> None:
    stand.call("POST", CHAT, json=STREAM)


def end_in_a_refusal(stand: RouterStand) -> None:
    stand.chat(max_tokens=0)


def end_at_a_dead_backend(stand: RouterStand) -> None:
    stand.chat("dead")


def end_in_an_error_of_the_backend(stand: RouterStand) -> None:
    stand.backends.first.set(error_status=500)
    stand.chat()


def end_in_a_cut(stand: RouterStand) -> None:
    stand.backends.first.set(failure="truncate_body")
    stand.chat()


def end_in_a_cut_stream(stand: RouterStand) -> None:
    stand.backends.first.set(failure="cut_stream")
    stand.call("POST", CHAT, json=STREAM)


def end_in_silence(stand: RouterStand) -> None:
    stand.backends.first.set(failure="black_hole")
    stand.chat("impatient")


def end_before_the_first_byte(stand: RouterStand) -> None:
    """The server sends the head, finds the client gone and never asks for the body."""
    stand.open("POST", CHAT, json=STREAM).close()


def end_after_the_first_chunk(stand: RouterStand) -> None:
    stand.backends.first.set(token_interval_ms=20)
    opened = stand.open("POST", CHAT, json=STREAM)
    next(opened)
    opened.close()


def end_twice(stand: RouterStand) -> None:
    opened = stand.open("POST", CHAT, json=STREAM)
    opened.read()
    opened.close()
    opened.close()


ENDINGS: dict[Callable[[RouterStand], None], tuple[int, str]] = {
    end_well: (200, "completed"),
    end_streamed: (200, "completed"),
    end_in_a_refusal: (400, "rejected"),
    end_at_a_dead_backend: (503, "upstream_error"),
    end_in_an_error_of_the_backend: (502, "upstream_error"),
    end_in_a_cut: (502, "upstream_aborted"),
    end_in_a_cut_stream: (200, "upstream_aborted"),
    end_in_silence: (504, "timeout"),
    end_before_the_first_byte: (200, "client_aborted"),
    end_after_the_first_chunk: (200, "client_aborted"),
    end_twice: (200, "completed"),
}


@pytest.mark.parametrize("end", ENDINGS)
def test_a_call_is_settled_once(stand: RouterStand, end: Callable[[RouterStand], None]) -> None:
    """U9: one line and one count for each way to end; streams used to have neither."""
    end(stand)
    status, outcome = ENDINGS[end]
    assert (stand.line["status"], stand.line["outcome"]) == (status, outcome)
    counted = stand.metric(
        "requests_total", endpoint="openai.chat_completions", status=str(status), outcome=outcome
    )
    assert (counted, settled(stand)) == (1.0, 1.0)
    assert stand.services.metrics.running == 0


@pytest.mark.parametrize("path", [CHAT, "/v1/inference"])
@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_a_client_that_leaves_takes_the_backend_off_its_work(
    stand: RouterStand, path: str, chunks: int
) -> None:
    """S3: the connection to the backend is closed with the response."""
    stand.backends.first.set(token_interval_ms=20, tokens_output=200)
    body = STREAM if path == CHAT else native_body(stream=True)
    opened = stand.open("POST", path, json=body)
    sent = sum(len(next(opened)) for _ in range(chunks))
    opened.close()
    stand.backends.first.wait_for(lambda fake: fake.aborted == 1)
    line = stand.line
    assert (line["outcome"], line["bytes_sent"]) == ("client_aborted", sent)
    assert line["usage_source"] == "estimated"


def test_a_stream_that_was_read_to_its_last_event_is_complete(stand: RouterStand) -> None:
    """A client may hang up on `[DONE]` without waiting for the end of the body."""
    opened = stand.open("POST", CHAT, json=STREAM)
    while b"[DONE]" not in next(opened):
        pass
    opened.close()
    assert (stand.line["outcome"], stand.line["usage_source"]) == ("completed", "reported")


def test_an_abandoned_stream_can_be_read_to_its_end(world: World) -> None:
    """U9: with `drain` the usage of a client that left is exact."""
    with world.other_stand(on_client_abort="drain") as stand:
        stand.backends.first.set(token_interval_ms=5)
        opened = stand.open("POST", CHAT, json=STREAM)
        next(opened)
        opened.close()
        line = stand.line
        assert (line["outcome"], line["usage_source"]) == ("client_aborted", "reported")
        assert line["tokens_output"] == 4
        assert stand.backends.first.aborted == 0


def test_a_defect_is_settled(world: World) -> None:
    """B5: an exception in a view is an end like any other."""
    stand = world.stand(forwarder=FailingForwarder(KeyError("x")))
    stand.chat()
    assert (stand.line["status"], stand.line["code"]) == (500, "INTERNAL")
    assert settled(stand) == 1.0


def test_a_defect_after_the_backend_has_answered(
    stand: RouterStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5: the stream that nobody will read is closed, and the call settled."""

    def fail(_delivery: Any) -> None:
        raise RuntimeError("after the fact")

    monkeypatch.setattr(pipeline, "deliver", fail)
    stand.backends.first.set(token_interval_ms=20, tokens_output=200)
    reply = stand.call("POST", CHAT, json=STREAM)
    stand.backends.first.wait_for(lambda fake: fake.aborted == 1)
    assert reply.status == 500
    assert (stand.line["status"], stand.line["bytes_sent"]) == (500, len(reply.body))
    assert settled(stand) == 1.0


def test_a_killed_greenlet_is_settled(world: World) -> None:
    """B5: what leaves no response behind is caught when the request is torn down."""
    stand = world.stand(forwarder=FailingForwarder(GreenletExit()))
    with pytest.raises(GreenletExit):
        stand.open("POST", CHAT, json=chat_body())
    assert stand.line["outcome"] == "client_aborted"
    assert settled(stand) == 1.0


# --- what is said ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_facts", "fields"),
    [
        ({"key": None, "json": chat_body()}, ALWAYS | {"code", "reason"}),
        ({"json": {}}, ALWAYS | KNOWN_CALLER | {"code"}),
        ({"json": chat_body("nowhere")}, ALWAYS | KNOWN_CALLER | {"code"}),
        (
            {"json": chat_body("dead")},
            ALWAYS | KNOWN_CALLER | READ | TRIED | {"code", "backend_error"},
        ),
        ({"json": chat_body()}, ALWAYS | KNOWN_CALLER | READ | TRIED | DELIVERED),
        ({"json": STREAM}, ALWAYS | KNOWN_CALLER | READ | TRIED | DELIVERED),
    ],
)
def test_the_fields_of_the_line(
    stand: RouterStand, request_facts: dict[str, Any], fields: set[str]
) -> None:
    """What is known by then, no more and no less."""
    stand.call("POST", CHAT, **request_facts)
    assert set(stand.line) == fields


def test_the_line_of_a_good_call(stand: RouterStand) -> None:
    """Whose call it was, where it went, what it used and cost."""
    reply = stand.chat("gpt", user="somebody")
    line = stand.line
    assert {
        "level": "info",
        "event": "call",
        "request_id": reply.header("X-Request-ID"),
        "endpoint": "openai.chat_completions",
        "status": 200,
        "outcome": "completed",
        "bytes_sent": len(reply.body),
        "remote_addr": "192.0.2.7",
        "organization_id": "acme",
        "key_id": "key-main",
        "model": "gpt-4o",
        "stream": False,
        "backend": "first",
        "attempts": 1,
        "decision": "PRIMARY",
        "tokens_input": 2,
        "tokens_output": 4,
        "usage_source": "reported",
        "cost_nanos": 45_000,
    }.items() <= line.items()
    assert 0 < line["backend_ms"] <= line["ttfb_ms"] <= line["duration_ms"]
    shown_ms = float(reply.header("X-Router-Overhead-Ms") or "")
    assert shown_ms == pytest.approx(line["overhead_ms"], abs=0.01)


def test_the_line_of_a_failover(stand: RouterStand) -> None:
    """U6: which backend answered, at which attempt."""
    reply = stand.chat("failover")
    line = stand.line
    assert (line["backend"], line["attempts"], line["decision"]) == ("second", 2, "FAILOVER")
    assert reply.header("X-Routing-Decision") == "FAILOVER"
    assert stand.metric("backend_requests_total", backend="closed", error="connect") == 1.0
    assert stand.metric("backend_requests_total", backend="second", error="none") == 1.0


def test_no_payload_and_no_secret_is_logged(
    stand: RouterStand, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """K6: neither of a call that succeeds nor of one that fails, streamed or not."""
    canary = "canary-7f3a91"
    for model in ("gpt-4o", "claude", "dead", "nowhere", canary):
        for more in ({}, {"stream": True}):
            stand.chat(model, f"say {canary}", user=canary, **more)
            stand.inference(model, f"say {canary}", metadata={"a": canary}, **more)
    stand.call("GET", f"/v1/models/{canary}?q={canary}")
    stand.call("GET", f"/{canary}", key=None, headers={"X-API-Key": canary, "Cookie": canary})
    stand.call("POST", CHAT, body=f'{{"{canary}'.encode())
    written = stand.log.getvalue().decode() + caplog.text + "".join(capfd.readouterr())
    assert len(stand.lines) == 23
    for secret in (canary, *stand.keys.values(), "sk-with-which"):
        assert secret not in written


def test_machines_that_look_in_leave_no_lines(stand: RouterStand) -> None:
    """Health checks are counted, and not one line each."""
    for path in ("/healthz", "/v1/status/readyz"):
        stand.call("GET", path, key=None)
    assert stand.lines == []
    assert settled(stand, "status.healthz") == 1.0


# --- what is counted ------------------------------------------------------------------------


def test_the_metrics_of_a_good_call(stand: RouterStand) -> None:
    """Every family that a call moves, once."""
    stand.chat()
    stand.call("POST", CHAT, json=STREAM)
    assert stand.metric("tokens_total", direction="input", source="reported") == 4.0
    assert stand.metric("tokens_total", direction="output", source="reported") == 8.0
    assert stand.metric("cost_nanousd_total") == 90_000.0
    assert stand.metric("overhead_seconds_count") == 2.0
    assert stand.metric("backend_requests_total", backend="first", error="none") == 2.0
    assert stand.metric("backend_request_duration_seconds_count", backend="first") == 2.0


def test_the_duration_of_a_stream_is_that_of_all_of_it(stand: RouterStand) -> None:
    """S4: measured when it has ended, for the request and for the attempt."""
    stand.backends.first.set(token_interval_ms=15, tokens_output=4)
    stand.call("POST", CHAT, json=STREAM)
    line = stand.line
    assert line["duration_ms"] >= 60
    assert line["backend_ms"] >= 60
    assert stand.metric("backend_request_duration_seconds_sum", backend="first") >= 0.06


@pytest.mark.parametrize(
    ("behaviour", "model", "error"),
    [
        ({"error_status": 429}, "gpt-4o", "status_429"),
        ({"error_status": 503}, "gpt-4o", "status_5xx"),
        ({"error_status": 422}, "gpt-4o", "status_4xx"),
        ({"error_status": 403}, "gpt-4o", "credential"),
        ({"failure": "reset"}, "gpt-4o", "transport"),
        ({"failure": "garbage"}, "gpt-4o", "transport"),
        ({"failure": "black_hole"}, "impatient", "timeout"),
        ({}, "dead", "connect"),
        ({}, "no-credential", "credential"),
    ],
)
def test_why_an_attempt_failed(
    stand: RouterStand, behaviour: dict[str, Any], model: str, error: str
) -> None:
    """M5: in a closed set."""
    stand.backends.first.set(**behaviour)
    assert stand.chat(model).status >= 400
    backend = stand.line["backend"]
    assert stand.metric("backend_requests_total", backend=backend, error=error) == 1.0


def test_labels_do_not_grow_with_what_clients_send(stand: RouterStand) -> None:
    """M5: random paths, methods and keys add no series."""
    stand.call("GET", "/nothing", key=None)
    stand.call("PUT", "/v1/models")
    stand.call("GET", "/v1/models", headers={"X-API-Key": "junk"})
    before = list(stand.registry.collect())
    for number in range(20):
        stand.call("GET", f"/random/{number}", key=None)
        stand.call(f"M{number}", "/v1/models")
        stand.call("GET", "/v1/models", headers={"X-API-Key": f"junk{number}"})
    after = list(stand.registry.collect())
    assert sum(len(family.samples) for family in after) == sum(
        len(family.samples) for family in before
    )


# --- usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("call", ["chat", "inference"])
def test_usage_that_nobody_reported_is_estimated(
    stand: RouterStand, call: str, stream: bool
) -> None:
    """U8: and says so; never a silent zero."""
    stand.backends.first.set(failure="no_usage")
    getattr(stand, call)("gpt-4o", "x" * 40, stream=stream)
    line = stand.line
    assert line["usage_source"] == "estimated"
    # Four characters a token: 40 in, "You said: " and 40 out.
    assert (line["tokens_input"], line["tokens_output"]) == (10, 13)
    assert line["cost_nanos"] == 10 * 2_500 + 13 * 10_000
    assert stand.metric("tokens_total", direction="input", source="estimated") == 10.0


def test_an_error_is_not_charged(stand: RouterStand) -> None:
    """U10: what the backend says of its failure is no output."""
    stand.backends.first.set(error_status=500)
    stand.chat()
    assert "cost_nanos" not in stand.line
    assert stand.metric("cost_nanousd_total") == 0.0


def test_without_a_price_there_is_no_cost(stand: RouterStand) -> None:
    """Unknown is not nothing."""
    reply = stand.inference("unpriced")
    assert reply.json["usage"]["cost_usd"] is None
    assert stand.line["cost_nanos"] is None
