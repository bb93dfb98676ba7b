"""Usage is read in every spelling that speakers of the OpenAI dialect use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.call import Usage
from router.config.document import Prices
from router.pricing.cost import cost_nanos
from router.providers.openai_api import CompletionStream, OpenAIProvider
from router.providers.openai_usage import read_usage, usage_of
from tests.fakes.backend.usage_spellings import SPELLINGS, Spelling, put, respelled
from tests.unit.upstream.builders import new_call

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
CHUNK = {"index": 0, "delta": {}, "finish_reason": "stop"}
NUMBERS: dict[str, Callable[[int], Any]] = {"whole": int, "float": float, "text": str}


def usage(
    tokens_input: int, tokens_output: int, cached: int = 0, tier: str | None = None, **special: int
) -> Usage:
    return Usage(tokens_input, tokens_output, cached, special=special, service_tier=tier)


def spelled(tokens_input: int, tokens_output: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": tokens_input, "completion_tokens": tokens_output, **more}


def of_output(reasoning: Any) -> dict[str, Any]:
    return {"completion_tokens_details": {"reasoning_tokens": reasoning}}


def of_input(**details: Any) -> dict[str, Any]:
    return {"prompt_tokens_details": details}


@pytest.mark.parametrize(
    ("reported", "read"),
    [
        # Reasoning outside the completion, as Grok and Gemini have it; output 9 used to be read.
        (spelled(32, 9, total_tokens=135, **of_output(94)), usage(32, 103, output_reasoning=94)),
        (spelled(32, 9, total_tokens=135), usage(32, 103)),
        (spelled(32, 9, **of_output(94)), usage(32, 103, output_reasoning=94)),
        # Reasoning inside it, as OpenAI has it: nothing is counted twice.
        (spelled(32, 103, total_tokens=135, **of_output(94)), usage(32, 103, output_reasoning=94)),
        (spelled(32, 103, **of_output(94)), usage(32, 103, output_reasoning=94)),
        (spelled(32, 103, reasoning_tokens=94), usage(32, 103, output_reasoning=94)),
        # Some inside, and more that no field names.
        (spelled(32, 50, total_tokens=182, **of_output(40)), usage(32, 150, output_reasoning=40)),
        # The names of a cache hit; 0 used to be read.
        (spelled(1000, 1, prompt_cache_hit_tokens=900), usage(1000, 1, 900)),
        (spelled(1000, 1, cached_tokens=900), usage(1000, 1, 900)),
        (spelled(1000, 1, cache_read_input_tokens=900), usage(1000, 1, 900)),
        (spelled(1000, 1, cached_prompt_text_tokens=900), usage(1000, 1, 900)),
        (spelled(1000, 1, **of_input(cached_tokens=900)), usage(1000, 1, 900)),
        (
            spelled(1000, 1, **of_input(cached_tokens=0), prompt_cache_hit_tokens=900),
            usage(1000, 1, 900),
        ),
        # A cache beside the input.
        ({"input_tokens": 100, "cache_read_input_tokens": 900, "output_tokens": 1},
         usage(1000, 1, 900)),
        ({"input_tokens": 1000, "cache_read_input_tokens": 900, "output_tokens": 1,
          "total_tokens": 1001}, usage(1000, 1, 900)),
        (spelled(100, 1, total_tokens=1001, **of_input(cached_tokens=900)), usage(1000, 1, 900)),
        (spelled(100, 1, **of_input(cached_tokens=900)), usage(1000, 1, 900)),
        (
            spelled(100, 9, total_tokens=1103, **of_input(cached_tokens=900), **of_output(94)),
            usage(1000, 103, 900, output_reasoning=94),
        ),
        ({"output_tokens": 1, "cache_read_input_tokens": 900, "total_tokens": 1001},
         usage(1000, 1, 900)),
        # Writes, of five minutes where nothing else is said.
        (spelled(900, 1, cache_creation_input_tokens=800), usage(900, 1, cache_write_5m=800)),
        (
            spelled(900, 1, cache_creation={"ephemeral_1h_input_tokens": 500},
                    cache_creation_input_tokens=800),
            usage(900, 1, cache_write_1h=500, cache_write_5m=300),
        ),
        # Audio and images.
        (
            spelled(90, 1, **of_input(audio_tokens=30, image_tokens=20)),
            usage(90, 1, input_audio=30, input_image=20),
        ),
        # Searches and citations.
        (
            {"prompt_tokens": 33, "completion_tokens": 71, "total_tokens": 104,
             "citation_tokens": 200, "num_search_queries": 30, "reasoning_tokens": 739},
            usage(233, 810, output_reasoning=739, web_searches=30),
        ),
        (
            spelled(5, 7, server_tool_use={"web_search_requests": 2}),
            usage(5, 7, web_searches=2),
        ),
        # One sum, and the total.
        ({"prompt_tokens": 5, "total_tokens": 5}, usage(5, 0)),
        ({"prompt_tokens": 5, "total_tokens": 12}, usage(5, 7)),
        ({"completion_tokens": 7, "total_tokens": 12}, usage(5, 7)),
        (spelled("five", 7, total_tokens=12), usage(5, 7)),
        (spelled(5, -7, total_tokens=12), usage(5, 7)),
        (spelled(5, None), usage(5, 0)),
        # A total that is less than its parts is wrong itself.
        (spelled(5, 7, total_tokens=3), usage(5, 7)),
        (spelled(5, 7, total_tokens=-1), usage(5, 7)),
        # Numbers in other clothes.
        (spelled(5.0, 7.0, total_tokens=12.0), usage(5, 7)),
        (spelled("5", "7", total_tokens="12"), usage(5, 7)),
        (spelled(0, 0), usage(0, 0)),
        (spelled(1_000_000_000, 0), usage(1_000_000_000, 0)),
        # A detail that makes no sense is none; the sums stand.
        (spelled(9, 1, **of_input(cached_tokens=-4)), usage(9, 1)),
        (spelled(9, 1, **of_input(cached_tokens=2**70)), usage(9, 1)),
        (spelled(9, 1, **of_input(cached_tokens=[4])), usage(9, 1)),
        (spelled(9, 1, prompt_tokens_details=None), usage(9, 1)),
        (spelled(9, 1, prompt_tokens_details="many"), usage(9, 1)),
        (spelled(9, 3, total_tokens=12, **of_output(2.5)), usage(9, 3)),
        # No input, no usage.
        (spelled(1_000_000_001, 0), None),
        (spelled(2**64 - 1, 1), None),
        (spelled(-1, 7), None),
        (spelled(5.5, 7), None),
        (spelled("5 ", 7), None),
        (spelled("", 7), None),
        (spelled("٥", 7), None),
        (spelled(True, 7), None),
        (spelled(float(10**30), 7), None),
        ({"completion_tokens": 7}, None),
        ({"total_tokens": 7}, None),
        ({}, None),
        ([], None),
        ("much", None),
        (None, None),
    ],
)  # fmt: skip
def test_each_number_is_checked_against_the_others(reported: Any, read: Usage | None) -> None:
    """What is read is what was used; a number of no sense spoils none of the others (U8)."""
    assert read_usage(reported) == read


def test_the_cost_of_a_grok_call_is_what_its_provider_billed() -> None:
    """A reply as users of xAI published it, with its ``cost_in_usd_ticks`` of 10⁻¹⁰ USD."""
    reported = {
        "prompt_tokens": 10120,
        "completion_tokens": 1499,
        "total_tokens": 14428,
        "prompt_tokens_details": {"cached_tokens": 128},
        "completion_tokens_details": {"reasoning_tokens": 2809},
        "cost_in_usd_ticks": 232856000,
    }
    prices = Prices(1_250_000_000, 2_500_000_000, cached_input_nanos=200_000_000)
    read = read_usage(reported)
    assert read == usage(10120, 4308, 128, output_reasoning=2809)
    assert cost_nanos(read, prices) == reported["cost_in_usd_ticks"] // 10


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)
@pytest.mark.parametrize("number", NUMBERS)
@settings(max_examples=15)
@given(data=st.data())
def test_a_split_is_read_back_from_each_spelling(
    spelling: Spelling, number: str, data: st.DataObject
) -> None:
    """Buffered and streamed, with numbers of any kind, the classes are those that were written."""
    amounts = st.dictionaries(st.sampled_from(sorted(spelling.classes)), st.integers(0, 5000))
    split = {**data.draw(amounts), "input": data.draw(st.integers(1, 5000))}
    split["output"] = data.draw(st.integers(1, 5000))
    fields = respelled(spelling.fields(split), NUMBERS[number])
    true = {name: amount for name, amount in split.items() if amount}

    body = orjson.dumps(put({"choices": [CHOICE]}, fields))
    read = OpenAIProvider().read_reply(new_call(), body)
    assert read.body == body
    assert read.usage is not None
    assert read.usage.classes() == true

    stream = CompletionStream(strip_usage=True)
    text = {"choices": [{"index": 0, "delta": {"content": "hi"}}]}
    last = put({"choices": [CHUNK]}, fields)
    for chunk in (text, last):
        event = b"data: " + orjson.dumps(chunk) + b"\n\n"
        assert stream.feed(event) == event
    stream.feed(b"data: [DONE]\n\n")
    assert stream.usage == read.usage


COUNTS = st.none() | st.integers(-5, 2**40) | st.floats(-1, 50) | st.text(max_size=3) | st.just([])
FIELDS = (
    "prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens",
    "cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens", "reasoning_tokens",
    "cache_creation_input_tokens", "citation_tokens", "audio_tokens", "num_search_queries",
    "ephemeral_1h_input_tokens",
)  # fmt: skip
FLAT = st.dictionaries(st.sampled_from(FIELDS), COUNTS)
GROUPS = st.dictionaries(
    st.sampled_from(
        ["prompt_tokens_details", "completion_tokens_details", "cache_creation", "cacheDetails"]
    ),
    FLAT | st.lists(FLAT, max_size=2) | st.none(),
)


@given(FLAT, GROUPS)
@example({"input_tokens": 1, "output_tokens": 1, "cached_tokens": 2**40}, {})
def test_the_classes_always_sum_to_the_totals(flat: dict[str, Any], groups: dict[str, Any]) -> None:
    """Whatever is reported is usage whose classes add up, or none; nothing is raised."""
    read = read_usage({**flat, **groups})
    if read is None:
        return
    classes = read.classes()
    assert all(amount > 0 for amount in classes.values())
    of_output = sum(amount for name, amount in classes.items() if name.startswith("output"))
    assert of_output == read.tokens_output <= 10**9
    assert sum(classes.values()) - of_output - classes.get("web_searches", 0) == read.tokens_input
    assert read.tokens_input <= 10**9


DETAILS = st.none() | st.dictionaries(
    st.sampled_from(
        ["cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "text_tokens",
         "reasoning_tokens", "accepted_prediction_tokens"]
    ),
    st.none() | st.integers(-3, 60) | st.floats(0, 9),
)  # fmt: skip


@given(st.integers(0, 50), st.integers(0, 50), DETAILS, DETAILS)
@example(1, 1, {"audio_tokens": 1, "cache_write_tokens": 1}, None)
@example(1, 1, None, {"audio_tokens": 1, "reasoning_tokens": 1})
def test_a_field_that_says_nothing_changes_nothing(
    tokens_input: int, tokens_output: int, of_input: Any, of_output: Any
) -> None:
    """The usual shape is read by a way of its own, and to the same end."""
    reported = spelled(
        tokens_input,
        tokens_output,
        total_tokens=tokens_input + tokens_output,
        prompt_tokens_details=of_input,
        completion_tokens_details=of_output,
    )
    usual, other = read_usage(reported), read_usage({**reported, "something_new": 1})
    assert usual is not None
    assert other is not None
    assert usual.classes() == other.classes()
    assert replace(usual, special={}) == replace(other, special={})


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ({"usage": {"prompt_tokens": 8, "total_tokens": 8}}, usage(8, 0)),
        ({"usage": {"total_tokens": 8}}, usage(8, 0)),
        ({"usage": {"prompt_tokens": 0, "total_tokens": 8}}, usage(8, 0)),
        ({"usage": {"prompt_tokens": 8, "completion_tokens": 0, "total_tokens": 8}}, usage(8, 0)),
        ({"usage": {"input_tokens": 8}}, usage(8, 0)),
        ({"meta": {"billed_units": {"input_tokens": 8.0}}}, usage(8, 0)),
        ({"usage": {"total_tokens": -8}}, None),
        ({}, None),
    ],
)
def test_embeddings_have_input_alone(reply: dict[str, Any], read: Usage | None) -> None:
    """Some servers report a total and nothing else, or one that is larger than the prompt."""
    body = orjson.dumps({"object": "list", "data": [{"embedding": [0.1]}], **reply})
    assert OpenAIProvider().read_reply(new_call("embeddings"), body).usage == read


@pytest.mark.parametrize(
    ("reply", "tier"),
    [
        ({"service_tier": "priority"}, "priority"),
        ({"service_tier": "flex"}, "flex"),
        ({"service_tier": "default"}, None),
        ({"service_tier": "standard"}, None),
        ({"service_tier": "auto"}, None),
        ({"service_tier": "on_demand"}, None),
        ({"service_tier": None}, None),
        ({"service_tier": ""}, None),
        ({"service_tier": 5}, None),
        ({"service_tier": "x" * 33}, None),
        ({"usage": spelled(5, 7, service_tier="priority")}, "priority"),
        ({}, None),
    ],
)
def test_the_tier_is_the_one_that_served_the_call(reply: dict[str, Any], tier: str | None) -> None:
    """It multiplies the price; in a stream it may stand in any chunk."""
    whole = {"choices": [CHOICE], "usage": spelled(5, 7), **reply}
    read = OpenAIProvider().read_reply(new_call(), orjson.dumps(whole)).usage
    assert read is not None
    assert read.service_tier == tier

    stream = CompletionStream(strip_usage=True)
    first = {"choices": [{"index": 0, "delta": {"content": "hi"}}], **reply, "usage": None}
    last = {"choices": [], "usage": whole["usage"]}
    for chunk in (first, last):
        stream.feed(b"data: " + orjson.dumps(chunk) + b"\n\n")
    assert stream.usage is not None
    assert stream.usage.service_tier == tier


def test_choices_that_report_apart_share_one_prompt() -> None:
    """Kimi's way with several choices: each reports the prompt, and its own output."""
    ends = [
        {"index": index, "delta": {}, "finish_reason": "stop", "usage": spelled(19, output)}
        for index, output in enumerate((13, 20))
    ]
    assert usage_of({"choices": ends}) == usage(19, 33)
    stream = CompletionStream(strip_usage=True)
    for end in ends:
        stream.feed(b"data: " + orjson.dumps({"choices": [end]}) + b"\n\n")
    stream.finish()
    assert stream.usage == usage(19, 33)


USAGE = b'"usage": {"prompt_tokens": 7, "total_tokens": 7}'
VECTOR = b'{"object":"embedding","index":0,"embedding":[' + b"0.0123456789," * 60_000 + b"0.5]}"


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"object":"list","data":[%b],"model":"m",%b}' % (VECTOR, USAGE), 7),
        (b' {"data":[%b], %b , "model":"m"}\n' % (VECTOR, USAGE), 7),
        (b'{%b,"data":[%b]}' % (USAGE, VECTOR), 7),
        (b'{"data":[%b]}' % VECTOR, None),
        (b'{"data":[%b],"usage":null}' % VECTOR, None),
        (b'{"data":[%b],"usage": nonsense}' % VECTOR, None),
    ],
)
def test_long_embeddings_are_not_parsed(body: bytes, tokens: int | None) -> None:
    """Their usage is found at an end; the numbers between are the client's."""
    read = OpenAIProvider().read_reply(new_call("embeddings"), body)
    assert read.body is body
    assert (read.usage and read.usage.tokens_input) == tokens
    if tokens is not None:
        assert orjson.loads(body)["usage"]["prompt_tokens"] == tokens


@pytest.mark.parametrize("body", [b"[%b]" % VECTOR, b'{"data":[%b]' % VECTOR, VECTOR[1:]])
def test_long_embeddings_that_are_no_object(body: bytes) -> None:
    """Cut off, or no object at all: the backend's failure."""
    with pytest.raises(ValueError, match="not a JSON object"):
        OpenAIProvider().read_reply(new_call("embeddings"), body + b" " * 600_000)
