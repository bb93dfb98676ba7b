"""What a call is charged that ends otherwise than well: the policy for abandoned work, calls that
were sent to more than one backend, budgets that are used up or come while it runs.

All endings, with all ways to report usage, are in `test_exact_usage.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.call import Usage
from router.config.document import Budget, Prices
from router.pricing.token_counter import TokenCounter
from router.providers.openai_api import CompletionStream, OpenAIProvider
from tests.fakes.backend.scripts import event_stream, reply
from tests.fakes.backend.usage_reports import REPORTERS, Report, as_it_is
from tests.fakes.endings import GUESSED_INPUT, Backend
from tests.fakes.exact_money import CHAT, PROMPT, USD, Asked
from tests.fakes.limited import budget
from tests.fakes.priced_stand import PricedStand
from tests.fakes.router_stand import RouterStand, World

INPUT_NANOS, OUTPUT_NANOS = 2_500, 10_000
"""Of a token."""
PRICES = Prices(INPUT_NANOS * 10**6, OUTPUT_NANOS * 10**6)
REPORTED_INPUT, REPORTED_OUTPUT = 10, 20
HANGS = Backend(b"", "hangs")


def reported(output: int = REPORTED_OUTPUT) -> Report:
    """A backend that counts input and output, and nothing else."""
    [plain] = [each for each in REPORTERS if each.name == "openai, nulls"]
    return plain.report({"input": REPORTED_INPUT, "output": output}, as_it_is)


def streamed(report: Report) -> Backend:
    return Backend(event_stream(*report.events))


def whole(report: Report) -> bytes:
    return reply(json.dumps(report.whole).encode(), headers=("Content-Type: application/json",))


def two_backends(world: World) -> PricedStand:
    """A model that the backend ``plain`` serves first, and ``second`` after it."""
    priced = PricedStand(world, prices=PRICES)
    priced.move_backend("closed", to="plain")
    return priced


def test_what_never_reached_a_backend_is_free(world: World) -> None:
    """U9: nobody listens there."""
    priced = PricedStand(world)
    priced.stand.chat("dead", PROMPT)
    record = priced.stand.record
    assert (record["outcome"], record["cost_nanos"]) == ("upstream_error", None)
    assert priced.booked() == (0, 0, 0)


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
    priced, asked = PricedStand(world, prices=PRICES, abandoned=policy), Asked(CHAT, stream)
    priced.call("plain", asked, HANGS, "before")
    record = priced.stand.record
    if cost is not None and policy == "reserved":
        # A byte a token, and 1024 that a provider may add.
        cost += (len(json.dumps(asked.body("plain"))) + 1_024) * INPUT_NANOS
    assert record["usage_source"] == source
    assert record["tokens_input"] + record["tokens_output"] == tokens
    assert record["cost_nanos"] == cost
    assert priced.booked() == (record["cost_nanos"] or 0, tokens, 1)


@pytest.mark.parametrize("ending", ["abandoned", "unreported", "broken off"])
def test_a_vocabulary_counts_prompts_that_nobody_has_reported(world: World, ending: str) -> None:
    """Wherever an input is estimated; a letter is a token here."""
    stand = world.stand(token_counter=TokenCounter(lambda text: [0] * len(text)))
    backend = stand.backends.plain
    if ending == "abandoned":
        backend.set(failure="reset")
    elif ending == "unreported":
        backend.will_answer(b'{"choices":[{"index":0,"message":{"content":"The sea"}}]}')
    else:
        backend.will_stream(
            b'data: {"choices":[{"index":0,"delta":{"content":"T"}}]}\n\n', whole=False
        )
    messages = [{"role": "user", "content": "Tell me of the sea"}]
    stand.call(
        "POST", CHAT, json={"model": "plain", "messages": messages, "stream": ending[0] == "b"}
    )
    assert (stand.record["usage_source"], stand.record["tokens_input"]) == ("estimated", 18)


def refusal(status: int) -> Backend:
    return Backend(reply(b'{"error":{"message":"no"},"usage":{"prompt_tokens":7}}', status))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("status", [401, 403, 429, 502, 503, 504, 529])
def test_a_backend_that_refuses_costs_nothing_and_another_serves(
    world: World, status: int, stream: bool
) -> None:
    """U9: only the attempt that is the last one is charged, for each before it was refused by an
    answer of its backend."""
    priced = two_backends(world)
    priced.will(refusal(status))
    priced.stand.backends.second.set(raw=streamed(reported()).raw if stream else whole(reported()))
    assert priced.stand.chat("failover", PROMPT, stream=stream).status == 200
    record = priced.stand.record
    assert [each["billed"] for each in record["attempts"]] == [False, True]
    assert [each["status"] for each in record["attempts"]] == [status, 200]
    cost = REPORTED_INPUT * INPUT_NANOS + REPORTED_OUTPUT * OUTPUT_NANOS
    assert record["cost_nanos"] == cost
    assert priced.booked() == (cost, REPORTED_INPUT + REPORTED_OUTPUT, 1)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("backend", "is_charged"),
    [
        (Backend(b"", "ends"), True),
        (Backend(b"", "resets"), True),
        (HANGS, True),
        (Backend(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "ends"), True),
        (refusal(400), False),
        (refusal(500), False),
    ],
    ids=["closes", "resets", "silent", "cut", "400", "500"],
)
def test_no_other_backend_is_asked_where_one_may_have_worked(
    world: World, backend: Backend, is_charged: bool, stream: bool
) -> None:
    """U9: so no call is charged twice, and no work that was dispatched is free."""
    priced = two_backends(world)
    priced.call("failover", Asked(CHAT, stream), backend)
    assert priced.stand.backends.second.requests == []
    record = priced.stand.record
    assert [each["billed"] for each in record["attempts"]] == [is_charged]
    assert (record["cost_nanos"] or 0) == is_charged * GUESSED_INPUT * INPUT_NANOS
    assert priced.booked()[0] == is_charged * GUESSED_INPUT * INPUT_NANOS


@pytest.mark.parametrize("first", ["nobody listens", "busy"])
def test_the_last_backend_that_was_asked_is_abandoned(world: World, first: str) -> None:
    """U9: a call that another had refused is charged like any other."""
    priced = PricedStand(world, prices=PRICES) if first == "nobody listens" else two_backends(world)
    priced.will(refusal(429))
    priced.stand.backends.second.set(raw=b"", raw_ends="ends")
    priced.stand.call("POST", CHAT, promised=False, json=Asked(CHAT, False).body("failover"))
    record = priced.stand.record
    assert [each["billed"] for each in record["attempts"]] == [False, True]
    assert record["cost_nanos"] == GUESSED_INPUT * INPUT_NANOS
    assert priced.booked() == (GUESSED_INPUT * INPUT_NANOS, GUESSED_INPUT, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_leaving_again_and_again_uses_up_the_budget(world: World, stream: bool) -> None:
    """B5: calls that hang up while the backend works used to be free when they were not streamed;
    now each moves the budget by its input, and then the budget refuses."""
    each = GUESSED_INPUT * INPUT_NANOS
    spend = (budget(limit=3 * each),)
    priced = PricedStand(world, prices=PRICES, budgets=spend, reservation="floor")
    for count in range(1, 4):
        priced.call("plain", Asked(CHAT, stream), HANGS, "before")
        assert priced.booked() == (count * each,)
    assert priced.stand.chat("plain", PROMPT).status == 402


def test_a_model_without_a_price_costs_the_floor_in_both_places(world: World) -> None:
    """B5: the record used to say that it cost nothing, the budget had the floor."""
    priced = PricedStand(world)
    priced.stand.chat("unpriced")
    assert priced.stand.record["cost_nanos"] == 1_000
    assert priced.booked() == (1_000, 2 + 4, 1)


def test_usage_behind_the_end_of_a_stream_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5: the record is written by then, and the ledger used to book the later figure."""
    priced = PricedStand(world, prices=PRICES)
    spool = priced.stand.spool
    opened: list[CompletionStream] = []
    open_stream = OpenAIProvider.open_stream

    def remember(provider: OpenAIProvider, call: Any) -> CompletionStream:
        opened.append(open_stream(provider, call))
        return opened[-1]

    monkeypatch.setattr(OpenAIProvider, "open_stream", remember)
    append = spool.append

    def report_late(frames: Any) -> None:
        append(frames)
        for each in opened:
            each.usage = Usage(9_000, 9_000)

    monkeypatch.setattr(spool, "append", report_late)
    priced.call("plain", Asked(CHAT, stream=True), streamed(reported()))
    cost = REPORTED_INPUT * INPUT_NANOS + REPORTED_OUTPUT * OUTPUT_NANOS
    assert priced.stand.record["cost_nanos"] == cost
    assert priced.booked() == (cost, REPORTED_INPUT + REPORTED_OUTPUT, 1)


@pytest.mark.parametrize("is_over", [False, True])
def test_what_was_reserved_is_in_the_record(world: World, is_over: bool) -> None:
    """B5: and whether it was enough."""
    priced = PricedStand(world, prices=PRICES)
    report = reported(50_000 if is_over else REPORTED_OUTPUT)
    priced.call("plain", Asked(CHAT, stream=True), streamed(report))
    record, event = priced.stand.record, priced.stand.event
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
    first: tuple[Budget, ...] = (budget("requests", 100),) if had_budgets else ()
    priced = PricedStand(world, prices=PRICES, budgets=first)
    priced.will(streamed(reported()))
    body = Asked(CHAT, stream=True).body("plain")
    opened = priced.stand.open("POST", CHAT, json=body)
    priced.change((*first, budget(limit=USD)))
    if is_rebuilt:
        priced.stand.call("GET", "/v1/limits")
    opened.read()
    for _ in range(2):
        found = priced.stand.call("GET", "/v1/limits").json["budgets"][-1]
        cost = REPORTED_INPUT * INPUT_NANOS + REPORTED_OUTPUT * OUTPUT_NANOS
        assert (round(found["settled"] * USD), found["reserved"]) == (cost, 0)
