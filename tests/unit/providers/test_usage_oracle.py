"""Usage is read as the package genai-prices reads it, which knows how each provider reports it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from anthropic.types import Usage as AnthropicUsage
from hypothesis import given, settings
from hypothesis import strategies as st

from router.call import Usage, UsageClass
from router.providers.anthropic.messages_usage import read_usage
from router.providers.anthropic.reply import read_reply
from router.providers.openai_usage import usage_of
from tests.fakes.backend.usage_spellings import SPELLINGS, Spelling, anthropic_usage

catalogue = pytest.importorskip("genai_prices.data_snapshot", reason="genai-prices is missing")

CLASSES: dict[UsageClass, str] = {
    "cache_read": "cache_read_tokens",
    "input_audio": "input_audio_tokens",
    "output_audio": "output_audio_tokens",
    "output_reasoning": "output_reasoning_tokens",
    "web_searches": "web_searches",
}
AMOUNTS = st.just(0) | st.integers(1, 5000)
[MESSAGES] = [each for each in SPELLINGS if each.name == "anthropic"]


def read_by_the_package(reply: Any, provider: str, flavour: str) -> dict[str, int]:
    """Totals and classes of a reply, 0 where it reports none."""
    _, usage = (
        catalogue.get_snapshot()
        .find_provider(None, provider, None)
        .extract_usage({"model": "m", **reply}, api_flavor=flavour)
    )
    names = ("input_tokens", "output_tokens", "cache_write_tokens", *CLASSES.values())
    return {name: usage.reported_value(name) for name in names}


def read_by_us(usage: Usage | None) -> dict[str, int]:
    """The same of ours."""
    assert usage is not None
    classes = usage.classes()
    return {
        "input_tokens": usage.tokens_input,
        "output_tokens": usage.tokens_output,
        "cache_write_tokens": classes.get("cache_write_5m", 0) + classes.get("cache_write_1h", 0),
        **{theirs: classes.get(ours, 0) for ours, theirs in CLASSES.items()},
    }


@pytest.mark.parametrize(
    "spelling", [each for each in SPELLINGS if each.oracle], ids=lambda spelling: spelling.name
)
@settings(max_examples=15)
@given(data=st.data())
def test_each_spelling_that_it_knows(spelling: Spelling, data: st.DataObject) -> None:
    """Its table of extractors is an independent one."""
    told_apart = sorted(spelling.classes - {"output_image"})
    fields = spelling.fields({name: data.draw(AMOUNTS) for name in told_apart})
    assert spelling.oracle is not None
    assert read_by_us(usage_of(fields)) == read_by_the_package(fields, *spelling.oracle)


@given(st.fixed_dictionaries(dict.fromkeys(sorted(MESSAGES.classes), AMOUNTS)))
def test_what_a_client_gets_of_a_message(split: dict[str, int]) -> None:
    """A client of the OpenAI dialect counts what the Messages API reported to the router."""
    reported = anthropic_usage({**split, "output": split["output"] + 1})
    AnthropicUsage.model_validate(reported)
    message = {"id": "m", "type": "message", "model": "m", "content": [], "usage": reported}
    reply = orjson.loads(read_reply("chat", orjson.dumps(message), created=1).body)
    ours = read_by_us(read_usage(reported))
    assert ours == read_by_the_package(message, "anthropic", "default")
    assert ours == {
        **read_by_the_package(reply, "openai", "chat"),
        "web_searches": split["web_searches"],  # not in OpenAI's usage
    }
