"""Tokens as OpenAI's tokenizer counts them, with as much of its vocabularies as the texts need."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex
from tiktoken_ext import openai_public

from router.call import Call
from router.config.document import Model
from router.pricing import token_counter
from router.pricing.estimates import estimate, estimated_input
from router.pricing.token_counter import (
    LOOP_CHARS,
    VOCABULARIES,
    TokenCounter,
    load_token_counter,
)
from tests.unit.pricing.test_estimates import TEXTS

FOLDER = Path(__file__).with_name("vocabularies")
"""Of OpenAI's files every token that stands in one of ``TEXTS``, with its rank: what else is in a
vocabulary cannot change how these are encoded."""
NAMES = ["cl100k_base", "o200k_base"]
Load = Callable[[str], TokenCounter]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """The counter of a vocabulary by its name."""
    patterns = dict(VOCABULARIES.values())

    def made(name: str) -> TokenCounter:
        path = FOLDER / f"{name}.part.tiktoken"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setattr(token_counter, "VOCABULARIES", {digest: (name, patterns[name])})
        return load_token_counter(path)

    return made


@pytest.mark.parametrize("which", NAMES)
def test_counts_are_those_of_another_tokenizer(load: Load, which: str) -> None:
    """The package bpe-openai has counted them with the whole vocabularies."""
    counter, column = load(which), 1 + NAMES.index(which)
    counted = {name: counter.count(row[0]) for name, row in TEXTS.items()}
    assert counted == {name: row[column] for name, row in TEXTS.items()}


@pytest.mark.parametrize("which", NAMES)
def test_texts_are_split_as_openai_splits_them(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """Its package may write the pattern in another way, and splits the same."""
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_args, **_more: {})
    theirs = getattr(openai_public, which)()["pat_str"]
    ours = dict(VOCABULARIES.values())[which]
    some = random.Random(7)
    signs = "aZß'sDll7\u0663  \t\r\n\u3000/.!?-_界あ한ب\u0301🙂"
    texts = ["".join(some.choices(signs, k=40)) for _ in range(500)]
    texts += [text for text, _, _ in TEXTS.values()]
    assert [regex.findall(ours, text) for text in texts] == [
        regex.findall(theirs, text) for text in texts
    ]


@pytest.mark.parametrize("script", ["English", "Chinese", "Hindi", "JSON"])
def test_a_long_text_is_reckoned_from_samples(load: Load, script: str) -> None:
    """A megabyte costs what a short one costs, and the result is off by a few in a hundred."""
    text, _, tokens = TEXTS[script]
    times = 4_000
    assert len(text) * times > 20 * LOOP_CHARS
    counted = load("o200k_base").count(text * times)
    assert counted == pytest.approx(tokens * times, rel=0.04)


def test_samples_are_taken_from_everywhere(load: Load) -> None:
    """Half English and half Chinese is neither."""
    counter = load("o200k_base")
    (english, _, few), (chinese, _, many) = TEXTS["English"], TEXTS["Chinese"]
    times = len(english) * 200
    text = english * (times // len(english)) + chinese * (times // len(chinese))
    expected = few * (times // len(english)) + many * (times // len(chinese))
    assert counter.count(text) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("size", [0, 1, LOOP_CHARS - 1, LOOP_CHARS, LOOP_CHARS + 1, 10**6])
def test_never_more_is_counted_at_once(size: int) -> None:
    """Up to the bound all of it; above, as much as the bound."""
    seen: list[int] = []

    def encode(text: str) -> list[int]:
        seen.append(len(text))
        return [0] * len(text)

    assert TokenCounter(encode).count("x" * size) == size
    assert sum(seen) == min(size, LOOP_CHARS)


def call(fields: dict[str, Any]) -> Call:
    return Call("openai", "chat", "m", "m", fields, None)


def test_estimates_are_counts_where_there_is_a_vocabulary() -> None:
    """Texts and schemas; pictures, token ids and the output are what they were."""
    counter = TokenCounter(lambda text: [0] * len(text))
    fields = {
        "messages": [{"role": "user", "content": "12345678"}],
        "tools": [{"a": "é"}],
        "prompt": [1, 2, 3],
    }
    assert estimated_input(call(fields), Model("m"), counter) == 8 + len('[{"a":"é"}]') + 3
    found = estimate(call(fields), Model("m"), 400, counter=counter)
    assert (found.tokens_input, found.tokens_output, found.source) == (22, 100, "estimated")
    assert estimated_input(call(fields), Model("m", max_input_tokens=9), counter) == 9


def test_words_for_special_tokens_are_text(load: Load) -> None:
    """What a client writes ends no prompt: it is counted sign by sign."""
    assert load("cl100k_base").count("<|endoftext|>") > 1


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    """A broken download would count wrongly for ever."""
    path = tmp_path / "o200k_base.tiktoken"
    with pytest.raises(ValueError, match="No such file"):
        load_token_counter(path)
    path.write_bytes((FOLDER / "o200k_base.part.tiktoken").read_bytes())
    with pytest.raises(ValueError, match=r"neither cl100k_base\.tiktoken nor o200k_base\.tiktoken"):
        load_token_counter(path)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of a traceback."""
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ValueError, match=r"api-router\[tiktoken\]"):
        load_token_counter(tmp_path / "any")


def test_nothing_is_downloaded(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own functions would do it at the first use."""
    monkeypatch.setattr("tiktoken.load.read_file", lambda *_: pytest.fail("it was asked for"))
    assert load("cl100k_base").count("All human beings") == 3
