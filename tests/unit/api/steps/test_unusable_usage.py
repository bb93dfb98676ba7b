"""What becomes of a call whose backend reports usage that cannot be, or none at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.backend.scripts import chunk, chunked, reply
from tests.fakes.limited import budget, limited
from tests.fakes.router_stand import RouterStand, World, chat_body

CHAT = "/v1/chat/completions"
EVENTS = ("Content-Type: text/event-stream",)
PROMPT, SAID = "x" * 400, "y" * 40
# Four bytes a token, by docs/records.md.
GUESSED_INPUT, GUESSED_OUTPUT = 100, 10
INPUT_NANOS, OUTPUT_NANOS = 2_500, 10_000
"""Of a token, by the stand's document."""


def sse(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def events(delta: dict[str, Any]) -> bytes:
    frame = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return sse({**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def answer(stand: RouterStand, usage: Any, *, stream: bool) -> Any:
    """A good answer with this usage; what the client gets."""
    if stream:
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        parts = [events({"content": SAID}), sse({"choices": [end]})]
        whole = chunked(
            *parts, sse({"choices": [], "usage": usage}), b"data: [DONE]\n\n", headers=EVENTS
        )
    else:
        message = {"role": "assistant", "content": SAID}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        body["usage"] = usage
        whole = reply(json.dumps(body).encode(), headers=("Content-Type: application/json",))
    stand.backends.plain.set(raw=whole)
    body = chat_body("plain", PROMPT, stream=stream)
    return stand.call("POST", CHAT, json=body, promised=False)


def counts(tokens_input: Any, tokens_output: Any, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": tokens_input, "completion_tokens": tokens_output, **more}


def settled(stand: RouterStand) -> list[int]:
    found = stand.call("GET", "/v1/limits").json["budgets"]
    assert [entry["reserved"] for entry in found] == [0, 0]
    return [round(found[0]["settled"] * 10**9), found[1]["settled"]]


@pytest.fixture
def budgeted(world: World) -> RouterStand:
    """Budgets that have room for everything here."""
    return limited(world, budgets=(budget(limit=10**11), budget("tokens", 10**9)))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("usage", "source", "given", "made"),
    [
        # The output is not known, the input is.
        (counts(7, 0), "estimated", 7, GUESSED_OUTPUT),
        (counts(7, -3), "estimated", 7, GUESSED_OUTPUT),
        (counts(7, 2.5), "estimated", 7, GUESSED_OUTPUT),
        (counts(7, 10**12), "estimated", 7, GUESSED_OUTPUT),
        (counts(7, None), "estimated", 7, GUESSED_OUTPUT),
        # Nothing is known.
        (counts(0, 0, total_tokens=0), "estimated", GUESSED_INPUT, GUESSED_OUTPUT),
        (counts(-7, 3), "estimated", GUESSED_INPUT, GUESSED_OUTPUT),
        (counts("many", 3), "estimated", GUESSED_INPUT, GUESSED_OUTPUT),
        ({"total_tokens": 9}, "estimated", GUESSED_INPUT, GUESSED_OUTPUT),
        ({}, "estimated", GUESSED_INPUT, GUESSED_OUTPUT),
        ([], "estimated", GUESSED_INPUT, GUESSED_OUTPUT),
        # The rest says what one number does not.
        (counts(7, -3, total_tokens=10), "reported", 7, 3),
        (counts(None, 3, total_tokens=10), "reported", 7, 3),
        (counts(7, 3, total_tokens=-1), "reported", 7, 3),
        (counts(7, 3, prompt_tokens_details={"cached_tokens": -1}), "reported", 7, 3),
        (counts(7, 3, completion_tokens_details=[]), "reported", 7, 3),
    ],
)
def test_a_number_that_cannot_be_is_estimated(
    budgeted: RouterStand, stream: bool, usage: Any, source: str, given: int, made: int
) -> None:
    """U8: the client has its answer, and the call is neither free nor charged the absurd."""
    got = answer(budgeted, usage, stream=stream)
    assert got.status == 200
    assert SAID.encode() in got.body
    record, cost = budgeted.record, given * INPUT_NANOS + made * OUTPUT_NANOS
    assert (record["outcome"], record["usage_source"]) == ("completed", source)
    assert (record["tokens_input"], record["tokens_output"]) == (given, made)
    assert record["cost_nanos"] == cost
    assert settled(budgeted) == [cost, given + made]


@pytest.mark.parametrize(
    "delta",
    [
        {"content": SAID},
        {"content": "语" * 13 + "y"},
        {"reasoning": SAID},
        {"reasoning_content": SAID},
        {"refusal": SAID},
        {"function_call": {"arguments": SAID}},
        {"tool_calls": [{"index": 0, "function": {"arguments": SAID}}]},
        {"audio": {"transcript": SAID}},
    ],
)
def test_what_was_streamed_before_an_abort_is_charged(
    budgeted: RouterStand, delta: dict[str, Any]
) -> None:
    """U9: reasoning that was streamed used to count as one token."""
    whole = chunked(events(delta), events(delta), headers=EVENTS).removesuffix(chunk(b""))
    budgeted.backends.plain.set(raw=whole)
    opened = budgeted.open("POST", CHAT, json=chat_body("plain", PROMPT, stream=True))
    got = b""
    while got.count(b"\n\n") < 2:
        got += next(opened)
    opened.close()
    record = budgeted.record
    assert (record["outcome"], record["usage_source"]) == ("client_aborted", "estimated")
    assert (record["tokens_input"], record["tokens_output"]) == (GUESSED_INPUT, 2 * GUESSED_OUTPUT)
    cost = GUESSED_INPUT * INPUT_NANOS + 2 * GUESSED_OUTPUT * OUTPUT_NANOS
    assert settled(budgeted) == [cost, GUESSED_INPUT + 2 * GUESSED_OUTPUT]
