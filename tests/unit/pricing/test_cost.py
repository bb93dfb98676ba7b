"""What a call costs, to the nano-USD, and what is assumed where no usage was reported."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.call import NO_USAGE, Usage
from router.config.document import Prices
from router.config.schema.fields import MAX_USD_PER_MILLION_TOKENS
from router.config.schema.notation import NANOS_PER_USD, format_price
from router.pricing.cost import cost_nanos, estimate, text_chars

USD = NANOS_PER_USD
GPT_4O = Prices(input_nanos=2_500_000_000, output_nanos=10_000_000_000)
GPT_4O_CACHED = Prices(2_500_000_000, 10_000_000_000, cached_input_nanos=1_250_000_000)

MANY_TOKENS = st.integers(0, 10**9)
A_PRICE = st.integers(0, MAX_USD_PER_MILLION_TOKENS * USD)


def exact_nanos(usage: Usage, prices: Prices) -> Fraction:
    """The cost as the price list means it, with nothing rounded."""
    cached = min(usage.tokens_cached, usage.tokens_input)
    cached_price = prices.cached_input_nanos
    rated = [
        (usage.tokens_input - cached, prices.input_nanos),
        (cached, prices.input_nanos if cached_price is None else cached_price),
        (usage.tokens_output, prices.output_nanos),
    ]
    return sum((Fraction(tokens * price, 1_000_000) for tokens, price in rated), Fraction(0))


# --- cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "prices", "expected"),
    [
        pytest.param(Usage(1_000_000, 0), GPT_4O, 5 * USD // 2, id="a million in"),
        pytest.param(Usage(0, 1_000_000), GPT_4O, 10 * USD, id="a million out"),
        pytest.param(Usage(13, 9), GPT_4O, 13 * 2_500 + 9 * 10_000, id="a small call"),
        pytest.param(Usage(0, 0), GPT_4O, 0, id="nothing"),
        pytest.param(NO_USAGE, GPT_4O, 0, id="no usage"),
        pytest.param(Usage(100, 0, 40), GPT_4O_CACHED, 60 * 2_500 + 40 * 1_250, id="cached"),
        pytest.param(Usage(100, 0, 100), GPT_4O_CACHED, 100 * 1_250, id="all of it cached"),
        pytest.param(Usage(100, 0, 40), GPT_4O, 100 * 2_500, id="cached without a price for it"),
        pytest.param(Usage(100, 0, 40), Prices(1_000_000, 0, 0), 60, id="cached for nothing"),
        pytest.param(Usage(100, 7, 0), GPT_4O_CACHED, 320_000, id="nothing cached"),
        pytest.param(
            Usage(100, 0, 101), GPT_4O_CACHED, 100 * 1_250, id="more cached than there is"
        ),
        pytest.param(Usage(0, 0, 50), GPT_4O_CACHED, 0, id="cached of nothing"),
        pytest.param(Usage(10**9, 10**9, 10**9), Prices(0, 0, 0), 0, id="free"),
        pytest.param(Usage(5, 5), Prices(0, 1_000_000), 5, id="free input"),
        pytest.param(
            Usage(999_999_999, 0),
            Prices(10**14 - 1, 0),
            99_999_999_899_999_001,
            id="more than a float can tell apart",
        ),
    ],
)
def test_cost_of_a_call(usage: Usage, prices: Prices, expected: int) -> None:
    """B9: tokens by their prices per million, as a whole number of nano-USD."""
    cost = cost_nanos(usage, prices)
    assert (cost, type(cost)) == (expected, int)


@pytest.mark.parametrize("usage", [Usage(10, 10), Usage(0, 0), NO_USAGE])
def test_without_a_price_the_cost_is_unknown(usage: Usage) -> None:
    """B2: unknown is not zero; only a price of 0 makes a call free."""
    assert cost_nanos(usage, None) is None
    assert cost_nanos(usage, Prices(0, 0)) == 0


@pytest.mark.parametrize(
    ("usage", "prices", "expected"),
    [
        pytest.param(Usage(1, 0), Prices(1, 0), 1, id="a millionth counts as one"),
        pytest.param(Usage(1, 1), Prices(1, 1), 1, id="two parts of a nano are not two nanos"),
        pytest.param(Usage(2, 1, 1), Prices(1, 1, 1), 1, id="nor are three"),
        pytest.param(Usage(1, 1), Prices(500_000, 500_000), 1, id="two halves are a whole"),
        pytest.param(Usage(1, 1), Prices(500_000, 500_001), 2, id="a millionth above it"),
        pytest.param(Usage(999_999, 0), Prices(1, 0), 1, id="just below"),
        pytest.param(Usage(1_000_001, 0), Prices(1, 0), 2, id="just above"),
    ],
)
def test_rounding_is_up_and_once(usage: Usage, prices: Prices, expected: int) -> None:
    """B9: the sum is rounded, not its parts, so no call pays more than one nano-USD too much."""
    assert cost_nanos(usage, prices) == expected


@given(
    tokens=st.tuples(MANY_TOKENS, MANY_TOKENS, MANY_TOKENS),
    prices=st.builds(Prices, A_PRICE, A_PRICE, st.none() | A_PRICE),
)
def test_cost_is_the_exact_sum_rounded_up(tokens: tuple[int, int, int], prices: Prices) -> None:
    """B9: for any usage and any price that a document may hold, as rational numbers say it."""
    usage = Usage(*tokens)
    assert cost_nanos(usage, prices) == math.ceil(exact_nanos(usage, prices))


def test_a_million_of_the_smallest_unit_add_up_exactly() -> None:
    """B9: a million calls of one nano-USD are a thousandth of a dollar, not about that."""
    usage, prices = Usage(1, 0), Prices(1_000_000, 0)
    costs = itertools.starmap(cost_nanos, itertools.repeat((usage, prices), 1_000_000))
    total = sum(cost or 0 for cost in costs)
    assert total == 1_000_000
    assert format_price(total) == "0.001"


# --- estimates ------------------------------------------------------------------------------


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "not counted", "messages": list(messages), **more}


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "unit": {"enum": ["C", "F"]},
                "days": {"type": "array", "items": {"description": "Which"}},
                "place": {"properties": {"zip": {"description": "Code"}}},
            },
            "required": ["not counted"],
        },
    },
}
TOOL_TEXTS = [
    *("weather", "Tells it", "city", "Where", "unit", "C", "F", "days", "Which"),
    *("place", "zip", "Code"),
]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(chat({"role": "user", "content": "12345"}), 5, id="a message"),
        pytest.param(
            chat({"role": "system", "content": "1234"}, {"role": "user", "content": "12"}),
            6,
            id="two messages",
        ),
        pytest.param(
            chat({"role": "user", "content": [{"type": "text", "text": "123"}] * 2}),
            6,
            id="parts of a content",
        ),
        pytest.param(
            chat({"content": [{"type": "wrapped", "content": [{"text": "1"}, {"text": "23"}]}]}),
            3,
            id="parts in parts",
        ),
        pytest.param(
            chat({"content": [{"type": "image_url", "image_url": {"url": "x" * 1000}}]}),
            0,
            id="a picture is no text",
        ),
        pytest.param(chat({"role": "user", "name": "Ann", "content": "1"}), 4, id="a name"),
        pytest.param(
            chat(
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "not counted",
                            "type": "function",
                            "function": {"name": "get", "arguments": '{"a":1}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "not counted", "content": "42"},
            ),
            3 + 7 + 2,
            id="a tool's call and its answer",
        ),
        pytest.param(
            chat({"content": "1"}, tools=[TOOL]),
            1 + sum(map(len, TOOL_TEXTS)),
            id="the description of a tool",
        ),
        pytest.param({"prompt": "1234567"}, 7, id="a prompt"),
        pytest.param({"prompt": ["12", "345"]}, 5, id="several prompts"),
        pytest.param({"prompt": [101, 102, 0]}, 3 * 4, id="token ids"),
        pytest.param({"prompt": [[101, 102], [103]]}, 3 * 4, id="several lists of token ids"),
        pytest.param({"input": ["12", "3"]}, 3, id="texts to embed"),
        pytest.param({"input": [[1, 2], [3, 4]]}, 4 * 4, id="tokens to embed"),
        pytest.param({"prompt": "häé→😀"}, 5, id="characters, not bytes"),
        pytest.param({"prompt": [True, None, 1.5]}, 0, id="neither text nor tokens"),
        pytest.param({"temperature": 1, "user": "somebody", "stop": ["x"]}, 0, id="parameters"),
        pytest.param({}, 0, id="nothing"),
        pytest.param({"messages": None, "prompt": 0}, 4, id="a lone number"),
    ],
)
def test_text_of_a_prompt(fields: dict[str, Any], expected: int) -> None:
    """Text counts wherever it stands; names of fields, ids, pictures and settings do not."""
    assert text_chars(fields) == expected


def test_deep_content_does_not_exhaust_the_stack() -> None:
    """The depth of a body is bounded elsewhere; here it costs no recursion at all."""
    content: Any = "1234"
    for _ in range(5_000):
        content = [{"content": content}]
    assert text_chars({"messages": content}) == 4


@pytest.mark.parametrize(
    ("chars", "tokens"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (4_000_001, 1_000_001)]
)
def test_four_characters_are_a_token(chars: int, tokens: int) -> None:
    """Whatever is begun counts, for the prompt and for the answer alike."""
    expected = Usage(tokens, tokens, 0, "estimated")
    assert estimate({"prompt": "x" * chars}, chars) == expected


@pytest.mark.parametrize("count", [1, 3, 100])
def test_a_prompt_of_token_ids_is_counted_exactly(count: int) -> None:
    """Each id is a token, however the estimate gets there."""
    assert estimate({"prompt": list(range(count))}, 0).tokens_input == count


def test_what_the_backend_said_at_the_start_is_kept() -> None:
    """Of a stream that broke off only the output is estimated; the input was reported."""
    at_start = Usage(1_000, 1, 250)
    assert estimate(chat({"content": "short"}), 41, at_start) == Usage(1_000, 11, 250, "estimated")


def test_a_reported_input_of_zero_is_believed() -> None:
    """Zero said is not the same as nothing said."""
    assert estimate({"prompt": "12345678"}, 0, Usage(0, 0)).tokens_input == 0


def test_an_estimate_says_that_it_is_one() -> None:
    """Usage records are exact or say that they are not."""
    assert estimate({}, 0).source == "estimated"
    assert estimate({}, 0, Usage(1, 1)).source == "estimated"
    assert Usage(1, 1).source == "reported"
