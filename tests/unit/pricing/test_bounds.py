"""The most that a call can use: never less than a provider may count."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from router.call import Call
from router.config.document import InputBounds, Model, Prices, PriceTier, ServiceTier
from router.pricing.bounds import bound_of, bounded_output

BOUNDS = InputBounds(1_000, 2_000, 3_000, 4_000, overhead_tokens=100)
MODEL = Model("m", max_output_tokens=500, input_bounds=BOUNDS)
DATA = "A" * 60_000
PNG = f"data:image/png;base64,{DATA}"
SCHEMA = {"$defs": {"a": {"anyOf": [{"type": "string", "description": "d" * 20_000}]}}}


def call(fields: dict[str, Any], operation: Any = "chat") -> Call:
    body = orjson.dumps(fields)
    return Call("openai", operation, "m", "m", fields, body)


def chat(*parts: dict[str, Any], **more: Any) -> Call:
    return call({"model": "m", "messages": [{"role": "user", "content": [*parts]}], **more})


def text_bytes(found: Call) -> int:
    assert found.body is not None
    return len(found.body)


# --- input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hello", "自" * 400, "Щ", "🙂", "\n" * 50, "\u200b", "e\u0301"])
def test_a_text_has_no_more_tokens_than_bytes(text: str) -> None:
    """P6: of any script; what a provider adds by itself is allowed for."""
    found = bound_of(chat({"type": "text", "text": text}), MODEL).tokens_input
    assert found >= len(text.encode()) + 100


IMAGE = {"type": "image_url", "image_url": {"url": PNG}}
BY_URL = {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}
MEDIA: list[tuple[dict[str, Any], int, int]] = [
    (IMAGE, 1_000, len(PNG)),
    ({"type": "image_url", "image_url": PNG.replace("data", "DATA")}, 1_000, len(PNG)),
    ({"type": "input_image", "image_url": PNG}, 1_000, len(PNG)),
    (BY_URL, 1_000, 0),
    ({"type": "image", "source": {"type": "base64", "data": DATA}}, 1_000, len(DATA)),
    ({"type": "image", "source": {"type": "url", "url": "https://a.example/"}}, 1_000, 0),
    ({"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}, 2_000, len(DATA)),
    ({"type": "audio_url", "audio_url": {"url": "https://a.example/c.mp3"}}, 2_000, 0),
    ({"type": "file", "file": {"file_id": "file-1"}}, 3_000, 0),
    (
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{DATA}"}},
        3_000,
        28 + len(DATA),
    ),
    # What is text in another dress has at most as many tokens as bytes, whatever is configured.
    ({"type": "file", "file": {"file_data": f"data:text/plain;base64,{DATA}"}}, 3_000, 0),
    ({"type": "document", "source": {"type": "text", "data": "t" * 9_000}}, 3_000, 0),
    ({"type": "document", "source": {"type": "content", "content": [IMAGE]}}, 4_000, len(PNG)),
    ({"type": "video_url", "video_url": {"url": "https://a.example/d.mp4"}}, 3_000, 0),
    ({"type": "unheard_of", "it": "x"}, 3_000, 0),
    ({"image_url": "https://a.example/no-type.png"}, 3_000, 0),
    ({"type": 7}, 3_000, 0),
    ({"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}, 1_000, len(PNG)),
]


@pytest.mark.parametrize(("part", "tokens", "skipped"), MEDIA)
@pytest.mark.parametrize("times", [1, 10])
def test_media_count_by_the_part(
    part: dict[str, Any], tokens: int, skipped: int, times: int
) -> None:
    """Ten pictures used to be nothing; their base64 as text would be the price of a book."""
    asked = chat(*[part] * times)
    expected = text_bytes(asked) + times * (tokens - skipped) + 100
    assert bound_of(asked, MODEL).tokens_input == expected


def test_a_tool_may_answer_with_pictures() -> None:
    """In any message, and in the input of embeddings."""
    for fields in (
        {"messages": [{"role": "tool", "tool_call_id": "t", "content": [BY_URL]}]},
        {"messages": [{"role": "user", "content": BY_URL}]},
        {"input": [BY_URL]},
    ):
        asked = call(fields)
        assert bound_of(asked, MODEL).tokens_input == text_bytes(asked) + 1_100


def test_an_answer_spoken_before_counts_as_sound() -> None:
    """It is sent back by its id alone."""
    asked = call({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]})
    assert bound_of(asked, MODEL).tokens_input == text_bytes(asked) + 2_100


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]),
        ("functions", [{"name": "f", "parameters": SCHEMA}]),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
        ("guided_json", SCHEMA),
        ("tool_choice", {"type": "function", "function": {"name": "f" * 20_000}}),
        ("documents", [{"text": "t" * 20_000}]),
    ],
)
def test_schemas_are_bounded_however_they_are_shown(field: str, value: Any) -> None:
    """20 kB of them used to be a token or two. A provider may indent them by two."""
    asked = call({"model": "m", "messages": [], field: value})
    shown = len(orjson.dumps(value, option=orjson.OPT_INDENT_2))
    assert bound_of(asked, MODEL).tokens_input >= max(shown, text_bytes(asked)) + 100


def test_other_letters_in_a_schema_may_be_escaped() -> None:
    """Six characters for one of three bytes, as ``json.dumps`` has it."""
    value = [{"name": "天气" * 1_000}]
    asked = call({"model": "m", "messages": [], "functions": value})
    assert bound_of(asked, MODEL).tokens_input >= 2_000 * 6


def test_calls_of_tools_are_bounded() -> None:
    """Arguments are JSON in a string, and may be written anew."""
    called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[" * 9_000}}
    asked = call({"messages": [{"role": "assistant", "tool_calls": [called]}]})
    assert bound_of(asked, MODEL).tokens_input >= 2 * 9_000


@pytest.mark.parametrize("prompt", [[1] * 1_000, [[1, 2], [3] * 998], list(range(1_000))])
def test_token_ids_count_one_each(prompt: list[Any]) -> None:
    """Each takes at least a digit and a comma of the body."""
    assert bound_of(call({"prompt": prompt}, "completions"), MODEL).tokens_input >= 1_000


def test_no_prompt_is_longer_than_the_context() -> None:
    """A provider refuses what does not fit."""
    model = Model("m", max_input_tokens=8_192, input_bounds=BOUNDS)
    assert bound_of(chat(IMAGE, *[BY_URL] * 20), model).tokens_input == 8_192
    assert bound_of(chat({"type": "text", "text": "x"}), model).tokens_input < 300


def test_a_translated_call_is_bounded_by_what_is_sent() -> None:
    """The native dialect's own bytes are not what a provider reads."""
    asked = call({"messages": [{"role": "user", "content": "x" * 5_000}]})
    asked.body = None
    assert 5_000 < bound_of(asked, MODEL).tokens_input < 5_200


# --- output ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "fields", "tokens"),
    [
        ("chat", {}, 500),
        ("chat", {"max_tokens": None}, 500),
        ("chat", {"max_tokens": 7}, 7),
        ("chat", {"max_completion_tokens": 7}, 7),
        ("chat", {"max_tokens": 900, "max_completion_tokens": 1}, 900),
        ("chat", {"max_tokens": 1, "max_completion_tokens": 900}, 900),
        ("chat", {"max_tokens": 1, "n_predict": 900}, 900),
        ("chat", {"max_completion_tokens": 1, "n_predict": 900}, 900),
        ("chat", {"max_tokens": 900, "n_predict": 1}, 900),
        ("chat", {"n": 1, "n_cmpl": 3, "max_tokens": 7}, 21),
        ("chat", {"max_tokens": 10**18}, 10**18),
        ("chat", {"n": 3}, 1_500),
        ("chat", {"n": 3, "max_tokens": 7}, 21),
        ("completions", {"prompt": "a"}, 500),
        ("completions", {"prompt": "a", "max_completion_tokens": 1}, 500),
        ("completions", {"prompt": "a", "max_tokens": 1, "n_predict": 900}, 900),
        ("completions", {"prompt": "a", "n_cmpl": 4, "max_tokens": 10}, 40),
        ("completions", {"prompt": "a", "best_of": 4, "max_tokens": 10}, 40),
        ("completions", {"prompt": "a", "best_of": 4, "n": 5, "max_tokens": 10}, 50),
        ("completions", {"prompt": ["a", "b"], "max_tokens": 10}, 20),
        ("completions", {"prompt": ["a", "b"], "n": 3, "max_tokens": 10}, 60),
        ("completions", {"prompt": [1, 2, 3], "max_tokens": 10}, 10),
        ("completions", {"prompt": [[1, 2], [3]], "max_tokens": 10}, 20),
        ("completions", {"prompt": [1, "a"], "max_tokens": 10}, 20),
        ("completions", {"prompt": [], "max_tokens": 10}, 10),
        ("embeddings", {"input": "a", "max_tokens": 10}, 0),
    ],
)
def test_output(operation: Any, fields: dict[str, Any], tokens: int) -> None:
    """P6: all choices of all prompts, at the largest of the bounds, or at the model's."""
    assert bound_of(call(fields, operation), MODEL).tokens_output == tokens


def test_a_rejected_prediction_is_billed_as_output() -> None:
    """OpenAI, "Predicted Outputs": tokens that do not appear are charged like those that do."""
    asked = chat(prediction={"type": "content", "content": "x" * 5_000}, max_tokens=10)
    assert 5_010 < bound_of(asked, MODEL).tokens_output < 5_100


def test_what_the_client_leaves_open_is_open_until_it_is_imposed() -> None:
    """Only then does an estimate have to keep to it."""
    asked = chat(n=2)
    assert bounded_output(asked) is None
    asked.output_limit = 50
    assert bounded_output(asked) == 100


# --- money ----------------------------------------------------------------------------------

# 2 USD and 10 USD a million.
PRICED = Prices(2_000_000_000, 10_000_000_000)
ROUND = Model("m", max_output_tokens=10, input_bounds=InputBounds(overhead_tokens=48))
PLAIN = {"model": "m", "messages": [{"role": "user", "content": "1234"}]}


def cost(prices: Prices, model: Model = ROUND, **more: Any) -> int:
    return bound_of(call({**PLAIN, **more}), model).cost_nanos(prices)


def test_the_bound_in_money() -> None:
    """By hand: {"model":"m","messages":[{"role":"user","content":"1234"}]} has 59 bytes."""
    assert cost(PRICED) == (59 + 48) * 2_000 + 10 * 10_000


def test_a_call_with_so_much_input_may_meet_the_dearer_tier() -> None:
    """And one that cannot, does not."""
    tiered = Prices(
        2_000_000_000, 10_000_000_000, tiers=(PriceTier(106, {"output": 15_000_000_000}),)
    )
    assert cost(tiered) == 107 * 2_000 + 10 * 15_000
    low = Model("m", max_output_tokens=10, input_bounds=InputBounds(overhead_tokens=47))
    assert cost(tiered, low) == 106 * 2_000 + 10 * 10_000


TIERS = {"priority": ServiceTier(2_000_000), "flex": ServiceTier(500_000)}


@pytest.mark.parametrize(
    ("allow", "service_tier", "factor"),
    [
        ((), None, 1),
        (("service_tier:priority",), "priority", 2),
        (("service_tier:priority",), "default", 2),  # a project may be set up so
        (("service_tier:priority",), None, 2),
        (("service_tier:flex",), "flex", 1),  # it may be served at the standard tier
        (("service_tier:flex", "service_tier:priority"), "flex", 1),
    ],
)
def test_the_service_tiers_that_may_serve_it(
    allow: tuple[str, ...], service_tier: str | None, factor: int
) -> None:
    """Only those that its model allows."""
    prices = Prices(2_000_000_000, 10_000_000_000, service_tiers=TIERS)
    model = Model("m", max_output_tokens=10, input_bounds=BOUNDS, allow=allow)
    asked = {} if service_tier is None else {"service_tier": service_tier}
    plain = cost(PRICED, model, **asked)
    assert cost(prices, model, **asked) == factor * plain


def test_a_cache_may_be_written_only_where_the_request_says_so() -> None:
    """The name may be hidden in escapes, which every parser resolves."""
    prices = Prices(2_000_000_000, 10_000_000_000, classes={"cache_write_1h": 4_000_000_000})
    marked = call({**PLAIN, "cache_control": {"type": "ephemeral"}})
    assert cost(prices) == cost(PRICED)
    assert bound_of(marked, ROUND).cost_nanos(prices) > bound_of(marked, ROUND).cost_nanos(PRICED)
    hidden = call(PLAIN)
    assert hidden.body is not None
    hidden.body = hidden.body.replace(b'"1234"', b'"\\u00631234"')
    assert bound_of(hidden, ROUND).cost_nanos(prices) == (59 + 6 + 48) * 4_000 + 10 * 10_000


def test_sound_and_pictures_at_their_own_prices() -> None:
    """Where the request has any; a text cannot meet them."""
    classes = {"input_audio": 40_000_000_000, "output_audio": 80_000_000_000}
    prices = Prices(2_000_000_000, 10_000_000_000, classes=classes)  # type: ignore[arg-type]
    assert cost(prices) == cost(PRICED)
    speaking = Model("m", allow=("modalities:audio",), max_output_tokens=10)
    spoken = bound_of(call({**PLAIN, "modalities": ["text", "audio"]}), speaking)
    assert spoken.cost_nanos(prices) >= 10 * 80_000
    heard = bound_of(chat({"type": "input_audio", "input_audio": {"data": DATA}}), MODEL)
    assert heard.cost_nanos(prices) >= 2_000 * 40_000


def test_searches_are_priced_and_their_finds_are_read_again() -> None:
    """Two searches: three readings of the prompt, of the first find two, of the second one."""
    prices = Prices(2_000_000_000, 10_000_000_000, classes={"web_searches": 10_000 * 10**9})
    tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}]
    asked = call({**PLAIN, "tools": tools})
    found = bound_of(asked, MODEL)
    once = bound_of(call({**PLAIN, "tools": [{**tools[0], "type": "custom_20250305"}]}), MODEL)
    assert found.web_searches == 2
    # The other type has four bytes less, in the body and where the tool is shown.
    assert found.tokens_input == 3 * (once.tokens_input + 2 * 4) + 3 * 4_000
    assert found.cost_nanos(prices) == (
        found.tokens_input * 2_000 + found.tokens_output * 10_000 + 2 * 10_000_000
    )
