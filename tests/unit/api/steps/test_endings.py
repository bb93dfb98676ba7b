"""Every ending of a call, by the table in `docs/records.md`: record and budgets have one charge."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from router.call import Usage
from router.config.document import Budget, Document, Timeouts
from router.providers.openai_api import CompletionStream, OpenAIProvider
from tests.fakes.backend.scripts import chunk, chunked, reply
from tests.fakes.limited import Fixed, budget
from tests.fakes.router_stand import RouterStand, World, chat_body, native_body

USD = 10**9
CHAT, NATIVE = "/v1/chat/completions", "/v1/inference"
PROMPT, SAID = "x" * 400, "y" * 8
# Four bytes a token, by docs/records.md.
GUESSED_INPUT, GUESSED_OUTPUT = 100, 2
REPORTED_INPUT, REPORTED_OUTPUT = 10, 20
# Prices of the stand's document: 2.50 and 10.00 USD for a million tokens.
INPUT_NANOS, OUTPUT_NANOS = 2_500, 10_000
JSON = ("Content-Type: application/json",)
EVENTS = ("Content-Type: text/event-stream",)
STREAM_HEAD = reply(headers=(*EVENTS, "Transfer-Encoding: chunked"), body=b"", length=False)
SERVED = {"completed", "client_aborted", "upstream_aborted", "timeout"}

ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "no", "code": None}}


def sse(data: Any, kind: str = "") -> bytes:
    name = f"event: {kind}\n".encode() if kind else b""
    return name + b"data: " + json.dumps(data).encode() + b"\n\n"


class OpenAI:
    """What the API of OpenAI says, in bytes."""

    model = "plain"
    guessed_start = GUESSED_INPUT

    @staticmethod
    def usage(given: int, made: int) -> dict[str, Any]:
        return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}

    def whole(self, usage: dict[str, Any] | None) -> bytes:
        message = {"role": "assistant", "content": SAID}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
        if usage is not None:
            body["usage"] = usage
        return reply(json.dumps(body).encode(), headers=JSON)

    def begin(self) -> bytes:
        return sse(self._chunk({"content": SAID}))

    def end(self, usage: dict[str, Any] | None) -> bytes:
        ending = sse(self._chunk({}, "stop"))
        if usage is not None:
            ending += sse({**self._chunk({}), "choices": [], "usage": usage})
        return ending + b"data: [DONE]\n\n"

    @staticmethod
    def error_event() -> bytes:
        return sse({"error": ERROR["error"]})

    @staticmethod
    def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
                "choices": [choice]}  # fmt: skip

    def will(self, stand: RouterStand, raw: bytes, *, ends: bool) -> None:
        stand.backends.plain.set(raw=raw, raw_ends=ends)

    def error_status(self, stand: RouterStand, status: int) -> None:
        self.will(stand, reply(json.dumps(ERROR).encode(), status, headers=JSON), ends=False)


class Anthropic(OpenAI):
    """What the API of Anthropic says, in bytes."""

    model = "claude"
    guessed_start = REPORTED_INPUT
    """The backend tells the input at the start of a stream."""

    @staticmethod
    def usage(given: int, made: int) -> dict[str, Any]:
        return {"input_tokens": given, "output_tokens": made}

    def whole(self, usage: dict[str, Any] | None) -> bytes:
        body = {"id": "1", "type": "message", "role": "assistant", "model": "m",
                "content": [{"type": "text", "text": SAID}], "stop_reason": "end_turn"}  # fmt: skip
        if usage is not None:
            body["usage"] = usage
        return reply(json.dumps(body).encode(), headers=JSON)

    def begin(self) -> bytes:
        message = {"id": "1", "model": "m", "usage": self.usage(REPORTED_INPUT, 1)}
        block = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": SAID}
        return b"".join([
            sse({"type": "message_start", "message": message}, "message_start"),
            sse({"type": "content_block_start", "index": 0, "content_block": block}),
            sse({"type": "content_block_delta", "index": 0, "delta": delta}),
        ])  # fmt: skip

    def end(self, usage: dict[str, Any] | None) -> bytes:
        delta: dict[str, Any] = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
        if usage is not None:
            delta["usage"] = usage
        return sse(delta) + sse({"type": "message_stop"})

    @staticmethod
    def error_event() -> bytes:
        return sse(ERROR, "error")

    def will(self, stand: RouterStand, raw: bytes, *, ends: bool) -> None:
        stand.backends.anthropic.raw, stand.backends.anthropic.raw_ends = raw, ends


@dataclass(frozen=True)
class Case:
    """One ending."""

    stand: RouterStand
    api: OpenAI
    path: str
    stream: bool

    @property
    def body(self) -> dict[str, Any]:
        made = chat_body if self.path == CHAT else native_body
        return made(self.api.model, PROMPT, stream=self.stream)

    def call(self) -> None:
        self.stand.call("POST", self.path, json=self.body, promised=False)

    def answer(self, usage: dict[str, Any] | None) -> None:
        events = self.api.begin(), self.api.end(usage)
        whole = chunked(*events, headers=EVENTS) if self.stream else self.api.whole(usage)
        self.api.will(self.stand, whole, ends=False)
        self.call()

    def say(self, raw: bytes, *, ends: bool = True) -> None:
        self.api.will(self.stand, raw, ends=ends)
        self.call()

    def leave_before_the_first_byte(self) -> None:
        self.api.will(self.stand, b"", ends=False)
        ours, theirs = socket.socketpair()
        theirs.close()
        with ours:
            opened = self.stand.open("POST", self.path, json=self.body, **{"gunicorn.socket": ours})
            opened.close()

    def leave_after(self, chunks: int) -> None:
        whole = chunked(self.api.begin(), headers=EVENTS).removesuffix(chunk(b""))
        self.api.will(self.stand, whole, ends=False)
        opened = self.stand.open("POST", self.path, json=self.body)
        for _ in range(chunks):
            next(opened)
        opened.close()


Charged = tuple[str, str, int, int]
"""Outcome, source of the usage, tokens of input and of output."""
NOTHING = ("none", 0, 0)
ABANDONED = ("estimated", GUESSED_INPUT, 0)


def _reported(case: Case) -> Charged:
    case.answer(case.api.usage(REPORTED_INPUT, REPORTED_OUTPUT))
    return "completed", "reported", REPORTED_INPUT, REPORTED_OUTPUT


def _over(case: Case) -> Charged:
    case.answer(case.api.usage(REPORTED_INPUT, 50_000))
    return "completed", "reported", REPORTED_INPUT, 50_000


def _without_usage(case: Case) -> Charged:
    case.answer(None)
    given = case.api.guessed_start if case.stream else GUESSED_INPUT
    return "completed", "estimated", given, GUESSED_OUTPUT


def _status(status: int) -> Callable[[Case], Charged]:
    def end(case: Case) -> Charged:
        case.api.error_status(case.stand, status)
        case.call()
        return "upstream_error", *NOTHING

    return end


def _error_at_200(case: Case) -> Charged:
    case.say(reply(json.dumps(ERROR).encode(), headers=JSON), ends=False)
    return "upstream_aborted", *NOTHING


def _nonsense(case: Case) -> Charged:
    case.say(reply(b"{", headers=JSON), ends=False)
    return "upstream_aborted", *ABANDONED


def _reset_before_head(case: Case) -> Charged:
    case.say(b"")
    return "upstream_error", *ABANDONED


def _cut_after_head(case: Case) -> Charged:
    if case.stream:
        case.say(STREAM_HEAD)
    else:
        whole = case.api.whole(None)
        case.say(whole[: whole.index(b"\r\n\r\n") + 6])
    return "upstream_aborted", *ABANDONED


def _silent_before_head(case: Case) -> Charged:
    case.say(b"", ends=False)
    return "timeout", *ABANDONED


def _silent_after_head(case: Case) -> Charged:
    head = reply(headers=(*JSON, "Content-Length: 9"), body=b"", length=False)
    case.say(STREAM_HEAD if case.stream else head, ends=False)
    return "timeout", *ABANDONED


def _gone_before_first_byte(case: Case) -> Charged:
    case.leave_before_the_first_byte()
    return "client_aborted", *ABANDONED


def _empty_stream(case: Case) -> Charged:
    case.say(chunked(headers=EVENTS), ends=False)
    return "upstream_aborted", *ABANDONED


def _error_event_first(case: Case) -> Charged:
    case.say(chunked(case.api.error_event(), headers=EVENTS), ends=False)
    return "upstream_aborted", *NOTHING


def _error_event_later(case: Case) -> Charged:
    case.say(chunked(case.api.begin(), case.api.error_event(), headers=EVENTS), ends=False)
    return "upstream_aborted", "estimated", case.api.guessed_start, GUESSED_OUTPUT


def _cut_midway(case: Case) -> Charged:
    case.say(STREAM_HEAD + chunk(case.api.begin()))
    return "upstream_aborted", "estimated", case.api.guessed_start, GUESSED_OUTPUT


def _silent_midway(case: Case) -> Charged:
    case.say(STREAM_HEAD + chunk(case.api.begin()), ends=False)
    return "timeout", "estimated", case.api.guessed_start, GUESSED_OUTPUT


def _gone_midway(case: Case) -> Charged:
    case.leave_after(1)
    return "client_aborted", "estimated", case.api.guessed_start, GUESSED_OUTPUT


def _gone_unread(case: Case) -> Charged:
    case.leave_after(0)
    return "client_aborted", *ABANDONED


BOTH: dict[str, Callable[[Case], Charged]] = {
    "completed": _reported,
    "more than reserved": _over,
    "usage absent": _without_usage,
    "422": _status(422),
    "429": _status(429),
    "500": _status(500),
    "529": _status(529),
    "200 with error": _error_at_200,
    "200 with nonsense": _nonsense,
    "reset before the head": _reset_before_head,
    "cut after the head": _cut_after_head,
    "silent before the head": _silent_before_head,
    "silent after the head": _silent_after_head,
    "client gone before the first byte": _gone_before_first_byte,
}
STREAMED: dict[str, Callable[[Case], Charged]] = {
    "empty stream": _empty_stream,
    "error event first": _error_event_first,
    "error event later": _error_event_later,
    "cut midway": _cut_midway,
    "silent midway": _silent_midway,
    "client gone midway": _gone_midway,
    "client gone, nothing read": _gone_unread,
}


def quick_stand(world: World, **settings: Any) -> RouterStand:
    """Budgets in all units, and backends that are not waited for long."""
    document = world.services.state.document()
    budgets = (budget(limit=100 * USD), budget("tokens", 10**7), budget("requests", 100))
    acme = replace(document.organizations["acme"], budgets=budgets)
    hurry = Timeouts(first_byte_s=0.4, idle_s=0.4)
    quick = {
        name: replace(backend, timeouts=hurry) if name in ("plain", "anthropic") else backend
        for name, backend in document.backends.items()
    }
    organizations = {**document.organizations, "acme": acme}
    changed = replace(document, organizations=organizations, backends=quick)
    parts: dict[str, Any] = {"state": Fixed(changed)}
    if settings:
        parts["settings"] = replace(world.settings, **settings)
    return world.stand(**parts)


def booked(stand: RouterStand) -> tuple[int, int, int]:
    """What the ledger has: nano-USD, tokens, calls; nothing is reserved."""
    found = {entry["name"]: entry for entry in stand.call("GET", "/v1/limits").json["budgets"]}
    assert [entry["reserved"] for entry in found.values()] == [0, 0, 0]
    settled = [found[f"{unit}-daily"]["settled"] for unit in ("usd", "tokens", "requests")]
    return round(settled[0] * USD), settled[1], settled[2]


def assert_charged(stand: RouterStand, charged: Charged) -> None:
    """The record and the ledger say so, and so does the line of the log."""
    outcome, source, given, made = charged
    record, line = stand.record, stand.lines[0]
    cost = None if source == "none" else given * INPUT_NANOS + made * OUTPUT_NANOS
    assert (record["outcome"], record["usage_source"]) == (outcome, source)
    assert (record["tokens_input"], record["tokens_output"]) == (given, made)
    assert record["cost_nanos"] == line.get("cost_nanos") == cost
    assert record["attempts"][-1]["billed"] is (source != "none")
    assert booked(stand) == (cost or 0, given + made, int(outcome in SERVED))
    assert stand.metric("cost_nanousd_total") == (cost or 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", [CHAT, NATIVE])
@pytest.mark.parametrize("api", [OpenAI(), Anthropic()], ids=["openai", "anthropic"])
@pytest.mark.parametrize("ending", BOTH)
def test_the_charge_of_an_ending(
    world: World, api: OpenAI, path: str, stream: bool, ending: str
) -> None:
    """U9, B5: what was dispatched is charged, unless the backend says that it did nothing."""
    stand = quick_stand(world)
    assert_charged(stand, BOTH[ending](Case(stand, api, path, stream)))


@pytest.mark.parametrize("path", [CHAT, NATIVE])
@pytest.mark.parametrize("api", [OpenAI(), Anthropic()], ids=["openai", "anthropic"])
@pytest.mark.parametrize("ending", STREAMED)
def test_the_charge_of_a_stream(world: World, api: OpenAI, path: str, ending: str) -> None:
    """U9, B5: a stream that ended before any data had no cost in its record, and one in the
    budget."""
    stand = quick_stand(world)
    assert_charged(stand, STREAMED[ending](Case(stand, api, path, True)))


def test_what_never_reached_a_backend_is_free(world: World) -> None:
    """U9: nobody listens there."""
    stand = quick_stand(world)
    stand.chat("dead", PROMPT)
    assert (stand.record["outcome"], stand.record["cost_nanos"]) == ("upstream_error", None)
    assert booked(stand) == (0, 0, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("policy", "source", "tokens", "cost"),
    [
        # Of tokens the cap is reserved; in USD the most of the input and of the output.
        ("estimate", "estimated", 100, 100 * INPUT_NANOS),
        ("reserved", "estimated", 4_096, 4_096 * OUTPUT_NANOS),
        ("free", "none", 0, None),
    ],
)
def test_the_policy_for_abandoned_work(
    world: World, stream: bool, policy: str, source: str, tokens: int, cost: int | None
) -> None:
    """`ROUTER_ABANDONED`: what a call costs whose client left before anything had come."""
    stand = quick_stand(world, abandoned=policy)
    case = Case(stand, OpenAI(), CHAT, stream)
    case.leave_before_the_first_byte()
    record = stand.record
    if cost is not None and policy == "reserved":
        # A byte a token, and 1024 that a provider may add.
        cost += (len(json.dumps(case.body)) + 1_024) * INPUT_NANOS
    assert record["usage_source"] == source
    assert record["tokens_input"] + record["tokens_output"] == tokens
    assert record["cost_nanos"] == cost
    assert booked(stand) == (record["cost_nanos"] or 0, tokens, 1)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_leaving_again_and_again_uses_up_the_budget(world: World, stream: bool) -> None:
    """B5: calls that hang up while the backend works used to be free when they were not streamed;
    now each moves the budget by its input, and then the budget refuses."""
    document = world.services.state.document()
    each = GUESSED_INPUT * INPUT_NANOS
    acme = replace(document.organizations["acme"], budgets=(budget(limit=3 * each),))
    organizations = {**document.organizations, "acme": acme}
    small = {"settings": replace(world.settings, reservation="floor")}
    stand = world.stand(state=Fixed(replace(document, organizations=organizations)), **small)
    case = Case(stand, OpenAI(), CHAT, stream)
    for count in range(1, 4):
        case.leave_before_the_first_byte()
        [found] = stand.call("GET", "/v1/limits").json["budgets"]
        assert round(found["settled"] * USD) == count * each
    assert stand.chat("plain", PROMPT).status == 402


def test_a_model_without_a_price_costs_the_floor_in_both_places(world: World) -> None:
    """B5: the record used to say that it cost nothing, the budget had the floor."""
    stand = quick_stand(world)
    stand.chat("unpriced")
    assert stand.record["cost_nanos"] == 1_000
    assert booked(stand) == (1_000, 2 + 4, 1)


def test_usage_behind_the_end_of_a_stream_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5: the record is written by then, and the ledger used to book the later figure."""
    stand = quick_stand(world)
    api = OpenAI()
    opened: list[CompletionStream] = []
    open_stream = OpenAIProvider.open_stream

    def remember(provider: OpenAIProvider, call: Any) -> CompletionStream:
        opened.append(open_stream(provider, call))
        return opened[-1]

    monkeypatch.setattr(OpenAIProvider, "open_stream", remember)
    append = stand.spool.append

    def report_late(frames: Any) -> None:
        append(frames)
        for each in opened:
            each.usage = Usage(9_000, 9_000)

    monkeypatch.setattr(stand.spool, "append", report_late)
    Case(stand, api, CHAT, True).answer(api.usage(REPORTED_INPUT, REPORTED_OUTPUT))
    assert_charged(stand, ("completed", "reported", REPORTED_INPUT, REPORTED_OUTPUT))


@pytest.mark.parametrize("is_over", [False, True])
def test_what_was_reserved_is_in_the_record(world: World, is_over: bool) -> None:
    """B5: and whether it was enough."""
    stand = quick_stand(world)
    api = OpenAI()
    output = 50_000 if is_over else REPORTED_OUTPUT
    Case(stand, api, CHAT, False).answer(api.usage(REPORTED_INPUT, output))
    record, event = stand.record, stand.event
    assert record["reserved_tokens"] >= 4_096
    assert record["reserved_nanos"] >= 4_096 * OUTPUT_NANOS
    assert record["over_reservation"] is is_over
    assert event["context"].get("over_reservation", False) is is_over


def test_without_budgets_nothing_is_reserved(stand: RouterStand) -> None:
    """Unknown is not nothing."""
    stand.chat()
    assert (stand.record["reserved_nanos"], stand.record["over_reservation"]) == (None, False)


@pytest.mark.parametrize("had_budgets", [False, True])
@pytest.mark.parametrize("is_rebuilt", [False, True], ids=["after it", "while it runs"])
def test_a_budget_that_is_added_while_a_call_runs(
    world: World, had_budgets: bool, is_rebuilt: bool
) -> None:
    """B5: the call is charged there when it ends; only budgets of its beginning used to be."""
    document = world.services.state.document()

    def with_budgets(*budgets: Budget) -> Document:
        acme = replace(document.organizations["acme"], budgets=budgets)
        return replace(document, organizations={**document.organizations, "acme": acme})

    first = (budget("requests", 100),) if had_budgets else ()
    state = Fixed(with_budgets(*first))
    stand = world.stand(state=state)
    api = OpenAI()
    ending = api.end(api.usage(REPORTED_INPUT, REPORTED_OUTPUT))
    api.will(stand, chunked(api.begin(), ending, headers=EVENTS), ends=False)
    opened = stand.open("POST", CHAT, json=Case(stand, api, CHAT, True).body)
    state.change(with_budgets(*first, budget(limit=USD)))
    if is_rebuilt:
        stand.call("GET", "/v1/limits")
    opened.read()
    for _ in range(2):
        found = stand.call("GET", "/v1/limits").json["budgets"][-1]
        cost = REPORTED_INPUT * INPUT_NANOS + REPORTED_OUTPUT * OUTPUT_NANOS
        assert (round(found["settled"] * USD), found["reserved"]) == (cost, 0)
